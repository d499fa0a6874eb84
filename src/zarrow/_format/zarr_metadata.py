"""Zarr metadata — the ``zarr.json`` documents of the group and its arrays, as Zarr readers see them.

They are derived from a store's spec and its number of rows
(https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html), replaced whenever a segment is committed,
and read back by nothing of zarrow but audits. The attributes that other programs give to the group and its
arrays are kept (`attributes_in`), and shown by the backend for xarray.

Attributes say what the store is and where its rows come from (`facts_of`, which each part has, too), by which
conventions they say so (https://github.com/zarr-conventions, https://cfconventions.org), and how to read
quantized and ragged arrays.

The group carries the metadata of its arrays too (consolidated), so that one atomic rename gives all arrays of
a store their new shape, and xarray never sees one array longer than another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zarrow._format.array_spec import PLAIN, ArraySpec
from zarrow._format.layout import FORMAT_VERSION, ROW, extent_name
from zarrow._format.spec import StoreSpec

__all__ = [
    "CF_CONVENTIONS",
    "array_json",
    "attributes_in",
    "comparable",
    "dimension_names",
    "facts_of",
    "group_json",
    "ragged_dimension_names",
    "width_in",
]

Attributes = Mapping[str, Any]
NONE: Attributes = MappingProxyType({})
_ONE_BYTE = ("bool", "int8", "uint8")
OWN, CONVENTIONS, CF = "zarrow", "zarr_conventions", "Conventions"
CF_CONVENTIONS = "CF-1.12"
CONVENTION = {
    "uuid": "63880f20-fdd9-4409-84ab-c9245b48b2da",
    "name": "zarrow",
    "description": "Where the rows of a store come from, and how to read its quantized and ragged arrays",
}
"""What `zarrow` in the attributes means to programs that ask for conventions."""
MAX_PROVENANCE_BYTES = 16 << 10
"""Larger ones are in ``zarrow.json`` only: parts and group repeat them."""


def facts_of(spec: StoreSpec) -> dict[str, Any]:
    """Return what the Zarr group and each part say of their store.

    >>> import pyarrow as pa
    >>> facts_of(StoreSpec(uuid="0" * 32, segment_rows=8, schema=pa.schema([]), provenance={"model": "a"}))
    {'format': 1, 'uuid': '00000000000000000000000000000000', 'provenance': {'model': 'a'}}
    """
    facts: dict[str, Any] = {"format": FORMAT_VERSION, "uuid": spec.uuid}
    said = json.dumps(spec.provenance, ensure_ascii=False, separators=(",", ":"))
    if len(said.encode(errors="surrogatepass")) <= MAX_PROVENANCE_BYTES:
        facts["provenance"] = spec.provenance
    return facts


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


def _attributes_of(spec: StoreSpec, array: ArraySpec, others: Attributes) -> Attributes:
    """Return an array's attributes: what readers need to know of it, and what others say."""
    if array.scale is not None:
        return _with_own(others, {"scale": array.scale})
    if array.is_ragged:
        return _with_own(others, {"extents": extent_name(array.name), "segment_rows": spec.segment_rows})
    if array.name in spec.extents:
        of = spec.extents[array.name].name
        said = {"long_name": f"first vector and number of vectors of each row of {of}", "units": "1"}
        return _with_own({**others, **said}, {"extents_of": of, "columns": ["offset", "count"]})
    return {**others}


def _with_own(others: Attributes, own: Attributes) -> Attributes:
    """Return attributes with zarrow's own, and the convention that explains them."""
    return {**others, CONVENTIONS: [CONVENTION, *_others(others.get(CONVENTIONS))], OWN: own}


def _says_cf(conventions: object) -> bool:
    return CF_CONVENTIONS in re.split(r"[ ,]+", str(conventions))


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
        "attributes": _attributes_of(spec, array, attributes),
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
    said = attributes.get(CF, CF_CONVENTIONS)
    said = said if _says_cf(said) else f"{CF_CONVENTIONS} {said}"
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": _with_own({**attributes, CF: said}, facts_of(spec)),
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
        own = _own_in(found)
        others = {name: value for name, value in found["attributes"].items() if name not in own or name == CF}
        if conventions := _others(found["attributes"].get(CONVENTIONS)):
            others[CONVENTIONS] = conventions
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return {}
    return {**others}


def _others(conventions: object) -> list[Any]:
    return [one for one in conventions if one != CONVENTION] if isinstance(conventions, list) else []


def _own_in(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group or an array that are zarrow's, in a form that can be compared."""
    attributes = node.get("attributes") or {}
    names = {OWN}
    if isinstance(own := attributes.get(OWN), dict) and "extents_of" in own:
        names |= {"long_name", "units"}
    found = {name: value for name, value in attributes.items() if name in names}
    if isinstance(said := attributes.get(CONVENTIONS), list) and CONVENTION in said:
        found[CONVENTIONS] = True
    if node.get("node_type") == "group":
        found[CF] = _says_cf(attributes.get(CF))
    return found


def comparable(data: bytes) -> Any:
    """Return a ``zarr.json`` without what others may change; `ValueError` if it is damaged.

    Those are attributes, whether the group carries the metadata of its arrays, and whether single bytes have
    an endianness.
    """
    try:
        found = json.loads(data)
        consolidated = found.pop("consolidated_metadata", None) or {}
        for node in (found, *(consolidated["metadata"].values() if consolidated else ())):
            node["attributes"] = _own_in(node)
            node.setdefault("storage_transformers", [])
            if node.get("data_type") in _ONE_BYTE:
                chunk = node["codecs"][0]["configuration"]
                chunk["codecs"] = [{"name": "bytes"} if one in PLAIN else one for one in chunk["codecs"]]
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError("not Zarr metadata") from error
    return found, consolidated
