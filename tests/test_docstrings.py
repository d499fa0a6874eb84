"""Docstrings — every public name is documented in full."""

import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from numpydoc.hooks.validate_docstrings import parse_config, process_file

import zarrow

ROOT = Path(__file__).parents[1]


def _public_modules() -> list[str]:
    found = pkgutil.walk_packages(zarrow.__path__, "zarrow.")
    return ["zarrow", *(one.name for one in found if "._" not in one.name)]


@functools.cache
def _issues(file: str) -> list[list[str]]:
    """Return what `numpydoc lint` would report for a module's names if it were public."""
    return process_file(file, parse_config(ROOT) | {"exclude": re.compile(r"\._")})


@pytest.mark.parametrize("name", _public_modules())
def test_public_names_have_whole_docstrings_wherever_they_are_defined(name: str) -> None:
    """Every name that a public module offers is fully documented, also if a room defines it."""
    if name == "zarrow.ray":
        pytest.importorskip("ray", reason="needs Ray: pip install 'zarrow[ray]'")
    module, found = importlib.import_module(name), []
    for public in getattr(module, "__all__", ()):
        home = importlib.import_module(getattr(getattr(module, public), "__module__", name))
        if home.__name__.startswith("zarrow.") and "._" in home.__name__ and home.__file__ is not None:
            whole = f"{home.__name__.rpartition('.')[2]}.{public}"
            for _, where, check, what in _issues(home.__file__):
                # The constructor of a dataclass, or an inherited one, is not in the source.
                if where.startswith(f"{whole}.") or (where == whole and check not in ("PR01", "PR02")):
                    found.append(f"{where}: {check} {what}")
    assert found == []
