"""Import hygiene — what importing zarrow loads, and what it offers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zarrow

HEAVY = [
    "torch",
    "lightning",
    "xarray",
    "dask",
    "zarr",
    "duckdb",
    "polars",
    "pandas",
    "sklearn",
    "matplotlib",
]


def _loaded(statement: str) -> list[str]:
    """Return the heavy packages that a new interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()


def test_importing_zarrow_loads_nothing_heavy() -> None:
    """Importing zarrow loads nothing yet; its names load numpy and pyarrow, but nothing of an extra."""
    assert _loaded("import zarrow, sys; assert not {'numpy', 'pyarrow'} & set(sys.modules)") == []
    assert _loaded("from zarrow import *; Writer") == []


def test_no_module_takes_the_place_of_a_name() -> None:
    """A name of the root is a function or class, whatever was imported before."""
    code = "import zarrow.cli, zarrow; print(*(callable(getattr(zarrow, name)) for name in zarrow.__all__))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"True"}
    assert set(zarrow.__all__) | {"errors", "__version__"} <= set(dir(zarrow))


def test_writing_and_reading_load_nothing_heavy() -> None:
    """A plain store is written and read without loading Zarr or torch."""
    statement = """
import tempfile, numpy, zarrow
path = tempfile.mkdtemp() + "/a.zarrow"
with zarrow.Writer(path) as writer:
    writer.append({"id": [1]}, {"e": numpy.ones((1, 2), "float32")})
    writer.finalize()
zarrow.open(path)["e"][:]
"""
    # pyarrow itself tries to import pandas when it is given a list.
    assert set(_loaded(statement)) <= {"pandas"}


def test_numbers_are_written_and_read_back_without_pandas() -> None:
    """Writing and reading arrays does not load pandas either, which would also take 25 MB of memory."""
    statement = """
import tempfile, numpy, zarrow
path = tempfile.mkdtemp() + "/a.zarrow"
with zarrow.Writer(path, keys=["id"]) as writer:
    columns = {"id": numpy.arange(3), "prob": numpy.ones(3, "float32"), "half": numpy.ones(3, "float16")}
    writer.append(columns, {"e": numpy.ones((3, 2), "float32")}, numpy.arange(3))
    writer.finalize()
store = zarrow.open(path)
assert store.table(["row", "id"]).num_rows == len(store.locate(numpy.arange(3))) == len(store["e"][:])
"""
    assert _loaded(statement) == []


@pytest.mark.parametrize(
    "question", ["locate(numpy.arange(3))", "take(numpy.arange(3))", "join(columns=['id']).__next__()"]
)
def test_numbers_are_looked_up_without_pandas(tmp_path: Path, question: str) -> None:
    """Queries with numpy arrays do not import pandas, which would take a quarter of a second."""
    path = tmp_path / "a.zarrow"
    with zarrow.Writer(path, keys=["id"]) as writer:
        writer.append({"id": np.arange(5)}, {"e": np.ones((5, 2), np.float32)})
        writer.finalize()
    zarrow.build_index(path)
    assert _loaded(f"import numpy, zarrow; zarrow.open({str(path)!r}).{question}") == []


def test_the_check_can_fail() -> None:
    """The check detects a package that was loaded."""
    assert _loaded("import zarr") == ["zarr"]


def test_the_root_is_small() -> None:
    """The public root has few names, all of them documented."""
    assert len(zarrow.__all__) <= 14
    for name in zarrow.__all__:
        assert getattr(zarrow, name).__doc__


@pytest.mark.parametrize("name", ["Durability", "Store", "Writer", "open"])
def test_the_root_has_the_way_in_and_the_way_out(name: str) -> None:
    """The names that the README uses are in the root."""
    assert name in zarrow.__all__


def test_modules_are_reachable_from_the_package() -> None:
    """Public modules are attributes of the package, loaded on first use; others are named as unknown."""
    code = "import sys, zarrow; assert 'scipy' not in sys.modules; zarrow.analysis.describe; zarrow.testing"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        zarrow.nothing  # noqa: B018
    done = subprocess.run([sys.executable, "-m", "zarrow", "--version"], check=True, capture_output=True)
    assert done.stdout.decode() == f"zarrow {zarrow.__version__}\n"
