// An open segment, all of whose files are read at once (FORMAT.md, sections 1.5 and 9).

import { Damage, believe, chunkCrc, crc32c, document, readFrames } from './bytes.mjs'
import { chunkRows, payloadRows, rowSize } from './decode.mjs'

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
    for (const [number, array] of this.spec.arrays.entries()) {
      while (kept && !this.isRight(array, number, frames.slice(0, kept))) kept--
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
    let end = 0
    const next = length => bytes.subarray(end, (end += length))
    if (isPlain(array)) {
      return frames.every((frame, place) => crc32c(next(frame.rows * size)) === entries[place].crc) && end <= bytes.length
    }
    const chunks = entries.flatMap(entry => entry.chunks)
    const whole = chunks.every(chunk => chunkCrc(array, next(chunk.size)) === chunk.crc) && end <= bytes.length
    if (!whole || chunks.length !== Math.floor(count(frames) / array.chunk_rows)) return false
    const left = (count(frames) % array.chunk_rows) * size
    const tail = this.tail(array, entries, left)
    return !left || (tail?.length === left && crc32c(tail) === entries.at(-1).tailCrc)
  }

  tail(array, entries, size) {
    return size ? this.bytes[`${array.name}.tail${entries.at(-1).tail}`]?.slice(0, size) : new Uint8Array()
  }

  table() {
    return payloadRows(this.spec, this.frames.filter(frame => frame.rows).map(frame => frame.payload))
  }

  /** All rows of an array (section 9.3). */
  vectors(array, number) {
    const bytes = this.bytes[`${array.name}.rows`]
    const size = rowSize(array)
    if (isPlain(array)) return chunkRows(array, [], bytes.slice(0, this.rows * size))
    const entries = this.frames.map(frame => frame.arrays[number])
    let end = 0
    const chunks = entries.flatMap(entry => entry.chunks).map(chunk => bytes.slice(end, (end += chunk.size)))
    return chunkRows(array, chunks, this.tail(array, entries, (this.rows % array.chunk_rows) * size))
  }
}

const count = frames => frames.reduce((sum, frame) => sum + frame.rows, 0)
