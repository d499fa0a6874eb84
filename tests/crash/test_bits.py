"""Flipped bits after a kill — in what a killed writer left, each is noticed or harmless."""

import contextlib

import numpy as np
import pytest

from crash.disk import Tree
from crash.workloads import (
    NAME,
    OPTIONS,
    TOKENS,
    TWO,
    Run,
    Workload,
    check_complete,
    check_promise,
    record,
    scratch,
    small_chunks,
    vectors_of,
)
from zarrow._format.ragged import Ragged
from zarrow._format.records import Claim, Owner, SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog, open_rows
from zarrow.errors import ZarrowError
from zarrow.writer import Writer

pytestmark = pytest.mark.slow


def _script(run: Run) -> None:
    writer = run.open()
    for rows in (8, 3):
        run.append(writer, rows)
    writer.flush(durable=True)
    run.append(writer, 2)
    writer.flush()
    run.done()
    Stopped.tree = Tree.take(run.path.parent)
    writer.close()


class Stopped:
    """Holds what a kill at a certain point of the script would leave."""

    tree: Tree


WORKLOADS = {
    codecs: Workload(
        codecs,
        _script,
        {0: 13},
        arrays=TOKENS if codecs == "ragged" else TWO,
        options=OPTIONS | {"segment_rows": 8, "codecs": {"z": "zstd"} if codecs == "ragged" else codecs},
        chunk_bytes=64,
    )
    for codecs in ("none", "zstd", "ragged")
}
DURABLE, APPENDED = 11, 13


def killed(workload):
    """Return what a killed writer left: 8 rows committed, 3 durable, 2 accepted."""
    record(workload)
    return Stopped.tree


def check_open(path, workload):
    """Check the rows that recovery would find in the open segments, without writing."""
    spec = catalog.read_spec(path)
    rows = catalog.read_snapshot(path).rows
    for slot in open_rows.slots(path):
        found = open_rows.read(slot, spec)
        if found is None or not found.rows:
            continue
        batches = found.batches(spec)
        ids = np.concatenate([batch["id"].to_numpy() for batch in batches])
        names = [name for batch in batches for name in batch["s"].to_pylist()]
        wanted = np.arange(rows, rows + found.rows)
        assert ids.tolist() == wanted.tolist()
        vectors = {
            array.name: np.concatenate(list(found.vectors(spec, index, 0, found.rows)))
            for index, array in enumerate(spec.arrays)
        }
        assert names == [f"s{number}" for number in ids]
        for name, expected in vectors_of(workload.arrays, ids).items():
            if isinstance(expected, Ragged):
                extents, expected = vectors[f"{name}_extent"], expected.values
                assert extents[:, 1].tolist() == (ids % 4).tolist()
            assert np.array_equal(vectors[name], expected), f"wrong rows of {name}"
        rows += found.rows
    assert rows >= DURABLE, f"{rows} rows came back, {DURABLE} were durable"
    return rows


def flips(top, names, every=1):
    """Flip every bit of every file, or every n-th one, one at a time, and yield its position."""
    passed = 0
    for name in names:
        path = top / name
        data = path.read_bytes()
        first = -passed % every
        passed += len(data) * 8
        for bit in range(first, len(data) * 8, every):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            yield f"{name}, byte {bit // 8}, bit {bit % 8}"
        path.write_bytes(data)


@pytest.mark.parametrize("codecs", WORKLOADS)
def test_no_flipped_bit_of_an_open_segment_makes_a_wrong_row(codecs, figures):
    """Any flipped bit of frames, rows, tails and documents raises, or leaves every durable row correct."""
    workload = WORKLOADS[codecs]
    tree = killed(workload)
    tried = noticed = harmless = 0
    bad = []
    with scratch() as top, small_chunks(workload):
        tree.put(top)
        assert check_open(top / NAME, workload) == APPENDED
        names = [name for name in tree.files() if "/open/" in name and not name.endswith("lock")]
        assert any("table.frames" in name for name in names)
        for where in flips(top, names):
            tried += 1
            try:
                check_open(top / NAME, workload)
                harmless += 1
            except ZarrowError:
                noticed += 1
            except Exception as error:  # noqa: BLE001 - anything else is a fault
                bad.append(f"{where}: {error!r}")
    figures("bits flipped in open segments", tried=tried, noticed=noticed, harmless=harmless, bad=len(bad))
    assert not bad, "\n".join(bad[:20])


@pytest.mark.parametrize("codecs", WORKLOADS)
def test_recovery_of_a_store_with_a_flipped_bit_raises_or_is_right(codecs, figures, profile):
    """A store with any bit flipped is refused on resuming, or holds only correct rows once finalized."""
    workload = WORKLOADS[codecs]
    tree = killed(workload)
    every = 1 if profile == "long" else 211
    tried = refused = 0
    bad = []
    with scratch() as top:
        tree.put(top)
        for where in flips(top, [name for name in tree.files() if "/c/" not in name], every):
            tried += 1
            damaged = Tree.take(top)
            with scratch() as other, small_chunks(workload):
                damaged.put(other)
                path = other / NAME
                try:
                    with contextlib.closing(Writer(path, **workload.options)) as writer:
                        assert DURABLE <= writer.accepted_rows <= APPENDED, f"{writer.accepted_rows} rows"
                        writer.finalize()
                except ZarrowError:
                    refused += 1
                    continue
                except Exception as error:  # noqa: BLE001 - anything else is a fault
                    bad.append(f"{where}: {error!r}")
                    continue
                try:
                    if (
                        "table/" not in where and "zarr.json" not in where
                    ):  # committed files are left to verify
                        check_promise(
                            check_complete(path, workload, where), {0: DURABLE}, workload.totals, where
                        )
                except Exception as error:  # noqa: BLE001
                    bad.append(f"{where}: {error!r}")
    figures("bits flipped before recovery", tried=tried, refused=refused, bad=len(bad))
    assert not bad, "\n".join(bad[:20])


def test_a_document_with_a_flipped_bit_is_refused(figures):
    """The store's spec, a record, a claim and an owner are refused with any single bit flipped."""
    tree = killed(WORKLOADS["none"])
    files = {name.removeprefix(NAME + "/"): data for name, data in tree.files().items()}
    slot = next(name for name in files if name.endswith("owner.json"))
    documents = [
        (files["zarrow.json"], StoreSpec),
        (files["segments/00000000.json"], SegmentRecord),
        (files[slot], Owner),
        (Claim(segment=3, sources=()).encode(), Claim),
    ]
    tried = 0
    for data, kind in documents:
        kind.decode(data, "sound")
        for bit in range(len(data) * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            tried += 1
            with pytest.raises(ZarrowError):
                kind.decode(bytes(damaged), "damaged")
    figures("bits flipped in documents", tried=tried, bad=0)
