"""Roles of columns — the columns that are used if the caller names none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zarrow
from zarrow.analysis import compose, probe
from zarrow.analysis._rows.roles import choose_label, choose_probability, subject_of, tasks_of
from zarrow.errors import InvalidInputError
from zarrow.testing import example_predictions


def written(path: Path, *names: str, keys: tuple[str, ...] = ()) -> zarrow.Store:
    kinds = {"p": np.linspace(0, 1, 40), "y": np.arange(40) % 3 == 0}
    columns = {name: kinds.get(name[0], np.arange(40) // 4) for name in names}
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with zarrow.Writer(path, keys=keys) as writer:
        writer.append(columns, {"v": vectors})
        writer.finalize()
    return zarrow.open(path)


def test_everyquerys_store_names_its_own_columns() -> None:
    """A store with EveryQuery's columns needs no names; only those that it has are used."""
    store = example_predictions()
    assert (choose_probability(store, None), choose_label(store, None)) == ("occurs_prob", "occurs")
    assert (subject_of(store), tasks_of(store)) == ("subject_id", ["query"])
    assert compose(store).column_names == ["subject_id", "prediction_time", "rows", "occurs_prob"]


def test_another_store_goes_by_types_and_keys(tmp_path: Path) -> None:
    """In another store the only boolean is the label, and the first key is the subject."""
    store = written(tmp_path / "s", "patient", "visit", "prob_of_it", "y", keys=("patient", "visit"))
    assert (choose_probability(store, None), choose_label(store, None)) == ("prob_of_it", "y")
    assert (subject_of(store), tasks_of(store)) == ("patient", [])
    found = probe(store, "y", bootstrap=0)
    assert found.group == "patient"
    assert probe(store, "y", group=None, bootstrap=0).group is None


def test_a_store_without_keys_has_no_subject(tmp_path: Path) -> None:
    """Without keys there is no subject, and single rows are split."""
    assert probe(written(tmp_path / "s", "y"), "y", bootstrap=0).group is None


def test_compose_says_what_to_name(tmp_path: Path) -> None:
    """Without EveryQuery's columns the ones to join by must be named; the message has the argument."""
    store = written(tmp_path / "s", "patient", "x", "prob")
    with pytest.raises(InvalidInputError, match="there is no subject_id, prediction_time: name columns"):
        compose(store)
    with pytest.raises(InvalidInputError, match="there is no query: name columns with over="):
        compose(store, by="patient")
