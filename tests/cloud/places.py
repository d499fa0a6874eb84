"""A bucket in memory whose requests pass through a function, which may refuse, lose or hold them."""

import itertools
import random
from collections.abc import Callable
from typing import Any

from zarrow._storage.objects import ObjectPath

Hook = Callable[[str, str, Callable[[], Any]], Any]
NUMBERS = itertools.count()


class Place(ObjectPath):
    """A store in memory; `hook` gets the name of a request, its path, and the function that makes it."""

    __slots__ = ("hook",)

    def __init__(self, url: str, hook: Hook, below: str = "", client: Any = None) -> None:
        super().__init__(url, {}, client, below)
        self.hook = hook

    def __truediv__(self, path: object) -> "Place":
        below = "/".join(filter(None, (self._below, str(path))))
        return Place(self._url, self.hook, below, self._client)

    def _head(self, path):
        return self.hook("head", self._key(path), lambda: super(Place, self)._head(path))

    def fetch(self, path):
        return self.hook("get", self._key(path), lambda: super(Place, self).fetch(path))

    def ranges(self, path, ranges):
        return self.hook("get", self._key(path), lambda: super(Place, self).ranges(path, ranges))

    def put(self, path, file):
        return self.hook("put", self._key(path), lambda: super(Place, self).put(path, file))

    def put_if(self, path, data, version):
        return self.hook("put_if", self._key(path), lambda: super(Place, self).put_if(path, data, version))

    def put_bytes(self, path, data):
        return self.hook("put_bytes", self._key(path), lambda: super(Place, self).put_bytes(path, data))

    def copy(self, path, target):
        return self.hook("copy", self._key(path), lambda: super(Place, self).copy(path, target))

    def delete(self, path):
        return self.hook("delete", self._key(path), lambda: super(Place, self).delete(path))

    def list(self, path, *, after=""):
        return self.hook("list", self._key(path), lambda: super(Place, self).list(path, after=after))


def new_url() -> str:
    """Return the URL of a bucket in memory that has nothing in it."""
    return f"memory://bucket-{next(NUMBERS)}/run.zarrow"


def through(_name: str, _path: str, act: Callable[[], Any]) -> Any:
    """Make every request."""
    return act()


def dead(_name: str, path: str, _act: Callable[[], Any]) -> Any:
    """Make none, as if the process had ended."""
    raise OSError(5, "there is no answer", path)


KINDS = ("refused", "lost", "conflict", "taken")


def faulty(rng: random.Random, rate: float, happened: dict[str, int]) -> Hook:
    """Return a hook by which requests fail at random; conditional puts, which are few, fail more often."""

    def make(name: str, path: str, act: Callable[[], Any]) -> Any:
        kind = rng.choice(KINDS) if rng.random() < rate * (4 if name == "put_if" else 1) else ""
        if kind in ("conflict", "taken") and name != "put_if":
            kind = ""
        if kind:
            happened[kind] += 1
        if kind == "refused":
            raise OSError(5, "503 Slow Down", path)
        if kind == "conflict":
            return None
        made = act()
        if kind == "lost":
            raise OSError(5, "the connection was reset", path)
        return None if kind == "taken" else made

    return make
