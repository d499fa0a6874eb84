"""RO-Crate — a description of an exported folder for research repositories (version 1.1).

https://www.researchobject.org/ro-crate/specification/1.1/
"""

from __future__ import annotations

from typing import Any

from zarrow.transfer._rows import Outgoing

__all__ = ["ro_crate"]


def ro_crate(
    name: str, text: str, created: str, path: str, size_bytes: int, rows: Outgoing
) -> dict[str, Any]:
    """Return the description of a folder whose rows are in one file, as JSON-LD."""
    facts = [
        {"@id": f"#{key}", "@type": "PropertyValue", "name": key, "value": str(value)}
        for key, value in {**rows.store.provenance, "uuid": rows.store.uuid}.items()
    ]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": name,
        "description": text,
        "datePublished": created,
        "hasPart": [{"@id": path}],
        "additionalProperty": [{"@id": one["@id"]} for one in facts],
    }
    descriptor = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
    }
    data = {
        "@id": path,
        "@type": "File",
        "name": f"{rows.rows:,} rows",
        "encodingFormat": "application/vnd.apache.parquet",
        "contentSize": str(size_bytes),
    }
    return {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [descriptor, root, data, *facts]}
