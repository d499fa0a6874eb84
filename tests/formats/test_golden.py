"""Golden stores — the test vectors of FORMAT.md, section 17; those of a release are read forever."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from formats.make_golden import GOLDEN, STORES, make

import zarrow
from zarrow.errors import CorruptionError

NAMES = [store.__name__ for store in STORES]


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a copy of a golden store, and what a reader finds in it."""
    path = Path(shutil.copytree(GOLDEN / request.param, tmp_path / "store"))
    return path, json.loads((GOLDEN / f"{request.param}.json").read_text(encoding="utf-8"))


def rows_of(store: zarrow.Store) -> list[dict[str, Any]]:
    """Return a store's rows as the JSON has them."""
    rows = store.table().to_pylist()
    arrays = {name: store[name][:] for name in (*store.arrays, *store.ragged)}
    return [
        row | {name: values[place].tolist() for name, values in arrays.items()}
        for place, row in enumerate(rows)
    ]


def test_the_product_reads_what_the_json_says(golden):
    """All rows come back as they were written; damage is raised, and without it the others are there."""
    path, expected = golden
    if expected["damage"]:
        with pytest.raises(CorruptionError) as error:
            zarrow.open(path, partial=True)
        assert [one["path"] for one in expected["damage"]] == [str(Path(error.value.path).relative_to(path))]
        shutil.rmtree(error.value.path)
    store = zarrow.open(path, partial=True)
    assert store.complete == expected["complete"]
    rows = rows_of(store)
    if expected["damage"]:  # a repair also keeps rows that a reader cannot show
        rows = rows[: len(expected["rows"])]
    assert rows == expected["rows"]
    if expected["complete"]:
        keys = {name: [row[name] for row in expected["rows"]] for name in ("id", "query")}
        assert store.locate(keys).tolist() == [row["row"] for row in expected["rows"]]


def test_verify_says_what_the_json_says(golden):
    """Damage is found in what is damaged, and nowhere else; a gap with a claim and a torn tail are none."""
    path, expected = golden
    report = zarrow.verify(path, level="full")
    damage = [finding for finding in report.findings if finding.severity != "note"]
    assert all(one.path.startswith(two["path"]) for one, two in zip(damage, expected["damage"], strict=True))
    assert (report.complete, report.rows) == (expected["complete"], expected["committed_rows"])
    if not damage:
        assert report.rows + report.open_rows == len(expected["rows"])


def test_the_stores_are_made_anew_as_they_are(tmp_path):
    """The script makes the same JSON, and the bytes that follow from the format and no other library."""
    make(tmp_path)
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(GOLDEN) for path in GOLDEN.rglob("*") if path.is_file()} == set(made)
    for file in made:
        if file.parent == Path() or ("compressed" not in file.parts and "open" in file.parts):
            assert (tmp_path / file).read_bytes() == (GOLDEN / file).read_bytes(), file


def test_the_frames_of_the_document_are_those_of_the_store():
    """FORMAT.md shows the journal of a golden store in hexadecimal."""
    text = (Path(zarrow.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    (frames,) = GOLDEN.glob("torn_tail/open/*/table.frames")
    start = text.index("```hex\n") + 7
    lines = text[start : text.index("```", start)].splitlines()
    shown = bytes.fromhex("".join(line.split(maxsplit=1)[1] for line in lines))
    assert len(shown) == 88 + 456 + 88
    assert shown == frames.read_bytes()[: len(shown)]
