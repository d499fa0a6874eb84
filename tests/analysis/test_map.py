"""Maps — every row gets coordinates, and the same ones each time."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from typer.testing import CliRunner

import zarrow
from zarrow.analysis import map_rows, place_rows
from zarrow.analysis._questions.map import shares_of
from zarrow.cli import app
from zarrow.errors import InvalidInputError, MissingExtraError, UnknownNameError
from zarrow.store import Store
from zarrow.testing import example_store


def clusters(path: Path, rows: int = 400, width: int = 12, bad: tuple[int, ...] = ()) -> Store:
    """Rows of two groups, far apart; the second is small."""
    generator = np.random.default_rng(0)
    group = np.where(np.arange(rows) % 20 == 0, "rare", "common")
    vectors = generator.normal(size=(rows, width)) + np.where(group == "rare", 15, 0)[:, None]
    vectors[list(bad)] = np.nan
    with zarrow.Writer(path, segment_rows=1024) as writer:
        writer.append({"group": group.tolist()}, {"embed": vectors.astype(np.float32)})
        writer.finalize()
    return zarrow.open(path)


def test_pca_is_that_of_scikit_learn(tmp_path: Path) -> None:
    """Coordinates are the first two principal components, stored as a derived array."""
    store = example_store(tmp_path / "run.zarrow")
    made = map_rows(store)
    places = zarrow.open(store.path)["query_embed_pca"][:]
    expected = PCA(2).fit_transform(store["query_embed"][:].astype(np.float64))
    for axis in (0, 1):
        same = places[:, axis] * np.sign(places[0, axis]) - expected[:, axis] * np.sign(expected[0, axis])
        assert np.abs(same).max() < 1e-4
    assert made.sample_rows == 5000
    assert 0 < sum(made.explained_variance_ratio) < 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.timeout(280))])
def test_a_sample_and_the_others_lie_with_their_likes(tmp_path: Path, method: str) -> None:
    """Rows outside the sample are placed near their own group, and small groups are on the map."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        pytest.skip("needs the extra 'map'")
    store = clusters(tmp_path / "run.zarrow", bad=(3,))
    made, placed = place_rows(store, method=method, by="group", sample_rows=150)  # type: ignore[arg-type]
    places = np.concatenate([xy for _, xy in placed])
    assert places.shape == (400, 2)
    assert np.isnan(places[3]).all()
    known = np.isfinite(places).all(axis=1)
    assert known.sum() == 399
    assert made.sample_rows < 400
    rare = np.arange(400) % 20 == 0
    centre = places[rare].mean(axis=0)
    spread = np.linalg.norm(places[rare] - centre, axis=1).max()
    away = np.linalg.norm(places[known & ~rare] - centre, axis=1).min()
    assert away > spread
    again, placed = place_rows(store, method=method, by="group", sample_rows=150)  # type: ignore[arg-type]
    assert again == made
    assert np.array_equal(np.concatenate([xy for _, xy in placed]), places, equal_nan=True)


def test_a_sample_has_every_group() -> None:
    """A sample has every group, more rows of large ones, and about the size that was given."""
    sizes = np.array([1_000_000, 10, 0, 400, 60])
    shares = shares_of(sizes, 1000)
    assert shares[1] == 10
    assert shares[2] == 0
    assert (shares <= sizes).all()
    assert 990 <= shares.sum() <= 1000
    assert shares[0] > 800


def test_rows_that_are_not_finite_have_no_place(tmp_path: Path) -> None:
    """A row with a NaN gets NaN; the others are placed as without it."""
    store = clusters(tmp_path / "run.zarrow", bad=(0, 399))
    _, placed = place_rows(store)
    places = np.concatenate([xy for _, xy in placed])
    assert np.flatnonzero(np.isnan(places).any(axis=1)).tolist() == [0, 399]


def test_rows_of_one_number(tmp_path: Path) -> None:
    """Rows of a single number lie on a line."""
    store = clusters(tmp_path / "run.zarrow", width=1)
    _, placed = place_rows(store)
    assert (np.concatenate([xy for _, xy in placed])[:, 1] == 0).all()


def test_bad_input(tmp_path: Path) -> None:
    """What cannot be mapped is refused before anything is stored."""
    store = clusters(tmp_path / "run.zarrow", rows=10)
    with pytest.raises(InvalidInputError, match="method must be one of"):
        map_rows(store, method="magic")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="at least 20 rows"):
        map_rows(store, method="tsne")
    with pytest.raises(InvalidInputError, match="at least 20 rows"):
        map_rows(store, method="tsne", sample_rows=3)
    with pytest.raises(UnknownNameError, match="embd"):
        map_rows(store, "embd")
    said: list[str] = []
    with pytest.raises(InvalidInputError, match="needs a new name"):
        map_rows(store, name="embed", stage=said.append)
    with pytest.raises(InvalidInputError, match="the name of a derived array must be"):
        map_rows(store, name="a map", stage=said.append)
    with pytest.raises(UnknownNameError, match="no column 'nope'"):
        map_rows(store, by="nope", stage=said.append)
    assert said == []  # nothing was computed
    assert not (store.path / "derived").exists()


def test_rows_that_are_all_the_same(tmp_path: Path) -> None:
    """Identical rows are refused by t-SNE, which would crash on them; PCA puts them in one place."""
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({}, {"embed": np.ones((50, 4), np.float32)})
        writer.finalize()
    store = zarrow.open(tmp_path / "a.zarrow")
    with pytest.raises(InvalidInputError, match="50 of the sample are all the same: use method='pca'"):
        map_rows(store, method="tsne")
    places = np.concatenate([xy for _, xy in place_rows(store)[1]])
    assert (places == 0).all()


def test_very_long_rows(tmp_path: Path) -> None:
    """Rows whose squares would overflow get distinct places."""
    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32) * np.float32(1e30)
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({}, {"embed": vectors})
        writer.finalize()
    places = np.concatenate([xy for _, xy in place_rows(zarrow.open(tmp_path / "a.zarrow"), None, "tsne")[1]])
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == 40


def test_umap_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without umap-learn the error names the extra, before anything is computed."""
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"zarrow\[map\]"):
        map_rows(clusters(tmp_path / "run.zarrow"), method="umap")


def test_command(tmp_path: Path) -> None:
    """`zarrow map` stores the map and prints its name; --json prints one object."""
    store = clusters(tmp_path / "run.zarrow")
    printed = CliRunner().invoke(app, ["map", str(store.path)])
    assert printed.exit_code == 0, printed.output
    assert "embed_pca" in printed.stdout
    printed = CliRunner().invoke(app, ["map", str(store.path), "--name", "other", "--json"])
    assert json.loads(printed.stdout)["name"] == "other"
    assert sorted(zarrow.open(store.path).derived) == ["embed_pca", "other"]
    assert zarrow.verify(store.path).ok
    printed = CliRunner().invoke(app, ["map", str(store.path), "--array", "none"])
    assert printed.exit_code == 2
    assert "no array 'none'" in printed.stderr
