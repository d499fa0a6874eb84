"""Zarr metadata — the ``zarr.json`` documents of the group and its arrays, as Zarr readers see them.

They are derived from a store's spec and its number of rows
(https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html), replaced whenever a segment is committed,
and read back by nothing of zarrow but audits.

The group carries the metadata of its arrays too (consolidated), so that one atomic rename gives all arrays of
a store their new shape, and xarray never sees one array longer than another.
"""

from __future__ import annotations

import json
from typing import Any

from zarrow._format.layout import FORMAT_VERSION, ROW
from zarrow._format.spec import ArraySpec, StoreSpec

__all__ = ["array_json", "dimension_names", "group_json"]


def dimension_names(name: str, row_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of an array's axes.

    >>> dimension_names("e", (4,)), dimension_names("e", (2, 4))
    (('row', 'e_dim'), ('row', 'e_dim0', 'e_dim1'))
    """
    if len(row_shape) == 1:
        return (ROW, f"{name}_dim")
    return (ROW, *(f"{name}_dim{axis}" for axis in range(len(row_shape))))


def _array_metadata(spec: StoreSpec, array: ArraySpec, rows: int) -> dict[str, Any]:
    fill_value: bool | int | float = 0
    if array.dtype == "bool":
        fill_value = False
    elif array.dtype.startswith("float"):
        fill_value = 0.0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *array.row_shape],
        "data_type": array.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [spec.segment_rows, *array.row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [array.chunk_rows, *array.row_shape],
                    "codecs": list(array.codecs),
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "dimension_names": list(dimension_names(array.name, array.row_shape)),
        "storage_transformers": [],
    }


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def array_json(spec: StoreSpec, array: ArraySpec, rows: int) -> bytes:
    """Return the ``zarr.json`` of an array of `rows` rows."""
    return _encode(_array_metadata(spec, array, rows))


def group_json(spec: StoreSpec, rows: int) -> bytes:
    """Return the ``zarr.json`` of the group whose arrays have `rows` rows."""
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"zarrow": {"format": FORMAT_VERSION, "uuid": spec.uuid}},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": {array.name: _array_metadata(spec, array, rows) for array in spec.arrays},
            },
        }
    )
