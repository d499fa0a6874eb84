"""Writing — from a batch that a caller hands over to a committed segment.

May import `_read` (a writer reads; a reader never writes), `_storage`, `_format` and `errors`. In the
order in
which a batch passes them:

======================  ===============================================================================
`directory`             may a writer work at this path: modes, the store's lock, replacing a store
`declaration`           what the caller declared, checked against the store
`first_batch`           what the store is, if only its first batch tells
`given`                 what callers hand over, in one form
`batches`               whether it is a batch of this store, checked before its first byte is written
`worker`                a thread with a queue that is bounded in bytes
`appender`              the two threads that append batches and seal segments
`open_segment`          rows on their way to a shard, journalled: *accepted*
`shards`                the shard files of an open segment, written in place
`seal`                  a full open segment becomes a committed one
`parts`                 the Parquet part of a segment
`publishing`            claims, commit records, Zarr shapes, manifest: *visible*
`reopening`             a committed segment becomes an open one again
`recovery`              what dead writers left is finished; finalizing
======================  ===============================================================================
"""
