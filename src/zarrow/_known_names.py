"""What may somebody have meant who asks for a name that is not there?

Place: tier 1. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from zarrow.errors import UnknownNameError

__all__ = ["unknown_name"]


def unknown_name(what: str, name: object, names: Iterable[str]) -> UnknownNameError:
    """Return the error that says that there is no `what` of that name, and what there is.

    >>> print(unknown_name("array", "query_embd", ["query_embed"]))
    there is no array 'query_embd'; did you mean 'query_embed'? There are: query_embed
    """
    import difflib

    known = list(names)
    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UnknownNameError(f"there is no {what} {name!r}{hint} There are: {', '.join(known) or 'none'}")
