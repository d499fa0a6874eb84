"""Is an argument one of the words that it may be?

Place: tier 5, in `zarrow.analysis`. Pure.
"""

from typing import Any, get_args

from zarrow.errors import InvalidInputError

__all__ = ["require_choice"]


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
