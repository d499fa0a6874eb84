"""Ragged tensors — rows of any number of vectors in a batch, jagged or padded.

* ``"jagged"``: a nested tensor of layout `torch.jagged`, shape ``(rows, any, *vector_shape)``. There is no
  padding; a row of it has the shape ``(count, *vector_shape)``.
* ``"padded"``: a tensor of shape ``(rows, longest, *vector_shape)``, zeros behind the vectors of a row, and
  with ``_mask`` behind its name a bool tensor of shape ``(rows, longest)``, True where there is a vector.

Both are made of the flat vectors that were read, which a jagged tensor is a view of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from zarrow._format.ragged import Ragged
from zarrow.errors import InvalidInputError

__all__ = ["Form", "as_tensors", "joined", "names_in_batch", "require_form"]

Form = Literal["jagged", "padded"]


def require_form(form: object) -> None:
    """Raise unless it is a form of ragged arrays."""
    if form not in get_args(Form):
        known = " or ".join(map(repr, get_args(Form)))
        raise InvalidInputError(f"ragged must be {known}, got {form!r}")


def mask_name(name: str) -> str:
    """Return the name of the mask of a padded array."""
    return f"{name}_mask"


def names_in_batch(name: str, form: Form, others: Collection[str]) -> list[str]:
    """Return the names that a ragged array has in a batch; raise if another entry has one of them."""
    if form == "jagged":
        if not hasattr(torch.nested, "nested_tensor_from_jagged"):
            raise InvalidInputError(
                f"array {name!r} has any number of vectors per row, and jagged tensors need torch 2.4, this "
                f'is {torch.__version__}: update torch, or take ragged="padded"'
            )
        return [name]
    mask = mask_name(name)
    if mask in others:
        raise InvalidInputError(
            f"padded array {name!r} comes with a mask {mask!r}, which is the name of another one: "
            'leave one out with columns= or arrays=, or take ragged="jagged"'
        )
    return [name, mask]


def as_tensors(
    name: str, rows: Ragged, form: Form, make: Callable[[Any], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of some rows of a ragged array, by name.

    Parameters
    ----------
    name : str
        The array.
    rows : Ragged
        Its rows.
    form : {"jagged", "padded"}
        See the module.
    make : callable
        Makes a tensor of an array.

    Examples
    --------
    >>> import numpy as np
    >>> rows = Ragged(np.ones((3, 2), np.float32), [1, 0, 2])
    >>> as_tensors("t", rows, "padded", torch.from_numpy)["t_mask"]
    tensor([[ True, False],
            [False, False],
            [ True,  True]])
    """
    if form == "jagged":
        return {name: torch.nested.nested_tensor_from_jagged(make(rows.values), make(rows.offsets))}
    padded, mask = rows.to_padded(return_mask=True)
    return {name: make(padded), mask_name(name): make(mask)}


def joined(values: Sequence[torch.Tensor], form: Form) -> torch.Tensor:
    """Return the rows of a batch that were read one by one, shapes (count, …), as one tensor.

    >>> joined([torch.ones(2, 3), torch.ones(0, 3)], "padded").shape
    torch.Size([2, 2, 3])
    """
    if form == "padded":
        return pad_sequence(list(values), batch_first=True)
    counts = torch.tensor([0, *map(len, values)])
    return torch.nested.nested_tensor_from_jagged(torch.cat(list(values)), counts.cumsum(0))
