// A reader of zarrow stores, written from FORMAT.md alone. Comments name its sections.
//
//   node reader.mjs STORE …      or their paths, one a line, on the standard input
//
// For each store it prints its rows as JSON, one a line, then one line of what else there is to say:
// {"store", "complete", "committed_rows", "damage": [{"path", "reason"}], "index"}.

import { isDeepStrictEqual } from 'node:util'
import { createInterface } from 'node:readline'
import { Damage, Files, believe, chunkCrc, crc32c, document, json } from './bytes.mjs'
import { arrayJson, groupJson, isExtents, partRows, scaled, shardKey, shardRows } from './decode.mjs'
import { readIndex } from './key_index.mjs'
import { OpenSegment, openNames } from './open_segment.mjs'
import { checkStatistics } from './statistics.mjs'

const digits = number => String(number).padStart(8, '0')
const recordPath = number => `segments/${digits(number)}.json`
const claimPath = number => `segments/${digits(number)}.claim`

class Reader {
  constructor(root) {
    this.files = new Files(root)
    this.damage = []
    this.rows = []
    this.dense = 0
    this.changed = false
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
    const unknown = (this.spec.reader_features ?? []).filter(feature => !['quantized', 'ragged'].includes(feature))
    if (unknown.length) return { error: `features ${unknown}` }
    const identity = this.files.identity('zarrow.json')
    const manifest = this.files.read('manifest.json')
    const listed = manifest && document(manifest, 'manifest.json')
    const complete = listed !== null && !this.numbers('json').has(listed.part_bytes.length) // else it is older
    const found = { complete, committed_rows: 0 }
    if (complete) await this.complete(listed, found)
    else await this.incomplete(found)
    this.changed ||= this.files.identity('zarrow.json') !== identity
      || (manifest !== null && !isDeepStrictEqual(this.files.read('manifest.json'), manifest))
    return found
  }

  /** Section 1.3. */
  async complete(manifest, found) {
    believe(manifest.uuid === this.spec.uuid, 'manifest.json', 'of another store')
    found.committed_rows = manifest.rows
    for (let number = 0; number < manifest.part_bytes.length; number++) {
      await this.attempt(async () => {
        const path = recordPath(number)
        const bytes = this.files.need(path)
        believe(crc32c(bytes) === manifest.records_crc32c[number], path, 'not the record of the manifest')
        await this.segment(this.record(number), number * this.spec.segment_rows)
      })
    }
    for (const [path, expected] of this.metadata(manifest)) {
      await this.attempt(() => {
        believe(isDeepStrictEqual(json(this.files.need(path), path), expected), path, 'not the metadata of the rows')
      })
    }
    await this.attempt(() => checkStatistics(this.files, this.spec, manifest, recordPath))
    found.index = await this.attempt(() => readIndex(this.files, this.spec, manifest))
  }

  metadata({ rows, vectors = {} }) {
    const arrays = this.spec.arrays.map(one =>
      [`embeddings.zarr/${one.name}/zarr.json`, arrayJson(this.spec, one, rows, vectors[one.name])])
    return [['embeddings.zarr/zarr.json', groupJson(this.spec, rows, vectors)], ...arrays]
  }

  record(number) {
    const record = this.files.document(recordPath(number))
    believe(record.segment === number, recordPath(number), 'of another segment')
    return record
  }

  numbers(suffix) {
    const names = this.files.list('segments').map(name => /^(\d{8})\.(json|claim)$/.exec(name))
    return new Set(names.filter(match => match?.[2] === suffix).map(match => Number(match[1])))
  }

  parts() {
    const names = this.files.list('table').map(name => /^part-(\d{8})\.parquet$/.exec(name))
    return names.filter(match => match).map(match => Number(match[1]))
  }

  /** Sections 1.2, 1.4 and 1.7. */
  async incomplete(found) {
    const parts = this.parts()
    const before = this.numbers('json')
    let dense = 0
    while (before.has(dense)) dense++
    this.last = dense ? this.files.read(recordPath(dense - 1)) : null
    const open = []
    for (const slot of openNames(this.files).reverse()) {
      const one = await this.attempt(() => new OpenSegment(this.files, this.spec, slot))
      if (one?.isComplete) open.unshift(one)
      for (const error of one?.damage ?? []) this.report(error.path, error.message)
      this.changed ||= !this.files.exists(`open/${slot}`)
    }
    const claims = [...this.numbers('claim')].map(number => [number, this.files.read(claimPath(number))])
    this.changed ||= open.some(one => !this.files.exists(one.path))
    const records = this.numbers('json')
    this.changed ||= [...before].some(number => !records.has(number))
    const last = Math.max(-1, ...records)
    const aside = new Set(this.files.list('quarantine').map(name => /^(\d{8})-\d+$/.exec(name)?.[1]))
    const isTaken = number => open.some(({ owner }) => owner?.reopens?.[0] === number)
    const missing = Array.from({ length: last + 1 }, (_, number) => number)
      .concat(parts.filter(number => number > last && !isTaken(number)))
      .filter(number => !records.has(number) && !claims.some(([claimed]) => claimed === number))
      .filter(number => !aside.has(digits(number)) && !this.files.exists(recordPath(number)))
    missing.forEach(number => this.report(recordPath(number), 'missing'))
    const sources = await this.committed(found, records, dense, missing.length > 0)
    const sound = await this.attempt(() => this.checkClaims(claims, records, open))
    if (!missing.length && sound) await this.live(sources, records, open)
    const short = this.last && document(this.last, recordPath(dense - 1)).rows < this.spec.segment_rows
    this.changed ||= short && !isDeepStrictEqual(this.files.read(recordPath(dense - 1)), this.last)
  }

  /** The rows of committed segments; returns what their records list as sources, and fills `this.checksums`. */
  async committed(found, records, dense, denseOnly) {
    const full = this.spec.segment_rows
    const sources = []
    this.checksums = new Map()
    for (const number of [...records].sort((one, other) => one - other)) {
      if (number >= dense && denseOnly) break
      const record = await this.attempt(() => this.record(number))
      if (number < dense) this.dense = number * full + (record?.rows ?? full)
      found.committed_rows += record?.rows ?? 0
      if (!record) continue
      sources.push(...record.sources)
      this.checksums.set(number, [crc32c(this.files.need(recordPath(number))), record.rows])
      const short = record.rows < full && number < Math.max(...records)
      if (short) this.report(recordPath(number), 'short, but not the last')
      await this.attempt(() => this.segment(record, number < dense ? number * full : this.next()))
    }
    return sources
  }

  /** Section 1.5: whether claims are sound, and the sources of those without record there. */
  checkClaims(claims, records, open) {
    for (const [number, bytes] of claims) {
      if (bytes === null) continue // released meanwhile
      for (const [slot, , stop] of document(bytes, claimPath(number)).sources) {
        const rows = open.find(one => one.slot === slot)?.rows ?? -1
        const there = rows >= stop || records.has(number)
        believe(there, claimPath(number), `${stop} rows of ${slot}, which has ${rows}`)
      }
    }
    return true
  }

  /** The number of the next live row. */
  next() {
    return Math.max(this.dense, (this.rows.at(-1)?.row ?? -1) + 1)
  }

  /** The rows of a committed segment, each file compared with its record (sections 6 to 8). */
  async segment(record, start) {
    const part = `table/part-${digits(record.segment)}.parquet`
    const bytes = this.files.need(part)
    believe(bytes.length === record.part.size_bytes, part, `${bytes.length} bytes`)
    believe(crc32c(bytes) === record.part.crc32c, part, 'its checksum does not match')
    const footer = new DataView(bytes.buffer, bytes.byteOffset).getUint32(bytes.length - 8, true)
    believe(crc32c(bytes.subarray(-8 - footer)) === record.part.footer_crc32c, part, 'not its footer')
    const table = await partRows(this.spec, bytes)
    const right = table.length === record.rows
      && table.every(({ row }, place) => row === record.segment * this.spec.segment_rows + place)
    believe(right, part, 'not the rows of the segment')
    const vectors = {}
    for (const array of this.spec.arrays) vectors[array.name] = await this.shard(record, array)
    for (const { name } of this.spec.arrays.filter(one => one.segment_vectors)) {
      const all = vectors[name]
      vectors[name] = vectors[`${name}_extent`].map(([offset, count]) => {
        const fits = offset >= 0 && count >= 0 && offset + count <= all.length
        believe(fits, part, `${count} vectors of ${name} from ${offset} on, of ${all.length}`)
        return all.slice(offset, offset + count)
      })
    }
    this.add(table, vectors, start)
  }

  add(table, vectors, start) {
    table.forEach((row, place) => {
      const arrays = this.spec.arrays.filter(one => !isExtents(this.spec, one)).map(({ name, scale }) =>
        [name, scale ? scaled(vectors[name][place], row[scale]) : vectors[name][place]])
      this.rows.push({ ...row, ...Object.fromEntries(arrays), row: start + place })
    })
  }

  /** Sections 6, 8.1 and 18: the rows of an array, or the vectors of a ragged one. */
  async shard(record, array) {
    const facts = record.arrays[array.name]
    if (!record.rows) return []
    const path = `embeddings.zarr/${array.name}${shardKey(record.segment, array)}`
    const units = array.segment_vectors ? facts.vectors : record.rows
    const bytes = this.files.need(path)
    believe(bytes.length === facts.size_bytes, path, `${bytes.length} bytes`)
    const chunks = (array.segment_vectors ?? this.spec.segment_rows) / array.chunk_rows
    const start = bytes.length - 16 * chunks - 4
    const index = new DataView(bytes.buffer, bytes.byteOffset + start)
    const crc = crc32c(bytes.subarray(start, -4))
    believe(crc === facts.index_crc32c && crc === index.getUint32(16 * chunks, true), path, 'not its index')
    const used = Math.ceil(units / array.chunk_rows)
    let end = 0
    for (let number = 0; number < used; number++) {
      const size = Number(index.getBigUint64(16 * number + 8, true))
      believe(Number(index.getBigUint64(16 * number, true)) === end, path, 'a gap between chunks')
      believe(chunkCrc(array, bytes.subarray(end, end + size)) === facts.chunks_crc32c[number], path, `chunk ${number}`)
      end += size
    }
    believe(end === start, path, 'bytes after the last chunk')
    return shardRows(this.spec, array, bytes, units)
  }

  /** Sections 1.4 and 1.5: the rows of the open segments that count. */
  async live(sources, records, open) {
    const full = this.spec.segment_rows
    const isCopy = ({ owner }) => Array.isArray(owner?.reopens)
      ? records.has(owner.reopens[0]) && this.checksums.get(owner.reopens[0])?.[0] === owner.reopens[1]
      : open.some(one => one.slot === owner?.reopens)
    const listed = isOne => sources.filter(isOne).reduce((sum, [, start, stop]) => sum + stop - start, 0)
    for (const one of open.filter(isCopy)) {
      const rows = this.checksums.get(one.owner.reopens[0])?.[1] ?? full
      if (one.rows > rows) this.report(one.path, 'a copy with more rows than what it is a copy of')
    }
    const counted = []
    for (const one of open.filter(one => one.isSound && !isCopy(one))) {
      const { session, sequence } = one.owner
      const isHole = other => other.owner?.session === session && other.owner.sequence < sequence
        && other.rows < full && !isCopy(other) && listed(([slot]) => slot === other.slot) < full
      const hole = open.some(isHole)
      if (hole && one.durable) this.report(one.path, 'durable rows that follow a hole')
      if (hole) continue
      const before = open.some(({ owner }) => owner?.session === session && owner.sequence === sequence - 1)
        || listed(([, , , of, number]) => of === session && number === sequence - 1) >= full
      if (one.rows && sequence && !before) this.report(one.path, 'the rows before its own are missing')
      counted.push(one)
    }
    const bad = new Set(open.filter(one => this.damage.some(({ path }) => path === one.path)).map(one => one.owner?.session))
    for (const one of counted.filter(one => !bad.has(one.owner.session))) {
      const gone = sources.filter(([slot]) => slot === one.slot)
      const kept = place => !gone.some(([, start, stop]) => start <= place && place < stop)
      const places = Array.from({ length: one.rows }, (_, place) => place).filter(kept)
      if (!places.length) continue
      const table = one.table()
      const vectors = {}
      for (const [number, array] of this.spec.arrays.entries()) {
        const all = await one.vectors(array, number)
        vectors[array.name] = places.map(place => all[place])
      }
      this.add(places.map(place => table[place]), vectors, this.next())
    }
  }
}

/** Section 1.7: looks again while the store changes, and twice more at what seems damaged. */
async function show(path) {
  for (let looks = 0, damaged = 0; ; looks++) {
    const reader = new Reader(path)
    const found = await reader.attempt(() => reader.run())
    const again = reader.changed || (reader.damage.length > 0 && damaged++ < 2)
    if (again && looks < 100) {
      await new Promise(resolve => setTimeout(resolve, 5))
      continue
    }
    const summary = { store: path, ...found, damage: reader.damage }
    process.stdout.write([...reader.rows, summary].map(line => `${JSON.stringify(line)}\n`).join(''))
    return
  }
}

const given = process.argv.slice(2)
for await (const path of given.length ? given : createInterface({ input: process.stdin })) await show(path)
