"""Interrupts — Ctrl-C while a command starts, at one of its imports after another."""

import json
import subprocess
import sys

import pytest

import zarrow.testing

STRIKES = """
import json, os, signal, sys

SIGNAL = signal.SIGINT
argv, moments = json.loads(sys.argv[1]), json.loads(sys.argv[2])


def start(moment):
    # Counted from the import of the command line: what comes before takes milliseconds, of which Python's own
    # start is most.
    seen = None

    def hook(event, args):
        nonlocal seen
        if event == "import" and (seen is not None or args[0] == "zarrow.cli"):
            seen = (seen or 0) + 1
            if seen == moment:
                os.kill(os.getpid(), SIGNAL)

    sys.addaudithook(hook)
    sys.argv = ["zarrow", *argv]
    from zarrow.__main__ import main

    try:
        main()
    finally:
        if moment == 0:
            os.write(2, f"{seen} imports".encode())


for moment in moments:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        start(moment)
    os.close(write)
    with open(read, "rb") as pipe:
        errors = pipe.read().decode()
    print(json.dumps([moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors]), flush=True)
"""


def strike(argv: list[str], moments: list[int]) -> list[tuple[int, int, str]]:
    """Run a command once per moment, and interrupt it at its import of that number; never, if that is 0.

    Each is a fork of an interpreter that has imported nothing of it. Returns moment, exit code, errors.
    """
    words = [sys.executable, "-c", STRIKES, json.dumps(argv), json.dumps(moments)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("command", "count"), [(["info", "STORE"], 40), (["describe", "STORE"], 12)])
def test_ctrl_c_while_a_command_starts_is_one_line(command: list[str], count: int) -> None:
    """At whichever import Ctrl-C strikes, the command says so in one line and exits with 130."""
    store = str(zarrow.testing.example_store().path)
    argv = [store if word == "STORE" else word for word in command]
    [(_, code, errors)] = strike(argv, [0])
    assert code == 0, errors
    imports = int(errors.removesuffix(" imports").rpartition("\n")[2])
    assert imports > 3 * count  # not all of them were there before
    moments = [1 + place * (imports - 1) // (count - 1) for place in range(count)]
    wrong = [one for one in strike(argv, moments) if one[1:] != (130, "interrupted\n")]
    assert wrong == []
