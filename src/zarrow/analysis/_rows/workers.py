"""Workers — where the values of a Dataset are computed: here, or on the workers of a dask client.

The client is the one that an analysis was given, or else the one that dask itself would use. Dask arrays that
already lie on the workers are put together there. For others, a worker is sent the graph, once, and computes
the values within its own task: values computed by tasks of their own would share keys with those of other
analyses, under graphs that were optimized differently, and of that dask's scheduler says that it may fail or
hang.

dask is imported only if the caller has dask arrays.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Client", "active_client", "compute", "load", "sender"]


Client: TypeAlias = Any
"""A ``distributed.Client``."""


def active_client() -> Client | None:
    """Return the client that dask would use by default, if there is one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    import dask

    if dask.config.get("scheduler", None) not in (None, "dask.distributed", "distributed"):
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def compute(dataset: xr.Dataset, client: Client | None) -> xr.Dataset:
    """Return a Dataset, loaded into memory here."""
    if client is None or not dataset.chunks:
        return dataset.load()
    found: xr.Dataset = client.submit(load, sender(dataset, client)(), pure=False).result()
    return found


def load(dataset: xr.Dataset) -> xr.Dataset:
    """Return a Dataset, loaded into memory on the worker that a `sender` sent it to."""
    return dataset.load(scheduler="synchronous")


def sender(dataset: xr.Dataset, client: Client) -> Callable[[], Any]:
    """Return a function that sends a Dataset to a worker and returns its future, for `load`."""
    from dask.base import optimize
    from distributed import futures_of

    if futures_of(dataset):  # type: ignore[no-untyped-call]
        return functools.partial(client.compute, dataset)
    (small,) = optimize(dataset)  # type: ignore[no-untyped-call]
    return functools.cache(lambda: client.scatter([small], hash=False)[0])
