"""Analysis commands — ``zarrow describe`` to ``zarrow compare``, as a user and a script see them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import zarrow
import zarrow.testing
from zarrow._commands import terminal
from zarrow.cli import app


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A console reads the terminal's width when it is created."""
    monkeypatch.setattr(terminal.out, "_width", 200)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(zarrow.testing.example_predictions(tmp_path_factory.mktemp("cli") / "run.zarrow").path)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def test_describe(path):
    """Vectors, columns and groups, with words that explain themselves."""
    text = run("describe", path, "--by", "query")
    for word in ("query_embed  5,000 × 8 float32", "effective rank", "of 8 dimensions", "code//9", "nulls"):
        assert word in text
    found = as_json("describe", path, "--columns", "occurs")
    assert found["columns"][0]["nulls"] == 500
    assert found["arrays"]["query_embed"]["nonfinite_rows"] == 0


def test_nearest(path, tmp_path):
    """By row, by key and by vector the same rows are found, with their columns."""
    by_row = as_json("nearest", path, "--rows", "37", "-k", "3")
    time = zarrow.open(path).table(["prediction_time"])["prediction_time"][37]
    by_key = as_json(
        "nearest", path, "-k", 3,
        "--key", "subject_id=0", "--key", "query=code//7", "--key", f"prediction_time={time}",
    )  # fmt: skip
    np.save(tmp_path / "v.npy", zarrow.open(path)["query_embed"][37:38])
    by_vector = as_json("nearest", path, "--vectors", tmp_path / "v.npy", "-k", "3")
    assert by_row["table"] == by_key["table"] == by_vector["table"]
    assert by_row["table"][0]["row"] == 37
    text = run("nearest", path, "--rows", "37", "--where", "query=code//3", "--where", "occurs_prob>0.5")
    assert len(re.findall("code//3", text)) == 10


def test_neighbours(path):
    """The index reports its recall, and --approximate uses it."""
    assert "of the true 10 nearest" in run("neighbours", path)
    assert as_json("neighbours", path)["recall"] > 0.9
    exact, found = (as_json("nearest", path, "--rows", "37", *more) for more in ([], ["--approximate"]))
    assert len(set(exact["neighbours"][0]["rows"]) & set(found["neighbours"][0]["rows"])) >= 8
    zarrow.verify(path)


def test_pca(path, tmp_path):
    """Shares of the variance add up, and --out writes the components."""
    found = as_json("pca", path, "--out", tmp_path / "pca.npz")
    assert sum(found["explained_variance_ratio"]) == pytest.approx(1)
    assert np.load(tmp_path / "pca.npz")["components_"].shape == (8, 8)
    assert "100.0%" in run("pca", path)


def test_probe(path):
    """How well the label is predicted, on held-out patients."""
    text = run("probe", path, "--label", "occurs", "--by", "query")
    assert re.search("tested on [89]..; no subject_id on both sides", text)
    assert "rows left out: 500 for no label" in text
    assert 0.7 < as_json("probe", path, "--label", "occurs", "--group", "")["overall"]["auroc"] < 0.9


def test_evaluate(path):
    """Stored probabilities, per query."""
    text = run("evaluate", path, "--label", "occurs", "--by", "query")
    assert "auroc" in text
    assert "code//9" in text
    found = as_json("evaluate", path, "--label", "occurs", "--where", "query!=code//0")
    assert found["overall"]["rows"] == 4500


def test_compose(path, tmp_path):
    """One row per subject and time, printed, and as a file."""
    run("compose", path, "--how", "or", "--label", "occurs", "--out", tmp_path / "c.parquet")
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 500
    assert as_json("compose", path)["rows"] == 500


def test_compare(path):
    """A store is equal to itself."""
    assert "5,000 rows in both" in run("compare", path, path, "--by", "query", "--probability", "occurs_prob")
    assert as_json("compare", path, path)["cka"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--label", "nope"], "no column 'nope'"),
        (["evaluate", "--label", "occurs", "--where", "nope>3"], "no column 'nope'"),
        (["evaluate", "--label", "occurs", "--where", "subject_id>x"], "'x' is not a value of column"),
        (["evaluate", "--label", "occurs", "--where", "what"], "--where must be like"),
        (["nearest"], "exactly one of --rows"),
        (["nearest", "--rows", "a"], "--rows takes row numbers"),
        (["nearest", "--rows", "5000"], "the store has 5000 rows, got 5000"),
        (["nearest", "--vectors", __file__], "takes a .npy file"),
        (["evaluate", "--label", "occurs", "--unit", "nope"], "no column 'nope'"),
        (["pca", "--out", "/nowhere/pca.npz"], "/nowhere: no such directory"),
        (["compose", "--out", "/nowhere/a.parquet"], "/nowhere: no such directory"),
        (["plot", "-o", "/nowhere/map.png"], "/nowhere: no such directory"),
        (["nearest", "--key", "subject_id"], "--key must be COLUMN=VALUE"),
        (["nearest", "--key", "subject_id=1"], "all of 'subject_id'"),
        (["probe", "--label", "query", "--array", "nope"], "no array 'nope'"),
    ],
)
def test_wrong_usage_is_one_clear_message(path, arguments, message):
    """No traceback, no answer, and an exit code that says so."""
    result = CliRunner().invoke(app, [arguments[0], path, *arguments[1:]], env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not result.stdout


def test_an_incomplete_store_is_named_as_one(tmp_path):
    """The rows so far are described, with a warning on standard error."""
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({"id": [1, 2]}, {"e": np.eye(2, dtype=np.float32)})
    result = CliRunner().invoke(app, ["describe", str(tmp_path / "a.zarrow"), "--json"])
    assert json.loads(result.stdout)["rows"] == 2
    assert "incomplete: 2 rows so far" in result.stderr


def test_interrupting_harms_nothing(path, monkeypatch):
    """Ctrl-C ends the command, not the store."""

    def interrupted(*_, progress, **__):
        progress(1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("zarrow.analysis.pca", interrupted)
    result = CliRunner().invoke(app, ["pca", path])
    assert result.exit_code != 0
    assert not result.stdout
    assert zarrow.verify(path).ok


@pytest.mark.parametrize("columns", [80, 40])
def test_a_narrow_terminal(path, monkeypatch, columns):
    """Every column is whole: those that do not fit follow below, with the keys again."""
    monkeypatch.setattr(terminal.out, "_width", columns)
    text = run("evaluate", path, "--label", "occurs", "--by", "query", "--bootstrap", "20")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    for name in ("labelled", "positives", "prevalence", "auroc, 95 %", "auprc", "brier", "ece", "accuracy"):
        assert re.search(rf"^query.*\s{name}(\s|$)", text, re.MULTILINE), name
    found = as_json("evaluate", path, "--label", "occurs", "--by", "query", "--bootstrap", "20")
    for group in found["groups"]:
        assert re.search(rf"^{group['query']} .*\s{group['accuracy']:.4g}(\s|$)", text, re.MULTILINE)


def test_times_and_large_numbers_can_be_read(tmp_path):
    """A time is a time, not its seconds since 1970, and 39,999 is not 4e+04."""
    times = np.datetime64("2026-01-01", "us") + np.arange(3) * np.timedelta64(1, "D")
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({"id": [0, 39_999, 7], "at": times}, {})
        writer.finalize()
    text = run("describe", tmp_path / "a.zarrow")
    for day in (1, 2, 3):
        assert f"2026-01-0{day} 00:00:00" in text
    assert re.search(r"^id .*\s39999(\s|$)", text, re.MULTILINE)
    assert "e+" not in text


def test_a_pipe_gets_one_line_per_row(path):
    """Nothing is wrapped or cut, and nothing but the answer is written."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment["PYTHONPATH"] = str(Path(zarrow.__file__).parents[1])
    command = "from zarrow.__main__ import main; main()"
    arguments = ["nearest", path, "--rows", "1234", "-k", "2"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    head, first, _ = done.stdout.splitlines()
    names = ["query_", "rank", "row", "score", "subject_id", "query", "occurs_prob"]
    assert [name for name in head.split() if name in names] == names
    assert "1234" in first.split()
    assert done.stderr == ""


def test_json_knows_no_nan(tmp_path):
    """A NaN among the columns of a neighbour is null in JSON."""
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({"score": [np.nan, np.inf]}, {"e": np.eye(2, dtype=np.float32)})
        writer.finalize()
    text = run("nearest", tmp_path / "a.zarrow", "--rows", "0", "--json")
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert [one["score"] for one in found["table"]] == [None, None]


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        (["compose", "--out"], "pyarrow.parquet.write_table"),
        (["pca", "--out"], "numpy.savez"),
        (["plot", "--kind", "norms", "-o"], "matplotlib.figure.Figure.savefig"),
    ],
)
def test_an_interrupted_file_is_the_one_that_was_there(path, tmp_path, monkeypatch, command, writes):
    """Ctrl-C while a file is written leaves the earlier one, and no half of the new one."""
    target = tmp_path / "a.png"
    target.write_bytes(b"earlier")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(writes, interrupted)
    result = CliRunner().invoke(app, [command[0], path, *command[1:], str(target)])
    assert result.exit_code == 130
    assert target.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_the_given_name(path, tmp_path):
    """No suffix is added to it, and the answer names it."""
    assert "written:" in run("pca", path, "--out", tmp_path / "components")
    assert np.load(tmp_path / "components")["components_"].shape == (8, 8)
