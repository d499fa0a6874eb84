"""Do Zarr's metadata show the rows that are committed?

The ``zarr.json`` documents are derived from the records: they must be, byte for byte, those that the writer
would write, or those that it left when it was killed between a record and its documents.

Place: tier 3, used by `audit`. Reads only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from zarrow._format import layout, zarr_metadata
from zarrow._maintenance.audit_documents import Documents, read_document
from zarrow.errors import CorruptionError

__all__ = ["audit_metadata"]


def audit_metadata(documents: Documents, reopened: list[int]) -> None:
    """Compare the documents; of the segments that are `reopened`, copies are open."""
    spec = documents.spec
    settled = max(documents.records, default=-1) + 1 == documents.dense and not documents.damaged_manifest
    stale = set() if documents.manifest is not None else _stale_rows(documents, reopened)
    derived: list[tuple[str, Callable[[int], bytes]]] = [
        (f"{layout.ARRAYS_DIR}/zarr.json", partial(zarr_metadata.group_json, spec)),
        *(
            (
                f"{layout.array_dir(array.name)}/zarr.json",
                partial(zarr_metadata.array_json, spec, array),
            )
            for array in spec.arrays
        ),
    ]
    for path, make in derived:
        expected = make(documents.rows)
        try:
            data = read_document(documents.files, documents.found, path, len(expected) + (1 << 16))
        except FileNotFoundError:
            documents.found.defect(path, "it is not there: Zarr readers find no array")
            continue
        except CorruptionError as error:
            documents.found.defect(path, error)
            continue
        if data == expected:
            continue
        if any(data == make(rows) for rows in stale):
            documents.found.note(path, "a writer has not yet told Zarr readers of its last segment")
        else:
            documents.found.defect(path, _difference(data, expected, settled))


def _stale_rows(documents: Documents, reopened: list[int]) -> set[int]:
    """Return the lengths that a writer may leave in Zarr's metadata if it is killed.

    After it has committed a segment, whose claim still stands; or before it takes the last one back,
    whose copy is there.
    """
    committing = [number for number in (*documents.claims, *reopened) if number < documents.dense]
    first = min(committing, default=documents.dense)
    return {number * documents.spec.segment_rows for number in range(first, documents.dense)}


def _difference(data: bytes, expected: bytes, settled: bool) -> str:
    try:
        same = json.loads(data) == json.loads(expected)
    except (ValueError, RecursionError):
        return "damaged: it is no JSON"
    if same:
        return "the same metadata, but not as zarrow writes them"
    rule = "" if settled else ", as far as that can be told from damaged records"
    return f"not the metadata of the committed rows{rule}"
