"""First steps — what new users tried, and got wrong, from README and guides alone."""

from __future__ import annotations

import json
import logging
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import csv
from typer.testing import CliRunner, Result

import zarrow
from zarrow import analysis, transfer
from zarrow.cli import app
from zarrow.errors import (
    BatchError,
    IncompleteStoreError,
    InvalidInputError,
    KeyNotFoundError,
    MissingExtraError,
    UnknownNameError,
)
from zarrow.testing import example_predictions


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> zarrow.Store:
    """A store of 5,000 rows."""
    return example_predictions(tmp_path_factory.mktemp("steps") / "run.zarrow")


def test_a_missing_key_gives_no_row(store):
    """−1 is the last row to numpy, so a lookup that misses raises unless it is asked not to."""
    keys = {name: store.table([name])[name].slice(0, 2) for name in store.keys}
    assert store.locate(keys).tolist() == [0, 1]
    keys["subject_id"] = pa.array([0, 10**6])
    with pytest.raises(KeyNotFoundError, match="1 of 2 keys have no row: subject_id=1000000"):
        store["query_embed"][store.locate(keys)]
    assert store.locate(keys, missing=-1)[1] == -1


def test_keys_may_be_one_name(tmp_path):
    """Not its letters."""
    with zarrow.Writer(tmp_path / "one.zarrow", keys="id") as writer:
        writer.append({"id": [1, 2]}, {"e": np.ones((2, 2), "f4")})
        writer.finalize()
    assert zarrow.open(tmp_path / "one.zarrow").keys == ("id",)


@pytest.mark.parametrize("codecs", ["pcodek", {"e": "lz4"}, ["bitround", "zstdd"]])
def test_a_codec_that_does_not_exist_is_refused_before_the_first_batch(tmp_path, codecs):
    """And so is one whose package is missing."""
    with pytest.raises(InvalidInputError, match="codecs must be 'auto'"):
        zarrow.Writer(tmp_path / "x.zarrow", codecs=codecs)
    assert not (tmp_path / "x.zarrow").exists()


def test_a_codec_whose_package_is_missing_is_refused_before_the_first_batch(tmp_path, monkeypatch):
    """It says what to install."""
    from zarrow._format import codecs

    def missing(*_: object) -> None:
        raise MissingExtraError("codec 'pcodec' needs the package pcodec: pip install pcodec")

    monkeypatch.setattr(codecs, "_numcodec", missing)
    with pytest.raises(MissingExtraError, match="pip install pcodec"):
        zarrow.Writer(tmp_path / "x.zarrow", codecs="pcodec")


def predict(path: Path, fails_at: int | None, **options: Any) -> None:
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from zarrow.lightning import PredictionWriter

    class Model(pl.LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            if batch_idx == fails_at:
                raise RuntimeError("hour nine")
            return {"id": batch[0][:, 0], "e": batch[0]}

    loader = DataLoader(TensorDataset(torch.arange(40.0).reshape(20, 2)), batch_size=5)
    writer = PredictionWriter(path, keys="id", **options)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], **quiet)
    trainer.predict(Model(), loader, return_predictions=False)


def test_a_run_that_ended_says_what_the_same_again_does(tmp_path, caplog):
    """It predicts the rest, also if the first run was not told to resume; of no row nothing is said."""
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError):
        predict(tmp_path / "run.zarrow", 2)
    (said,) = (one.getMessage() for one in caplog.records if "rows are stored" in one.getMessage())
    assert said.endswith("10 of 20 rows are stored: predict again with resume=True, which predicts the rest")
    predict(tmp_path / "run.zarrow", None, resume=True)
    assert len(zarrow.open(tmp_path / "run.zarrow")) == 20
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError):
        predict(tmp_path / "run.zarrow", 2, mode="w")
    assert "predict again, which starts over" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError):
        predict(tmp_path / "other.zarrow", 0)
    assert "rows" not in caplog.text


def test_the_advice_for_an_unfinished_store_is_a_command_that_works(tmp_path):
    """Of a store that lacks rows, --partial is part of it."""
    with zarrow.Writer(tmp_path / "run.zarrow", expected_rows=10) as writer:
        writer.append({"id": [1]}, {"e": np.ones((1, 2), "f4")})
        writer.close()
    for command in (("export", "x.parquet"), ("report",), ("plot", "--out", "x.png")):
        result = run(command[0], tmp_path / "run.zarrow", *command[1:])
        assert result.exit_code != 0
        assert f"zarrow finalize --partial {tmp_path / 'run.zarrow'}" in words(result.output), result.output
    with pytest.raises(IncompleteStoreError, match="1 of 10 rows are safe"):
        zarrow.open(tmp_path / "run.zarrow")


def test_rows_in_a_spool_are_not_said_to_be_lost(tmp_path, monkeypatch):
    """Of a store in a bucket whose run was killed, the messages name the spools."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path))
    url = "memory://first-steps/run.zarrow"
    writer = zarrow.Writer(url, expected_rows=10)
    writer.append({"id": [1]}, {"e": np.ones((1, 2), "f4")})
    writer.flush()
    with pytest.raises(IncompleteStoreError, match="0 of 10 rows are safe, besides those in the spools"):
        zarrow.open(url)
    assert "safe in the spools of their machines" in words(run("info", url).output)
    writer.close()


def test_a_table_beside_an_array_may_be_csv(tmp_path):
    """As people have it who save arrays with np.save."""
    np.save(tmp_path / "vectors.npy", np.arange(8, dtype="f4").reshape(4, 2))
    csv.write_csv(pa.table({"id": [7, 5, 3, 1], "name": list("abcd")}), tmp_path / "rows.csv")
    made = tmp_path / "made.zarrow"
    result = run("import", tmp_path / "vectors.npy", made, "--beside", tmp_path / "rows.csv", "--keys", "id")
    assert result.exit_code == 0, result.output
    found = zarrow.open(made)
    assert found.table(["id", "name"]).to_pydict() == {"id": [7, 5, 3, 1], "name": list("abcd")}
    assert found["vectors"][found.locate([3])].tolist() == [[4, 5]]
    (tmp_path / "rows.csv").write_text("id\n1\n")
    with pytest.raises(InvalidInputError, match="the same number of rows"):
        transfer.import_(tmp_path / "vectors.npy", tmp_path / "x.zarrow", beside=tmp_path / "rows.csv")


def test_formats_that_are_none_lead_somewhere(tmp_path, store):
    """CSV to SQL, and files of torch.save to a Writer."""
    with pytest.raises(InvalidInputError, match="'zarrow sql"):
        transfer.export(store, tmp_path / "x.csv")
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches/0.pt").touch()
    for source in (tmp_path / "batches", tmp_path / "batches/0.pt"):
        with pytest.raises(InvalidInputError, match=r"torch\.load"):
            transfer.import_(source, tmp_path / "x.zarrow")


def test_what_join_yields_makes_a_store_to_share(tmp_path, store):
    """Some rows, without those who they are of; the row's number is to be left out."""
    writer = zarrow.Writer(tmp_path / "shared.zarrow")
    with pytest.raises(InvalidInputError, match="leave it out"):
        writer.append(*next(iter(store.join(columns=["row", "query"]))))
    writer.close()
    with zarrow.Writer(tmp_path / "shared.zarrow") as writer:
        for batch, found in store.join(filter=pc.field("query") == "code//3", columns=["query"]):
            writer.append(batch, found)
        writer.finalize()
    shared = zarrow.open(tmp_path / "shared.zarrow")
    assert shared.table(["query"])["query"].unique().to_pylist() == ["code//3"]


def test_projections_are_stored_and_any_two_numbers_are_no_map(tmp_path):
    """Pairs of row numbers and coordinates are refused in words; a map is what was stored as one."""
    pytest.importorskip("matplotlib")
    made = example_predictions(tmp_path / "run.zarrow")
    components = analysis.pca(made)
    with pytest.raises(BatchError, match="got a pair"):
        zarrow.add_array(made, "xy", components.project(made))
    zarrow.add_array(made, "xy", (xy[:, :2] for _, xy in components.project(made)))
    zarrow.add_array(made, "noise", np.random.default_rng(0).standard_normal((5000, 2)).astype("f4"))
    made = zarrow.open(made.path)
    assert made["xy"].shape == (5000, 2)
    from zarrow.analysis._pictures.map_cells import choose_map

    assert choose_map(made)[0].name not in ("xy", "noise")
    assert choose_map(made, "noise")[0].name == "noise"


def test_errors_of_commands_are_in_their_words(store, tmp_path):
    """Each option once, no word of a library's, and what SQL does not see is said."""
    name = store.path
    told = words(run("evaluate", name, "--probability", "occurs_prob", "--label", "nothing").output)
    assert "there is no column 'nothing'" in told
    made = tmp_path / "bare.zarrow"
    with zarrow.Writer(made) as writer:
        writer.append({"id": [1]}, {"e": np.ones((1, 2), "f4")})
        writer.finalize()
    told = words(run("evaluate", made).output)
    assert "name it with --probability; none has floating-point numbers" in told
    assert "Value error" not in run("plot", name, "--kind", "hist", "--out", "x.png").output
    told = words(run("sql", name, "SELECT row, query_embed FROM predictions").output)
    assert "query_embed is an array, which SQL does not see" in told
    told = words(run("nearest", name, "--key", "subject_id=3").output)
    assert "a key of this store has all of" in told


def test_help_of_the_package_works_whatever_is_installed():
    """It imports what `dir` lists, which leaves out what cannot be imported."""
    assert "zarrow" in pydoc.render_doc(zarrow)
    code = (
        "import sys, pydoc; sys.modules.update(dict.fromkeys(['lightning', 'ray', 'torch', 'xarray'])); "
        "import importlib.util as util; find = util.find_spec; "
        "util.find_spec = lambda name: None if sys.modules.get(name, 1) is None else find(name); "
        "import zarrow; pydoc.render_doc(zarrow); assert 'torch' not in dir(zarrow)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_are_those_on_the_disk(tmp_path):
    """A last chunk that is not full ends in a hole, so that a few rows of int8 take less than of float32."""
    sizes = {}
    for dtype in (None, "int8"):
        path = tmp_path / f"{dtype}.zarrow"
        dtypes = {} if dtype is None else {"e": dtype}
        with zarrow.Writer(path, dtypes=dtypes) as writer:
            vectors = np.random.default_rng(0).standard_normal((5000, 64)).astype("f4")
            writer.append({"id": range(5000)}, {"e": vectors})
            writer.finalize()
        facts = json.loads(run("info", path, "--json").output)
        sizes[dtype] = facts["arrays"]["e"]["stored_bytes"]
    assert sizes["int8"] < 0.4 * sizes[None] < 0.5 * 5000 * 64 * 4


def test_names_of_options_of_a_client_are_told():
    """As users of other clients guess them."""
    with pytest.raises(InvalidInputError, match=r"storage_options= takes obstore's names.*access_key_id"):
        zarrow.open("s3://results/run.zarrow", storage_options={"key": "me"})


def test_an_array_named_like_a_column_is_not_found_as_one(store):
    """It is told what makes an array of an output."""
    for ask in ({"filter": pc.field("query_embed") > 0}, {"columns": ["query_embed"]}):
        with pytest.raises(UnknownNameError, match=r"no column 'query_embed', but an array: a batch's"):
            store.table(**ask)


def test_a_word_leads_to_the_guides_that_have_it():
    """A person who looks for a word is told where it is."""
    told = words(run("docs", "privacy").output)
    assert "there is no guide 'privacy'; the word is in: " in told
    assert "compatibility" in told
