"""Options — what all commands share: ``--json``, ``--out``, and names that are nearly right."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import zarrow
import zarrow.testing
from zarrow._commands import terminal
from zarrow.cli import app

GROUP: Any = get_command(app)
FLAGS = {
    name: {flag for one in command.params for flag in one.opts}
    for name, command in GROUP.commands.items()
    if not command.hidden
}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 200)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(zarrow.testing.example_store(tmp_path / "run.zarrow").path)


def test_every_command_has_json_and_one_name_for_a_file() -> None:
    """Whatever a command answers, --json makes it readable by programs; what it writes is called --out."""
    assert [name for name, flags in FLAGS.items() if "--json" not in flags] == []
    assert [name for name, flags in FLAGS.items() if ("--out" in flags) != ("-o" in flags)] == []
    assert [name for name, flags in FLAGS.items() if "--output" in flags] == []


def test_json_is_one_document(store: Path, tmp_path: Path) -> None:
    """With --json the commands that change or move a store print one JSON document, with the true numbers."""
    target = tmp_path / "all.parquet"
    answers = [
        json.loads(run(*words, "--json"))
        for words in (
            ["finalize", store],
            ["index", store],
            ["map", store, "--name", "seen"],
            ["remove", store, "seen"],
            ["pack", store, "--codecs", "zstd"],
            ["export", store, target],
            ["import", target, tmp_path / "again.zarrow"],
            ["copy", store, tmp_path / "copy.zarrow"],
            ["docs", "resume"],
        )
    ]
    finalized, indexed, _, removed, packed, exported, imported, copied, page = answers
    rows = [one["rows"] for one in (finalized, indexed, packed, exported, imported, copied)]
    assert rows == [zarrow.open(store).num_rows] * 6
    assert indexed["distinct_keys"] == 5000
    assert removed["removed"] == "seen"
    assert packed["arrays"]["query_embed"]["codecs"] == ["bytes", "zstd"]
    assert exported["path"] == str(target)
    assert "--resume" in page["text"]
    assert "resume" in json.loads(run("docs", "--json"))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["descrive", "STORE"], "describe"),
        (["head", "STORE", "--colums", "query"], "--columns"),
        (["head", "STORE", "--columns", "qurey"], "query"),
        (["map", "STORE", "--array", "qurey_embed"], "query_embed"),
        (["remove", "STORE", "sene"], "seen"),
        (["pack", "STORE", "--codecs", "zst"], "zstd"),
        (["pack", "STORE", "--codecs", "qurey_embed=zstd"], "query_embed"),
        (["export", "STORE", "x", "--to", "parket"], "parquet"),
        (["export", "STORE", "x.parqet"], "parquet"),
        (["compare", "STORE", "STORE", "--on", "sample_idx"], "sample_index"),
        (["sql", "STORE", "SELECT querx FROM predictions"], "query"),
        (["docs", "resum"], "resume"),
        (["info", "STOR"], "run.zarrow"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(store: Path, words: list[str], meant: str) -> None:
    """A typo in a command, an option or a name of any kind is answered by what is like it."""
    zarrow.add_array(store, "seen", np.zeros((5000, 2), np.float32))
    given = [{"STORE": str(store), "STOR": f"{store}"[:-1]}.get(word, word) for word in words]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2), result.output
    hints = "[Dd]id you mean|Possible options|Candidate bindings"
    assert re.search(f"({hints}).*{re.escape(meant)}", result.output)


def test_messages_name_options_not_arguments(store: Path) -> None:
    """A remedy is the option of the command line, not the argument of the Python function."""
    assert "name columns with --by" in run("compose", store, "--over", "query", code=1)


def test_info_shows_provenance_in_lines(tmp_path: Path) -> None:
    """Nested provenance is shown in lines that a person reads, not as Python dictionaries."""
    facts = {"model": "m7", "predict": {"ranks": 2, "data": {"type": "Digits", "rows": 30}}}
    with zarrow.Writer(tmp_path / "run.zarrow", provenance=facts) as writer:
        writer.append({"id": [1]}, {"v": np.ones((1, 2), np.float32)})
        writer.finalize()
    shown = run("info", tmp_path / "run.zarrow")
    assert re.search(r"^  provenance  .* · model m7 *$", shown, re.MULTILINE)
    assert re.search(
        r"^  predict  +ranks 2 *\n  predict data  +type Digits · rows 30 *$", shown, re.MULTILINE
    )
