"""Predict runs — what stands behind `zarrow.lightning`: from a model's prediction to a writer's batch.

May import torch and lightning, the doors `writer` and `store`, and every room below them. In the order in
which a run uses them:

======================  ===============================================================================
`identity`              whether the store was started by the same run
`ranks`                 several ranks open one store together, and complete it together
`stored_rows`           which rows of the dataset a store holds already
`row_set`               a set of rows, at a bit per row
`choose_batches`        the loaders that yield only what is missing, and to each rank its share
`remaining_batches`     which batches those are
`missing_rows`          the sampler for users who make that loader themselves
`loaders`               what Lightning knows of the rows of a batch
`host_copies`           tensors into memory that the writer may keep
`rules`                 which entries of a prediction are columns, and which arrays
`identifiers`           identifiers of the rows of a batch
`preparing`             the thread that makes batches of the store out of predictions
`run`                   one run: its batches, and whether all rows arrived
`everyquery_tasks`      EveryQuery's tasks: their identifiers, and the preset for its predictions
`repeated`              dropping rows of the dataset that are stored twice
======================  ===============================================================================
"""
