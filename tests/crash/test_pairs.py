"""Pairs — any two commands at once on one store, with one of them killed or neither, leave it whole."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import zarrow
from crash import pairs
from crash.pairs import (
    APPENDED,
    BASE,
    COMMANDS,
    EXPORTS,
    IMPORTED,
    LATER,
    NEW_ROWS,
    OPEN,
    PREDICTED,
    REPLACED,
    ROWS,
    STREAM,
    append,
    check,
)  # fmt: skip
from crash.states import Tally
from crash.workloads import scratch
from zarrow import transfer
from zarrow.errors import CorruptionError, IncompleteStoreError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks")]

SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from crash import pairs
pairs.serve(Path(sys.argv[2]), sys.argv[3])
"""
SAME_ROWS = {
    "pack", "sort", "pack_out", "index", "add", "remove", "map", "export", "verify", "info", "read",
}  # fmt: skip
REPLACING = {"replace": REPLACED, "import_": IMPORTED}
SCRATCH = {"replace", "import_", "pack", "sort"}
"""Those that leave NAME.incoming if they are killed."""


class Server:
    """The process that forks the commands."""

    def __init__(self, templates: Path, predicts: bool) -> None:
        found = os.pathsep.join(path for path in sys.path if path)
        words = [sys.executable, "-c", SERVER, Path(__file__).parent.parent, templates, "predict" * predicts]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, *words: object) -> str:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def content(store: zarrow.Store) -> np.ndarray:
    """Return the identifiers of a store's rows, all of which were checked."""
    table, vectors = store.take(np.arange(len(store)), check="crc")
    ids = table["id"].to_numpy()
    check(ids, vectors["e"], "the store")
    assert table["s"].to_pylist() == pairs.names_of(ids), "columns of other rows"
    for name in ("a", "d"):
        if name in store.derived:
            assert np.array_equal(store.derived[name][:], pairs.doubled(store)), f"{name} is of other rows"
    return ids


def exported(top: Path, kind: str) -> np.ndarray | None:
    """Return the identifiers of the rows that an export wrote; None if there is none."""
    target = top / EXPORTS[kind]
    if not target.exists():
        return None
    if kind == "parquet":
        table = pq.read_table(target)
        ids = table["id"].to_numpy()
        vectors = np.stack(table["e"].to_numpy())
    elif kind == "npy":
        ids = pq.read_table(target / "metadata/metadata_0.parquet")["id"].to_numpy()
        vectors = np.load(target / "e/e_0.npy")
    else:
        group = zarr.open_group(target, mode="r")
        ids, vectors = group["obs/id"][:], group["obsm/e"][:]
    check(ids, vectors, f"the export as {kind}")
    return ids


class Trial:
    """Two commands at once, and what must hold afterwards."""

    def __init__(self, top: Path, base: str, names: tuple[str, str], kind: str) -> None:
        self.top, self.base, self.names, self.kind = top, base, names, kind
        self.path = top / "run.zarrow"
        self.killed = [False, False]
        self.said: list[dict[str, Any]] = [{}, {}]

    def judge(self) -> None:
        said = [self.top / f"result-{number}.json" for number in (0, 1)]
        self.said = [json.loads(path.read_text()) if path.exists() else {} for path in said]
        for said in self.said:
            assert "failed" not in said, said["failed"]
        may_be_damaged = self.base == "damaged"
        for said in self.said:
            assert may_be_damaged or not said.get("damage"), f"damage: {said['damage']}"
        self.users_files()
        self.exports()
        repaired = any(self.done(n) for n in (0, 1) if self.names[n] == "repair")
        try:
            with zarrow.open(self.path, partial=True) as store:
                before = content(store)
                self.rows(before)
                self.derived(store)
            assert may_be_damaged or not [
                one for one in zarrow.verify(self.path).findings if one.severity == "damage"
            ], "damage"
        except CorruptionError:
            if not may_be_damaged or repaired:
                raise
            zarrow.repair(self.path)
            with zarrow.open(self.path, partial=True) as store:
                before = content(store)
        self.go_on(set(before.tolist()))

    def done(self, number: int) -> bool:
        return "ended" in self.said[number]

    def users_files(self) -> None:
        assert (self.top / "other.txt").read_text() == "the user's"
        assert (self.path / "notes.txt").read_text() == "the user's", "a file of the user's is gone"
        known = {"run.zarrow", "other.txt", "source.parquet", "packed.zarrow", *EXPORTS.values()}
        left = {name for name in os.listdir(self.top) if not name.startswith("result-")} - known
        for number, name in enumerate(self.names):
            if self.killed[number] and name in SCRATCH:
                left.discard("run.zarrow.incoming")
            if self.killed[number] and name == "pack_out":
                left.discard("packed.zarrow.incoming")
            if self.killed[number] and name == "export":
                left = {one for one in left if not one.endswith(".exporting")}
        assert not left, f"left behind: {left}"

    def exports(self) -> None:
        ids = exported(self.top, self.kind)
        if ids is not None:
            self.rows(ids, exact=False)
        for number, name in enumerate(self.names):
            assert name != "export" or not self.done(number) or ids is not None, "no export"
            if name == "pack_out" and self.done(number):
                self.rows(content(zarrow.open(self.top / "packed.zarrow")), exact=False)

    def rows(self, ids: np.ndarray, *, exact: bool = True) -> None:
        """Check which rows are there: `exact` for those of the store in the end, not of one instant."""
        streams: dict[int, set[int]] = {}
        for one in ids.tolist():
            streams.setdefault(one // STREAM, set()).add(one % STREAM)
        replaced = [one for one in streams if any(one // 10 * 10 == first for first in REPLACING.values())]
        for one in replaced:
            assert streams[one] == set(range(NEW_ROWS)), f"only {len(streams[one])} rows of a new store"
        also = replaced and "predict" in self.names  # which goes on with any store
        assert also or len(replaced) + (BASE in streams) == 1, f"rows of several stores: {[*streams]}"
        for number, name in enumerate(self.names):
            have = streams.get(APPENDED + number, set())
            assert have == set(range(len(have))), f"rows of an append are no prefix: {have}"
            if name == "append" and exact and not (replaced and self.other(number) in REPLACING):
                least = NEW_ROWS if self.done(number) else self.said[number].get("accepted", 0)
                assert len(have) >= least, f"{len(have)} of {least} accepted rows are left"
            if name in REPLACING and exact and self.done(number) and self.other(number) not in REPLACING:
                assert replaced, "a finished replacement is gone"
        if replaced:
            return
        predicted = any(name == "predict" and self.done(one) for one, name in enumerate(self.names))
        wanted = set(range(ROWS if self.base != "predict" or (predicted and exact) else PREDICTED))
        lost = wanted - streams[BASE]
        assert lost <= (set(pairs.LOST) if self.base == "damaged" else set()), f"rows are lost: {lost}"
        if self.base == "open":
            assert streams.get(OPEN, set()) == set(range(pairs.OPEN_ROWS)), (
                "rows of the open segment are lost"
            )

    def other(self, number: int) -> str:
        return self.names[1 - number]

    def derived(self, store: zarrow.Store) -> None:
        """Check that no array is lost that belongs to the rows."""
        if self.base != "complete" or not set(self.names) <= SAME_ROWS:
            return
        assert "d" in store.derived or "remove" in self.names, "a derived array is lost"
        for number, name in enumerate(self.names):
            if name in ("add", "map") and self.done(number):
                assert {"add": "a", "map": "m"}[name] in store.derived, f"what {name} added is lost"

    def go_on(self, before: set[int]) -> None:
        """Append, finalize, verify, export: nothing that was left behind is in the way."""
        try:
            writer = zarrow.Writer(self.path, mode="a")
        except CorruptionError:
            if self.base != "damaged":
                raise
            zarrow.repair(self.path)
            writer = zarrow.Writer(self.path, mode="a")
        with writer:
            append(writer, LATER, 0, 5)
            writer.finalize(partial=True)
        with contextlib.suppress(IncompleteStoreError):
            assert zarrow.repair(self.path, finalize=True).nothing_to_do or self.base == "damaged"
        report = zarrow.verify(self.path, "full")
        assert report.ok, [str(one) for one in report.findings]
        with zarrow.open(self.path) as store:
            after = set(content(store).tolist())
            lost = before - after
            assert lost <= (set(pairs.LOST) if self.base == "damaged" else set()), f"lost later: {lost}"
            assert len(after - before) == 5
            zarrow.add_array(store, "a", pairs.doubled(store))
        left = set(os.listdir(self.path / "open"))
        assert left <= {"lock"}, f"left in open/: {left}"
        transfer.export(self.path, self.top / EXPORTS[self.kind], self.kind, overwrite=True)
        assert set(exported(self.top, self.kind).tolist()) == after
        assert not [name for name in os.listdir(self.top) if name.endswith(".exporting")]
        zarrow.pack(self.path, order="id", codecs="zstd")
        with zarrow.open(self.path) as store:
            assert set(content(store).tolist()) == after
            assert "a" in store.derived
        assert not (self.top / "run.zarrow.incoming").exists()
        assert (self.path / "notes.txt").exists()


class Pairs:
    """Starts two commands at once, and learns how long they take."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        self.server, self.rng = server, rng
        self.length_s: dict[str, float] = defaultdict(lambda: 0.2)
        self.calls: dict[str, int] = defaultdict(lambda: 100)

    def start(self, trial: Trial, number: int, stop_at: int = -1) -> int:
        words = (trial.names[number], trial.top, number, self.rng.getrandbits(30), trial.kind, stop_at)
        return int(self.server.ask(*words))

    def run(self, trial: Trial, kill: int | None) -> None:
        """Run both at once, or one while the other is stopped at one of its calls; kill one or none."""
        apart = self.rng.random() < 0.5 and kill != 1
        first, *_ = trial.names
        stop_at = self.rng.randint(1, int(1.1 * self.calls[first]) + 1) if apart else -1
        children = [self.start(trial, 0, stop_at)]
        ends = ["stopped", "stopped"]
        if apart:
            ends[0] = self.server.ask("wait", children[0])
        else:
            time.sleep(self.rng.random() * self.length_s[first] * self.rng.choice([0, 0.3, 1]))
        children.append(self.start(trial, 1))
        if apart:
            ends[1] = self.server.ask("wait", children[1])
        elif kill is not None:
            time.sleep(self.rng.random() * 1.2 * self.length_s[trial.names[kill]])
        for number, child in enumerate(children):
            with contextlib.suppress(ProcessLookupError):
                if ends[number] == "stopped":
                    os.kill(child, signal.SIGKILL if number == kill else signal.SIGCONT)
        for number, child in enumerate(children):
            if ends[number] == "stopped":
                ends[number] = self.server.ask("wait", child)
        trial.killed = [int(end) == signal.SIGKILL for end in ends]

    def learn(self, trial: Trial) -> None:
        for name, said in zip(trial.names, trial.said, strict=True):
            if "ended" in said:
                self.calls[name] = said["calls"]
                self.length_s[name] += 0.2 * (min(said["ended"] - said["began"], 3) - self.length_s[name])


def test_any_two_commands_at_once_leave_a_whole_store(figures, profile):
    """Rows are there once, vectors and derived arrays belong to them, and the store can be gone on with."""
    rng = random.Random(7)
    names = [*COMMANDS, *(["predict"] if profile == "long" else [])]
    runs = [
        (pair, kill)
        for pair in itertools.combinations_with_replacement(names, 2)
        for kill in (0, 1, None)
        for _ in range(5)
    ]
    rng.shuffle(runs)
    tally = Tally()
    kills = 0
    with scratch() as templates, scratch() as place:
        server = Server(templates, predicts=profile == "long")
        both = Pairs(server, rng)
        with server.process:
            for pair, kill in runs if profile == "long" else runs[:14]:
                bases = ["predict"] if "predict" in pair else ["complete", "complete", "open", "damaged"]
                names = pair if rng.random() < 0.5 else pair[::-1]
                trial = Trial(place / str(tally.states), rng.choice(bases), names, rng.choice(list(EXPORTS)))
                shutil.copytree(templates / trial.base, trial.top)
                both.run(trial, kill)
                tally.states += 1
                kills += any(trial.killed)
                try:
                    trial.judge()
                except Exception as error:  # noqa: BLE001 - any exception makes the state bad
                    killed = [name for name, dead in zip(names, trial.killed, strict=True) if dead]
                    what = f"{names} on {trial.base}, killed: {killed}"
                    tally.bad.append(f"{what}: {type(error).__name__}: {error}")
                both.learn(trial)
                shutil.rmtree(trial.top)
            server.process.stdin.close()
    figures("pairs of commands at once", runs=tally.states, kills=kills, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])
