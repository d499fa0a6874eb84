// Values: chunks by zarrita, parts by hyparquet, payloads by apache-arrow (FORMAT.md, sections 5 to 7 and 9.2).

import * as arrow from 'apache-arrow'
import { parquetMetadata, parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import * as zarr from 'zarrita'

const encode = value => new TextEncoder().encode(JSON.stringify(value))

/** Whether an array has the extents of a ragged one (section 18). */
export const isExtents = (spec, array) => raggedOf(spec, array) !== undefined

const raggedOf = (spec, { name }) => spec.arrays?.find(one => one.segment_vectors && `${one.name}_extent` === name)

/** An array's `zarr.json` (section 6); `vectors` are those of each segment, of a ragged array (section 18). */
export function arrayJson(spec, array, rows, vectors = []) {
  const { name, row_shape: shape, dtype, segment_vectors: isRagged } = array
  const axes = shape.length === 1 ? [`${name}_dim`] : shape.map((_, axis) => `${name}_dim${axis}`)
  const bytes = { name: 'bytes', configuration: { endian: 'little' } }
  const one = isRagged ? [1] : []
  const configuration = {
    chunk_shape: [...one, array.chunk_rows, ...shape],
    codecs: array.codecs,
    index_codecs: [bytes, { name: 'crc32c' }],
    index_location: 'end',
  }
  let attributes = {}
  if (array.scale) attributes = declared({ scale: array.scale })
  if (isRagged) attributes = declared({ extents: `${name}_extent`, segment_rows: spec.segment_rows })
  const extentsOf = raggedOf(spec, array)
  if (extentsOf) {
    attributes = declared({ extents_of: extentsOf.name, columns: ['offset', 'count'] })
    attributes.long_name = `first vector and number of vectors of each row of ${extentsOf.name}`
    attributes.units = '1'
  }
  return {
    zarr_format: 3,
    node_type: 'array',
    shape: isRagged ? [vectors.length, Math.max(0, ...vectors), ...shape] : [rows, ...shape],
    data_type: dtype,
    chunk_grid: {
      name: 'regular',
      configuration: { chunk_shape: [...one, isRagged ?? spec.segment_rows, ...shape] },
    },
    chunk_key_encoding: { name: 'default', configuration: { separator: '/' } },
    fill_value: dtype === 'bool' ? false : 0,
    codecs: [{ name: 'sharding_indexed', configuration }],
    attributes,
    dimension_names: [...(isRagged ? [`${name}_segment`, `${name}_vector`] : ['row']), ...axes],
    storage_transformers: [],
  }
}

/** Attributes that only this format gives a meaning, and the convention that says so (section 6). */
function declared(zarrow) {
  const convention = {
    uuid: '63880f20-fdd9-4409-84ab-c9245b48b2da',
    name: 'zarrow',
    description: 'Where the rows of a store come from, and how to read its quantized and ragged arrays',
  }
  return { zarr_conventions: [convention], zarrow }
}

/** The group's `zarr.json` (section 6). */
export function groupJson(spec, rows, vectors = {}) {
  const of = array => [array.name, arrayJson(spec, array, rows, vectors[array.name])]
  const metadata = Object.fromEntries(spec.arrays.map(of))
  const own = { format: 1, uuid: spec.uuid }
  if (Buffer.byteLength(JSON.stringify(spec.provenance)) <= 16384) own.provenance = spec.provenance
  return {
    zarr_format: 3,
    node_type: 'group',
    attributes: { Conventions: 'CF-1.12', ...declared(own) },
    consolidated_metadata: { kind: 'inline', must_understand: false, metadata },
  }
}

async function read(metadata, chunks, shape) {
  if (metadata.shape.includes(0)) return []
  const store = {
    get: async key => (key === '/zarr.json' ? encode(metadata) : chunks.get(key)),
    getRange: async (key, { offset, length, suffixLength }) =>
      suffixLength ? chunks.get(key)?.slice(-suffixLength) : chunks.get(key)?.slice(offset, offset + length),
  }
  const { data } = await zarr.get(await zarr.open(store, { kind: 'array' }))
  return nested(Array.from(data, value => (typeof value === 'bigint' ? asJson({}, value) : value)), shape)
}

/** The values of a quantized row (section 5.3), as nested as its integers. */
export function scaled(integers, scale) {
  return Array.isArray(integers) ? integers.map(one => scaled(one, scale)) : Math.fround(integers * scale)
}

/** A list of rows, each of which is nested like its shape. */
function nested(flat, shape) {
  const size = shape.reduce((one, other) => one * other, 1)
  const rows = Array.from({ length: flat.length / size }, (_, row) => flat.slice(row * size, (row + 1) * size))
  return shape.length === 1 ? rows : rows.map(row => nested(row, shape.slice(1)))
}

const key = (number, axes) => `/c/${number}${'/0'.repeat(axes)}`

/** The path of a shard in the group (sections 6 and 18). */
export const shardKey = (number, array) => key(number, array.row_shape.length + (array.segment_vectors ? 1 : 0))

/** The rows of a shard, or the vectors of a ragged array's. */
export function shardRows(spec, array, bytes, count) {
  const metadata = arrayJson(spec, array, count, [count])
  return read(metadata, new Map([[shardKey(0, array), bytes]]), array.row_shape)
}

/** The rows, or vectors, of stored chunks, which are not in a shard yet, and of the row bytes after them. */
export async function chunkRows(array, chunks, tail) {
  const { row_shape: shape, chunk_rows: each, codecs } = array
  const flat = (rows, codecs, each) => ({
    ...arrayJson({}, { ...array, segment_vectors: undefined }, rows),
    chunk_grid: { name: 'regular', configuration: { chunk_shape: [each, ...shape] } },
    codecs,
  })
  const stored = new Map(chunks.map((bytes, number) => [key(number, shape.length), bytes]))
  const whole = await read(flat(chunks.length * each, codecs, each), stored, shape)
  const rows = tail.length / rowSize(array)
  if (!rows) return whole
  const plain = [{ name: 'bytes', configuration: { endian: 'little' } }]
  return whole.concat(await read(flat(rows, plain, rows), new Map([[key(0, shape.length), tail]]), shape))
}

export function rowSize(array) {
  const size = array.dtype === 'bool' ? 1 : Number(/\d+$/.exec(array.dtype)[0]) / 8
  return array.row_shape.reduce((one, other) => one * other, size)
}

const { DataType } = arrow

/** The schema of the table (section 5), without dictionaries. */
function tableFields(spec) {
  const { schema } = arrow.tableFromIPC(withEnd([Buffer.from(spec.arrow_schema, 'base64')]))
  const plain = one => (DataType.isDictionary(one.type) ? one.clone({ type: one.type.dictionary }) : one)
  return [...schema.fields.map(plain), new arrow.Field('sample_index', new arrow.Int64(), true)]
}

/** The rows of a part, as objects of JSON values. The types are those of `arrow_schema` (section 5.1). */
export async function partRows(spec, bytes) {
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  const metadata = parquetMetadata(file)
  const kept = ['UTF8', 'LIST', 'MAP', 'MAP_KEY_VALUE', 'STRING', 'FLOAT16', 'INTEGER']
  for (const element of metadata.schema) {
    const isKept = type => kept.includes(type) || /^U?INT_/.test(type)
    if (!isKept(element.converted_type)) delete element.converted_type
    if (!isKept(element.logical_type?.type)) delete element.logical_type
  }
  const fields = [...tableFields(spec), new arrow.Field('row', new arrow.Int64(), false)]
  const rows = await parquetReadObjects({ file, metadata, compressors, utf8: false })
  return rows.map(row => Object.fromEntries(fields.map(({ name, type }) => [name, asJson(type, row[name], true)])))
}

/** The rows of the payloads of frames, as objects of JSON values (section 9.2). */
export function payloadRows(spec, payloads) {
  const fields = tableFields(spec)
  const stored = fields.map(storedField)
  const stream = arrow.tableToIPC(new arrow.Table(new arrow.Schema(stored)))
  const size = 8 + new DataView(stream.buffer, stream.byteOffset).getUint32(4, true)
  const table = arrow.tableFromIPC(withEnd([stream.subarray(0, size), ...payloads]))
  return Array.from({ length: table.numRows }, (_, row) =>
    Object.fromEntries(fields.map(({ name, type }, place) => [name, asJson(type, table.getChildAt(place).get(row))])))
}

const withEnd = messages => Buffer.concat([...messages, Uint8Array.of(255, 255, 255, 255, 0, 0, 0, 0)])

/** The field with a type of the same buffers whose values this library gives back as integers and bytes. */
function storedField(field) {
  const { type } = field
  if (DataType.isDate(type) || DataType.isTime(type) || DataType.isTimestamp(type) || DataType.isDuration(type)) {
    const is32 = DataType.isDate(type) || type.bitWidth === 32
    return field.clone({ type: is32 ? new arrow.Int32() : new arrow.Int64() })
  }
  if (DataType.isDecimal(type)) return field.clone({ type: new arrow.FixedSizeBinary(type.bitWidth / 8) })
  if (!type.children?.length) return field
  const children = type.children.map(storedField)
  const copy = Object.assign(Object.create(Object.getPrototypeOf(type)), type, { children })
  return field.clone({ type: copy })
}

/**
 * A value as JSON has it: dates, times, timestamps and durations as their integers, decimals as their unscaled
 * ones; integers that a double cannot hold as text; bytes in hexadecimal; maps as lists of pairs.
 */
function asJson(type, value, bigEndian = false) {
  if (value === null || value === undefined) return null
  const inner = (child, item) => asJson(child.type, item, bigEndian)
  if (DataType.isDecimal(type)) return integer(bigEndian ? Buffer.from(value) : Buffer.from(value).reverse())
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (DataType.isMap(type)) {
    const [key, item] = type.children[0].type.children
    const entries = value instanceof Map || !bigEndian ? [...value] : Object.entries(value)
    return entries.map(([one, other]) => [inner(key, one), inner(item, other)])
  }
  if (DataType.isStruct(type)) {
    return Object.fromEntries(type.children.map(child => [child.name, inner(child, value[child.name])]))
  }
  if (type.children?.length) return Array.from(value, item => inner(type.children[0], item))
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value)
  return value
}

function integer(bytes) {
  const unsigned = BigInt(`0x${bytes.toString('hex')}`)
  return String(BigInt.asIntN(8 * bytes.length, unsigned))
}
