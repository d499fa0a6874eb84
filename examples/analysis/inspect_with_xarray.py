"""Inspection with xarray — a store as one lazy dataset of vectors, columns and maps.

pip install 'zarrow[analysis,xarray]'
python3 examples/analysis/inspect_with_xarray.py [STORE]
"""

# %% A store: your own, or a small one with simulated predictions
import sys

import xarray as xr

import zarrow
from zarrow import analysis
from zarrow.testing import example_predictions

path = sys.argv[1] if len(sys.argv) > 1 else example_predictions("predictions.zarrow").path

# %% What is in it? Only names, shapes and types are read.
dataset = xr.open_dataset(path, chunks={})
print(dataset)

# %% Columns and vectors share the row dimension, so one selects the other. dask reads only what is needed.
sure = (dataset.occurs_prob > 0.9).values
print(f"\n{sure.sum():,} rows with occurs_prob above 0.9; their mean vector:")
print(dataset.query_embed.isel(row=sure).mean("row").round(2).values)

# %% Group by a column: the mean probability and the mean vector length of each query
lengths = (dataset.query_embed.astype("float64") ** 2).sum("query_embed_dim") ** 0.5
by_query = xr.Dataset({"occurs_prob": dataset.occurs_prob, "length": lengths}).load().groupby("query").mean()
print(by_query.to_dataframe().round(3))

# %% A map is computed once, stored with the rows, and is a variable from then on.
with zarrow.open(path) as store:
    made = analysis.map_rows(store)
print(f"\nstored the map {made.name}: {sum(made.explained_variance_ratio):.0%} of the variance")
dataset = xr.open_dataset(path, chunks={})
print(dataset[made.name])

# %% Any Zarr reader can open the vectors and the map without zarrow.
print(xr.open_zarr(f"{path}/derived/{made.name}/embeddings.zarr"))
