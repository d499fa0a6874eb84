// An open segment, all of whose files are read at once (FORMAT.md, sections 1.5 and 9).

import { Damage, believe, chunkCrc, crc32c, document, readFrames } from './bytes.mjs'
import { chunkRows, isExtents, payloadRows, rowSize } from './decode.mjs'

const isPlain = array => array.codecs.length === 1 && array.codecs[0].name === 'bytes'

export function openNames(files) {
  return files.list('open').filter(name => /^[0-9a-f]{16}$/.test(name))
}

export class OpenSegment {
  constructor(files, spec, slot) {
    this.spec = spec
    this.slot = slot
    this.path = `open/${slot}`
    this.owner = null
    this.frames = []
    this.rows = 0
    this.durable = 0
    this.damage = []
    const rowFiles = spec.arrays.flatMap(one =>
      (isPlain(one) ? ['rows'] : ['rows', 'tail0', 'tail1']).map(kind => `${one.name}.${kind}`))
    this.bytes = {}
    for (const name of ['owner.json', 'table.frames', ...rowFiles]) this.bytes[name] = files.read(`${this.path}/${name}`)
    this.isComplete = this.bytes['owner.json'] !== null && this.bytes['table.frames'] !== null
    if (!this.isComplete) {
      const first = Math.ceil((68 + 16 * spec.arrays.length) / 8) * 8 // a frame without rows
      const some = rowFiles.some(name => this.bytes[name]?.length) || this.bytes['table.frames']?.length > first
      believe(!some, this.path, 'without owner.json or table.frames, though there are bytes')
      return
    }
    this.try(() => (this.owner = document(this.bytes['owner.json'], `${this.path}/owner.json`)))
    this.try(() => this.prefix(rowFiles))
    this.isSound = !this.damage.length
  }

  try(action) {
    try {
      action()
    } catch (error) {
      if (!(error instanceof Damage)) throw error
      this.damage.push(error)
    }
  }

  /** Section 9.4. */
  prefix(rowFiles) {
    const { frames, durable } = readFrames(this.bytes['table.frames'], this.spec, `${this.path}/table.frames`)
    believe(frames.length, `${this.path}/table.frames`, 'begins with no sound frame')
    const lost = frames.some(frame => frame.rows) && rowFiles.find(name => this.bytes[name] === null)
    believe(!lost, `${this.path}/${lost}`, 'missing')
    let kept = frames.length
    const places = [...this.spec.arrays.entries()]
    places.sort(([, one], [, other]) => isExtents(this.spec, other) - isExtents(this.spec, one)) // they come first
    for (let before = -1; before !== kept; ) {
      before = kept
      for (const [number, array] of places) {
        while (kept && !this.isRight(array, number, frames.slice(0, kept))) kept--
      }
    }
    const rows = count(frames.slice(0, kept))
    believe(durable <= rows, this.path, `${durable} rows were durable, ${rows} are sound`)
    Object.assign(this, { frames: frames.slice(0, kept), rows, durable })
  }

  /** Whether the row bytes of these frames are those that were written (section 9.3). */
  isRight(array, number, frames) {
    const bytes = this.bytes[`${array.name}.rows`] ?? new Uint8Array()
    const entries = frames.map(frame => frame.arrays[number])
    const size = rowSize(array)
    const each = array.segment_vectors ? this.vectorsPerFrame(array, frames) : frames.map(frame => frame.rows)
    if (!each) return false
    const units = sum(each)
    let end = 0
    const next = length => bytes.subarray(end, (end += length))
    if (isPlain(array)) {
      return each.every((rows, place) => crc32c(next(rows * size)) === entries[place].crc) && end <= bytes.length
    }
    const chunks = entries.flatMap(entry => entry.chunks)
    const whole = chunks.every(chunk => chunkCrc(array, next(chunk.size)) === chunk.crc) && end <= bytes.length
    if (!whole || chunks.length !== Math.floor(units / array.chunk_rows)) return false
    const left = (units % array.chunk_rows) * size
    const tail = this.tail(array, entries, left)
    return !left || (tail?.length === left && crc32c(tail) === entries.at(-1).tailCrc)
  }

  /** Where the first rows' vectors begin and how many they are, as pairs (section 18). */
  extents(array, rows) {
    const bytes = this.bytes[`${array.name}_extent.rows`]
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    const number = place => Number(view.getBigInt64(8 * place, true))
    return Array.from({ length: rows }, (_, row) => [number(2 * row), number(2 * row + 1)])
  }

  /** The vectors of each of these frames, whose extents are known to be right; null if they do not continue. */
  vectorsPerFrame(array, frames) {
    const extents = this.extents(array, count(frames))
    let end = 0
    for (const [offset, vectors] of extents) {
      if (offset !== end || vectors < 0) return null
      end += vectors
    }
    return frames.map(({ first, rows }) => sum(extents.slice(first, first + rows).map(([, vectors]) => vectors)))
  }

  tail(array, entries, size) {
    return size ? this.bytes[`${array.name}.tail${entries.at(-1).tail}`]?.slice(0, size) : new Uint8Array()
  }

  table() {
    return payloadRows(this.spec, this.frames.filter(frame => frame.rows).map(frame => frame.payload))
  }

  /** All rows of an array (section 9.3); of a ragged one, the vectors of each (section 18). */
  async vectors(array, number) {
    if (!array.segment_vectors) return this.units(array, number, this.rows)
    const extents = this.extents(array, this.rows)
    const all = await this.units(array, number, sum(extents.map(([, vectors]) => vectors)))
    return extents.map(([offset, vectors]) => all.slice(offset, offset + vectors))
  }

  units(array, number, units) {
    const bytes = this.bytes[`${array.name}.rows`]
    const size = rowSize(array)
    if (isPlain(array)) return chunkRows(array, [], bytes.slice(0, units * size))
    const entries = this.frames.map(frame => frame.arrays[number])
    let end = 0
    const chunks = entries.flatMap(entry => entry.chunks).map(chunk => bytes.slice(end, (end += chunk.size)))
    return chunkRows(array, chunks, this.tail(array, entries, (units % array.chunk_rows) * size))
  }
}

const sum = numbers => numbers.reduce((one, other) => one + other, 0)
const count = frames => sum(frames.map(frame => frame.rows))
