"""Lower bounds as constraints — prints ``name==bound`` for every bound of pyproject.toml and some extras.

``pip install -c`` with its output installs the oldest versions that pyproject.toml promises to work with.
torch is left out: its old builds for the CPU are not on the package index, and those for CUDA are gigabytes.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extras: list[str]) -> list[str]:
    """Return the dependencies, and those of some extras and of the extras that these name."""
    found = list(PROJECT["dependencies"])
    for extra in extras:
        for one in PROJECT["optional-dependencies"][extra]:
            inner = re.fullmatch(r"zarrow\[(.*)\]", one)
            found += requirements(inner[1].split(",")) if inner else [one]
    return found


for requirement in dict.fromkeys(requirements(sys.argv[1:])):
    name, _, bound = re.sub(r"\[.*\]", "", requirement).partition(">=")
    if name != "torch":
        print(f"{name}=={bound}" if bound else f"# {name} has no bound")
