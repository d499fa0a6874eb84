"""Mutations — any file or document of a store, changed in any way, and read on every surface.

One process reads all mutants, one after another. It must end every way of reading with rows, or with an error
of zarrow's, print nothing that acts on a terminal, and take little memory.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _storage import hostile_use
from _storage.test_hostile import SERVER, pad, part_facts, recommit, slot_of, write
from crash.workloads import scratch

import zarrow
from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.records import Claim, Owner, ShardFacts, Source
from zarrow._read import catalog

MEMORY_BYTES = 256 << 20
TIMEOUT_S = 60
DOCUMENTS = ("zarrow.json", "manifest.json", "segments/*.json", "segments/*.claim", "open/*/owner.json")
TEMPLATES = ("complete", "open", "claimed")
TOKENS = {
    "infinite": b"1e999",
    "no number": b"NaN",
    "digits": b"9" * 5000,
    "deep": b"[" * 20_000 + b"]" * 20_000,
    "half": rb'"\ud800"',
    "twice": b'{"a":1,"a":2}',
    "lists": b"[" + b"[]," * 300_000 + b"[]]",
}
"""JSON that `json.dumps` does not write."""
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, 1e308, "", "x", [], {}, [[]], {"": 0}),
    *(
        "\x1b[2J\x1b]0;owned\x07",
        "a\nb\r\x9b31m\u202e",
        "[bold red]x[/]",
        "../../x",
        "/etc/passwd",
        "é" * 9000,
    ),
    *([0] * 3000, ["x"] * 10, {"name": "pickle"}, "7" * 32, "0" * 16),
    *(f"@{name}@" for name in TOKENS),
)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store that is complete, with all that is derived, one that is not, and one with a claim."""
    directory = tmp_path_factory.mktemp("templates")
    write(directory / "complete.zarrow", finalize=True, ragged=True)
    zarrow.build_index(directory / "complete.zarrow")
    zarrow.add_array(directory / "complete.zarrow", "m", np.ones((13, 2), np.float32))
    write(directory / "open.zarrow", finalize=False, ragged=True)
    shutil.copytree(directory / "open.zarrow", directory / "claimed.zarrow")
    slot = slot_of(directory / "claimed.zarrow")
    owner = Owner.decode((slot / layout.OWNER_JSON).read_bytes(), "")
    source = Source(slot=slot.name, start=0, stop=5, session=owner.session, sequence=owner.sequence)
    claim = Claim(segment=1, sources=(source,))
    (directory / "claimed.zarrow" / layout.claim_path(1)).write_bytes(claim.encode())
    return directory


class Reader:
    """A process that reads stores."""

    def __init__(self) -> None:
        self._ours, theirs = SERVER.Pipe()
        self._process = SERVER.Process(target=hostile_use.use_many, args=(hostile_use.READING, theirs))
        self._process.start()
        theirs.close()

    def read(self, store: Path) -> dict[str, Any]:
        """Return how each way of reading ended."""
        self._ours.send(str(store))
        assert self._ours.poll(TIMEOUT_S), "the process hangs"
        return dict(self._ours.recv())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


# Mutations


def places(body: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a document."""
    members = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, value in members:
        yield (*at, name)
        yield from places(value, (*at, name))


def change_document(rng: random.Random, path: Path) -> str:
    """Change a value of a document, remove it, or add one, and sign it."""
    text = path.read_bytes()
    signed = text.endswith(b"}\n") and b'"crc32c":"' in text[-24:]
    body = json.loads(text)
    body.pop("crc32c", None)
    what = "nothing"
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        found = list(places(body))
        if not found:
            break
        *above, name = rng.choice(found)
        inside = body
        for step in above:
            inside = inside[step]
        value = copy.deepcopy(rng.choice(VALUES))  # which a later change may reach into
        what = f"{path.name}: {[*above, name]} = {str(value)[:40]!r}"
        kind = rng.randrange(8)
        if kind == 0:
            del inside[name]
        elif kind == 1 and isinstance(inside, list) and not isinstance(inside[name], list | dict):
            inside.extend([inside[name]] * rng.choice([1, 10, 10_000]))
        elif kind == 2 and isinstance(inside, dict):
            inside[rng.choice(["\x1b[2J", "", "a\nb", "__class__"])] = value
        else:
            inside[name] = value
    data = json.dumps(body, separators=(",", ":")).encode()
    for name, token in TOKENS.items():
        data = data.replace(f'"@{name}@"'.encode(), token)
    path.write_bytes(data[:-1] + b',"crc32c":"%08x"}\n' % crc32c(data[:-1]) if signed else data)
    return what


def change_bytes(rng: random.Random, path: Path) -> str:
    """Flip bits, cut, extend, or fill a file."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "grow", "hole", "zero", "numbers", "repeat"])
    place = rng.randrange(len(data) + 1)
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "grow":
        data[place:place] = rng.randbytes(rng.choice([1, 8, 5000]))
    elif kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "numbers":
        width = rng.choice([4, 8])
        data[place : place + width] = rng.choice([0, 1, 2**31, 2**32 - 1]).to_bytes(width, "little")
    elif kind == "repeat":
        data += bytes(data)
    path.write_bytes(data)
    if kind == "hole":
        os.truncate(path, rng.choice([1 << 20, 3 << 30, 1 << 40]))
        if rng.random() < 0.5:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\1")
    return f"{path.name}: {kind} at {place}"


def change_kind(rng: random.Random, path: Path) -> str:
    """Put something else where a file or a directory is."""
    kind = rng.choice(["link out", "link in", "pipe", "socket", "nothing", "directory", "file", "loop"])
    aside = path.parent.parent / "aside"
    shutil.move(path, aside)
    if kind == "link out":
        path.symlink_to(aside)
    elif kind == "link in":
        shutil.move(aside, path.with_name("real"))
        path.symlink_to("real")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        above = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{above}/{path.name}")
        os.close(above)
    elif kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(rng.randbytes(50))
    return f"{path.name}: {kind}"


def commit(store: Path) -> None:
    """Let records and manifest vouch for the files as they are."""
    spec = catalog.read_spec(store)
    for number in catalog.segment_numbers(store):
        record, _ = catalog.read_record(store, number, spec)
        arrays = {}
        for array in spec.arrays:
            data = small(store / array.shard_path(number))
            arrays[array.name] = facts_of(record.arrays[array.name], data, plain=array.is_plain)
        part = small(store / layout.part_path(number))
        recommit(store, number, part=part_facts(part), arrays=arrays)


def small(path: Path) -> bytes:
    """Return the content of a file that is neither a pipe nor huge."""
    if not path.is_file() or path.stat().st_size > 1 << 24:
        raise ValueError(path)
    return path.read_bytes()


def facts_of(facts: ShardFacts, data: bytes, *, plain: bool) -> ShardFacts:
    """Return what a record says of a shard with these bytes."""
    index = 16 * max(len(facts.chunks_crc32c), 1) + 4
    return ShardFacts(
        size_bytes=facts.size_bytes if plain else len(data),
        chunks_crc32c=(crc32c(data[:-index]),) if len(facts.chunks_crc32c) == 1 else facts.chunks_crc32c,
        index_crc32c=crc32c(data[-index:-4]),
    )


def mutate(rng: random.Random, store: Path) -> str:
    """Change a store, and perhaps let its records vouch for that."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    kind = rng.choice(["document", "document", "document", "bytes", "bytes", "kind", "member"])
    if kind == "document":
        found = [path for pattern in (*DOCUMENTS, "**/zarr.json") for path in store.glob(pattern)]
        done = change_document(rng, rng.choice(found))
    elif kind == "bytes":
        done = change_bytes(rng, rng.choice(files))
    elif kind == "member":
        pattern = rng.choice([one for one in DOCUMENTS if next(store.glob(one), None)])
        pad(pattern, rng.choice(list(TOKENS.values())))(store, store)
        done = f"{pattern}: a member more"
    else:
        done = change_kind(rng, rng.choice(sorted(store.rglob("*"))))
    if rng.random() < 0.5:
        try:
            commit(store)
            done += ", committed"
        except (zarrow.errors.ZarrowError, OSError, ValueError, KeyError, TypeError, IndexError):
            pass
    return done


def test_any_mutant_is_read_or_refused(templates: Path, profile: str, figures: Callable[..., None]) -> None:
    """Whatever is changed in a store, reading it gives rows, or an error of zarrow's, in bounded memory."""
    bad = {}
    seeds = range(24) if profile == "ci" else range(4000)
    reader = Reader()
    for seed in seeds:
        rng = random.Random(seed)
        with scratch() as directory:
            store = directory / "s.zarrow"
            shutil.copytree(
                templates / rng.choice(["complete.zarrow", "open.zarrow", "claimed.zarrow"]), store
            )
            done = mutate(rng, store)
            try:
                ended = reader.read(store)
            except (AssertionError, EOFError, ConnectionError) as error:
                reader.close()
                reader = Reader()
                ended = {"process": f"BAD {type(error).__name__}: {error}", "grown_bytes": 0}
        if (grown := ended.pop("grown_bytes")) > MEMORY_BYTES:
            ended["memory"] = f"BAD {grown >> 20} MiB"
        if wrong := {way: end for way, end in ended.items() if end.startswith("BAD")}:
            bad[seed, done] = wrong
    reader.close()
    figures("mutated stores", tried=len(seeds), bad=len(bad))
    assert not bad


@pytest.mark.parametrize("template", ["complete", "open"])
def test_what_is_no_directory_is_told(templates: Path, template: str, tmp_path: Path) -> None:
    """A pipe where a store has a directory is read as damage on every surface, not as an empty directory."""
    reader = Reader()
    for name in ("segments", "table", "embeddings.zarr", *(["open"] * (template == "open"))):
        store = Path(shutil.copytree(templates / f"{template}.zarrow", tmp_path / f"{name}.zarrow"))
        shutil.rmtree(store / name)
        os.mkfifo(store / name)
        ended = reader.read(store)
        assert not {way: end for way, end in ended.items() if str(end).startswith("BAD")}
        assert "read" not in (ended["open"], ended["partial"])
        assert ended["verify"] == "found"
    reader.close()
