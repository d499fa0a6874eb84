"""Storage — where bytes are kept: the local disk, and buckets.

May import `_format` and `errors`, and knows neither segments nor rows.

======================  ===============================================================================
`reading`               opening and reading files of a store that may be damaged or hostile
`objects`               the same for stores in a bucket, by obstore
`object_cache`          blocks of objects that were read, kept on this machine
`conditional`           objects in a bucket that one writer makes or replaces
`streams`               an object as a file of Python's
`copies`                folders of a bucket, copied into temporary ones
`files`                 everything that changes a disk: write, sync, link, rename, remove
`lock`                  locks on files, which end with the process that holds them
`threads`               the process's one pool of threads, for codecs and copies
`cache`                 the most recently used values, up to a number of bytes
======================  ===============================================================================

Readers import `reading` but never `files` or `lock`: an import contract keeps them from changing a disk.
"""
