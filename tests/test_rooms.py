"""Layout of the source and the tests — doors, rooms, and what their docstrings say about them."""

import ast
import re
from pathlib import Path

import pytest

import zarrow

SOURCE = Path(zarrow.__file__).parent
TESTS = Path(__file__).parent
ROOMS = sorted(one.parent.name for one in SOURCE.glob("_*/__init__.py"))
ANALYSIS_ROOMS = sorted(one.parent.name for one in SOURCE.glob("analysis/_*/__init__.py"))


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize(("package", "rooms"), [(".", ROOMS), ("analysis", ANALYSIS_ROOMS)])
def test_the_package_names_every_room(package: str, rooms: list[str]) -> None:
    """The docstring of a package names every room in it, and nothing that is not a room."""
    named = re.findall(r"`(_\w+)`", _docstring(SOURCE / package / "__init__.py"))
    assert sorted(named) == rooms


@pytest.mark.parametrize("room", [*ROOMS, *(f"analysis/{room}" for room in ANALYSIS_ROOMS)])
def test_a_room_names_every_file(room: str) -> None:
    """The docstring of a room lists every file in it, and no others."""
    listed = re.findall(r"^`(\w+)`  ", _docstring(SOURCE / room / "__init__.py"), re.MULTILINE)
    files = [one.stem for one in (SOURCE / room).glob("*.py") if one.stem != "__init__"]
    assert sorted(listed) == sorted(files)


def test_the_top_has_doors_only() -> None:
    """Apart from the rooms there are only public modules, and few of them."""
    files = sorted(one.name for one in SOURCE.glob("*.py"))
    assert len(files) <= 16
    assert [name for name in files if name.startswith("_")] == ["__init__.py", "__main__.py"]


def test_no_two_test_files_share_a_name() -> None:
    """A test file can be found, and run with ``pytest -k``, by its name alone."""
    names = [one.name for one in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_test_folders_mirror_rooms() -> None:
    """A test folder with an underscore is named after a room."""
    assert {one.name for one in TESTS.iterdir() if one.is_dir() and re.match("_[a-z]", one.name)} <= set(
        ROOMS
    )


@pytest.mark.parametrize("file", sorted(TESTS.glob("test_*.py")), ids=lambda file: file.stem)
def test_test_files_mirror_doors(file: Path) -> None:
    """A test file outside the folders is named after a door, or after what it tests of the project."""
    doors = {one.stem for one in SOURCE.iterdir() if not one.name.startswith("_")} | set(zarrow.__all__)
    project = {
        "benchmarks",
        "contracts",
        "docstrings",
        "examples",
        "guides",
        "import",
        "notebooks",
        "readme",
        "rooms",
    }
    assert file.stem.split("_")[1] in project | doors


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_header_is_a_definition(file: Path) -> None:
    """The first line of a module defines it; it is not a question."""
    first = _docstring(file).partition("\n")[0]
    assert first.endswith(".")
    assert not first.endswith("?")
