"""Guides — ``zarrow docs``: the pages of ``examples/guides``, which are installed with the package.

A topic is a page's file name without its suffix. The index page names all of them, in groups; ``format`` is
the format document. A terminal gets them formatted, a pipe gets Markdown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from typer import Argument, Typer

from zarrow._commands.arguments import AsJson
from zarrow._commands.terminal import out, print_json, say
from zarrow.errors import NotFoundError, UnknownNameError, did_you_mean, unknown_name

__all__ = ["app", "guides", "text_of"]

app = Typer()

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "_guides", PACKAGE.parents[1] / "examples" / "guides")
"""Where an installed package has its guides, and where the source tree does."""

INDEX = "index"
_ENTRY = re.compile(r"^\* \[`?([\w-]+)`?\]\([^)]+\): (.+)$")


@app.command(rich_help_panel="Look")
def docs(
    topic: Annotated[
        str | None, Argument(metavar="TOPIC", help="A page, e.g. resume.", show_default="lists the pages")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a guide: how to do a task, how it works, reference, troubleshooting."""
    if as_json:
        print_json(list(guides()) if topic is None else {"topic": topic, "text": text_of(topic)})
    elif topic is None:
        _show_list()
    elif out.is_terminal:
        from rich.markdown import Markdown

        out.print(Markdown(text_of(topic), hyperlinks=False))
    else:
        out.print(text_of(topic), markup=False, soft_wrap=True)


def guides() -> dict[str, Path]:
    """Return the pages by topic, in alphabetical order."""
    for folder in FOLDERS:
        if (folder / f"{INDEX}.md").is_file():
            pages = {page.stem: page for page in sorted(folder.glob("*.md"))}
            return pages | {"format": PACKAGE / "FORMAT.md"}
    raise NotFoundError(f"this installation has no guides: there is no {FOLDERS[0]}; install zarrow again")


def text_of(topic: str) -> str:
    """Return a page's Markdown; `UnknownNameError` names those that have the word, or topics like it."""
    pages = guides()
    name = topic.lower().removesuffix(".md").replace("_", "-").replace(" ", "-")
    if name not in pages:
        texts = {one: page.read_text(encoding="utf-8").lower() for one, page in pages.items()}
        found = sorted(
            (one for one in texts if topic.lower() in texts[one]),
            key=lambda one: (-texts[one].count(topic.lower()), one),
        )
        if found and not did_you_mean(topic, pages):
            raise UnknownNameError(f"there is no guide {topic!r}; the word is in: {', '.join(found[:8])}")
        raise unknown_name("guide", topic, pages)
    return pages[name].read_text(encoding="utf-8")


def _show_list() -> None:
    for line in text_of(INDEX).splitlines():
        if line.startswith("## "):
            say(f"\n[bold]{line[3:]}[/]")
        elif entry := _ENTRY.match(line):
            say(f"  [cyan]{entry[1]:<22}[/] {entry[2]}")
    say("\nzarrow docs TOPIC shows a page.")
