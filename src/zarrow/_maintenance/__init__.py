"""Maintenance — verifying, repairing and rewriting stores that exist.

What `zarrow.verify`, `zarrow.repair`, `zarrow.pack` and `zarrow.build_index` do. May import the doors
`writer`, `store` and `derived`, and every room below them.

=======================  ==============================================================================
`findings`               what an audit found, by severity
`audit`                  the audit of a whole store, by way of the audits below
`audit_names`            files that do not belong in a store
`audit_documents`        manifest, claims, records and Zarr's metadata, against one another
`audit_open_segments`    the journal and row bytes of an open segment
`audit_sources`          whether every accepted row counts exactly once
`audit_statistics`       whether ``statistics.arrow`` says what the records say
`audit_segment`          the part and shards of a committed segment, against its record
`audit_index`            the key index, against the table
`verify`                 `zarrow.verify`: whether a store is what was written
`salvage`                the rows of what is damaged that can still be read and checked
`repair_plan`            from findings to a plan
`repair_on_disk`         the plan carried out
`repair_in_bucket`       the same, of a store in a bucket
`repair`                 `zarrow.repair`: a damaged store made sound again
`external_sort`          the order of rows by some columns, in bounded memory
`array_forms`            in which dtypes arrays are read, and written by `pack`
`pack`                   rewriting a store: codecs, segments, dtypes, order of rows
`copy`                   the committed rows of a store, also of a live one, as another store
`unreferenced`           objects in a bucket that are no part of a store
`upload`                 a complete store, put into a bucket
`build_index`            writing the key index into a store
=======================  ==============================================================================
"""
