"""Writing — from a batch that a caller appends to a committed segment.

May import `_read` (a writer reads; a reader never writes), `_storage`, `_format` and `errors`. In the order
in which a batch passes them:

======================  ===============================================================================
`directory`             claiming a path for a writer: modes, the store's lock, replacing a store
`declaration`           what the caller declared, completed by the first batch or checked against a store
`batches`               the check of a batch, before its first byte is written
`worker`                a thread with a queue that is bounded in bytes
`appender`              the two threads that append batches and seal segments
`open_segment`          rows on their way to a shard, journalled: *accepted*
`shards`                the shard files of an open segment, written in place
`seal`                  an open segment becomes a committed one
`parts`                 the Parquet part of a segment
`publishing`            claims, commit records, Zarr shapes, manifest: *visible*
`reopening`             a committed segment becomes an open one again
`quarantine`            where damaged files, and what no frame vouches for, are moved
`recovery`              finishing what dead writers left; finalizing
`hold`                  which writers may add rows to a store in a bucket
`bucket`                claims of segment numbers, and commits, in a bucket
`tails`                 open segments of which a bucket has the rows
`spool`                 the directories of this machine in which its open segments are
`spooled`               a store in a bucket: its open segments here, and what is left of them there
======================  ===============================================================================
"""
