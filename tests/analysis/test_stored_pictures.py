"""Stored pictures — what each kind of picture looks like, compared with the file that somebody looked at.

``tests/analysis/pictures`` has a small grey copy of every picture, and what its SVG contains. After a change
that is meant, ``python tests/analysis/test_stored_pictures.py`` draws them anew, and names the folder with
the pictures in full size: look at them before you commit.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import zarrow
from zarrow.analysis import plot
from zarrow.analysis._pictures import row_map
from zarrow.store import Store
from zarrow.testing import example_predictions

STORED = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 160, 120
MOST = 0.8
"""By how much of 255 greys pixels may differ on average: another font of the same size takes 0.5."""
MARKS = ("path", "use", "image", "text")


@cache
def clusters() -> Store:
    """Return rows in 22 groups, two more than there are colours; `moved` has them at other places."""
    generator = np.random.default_rng(0)
    group = generator.integers(0, 22, 1500)
    vectors = 6 * generator.normal(size=(22, 24))[group] + generator.normal(size=(1500, 24))
    shift = generator.normal(size=24) * 4
    folder = Path(tempfile.mkdtemp())
    for name, moved in (("clusters", 0), ("moved", 1)):
        with zarrow.Writer(folder / f"{name}.zarrow", keys=["id"]) as writer:
            columns = {"id": np.arange(1500), "group": [f"group {one}" for one in group]}
            there = vectors + moved * (group[:, None] % 3 == 0) * shift
            writer.append(columns, {"embed": there.astype("f4")})
            writer.finalize()
    return zarrow.open(folder / "clusters.zarrow")


def moved() -> Store:
    return zarrow.open(Path(clusters().path).with_name("moved.zarrow"))


def cells(colour: str | None) -> Figure:
    """Return a map of more rows than are drawn as points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_map, "MAX_POINTS", 1000)
        return plot.map(clusters(), colour=colour)


PICTURES: dict[str, Callable[[], Figure]] = {
    "map": lambda: plot.map(example_predictions()),
    "map-number": lambda: plot.map(example_predictions(), colour="occurs_prob"),
    "map-groups": lambda: plot.map(clusters(), colour="group"),
    "map-cells": lambda: cells(None),
    "map-cells-groups": lambda: cells("group"),
    "norms": lambda: plot.norms(example_predictions()),
    "norms-groups": lambda: plot.norms(example_predictions(), by="query"),
    "roc": lambda: plot.roc(example_predictions()),
    "roc-groups": lambda: plot.roc(example_predictions(), by="query"),
    "calibration": lambda: plot.calibration(example_predictions()),
    "calibration-groups": lambda: plot.calibration(example_predictions(), by="query"),
    "drift": lambda: plot.drift(clusters(), moved()),
    "drift-groups": lambda: plot.drift(clusters(), moved(), by="group"),
}


def small(figure: Figure) -> np.ndarray:
    """Return a figure in grey, 0 to 255, each pixel the mean of those that it stands for."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60)
    return np.asarray(Image.open(file).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX), float)


def contents(figure: Figure) -> dict[str, Any]:
    """Return the texts of a figure's SVG in order, its colours, and how many marks of each kind it has."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    tags = [(one.tag.rpartition("}")[2], one) for one in ElementTree.fromstring(file.getvalue()).iter()]
    texts = ["".join(one.itertext()).strip() for tag, one in tags if tag == "text"]
    colours = sorted(set(re.findall(r"#[0-9a-f]{6}", " ".join(one.get("style", "") for _, one in tags))))
    return {
        "texts": texts,
        "colours": colours,
        "marks": dict(Counter(tag for tag, _ in tags if tag in MARKS)),
    }


def differences(name: str, figure: Figure) -> list[str]:
    """Return how a picture differs from the stored one."""
    stored = np.asarray(Image.open(STORED / f"{name}.png"), float)
    expected = json.loads((STORED / "contents.json").read_text(encoding="utf-8"))[name]
    found = [f"{one}: {what}" for one, what in contents(figure).items() if what != expected[one]]
    off = float(np.abs(small(figure) - stored).mean())
    return found + ([f"pixels differ by {off:.2f} of 255"] if off > MOST else [])


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_stored_one(name: str) -> None:
    """Each picture looks as it did when somebody looked at it; its SVG has the same texts, colours, marks."""
    assert differences(name, PICTURES[name]()) == []


def without_title(figure: Figure) -> None:
    (figure.axes[0].set_title if figure.get_suptitle() == "" else figure.suptitle)("")


def without_the_last_mark(figure: Figure) -> None:
    axes = figure.axes[0]
    [*axes.patches, *axes.images, *axes.collections, *axes.lines][-1].remove()


def zoomed(figure: Figure) -> None:
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    axes.set(aspect="auto", ylim=(low, low + (high - low) / 2))


def in_other_colours(figure: Figure) -> None:
    axes = figure.axes[0]
    for mark in [*axes.patches, *axes.lines, *axes.collections]:
        mark.set_color("#dddddd")
        mark.set_linewidth(4)
    for image in axes.images:
        image.set_cmap("gray")


@pytest.mark.parametrize("change", [without_title, without_the_last_mark, zoomed, in_other_colours])
@pytest.mark.parametrize("name", ["map-groups", "map-cells", "norms", "calibration-groups", "drift-groups"])
def test_another_picture_is_told_apart(name: str, change: Callable[[Figure], None]) -> None:
    """Without its title or a mark, zoomed, or in other colours, a picture is not the stored one."""
    figure = PICTURES[name]()
    change(figure)
    assert differences(name, figure)


def test_another_font_is_no_difference() -> None:
    """Fonts and their sizes vary between machines: the same picture in another one passes."""
    figure = plot.norms(example_predictions())
    for text in figure.findobj(Text):
        text.set_fontfamily("DejaVu Serif")
    assert differences("norms", figure) == []


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    full = Path(tempfile.mkdtemp())
    told = {}
    for picture, draw in PICTURES.items():
        drawn = draw()
        plot.save(drawn, full / f"{picture}.png")
        grey = small(drawn).astype(np.uint8)
        Image.fromarray(grey).save(STORED / f"{picture}.png", optimize=True)
        told[picture] = contents(drawn)
    lines = [f"{json.dumps(one)}: {json.dumps(what, ensure_ascii=False)}" for one, what in told.items()]
    (STORED / "contents.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"look at the pictures in {full}")
