// The key index (FORMAT.md, section 13): its entries, each checked against its checksum and its hash.

import { believe, crc32c, document } from './bytes.mjs'

const PATH = 'index/keys.index'
const MASK = (1n << 64n) - 1n

function step(before, word) {
  let mixed = ((before ^ word) + 0x9e3779b97f4a7c15n) & MASK
  mixed = ((mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK
  mixed = ((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn) & MASK
  return mixed ^ (mixed >> 31n)
}

function word(bytes) {
  let hash = step(0n, BigInt(bytes.length))
  for (let start = 0; start < bytes.length; start += 8) {
    const eight = Buffer.alloc(8)
    eight.set(bytes.subarray(start, start + 8))
    hash = step(hash, eight.readBigUInt64LE())
  }
  return hash
}

const isInHeap = type => /string|binary|decimal/.test(type)

/** The entries as [hash, row, ...key]; undefined if there is no index of these rows. Keys: integers, text. */
export function readIndex(files, spec, manifest) {
  const bytes = files.read(PATH)
  if (!bytes) return undefined
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const magic = new TextDecoder().decode(bytes.subarray(-8))
  if (magic !== 'ZARROWK1') return undefined
  const stop = bytes.length - 16
  const start = stop - Number(view.getBigUint64(stop, true))
  const footer = document(bytes.subarray(start, stop), PATH)
  const sums = Uint32Array.from(manifest.records_crc32c)
  const mine = footer.uuid === spec.uuid && footer.rows === manifest.rows
    && footer.records_crc32c === crc32c(new Uint8Array(sums.buffer))
    && footer.keys.every(([name], place) => name === spec.keys[place])
  if (!mine) return undefined
  const { entries_bytes: entries, heap_bytes: heap, rows } = footer
  believe(crc32c(bytes.subarray(entries + heap, start)) === footer.tables_crc32c, PATH, 'its tables')
  const blocks = Math.ceil(rows / 256)
  const fences = entries + heap + ((8 - ((entries + heap) % 8)) % 8)
  const width = entries / rows
  const check = (from, size, end, table) => {
    for (let block = 0; from + block * size < end; block++) {
      const piece = bytes.subarray(from + block * size, Math.min(from + (block + 1) * size, end))
      believe(crc32c(piece) === view.getUint32(table + 4 * block, true), PATH, `block ${block}`)
    }
  }
  check(0, 256 * width, entries, fences + 8 * blocks)
  check(entries, 4096, entries + heap, fences + 12 * blocks)
  return Array.from({ length: rows }, (_, number) => {
    const words = Array.from({ length: width / 8 }, (_, place) => view.getBigUint64(number * width + 8 * place, true))
    if (number % 256 === 0) {
      believe(view.getBigUint64(fences + number / 32, true) === words[0], PATH, 'a fence')
    }
    let place = 2
    let hash = 0n
    const key = footer.keys.map(([, type]) => {
      if (!isInHeap(type)) {
        hash = step(hash, words[place])
        return Number(BigInt.asIntN(64, words[place++]))
      }
      const [offset, size] = [Number(words[place++]), Number(words[place++])]
      const value = bytes.subarray(entries + offset, entries + offset + size)
      hash = step(hash, word(value))
      return new TextDecoder().decode(value)
    })
    believe(hash === words[0], PATH, `the hash of entry ${number}`)
    return [hash.toString(16).padStart(16, '0'), Number(words[1]), ...key]
  })
}
