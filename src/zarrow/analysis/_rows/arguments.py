"""Is an argument what it must be?

Checks that several questions share: a store, a word of a few, vectors of a model's width.

Place: tier 5, in `zarrow.analysis`. Pure.
"""

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from zarrow.analysis._rows.blocks import as_matrix
from zarrow.errors import InvalidInputError
from zarrow.store import Store

__all__ = ["read_vectors", "require_choice", "require_store"]


def require_choice(name: str, value: object, words: Any) -> None:
    """Raise `InvalidInputError` unless the argument of that name is one of the words of a Literal.

    >>> from typing import Literal
    >>> require_choice("metric", "l1", Literal["cosine", "l2"])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: metric must be one of 'cosine', 'l2', got 'l1'
    """
    allowed = get_args(words)
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_store(given: object) -> None:
    """Raise `InvalidInputError` unless what is asked is a store.

    >>> require_store("run.zarrow")
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: a store is needed, as zarrow.open(path) gives it, got str
    """
    if not isinstance(given, Store):
        raise InvalidInputError(
            f"a store is needed, as zarrow.open(path) gives it, got {type(given).__name__}"
        )


def read_vectors(vectors: npt.ArrayLike, width: int, array: str) -> npt.NDArray[Any]:
    """Return vectors as rows of a matrix; `InvalidInputError` unless they are as wide as the array's rows.

    >>> read_vectors([[[1.0, 2.0], [3.0, 4.0]]], 4, "embed").shape
    (1, 4)
    """
    given = np.asarray(vectors)
    if given.ndim < 2 or int(np.prod(given.shape[1:])) != width:
        raise InvalidInputError(
            f"vectors must be of shape (n, {width}), as array {array!r} was, got {given.shape}"
        )
    return as_matrix(given)
