"""Guides — every block of every page runs, every link leads somewhere, and ``zarrow docs`` shows them."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud.servers import serve
from typer.testing import CliRunner

from zarrow.cli import app

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "examples" / "guides"
PAGES = sorted(GUIDES.glob("*.md"))
TOPICS = sorted([*{page.stem for page in PAGES} - {"index"}, "format"])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield the language, the line and the text of every block."""
    for found in BLOCK.finditer(text):
        yield found[1], text.count("\n", 0, found.start(2)), found[2]


def run_command(line: str) -> None:
    """Run a line of a shell block: a command of zarrow's in this process, a script in another one."""
    words = shlex.split(line, comments=True)
    expected = int(found[1]) if (found := re.search(r"# exit code (\d+)$", line)) else 0
    if words[:2] == ["zarrow", "predict"]:  # LightningCLI: in a process of its own
        words = ["python", "-m", *words]
    if words[0] == "zarrow":
        result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "200"})
        code, output = result.exit_code, f"{result.output}\n{result.exception!r}"
    elif words[0] == "pip":
        extra = re.fullmatch(r"zarrow\[(.+)\]", words[-1])
        assert extra is not None
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extra[1].split(",")) <= set(known)
        return
    else:
        assert words[0] == "python", f"a shell block may call zarrow, python and pip, not {words[0]}"
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, *words[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        code, output = done.returncode, done.stdout + done.stderr
    assert code == expected, f"{line}\n{output}"


def run_page(page: Path) -> int:
    """Run the blocks of a page in order in the current directory, and return their number."""
    pasted: dict[str, object] = {"__name__": "__main__"}
    found = list(blocks(page.read_text(encoding="utf-8")))
    for language, line, code in found:
        if language == "python":
            if script := re.match(r"# (\w+\.py)\n", code):
                Path(script[1]).write_text(code)
            else:  # the empty lines make tracebacks show the page's own line numbers
                exec(compile("\n" * line + code, page, "exec"), pasted)
        elif language == "bash":
            for command in code.replace("\\\n", " ").splitlines():
                run_command(command)
        else:  # what a shell would print, a drawing, or what needs another environment
            assert language == "text", f"{page.name}, line {line}: a block must be python, bash or text"
    return len(found)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted one after the other, the blocks of a page raise no error and no warning."""
    if page.stem == "on-a-bucket":
        server = serve()
        for name, value in next(server)("results").options.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    run_page(page)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def test_a_failing_block_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner reports an error of Python, a wrong exit code and an unknown language."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    for block in (
        "python\n1 / 0",
        "bash\nzarrow info missing.zarrow",
        "bash\nmake",
        "\nanything",
        "bash\npip install zarrow[x]",
    ):
        page.write_text(f"```{block}\n```\n")
        with pytest.raises((AssertionError, ZeroDivisionError)):
            run_page(page)
    page.write_text("```bash\nzarrow info missing.zarrow  # exit code 2\n```\n")
    assert run_page(page) == 1


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every file, picture and heading that a page links to exists."""
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8")))
    for link in links:
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_names_every_page() -> None:
    """Every page is in the index once, with what it is about, and begins with a title."""
    entries = re.findall(
        r"^\* \[([\w-]+)\]\(.*?([\w-]+)\.md\): .+$", (GUIDES / "index.md").read_text(), re.MULTILINE
    )
    assert [name for name, file in entries if name != file.lower()] == []
    assert sorted(name for name, _ in entries) == sorted(
        [*{page.stem for page in PAGES} - {"index"}, "format"]
    )
    assert [page.name for page in PAGES if not page.read_text(encoding="utf-8").startswith("# ")] == []


def test_the_reference_is_up_to_date() -> None:
    """The generated pages are those of the code; `python3 .ci/reference.py` writes them."""
    script = str(ROOT / ".ci" / "reference.py")
    command = [sys.executable, script, "--check"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python3 .ci/reference.py\n{done.stdout}{done.stderr}"


def test_a_stale_reference_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that differs from the code in one character is stale, and is written again."""
    generator = runpy.run_path(str(ROOT / ".ci" / "reference.py"))
    main = generator["main"]
    monkeypatch.setitem(main.__globals__, "GUIDES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    assert main() == 0
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert main() == 0
    page = tmp_path / "reference-errors.md"
    page.write_text(page.read_text().replace("BatchError", "BitchError", 1))
    assert main() == 1


class TestDocs:
    def run(self, *arguments: str):
        return CliRunner().invoke(app, ["docs", *arguments], env={"COLUMNS": "200"})

    def test_lists_every_topic(self):
        """Without a topic, every page is named with what it is about."""
        result = self.run()
        assert result.exit_code == 0
        named = re.findall(r"^  ([\w-]+) +\w", result.output, re.MULTILINE)
        assert sorted(named) == TOPICS

    @pytest.mark.parametrize("topic", ["resume", "Resume.md", "verify_repair", "format"])
    def test_prints_a_page(self, topic):
        """A topic's page is printed as it is, however the topic is written."""
        result = self.run(topic)
        name = topic.lower().removesuffix(".md").replace("_", "-")
        page = ROOT / "src/zarrow/FORMAT.md" if name == "format" else GUIDES / f"{name}.md"
        assert result.exit_code == 0
        assert result.output.strip() == page.read_text(encoding="utf-8").strip()

    def test_suggests_topics(self):
        """A topic that does not exist is an error that suggests one."""
        result = self.run("resum")
        assert result.exit_code == 2
        assert "did you mean 'resume'" in result.output

    def test_formats_in_a_terminal(self, monkeypatch):
        """A terminal gets headings and tables, not Markdown."""
        from rich.console import Console

        from zarrow._commands import guides

        console = Console(force_terminal=True, width=100, record=True)
        monkeypatch.setattr(guides, "out", console)
        assert self.run("glossary").exit_code == 0
        assert "| word |" not in console.export_text()

    def test_says_that_guides_are_missing(self, monkeypatch, tmp_path):
        """An installation without guides says so."""
        from zarrow._commands import guides

        monkeypatch.setattr(guides, "FOLDERS", (tmp_path,))
        result = self.run()
        assert result.exit_code == 2
        assert "has no guides" in result.output
