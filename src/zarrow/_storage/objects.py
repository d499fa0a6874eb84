"""Objects — stores that lie in a bucket (S3, Google Cloud Storage, Azure) or on a web server.

`ObjectPath` stands where a `Path` does: it names the store or something in it, and `reading` opens files
through it. All requests go through `obstore`. The rules:

* bytes are asked for by explicit ranges (Azure has no others), neighbouring ones in one request;
* what is missing is `FileNotFoundError`, what may not be read `PermissionError`, as on a disk;
* an object that is opened (`ObjectFile`) is pinned by its entity tag: if another one takes its place, the
  next request is `StoreChangedError`. `ObjectPath.ranges` pins nothing: its callers ask a guard afterwards;
* neither names nor messages nor representations hold a secret.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from zarrow._storage.reading import BLOCK_BYTES, File
from zarrow._storage.streams import FileStream
from zarrow.errors import CorruptionError, InvalidInputError, MissingExtraError, StoreChangedError

__all__ = ["ObjectFile", "ObjectPath", "Version", "is_remote", "located", "named", "on_disk"]

_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https", "memory")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PATH_OF_URL = re.compile(rf"({'|'.join(_SCHEMES)}|file):/{{1,3}}([^/].*)\Z", re.IGNORECASE | re.DOTALL)
_SMALL_BYTES = 4 << 20
_PART_BYTES = 8 << 20
_BLOCK_BYTES = 16 << 20
"""What a request asks for at most when a whole object is read."""
_NEAR_BYTES = 64 << 10
"""A gap between two ranges that costs less than another request."""
_CLIENT = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "proxy_url",
    "timeout",
    "user_agent",
)
_ENDPOINTS = ("endpoint", "endpoint_url")
_TIMEOUT = timedelta(minutes=2)
"""Of a request, unless the caller sets one: a shard is put by one."""
_RETRY = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")

_OTHER_REGION = ("redirect without LOCATION", "AuthorizationHeaderMalformed", "PermanentRedirect")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "latest/api/token")
_REFUSED = {
    "ExpiredToken": "the credentials have expired: get new ones",
    "TokenRefreshRequired": "the credentials have expired: get new ones",
    "RequestTimeTooSkewed": "the clock of this machine is wrong, so that the service refuses what it signs",
    "400 Bad Request": "the service refuses the request, as where the credentials have expired or the region "
    "is another one",
}

Version = Mapping[str, str]

_memory: dict[str, Any] = {}
"""The stores of ``memory://`` URLs, which are for tests."""


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise MissingExtraError("a store at a URL needs obstore: pip install 'zarrow[cloud]'") from error
    return obstore


def _connect(url: str, options: Mapping[str, Any]) -> Any:
    """Return the client of a URL's prefix."""
    _obstore()
    from obstore import store as stores
    from obstore.exceptions import BaseError

    scheme = url.split("://", 1)[0].lower()
    if scheme == "memory":
        return _memory.setdefault(url, stores.MemoryStore())
    client = {"timeout": _TIMEOUT, **{name: options[name] for name in _CLIENT if name in options}}
    config = {name: value for name, value in options.items() if name not in _CLIENT}
    endpoints = [str(config.get(name) or os.environ.get(f"AWS_{name.upper()}", "")) for name in _ENDPOINTS]
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true") or any(
        one.startswith("http://") for one in endpoints
    ):
        client = {"allow_http": True, **client}  # who names such an endpoint wants it
    arguments: dict[str, Any] = {"client_options": client, "retry_config": _RETRY}
    if scheme not in ("http", "https"):
        arguments["config"] = config
    try:
        return stores.from_url(url.rstrip("/"), **arguments)
    except (BaseError, TypeError, ValueError) as error:
        known = (
            "endpoint, region, access_key_id, secret_access_key, skip_signature, account_name, account_key"
        )
        hint = f"; storage_options= takes obstore's names, such as {known}" if options else ""
        raise InvalidInputError(f"{printable_url(url)}: {_reason(error)}{hint}") from None


def printable_url(url: str) -> str:
    """Return a URL without what may be a secret in it: user, password, query.

    >>> printable_url("https://me:secret@host/run.zarrow?sig=secret")
    'https://host/run.zarrow'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _reason(error: Exception) -> str:
    """Return the first line of an error, without queries of URLs, which may be signed."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\?[^\s\"')]*", "?…", line)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn errors of the client into those that a disk gives."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.BaseError, FileNotFoundError, PermissionError) as error:
        raise _as_on_disk(error, path) from None


def _as_on_disk(error: Exception, path: str) -> Exception:
    from obstore import exceptions

    if any(code in str(error) for code in _NO_BUCKET):
        return InvalidInputError(f"{path}: there is no such bucket")
    if any(code in str(error) for code in _OTHER_REGION):
        return InvalidInputError(
            f"{path}: the bucket is in another region: name its region (storage_options={{'region': …}}, or "
            "AWS_REGION)"
        )
    if any(host in str(error) for host in _NO_CREDENTIALS):
        reason = "there are no credentials: set those of the service, or skip_signature for a public bucket"
        return PermissionError(errno.EACCES, reason, path)
    for code, reason in _REFUSED.items():
        if code in str(error):
            return PermissionError(errno.EACCES, f"{reason} ({code})", path)
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such object", path)
    if isinstance(
        error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError
    ):
        status = re.search(r"\b40[13] \w+", str(error))
        refused = status[0] if status else "refused"
        reason = f"the credentials do not allow this, or there are none ({refused})"
        return PermissionError(errno.EACCES, reason, path)
    if isinstance(error, exceptions.PreconditionError):
        return StoreChangedError(f"{path}: another object took its place: open the store again")
    return OSError(errno.EIO, _reason(error), path)


class ObjectPath:
    """A store in an object store, or something in it.

    Parameters
    ----------
    url : str
        Where it is.
    options : mapping of str
        obstore's configuration; what is missing comes from the environment.
    client : obstore store, optional
        Of the URL; all paths below share it.
    below : str
        The path below the URL.
    """

    __slots__ = ("_below", "_client", "_kept", "_options", "_url")

    def __init__(self, url: str, options: Mapping[str, Any], client: Any = None, below: str = "") -> None:
        scheme = url.split("://", 1)[0].lower()
        if scheme not in _SCHEMES and client is None:
            raise InvalidInputError(
                f"{printable_url(url)}: the URL of a store begins with one of {', '.join(_SCHEMES)}"
            )
        self._url = url.rstrip("/")
        self._options = dict(options)
        self._client = _connect(self._url, self._options) if client is None else client
        self._below = below
        self._kept: dict[str, ObjectFile] = {}

    def __truediv__(self, path: object) -> ObjectPath:
        below = "/".join(filter(None, (self._below, str(path))))
        return ObjectPath(self._url, self._options, self._client, below)

    def __str__(self) -> str:
        return "/".join(filter(None, (printable_url(self._url), self._below)))

    def __repr__(self) -> str:
        return f"<zarrow store at {self}>"

    def __fspath__(self) -> NoReturn:
        raise InvalidInputError(
            f"{self}: this is possible for a store on a disk only: copy it there first ('zarrow copy')"
        )

    @property
    def parent(self) -> ObjectPath:
        """The path above, which is not above the URL."""
        return ObjectPath(self._url, self._options, self._client, self._below.rpartition("/")[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # The client of a URL is made again; one that was given goes along.
        client = self._client if self._url.startswith("object://") else None
        return ObjectPath, (self._url, self._options, client, self._below)

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def client(self) -> Any:
        """The obstore store of the URL."""
        return self._client

    def _key(self, path: str) -> str:
        return "/".join(filter(None, (self._below, path)))

    def exists(self, path: str = "") -> bool:
        """Tell whether there is an object."""
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def _head(self, path: str) -> Mapping[str, Any]:
        with _translated(str(self / path)):
            found: Mapping[str, Any] = _obstore().head(self._client, self._key(path))
            return found

    def stamp(self, path: str, *, keep: bool = False) -> object:
        """Return what tells an object from one that takes its place; None if there is none.

        The time tells one of the same bytes, too. With `keep`, the object is read for it, and the next
        `fetch` of it costs no request.
        """
        try:
            if keep:
                self._kept.pop(path, None)  # what a failed opening has left
                self._kept[path] = file = self.fetch(path)
                return file.stamp, file.modified
            found = self._head(path)
            return _stamp(found), found["last_modified"]
        except FileNotFoundError:
            return None

    def open(self, path: str) -> ObjectFile:
        """Return an object, to be read by ranges."""
        return ObjectFile(self, path, self._head(path))

    def fetch(self, path: str) -> ObjectFile:
        """Return an object, read whole by the same request if it is small, or if that is what is wanted."""
        if path in self._kept:
            return self._kept.pop(path)
        with _translated(str(self / path)):
            found = _obstore().get(self._client, self._key(path))
            file = ObjectFile(self, path, found.meta, found)
            if file.size_bytes <= _SMALL_BYTES:
                file.content(_SMALL_BYTES)
            return file

    def ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return ranges of an object, each from start to stop; `CorruptionError` if it is too short."""
        if not ranges:
            return []
        starts, ends = zip(*ranges, strict=True)
        with _translated(str(self / path)):
            found = _obstore().get_ranges(
                self._client, self._key(path), starts=starts, ends=ends, coalesce=_NEAR_BYTES
            )
        blocks = [memoryview(block) for block in found]
        for block, (start, stop) in zip(blocks, ranges, strict=True):
            if len(block) != stop - start:
                raise CorruptionError(f"ends at byte {start + len(block)}", path=self / path)
        return blocks

    def put(self, path: str, file: File) -> None:
        """Put an object in place, which is whole or absent."""
        with _translated(str(self / path)):
            writer = _obstore().open_writer(self._client, self._key(path), buffer_size=_PART_BYTES)
            with writer:  # which makes the object on its way out, unless there is an error
                for block in file.blocks():
                    writer.write(block)

    def put_bytes(self, path: str, data: bytes) -> None:
        """Put a small object in place, whether the name is free or not."""
        with _translated(str(self / path)):
            _obstore().put(self._client, self._key(path), data)

    def put_if(self, path: str, data: Any, version: Version | None) -> Version | None:
        """Put an object in place of one of this version, or of none, in one request.

        Returns its version; None if the service says that something else is there. What it says may be wrong
        either way: see `zarrow._storage.conditional`.
        """
        from obstore import exceptions

        mode = "create" if version is None else dict(version)
        if self._url.startswith("memory:"):  # which keeps what it is given, not a copy
            data = bytes(data)
        with _translated(str(self / path)):
            try:
                made = _obstore().put(self._client, self._key(path), data, mode=mode, use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return None
        return _version(made)

    def copy(self, path: str, target: str) -> None:
        """Give an object a second name; the service copies it. Whatever had that name is gone."""
        with _translated(str(self / path)):
            _obstore().copy(self._client, self._key(path), self._key(target))

    def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), _translated(str(self / path)):
            _obstore().delete(self._client, self._key(path))

    def names(self) -> Iterator[str]:
        """Yield the paths of all objects below this one."""
        prefix = f"{self._below}/" if self._below else None
        with _translated(str(self)):
            for found in _obstore().list(self._client, prefix):
                yield from (one["path"].removeprefix(prefix or "") for one in found)

    def list(self, path: str, *, after: str = "") -> dict[str, str]:
        """Return what lies below a path: "file" or "directory" by name; of files only, those after a name."""
        if self._url.startswith(("http://", "https://")):
            raise InvalidInputError(f"{self}: a web server does not say what lies there")
        key = self._key(path)
        with _translated(str(self / path)):
            if after:
                pages = _obstore().list(self._client, key, offset=f"{key}/{after}")
                return {one["path"].rpartition("/")[2]: "file" for page in pages for one in page}
            found = _obstore().list_with_delimiter(self._client, key or None)
        names = {one.rstrip("/").rpartition("/")[2]: "directory" for one in found["common_prefixes"]}
        return names | {one["path"].rpartition("/")[2]: "file" for one in found["objects"]}


def _version(meta: Mapping[str, Any]) -> Version:
    """Return by what a service knows an object from one that takes its place."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _stamp(meta: Mapping[str, Any]) -> object:
    return meta["e_tag"] or (meta["size"], meta["last_modified"])


class ObjectFile(File):
    """An object, which has the methods of a file.

    Parameters
    ----------
    root : ObjectPath
        The store.
    path : str
        Where it is in there.
    meta : mapping
        What the service says of it.
    result : GetResult, optional
        The answer to a request for all of it, not read yet.
    """

    __slots__ = ("_key", "_result", "_root", "_tag", "_whole", "modified", "stamp", "version")

    def __init__(self, root: ObjectPath, path: str, meta: Mapping[str, Any], result: Any = None) -> None:
        self.path = str(root / path)
        self.size_bytes = int(meta["size"])
        self.stamp = _stamp(meta)
        self.modified = meta.get("last_modified")
        self.version = _version(meta)
        self._root = root
        self._key = path
        self._tag = meta["e_tag"]
        self._result = result
        self._whole: bytes | None = None

    def _blocks(self, offset: int, size_bytes: int, block_bytes: int) -> Iterator[bytes]:
        stop = min(offset + size_bytes, self.size_bytes)
        while offset < stop:
            end = min(offset + max(block_bytes, _BLOCK_BYTES), stop)
            yield self._range(offset, end)
            offset = end

    def _range(self, start: int, stop: int) -> bytes:
        if self._whole is not None:
            return self._whole[start:stop]
        options: dict[str, Any] = {"range": (start, stop)}
        if self._tag and not self._tag.startswith("W/"):  # a weak tag matches nothing
            options["if_match"] = self._tag
        with _translated(self.path):
            found = _obstore().get(self._root.client, self._root._key(self._key), options=options)
            return bytes(found.bytes())

    @property
    def data_bytes(self) -> int:
        """Its size: an object has no holes."""
        return self.size_bytes

    def next_data(self, offset: int) -> int:
        """Return the offset: an object has no holes."""
        return offset

    def content(self, limit_bytes: int) -> bytes:
        """Return all bytes; `CorruptionError` if they are more than `limit_bytes`."""
        if self._whole is None and self._result is not None and self.size_bytes <= limit_bytes:
            with _translated(self.path):
                self._whole = bytes(self._result.bytes())
            self._result = None
        return super().content(limit_bytes)

    def stream(self) -> io.BufferedReader:
        """Return a stream of it."""
        return io.BufferedReader(FileStream(self), BLOCK_BYTES)

    @property
    def name(self) -> str:
        """No name by which this process could open it."""
        raise InvalidInputError(f"{self.path}: an object has no descriptor")

    def source(self) -> Any:
        """Return it as pyarrow reads it."""
        import pyarrow as pa

        if self._whole is not None:
            return pa.BufferReader(self._whole)
        return pa.PythonFile(FileStream(self), mode="r")

    def __exit__(self, *_: object) -> None:
        pass


def located(path: object, options: Mapping[str, Any] | None = None) -> Path | ObjectPath:
    """Return the place that a path or URL names.

    Parameters
    ----------
    path : path, URL, or obstore store
        A URL may have become a `Path`, which has one slash of it only.
    options : mapping of str, optional
        For the client of a URL.

    Raises
    ------
    InvalidInputError
        If it is none of these, or there are options for a path.

    Examples
    --------
    >>> located("memory://bucket/run.zarrow"), located(Path("/tmp/run.zarrow"))
    (<zarrow store at memory://bucket/run.zarrow>, PosixPath('/tmp/run.zarrow'))
    """
    if isinstance(path, ObjectPath):
        return path
    if type(path).__module__.partition(".")[0] == "obstore":
        return ObjectPath(f"object://{type(path).__name__}", {}, path)
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"a store is named by its path or URL, got {path!r}")
    text = os.fspath(path)
    if (match := _PATH_OF_URL.match(os.fsdecode(text))) is not None:
        scheme, rest = match.groups()
        if scheme.lower() == "file":
            return Path("/" + unquote(rest))
        return ObjectPath(f"{scheme.lower()}://{rest}", options or {})
    if isinstance(text, str) and _URL.match(text):
        return ObjectPath(text, options or {})  # which says what schemes there are
    if options:
        raise InvalidInputError(f"{text}: storage_options are for stores at a URL, and this is a path")
    return Path(os.path.abspath(text))


def is_remote(path: object) -> bool:
    """Tell whether what names a store is a URL, or an obstore store.

    >>> is_remote("s3://bucket/run.zarrow"), is_remote("run.zarrow")
    (True, False)
    """
    if isinstance(path, ObjectPath) or not isinstance(path, str | os.PathLike):
        return True
    return _PATH_OF_URL.match(os.fsdecode(path)) is not None


def named(path: object) -> str:
    """Return a store's path or URL as it was given, without secrets; as a `Path`, a URL has one slash less.

    >>> named(Path("run.zarrow")), named(Path("s3://bucket/run.zarrow"))
    ('run.zarrow', 's3://bucket/run.zarrow')
    """
    text = str(path)
    return printable_url(re.sub(":/+", "://", text, count=1)) if is_remote(text) else text


def on_disk(path: str | os.PathLike[str]) -> str:
    """Return a path; `InvalidInputError` if it is a URL, where this is not possible.

    >>> on_disk("run.zarrow")
    'run.zarrow'
    >>> on_disk("s3://bucket/run.zarrow")
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: s3://bucket/run.zarrow: this is possible on a disk only: ...
    """
    place = path if isinstance(path, ObjectPath) else os.fspath(path)
    if isinstance(place, str) and _PATH_OF_URL.match(place) is None and not _URL.match(place):
        return place
    raise InvalidInputError(
        f"{named(place)}: this is possible on a disk only: a complete store can be copied to a "
        "bucket, and back ('zarrow copy')"
    )
