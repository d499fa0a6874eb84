"""Arguments — checks that several questions share: a store, a choice, vectors of a model's width."""

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from zarrow._format.given import as_array
from zarrow.analysis._rows.blocks import as_matrix
from zarrow.errors import InvalidInputError
from zarrow.several import Union
from zarrow.store import Store

__all__ = ["read_vectors", "require_choice", "require_store"]


def require_choice(name: str, value: object, words: Any) -> None:
    """Raise `InvalidInputError` unless an argument is one of the values of a Literal.

    >>> from typing import Literal
    >>> require_choice("metric", "l1", Literal["cosine", "l2"])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: metric must be one of 'cosine', 'l2', got 'l1'
    """
    allowed = get_args(words)
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_store(given: object, *, or_union: bool = False) -> None:
    """Raise `InvalidInputError` unless an argument is a store, or perhaps a union of stores.

    >>> require_store("run.zarrow")
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: expected a store, as returned by zarrow.open(path), got str
    """
    if not isinstance(given, Store | Union if or_union else Store):
        raise InvalidInputError(
            f"expected a store, as returned by zarrow.open(path), got {type(given).__name__}"
        )


def read_vectors(vectors: npt.ArrayLike, width: int, array: str) -> npt.NDArray[Any]:
    """Return vectors as rows of a matrix; `InvalidInputError` unless they are as wide as the array.

    >>> read_vectors([[[1.0, 2.0], [3.0, 4.0]]], 4, "embed").shape
    (1, 4)
    """
    given = as_array("vectors", vectors)
    if given.ndim < 2 or int(np.prod(given.shape[1:])) != width:
        raise InvalidInputError(
            f"vectors must have the shape (n, {width}), like array {array!r}, got {given.shape}"
        )
    return as_matrix(given)
