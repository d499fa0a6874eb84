"""Errors — their tree, their messages, and that they cross process boundaries."""

import errno
import pickle
import re
from pathlib import Path

import pytest

from zarrow import errors

_LINE = re.compile(r"^(?P<indent>[ │├└─]*)(?P<name>\w+Error)(?: \((?P<builtin>\w+)\))?(?: |$)")


def _drawn() -> dict[str, tuple[str | None, str | None]]:
    """Return the parent and the builtin of every class in the tree drawn in the module's docstring."""
    drawing = (errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in drawing.splitlines():
        match = _LINE.match(line)
        assert match, line
        depth = len(match["indent"])
        while above and above[-1][0] >= depth:
            above.pop()
        found[match["name"]] = (above[-1][1] if above else None, match["builtin"])
        above.append((depth, match["name"]))
    return found


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """The tree in the header has every public class, below the class it derives from."""
    drawn = _drawn()
    assert sorted(drawn) == sorted(errors.__all__)
    for name, (parent, builtin) in drawn.items():
        kind = getattr(errors, name)
        public = [base for base in kind.__mro__[1:] if base.__name__ in drawn]
        assert (public[0].__name__ if public else None) == parent, name
        if builtin is not None:
            assert issubclass(kind, getattr(__import__("builtins"), builtin)), name


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_says_what_it_does(name: str) -> None:
    """Every class has a docstring and shows its message unchanged."""
    kind = getattr(errors, name)
    assert kind.__doc__
    error = kind(errno.ENOSPC, "disk full") if name == "WriteFailedError" else kind("the message")
    assert ("disk full" if name == "WriteFailedError" else "the message") in str(error)
    assert not str(error).startswith(("'", '"'))


def test_a_failed_write_says_which_rows_are_safe() -> None:
    """The error has the error number and the safe rows as attributes."""
    error = errors.WriteFailedError(errno.ENOSPC, "full", accepted_rows=7, durable_rows=3)
    assert (error.errno, error.accepted_rows, error.durable_rows) == (errno.ENOSPC, 7, 3)
    with pytest.raises(OSError, match="full"):
        raise error


def test_damage_names_its_file() -> None:
    """A handler reads the damaged file and the reason off the error, also in another process."""
    error = pickle.loads(pickle.dumps(errors.CorruptionError("too short", path=Path("a/b"))))
    assert (error.path, error.reason, str(error)) == ("a/b", "too short", "a/b: too short")
    assert errors.CorruptionError("too short").path is None


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_cross_processes(name: str) -> None:
    """An error raised in a worker process arrives complete in its parent."""
    kind = getattr(errors, name)
    if name == "WriteFailedError":
        error = kind(errno.EIO, "broken", accepted_rows=7, durable_rows=3)
    else:
        error = kind("the message")
    assert isinstance(kind.__new__(kind, "the message"), kind)  # as dask unpickles it
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("name", errors.__all__)
def test_no_error_acts_on_a_terminal(name: str) -> None:
    """What a hostile store brings into a message cannot clear the screen, or pretend to be another line."""
    kind = getattr(errors, name)
    text = "a \x1b[2J \r\n \x9b \u202e \udcff é"
    error = kind(errno.EIO, text) if name == "WriteFailedError" else kind(text)
    assert str(error).endswith(r"a \x1b[2J \r\n \x9b \u202e \udcff é")
