"""Map cells — where rows lie on a map: each row as a point, or many rows counted in the cells of a grid.

Cells are counted in one pass, in memory that does not grow with the rows. Each cell has the number of its
rows, their mean colour or most frequent category, and one example, the first row that fell into it.

Colours are columns: booleans and numbers of many values are coloured by value, everything else by category,
the most frequent ones by name and all others together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.layout import ROW
from zarrow.analysis._questions.map import Map, place_rows
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.groups import plain
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray

__all__ = ["Colour", "Shown", "choose_map", "read_colour", "read_map"]

Float = npt.NDArray[np.float64]
Coordinates = StoreArray | npt.NDArray[np.float32]

SCAN_ROWS = 65_536
SAMPLE_ROWS, OUTERMOST = 100_000, 0.0003
CELLS = 200
CATEGORIES = 20
"""As many as there are colours that can be told apart."""
MAX_DISTINCT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Colour:
    """The column that rows are coloured by.

    Parameters
    ----------
    name : str
        The column.
    categories : tuple
        Its most frequent values, sorted; empty if rows are coloured by number.
    others : int
        How many more values the column has.
    """

    name: str
    categories: tuple[Any, ...] = ()
    others: int = 0

    @property
    def labels(self) -> list[str]:
        """The categories' names."""
        last = [f"{self.others:,} other{'s' * (self.others > 1)}"] if self.others else []
        return [_label(value) for value in self.categories] + last

    def codes(self, column: pa.Array | pa.ChunkedArray) -> Float:
        """Return the values to draw: numbers, or indices of categories; NaN where null."""
        values = plain(column)
        if not self.categories:
            numbers = values if pa.types.is_floating(values.type) else values.cast(pa.float64())
            return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)
        found = pc.index_in(values, value_set=pa.array(list(self.categories), values.type))
        codes = np.asarray(found.to_numpy(zero_copy_only=False), np.float64)
        codes[np.isnan(codes)] = len(self.categories) if self.others else np.nan
        return codes


def _label(value: object) -> str:
    return "null" if value is None else str(value)


def read_colour(store: Store, name: str, max_points: int) -> Colour:
    """Return the colour that a column gives; booleans are categories, but shares in the cells of many rows.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such column, or it has too many values that are not numbers.
    """
    if name not in store.schema.names:
        store.table([name])  # raises, and lists the columns
    kind = store.schema.field(name).type
    number = pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind)
    if pa.types.is_nested(kind):
        raise InvalidInputError(
            f"rows cannot be coloured by column {name!r} of type {kind}: choose one of single values"
        )
    if pa.types.is_boolean(kind) and store.num_rows > max_points:
        return Colour(name=name)
    limit = CATEGORIES if number else MAX_DISTINCT
    counts: Counter[Any] = Counter()
    for batch in store.scan([name], batch_size=SCAN_ROWS):
        for one in pc.value_counts(batch[name]).to_pylist():
            counts[one["values"]] += one["counts"]
        if len(counts) > limit:
            break
    if number and len(counts) > limit:
        return Colour(name=name)
    if len(counts) > limit:
        raise InvalidInputError(
            f"column {name!r} has more than {MAX_DISTINCT:,} distinct values of type {kind}: colour by a "
            "number or by a column with fewer values"
        )
    ranked = sorted(counts.items(), key=lambda item: (-item[1], _label(item[0])))
    named = sorted((value for value, _ in ranked[:CATEGORIES]), key=_place)
    return Colour(name=name, categories=tuple(named), others=max(len(ranked) - CATEGORIES, 0))


def _place(value: object) -> tuple[bool, Any]:
    """Return the sort key of a category: 2 before 10, also at the end of a text; null comes last."""
    if isinstance(value, str):
        return False, [
            int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d{1,18})", value))
        ]
    return value is None, "" if value is None else value


# Which map


def choose_map(
    store: Store, name: str | None = None, progress: Progress | None = None
) -> tuple[Map, Coordinates]:
    """Return a map and the coordinates of the rows on it, shape (n, 2).

    `name` is a derived array of two values per row, or an array whose principal components are computed (they
    take 8 bytes per row). By default it is a stored map, preferably UMAP or t-SNE, or else the first array.
    `UnknownNameError` or `InvalidInputError` if there is no such array, or it is not a map.
    """
    if name is None:
        # Not any array of two values per row: only what `map_rows` has stored says so.
        stored = [one for one in store.derived if _is_map(store, one) and _details(store, one)]
        # UMAP or t-SNE took minutes to compute: that is the map to show.
        stored.sort(key=lambda one: _details(store, one).get("method") == "pca")
        arrays = [one for one, array in store.arrays.items() if array.dtype.kind in "fiub"]
        if not stored and not arrays:
            raise InvalidInputError(f"{store.path}: there is no array to make a map of")
        name = stored[0] if stored else arrays[0]
    array = store[name]
    if name in store.derived:
        if array.row_shape != (2,):
            raise InvalidInputError(
                f"a map must have two values per row, array {name!r} has the row shape {array.row_shape}"
            )
        details = _details(store, name)
        return _as_map(store, name, details), array
    made, blocks = place_rows(store, name, progress=progress)
    coordinates = np.empty((store.num_rows, 2), np.float32)
    for rows, xy in blocks:
        coordinates[rows] = xy
    return made, coordinates


def _is_map(store: Store, name: str) -> bool:
    array = store.derived[name]
    return isinstance(array, StoreArray) and array.row_shape == (2,) and array.dtype.kind == "f"


def _details(store: Store, name: str) -> dict[str, Any]:
    found = store.derived[name].provenance.get("map")
    return found if isinstance(found, dict) else {}


def _as_map(store: Store, name: str, details: dict[str, Any]) -> Map:
    shares = details.get("explained_variance_ratio")
    return Map(
        name=name,
        array=str(details.get("array", name)),
        method=details.get("method", "map"),
        rows=store.num_rows,
        sample_rows=int(details.get("sample_rows", store.num_rows)),
        explained_variance_ratio=tuple(shares) if isinstance(shares, list) else (),
        by=tuple(map(str, details.get("by", ()))),
        seed=int(details.get("seed", 0)),
    )


# What is shown: points or cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The rows on a map, each as a point, or counted in the cells of a grid.

    Parameters
    ----------
    rows : int64 array, shape (n,)
        The row at each point, or the first row in each cell; rows with NaN or infinite coordinates have none.
    xy : float64 array, shape (n, 2)
        The coordinates of points, or of the centres of cells.
    counts : int64 array, shape (n,)
        How many rows each of them stands for.
    colours : dict of str to float64 array, shape (n,)
        The values of each colour, as returned by `Colour.codes`; of a cell, the mean or the most frequent
        category. The unnamed categories count as the most frequent only if they are more than half.
    low, high : float64 array, shape (2,)
        The corners of what is shown.
    side : float
        Length of a cell's side; 0 for points.
    outside : int
        Rows beyond the corners, which are counted in the nearest cell.
    """

    rows: npt.NDArray[np.int64]
    xy: Float
    counts: npt.NDArray[np.int64]
    colours: dict[str, Float]
    low: Float
    high: Float
    side: float = 0.0
    outside: int = 0

    def image(self, values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
        """Return values of cells as an image, its lowest line first; `empty` where there is no cell."""
        columns, lines = np.round((self.high - self.low) / self.side).astype(int)
        found = np.full((lines, columns, *values.shape[1:]), empty, values.dtype)
        x, y = ((self.xy - self.low) / self.side).astype(int).T
        found[y, x] = values
        return np.asarray(found)


def read_map(
    store: Store,
    coordinates: Coordinates,
    colours: Sequence[Colour],
    most: int,
    progress: Progress | None = None,
) -> Shown:
    """Return what a map shows: points if there are at most so many rows, else cells.

    There are `CELLS` cells along the longer side, and the rows in them are counted in one pass.
    """
    if store.num_rows <= most:
        xy = np.asarray(coordinates[:], np.float64)
        rows = np.flatnonzero(np.isfinite(xy).all(axis=1))
        table = store.table([colour.name for colour in colours])
        codes = {colour.name: colour.codes(table[colour.name])[rows] for colour in colours}
        xy = xy[rows]
        low, high = (xy.min(axis=0), xy.max(axis=0)) if len(xy) else np.zeros((2, 2))
        return Shown(rows=rows, xy=xy, counts=np.ones(len(rows), np.int64), colours=codes, low=low, high=high)
    low, high = _bounds(coordinates)
    side = float((high - low).max()) / CELLS
    shape = np.maximum(np.ceil((high - low) / side), 1).astype(np.int64)
    low, high = (low + high - shape * side) / 2, (low + high + shape * side) / 2
    cells = int(shape.prod())
    counts, first = np.zeros(cells, np.int64), np.full(cells, store.num_rows)
    sums = {colour.name: np.zeros((len(colour.labels) or 2, cells)) for colour in colours}
    start = outside = 0
    names = list(dict.fromkeys([ROW, *sums]))
    for batch in store.scan(names, batch_size=SCAN_ROWS):
        stop = start + batch.num_rows
        place = (np.asarray(coordinates[start:stop], np.float64) - low) / side
        known = np.isfinite(place).all(axis=1)
        place = place[known]
        outside += int(((place < 0) | (place >= shape)).any(axis=1).sum())
        x, y = np.clip(place, 0, shape - 1).astype(np.int64).T
        cell = y * shape[0] + x
        counts += np.bincount(cell, minlength=cells)
        np.minimum.at(first, cell, start + np.flatnonzero(known))
        for colour in colours:
            values = colour.codes(batch[colour.name])[known]
            given = ~np.isnan(values)
            here, values = cell[given], values[given]
            if colour.categories:
                votes = np.bincount(values.astype(np.int64) * cells + here, minlength=sums[colour.name].size)
                sums[colour.name] += votes.reshape(-1, cells)
            else:
                for total, what in zip(sums[colour.name], (values, None), strict=True):
                    total += np.bincount(here, what, minlength=cells)
        start = stop
        if progress is not None:
            progress(stop, store.num_rows)
    used = np.flatnonzero(counts)
    y, x = np.divmod(used, shape[0])
    return Shown(
        rows=first[used],
        xy=low + (np.stack([x, y], axis=1) + 0.5) * side,
        counts=counts[used],
        colours={one.name: _of_cells(sums[one.name][:, used], one) for one in colours},
        low=low,
        high=high,
        side=side,
        outside=outside,
    )


def _of_cells(sums: Float, colour: Colour) -> Float:
    """Return the mean or the most frequent category of each cell; NaN where no value is known."""
    if not colour.categories:
        return np.asarray(np.divide(sums[0], sums[1], out=np.full(len(sums[0]), np.nan), where=sums[1] > 0))
    found, known = sums.argmax(axis=0), sums.sum(axis=0)
    if colour.others:
        found = np.where(2 * sums[-1] > known, len(sums) - 1, sums[:-1].argmax(axis=0))
    return np.where(known > 0, found, np.nan)


def _bounds(coordinates: Coordinates) -> tuple[Float, Float]:
    """Return corners that hold all coordinates but the outermost, with a margin."""
    step = -(-len(coordinates) // SAMPLE_ROWS)
    xy = np.asarray(coordinates[::step], np.float64)
    xy = xy[np.isfinite(xy).all(axis=1)]
    if not len(xy):
        return np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    low, high = np.quantile(xy, [OUTERMOST, 1 - OUTERMOST], axis=0)
    margin = np.maximum((high - low) * 0.05, 1e-9 + np.abs(high) * 1e-6)
    return low - margin, high + margin
