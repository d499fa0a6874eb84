"""An S3 server on this machine (moto), in a thread, which counts requests and can be told to fail."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

SECRET = "the-secret-access-key"


@dataclass
class Request:
    """A request: its method, its path, and the bytes that it asks for."""

    method: str
    path: str
    start: int | None
    stop: int | None


@dataclass
class Bucket:
    """A bucket of the server."""

    endpoint: str
    name: str
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[dict[str, Any], Callable[..., Any], Callable[..., Any]], Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `storage_options` needs."""
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": SECRET,
            "allow_http": True,
        }

    def url(self, path: str) -> str:
        """Return the URL of something in it."""
        return f"s3://{self.name}/{path}"


class _App:
    def __init__(self, app: Any) -> None:
        self._app = app
        self.bucket: Bucket | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        bucket = self.bucket
        if bucket is None:
            return self._app(environ, start_response)
        start = stop = None
        if (given := environ.get("HTTP_RANGE", "")).startswith("bytes="):
            first, last = given.removeprefix("bytes=").split("-")
            start, stop = int(first), int(last) + 1
        bucket.requests.append(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], start, stop))
        if bucket.fault is not None:
            return bucket.fault(environ, start_response, self._app)
        return self._app(environ, start_response)


def serve() -> Iterator[Callable[[str], Bucket]]:
    """Yield a function that makes an empty bucket of that name."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _App(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="me",
        aws_secret_access_key=SECRET,
    )

    def make(name: str) -> Bucket:
        app.bucket = None
        client.create_bucket(Bucket=name)
        app.bucket = Bucket(endpoint, name)
        return app.bucket

    yield make
    server.shutdown()
    thread.join()
    server.server_close()
