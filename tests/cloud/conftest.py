"""Fixtures of the tests with a bucket."""

import itertools
import os
from collections.abc import Iterator

import pytest
from cloud.servers import Bucket, serve

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def make_bucket():
    yield from serve()


@pytest.fixture
def bucket(make_bucket, monkeypatch) -> Iterator[Bucket]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    made = make_bucket(f"bucket-{next(NUMBERS)}")
    yield made
    made.fault = None
