"""Notebooks — they run, with and without ipywidgets, and are stored with what they show."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra 'test'")
pytest.importorskip("nbclient", reason="needs the extra 'test'")
pytest.importorskip("ipykernel", reason="needs the extra 'test'")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def shown(notebook: Any) -> list[set[str]]:
    """Return what each cell shows: the names of its streams, and the types of its outputs."""
    return [
        {kind for output in cell.outputs for kind in (*output.get("data", {}), output.get("name")) if kind}
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def warned(notebook: Any) -> list[str]:
    """Return what the cells print as warnings."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]


@pytest.mark.slow
@pytest.mark.parametrize("widgets", [True, False], ids=["ipywidgets", "no ipywidgets"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Jupyter's own, about its event loop
def test_it_runs(path: Path, widgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs in a kernel, without a warning, and shows the pictures that are stored."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = read(path)
    stored = shown(notebook)
    runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))["run"](notebook, str(tmp_path), widgets=widgets)
    assert warned(notebook) == []
    pictures = [number for number, kinds in enumerate(shown(notebook)) if "image/png" in kinds]
    assert pictures == [number for number, kinds in enumerate(stored) if "image/png" in kinds]
    assert pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_executed(path: Path) -> None:
    """All cells were run in order, nothing failed, and no path of the machine is in it; it is small."""
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert warned(notebook) == []
    text = path.read_text(encoding="utf-8")
    assert re.search(r"/(tmp|home|root|work|Users)/", text) is None
    assert len(text) < 250_000


def test_the_guides_lead_to_all_of_them() -> None:
    """Every notebook is in the guides' index."""
    index = (ROOT / "examples" / "guides" / "index.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"(../notebooks/{path.name})" not in index] == []
    assert len(NOTEBOOKS) >= 2
