"""safetensors on their way in — files that its own library wrote, one or many, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import zarrow
from zarrow.errors import InvalidInputError
from zarrow.transfer import import_


def test_files_of_batches(tmp_path: Path) -> None:
    """A folder of a file per batch, in the order of the numbers, with every type that torch saves."""
    source, rows = tmp_path / "batches", 0
    source.mkdir()
    for number in (2, 10, 1):
        count = 3 + number
        batch = {
            "id": torch.arange(count) + 100 * number,
            "ok": torch.arange(count) % 2 == 0,
            "half": torch.randn(count, 4).half(),
            "brain": torch.randn(count, 4).bfloat16(),
            "cube": torch.randint(0, 255, (count, 2, 3), dtype=torch.uint8),
            "sample_index": torch.arange(count) + 1000 * number,
        }
        safetensors.torch.save_file(batch, source / f"batch-{number}.safetensors")
        rows += count
        if number == 1:
            first = batch
    assert import_(source, tmp_path / "s.zarrow", "safetensors", keys=["id"]) == rows
    store = zarrow.open(tmp_path / "s.zarrow")
    ids = store.table(["id", "ok", "sample_index"])
    assert ids["id"].to_pylist() == [*range(100, 104), *range(200, 205), *range(1000, 1013)]
    assert ids["sample_index"].to_pylist()[:5] == [1000, 1001, 1002, 1003, 2000]
    assert ids["ok"].to_pylist()[:4] == [True, False, True, False]
    assert store["brain"].dtype == np.float32
    np.testing.assert_array_equal(store["brain"][:4], first["brain"].float().numpy())
    np.testing.assert_array_equal(store["half"][:4], first["half"].numpy())
    np.testing.assert_array_equal(store["cube"][:4], first["cube"].numpy())
    assert set(store.arrays) == {"half", "brain", "cube"}


def test_counts_make_rows_of_any_number(tmp_path: Path) -> None:
    """`NAME_count` says how many vectors each row of NAME has; a column of that name without NAME is one."""
    tensors = {
        "token.embed": np.arange(20, dtype=np.float32).reshape(10, 2),
        "token.embed_count": np.array([3, 0, 7], np.int32),
        "visit_count": np.array([1, 2, 3]),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    assert import_(tmp_path / "a.safetensors", tmp_path / "s.zarrow") == 3
    store = zarrow.open(tmp_path / "s.zarrow")
    assert store["token_embed"][:] == zarrow.Ragged(tensors["token.embed"], [3, 0, 7])
    assert store.table(["visit_count"])["visit_count"].to_pylist() == [1, 2, 3]


def header(change: dict[str, Any], body: int = 24) -> bytes:
    """A file of one tensor, with something else in its header."""
    about = {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]} | change
    text = json.dumps({"v": about}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"\xff" * 40, "header is cut short"),
        ((5).to_bytes(8, "little") + b"[1,2]", "not a safetensors file"),
        (header({"data_offsets": [0, 40]}), "'v' is cut short"),
        (header({"data_offsets": [-8, 16]}), "'v' is cut short"),
        (header({"shape": [4, 2]}), "not a safetensors file"),
        (header({"dtype": "F8_E4M3"}), "F8_E4M3"),
        (header({"shape": [], "data_offsets": [0, 4]}), r"shape \[\]"),
        (header({"shape": "many"}), "not a safetensors file"),
        (b"\x02" + bytes(7) + b"{}", "got none"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    """What is cut short, lies or is no file of tensors is refused in words, and leaves nothing."""
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InvalidInputError, match=message):
        import_(tmp_path / "a.safetensors", tmp_path / "s.zarrow")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v": np.zeros((3, 2)), "id": np.zeros(4)}, r"as many in each, got \{'.*4"),
        ({"v": np.zeros((3, 2)), "v_count": np.array([1, 1])}, "'v_count' must be .* got a sum of 2"),
        ({"v": np.zeros((3, 2)), "v_count": np.array([4, -1])}, "'v_count' must be 0 or more"),
        ({"v": np.zeros(3), "v_count": np.array([1, 2])}, r"shape is \(3,\)"),
    ],
)
def test_tensors_that_are_no_rows(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    """Tensors of other lengths, and counts that do not fit their vectors, are named."""
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInputError, match=message):
        import_(tmp_path / "a.safetensors", tmp_path / "s.zarrow")
    assert not (tmp_path / "s.zarrow").exists()


def test_files_that_differ(tmp_path: Path) -> None:
    """Every file of a folder has the same tensors."""
    for name, width in (("a", 2), ("b", 3)):
        safetensors.numpy.save_file({"v": np.zeros((3, width))}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InvalidInputError, match=r"b\.safetensors: expected the tensors of"):
        import_(tmp_path, tmp_path.with_suffix(".zarrow"), "safetensors")
