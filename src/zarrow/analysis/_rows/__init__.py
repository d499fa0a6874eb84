"""Rows — from a store or an xarray Dataset to blocks of vectors and columns in memory.

Imports none of the other rooms of `zarrow.analysis`. In the order in which rows pass:

======================  ===============================================================================
`arguments`             checks of arguments that several questions share
`roles`                 which columns hold the probability, the label, the subject and the task
`workers`               where the values of a Dataset are computed: here or on dask's workers
`dataset_columns`       the Arrow column that a Dataset's variable makes
`dataset`               a Dataset read as a store is
`blocks`                rows of an array, a few MiB at a time, with columns
`folds`                 blocks folded into one state, here or on a cluster, once or many times
`groups`                the group of each row
`match`                 which row of one store is which row of another
======================  ===============================================================================
"""
