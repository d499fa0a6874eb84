"""Croissant — a description of one Parquet file for machine-learning catalogues (version 1.1).

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

__all__ = ["croissant"]

_OWN = (
    "arrayShape citeAs column equivalentProperty extract field fileObject fileProperty fileSet format "
    "includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex "
    "repeated replace samplingRate separator source subField transform"
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{name: f"cr:{name}" for name in _OWN.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
_KINDS = (
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
    (pa.types.is_temporal, "sc:DateTime"),
)


def croissant(
    name: str, text: str, created: str, schema: pa.Schema, path: str, sha256: str
) -> dict[str, Any]:
    """Return the description of a file with these columns, as JSON-LD."""
    file = {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "encodingFormat": "application/x-parquet",
        "sha256": sha256,
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": text,
        "datePublished": created,
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "distribution": [file],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": list(_fields(schema, path))}
        ],
    }


def _fields(schema: pa.Schema, path: str) -> Iterator[dict[str, Any]]:
    for one in schema:
        kind, shape = one.type, []
        while pa.types.is_fixed_size_list(kind):
            shape.append(str(kind.list_size))
            kind = kind.value_type
        yield {
            "@type": "cr:Field",
            "@id": f"rows/{one.name}",
            "name": one.name,
            "dataType": next((name for fits, name in _KINDS if fits(kind)), "sc:Text"),
            "source": {"fileObject": {"@id": path}, "extract": {"column": one.name}},
            **({"isArray": True, "arrayShape": ", ".join(shape)} if shape else {}),
        }
