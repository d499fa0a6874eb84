// A reader of zarrow stores, written from FORMAT.md alone. Comments name its sections.
//
//   node reader.mjs STORE …      or their paths, one a line, on the standard input
//
// For each store it prints its rows as JSON, one a line, then one line of what else there is to say:
// {"store", "complete", "committed_rows", "damage": [{"path", "reason"}], "index"}.

import { isDeepStrictEqual } from 'node:util'
import { createInterface } from 'node:readline'
import { Damage, Files, believe, crc32c, document, readFrames } from './bytes.mjs'
import { arrayJson, chunkRows, groupJson, partRows, payloadRows, rowSize, shardRows } from './decode.mjs'
import { readIndex } from './key_index.mjs'

const digits = number => String(number).padStart(8, '0')
const isPlain = array => array.codecs.length === 1 && array.codecs[0].name === 'bytes'

class Reader {
  constructor(root) {
    this.files = new Files(root)
    this.damage = []
    this.rows = []
    this.dense = 0
  }

  report(path, reason) {
    this.damage.push({ path, reason })
  }

  /** Do something; damage is reported, and null is returned then. */
  async attempt(action) {
    try {
      return await action()
    } catch (error) {
      if (!(error instanceof Damage)) throw error
      this.report(error.path, error.message)
      return null
    }
  }

  /** Section 1.1. */
  async run() {
    if (this.files.read('zarrow.json') === null) return { error: 'not a store' }
    this.spec = this.files.document('zarrow.json')
    if (this.spec.zarrow_format !== 1) return { error: `format ${this.spec.zarrow_format}` }
    if (this.spec.reader_features?.length) return { error: `features ${this.spec.reader_features}` }
    const manifest = this.files.read('manifest.json')
    const found = { complete: manifest !== null, committed_rows: 0 }
    if (manifest) await this.complete(document(manifest, 'manifest.json'), found)
    else await this.incomplete(found)
    return found
  }

  /** Section 1.3. */
  async complete(manifest, found) {
    believe(manifest.uuid === this.spec.uuid, 'manifest.json', 'of another store')
    found.committed_rows = manifest.rows
    for (let number = 0; number < manifest.part_bytes.length; number++) {
      await this.attempt(async () => {
        const path = `segments/${digits(number)}.json`
        const bytes = this.files.need(path)
        believe(crc32c(bytes) === manifest.records_crc32c[number], path, 'not the record of the manifest')
        await this.segment(this.record(number), number * this.spec.segment_rows)
      })
    }
    for (const [path, expected] of this.metadata(manifest.rows)) {
      await this.attempt(() => {
        const same = isDeepStrictEqual(JSON.parse(new TextDecoder().decode(this.files.need(path))), expected)
        believe(same, path, 'not the metadata of the rows')
      })
    }
    found.index = await this.attempt(() => readIndex(this.files, this.spec, manifest))
  }

  metadata(rows) {
    const arrays = this.spec.arrays.map(one => [`embeddings.zarr/${one.name}/zarr.json`, arrayJson(this.spec, one, rows)])
    return [['embeddings.zarr/zarr.json', groupJson(this.spec, rows)], ...arrays]
  }

  record(number) {
    const path = `segments/${digits(number)}.json`
    const record = this.files.document(path)
    believe(record.segment === number, path, 'of another segment')
    return record
  }

  numbers(suffix) {
    const names = this.files.list('segments').map(name => /^(\d{8})\.(json|claim)$/.exec(name))
    return new Set(names.filter(match => match?.[2] === suffix).map(match => Number(match[1])))
  }

  /** Sections 1.2 and 1.4. */
  async incomplete(found) {
    const full = this.spec.segment_rows
    const records = this.numbers('json')
    const claims = this.numbers('claim')
    const last = Math.max(-1, ...records)
    const aside = new Set(this.files.list('quarantine').map(name => /^(\d{8})-\d+$/.exec(name)?.[1]))
    const missing = Array.from({ length: last + 1 }, (_, number) => number)
      .filter(number => !records.has(number) && !claims.has(number) && !aside.has(digits(number)))
    missing.forEach(number => this.report(`segments/${digits(number)}.json`, 'missing'))
    let dense = 0
    while (records.has(dense)) dense++
    const sources = []
    for (const number of [...records].sort((one, other) => one - other)) {
      if (number > dense && missing.length) break
      const path = `segments/${digits(number)}.json`
      const record = await this.attempt(() => this.record(number))
      if (number < dense) this.dense = number * full + (record?.rows ?? full)
      found.committed_rows += record?.rows ?? 0
      if (!record) continue
      sources.push(...record.sources)
      if (record.rows < full && number < last) this.report(path, 'short, but not the last')
      await this.attempt(() => this.segment(record, number < dense ? number * full : this.next()))
    }
    const open = await this.openSegments(records)
    const claimed = await this.attempt(() => this.checkClaims(claims, records, open))
    if (!missing.length && claimed) await this.live(sources, open)
  }

  /** Section 1.5: whether claims are sound, and the sources of those without record there. */
  checkClaims(claims, records, open) {
    for (const number of claims) {
      const path = `segments/${digits(number)}.claim`
      const claim = this.files.document(path)
      for (const [slot, , stop] of records.has(number) ? [] : claim.sources) {
        const rows = open.find(one => one.slot === slot)?.sound?.rows ?? -1
        believe(rows >= stop, path, `${stop} rows of ${slot}, which has ${rows}`)
      }
    }
    return true
  }

  /** The number of the next live row. */
  next() {
    return Math.max(this.dense, (this.rows.at(-1)?.row ?? -1) + 1)
  }

  /** The rows of a sealed segment, each file compared with its record (sections 6 to 8). */
  async segment(record, start) {
    const part = `table/part-${digits(record.segment)}.parquet`
    const bytes = this.files.need(part)
    believe(bytes.length === record.part.size_bytes, part, `${bytes.length} bytes`)
    believe(crc32c(bytes) === record.part.crc32c, part, 'its checksum does not match')
    const footer = new DataView(bytes.buffer, bytes.byteOffset).getUint32(bytes.length - 8, true)
    believe(crc32c(bytes.subarray(-8 - footer)) === record.part.footer_crc32c, part, 'not its footer')
    const table = await partRows(bytes)
    const right = table.length === record.rows
      && table.every(({ row }, place) => row === record.segment * this.spec.segment_rows + place)
    believe(right, part, 'not the rows of the segment')
    const vectors = {}
    for (const array of this.spec.arrays) vectors[array.name] = await this.shard(record, array)
    this.add(table, vectors, start)
  }

  add(table, vectors, start) {
    table.forEach((row, place) => {
      const arrays = Object.entries(vectors).map(([name, values]) => [name, values[place]])
      this.rows.push({ ...row, ...Object.fromEntries(arrays), row: start + place })
    })
  }

  /** Sections 6 and 8.1. */
  async shard(record, array) {
    const facts = record.arrays[array.name]
    if (!record.rows) return []
    const path = `embeddings.zarr/${array.name}/c/${record.segment}${'/0'.repeat(array.row_shape.length)}`
    const bytes = this.files.need(path)
    believe(bytes.length === facts.size_bytes, path, `${bytes.length} bytes`)
    const chunks = this.spec.segment_rows / array.chunk_rows
    const start = bytes.length - 16 * chunks - 4
    const index = new DataView(bytes.buffer, bytes.byteOffset + start)
    const crc = crc32c(bytes.subarray(start, -4))
    believe(crc === facts.index_crc32c && crc === index.getUint32(16 * chunks, true), path, 'not its index')
    const used = Math.ceil(record.rows / array.chunk_rows)
    let end = 0
    for (let number = 0; number < used; number++) {
      const size = Number(index.getBigUint64(16 * number + 8, true))
      believe(Number(index.getBigUint64(16 * number, true)) === end, path, 'a gap between chunks')
      believe(chunkCrc(array, bytes.subarray(end, end + size)) === facts.chunks_crc32c[number], path, `chunk ${number}`)
      end += size
    }
    believe(end === start, path, 'bytes after the last chunk')
    return shardRows(this.spec, array, bytes, record.rows)
  }

  /** Section 1.5: the open segments that were completed; `sound` is null where one is damaged. */
  async openSegments(records) {
    const found = []
    for (const slot of this.files.list('open').filter(name => /^[0-9a-f]{16}$/.test(name))) {
      const path = `open/${slot}`
      const one = { slot, path, owner: null, sound: null }
      const completed = await this.attempt(() => {
        const names = ['owner.json', 'table.frames'].filter(name => this.files.read(`${path}/${name}`) === null)
        if (!names.length) return true
        const bytes = ['table.frames', ...this.rowFiles()].some(name => this.files.read(`${path}/${name}`)?.length)
        believe(!bytes, `${path}/${names[0]}`, 'missing')
        return false
      })
      if (completed === false) continue
      if (completed) {
        one.owner = await this.attempt(() => this.files.document(`${path}/owner.json`))
        one.sound = await this.attempt(() => this.prefix(path))
      }
      found.push(one)
    }
    for (const one of found) {
      const reopens = one.owner?.reopens ?? null
      one.isCopy = records.has(reopens) || found.some(other => other.slot === reopens)
    }
    return found
  }

  rowFiles() {
    return this.spec.arrays.flatMap(one =>
      (isPlain(one) ? ['rows'] : ['rows', 'tail0', 'tail1']).map(kind => `${one.name}.${kind}`))
  }

  /** Sections 1.4 and 1.5: the rows of the open segments that count. */
  async live(sources, open) {
    for (const one of open) {
      if (!one.sound || !one.owner || one.isCopy) continue
      const { session, sequence } = one.owner
      const hole = open.some(({ owner, sound, isCopy }) => !isCopy && owner?.session === session
        && owner.sequence < sequence && sound?.rows !== this.spec.segment_rows)
      if (hole && one.sound.durable) this.report(one.path, 'durable rows that follow a hole')
      if (hole) continue
      const gone = sources.filter(([slot]) => slot === one.slot)
      const kept = place => !gone.some(([, start, stop]) => start <= place && place < stop)
      const places = Array.from({ length: one.sound.rows }, (_, place) => place).filter(kept)
      if (!places.length) continue
      const table = payloadRows(this.spec, one.sound.frames.filter(frame => frame.rows).map(frame => frame.payload))
      const vectors = {}
      for (const [number, array] of this.spec.arrays.entries()) {
        const all = await this.openRows(one, array, number)
        vectors[array.name] = places.map(place => all[place])
      }
      this.add(places.map(place => table[place]), vectors, this.next())
    }
  }

  /** Section 9.4, steps 3 and 4. */
  prefix(path) {
    const journal = `${path}/table.frames`
    const { frames, durable } = readFrames(this.files.need(journal), this.spec, journal)
    if (frames.some(frame => frame.rows)) this.rowFiles().forEach(name => this.files.need(`${path}/${name}`))
    let kept = frames.length
    for (const [number, array] of this.spec.arrays.entries()) {
      while (kept && !this.isSound(path, array, frames.slice(0, kept), number)) kept--
    }
    const sound = frames.slice(0, kept)
    const rows = sound.reduce((sum, frame) => sum + frame.rows, 0)
    believe(durable <= rows, path, `${durable} rows were durable, ${rows} are sound`)
    return { frames: sound, rows, durable }
  }

  /** Whether the row bytes of these frames are those that were written (section 9.3). */
  isSound(path, array, frames, number) {
    const bytes = this.files.read(`${path}/${array.name}.rows`) ?? new Uint8Array()
    const entries = frames.map(frame => frame.arrays[number])
    const rows = frames.reduce((sum, frame) => sum + frame.rows, 0)
    const size = rowSize(array)
    let end = 0
    const next = length => bytes.subarray(end, (end += length))
    if (isPlain(array)) {
      const right = frames.every((frame, place) => crc32c(next(frame.rows * size)) === entries[place].crc)
      return right && end <= bytes.length
    }
    const chunks = entries.flatMap(entry => entry.chunks)
    const whole = chunks.every(chunk => chunkCrc(array, next(chunk.size)) === chunk.crc) && end <= bytes.length
    if (!whole || chunks.length !== Math.floor(rows / array.chunk_rows)) return false
    const left = (rows % array.chunk_rows) * size
    const last = entries.at(-1)
    const tail = left ? this.files.read(`${path}/${array.name}.tail${last.tail}`) : new Uint8Array()
    return !left || (tail?.length >= left && crc32c(tail.subarray(0, left)) === last.tailCrc)
  }

  /** All rows of an open segment's array (section 9.3). */
  openRows({ path, sound }, array, number) {
    const bytes = this.files.need(`${path}/${array.name}.rows`)
    const size = rowSize(array)
    if (isPlain(array)) return chunkRows(array, [], bytes.slice(0, sound.rows * size))
    const entries = sound.frames.map(frame => frame.arrays[number])
    let end = 0
    const chunks = entries.flatMap(entry => entry.chunks).map(chunk => bytes.slice(end, (end += chunk.size)))
    const left = (sound.rows % array.chunk_rows) * size
    const tail = left && this.files.need(`${path}/${array.name}.tail${entries.at(-1).tail}`).slice(0, left)
    return chunkRows(array, chunks, tail || new Uint8Array())
  }
}

/** The checksum of a chunk (section 8.1); null if the one that it ends with is wrong. */
function chunkCrc(array, stored) {
  if (array.codecs.at(-1).name !== 'crc32c') return crc32c(stored)
  const crc = crc32c(stored.subarray(0, -4))
  const own = Buffer.from(stored.subarray(-4))
  return own.length === 4 && own.readUInt32LE() === crc ? crc : null
}

async function show(path) {
  const reader = new Reader(path)
  const found = await reader.attempt(() => reader.run())
  const summary = { store: path, ...found, damage: reader.damage }
  process.stdout.write([...reader.rows, summary].map(line => `${JSON.stringify(line)}\n`).join(''))
}

const given = process.argv.slice(2)
for await (const path of given.length ? given : createInterface({ input: process.stdin })) await show(path)
