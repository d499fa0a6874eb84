"""Where are the values of a Dataset computed?

On the workers of a dask client, if there is one: the client that an analysis was given, or else the one that
dask itself would use. Arrays of dask that lie on the workers are put together there. Of others a worker is
sent how to make them, once, and makes them within its own task: values that are made by tasks of their own
would share keys with those of other analyses, under graphs that were optimized differently, of which dask's
scheduler says that it may fail or hang.

Place: tier 5, in `zarrow.analysis`; below `dataset`. Loads dask for who has arrays of dask.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Client", "active_client", "compute", "load", "sender"]


class Client(Protocol):
    """What is used of a ``distributed.Client``."""

    def submit(self, function: Callable[..., Any], *arguments: Any, pure: bool) -> Any:
        """Run a function on a worker, and return its future."""

    def compute(self, collections: Any) -> Any:
        """Compute a dask collection on the workers, and return its future."""

    def cancel(self, futures: Sequence[Any]) -> Any:
        """Forget about futures."""

    def scatter(self, data: list[Any], *, hash: bool) -> Any:
        """Send things to workers, and return their futures."""

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        """Tell which workers there are."""


def active_client() -> Client | None:
    """Return the client that dask would use, if there is one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    import dask

    if dask.config.get("scheduler", None) not in (None, "dask.distributed", "distributed"):
        return None
    try:
        found: Client = distributed.default_client()
    except ValueError:
        return None
    return found


def compute(dataset: xr.Dataset, client: Client | None) -> xr.Dataset:
    """Return a Dataset in memory here."""
    if client is None or not dataset.chunks:
        return dataset.load()
    found: xr.Dataset = client.submit(load, sender(dataset, client)(), pure=False).result()
    return found


def load(dataset: xr.Dataset) -> xr.Dataset:
    """Return a Dataset in memory, on a worker that was sent it by a `sender`."""
    return dataset.load(scheduler="synchronous")


def sender(dataset: xr.Dataset, client: Client) -> Callable[[], Any]:
    """Return what gives the future of a Dataset for `load`."""
    from dask.base import optimize
    from distributed import futures_of

    if futures_of(dataset):  # type: ignore[no-untyped-call]
        return functools.partial(client.compute, dataset)
    (small,) = optimize(dataset)  # type: ignore[no-untyped-call]
    return functools.cache(lambda: client.scatter([small], hash=False)[0])
