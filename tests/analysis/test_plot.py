"""Plots — they show what is in the store."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import zarrow
from zarrow.analysis import map_rows, plot
from zarrow.analysis._numbers.scores import Scores
from zarrow.analysis._pictures import row_map
from zarrow.analysis._pictures.curves import calibrate
from zarrow.analysis._pictures.map_cells import read_colour, read_map
from zarrow.cli import app
from zarrow.errors import InvalidInputError, UnknownNameError, WriteFailedError
from zarrow.store import Store
from zarrow.testing import example_predictions, example_store

HOSTILE = "$\\frac{1$ <script>alert(1)</script> & \u202e $"


def written(path: Path, columns: dict[str, object], vectors: np.ndarray, keys: tuple[str, ...] = ()) -> Store:
    with zarrow.Writer(path, keys=keys) as writer:
        writer.append(columns, {"embed": vectors})
        writer.finalize()
    return zarrow.open(path)


@pytest.mark.parametrize(
    "draw",
    [
        plot.map,
        lambda store: plot.map(store, colour="occurs_prob"),
        lambda store: plot.map(store, colour="query"),
        plot.norms,
        lambda store: plot.norms(store, by="query"),
        plot.roc,
        lambda store: plot.roc(store, by="query"),
        plot.calibration,
    ],
    ids=["map", "number", "category", "norms", "group norms", "roc", "group roc", "calibration"],
)
def test_files(draw: Callable[[Store], Figure], tmp_path: Path) -> None:
    """Each picture can be saved as a PNG that is not blank and as well-formed SVG."""
    figure = draw(example_predictions())
    plot.save(figure, tmp_path / "a.png")
    plot.save(figure, tmp_path / "a.svg")
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.02
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("svg")
    assert (tmp_path / "a.svg").stat().st_size < 500_000


def test_no_global_state() -> None:
    """Drawing leaves matplotlib's settings and figures as they were."""
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    plot.norms(example_store())
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_roc_says_the_exact_area() -> None:
    """The legend's AUROC is scikit-learn's."""
    store = example_predictions()
    table = store.table(["occurs", "occurs_prob"]).drop_null()
    expected = roc_auc_score(table["occurs"].to_numpy(), table["occurs_prob"].to_numpy())
    (legend,) = [text.get_text() for text in plot.roc(store).axes[0].get_legend().get_texts()]
    assert legend == f"all rows: AUROC {expected:.3f}"


def test_calibration_groups() -> None:
    """Groups are about equally large, never split equal probabilities, and their means are right."""
    generator = np.random.default_rng(0)
    probability = np.round(generator.beta(0.3, 8, 5000), 3)
    label = generator.random(5000) < probability
    found = calibrate(Scores.of(label, probability), 10)
    assert found.rows.sum() == 5000
    assert len(found.rows) > 5
    assert np.average(found.predicted, weights=found.rows) == pytest.approx(probability.mean())
    assert np.average(found.observed, weights=found.rows) == pytest.approx(label.mean())
    assert (found.low <= found.observed).all()
    assert (found.observed <= found.high).all()
    assert (np.diff(found.predicted) > 0).all()


def test_drift(tmp_path: Path) -> None:
    """The dimension and the groups that moved come first; stores that cannot be compared are refused."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 5)).astype(np.float32)
    columns = {"id": np.arange(200), "group": ["a", "b"] * 100}
    moved = vectors.copy()
    moved[:, 3] += 2
    moved[1::2] += 1
    old = written(tmp_path / "old.zarrow", columns, vectors, ("id",))
    new = written(tmp_path / "new.zarrow", columns, moved, ("id",))
    figure = plot.drift(old, new, on="id", by="group")
    plot.save(figure, tmp_path / "a.svg")
    left, right = figure.axes
    drifts = left.get_lines()[0].get_ydata()
    assert drifts[0] == max(drifts) > 2
    assert [text.get_text() for text in right.get_yticklabels()] == ["b", "a"]
    narrow = written(tmp_path / "narrow.zarrow", columns, vectors[:, :2], ("id",))
    with pytest.raises(InvalidInputError, match="different widths"):
        plot.drift(old, narrow, on="id")
    others = written(tmp_path / "others.zarrow", {**columns, "id": np.arange(900, 1100)}, vectors, ("id",))
    with pytest.raises(InvalidInputError, match="share 0 rows"):
        plot.drift(old, others, on="id")
    command = ["plot", str(old.path), "--kind", "drift", "-o", str(tmp_path / "b.png")]
    assert "name it with --other" in CliRunner().invoke(app, command).stderr
    printed = CliRunner().invoke(app, [*command, "--other", str(new.path), "--on", "id", "--by", "group"])
    assert printed.exit_code == 0, printed.output
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_many_rows_become_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit a map counts all rows in cells and colours by their mean."""
    monkeypatch.setattr(row_map, "MAX_POINTS", 1000)
    store = example_predictions()
    figure = plot.map(store)
    (image,) = figure.axes[0].get_images()
    assert image.get_array().sum() == 5000
    (image,) = plot.map(store, colour="occurs_prob").axes[0].get_images()
    assert 0 <= image.get_array().min() <= image.get_array().max() <= 1
    assert len(plot.map(store, colour="query").axes[0].get_images()) == 1


def test_a_notebook_shows_a_figure() -> None:
    """A figure gives a notebook its picture, and the size to show it in."""
    figure = plot.norms(example_predictions())
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size["width"] == round(figure.get_size_inches()[0] * 100)


def test_a_stored_map_is_drawn(tmp_path: Path) -> None:
    """A stored map is drawn."""
    store = example_store(tmp_path / "run.zarrow")
    map_rows(store, name="mine")
    store = zarrow.open(store.path)
    points = plot.map(store).axes[0].collections[0].get_offsets()
    assert np.allclose(np.sort(points, axis=0), np.sort(store["mine"][:], axis=0))


def test_few_odd_rows(tmp_path: Path) -> None:
    """Ten rows, some NaN, some zero, with hostile names, are drawn and counted."""
    vectors = np.eye(10, 4, dtype=np.float32)
    vectors[3] = np.nan
    names = [HOSTILE, *"abcdefghi"]
    labels = [True, False, None] * 3 + [True]
    columns = {HOSTILE: names, "prob": np.linspace(0, 1, 10), "label": labels}
    store = written(tmp_path / "run.zarrow", columns, vectors)
    for number, figure in enumerate(
        [plot.map(store, colour=HOSTILE), plot.norms(store, by=HOSTILE), plot.roc(store, by=HOSTILE),
         plot.calibration(store, by=HOSTILE)]
    ):  # fmt: skip
        plot.save(figure, tmp_path / f"{number}.svg")
        ElementTree.parse(tmp_path / f"{number}.svg")
    note = [text.get_text() for text in plot.norms(store).axes[0].texts]
    assert any("1 with NaN or infinity left out; 6 of length 0" in text for text in note)


def test_bad_input(tmp_path: Path) -> None:
    """What cannot be drawn is refused, with the reason."""
    store = example_store()
    with pytest.raises(InvalidInputError, match="cannot tell which column holds the label of each row"):
        plot.roc(store)
    with pytest.raises(UnknownNameError, match="nope"):
        plot.map(store, colour="nope")
    with pytest.raises(InvalidInputError, match="two values per row"):
        plot.map(zarrow.open(one_class(tmp_path).path), "wide")
    with pytest.raises(InvalidInputError, match="both classes"):
        plot.roc(one_class(tmp_path))
    with pytest.raises(InvalidInputError, match=r"must end in \.png"):
        plot.save(plot.norms(store), tmp_path / "a.jpeg")
    with pytest.raises(WriteFailedError, match="no such directory"):
        plot.save(plot.norms(store), tmp_path / "none" / "a.png")
    nothing = written(tmp_path / "nan.zarrow", {"x": [1, 2]}, np.full((2, 3), np.nan, np.float32))
    with pytest.raises(InvalidInputError, match="no row without NaN"):
        plot.norms(nothing)


def one_class(tmp_path: Path) -> Store:
    path = tmp_path / "one.zarrow"
    if not path.exists():
        columns = {"prob": np.linspace(0, 1, 8), "label": [True] * 8}
        written(path, columns, np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
        zarrow.add_array(path, "wide", np.zeros((8, 3)))
    return zarrow.open(path)


def test_commands(tmp_path: Path) -> None:
    """`zarrow plot` writes the file and says so; options that do not fit the kind are refused."""
    path = str(example_predictions().path)
    target = str(tmp_path / "a.png")
    for kind in ("map", "norms", "roc", "calibration"):
        printed = CliRunner().invoke(app, ["plot", path, "--kind", kind, "-o", target, "--json"])
        assert printed.exit_code == 0, printed.output
        assert json.loads(printed.stdout)["kind"] == kind
    printed = CliRunner().invoke(app, ["plot", path, "--kind", "roc", "--colour", "query", "-o", target])
    assert printed.exit_code == 1
    assert "not --colour" in printed.stderr
    printed = CliRunner().invoke(app, ["plot", path, "-o", str(tmp_path / "a.gif")])
    assert printed.exit_code == 1
    assert "must end in" in printed.stderr


def test_many_rare_categories_do_not_hide_the_frequent_one(tmp_path: Path) -> None:
    """A cell has the colour of its most frequent category even if all rare ones together are more."""
    names = ["often"] * 40 + [f"rare {number}" for number in range(60)]
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({"name": names}, {"e": np.zeros((100, 2), np.float32)})
        writer.finalize()
    store = zarrow.open(tmp_path / "a.zarrow")
    for rows, wanted in ((slice(None), "often"), (slice(40, None), "41 others")):
        colour = read_colour(store, "name", 1000)
        with zarrow.Writer(tmp_path / f"{wanted}.zarrow") as writer:
            writer.append({"name": names[rows]}, {"e": np.zeros((len(names[rows]), 2), np.float32)})
            writer.finalize()
        some = zarrow.open(tmp_path / f"{wanted}.zarrow")
        (code,) = read_map(some, some["e"], [colour], 0).colours["name"]
        assert colour.labels[int(code)] == wanted


def test_categories_have_a_colour_each(tmp_path: Path) -> None:
    """Up to twenty values have a colour of their own, booleans included; more numbers are a scale."""
    rows = np.arange(100)
    columns = {"digit": rows % 10, "score": rows, "yes": rows % 2 == 0}
    store = written(tmp_path / "a.zarrow", columns, np.ones((100, 2), np.float32))
    assert read_colour(store, "digit", 1000).labels == [str(digit) for digit in range(10)]
    assert read_colour(store, "yes", 1000).labels == ["False", "True"]
    assert read_colour(store, "score", 1000).labels == []
    figure = plot.map(store, colour="digit")
    handles = figure.axes[0].get_legend().legend_handles
    assert len({handle.get_color() for handle in handles}) == 10


def test_vectors_of_one_length_are_drawn(tmp_path: Path) -> None:
    """Normalized vectors, whose lengths differ by rounding only, are one bar on a readable axis."""
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = written(tmp_path / "a.zarrow", {"x": np.arange(500)}, vectors)
    low, high = plot.norms(store).axes[0].get_xlim()
    assert 0.8 < low < 0.95 < 1.05 < high < 1.2
