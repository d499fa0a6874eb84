"""Import contracts — each rule of ``pyproject.toml``, broken once in a copy of the source and caught.

A contract that cannot be broken protects nothing, for example because of a misspelt module or an exception
that is too wide.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import zarrow

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = [layer.split(" | ") for layer in CONTRACTS[0]["layers"]]
WRONG = {
    "Doors and rooms import downwards only, and siblings (`|`) not at all": [
        *((below[0], f"zarrow.{above[0]}") for above, below in itertools.pairwise(LAYERS)),
        ("errors", "zarrow.cli"),
        ("writer", "zarrow.store"),
        ("store", "zarrow.writer"),
        ("torch", "zarrow.xarray"),
        ("demo", "zarrow.everyquery"),
        ("_new", "zarrow.errors"),  # a module without a place
    ],
    "Analysis: pictures show answers, and answers are numbers computed from rows": [
        ("analysis._rows", "zarrow.analysis._numbers"),
        ("analysis._rows", "zarrow.analysis._questions"),
        ("analysis._numbers", "zarrow.analysis._questions"),
        ("analysis._questions", "zarrow.analysis._pictures"),
        ("analysis._pictures", "zarrow.analysis.plot"),
        ("analysis.plot", "zarrow.analysis.report"),
        ("analysis._new", "zarrow.errors"),
    ],
    "No import cycles, within a room either": [
        ("_format.layout", "zarrow._format.records"),
        ("_storage.reading", "zarrow._storage.lock"),
    ],
    "Readers change nothing on a disk, and take no locks": [
        ("_read", "zarrow._storage.files"),
        ("_read", "zarrow._storage.lock"),
        ("xarray", "zarrow._write"),
        ("_read", "shutil"),
        ("_storage.reading", "zarrow._storage.files"),  # by way of what every reader imports
        ("store", "zarrow._storage.files"),
        ("_maintenance.verify", "zarrow._storage.lock"),
    ],
    "The format is bytes in, bytes out": [
        ("_format", "os"),
        ("_format", "mmap"),
        ("_format", "fcntl"),
        ("_format", "threading"),
    ],
    "`import zarrow` cannot load what an extra brings, not even indirectly": [
        ("store", "matplotlib"),
        ("_read.catalog", "scipy"),
        ("writer", "torch"),
    ],
    "torch and lightning stay behind their edges": [
        ("_read", "torch"),
        ("_write", "lightning"),
        ("transfer", "torch"),
        ("cli", "lightning"),
    ],
    "xarray and dask stay behind their edge": [
        ("_write", "xarray"),
        ("store", "dask"),
        ("analysis._questions", "dask"),
    ],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package's source, for a test to break."""
    package = tmp_path_factory.mktemp("source") / "zarrow"
    shutil.copytree(Path(zarrow.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@pytest.fixture
def lint(copy: Path) -> Iterator[object]:
    """Return a function that adds an import to a module of the copy and returns the contracts it breaks."""
    before: dict[Path, bytes | None] = {}

    def broken(module: str | None = None, imported: str = "") -> list[str]:
        if module is not None:
            file = copy / module.replace(".", "/")
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            before[file] = file.read_bytes() if file.exists() else None
            file.write_bytes((before[file] or b'"""New."""\n') + f"\nimport {imported}\n".encode())
        program = "import sys; from importlinter.cli import lint_imports_command as run; run(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", program, "--config", PYPROJECT, "--cache-dir", copy.parent / "cache"],
            env={**os.environ, "PYTHONPATH": str(copy.parent), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Contracts: " in done.stdout, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        return [line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")]

    yield broken
    for file, content in before.items():
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)


def test_the_source_keeps_every_contract(lint) -> None:
    """The source as it is breaks no contract, and every contract is broken by a test below."""
    assert lint() == []
    assert [contract["name"] for contract in CONTRACTS] == list(WRONG)


@pytest.mark.parametrize(
    ("contract", "module", "imported"),
    [
        pytest.param(contract, module, imported, id=f"{module}-{imported}")
        for contract, cases in WRONG.items()
        for module, imported in cases
    ],
)
def test_an_import_in_the_wrong_direction_is_caught(lint, contract: str, module: str, imported: str) -> None:
    """One import that breaks a rule is caught by the contract that states the rule."""
    assert contract in lint(module, imported)
