"""Transfer commands — ``zarrow export``, ``import``, ``index`` and ``watch``, as a user sees them."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import zarrow
from zarrow._commands.watching import Watch
from zarrow.cli import app

WRITER = """
import sys, time, numpy, zarrow
with zarrow.Writer(sys.argv[1], mode="a", shared=True, segment_rows=1024) as writer:
    for _ in range(int(sys.argv[2])):
        writer.append({"id": numpy.arange(100)}, {"v": numpy.ones((100, 8), "float32")})
        time.sleep(0.02)
"""
ZARROW = [sys.executable, "-c", "from zarrow.__main__ import main; main()"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=1024) as writer:
        ids = np.arange(1500) // 2 * 2  # each twice
        writer.append({"id": ids}, {"v": np.arange(6000, dtype=np.float32).reshape(-1, 4)})
        writer.finalize()
    return path


class TestTransfer:
    def test_there_and_back(self, store, tmp_path):
        """An export, and an import of it, say what they wrote; the rows are the same."""
        result = run("export", store, tmp_path / "a.parquet", "--columns", "id", "--arrays", "v")
        assert result.exit_code == 0, result.output
        assert "a.parquet has 1,500 rows" in result.output
        result = run(
            "import", tmp_path / "a.parquet", tmp_path / "b.zarrow", "--keys", "id", "--codecs", "zstd"
        )
        assert result.exit_code == 0, result.output
        assert "b.zarrow has 1,500 rows" in result.output
        found = zarrow.open(tmp_path / "b.zarrow")
        np.testing.assert_array_equal(found["v"][:], zarrow.open(store)["v"][:])
        assert found.keys == ("id",)
        assert not found["v"].is_plain

    def test_the_format_can_be_named(self, store, tmp_path):
        """A folder has no suffix to name its format: --to and --from do."""
        assert run("export", store, tmp_path / "out").exit_code == 1
        assert run("export", store, tmp_path / "out", "--to", "npy").exit_code == 0
        assert run("import", tmp_path / "out", tmp_path / "b.zarrow", "--from", "npy").exit_code == 0
        assert zarrow.open(tmp_path / "b.zarrow").num_rows == 1500

    def test_a_failed_import_is_not_in_the_way_of_the_next(self, store, tmp_path):
        """A wrong name leaves nothing behind; what is there is replaced only if asked to."""
        table, goal = tmp_path / "t.parquet", tmp_path / "b.zarrow"
        assert run("export", store, table).exit_code == 0
        assert run("import", table, goal, "--keys", "typo").exit_code == 1
        assert not goal.exists()
        assert run("import", table, goal, "--keys", "id").exit_code == 0
        refused = run("import", table, goal)
        assert refused.exit_code == 1
        assert "exists already: choose another path, or replace it with --overwrite" in refused.output

    def test_errors_are_one_line(self, store, tmp_path):
        """A refusal is one line and an exit code."""
        for arguments, code, words in [
            (("export", store, tmp_path / "a", "--to", "csv"), 1, "must be one of npy, parquet"),
            (("export", store, tmp_path / "a.parquet", "--arrays", "w"), 2, "there is no array 'w'"),
            (("export", tmp_path / "no.zarrow", tmp_path / "a.parquet"), 2, "there is no store"),
            (("export", store, store), 1, "must be one of"),
            (
                ("import", tmp_path / "no.npy", tmp_path / "b.zarrow"),
                1,
                "no such file or directory to import",
            ),
        ]:
            result = run(*arguments)
            assert (result.exit_code, result.output.count("\n")) == (code, 1), result.output
            assert words in result.output


class TestIndex:
    def test_index_reports_duplicates(self, store):
        """The index is built, and duplicate keys are counted and shown."""
        result = run("index", store)
        assert result.exit_code == 0
        assert (store / "index/keys.index").exists()
        assert "750 keys (id) of 1,500 rows" in result.output
        assert "750 rows have the key of an earlier row" in result.output
        assert "{'id': 0, 'row': 1}" in result.output

    def test_index_of_a_store_without_keys(self, tmp_path):
        """A store without keys has nothing to index."""
        with zarrow.Writer(tmp_path / "s.zarrow") as writer:
            writer.append({"id": [1]})
            writer.finalize()
        result = run("index", tmp_path / "s.zarrow")
        assert result.exit_code == 1
        assert "without keys=" in result.output


class TestWatch:
    def test_a_store_that_grows(self, tmp_path):
        """Two writers are seen at work: rows, rates, time left; watching ends when the store is complete."""
        path = tmp_path / "run.zarrow"
        with zarrow.Writer(path, shared=True, segment_rows=1024) as writer:
            writer.append({"id": np.arange(10)}, {"v": np.ones((10, 8), np.float32)})
        seen: list[dict] = []
        with subprocess.Popen(
            [*ZARROW, "watch", path, "--json", "--interval", "0.1", "--total", "6010"],
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            listener = threading.Thread(target=lambda: seen.extend(map(json.loads, watching.stdout)))
            listener.start()
            while not seen:
                time.sleep(0.05)
            command = [sys.executable, "-c", WRITER, str(path), "30"]
            writers = [subprocess.Popen(command) for _ in range(2)]
            assert [process.wait() for process in writers] == [0, 0]
            with zarrow.Writer(path, mode="a") as writer:
                writer.finalize()
            listener.join(30)
            assert watching.wait(30) == 0
        rows = [look["rows"] for look in seen]
        assert rows == sorted(rows)
        assert rows[0] == 10
        assert rows[-1] == 6010
        assert seen[-1]["complete"]
        assert not seen[-2]["complete"]
        busy = [
            look
            for look in seen
            if sum(one["rows_per_s"] > 0 for one in look["writers"] if one["rows_per_s"]) == 2
        ]
        assert busy
        assert {one["pid"] for one in busy[-1]["writers"]} >= {process.pid for process in writers}
        assert 0 < busy[-1]["rows_per_s"] < 100_000
        assert busy[-1]["vector_mb_per_s"] == pytest.approx(busy[-1]["rows_per_s"] * 32 / 1e6, abs=0.01)
        assert any(look["eta_s"] is not None for look in busy)
        counts = {one["pid"]: one["rows"] for look in seen for one in look["writers"]}
        assert all(0 < counts[process.pid] <= 3010 for process in writers)

    def test_a_writers_rows_outlast_their_segment(self, tmp_path):
        """Rows of a segment that was seen open are still the writer's after it was committed."""
        path = tmp_path / "run.zarrow"
        watched = Watch(path)
        with zarrow.Writer(path, segment_rows=1024) as writer:
            writer.append({"id": np.arange(100)}, {"v": np.ones((100, 8), np.float32)})
            writer.flush()
            assert [one["rows"] for one in watched.look()["writers"]] == [100]
            writer.append({"id": np.arange(1000)}, {"v": np.ones((1000, 8), np.float32)})
        seen = watched.look()
        assert seen["rows"] - seen["open_rows"] == 1024
        assert [one["rows"] for one in seen["writers"]] == [1100]

    def test_a_look_at_a_complete_store(self, store):
        """Watching what is complete says so and ends."""
        result = run("watch", store)
        assert result.exit_code == 0
        assert result.output == "1,500 rows, complete\n"

    def test_one_look_at_a_run(self, tmp_path):
        """--once looks once, also before the first batch; the total comes from the run itself."""
        path = tmp_path / "run.zarrow"
        with zarrow.Writer(path, expected_rows=400) as writer:
            assert json.loads(run("watch", path, "--once", "--json").output)["rows"] == 0
            writer.append({"id": np.arange(100)}, {"v": np.ones((100, 8), np.float32)})
            writer.flush()
            result = run("watch", path, "--once")
            assert result.output == "100 rows of 400 (25.0%), 1 writer\n"

    def test_a_store_that_is_replaced(self, store):
        """A run that replaces a store is watched where its rows grow."""
        with zarrow.Writer(store, mode="w") as writer:
            writer.append({"id": np.arange(7)}, {"v": np.ones((7, 4), np.float32)})
            writer.flush()
            assert run("watch", store, "--once").output == "7 rows, 1 writer\n"
            writer.finalize()
        assert run("watch", store, "--once").output == "7 rows, complete\n"

    def test_no_store(self, tmp_path):
        """A wrong path is refused at once."""
        result = run("watch", tmp_path / "no.zarrow")
        assert result.exit_code == 2
        assert "there is no store" in result.output

    def test_a_person_sees_lines_that_change(self, tmp_path, monkeypatch):
        """On a terminal the writers are listed below the total."""
        from rich.console import Console

        path = tmp_path / "run.zarrow"
        screen = Console(force_terminal=True, width=100, record=True)
        monkeypatch.setattr("zarrow._commands.look.out", screen)
        with zarrow.Writer(path) as writer:
            writer.append({"id": np.arange(100)}, {"v": np.ones((100, 8), np.float32)})
            writer.flush()
            assert run("watch", path, "--once").exit_code == 0
        text = screen.export_text()
        assert "100 rows, 1 writer" in text
        assert f"process {writer._owner.pid}: 100 rows" in text
