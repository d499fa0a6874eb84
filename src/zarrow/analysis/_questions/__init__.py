"""Questions — what can be asked of a store: one file per function that `zarrow.analysis` offers.

May import `_numbers` and `_rows`. A question reads its arguments, streams rows through a state of `_numbers`
or of its own, and returns a frozen dataclass:

======================  ===============================================================================
`describe`              how vectors and columns are distributed
`column_facts`          the columns' part of it, computed by DuckDB
`pca`                   the directions of most variance
`nearest`               the rows nearest to some queries, exactly
`late_interaction`      the same of a ragged array, for queries of several vectors
`pool`                  one vector per row from any number of them
`neighbour_index`       an index for approximate search, and the searches
`texts`                 a question in words as a vector
`map`                   a place in two dimensions for each row
`evaluate`              how good stored probabilities are
`compose`               probabilities of several tasks joined into one
`probe`                 what a linear model can read off the vectors
`compare`               how two models' vectors of the same rows differ
`compare_all`           those of several models, pair by pair
`quantization`          what storing vectors in fewer bytes would change
`answer`                the result of each of them as JSON values
======================  ===============================================================================
"""
