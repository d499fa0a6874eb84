"""Zarr metadata — the ``zarr.json`` documents of the group and its arrays, as Zarr readers see them.

They are derived from a store's spec and its number of rows
(https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html), replaced whenever a segment is committed,
and read back by nothing of zarrow but audits. Only the attributes that other programs give to the group and
its arrays are kept (`attributes_in`).

The group carries the metadata of its arrays too (consolidated), so that one atomic rename gives all arrays of
a store their new shape, and xarray never sees one array longer than another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zarrow._format.layout import FORMAT_VERSION, ROW, extent_name
from zarrow._format.spec import ArraySpec, StoreSpec

__all__ = [
    "array_json",
    "attributes_in",
    "comparable",
    "dimension_names",
    "group_json",
    "ragged_dimension_names",
    "width_in",
]

Attributes = Mapping[str, Any]
NONE: Attributes = MappingProxyType({})


def dimension_names(name: str, row_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of an array's axes.

    >>> dimension_names("e", (4,)), dimension_names("e", (2, 4))
    (('row', 'e_dim'), ('row', 'e_dim0', 'e_dim1'))
    """
    if len(row_shape) == 1:
        return (ROW, f"{name}_dim")
    return (ROW, *(f"{name}_dim{axis}" for axis in range(len(row_shape))))


def ragged_dimension_names(name: str, row_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the axes of a ragged array.

    >>> ragged_dimension_names("e", (4,))
    ('e_segment', 'e_vector', 'e_dim')
    """
    return (f"{name}_segment", f"{name}_vector", *dimension_names(name, row_shape)[1:])


def width_in(data: bytes) -> int:
    """Return the second axis in the ``zarr.json`` of a ragged array; 0 if it is damaged.

    >>> width_in(b'{"shape": [3, 4096, 128]}'), width_in(b"[")
    (4096, 0)
    """
    try:
        width = json.loads(data)["shape"][1]
    except (LookupError, RecursionError, TypeError, ValueError):
        return 0
    return width if type(width) is int and 0 <= width < 2**31 else 0


def _grid(
    spec: StoreSpec, array: ArraySpec, rows: int, width: int
) -> tuple[list[int], list[int], list[int], tuple[str, ...]]:
    """Return the shapes of an array, of its shards and of its chunks, and the names of its axes."""
    shape = list(array.row_shape)
    if not array.is_ragged:
        names = dimension_names(array.name, array.row_shape)
        return [rows, *shape], [spec.segment_rows, *shape], [array.chunk_rows, *shape], names
    vectors = array.shard_rows(spec.segment_rows)
    names = ragged_dimension_names(array.name, array.row_shape)
    segments = -(-rows // spec.segment_rows)
    return [segments, width, *shape], [1, vectors, *shape], [1, array.chunk_rows, *shape], names


def _own_attributes(spec: StoreSpec, array: ArraySpec) -> Attributes:
    """Return what readers need to know of a quantized or ragged array, or of where its rows lie."""
    if array.scale is not None:
        return {"zarrow": {"scale": array.scale}}
    if array.is_ragged:
        return {"zarrow": {"extents": extent_name(array.name), "segment_rows": spec.segment_rows}}
    if array.name in spec.extents:
        return {"zarrow": {"extents_of": spec.extents[array.name].name, "columns": ["offset", "count"]}}
    return {}


def _array_metadata(
    spec: StoreSpec, array: ArraySpec, rows: int, attributes: Attributes, width: int = 0
) -> dict[str, Any]:
    shape, shards, chunks, names = _grid(spec, array, rows, width)
    fill_value: bool | int | float = 0
    if array.dtype == "bool":
        fill_value = False
    elif array.dtype.startswith("float"):
        fill_value = 0.0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": array.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": shards},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": chunks,
                    "codecs": list(array.codecs),
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {**attributes, **_own_attributes(spec, array)},
        "dimension_names": list(names),
        "storage_transformers": [],
    }


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def array_json(
    spec: StoreSpec, array: ArraySpec, rows: int, attributes: Attributes = NONE, width: int = 0
) -> bytes:
    """Return the ``zarr.json`` of an array of `rows` rows, with attributes that others gave it.

    `width` are the most vectors of a segment, if the array is ragged.
    """
    return _encode(_array_metadata(spec, array, rows, attributes, width))


def group_json(
    spec: StoreSpec,
    rows: int,
    attributes: Attributes = NONE,
    of_arrays: Mapping[str, Attributes] = NONE,
    widths: Mapping[str, int] = NONE,
) -> bytes:
    """Return the ``zarr.json`` of the group whose arrays have `rows` rows, with attributes of others.

    `widths` are the most vectors of a segment, by the name of each ragged array.
    """
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {**attributes, "zarrow": {"format": FORMAT_VERSION, "uuid": spec.uuid}},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": {
                    array.name: _array_metadata(
                        spec, array, rows, of_arrays.get(array.name, {}), widths.get(array.name, 0)
                    )
                    for array in spec.arrays
                },
            },
        }
    )


def attributes_in(data: bytes) -> dict[str, Any]:
    """Return the attributes in a ``zarr.json`` that are not zarrow's; none if it is damaged.

    >>> attributes_in(b'{"attributes": {"zarrow": {}, "units": "m"}}'), attributes_in(b"[")
    ({'units': 'm'}, {})
    """
    try:
        found = json.loads(data)
        json.dumps(found, allow_nan=False)
        return {name: value for name, value in found["attributes"].items() if name != "zarrow"}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return {}


def comparable(data: bytes) -> Any:
    """Return a ``zarr.json`` without what others may change; `ValueError` if it is damaged.

    Those are attributes, and whether the group carries the metadata of its arrays.
    """
    try:
        found = json.loads(data)
        attributes = found.get("attributes") or {}
        found["attributes"] = {name: attributes[name] for name in attributes if name == "zarrow"}
        found.setdefault("storage_transformers", [])
        consolidated = found.pop("consolidated_metadata", None) or {}
        for one in consolidated["metadata"].values() if consolidated else ():
            own = one.get("attributes") or {}
            one["attributes"] = {name: own[name] for name in own if name == "zarrow"}
            one.setdefault("storage_transformers", [])
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError("not Zarr metadata") from error
    return found, consolidated
