"""The layout of the source: doors, rooms, and what their docstrings say of them."""

import ast
import re
from pathlib import Path

import pytest

import zarrow

SOURCE = Path(zarrow.__file__).parent
ROOMS = sorted(one.parent.name for one in SOURCE.glob("_*/__init__.py"))


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def test_the_package_names_every_room() -> None:
    """The docstring of the package names the rooms that are there, and no others."""
    named = re.findall(r"`(_\w+)`", _docstring(SOURCE / "__init__.py"))
    assert sorted(named) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_every_file(room: str) -> None:
    """The docstring of a room lists the files that are there, and no others."""
    listed = re.findall(r"^`(\w+)`  ", _docstring(SOURCE / room / "__init__.py"), re.MULTILINE)
    files = [one.stem for one in (SOURCE / room).glob("*.py") if one.stem != "__init__"]
    assert sorted(listed) == sorted(files)


def test_the_top_has_doors_only() -> None:
    """Beside the rooms there are public modules, and few of them."""
    files = [one.name for one in SOURCE.glob("*.py")]
    assert len(files) <= 16
    assert [name for name in files if name.startswith("_") and name != "__init__.py"] == []
