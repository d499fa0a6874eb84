"""Benchmarks — that they run, and that they catch a contender that loses rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_writers_are_compared_and_checked(tmp_path: Path) -> None:
    """The table is aligned, the figures are in the JSON file, and no other file is left."""
    words = ["--rows", "700", "--width", "8", "--repeat", "1", "--only", "raw", "zarrow-2"]
    words += ["--folder", str(tmp_path), "--json", str(tmp_path / "out.json")]
    script = str(BENCHMARKS / "writers.py")
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines[2:]] == ["raw", "zarrow-2"]
    assert len({len(line) for line in lines}) == 1
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["options"]["rows"] == 700
    assert written["medians"]["zarrow-2"]["p50_ms"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_writer_that_loses_a_batch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is compared, not just some."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contenders import Data

    data = Data(700, 8, 32, "float32")
    data.check(data.vectors)
    with pytest.raises(AssertionError):
        data.check(lambda start, stop: data.vectors(start, stop) * (start != 128))


def test_loaders_are_compared_and_checked(tmp_path: Path) -> None:
    """The table is put into the place for it in a document, with versions; no other file is left."""
    guide = tmp_path / "guide.md"
    guide.write_text("before\n<!-- loaders -->\nold\n<!-- end of loaders -->\nafter\n")
    words = ["--rows", "700", "--width", "8", "--repeat", "1", "--only", "memmap", "zarrow", "zarrow-map"]
    words += ["--folder", str(tmp_path), "--guide", str(guide)]
    script = str(BENCHMARKS / "loaders.py")
    subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    text = guide.read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines[2:]] == ["memmap", "zarrow", "zarrow-map"]
    assert "torch 2" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- loaders -->\n")
    assert text.endswith("<!-- end of loaders -->\nafter\n")
    assert [path.name for path in tmp_path.iterdir()] == ["guide.md"]


def test_a_loader_that_repeats_or_changes_a_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is compared, and may come once only."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from loaders import Data, check_epoch

    class Loader:
        def __init__(self, order: list[int], change: int = 0) -> None:
            ((_, labels, vectors),) = list(data.blocks())
            vectors[5, 1] += change
            self.batch = vectors[order], labels[order]

        def batches(self, epoch: int) -> list[object]:
            return [self.batch]

    data = Data(10, 4, 10)
    check_epoch(Loader([*range(10)]), data, 10)
    for broken in (Loader([*range(9), 8]), Loader([*range(9)]), Loader([*range(10)], change=1)):
        with pytest.raises(AssertionError):
            check_epoch(broken, data, 10)


@pytest.mark.slow
def test_predict_runs_a_single_round() -> None:
    """A single round has quartiles, too, as ``python3 tests/benchmarks --quick`` needs."""
    words = ["--batches", "8", "--rounds", "1", "--step-ms", "0.2", "--batch-rows", "4"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "predict.py"), *words], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("PredictionWriter") == 2, done.stdout


def test_quantized_vectors_are_compared(tmp_path: Path) -> None:
    """Bytes, seconds and neighbours of both forms are measured."""
    words = ["--rows", "700", "--width", "8", "--repeat", "1", "--json", str(tmp_path / "out.json")]
    script = str(BENCHMARKS / "quantized.py")
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    assert 0.8 < float(done.stdout.split()[-1]) <= 1
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == 700


def test_the_steps_of_many_short_rows_are_shown() -> None:
    """With --counts, time and memory of each step of a store are shown."""
    words = ["--counts", "1", "--rows", "3000", "--width", "1", "--batch", "700"]
    script = str(BENCHMARKS / "ragged.py")
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines[2:5]] == ["write", "finalize", "open"]
    assert all(line[3].strip().endswith(" MB") for line in lines[2:])


def test_ragged_arrays_are_compared() -> None:
    """Every task of every contender is measured."""
    words = ["--rows", "60", "--width", "8", "--repeat", "1", "--search-rows", "30", "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ragged.py"), *words], check=True, capture_output=True, text=True
    )
    for task in ("write", "row", "rows", "scan", "maxsim"):
        assert f"| {task} " in done.stdout
    assert "60 rows" in done.stdout


def test_growth_is_measured_and_drawn(tmp_path: Path) -> None:
    """Every size is written by as many processes as it says, and asked; the table has all of them."""
    words = ["--rows", "2000", "--segments", "2", "--processes", "2", "--repeat", "1"]
    words += [
        "--folder",
        str(tmp_path),
        "--json",
        str(tmp_path / "a.json"),
        "--picture",
        str(tmp_path / "a.svg"),
    ]
    script = str(BENCHMARKS / "growth.py")
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    sizes = [[int(cell.replace(",", "")) for cell in line[:3]] for line in lines[2:]]
    assert sizes == [[2000, 125, 1], [2000, 2, 1], [2000, 125, 2]]
    assert all(float(cell.replace(",", "")) > 0 for line in lines[2:] for cell in line[3:])
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.svg"}
