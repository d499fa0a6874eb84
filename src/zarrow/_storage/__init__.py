"""Storage — where bytes are kept: the local disk, and in time object stores.

May import `_format` and `errors`, and knows neither segments nor rows.

======================  ===============================================================================
`reading`               opening and reading files of a store that may be damaged or hostile
`files`                 everything that changes a disk: write, sync, link, rename, remove
`lock`                  locks of the operating system on files, which end with their process
`threads`               one pool of threads per process, for codecs and copies
`cache`                 the pieces that were used last, up to a number of bytes
======================  ===============================================================================

Readers import `reading` but never `files` or `lock`: an import contract keeps them from changing a disk.
"""
