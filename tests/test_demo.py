"""Demo — what it stores and draws, and that it survives being killed."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch.utils.data import DataLoader

import zarrow
from zarrow import demo
from zarrow.errors import InvalidInputError, StoreExistsError, ZarrowError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> demo.Summary:
    out = tmp_path_factory.mktemp("demo") / "digits.zarrow"
    return demo.run(out, 2500, console=Console(file=io.StringIO()))


def predictions(checkpoint: Path, rows: int) -> dict[str, np.ndarray]:
    """Predict, without zarrow, the rows of a demo with these weights."""
    model = demo.DigitsModel.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    found: dict[str, list[np.ndarray]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for batch in DataLoader(demo.DigitImages(rows), batch_size=demo.BATCH_ROWS):
                for name, values in model.predict_step(batch).items():
                    found.setdefault(name, []).append(values.numpy())
    finally:
        torch.set_num_threads(threads)
    return {name: np.concatenate(values) for name, values in found.items()}


def assert_holds_predictions(path: Path, checkpoint: Path, rows: int) -> None:
    """Assert that a complete store holds what the model predicts, bit by bit and row by row."""
    store = zarrow.open(path)
    expected = predictions(checkpoint, rows)
    np.testing.assert_array_equal(np.asarray(store["query_embed"]), expected.pop("query_embed"))
    table = store.table()
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    identifiers = demo.DigitImages(rows).identifiers()
    assert table.select(identifiers.column_names).to_pydict() == identifiers.to_pydict()
    assert table["sample_index"].to_pylist() == list(range(rows))


def test_the_store_holds_what_the_model_predicts(summary: demo.Summary) -> None:
    """Every row has its identifiers, probabilities and vector, as predicted without zarrow."""
    assert_holds_predictions(summary.store, summary.checkpoint, 2500)


def test_rows_are_what_a_reader_expects(summary: demo.Summary) -> None:
    """Probabilities sum to one, the key is unique, and the split keeps an image's copies together."""
    table = zarrow.open(summary.store).table().to_pandas()
    np.testing.assert_allclose(table[[f"prob_{digit}" for digit in range(10)]].sum(axis=1), 1, rtol=1e-5)
    assert not table.duplicated(["image_id", "augmentation"]).any()
    assert (table.groupby("image_id")["split"].nunique() == 1).all()
    assert summary.accuracy == pytest.approx(
        (table["label"] == table["predicted"])[table["split"] == "test"].mean()
    )
    assert summary.accuracy > 0.5


def test_the_picture_is_drawn(summary: demo.Summary) -> None:
    """The picture is next to the store and shows all ten colours."""
    picture = imread(summary.picture)
    assert summary.picture == summary.store.with_suffix(".png")
    assert picture.shape[0] > 500
    seen = {tuple(colour) for colour in (picture[..., :3].reshape(-1, 3) * 255).round().astype(int).tolist()}
    for colour in demo.COLOURS:
        assert tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5)) in seen


def test_a_second_demo_is_refused_before_it_trains(summary: demo.Summary) -> None:
    """A demo at the path of an earlier one is refused at once, and leaves it unchanged."""
    before = summary.checkpoint.stat().st_mtime_ns
    with pytest.raises(StoreExistsError, match="overwrite"):
        demo.run(summary.store, 100)
    assert summary.checkpoint.stat().st_mtime_ns == before
    with pytest.raises(InvalidInputError, match="at least 4 rows"):
        demo.run(summary.store.with_name("none.zarrow"), 3)
    with pytest.raises(InvalidInputError, match="at least 1 row"):
        demo.DigitImages(0)


def test_rows_do_not_depend_on_how_many_there_are() -> None:
    """Row 2,000 is the same picture in a demo of 2,001 rows and in one of 20,000."""
    one, other = demo.DigitImages(2001)[2000], demo.DigitImages(20_000)[2000]
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
    assert demo.DigitImages(2001).identifiers().equals(demo.DigitImages(20_000).identifiers().slice(0, 2001))


def test_a_killed_demo_is_resumed_with_the_same_rows(tmp_path: Path) -> None:
    """SIGKILL in the middle of predicting, then resume: the store holds what an undisturbed demo has."""
    out, rows = tmp_path / "digits.zarrow", 6000
    environment = {**os.environ, "PYTHONPATH": str(Path(zarrow.__file__).parents[1])}
    command = f"from zarrow import demo; from pathlib import Path; demo.run(Path({str(out)!r}), {rows})"
    process = subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and accepted(out) < 1000:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = accepted(out)
    assert 1000 <= before < rows
    written = io.StringIO()
    demo.run(out, resume=True, console=Console(file=written, width=200))
    assert f"of {rows:,} rows were accepted" in written.getvalue()
    assert_holds_predictions(out, out.with_suffix(".ckpt"), rows)


def accepted(out: Path) -> int:
    try:
        return zarrow.open(out, partial=True).num_rows
    except ZarrowError:
        return 0  # it has not started
