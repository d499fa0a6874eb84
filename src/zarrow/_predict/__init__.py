"""Predict runs — what stands behind `zarrow.lightning`: from a model's prediction to a writer's batch.

May import torch and lightning, the doors `writer` and `store`, and every room below them. In the order in
which a run uses them:

======================  ===============================================================================
`identity`              whether the store was started by the same run
`settings`              what datasets and data modules were configured with
`ranks`                 several ranks open one store together, and complete it together
`stored_samples`        which samples of the dataset a store holds; dropping those that it holds twice
`sample_set`            a set of samples, at one bit each
`choose_batches`        the loaders yield only the batches that are missing, on each rank its own
`remaining_batches`     the batch samplers that do so
`run`                   one run: its batches, and whether all rows have arrived
`rules`                 which entries of a prediction are columns, and which arrays
`ragged_entries`        predictions with any number of vectors per row, without their padding
`loaders`               which samples the rows of a batch are
`host_copies`           tensors in memory that the writer may keep
`preparing`             the thread that makes batches of the store out of predictions
`identifiers`           identifiers of the rows of a batch
`everyquery_tasks`      EveryQuery's tasks: their identifiers, and the preset for its predictions
======================  ===============================================================================
"""
