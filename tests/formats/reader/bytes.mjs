// Bytes: files, checksums, documents and frames of a zarrow store (FORMAT.md, sections 2, 4 and 9.2).

import { existsSync, lstatSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

const TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = (byte >>> 1) ^ (byte & 1 ? 0x82f63b78 : 0)
  return byte
})

export function crc32c(bytes) {
  let crc = -1
  for (let place = 0; place < bytes.length; place++) crc = TABLE[(crc ^ bytes[place]) & 255] ^ (crc >>> 8)
  return (crc ^ -1) >>> 0
}

/** What no crash leaves (section 1.6). */
export class Damage extends Error {
  constructor(path, message) {
    super(message)
    this.path = path
  }
}

export function believe(condition, path, message) {
  if (!condition) throw new Damage(path, message)
}

/** The files of a store by their relative paths. */
export class Files {
  constructor(root) {
    this.root = root
  }

  /** The bytes of a file, or null if there is none. */
  read(path) {
    const parts = path.split('/')
    for (let depth = 1; depth <= parts.length; depth++) {
      const place = join(this.root, ...parts.slice(0, depth))
      const found = lstatSync(place, { throwIfNoEntry: false })
      if (found === undefined) return null
      const right = depth < parts.length ? found.isDirectory() : found.isFile()
      believe(right, path, 'not a regular file in directories of the store')
    }
    try {
      return new Uint8Array(readFileSync(join(this.root, path)))
    } catch (error) {
      if (error.code === 'ENOENT') return null // it was removed just now
      throw error
    }
  }

  exists(path) {
    return existsSync(join(this.root, path))
  }

  /** What tells a file from one that replaces it. */
  identity(path) {
    const found = lstatSync(join(this.root, path), { throwIfNoEntry: false, bigint: true })
    return found && `${found.ino} ${found.mtimeNs}`
  }

  need(path) {
    const bytes = this.read(path)
    believe(bytes !== null, path, 'missing')
    return bytes
  }

  list(path) {
    const place = join(this.root, path)
    return existsSync(place) ? readdirSync(place).sort() : []
  }

  document(path) {
    return document(this.need(path), path)
  }
}

export function document(bytes, path) {
  const text = new TextDecoder()
  const tail = /^,"crc32c":"([0-9a-f]{8})"\}\n$/.exec(text.decode(bytes.subarray(-22)))
  believe(tail && crc32c(bytes.subarray(0, -22)) === parseInt(tail[1], 16), path, 'its checksum does not match')
  return json(bytes, path)
}

export function json(bytes, path) {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw new Damage(path, error.message)
  }
}

/** The checksum of a chunk (section 8.1); null if the one that it ends with is wrong. */
export function chunkCrc(array, stored) {
  if (array.codecs.at(-1).name !== 'crc32c') return crc32c(stored)
  const crc = crc32c(stored.subarray(0, -4))
  const own = Buffer.from(stored.subarray(-4))
  return own.length === 4 && own.readUInt32LE() === crc ? crc : null
}

/** The sound frame at an offset, or null (section 9.4, step 1). */
function frameAt(bytes, offset, spec) {
  if (offset + 68 > bytes.length) return null
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const u64 = place => Number(view.getBigUint64(offset + place, true))
  const u32 = place => view.getUint32(offset + place, true)
  const hex = Buffer.from(bytes.subarray(offset + 16, offset + 32)).toString('hex')
  const magic = new TextDecoder().decode(bytes.subarray(offset, offset + 8))
  const size = u64(8)
  if (magic !== 'ZARROWF1' || hex !== spec.uuid || size < 68 || offset + size > bytes.length) return null
  if (crc32c(bytes.subarray(offset, offset + size - 4)) !== u32(size - 4)) return null
  const frame = { first: u64(32), durable: u64(40), rows: u32(48), size, arrays: [], ok: size % 8 === 0 }
  frame.ok &&= u32(52) === spec.arrays.length
  let place = 64
  for (let number = 0; frame.ok && number < spec.arrays.length; number++) {
    const fits = place + 16 <= size - 4
    const entry = fits && { crc: u32(place), tailCrc: u32(place + 4), tail: u32(place + 8), chunks: [] }
    frame.ok = fits && place + 16 + 16 * u32(place + 12) <= size - 4
    if (!frame.ok) break
    const chunks = u32(place + 12)
    place += 16
    for (let chunk = 0; chunk < chunks; chunk++, place += 16) {
      entry.chunks.push({ size: u64(place), crc: u32(place + 8) })
    }
    frame.arrays.push(entry)
  }
  frame.ok &&= place + u64(56) <= size - 4
  frame.payload = bytes.subarray(offset + place, offset + place + u64(56))
  return frame
}

/** The sound frames of a journal, and the most rows that any frame calls durable (section 9.4). */
export function readFrames(bytes, spec, path) {
  const frames = []
  let offset = 0
  let rows = 0
  let durable = 0
  for (let frame; (frame = frameAt(bytes, offset, spec)); offset += frame.size) {
    const follows = frame.first === rows && rows + frame.rows <= spec.segment_rows && frame.durable <= rows
    believe(frame.ok && follows, path, `a sound frame that does not follow ${rows} rows`)
    frames.push(frame)
    rows += frame.rows
    durable = Math.max(durable, frame.durable)
  }
  for (offset += 8; offset < bytes.length; offset += 8) {
    durable = Math.max(durable, frameAt(bytes, offset, spec)?.durable ?? 0)
  }
  return { frames, durable }
}
