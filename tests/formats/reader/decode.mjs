// Values: chunks by zarrita, parts by hyparquet, payloads by apache-arrow (FORMAT.md, sections 5 to 7 and 9.2).

import * as arrow from 'apache-arrow'
import { parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import * as zarr from 'zarrita'

const encode = value => new TextEncoder().encode(JSON.stringify(value))

/** An array's `zarr.json` (section 6). */
export function arrayJson(spec, array, rows) {
  const { name, row_shape: shape, dtype } = array
  const axes = shape.length === 1 ? [`${name}_dim`] : shape.map((_, axis) => `${name}_dim${axis}`)
  const bytes = { name: 'bytes', configuration: { endian: 'little' } }
  const configuration = {
    chunk_shape: [array.chunk_rows, ...shape],
    codecs: array.codecs,
    index_codecs: [bytes, { name: 'crc32c' }],
    index_location: 'end',
  }
  return {
    zarr_format: 3,
    node_type: 'array',
    shape: [rows, ...shape],
    data_type: dtype,
    chunk_grid: { name: 'regular', configuration: { chunk_shape: [spec.segment_rows, ...shape] } },
    chunk_key_encoding: { name: 'default', configuration: { separator: '/' } },
    fill_value: dtype === 'bool' ? false : 0,
    codecs: [{ name: 'sharding_indexed', configuration }],
    attributes: {},
    dimension_names: ['row', ...axes],
    storage_transformers: [],
  }
}

/** The group's `zarr.json` (section 6). */
export function groupJson(spec, rows) {
  const metadata = Object.fromEntries(spec.arrays.map(array => [array.name, arrayJson(spec, array, rows)]))
  return {
    zarr_format: 3,
    node_type: 'group',
    attributes: { zarrow: { format: 1, uuid: spec.uuid } },
    consolidated_metadata: { kind: 'inline', must_understand: false, metadata },
  }
}

async function read(metadata, chunks) {
  if (!metadata.shape[0]) return []
  const store = {
    get: async key => (key === '/zarr.json' ? encode(metadata) : chunks.get(key)),
    getRange: async (key, { offset, length, suffixLength }) =>
      suffixLength ? chunks.get(key)?.slice(-suffixLength) : chunks.get(key)?.slice(offset, offset + length),
  }
  const { data } = await zarr.get(await zarr.open(store, { kind: 'array' }))
  return nested(Array.from(data), metadata.shape.slice(1))
}

/** A list of rows, each of which is nested like its shape. */
function nested(flat, shape) {
  const size = shape.reduce((one, other) => one * other, 1)
  const rows = Array.from({ length: flat.length / size }, (_, row) => flat.slice(row * size, (row + 1) * size))
  return shape.length === 1 ? rows : rows.map(row => nested(row, shape.slice(1)))
}

const key = (number, array) => `/c/${number}${'/0'.repeat(array.row_shape.length)}`

/** The rows of a shard. */
export function shardRows(spec, array, bytes, rows) {
  return read(arrayJson(spec, array, rows), new Map([[key(0, array), bytes]]))
}

/** The rows of stored chunks, which are not in a shard yet, and of the row bytes after them. */
export async function chunkRows(array, chunks, tail) {
  const grid = rows => ({ name: 'regular', configuration: { chunk_shape: [rows, ...array.row_shape] } })
  const metadata = (rows, codecs, each) => ({
    ...arrayJson({}, array, rows),
    chunk_grid: grid(each),
    codecs,
  })
  const stored = new Map(chunks.map((bytes, number) => [key(number, array), bytes]))
  const whole = await read(metadata(chunks.length * array.chunk_rows, array.codecs, array.chunk_rows), stored)
  const rows = tail.length / rowSize(array)
  if (!rows) return whole
  const plain = [{ name: 'bytes', configuration: { endian: 'little' } }]
  return whole.concat(await read(metadata(rows, plain, rows), new Map([[key(0, array), tail]])))
}

export function rowSize(array) {
  const size = array.dtype === 'bool' ? 1 : Number(/\d+$/.exec(array.dtype)[0]) / 8
  return array.row_shape.reduce((one, other) => one * other, size)
}

/** The rows of a part, as objects. */
export async function partRows(bytes) {
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  return (await parquetReadObjects({ file, compressors })).map(row => plainValues(row))
}

/** The rows of the payloads of frames, as objects. */
export function payloadRows(spec, payloads) {
  const { schema } = arrow.tableFromIPC(withEnd([Buffer.from(spec.arrow_schema, 'base64')]))
  const fields = schema.fields.map(one =>
    arrow.DataType.isDictionary(one.type) ? new arrow.Field(one.name, one.type.dictionary, one.nullable) : one)
  const index = new arrow.Field('sample_index', new arrow.Int64(), true)
  const stream = arrow.tableToIPC(new arrow.Table(new arrow.Schema([...fields, index])))
  const size = 8 + new DataView(stream.buffer, stream.byteOffset).getUint32(4, true)
  const table = arrow.tableFromIPC(withEnd([stream.subarray(0, size), ...payloads]))
  return table.toArray().map(row => plainValues(row.toJSON()))
}

const withEnd = messages => Buffer.concat([...messages, Uint8Array.of(255, 255, 255, 255, 0, 0, 0, 0)])

/** Values as JSON has them. */
function plainValues(row) {
  const plain = value => (typeof value === 'bigint' ? Number(value) : value ?? null)
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, plain(value)]))
}
