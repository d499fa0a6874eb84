"""Several stores in one view — each answer is that of the tables and arrays put one behind the other."""

import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import zarrow
import zarrow.testing
from zarrow import analysis
from zarrow.cli import app
from zarrow.errors import IncompleteStoreError, InvalidInputError, UnknownNameError

GUIDE = Path(__file__).parents[1] / "examples/guides/several-models.md"
ROWS = {"a": 23, "b": 1, "c": 41}
PROB, NAME, MODEL, ROW = (pc.field(name) for name in ("prob", "name", "model", "row"))


def write(
    path: Path, rows: int, seed: int, *, width: int = 3, finalize: bool = True, **more: np.ndarray
) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(exist_ok=True)
    with zarrow.Writer(path, segment_rows=8, keys=["id"], mode="w") as writer:
        columns = {
            "id": np.arange(rows),
            "name": pa.array([f"n{one % 5}" if one % 7 else None for one in range(rows)], pa.string()),
            "prob": rng.random(rows).astype(np.float32),
        } | more
        vectors = {"v": rng.random((rows, width), np.float32), "u": np.arange(rows)[:, None]}
        writer.append(columns, vectors, sample_index=rng.permutation(rows))
        if finalize:
            writer.finalize()
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zarrow.Store]:
    top = tmp_path_factory.mktemp("several")
    return {
        name: zarrow.open(write(top / f"{name}.zarrow", rows, seed))
        for seed, (name, rows) in enumerate(ROWS.items())
    }


@pytest.fixture(scope="module")
def truth(stores: dict[str, zarrow.Store]) -> tuple[pa.Table, np.ndarray]:
    """The rows of all stores, in memory."""
    tables, start = [], 0
    for name, store in stores.items():
        table = store.table()
        row = pa.array(np.arange(start, start + len(store)))
        table = table.set_column(table.column_names.index("row"), "row", row)
        tables.append(table.append_column("model", pa.array([name] * len(store))))
        start += len(store)
    vectors = np.concatenate([store["v"][:] for store in stores.values()])
    return pa.concat_tables(tables), vectors


CONDITIONS = st.one_of(
    st.floats(0, 1, width=32).map(lambda x: x < PROB),
    st.floats(0, 1, width=32).map(lambda x: x >= PROB),
    st.sampled_from([*ROWS, "other"]).map(lambda name: name == MODEL),
    st.lists(st.sampled_from([*ROWS, "other"]), max_size=2).map(
        lambda names: MODEL.isin(pa.array(names, pa.string()))
    ),
    st.integers(-3, 70).map(lambda row: row <= ROW),
    st.integers(-3, 70).map(lambda row: row > ROW),
    st.integers(0, 6).map(lambda number: f"n{number}" == NAME),
    st.just(NAME.is_null()),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda both: both[0] & both[1]),
        st.tuples(inner, inner).map(lambda both: both[0] | both[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)


@settings(max_examples=120)
@given(
    condition=FILTERS, columns=st.lists(st.sampled_from(["id", "name", "prob", "model", "row"]), unique=True)
)
def test_filters_find_the_rows_that_pass(stores, truth, condition, columns):
    """Any filter on any columns gives what it gives on a table in memory, and the vectors of these rows."""
    view, (table, vectors) = zarrow.union(stores), truth
    wanted = table.filter(condition)
    found = view.table(columns, condition)
    assert found.num_rows == len(wanted)
    assert not columns or found.equals(wanted.select(columns).cast(found.schema))
    rows = wanted["row"].to_numpy()
    joined = list(
        view.join(condition, ["row", *(name for name in columns if name != "row")], ["v"], batch_size=9)
    )
    assert [row for batch, _ in joined for row in batch["row"].to_pylist()] == rows.tolist()
    assert np.array_equal(np.concatenate([vectors[:0], *(found["v"] for _, found in joined)]), vectors[rows])


def test_rows_and_arrays_are_those_of_the_stores(stores, truth):
    """Rows are taken in any order, and an array is indexed as numpy's is, across stores."""
    view, (table, vectors) = zarrow.union(stores), truth
    rows = np.random.default_rng(0).integers(0, len(table), 200)
    found, taken = view.take(rows)
    assert found.equals(table.select(view.columns).take(rows).cast(found.schema))
    assert np.array_equal(taken["v"], vectors[rows])
    array = view["v"]
    for key in (
        5,
        -1,
        slice(20, 30),
        slice(None, None, -3),
        [3, 60, 3],
        table["prob"].to_numpy() > 0.5,
        (slice(2), 1),
    ):
        assert np.array_equal(array[key], vectors[key])
    assert np.array_equal(np.asarray(array), vectors)
    out = np.empty((60, 3), np.float32)
    assert np.array_equal(array.read(1, 61, out=out, check="crc"), vectors[1:61])
    with pytest.raises(IndexError):
        array[len(table)]
    assert [batch.num_rows for batch in view.scan(["id"], batch_size=30)][:-1] == [30, 30]
    assert np.array_equal(pickle.loads(pickle.dumps(view))["v"][:], vectors)


def test_sample_order_brings_the_models_rows_of_a_sample_together(stores, truth):
    """Ordered by sample, the rows of the same sample follow each other, model by model."""
    batches = list(zarrow.union(stores).join(columns=["sample_index", "model", "row"], order="sample_index"))
    found = pa.Table.from_batches([batch for batch, _ in batches])
    expected = truth[0].sort_by([("sample_index", "ascending"), ("row", "ascending")])
    assert found["row"].to_pylist() == expected["row"].to_pylist()


def test_engines_see_one_table(stores, truth):
    """Polars, DuckDB and whatever takes an Arrow stream see the rows of all stores, with their numbers."""
    view, table = zarrow.union(stores), truth[0]
    expected = table.select(["model", "row", "id", "prob"]).sort_by("row").to_pylist()
    sql = view.sql("SELECT model, row, id, prob FROM predictions ORDER BY row")
    assert sql.fetchall() == [tuple(line.values()) for line in expected]
    found = view.to_polars().select("model", "row", "id", "prob").sort("row").collect()
    assert found.to_dicts() == expected
    assert pa.table(view).num_rows == len(table)
    best = view.sql("SELECT row FROM predictions WHERE model = 'c' ORDER BY prob DESC LIMIT 4")
    assert view.vectors(best)["v"].shape == (4, 3)


def test_quotes_in_names(stores):
    """Names of models may hold what SQL and Arrow have a meaning for."""
    view = zarrow.union({'it\'s "a"': stores["a"], "b;--": stores["c"]})
    counts = view.sql("SELECT model, count(*) FROM predictions GROUP BY 1 ORDER BY 2").fetchall()
    assert counts == [('it\'s "a"', 23), ("b;--", 41)]


def test_keys_are_found_in_their_models_store(stores):
    """A key names a model too, and leads to the row of that model."""
    view = zarrow.union(stores)
    rows = view.locate({"model": ["c", "a", "a"], "id": [3, 3, 99]}, missing=-1)
    assert rows.tolist() == [len(stores["a"]) + len(stores["b"]) + 3, 3, -1]
    with pytest.raises(UnknownNameError, match="'d'"):
        view.locate({"model": ["d"], "id": [3]})


def test_stores_must_agree(stores, tmp_path):
    """What differs is named: a column that one lacks, another type, a column that is called model."""
    other = write(tmp_path / "other.zarrow", 9, 0, extra=np.arange(9))
    with pytest.raises(InvalidInputError, match="column 'extra': store 'other' has it"):
        zarrow.union({"a": stores["a"], "other": other})
    assert zarrow.union([stores["a"], other], columns=["id", "prob"]).columns[:3] == ["id", "prob", "model"]
    wide = write(tmp_path / "wide.zarrow", 9, 0, prob=np.arange(9.0))
    with pytest.raises(InvalidInputError, match="'prob': it is float in 'a' and double in 'wide'"):
        zarrow.union([stores["a"], wide])
    named = write(tmp_path / "named.zarrow", 9, 0, model=np.arange(9))
    with pytest.raises(InvalidInputError, match="choose another name with column="):
        zarrow.union([named])
    assert zarrow.union([named], column="checkpoint").table(["checkpoint", "model"]).num_rows == 9


def test_arrays_of_other_widths_are_left_out_with_a_reason(stores, tmp_path):
    """An array that is not the same everywhere is not in the view, and asking for it says why."""
    wider = write(tmp_path / "wider.zarrow", 9, 0, width=5)
    view = zarrow.union([stores["a"], wider])
    assert list(view.arrays) == ["u"]
    assert view.left_out["v"] == "its rows differ: 'a' has (3,) float32, 'wider' has (5,) float32"
    with pytest.raises(UnknownNameError, match="not in the view: its rows differ"):
        view["v"]


@pytest.fixture(scope="module")
def token_stores(tmp_path_factory) -> dict[str, zarrow.Store]:
    """Two stores with a ragged array; the second one has no rows with more than two vectors."""
    top, found = tmp_path_factory.mktemp("tokens"), {}
    for seed, (name, most) in enumerate((("a", 6), ("b", 3))):
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, most, 20)
        tokens = zarrow.Ragged(rng.standard_normal((counts.sum(), 4)).astype("f4"), counts)
        with zarrow.Writer(top / name, segment_rows=8, keys=["id"]) as writer:
            writer.append({"id": np.arange(20)}, {"t": tokens, "v": rng.random((20, 2))})
            writer.finalize()
        found[name] = zarrow.open(top / name)
    return found


def test_ragged_arrays_of_several_stores(token_stores):
    """A ragged array of the view has the rows of the stores, however they are asked for."""
    view = zarrow.union(token_stores)
    rows = [row for store in token_stores.values() for row in store["t"][:]]
    array = view["t"]
    assert array.shape == (40, None, 4)
    assert array.counts.tolist() == list(map(len, rows))
    assert array.num_vectors == sum(map(len, rows))
    assert array.nbytes == 16 * array.num_vectors
    for key in (slice(None), slice(18, 23), slice(3, 3), slice(None, None, -7), [39, 0, 39, 20], []):
        numbers = np.arange(40)[np.array(key, int) if isinstance(key, list) else key]
        found = array[key]
        assert found.counts.tolist() == [len(rows[row]) for row in numbers]
        for row, vectors in zip(numbers, found, strict=True):
            assert np.array_equal(vectors, rows[row])
    assert np.array_equal(array[-1], rows[-1])
    assert array[np.arange(40) % 2 == 1].counts.tolist() == list(map(len, rows[1::2]))
    with pytest.raises(IndexError, match="index 40"):
        array[40]
    with pytest.raises(InvalidInputError, match="pool them first"):
        analysis.pca(view, "t")
    assert np.array_equal(pickle.loads(pickle.dumps(view))["t"][25], rows[25])
    assert "array any × 4" in view._repr_html_()
    assert "t" in view


def test_rows_of_views_have_their_ragged_arrays(token_stores):
    """take, vectors, join and iteration have ragged arrays, as a store's do."""
    view = zarrow.union(token_stores)
    rows = [row for store in token_stores.values() for row in store["t"][:]]
    table, vectors = view.take([21, 3], ["model"])
    assert table["model"].to_pylist() == ["b", "a"]
    assert vectors["t"] == zarrow.Ragged.of([rows[21], rows[3]], "float32")
    assert view.vectors([5], ["t"])["t"].counts.tolist() == [len(rows[5])]
    for options in ({}, {"filter": pc.field("id") > 15}):
        found = list(view.join(arrays=["t"], batch_size=7, check="crc", **options))
        numbers = [row for batch, _ in found for row in batch["row"].to_pylist()]
        assert len(numbers) == (8 if options else 40)
        each = [one for _, vectors in found for one in vectors["t"]]
        assert all(np.array_equal(one, rows[row]) for row, one in zip(numbers, each, strict=True))
    assert sum(vectors["t"].counts.sum() for _, vectors in view) == view["t"].num_vectors


def test_late_interaction_over_several_stores(token_stores):
    """The best rows of the view are the best of the rows of all stores."""
    view, query = zarrow.union(token_stores), token_stores["b"]["t"][:]
    query = next(row for row in query if len(row) == 2)
    found = analysis.nearest(view, query, metric="maxsim", k=10)
    rows = [row for store in token_stores.values() for row in store["t"][:]]
    scores = np.array([(query @ row.T).max(1).sum() if len(row) else -np.inf for row in rows])
    assert found.rows[0].tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
    only = analysis.nearest(view, query, metric="maxsim", k=3, filter=MODEL == "b")
    assert (only.rows >= 20).all()


def test_ragged_arrays_that_differ_are_left_out(token_stores, stores, tmp_path):
    """An array that is ragged in one store only, or of another width, is not in the view, and it says why."""
    with zarrow.Writer(tmp_path / "fixed") as writer:
        writer.append({"id": np.arange(3)}, {"t": np.ones((3, 4), "f4")})
        writer.finalize()
    view = zarrow.union({"a": token_stores["a"], "fixed": zarrow.open(tmp_path / "fixed")})
    assert (dict(view.arrays), dict(view.ragged)) == ({}, {})
    with pytest.raises(UnknownNameError, match=r"'a' has any number of \(4,\) float32, 'fixed' has \(4,\)"):
        view["t"]


def test_names_come_from_the_paths(tmp_path):
    """The shortest ends of the paths that differ name the models; one store twice needs names."""
    paths = [write(tmp_path / one / "run.zarrow", 5, 0) for one in ("x", "y")]
    assert zarrow.union(paths).models == ["x/run", "y/run"]
    with pytest.raises(InvalidInputError, match="given twice"):
        zarrow.union([paths[0], paths[0]])
    with pytest.raises(InvalidInputError, match="list of stores or paths"):
        zarrow.union(paths[0])
    with pytest.raises(InvalidInputError, match="at least one"):
        zarrow.union([])


def test_incomplete_stores_are_asked_for(tmp_path):
    """A store that is being written is in the view only if the caller says so."""
    paths = [write(tmp_path / "a.zarrow", 9, 0), write(tmp_path / "b.zarrow", 13, 1, finalize=False)]
    with pytest.raises(IncompleteStoreError):
        zarrow.union(paths)
    view = zarrow.union(paths, partial=True)
    assert view.num_rows == 22
    assert view.table(["row"], (ROW >= 15) & (MODEL == "b"))["row"].to_pylist() == list(range(15, 22))


def test_analyses_take_a_view(stores):
    """Groups by model are what each store gives by itself."""
    one = zarrow.testing.example_predictions()
    view = zarrow.union({"x": one, "y": one})
    found = analysis.evaluate(view, "occurs_prob", "occurs", by="model", bootstrap=0)
    alone = analysis.evaluate(one, "occurs_prob", "occurs", bootstrap=0).overall
    assert found.table.to_pylist() == [{"model": name} | alone for name in "xy"]
    assert analysis.describe(view).arrays["query_embed"].rows == 2 * len(one)
    nearest = analysis.nearest(view, [7], k=2)
    assert view["query_embed"][6000:6010].base is not None, "rows of one store are not copied"
    assert nearest.rows.tolist() == [[7, 7 + len(one)]]
    composed = analysis.compose(view, "max")
    assert composed.num_rows == 2 * analysis.compose(one, "max").num_rows
    with pytest.raises(InvalidInputError, match="expected a store"):
        analysis.compare(view, one)


def test_every_pair_is_compared(stores, tmp_path):
    """A line per pair is what compare says of it, also of other widths; a matrix has both halves."""
    some = {name: stores[name] for name in "ac"}
    some["wide"] = zarrow.open(write(tmp_path / "wide.zarrow", 30, 5, width=6))
    found = analysis.compare_all(some, array="v", probability="prob")
    assert [(line["model_a"], line["model_b"]) for line in found.table.to_pylist()] == [
        ("a", "c"), ("a", "wide"), ("c", "wide"),
    ]  # fmt: skip
    alone = analysis.compare(some["a"], some["c"], array="v", probability="prob")
    line = found.table.to_pylist()[0]
    assert (line["cka"], line["matched"], line["ks"]) == (alone.cka, alone.matched, alone.probability["ks"])
    cka, moved = found.matrix("cka"), found.matrix("mean_difference")
    assert np.array_equal(cka, cka.T)
    assert np.array_equal(moved, -moved.T)
    assert np.isnan(found.matrix("cosine_mean")[0, 2]), "widths differ"
    assert analysis.compare_all(some, array="v", against="c").table["model_b"].to_pylist() == ["a", "wide"]
    with pytest.raises(UnknownNameError, match="'d'"):
        analysis.compare_all(some, array="v", against="d")


def blocks(language: str) -> list[tuple[int, str]]:
    text = GUIDE.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def test_the_guide_runs(tmp_path, monkeypatch):
    """The blocks of the guide run in order, its commands after them."""
    monkeypatch.chdir(tmp_path)
    pasted: dict[str, object] = {}
    for line, code in blocks("python"):
        exec(compile("\n" * line + code, GUIDE, "exec"), pasted)
    matrix = pasted["found"].matrix("cka")
    assert matrix.shape == (3, 3)
    commands = [command for _, block in blocks("bash") for command in block.splitlines()]
    said = []
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        said.append(result.stdout)
    assert "step3000" in said[0]
    assert "linear CKA" in said[1]
