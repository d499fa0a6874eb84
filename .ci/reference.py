"""Reference — writes the guides' pages about the public API, the command line and the errors.

    python3 .ci/reference.py            writes examples/guides/reference-*.md
    python3 .ci/reference.py --check    only says whether they are up to date

Names, signatures and summaries are those of the code, so a change of any of them needs a run of this script;
tests/test_guides.py fails otherwise.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from rich.text import Text

import zarrow.errors
from zarrow.cli import app

GUIDES = Path(__file__).parents[1] / "examples" / "guides"
MODULES = (
    "zarrow",
    "zarrow.lightning",
    "zarrow.torch",
    "zarrow.xarray",
    "zarrow.analysis",
    "zarrow.analysis.plot",
    "zarrow.analysis.report",
    "zarrow.transfer",
    "zarrow.everyquery",
    "zarrow.testing",
)


def summary(of: Any) -> str:
    """Return the first paragraph of a docstring in one line."""
    return re.sub(r"\s+", " ", (inspect.getdoc(of) or "").split("\n\n")[0]).replace("``", "`")


def parameters(of: Any) -> str:
    """Return the parameters of a callable, without types."""
    shown, star = [], False
    for one in inspect.signature(of).parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        default = "" if one.default is one.empty else f"={one.default!r}"
        mark = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        shown.append(f"{mark}{one.name}{default}")
    return f"({', '.join(shown)})"


def members(of: type) -> Iterator[str]:
    """Yield a line per public method and property that a class defines or inherits from zarrow's classes."""
    found: dict[str, Any] = {}
    for base in reversed([one for one in of.__mro__ if one.__module__.startswith("zarrow.")]):
        found.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    for name, value in found.items():
        if isinstance(value, (property, classmethod)) or not callable(value):
            if inspect.getdoc(value) and isinstance(value, property):
                yield f"  * `.{name}`: {summary(value)}"
        elif inspect.getdoc(value):
            yield f"  * `.{name}{parameters(value)}`: {summary(value)}"


def python() -> Iterator[str]:
    """Yield the page of the public API."""
    yield "# Reference: Python\n"
    yield "`help(zarrow.Writer)` has parameters, errors and examples of a name."
    yield "Results of analyses are dataclasses."
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield f"\n## `{module_name}`\n"
        yield re.sub(r"^.*? — ", "", summary(module)) + "\n"
        for name in module.__all__:
            one = getattr(module, name)
            if inspect.isclass(one) and one.__module__.startswith("zarrow."):
                result = module_name == "zarrow.analysis"
                yield f"* `{name}{'' if result else parameters(one)}`: {summary(one)}"
                yield from members(one)
            elif inspect.isfunction(one):
                yield f"* `{name}{parameters(one)}`: {summary(one)}"


def command_line() -> Iterator[str]:
    """Yield the page of the command line."""
    yield "# Reference: command line\n"
    yield "Exit codes: 0 done; 1 refused or failed; 2 wrong usage, or there is no store; 130 interrupted."
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        if command.hidden:
            continue
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        places = [one.metavar or one.name.upper() for one in arguments]
        shown = [
            place if one.required else f"[{place}]" for place, one in zip(places, arguments, strict=True)
        ]
        yield f"\n## `{' '.join(['zarrow', name, *shown])}`\n"
        yield re.sub(r"\s+", " ", command.help.split("\n\n")[0])
        lines = [
            f"* `{', '.join(sorted(one.opts, key=len))}`: {plain(one.help)}"
            for one in command.params
            if one.param_type_name == "option" and one.name != "help" and not one.hidden
        ]
        if lines:
            yield ""
            yield from lines


def plain(markup: str | None) -> str:
    """Return a help text in one line, without rich's markup."""
    return re.sub(r"\s+", " ", Text.from_markup(markup or "").plain)


def errors() -> Iterator[str]:
    """Yield the page of the errors."""
    tree = (zarrow.errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    yield "# Reference: errors\n"
    yield "All are in `zarrow.errors`, and also derive from the builtin that one would catch."
    yield "A message has the rule that was broken, the value, and the remedy.\n"
    yield "```text\n" + inspect.cleandoc("\n" + tree) + "\n```\n"
    for name in sorted(zarrow.errors.__all__):
        yield f"* `{name}`: {summary(getattr(zarrow.errors, name))}"


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, lines in (("python", python), ("command-line", command_line), ("errors", errors)):
        page = GUIDES / f"reference-{name}.md"
        text = "\n".join(lines()) + "\n"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(text, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'none'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
