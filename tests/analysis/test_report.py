"""Report — the page shows what is in the store, with a mouse, a keyboard, a phone and in dark mode.

The page is opened in a real headless browser (Chromium, through Playwright) where one is installed.
"""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import zarrow
from zarrow.analysis import map_rows
from zarrow.analysis.report import report
from zarrow.cli import app
from zarrow.errors import InvalidInputError, UnknownNameError, WriteFailedError
from zarrow.store import Store
from zarrow.testing import example_predictions

HOSTILE = (
    "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=2'>\"'`&lt;\u2028\u202e\x01$"
)
CONTRAST = """
(all) => [...document.querySelectorAll(all)].filter((e) => e.textContent.trim()).map((element) => {
  const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const c = rgb[i] / 255;
    return sum + weight * (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0);
  let behind = element, paper = [0, 0, 0, 0];
  while (behind && (paper.length === 4 && paper[3] === 0)) {
    paper = channels(getComputedStyle(behind).backgroundColor);
    behind = behind.parentElement;
  }
  const ink = light(channels(getComputedStyle(element).color)), back = light(paper);
  return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the system's, or the one that Playwright brought."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as running:
        if found is None and not Path(running.chromium.executable_path).exists():
            pytest.skip(f"no browser: none of {', '.join(names)}, nor Playwright's own")
        chromium = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page in the browser, and the errors that it logged."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._watch(request.url, file))
        self.page.goto(file.as_uri())

    def _watch(self, url: str, file: Path) -> None:
        if url != file.as_uri():
            self.wrong.append(f"asked for {url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.wrong == []


def write(path: Path, columns: Any, vectors: np.ndarray | None, **options: Any) -> Store:
    with zarrow.Writer(path, **options) as writer:
        writer.append(columns, {} if vectors is None else {"embed": vectors})
        writer.finalize()
    return zarrow.open(path)


def ten_rows(path: Path) -> Store:
    """Two lines of five patients, far enough apart to point at."""
    places = np.array([(x, y) for y in (0, 3) for x in range(5)], np.float32)
    columns = {
        "patient": [f"patient-{row}" for row in range(10)],
        "prob": np.linspace(0.05, 0.95, 10).astype(np.float32),
        "label": [row % 2 == 1 for row in range(10)],
    }
    return write(path, columns, places, keys=["patient"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 20,000 rows, more than are drawn as points."""
    path = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    columns = {
        "patient": np.arange(20_000),
        "query": ["stroke", "fracture", None, "sepsis"] * 5000,
        "duration_days": np.array([30.0, 365.0] * 10_000, np.float32),
        "prob": generator.random(20_000, np.float32),
        "label": generator.random(20_000) < 0.5,
        "when": np.datetime64("2026-01-01", "us") + np.arange(20_000) * np.timedelta64(1, "h"),
    }
    vectors = generator.normal(size=(20_000, 6)).astype(np.float32) * np.array([9, 4, 1, 1, 1, 1], np.float32)
    report(write(path / "many.zarrow", columns, vectors, keys=["patient"]), path / "many.html")
    return path / "many.html"


def test_points_tell_who_they_are(tmp_path: Path, browser: Any) -> None:
    """Pointing at a row shows its identifier and probability; the arrow keys also announce them."""
    store = ten_rows(tmp_path / "run.zarrow")
    report(store, tmp_path / "a.html")
    with Opened(browser, tmp_path / "a.html") as page:
        assert page.title() == "run.zarrow"
        box = page.locator("#map").bounding_box()
        seen = set()
        for x in np.linspace(0.01, 0.99, 30):
            for y in (0.1, 0.25, 0.5, 0.75, 0.9):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
                seen |= set(re.findall(r"patient-\d", page.locator("#detail").inner_text()))
        assert len(seen) >= 4
        page.locator("#map").focus()
        page.keyboard.press("Escape")
        assert "arrow keys move from row to row" in page.locator("#detail").inner_text()
        walked = set()
        keys = ["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft"]
        for key in [key for key in keys for _ in range(5)]:
            page.keyboard.press(key)
            said = page.locator("#said").inner_text()
            walked |= set(re.findall(r"patient: patient-\d; prob: 0\.\d+", said))
        assert len(walked) >= 5


def test_cells_of_many_rows(many: Path, browser: Any) -> None:
    """Many rows are counted in cells whose counts add up; each cell shows its count and an example."""
    assert many.stat().st_size < 2_000_000
    with Opened(browser, many) as page:
        assert "20,000 rows in" in page.locator("#map-title + p").inner_text()
        page.locator("#map").focus()
        page.keyboard.press("ArrowRight")
        said = page.locator("#said").inner_text()
        assert re.match(r"rows? here: \d+; prob, mean: 0\.\d+; label, mean: [\d.]+;", said)
        assert re.search(r"row: [\d,]+; patient: \d+; ", said)
        before = page.screenshot()
        page.get_by_label("Colour").select_option(label="query")
        assert page.locator("#legend li").all_inner_texts() == ["fracture", "sepsis", "stroke", "null"]
        page.get_by_role("button", name="Zoom in").click()
        assert page.screenshot() != before
        packed = json.loads(page.locator("#map-data").text_content())["count"]["data"]
        counts = np.frombuffer(base64.b64decode(packed))
        assert counts.sum() == 20_000


def test_tables_sort(many: Path, browser: Any) -> None:
    """A click or Enter on a heading sorts by it, numbers as numbers, and announces the order."""
    with Opened(browser, many) as page:
        table = page.get_by_role("region", name="Evaluation").locator("table")
        head = table.get_by_role("columnheader", name="AUROC")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        shown = [
            float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(5)").all_inner_texts()
        ]
        assert shown == sorted(shown, reverse=True)
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_dark(many: Path, browser: Any, scheme: str) -> None:
    """On a phone nothing overflows and buttons are large enough; contrast suffices in light and dark."""
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with Opened(browser, many, color_scheme=scheme, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = sum(map(int, re.findall(r"\d+", paper)[:3])) < 200
        assert dark == (scheme == "dark")
        for name in ("Zoom in", "Zoom out", "Show all"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert min(box["width"], box["height"]) >= 40
        contrasts = page.evaluate(
            CONTRAST, "h1, h2, h3, p, dt, dd, th, td, figcaption, footer, button, select, .good"
        )
        assert min(contrasts) >= 4.5
        box = page.locator("#map").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert "here" in page.locator("#detail").inner_text()


def test_charts_have_the_colours_of_the_page(many: Path, browser: Any) -> None:
    """The curves of the charts are drawn in the page's accent, which differs in light and dark."""
    for scheme, accent in (("light", "rgb(0, 96, 168)"), ("dark", "rgb(124, 196, 245)")):
        with Opened(browser, many, color_scheme=scheme) as page:
            assert page.locator("svg.chart").count() == 3
            assert page.locator("svg [style], svg style").count() == 0
            for name in ("ROC curve", "Calibration"):
                curve = page.get_by_role("img", name=name).locator("path[stroke='var(--accent)']").first
                assert curve.evaluate("(curve) => getComputedStyle(curve).stroke") == accent


def test_a_table_shows_that_it_goes_on(many: Path, browser: Any) -> None:
    """An edge that hides columns is shaded until the table is scrolled to the last column."""
    with Opened(browser, many, viewport={"width": 375, "height": 760}) as page:
        box = page.locator(".scroll").first
        box.scroll_into_view_if_needed()

        def edge() -> float:
            """Return how dark the last pixels before the border are, below the header."""
            place = box.bounding_box()
            clip = {"x": place["x"] + place["width"] - 4, "y": place["y"] + 40, "width": 2, "height": 60}
            pixels = matplotlib.image.imread(io.BytesIO(page.screenshot(clip=clip)))
            return float(np.median(pixels[..., :3]))

        hidden = edge()
        box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
        assert hidden < 0.9 < edge()


@pytest.mark.parametrize(("media", "width"), [("screen", 1280), ("print", 794)])
def test_no_table_is_cut(many: Path, browser: Any, media: str, width: int) -> None:
    """On a desktop's screen and on A4 paper every table is there as a whole."""
    with Opened(browser, many, viewport={"width": width, "height": 900}) as page:
        page.emulate_media(media=media)
        too_wide = (
            "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.ariaLabel)"
        )
        assert page.eval_on_selector_all(".scroll", too_wide) == []


def test_the_map_is_coloured_by_what_the_rows_are(tmp_path: Path) -> None:
    """Without a probability the map is coloured by classes, before a split or a part of the key."""
    number = np.arange(400)
    columns = {"copy": number % 2, "patient": number, "split": (number // 7) % 2, "digit": number % 10}
    store = write(
        tmp_path / "run.zarrow",
        columns,
        np.random.default_rng(0).random((400, 3)).astype("f4"),
        keys=["patient", "copy"],
    )
    report(store, tmp_path / "run.html")
    named = re.search(r'<select id="colour">(.*?)</select>', (tmp_path / "run.html").read_text(), re.DOTALL)
    assert named is not None
    assert re.findall(r"<option[^>]*>(.*?)</option>", named[1])[:3] == ["digit", "split", "copy"]


def test_everything_has_a_name(many: Path, browser: Any) -> None:
    """Everything that can be focused or seen has an accessible name; headings do not skip a level."""
    with Opened(browser, many) as page:
        assert page.get_by_role("application", name=re.compile("Map of 20,000 rows")).count() == 1
        assert page.get_by_role("combobox", name="Colour").count() == 1
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, select, canvas, svg, [tabindex], a')]"
            ".filter((e) => !(e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length))).length"
        )
        assert nameless == 0
        levels = page.evaluate(
            "[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))"
        )
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


def hostile(path: Path) -> Store:
    columns = pa.table({HOSTILE: [HOSTILE, "b"], "prob": [0.1, 0.9], "label": [True, False]})
    said = {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
    return write(path, columns, np.eye(2, 3, dtype=np.float32), provenance=said)


def test_hostile_text_stays_text(tmp_path: Path, browser: Any) -> None:
    """Names, values, title and provenance that look like markup are shown as text, and nothing runs."""
    store = hostile(tmp_path / "run.zarrow")
    report(store, tmp_path / "a.html", title=HOSTILE, by=HOSTILE, colours=[HOSTILE])
    with Opened(browser, tmp_path / "a.html") as page:
        for _ in range(3):
            page.locator("#map").focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowLeft")
        assert page.evaluate("window.stolen") is None
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2
        for place in ("h1", "#detail", "#legend", "main"):
            assert "<script>window.stolen=1</script>" in page.locator(place).inner_text()


def test_the_policy_holds_without_the_escaping(tmp_path: Path, browser: Any) -> None:
    """A script that is not the page's own does not run, even if it gets into the page."""
    report(ten_rows(tmp_path / "run.zarrow"), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    (tmp_path / "b.html").write_text(page.replace("<h1>", "<script>window.stolen=1</script><h1>"))
    opened = Opened(browser, tmp_path / "b.html")
    assert opened.page.evaluate("window.stolen") is None
    assert any("Content Security Policy" in text for text in opened.wrong)
    opened.context.close()


class Strict(HTMLParser):
    """Counts the tags of a page without a browser."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_hostile_text_without_a_browser(tmp_path: Path) -> None:
    """The page has no foreign element and no address."""
    report(hostile(tmp_path / "run.zarrow"), tmp_path / "a.html", title=HOSTILE)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    parser = Strict()
    parser.feed(page)
    assert parser.tags.count("script") == 2
    assert "img" not in parser.tags
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(tmp_path: Path, browser: Any, rows: int) -> None:
    """Pages for zero, one or two rows are made without an error."""
    columns = {"prob": np.zeros(rows, np.float32), "label": pa.array([None] * rows, pa.bool_())}
    store = write(tmp_path / "run.zarrow", columns, np.zeros((rows, 3), np.float32))
    report(store, tmp_path / "a.html")
    with Opened(browser, tmp_path / "a.html") as page:
        assert str(rows) in page.locator(".cards").inner_text()
        assert "No row has both a label" in page.inner_text("main")


def test_odd_stores(tmp_path: Path, browser: Any) -> None:
    """Stores without arrays, without columns, and of NaN only get a page."""
    table_only = write(tmp_path / "table.zarrow", {"x": [1, 2, 3]}, None)
    arrays_only = write(tmp_path / "arrays.zarrow", None, np.eye(30, 2, dtype=np.float32))
    bad = write(tmp_path / "nan.zarrow", {"x": [1, 2, 3]}, np.full((3, 4), np.nan, np.float32))
    for store, expected in (
        (table_only, "no array to make a map of"),
        (arrays_only, "no columns of its own"),
        (bad, "3 rows of vectors hold NaN or infinity"),
    ):
        report(store, tmp_path / "a.html")
        with Opened(browser, tmp_path / "a.html") as page:
            assert expected in page.inner_text("body")


def test_a_stored_map_is_shown(tmp_path: Path) -> None:
    """The page shows the stored map, and ``map=`` selects one."""
    store = ten_rows(tmp_path / "run.zarrow")
    map_rows(store, name="mine")
    zarrow.add_array(store.path, "wide", np.zeros((10, 5)))
    store = zarrow.open(store.path)
    report(store, tmp_path / "a.html")
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', (tmp_path / "a.html").read_text())[1])
    xs = np.frombuffer(base64.b64decode(data["x"]["data"]), np.float32)
    assert np.array_equal(xs, store["mine"][:, 0])
    with pytest.raises(InvalidInputError, match="two values per row"):
        report(store, tmp_path / "a.html", map="wide")


def test_bad_input_leaves_the_page_that_was_there(tmp_path: Path) -> None:
    """Bad input is refused, and an earlier page stays."""
    store = example_predictions()
    page = tmp_path / "a.html"
    page.write_text("earlier")
    with pytest.raises(UnknownNameError, match="nope"):
        report(store, page, colours=["nope"])
    with pytest.raises(UnknownNameError, match="nope"):
        report(store, page, probability="nope")
    with pytest.raises(InvalidInputError, match="must be booleans"):
        report(ten_rows(tmp_path / "run.zarrow"), page, label="patient")
    with pytest.raises(WriteFailedError, match="no such directory"):
        report(store, tmp_path / "none" / "a.html")
    assert page.read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "run.zarrow"]


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C while it runs leaves the page that was there, and no scratch file."""
    page = tmp_path / "a.html"
    page.write_text("earlier")

    def stop(what: str) -> None:
        if what == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(example_predictions(), page, stage=stop)
    assert page.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_command(tmp_path: Path) -> None:
    """`zarrow report` writes the page and prints its size; --json prints one object."""
    page = tmp_path / "a.html"
    path = str(example_predictions().path)
    printed = CliRunner().invoke(app, ["report", path, "-o", str(page), "--json"])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == {"file": str(page), "bytes": page.stat().st_size}
    printed = CliRunner().invoke(app, ["report", path, "-o", str(page), "--by", "nope"])
    assert printed.exit_code == 2
    assert "nope" in printed.stderr


GROWTH = """
import sys, threading, time
import numpy as np
import zarrow
from zarrow.analysis.report import report

folder, peak = sys.argv[1], 0


def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.005)


threading.Thread(target=watch, daemon=True).start()
values = np.random.default_rng(0)
for rows in (1_100_000, 2_500_000):
    with zarrow.Writer(f"{folder}/{rows}") as writer:
        for start in range(0, rows, 50_000):
            prob = values.random(50_000, np.float32)
            label, days = values.random(50_000) < prob, values.integers(1, 3, 50_000)
            writer.append({"prob": prob, "label": label, "days": days, "id": np.arange(50_000)}, {})
        writer.finalize()
    report(zarrow.open(f"{folder}/{rows}"), f"{folder}/{rows}.html", by="days")
    print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A page about 2.5 million rows takes little more memory than one about 1.1 million."""
    command = [sys.executable, "-c", GROWTH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert second - first < 60_000, f"{first} kB, then {second} kB"
