"""Reading — from a path to the rows, columns and vectors that `zarrow.Store` hands out.

Never writes, never locks, and sees a snapshot. May import `_storage` (but nothing of it that changes a disk),
`_format` and `errors`. In the order in which a question passes them:

======================  ===============================================================================
`catalog`               committed segments: records, claims, manifest
`open_rows`             accepted rows of open segments
`visible`               which records and open rows count: one rule for readers, recovery and audits
`view`                  both together: which rows a reader sees at one instant
`contents`              what a store hands out of one view, made on first use and kept
`columns`               the table: scans, filters, rows
`filters`               a caller's filter: checked, and which columns it needs
`pruning`               which parts a filter need not read
`segment_statistics`    those of a complete store, read when a filter first asks
`part_files`            one Parquet part: opened, checked, decoded
`indexing`              rows indexed as numpy's arrays are
`arrays`                an array as users hold it
`quantized_array`       integers and a scale per row, read as floats
`extents`               runs of rows of an array that one object reads, and their checksums
`shard_files`           the files of plain shards: found, opened, checked
`mapping`               plain shards, mapped one behind the other as one ndarray
`ragged_rows`           a ragged array as users hold it: rows of any number of vectors
`ranged`                plain shards in a bucket, read by ranges
`chunks`                compressed shards, decoded chunk by chunk
`shard_rows`            rows of one shard file, compared with their checksums
`stacked`               columns and arrays of several stores, one behind the other
`stacked_ragged`        one ragged array of several stores
`join`                  columns and vectors of the same rows
`asked_keys`            the keys that a caller asks for, as columns of the right type
`key_index`             which index answers for the rows of a view
`keys`                  the index itself: built in bounded memory, searched by hash
`derived_arrays`        derived arrays that belong to the rows of a view
`column_values`         the numpy values that stand for an Arrow column (xarray, torch)
`remote_parts`          the parts of a bucket as engines read them
`engines`               the table for Polars and DuckDB
`appearance`            what a store looks like in a session or a notebook
======================  ===============================================================================
"""
