"""Roles of columns — which columns hold the probability, the label, the subject and the task of a row.

A caller who names no column gets the one that the store's own schema suggests, role by role:

1. a column with the name that `EVERYQUERY` has for the role, if there is one;
2. else, for a probability or a label, the only column whose type and name fit, and for the subject the first
   key.

So a store of EveryQuery's predictions needs no arguments, and no question has a client's names in its
defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from zarrow.analysis._rows.dataset import Rows
from zarrow.errors import InvalidInputError
from zarrow.several import Union
from zarrow.store import Store

__all__ = [
    "EVERYQUERY",
    "Roles",
    "choose_label",
    "choose_probability",
    "order_of_tasks",
    "subject_of",
    "tasks_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Names of columns by role.

    Parameters
    ----------
    probability, label : tuple of str
        The likelier name first.
    subject, time : str
        Who a row is about, and when it was predicted.
    task : tuple of str
        What was asked; the rows of one subject and time differ in the first of them.
    """

    probability: tuple[str, ...]
    label: tuple[str, ...]
    subject: str
    time: str
    task: tuple[str, ...]


EVERYQUERY = Roles(
    probability=("occurs_prob",),
    label=("boolean_value", "occurs"),
    subject="subject_id",
    time="prediction_time",
    task=("query", "duration_days"),
)
"""The names of EveryQuery's predictions, which for subject, time and label are those of MEDS."""


def choose_probability(store: Store | Union, name: str | None) -> str:
    """Return the column of probabilities: the one named, or the one that looks like it."""
    usual = (*EVERYQUERY.probability, "probability", "prob")
    return _choose(store, name, usual, pa.types.is_floating, "probability", "prob", otherwise="confidence")


def choose_label(store: Store | Union, name: str | None) -> str:
    """Return the column of labels: the one named, or the one that looks like it."""
    return _choose(store, name, (*EVERYQUERY.label, "label"), pa.types.is_boolean, "label", "")


def _choose(
    store: Store | Union,
    name: str | None,
    usual: Sequence[str],
    fits: Callable[[pa.DataType], bool],
    what: str,
    hint: str,
    otherwise: str = "",
) -> str:
    if name is not None:
        if name not in store.schema.names:
            store.table([name])  # raises, and lists the columns
        return name
    fitting: list[str] = [field.name for field in store.schema if fits(field.type)]
    for one in usual:
        if one in fitting:
            return one
    likely = [one for one in fitting if hint in one.lower()]
    if len(likely) == 1:
        return likely[0]
    if otherwise in fitting:
        return otherwise
    listed = ", ".join(likely or fitting)
    kind = "booleans" if what == "label" else "floating-point numbers"
    among = f"candidates: {listed}" if listed else f"none has {kind}"
    raise InvalidInputError(
        f"{store.path}: cannot tell which column holds the {what} of each row: name it with {what}=; {among}"
    )


def subject_of(source: Rows) -> str | None:
    """Return the column that says which rows are about the same subject; None if there is no such column."""
    if EVERYQUERY.subject in source.schema.names:
        return EVERYQUERY.subject
    return next(iter(source.keys), None)


def tasks_of(store: Store | Union) -> list[str]:
    """Return the columns that say what was asked; empty if there are none."""
    return [name for name in (*EVERYQUERY.task, "task") if name in store.schema.names]


def order_of_tasks(keys: pa.Table) -> list[int]:
    """Return the order in which EveryQuery evaluates groups: by the lists of a multitask row, nulls first.

    >>> order_of_tasks(pa.table({"task": ['{"durations": [30]}', '{"durations": [7]}']}))
    [1, 0]
    """
    if keys.column_names != ["task"]:
        return list(range(keys.num_rows))

    def lists(number: int) -> list[list[tuple[bool, object]]]:
        task = json.loads(keys["task"][number].as_py())
        return [[(value is not None, value) for value in values] for values in task.values()]

    return sorted(range(keys.num_rows), key=lists)
