"""Command line — `zarrow` as a user and a script see it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner, Result

import zarrow
from zarrow.cli import app

ROOT = Path(__file__).parents[1]
USER_MODULE = """
import pyarrow as pa
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.hidden = hidden

    def predict_step(self, batch):
        return {"prob": batch[0].mean(1), "query_embed": batch[0][:, :1].expand(-1, self.hidden)}


class Data(LightningDataModule):
    def __init__(self, rows: int = 20):
        super().__init__()
        self.rows = rows

    def predict_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(self.rows * 4.0).reshape(-1, 4)), batch_size=8)
"""


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=1024, provenance={"model": "m7"}) as writer:
        names = [f"[b]{number}[/b]" for number in range(1500)]
        vectors = np.arange(1500 * 6, dtype=np.float32).reshape(1500, 6)
        writer.append({"id": np.arange(1500), "name": names}, {"query_embed": vectors})
        writer.finalize()
    return path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    path = tmp_path / "killed.zarrow"
    with zarrow.Writer(path, segment_rows=1024) as writer:
        writer.append({"id": np.arange(1100)}, {"query_embed": np.ones((1100, 4), np.float32)})
    return path


def test_info_names_rows_arrays_sizes_and_provenance(store: Path) -> None:
    """`info` shows rows, arrays, keys, completeness and provenance."""
    result = run("info", store)
    assert result.exit_code == 0
    for words in ("complete", "1,500 rows in 2 segments", "1,500 × 6", "float32", "id int64 key", "model m7"):
        assert words in result.output


def test_info_json_is_one_object_with_true_numbers(store: Path) -> None:
    """`info --json` gives the sizes of the files themselves."""
    facts = json.loads(run("info", store, "--json").output)
    shards = (store / "embeddings.zarr/query_embed/c").rglob("0")
    parts = (store / "table").glob("*.parquet")
    assert facts["rows"] == 1500
    assert facts["complete"] is True
    assert facts["keys"] == ["id"]
    assert facts["arrays"]["query_embed"]["shape"] == [1500, 6]
    assert facts["arrays"]["query_embed"]["raw_bytes"] == 1500 * 6 * 4
    assert facts["arrays"]["query_embed"]["stored_bytes"] == sum(
        min(path.stat().st_size, path.stat().st_blocks * 512) for path in shards if path.is_file()
    )
    assert facts["table_bytes"] == sum(path.stat().st_size for path in parts)
    assert facts["provenance"]["model"] == "m7"


def test_info_of_an_incomplete_store(killed: Path) -> None:
    """`info` reports an unfinished run, the rows in open segments, and a remedy."""
    result = run("info", killed)
    assert result.exit_code == 0
    for words in (
        "incomplete",
        "1,100 rows",
        "76 in open segments",
        "all of them are safe",
        "zarrow finalize",
    ):
        assert words in result.output


def test_head_shows_columns_and_how_vectors_begin(store: Path) -> None:
    """`head` shows the first rows as they are, brackets included, and the first values of their vectors."""
    result = run("head", store, "-n", 2)
    assert result.exit_code == 0
    assert "[b]1[/b]" in result.output
    assert "[6 7 8 9 …]" in result.output
    assert "[b]2[/b]" not in result.output


def test_head_names_columns_that_do_not_fit(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a narrow terminal `head` leaves columns out and names them; --columns chooses others."""
    monkeypatch.setattr("zarrow._commands.show_store.out", Console(width=40))
    narrow = CliRunner().invoke(app, ["head", str(store)])
    assert "no room for: " in narrow.output
    assert "sample_index" in narrow.output
    asked = CliRunner().invoke(app, ["head", str(store), "--columns", "row"])
    assert "no room for" not in asked.output


def test_head_of_an_unknown_column_suggests_another(store: Path) -> None:
    """A misspelt column gives one line with the correct name, and exit code 2."""
    result = run("head", store, "--columns", "nme")
    assert result.exit_code == 2
    assert "name" in result.stderr


def test_head_json_has_whole_rows(store: Path) -> None:
    """`head --json` prints one object per row, with the whole vectors."""
    rows = json.loads(run("head", store, "-n", 2, "--json").output)
    assert [row["id"] for row in rows] == [0, 1]
    assert len(rows[1]["query_embed"]) == 6


def test_schema_names_columns_keys_and_arrays(store: Path) -> None:
    """`schema` shows types, keys and shapes, as a table and as JSON."""
    result = run("schema", store)
    assert result.exit_code == 0
    assert re.search(r"id +int64 +key", result.output)
    assert re.search(r"query_embed +1,500 × 6 float32 +array", result.output)
    facts = json.loads(run("schema", store, "--json").output)
    assert facts["columns"][0] == {"name": "id", "type": "int64", "nullable": False, "key": True}
    assert facts["arrays"][0]["shape"] == [1500, 6]


def test_sql_runs_a_query(store: Path) -> None:
    """`sql` prints a table, JSON or CSV; what DuckDB refuses is one line."""
    query = "SELECT id, id * 2 AS double FROM predictions WHERE id IN (3, 7) ORDER BY id"
    assert re.search(r"7 +14", run("sql", store, query).output)
    assert json.loads(run("sql", store, query, "--json").output)[1] == {"id": 7, "double": 14}
    assert run("sql", store, query, "--csv").output.splitlines() == ['"id","double"', "3,6", "7,14"]
    for wrong in ("SELECT nothing FROM predictions", "SELEC 1", "SELECT * FROM elsewhere"):
        refused = run("sql", store, wrong)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("error: ")
        assert len(refused.stderr.splitlines()) == 1


def test_remove_removes_derived_arrays_only(store: Path) -> None:
    """`remove` takes a derived array; columns and arrays of the run stay, and names are suggested."""
    zarrow.add_array(store, "twice", np.asarray(zarrow.open(store)["query_embed"]) * 2)
    for name in ("query_embed", "id"):
        refused = run("remove", store, name)
        assert refused.exit_code == 1
        assert "only derived arrays" in refused.stderr
    unknown = run("remove", store, "twoce")
    assert unknown.exit_code == 2
    assert "twice" in unknown.stderr
    assert run("remove", store, "twice").exit_code == 0
    assert not zarrow.open(store).derived


def test_finalize_completes_a_killed_run(killed: Path) -> None:
    """`finalize` completes a store with the accepted rows; a second time, it changes nothing."""
    assert run("finalize", killed).exit_code == 0
    assert zarrow.open(killed).num_rows == 1100
    manifest = (killed / "manifest.json").read_bytes()
    again = run("finalize", killed)
    assert again.exit_code == 0
    assert "already" in again.output
    assert (killed / "manifest.json").read_bytes() == manifest


def test_finalize_of_fewer_rows_asks_for_partial(tmp_path: Path) -> None:
    """`finalize` refuses to complete a store that lacks rows; with --partial it does, and `info` says so."""
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path, expected_rows=10_037) as writer:
        writer.append({"id": np.arange(4480)})
        writer.close()
    refused = run("finalize", path)
    assert refused.exit_code != 0
    assert "4,480 of 10,037 rows" in " ".join(refused.output.split())
    assert "--partial" in refused.output
    assert "4,480 of 10,037 rows" in run("info", path).output
    assert "zarrow finalize --partial" in run("info", path).output
    assert "4,480 of 10,037 rows" in run("finalize", path, "--partial").output
    shown = run("info", path).output
    assert "finalized without all rows, 4,480 of 10,037 rows" in " ".join(shown.split())
    assert json.loads(run("info", path, "--json").output)["expected_rows"] == 10_037
    attributes = xr.open_dataset(path).attrs
    assert attributes["rows"] == "4,480 of 10,037 rows"


@pytest.mark.parametrize("command", ["info", "head", "finalize"])
def test_a_path_without_a_store_is_refused_and_left_alone(command: str, tmp_path: Path) -> None:
    """A path without a store gives one line and exit code 2, and creates no file."""
    other = tmp_path / "other"
    other.mkdir()
    for path in (tmp_path / "missing.zarrow", other):
        result = run(command, path)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == [other]


def test_damage_is_exit_code_1(store: Path) -> None:
    """A damaged store is a failure, not a usage error."""
    text = (store / "zarrow.json").read_bytes()
    (store / "zarrow.json").write_bytes(text.replace(b"query_embed", b"query_embee"))
    result = run("info", store)
    assert result.exit_code == 1
    assert "zarrow.json" in result.stderr


def test_commands_are_listed_and_wrong_ones_refused() -> None:
    """Without arguments the commands are listed; an unknown command gives exit code 2."""
    listed = run()
    for command in ("demo", "predict", "info", "head", "finalize"):
        assert command in listed.output
    assert run("nonsense").exit_code == 2
    assert "zarrow" in run("--version").output


def test_help_has_a_panel_per_file() -> None:
    """The panels of `zarrow --help` are the files of the room, in the order in which a store is used."""
    panels = re.findall(r"^╭─ (\w+) ", run("--help").output, re.MULTILINE)
    assert panels == ["Options", "Run", "Look", "Keep", "Move", "Analyse", "Draw"]
    files = Path(zarrow.__file__).parent / "_commands"
    assert all((files / f"{panel.lower()}.py").exists() for panel in panels[1:])


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_help_fits_a_terminal(command: str) -> None:
    """Every `--help` text fits 80 columns."""
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_names_are_comma_separated(store: Path) -> None:
    """Blanks around names and a trailing comma are ignored."""
    assert (
        run("head", store, "--columns", " row , id,").output
        == run("head", store, "--columns", "row,id").output
    )


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", "from zarrow.__main__ import main; main()", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_process_answers_without_torch(store: Path) -> None:
    """`info` runs in a process of its own, prints no traceback for an error, and loads no torch."""
    found = python("info", store, "--json", cwd=store.parent)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["rows"] == 1500
    missing = python("info", "missing.zarrow", cwd=store.parent)
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
    code = "import sys, zarrow.cli; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def damage(store: Path) -> Path:
    """Flip a bit of the first segment's shard, and return the store."""
    path = store / "embeddings.zarr/query_embed/c/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return store


def test_verify_says_what_is_wrong(store: Path, killed: Path, tmp_path: Path) -> None:
    """`verify` gives exit code 0 and a summary, 1 and every finding, or 2 without a store."""
    result = run("verify", store, "--level", "full")
    assert result.exit_code == 0
    assert "sound; 1,500 rows in 2 segments, complete" in result.output
    assert "level: full); nothing found" in result.output
    result = run("verify", killed)
    assert result.exit_code == 0
    assert "incomplete, with 76 more rows, which are safe, in open segments" in result.output
    result = run("verify", damage(store))
    assert result.exit_code == 1
    assert "damaged; 1,500 rows" in result.output
    assert "1 damaged part" in result.output
    assert "damage: embeddings.zarr/query_embed/c/0/0 (rows 0 to 1023): " in result.output
    assert f"zarrow repair {store} --dry-run" in result.output
    assert run("verify", store, "--level", "structure").exit_code == 0
    assert run("verify", tmp_path / "nothing").exit_code == 2
    assert run("verify", store, "--level", "vague").exit_code == 2


def test_verify_json_is_one_object(store: Path) -> None:
    """`verify --json` prints findings as values, with the same exit code."""
    result = run("verify", damage(store), "--json")
    assert result.exit_code == 1
    facts = json.loads(result.output)
    assert (facts["ok"], facts["counts"]["damage"]) == (False, 1)
    assert facts["findings"][0]["rows"] == [0, 1024]


def test_repair_says_what_it_would_do_then_does_it(store: Path) -> None:
    """`repair --dry-run` changes nothing; `repair` names the next step, and then `verify` passes."""
    assert "nothing to repair" in run("repair", store).output
    damage(store)
    result = run("repair", store, "--dry-run")
    assert result.exit_code == 1
    for words in (
        "nothing was changed",
        "would be set aside: segments/00000000.json (rows 0 to 1,023)",
        "to predict again: 1,024 rows",
        f"to do this: zarrow repair {store}",
    ):
        assert words in result.output
    assert run("verify", store).exit_code == 1
    result = run("repair", store)
    assert result.exit_code == 0
    for words in (
        "repaired",
        "→ quarantine/00000000-0: ",
        "moved: 476 sound rows",
        f"zarrow finalize --partial {store}",
    ):
        assert words in result.output
    assert run("verify", store, "--level", "full").exit_code == 0
    assert run("finalize", "--partial", store).exit_code == 0
    assert zarrow.open(store).table(["id"])["id"].to_pylist() == list(range(1024, 1500))


def test_repair_says_how_to_go_on_without_a_manifest(store: Path) -> None:
    """A store that lost only its manifest is incomplete, and `repair` says how to complete it."""
    (store / "manifest.json").write_bytes(b"{}")
    result = run("repair", store)
    assert (
        f"the store is incomplete: resume its run, or complete it as it is: zarrow finalize {store}"
        in result.output
    )
    assert run("finalize", store).exit_code == 0
    assert len(zarrow.open(store)) == 1500
    assert "quarantine: 1 entry that" in run("verify", store).output


def test_repair_json_is_one_object(store: Path) -> None:
    """`repair --finalize --json` completes the store and lists what it did as values."""
    result = run("repair", damage(store), "--finalize", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert (facts["finalized"], facts["set_aside"][0]["rows"], facts["before"]["ok"]) == (
        True,
        [0, 1024],
        False,
    )
    assert zarrow.open(store).complete


@pytest.mark.slow
def test_predict_runs_a_users_own_module(tmp_path: Path) -> None:
    """`predict` finds a module in the working directory and writes a complete store, where --store says."""
    (tmp_path / "mine.py").write_text(USER_MODULE)
    config = "model: {class_path: mine.Model, init_args: {hidden: 16}}\n"
    config += "writer: {keys: [prob], path: other.zarrow}\n"
    (tmp_path / "config.yaml").write_text(config + "trainer: {accelerator: cpu}\n")
    done = python(
        *("predict", "--store", "run.zarrow", "--config", "config.yaml", "--data", "mine.Data"),
        *("--data.rows", 30),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    store = zarrow.open(tmp_path / "run.zarrow")
    assert (store.num_rows, store["query_embed"].shape, store.keys) == (30, (30, 16), ("prob",))
    assert store["query_embed"][29].tolist() == [29 * 4.0] * 16
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"config.yaml", "mine.py", "run.zarrow"}


@pytest.mark.slow
def test_predict_says_what_ctrl_c_leaves(tmp_path: Path) -> None:
    """Ctrl-C of `predict` says how many rows are safe, exits with 130, and --resume goes on."""
    step = "def predict_step(self, batch):\n"
    slow = USER_MODULE.replace(step, f"{step}        time.sleep(0.05)\n")
    (tmp_path / "mine.py").write_text("import time\n" + slow)
    words = [sys.executable, "-m", "zarrow", "predict", "--store", "run.zarrow"]
    words += ["--model", "mine.Model", "--data", "mine.Data", "--data.rows", "800"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}"}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run.zarrow/zarrow.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    rows = zarrow.open(tmp_path / "run.zarrow", partial=True).num_rows
    assert 0 < rows < 800
    assert f"run.zarrow: {rows:,} rows are safe; go on with --resume\ninterrupted\n" in errors
    assert "Traceback" not in errors
    done = subprocess.run([*words, "--resume"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert zarrow.open(tmp_path / "run.zarrow").num_rows == 800


def test_predict_refuses_an_existing_store(store: Path) -> None:
    """`predict` into an existing store gives exit code 1, and the store is unchanged."""
    (store.parent / "mine.py").write_text(USER_MODULE)
    module = ["--model", "mine.Model", "--data", "mine.Data", "--trainer.accelerator", "cpu"]
    refused = python("predict", "--store", store, *module, cwd=store.parent)
    assert refused.returncode == 1
    assert "there is a store already: --writer.resume true" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert zarrow.open(store).num_rows == 1500


@pytest.mark.slow
def test_predict_of_an_unknown_model_is_a_usage_error(tmp_path: Path) -> None:
    """A model that cannot be imported gives exit code 2, and no files are left."""
    wrong = python("predict", "--store", "run.zarrow", "--model", "nobody.Model", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "nobody" in wrong.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [KeyboardInterrupt(), RuntimeError("Query interrupted")])
def test_ctrl_c_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException) -> None:
    """Ctrl-C ends a command with one line and exit code 130, also in the middle of a query of DuckDB."""

    def interrupted(*_: object, **__: object) -> None:
        raise how

    monkeypatch.setattr(zarrow, "open", interrupted)
    result = run("describe", store)
    assert (result.exit_code, result.output) == (130, "interrupted\n")
