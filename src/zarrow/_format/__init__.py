"""The format — the bytes of a store and what they mean, as ``FORMAT.md`` defines them.

Bytes in, bytes out: nothing here opens a file, so this room imports neither ``os`` nor ``mmap``, ``fcntl`` or
``threading``, and of zarrow only `errors`. A change here is a change of the format.

======================  ===============================================================================
`layout`                names and paths in a store, and the limits of every number in it
`array_spec`            what an array of it is, and the sizes that follow
`spec`                  what a store is: ``zarrow.json``
`documents`             JSON with a checksum of its own, for every small file
`records`               commit record, claim, owner and manifest
`bucket`                what writers of a store in a bucket tell each other: holder, claims
`statistics`            minimum, maximum, nulls and NaNs of every column, per segment
`trailers`              of which rows a derived file is, and its checksum
`checksum`              CRC32C, and joining the CRCs of adjacent pieces
`arrow`                 columns between numpy and Arrow, and predicates of types
`types`                 the types that a column may have, and how each of them is kept
`given`                 columns, vectors, tables and indices in every form that callers have
`sequences`             plain Python values, converted without changing any
`vector_lists`          rows of any number of vectors, in every form that callers have
`ragged`                such rows as flat values and a count per row
`quantized`             floats as 8-bit integers and a scale per row
`codecs`                encoding and decoding one inner chunk
`journal`               the bytes of an open segment's journal, read in blocks
`frames`                one batch in the journal of an open segment
`shard_index`           offset and size of every chunk of a shard
`zarr_metadata`         the ``zarr.json`` documents that Zarr readers see
`parts`                 the table of a segment, as Parquet has it and as frames have it
`pages`                 page headers of a Parquet file, checked before anything is decompressed
`key_words`             a key as 64-bit words, and its hash
`key_tables`            fences, checksums and footer of the key index
======================  ===============================================================================
"""
