"""Notebooks — runs those in examples/notebooks, and stores them with their outputs.

    python3 .ci/notebooks.py

Each runs in an empty directory, without ipywidgets, so that progress bars are text, which a page can show.
Paths of that directory are left out, and pictures get a palette, a third of the bytes. To be run after a
notebook was edited.
"""

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
WITHOUT_WIDGETS = "import sys\n\nsys.modules['ipywidgets'] = None"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(notebook: Any, directory: str, *, widgets: bool) -> None:
    """Run the cells of a notebook in a directory, with or without ipywidgets; a cell's error is raised."""
    where = {"metadata": {"path": directory}}
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources=where, coalesce_streams=True)
    if widgets:
        client.execute()
        return
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT_WIDGETS))
    client.execute()
    del notebook.cells[0]


def smaller(png: str) -> str:
    """Return a picture with a palette."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64)
    packed = io.BytesIO()
    picture.save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def plain(value: Any, directory: str) -> Any:
    """Return an output without the directory in which it was made."""
    if isinstance(value, str):
        return value.replace(f"{directory}/", "")
    if isinstance(value, list):
        return [plain(one, directory) for one in value]
    if isinstance(value, dict):
        return {key: plain(one, directory) for key, one in value.items()}
    return value


def main() -> None:
    """Run and store every notebook."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as directory:
            run(notebook, directory, widgets=False)
            for number, cell in enumerate(one for one in notebook.cells if one.cell_type == "code"):
                cell.metadata, cell.execution_count = {}, number + 1
                for output in cell.outputs:
                    if output.output_type == "execute_result":
                        output.execution_count = number + 1
                    if "data" in output and "image/png" in output.data:
                        output.data["image/png"] = smaller(output.data["image/png"])
                cell.outputs = [nbformat.from_dict(plain(output, directory)) for output in cell.outputs]
        notebook.metadata = nbformat.from_dict(METADATA)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
