// The statistics of all segments (FORMAT.md, section 8.4), checked against the records.

import { tableFromIPC } from 'apache-arrow'
import { believe, crc32c, document } from './bytes.mjs'

const PATH = 'statistics.arrow'

/** Check the statistics of a complete store, if there are any of these rows. */
export function checkStatistics(files, spec, manifest, recordPath) {
  const bytes = files.read(PATH)
  if (!bytes) return
  const stop = bytes.length - 16
  believe(stop >= 0 && new TextDecoder().decode(bytes.subarray(-8)) === 'ZARROWS1', PATH, 'its end')
  const start = stop - Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(stop, true))
  believe(start >= 0 && start < stop, PATH, 'its size')
  const trailer = document(bytes.subarray(start, stop), PATH)
  believe(trailer.index_bytes === start && trailer.index_crc32c === crc32c(bytes.subarray(0, start)), PATH, 'its checksum')
  const sums = Uint32Array.from(manifest.records_crc32c)
  const { uuid, rows, records_crc32c: records } = trailer.of
  believe(uuid === spec.uuid && rows === manifest.rows && records === crc32c(new Uint8Array(sums.buffer)), PATH, 'of other rows')
  const table = tableFromIPC(bytes.subarray(0, start))
  believe(table.numRows === manifest.part_bytes.length, PATH, 'its rows')
  for (let number = 0; number < table.numRows; number++) {
    const { footer_crc32c: footer, columns } = table.get(number)
    const { part } = files.document(recordPath(number))
    believe(footer === part.footer_crc32c, PATH, `the footer of segment ${number}`)
    for (const [name, stated] of Object.entries(part.statistics)) {
      const { nulls, nans } = columns[name]
      believe(Number(nulls) === stated.nulls && Number(nans) === stated.nans, PATH, `column ${name}`)
    }
  }
}
