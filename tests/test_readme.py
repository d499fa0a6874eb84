"""README — its Python blocks run in order, it is short, and CI finds its two commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[int, str]]:
    """Return the README's code blocks of a language, with the lines on which they start."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [(README.count("\n", 0, match.start(1)), match[1]) for match in found]


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted one after the other, the Python blocks raise no error and no warning."""
    monkeypatch.chdir(tmp_path)
    pasted: dict[str, object] = {}
    found = blocks("python")
    assert len(found) >= 3
    for line, code in found:
        # The empty lines make tracebacks show the README's own line numbers.
        exec(compile("\n" * line + code, ROOT / "README.md", "exec"), pasted)


def test_it_is_read_in_a_minute() -> None:
    """What does not fit into 150 lines is in the guides."""
    assert README.count("\n") <= 150


@pytest.mark.parametrize("name", ["run", "test"])
def test_commands_are_one_line_each_and_where_ci_looks(name: str) -> None:
    """The run and the test command are one line each, after the marker that CI looks for."""
    command = re.search(rf"^<!-- ci: {name} -->\n```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert command is not None
    assert command[1].count("\n") == 1
    assert "python3 -m venv" in command[1]
