"""Map cells — where rows lie on a map: each row as a point, or many rows counted in the cells of a grid.

A grid is filled in one pass, in memory that does not grow with the rows. Each cell has the number of its
rows, their mean colour or the count of each category, and one example, the first row that fell into it.

Colours are columns: booleans and numbers of many values are coloured by value, everything else by category,
the most frequent ones by name and all others together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.analysis._questions.map import Map, place_rows
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.groups import plain
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray

__all__ = ["Bounds", "Colour", "Grid", "Points", "choose_map", "read_cells", "read_points"]

Float = npt.NDArray[np.float64]
Coordinates = StoreArray | npt.NDArray[np.float32]

SCAN_ROWS = 65_536
SAMPLE_ROWS = 100_000
CATEGORIES = 7
MAX_DISTINCT = 10_000
OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Colour:
    """The column that rows are coloured by.

    Parameters
    ----------
    name : str
        The column.
    categories : tuple
        Its most frequent values, sorted; empty if rows are coloured by number.
    others : bool
        Whether the column has more values than these.
    """

    name: str
    categories: tuple[Any, ...] = ()
    others: bool = False

    @property
    def labels(self) -> list[str]:
        """The categories' names."""
        return [_label(value) for value in self.categories] + ([OTHER] if self.others else [])

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


def read_colour(store: Store, name: str, most: int = CATEGORIES) -> Colour:
    """Return the colour that a column gives.

    Raises
    ------
    UnknownNameError, InvalidInputError
        If there is no such column, or it has too many values that are not numbers.
    """
    if name not in store.schema.names:
        store.table([name])  # raises, and lists the columns
    kind = store.schema.field(name).type
    number = pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind)
    if pa.types.is_boolean(kind):
        return Colour(name=name)
    limit = 2 * most if number else MAX_DISTINCT
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
    named = sorted((value for value, _ in ranked[:most]), key=_place)
    return Colour(name=name, categories=tuple(named), others=len(ranked) > most)


def _place(value: object) -> tuple[bool, Any]:
    """Return the sort key of a category; null comes last."""
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
        stored = [one for one in store.derived if _is_map(store, one)]
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
    return store.derived[name].row_shape == (2,) and store.derived[name].dtype.kind == "f"


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


# Few rows: points


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Every row as a point.

    Parameters
    ----------
    rows : int64 array, shape (n,)
        Row numbers; rows with NaN or infinite coordinates are left out.
    xy : float64 array, shape (n, 2)
        Their coordinates.
    colours : dict of str to float64 array, shape (n,)
        The values of each colour, as returned by `Colour.codes`.
    """

    rows: npt.NDArray[np.int64]
    xy: Float
    colours: dict[str, Float]


def read_points(store: Store, coordinates: Coordinates, colours: Sequence[Colour]) -> Points:
    """Return all rows as points; all of them are in memory."""
    xy = np.asarray(coordinates[:], np.float64)
    rows = np.flatnonzero(np.isfinite(xy).all(axis=1))
    table = store.table([colour.name for colour in colours])
    codes = {colour.name: colour.codes(table[colour.name])[rows] for colour in colours}
    return Points(rows=rows, xy=xy[rows], colours=codes)


# Many rows: cells


@dataclass(frozen=True, slots=True)
class Bounds:
    """The part of the plane that is shown.

    Parameters
    ----------
    low, high : float64 array, shape (2,)
        Its corners.
    """

    low: Float
    high: Float

    @classmethod
    def of(cls, coordinates: Coordinates, share: float = 0.0003) -> Bounds:
        """Return bounds that hold all coordinates but the outermost, with a margin."""
        rows = np.unique(
            np.linspace(0, max(len(coordinates) - 1, 0), min(len(coordinates), SAMPLE_ROWS), dtype=np.int64)
        )
        xy = np.asarray(coordinates[rows], np.float64) if len(rows) else np.zeros((0, 2))
        xy = xy[np.isfinite(xy).all(axis=1)]
        if not len(xy):
            return cls(np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
        low, high = np.quantile(xy, [share, 1 - share], axis=0)
        margin = np.maximum((high - low) * 0.05, 1e-9 + np.abs(high) * 1e-6)
        return cls(low - margin, high + margin)


@dataclass
class Grid:
    """Rows counted in cells.

    Parameters
    ----------
    bounds : Bounds
        The part of the plane that is covered; rows outside are counted in the nearest cell.
    shape : (int, int)
        Cells along x and y.
    colours : list of Colour
        The colours to compute for each cell.
    """

    bounds: Bounds
    shape: tuple[int, int]
    colours: Sequence[Colour]
    outside: int = 0
    left_out: int = 0
    counts: npt.NDArray[np.int64] = field(init=False)
    example: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        cells = self.shape[0] * self.shape[1]
        self.counts = np.zeros(cells, np.int64)
        self.example = np.full(cells, -1, np.int64)
        self._sums = {colour.name: np.zeros(cells) for colour in self.colours}
        self._known = {colour.name: np.zeros(cells, np.int64) for colour in self.colours}
        self._votes = {
            colour.name: np.zeros((len(colour.labels), cells), np.int64)
            for colour in self.colours
            if colour.categories
        }

    def add(self, first: int, xy: Float, coded: Sequence[Float]) -> None:
        """Count consecutive rows, of which `first` is the first."""
        known = np.flatnonzero(np.isfinite(xy).all(axis=1))
        self.left_out += len(xy) - len(known)
        size = np.array(self.shape)
        place = (xy[known] - self.bounds.low) / (self.bounds.high - self.bounds.low) * size
        inside = ((place >= 0) & (place < size)).all(axis=1)
        self.outside += len(known) - int(inside.sum())
        columns, lines = np.clip(place, 0, size - 1).astype(np.int64).T
        cells = lines * self.shape[0] + columns
        total = len(self.counts)
        self.counts += np.bincount(cells, minlength=total)
        new, where = np.unique(cells, return_index=True)
        empty = self.example[new] < 0
        self.example[new[empty]] = first + known[where[empty]]
        for colour, codes in zip(self.colours, coded, strict=True):
            codes = codes[known]
            has = ~np.isnan(codes)
            self._known[colour.name] += np.bincount(cells[has], minlength=total)
            if colour.categories:
                votes = self._votes[colour.name]
                for number in range(len(votes)):
                    votes[number] += np.bincount(cells[codes == number], minlength=total)
            else:
                self._sums[colour.name] += np.bincount(cells[has], codes[has], minlength=total)

    def colour(self, name: str) -> Float:
        """Return the mean or the most frequent category of each cell; NaN where no value is known.

        The unnamed categories count as the most frequent only if they make up more than half of a cell.
        """
        known = self._known[name]
        if name in self._votes:
            votes = self._votes[name]
            found = votes.argmax(axis=0).astype(np.float64)
            if any(colour.name == name and colour.others for colour in self.colours):
                found = np.where(2 * votes[-1] > known, len(votes) - 1.0, votes[:-1].argmax(axis=0))
        else:
            found = self._sums[name] / np.maximum(known, 1)
        return np.where(known > 0, found, np.nan)

    def centres(self, cells: npt.NDArray[np.int64]) -> Float:
        """Return the coordinates of the centres of cells."""
        lines, columns = np.divmod(cells, self.shape[0])
        size = (self.bounds.high - self.bounds.low) / np.array(self.shape)
        return np.asarray(self.bounds.low + (np.stack([columns, lines], axis=1) + 0.5) * size)


def read_cells(
    store: Store,
    coordinates: Coordinates,
    colours: Sequence[Colour],
    cells: int = 200,
    progress: Progress | None = None,
) -> Grid:
    """Count all rows in square cells, `cells` of them along the longer side of the map."""
    bounds = Bounds.of(coordinates)
    width, height = bounds.high - bounds.low
    side = max(width, height) / cells
    shape = max(int(np.ceil(width / side)), 1), max(int(np.ceil(height / side)), 1)
    middle = (bounds.low + bounds.high) / 2
    half = np.array(shape) * side / 2
    grid = Grid(Bounds(middle - half, middle + half), shape, colours)
    for first, xy, coded in _stream(store, coordinates, colours, progress):
        grid.add(first, xy, coded)
    return grid


def _stream(
    store: Store, coordinates: Coordinates, colours: Sequence[Colour], progress: Progress | None
) -> Iterator[tuple[int, Float, list[Float]]]:
    """Yield the first row, the coordinates and the colour values of consecutive rows."""
    names = list(dict.fromkeys(colour.name for colour in colours))
    total = store.num_rows
    batches = iter(store.scan(names, batch_size=SCAN_ROWS)) if names else itertools.repeat(None)
    for first in range(0, total, SCAN_ROWS):
        stop = min(first + SCAN_ROWS, total)
        batch = next(batches)
        coded = [] if batch is None else [colour.codes(batch[colour.name]) for colour in colours]
        yield first, np.asarray(coordinates[first:stop], np.float64), coded
        if progress is not None:
            progress(stop, total)
