"""Texts — a store of sentences can be queried in words."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import zarrow
from zarrow.analysis import embed_texts
from zarrow.analysis._questions import texts
from zarrow.cli import app
from zarrow.errors import InvalidInputError, MissingExtraError

WORDS = ("class", "loop", "file", "test")


class Counting:
    """Stands for a sentence model: how often each of a few words occurs."""

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.array([[text.count(word) for word in WORDS] for text in texts], np.float32)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = types.ModuleType("counting_model")
    module.load_model = lambda device: Counting()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting_model", module)
    monkeypatch.setitem(texts.MODELS, len(WORDS), "counting_model")
    loops = ["a loop in a class", "a class", "read a file", "test a loop"]
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append({"text": loops}, {"embed": Counting().encode(loops)})
        writer.finalize()
    return tmp_path / "run.zarrow"


def test_nearest_to_a_text(store: Path) -> None:
    """`zarrow nearest --text` finds the row whose meaning is closest."""
    printed = CliRunner().invoke(
        app, ["nearest", str(store), "--text", "how do I define a class", "-k", "2", "--json"]
    )
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert [row["text"] for row in found["table"]] == ["a class", "a loop in a class"]


def test_bad_input(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text without a model, or a model of another width, is refused with the reason."""
    with pytest.raises(MissingExtraError, match=r"zarrow\[examples\]"):
        embed_texts(["x"], "no_such_model_here")
    with pytest.raises(InvalidInputError, match="not a sentence model"):
        embed_texts(["x"], "json")
    with pytest.raises(InvalidInputError, match="texts must be a list of texts"):
        embed_texts([" "], "counting_model")
    monkeypatch.delitem(texts.MODELS, len(WORDS))
    printed = CliRunner().invoke(app, ["nearest", str(store), "--text", "a class"])
    assert printed.exit_code == 1
    assert "no sentence model is known for vectors of 4 numbers" in printed.stderr
    command = ["nearest", str(store), "--text", "a class", "--model", "counting_model"]
    assert CliRunner().invoke(app, command).exit_code == 0
    command = ["nearest", str(store), "--text", "a class", "--rows", "1"]
    assert CliRunner().invoke(app, command).exit_code == 2
