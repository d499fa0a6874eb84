"""Meaning in standard places — provenance, conventions and units, where tools that know no zarrow look."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
import zarr_cm

import zarrow
from zarrow._format.zarr_metadata import CONVENTION

GROUP = "embeddings.zarr"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("ef", pa.float64(), metadata={"units": "%", "long_name": "ejection fraction", "page": "3"}),
        pa.field("stay", pa.duration("s"), metadata={"units": "s"}),
    ]
)


def write(path: Path, **options: Any) -> Path:
    """Write a store with an array of each kind, the last segment short."""
    table = pa.table({"id": range(12), "ef": [0.5] * 12, "stay": [60] * 12}, schema=SCHEMA)
    wide = np.ones((12, 3), np.float32)
    arrays = {"e": wide, "q": wide, "t": zarrow.Ragged(wide, [1] * 12)}
    with zarrow.Writer(path, segment_rows=8, dtypes={"q": "int8"}, **options) as writer:
        writer.append(table, arrays)
        writer.finalize()
    return path


def said(path: Path) -> list[dict[str, Any]]:
    """Return what the group and each part say of the store."""
    parts = [pq.read_metadata(part).metadata[b"zarrow"] for part in sorted(path.glob("table/*.parquet"))]
    return [zarr.open_group(path / GROUP, mode="r").attrs["zarrow"], *map(json.loads, parts)]


def test_zarr_and_parquet_say_where_the_rows_come_from(tmp_path: Path) -> None:
    """The group's attributes and each part's key-value metadata have the provenance of zarrow.json."""
    path = write(tmp_path / "run.zarrow", provenance={"model": "é", "lr": 1e-3})
    store = zarrow.open(path)
    expected = {"format": 1, "uuid": store.uuid, "provenance": store.provenance}
    assert said(path) == [expected] * 3
    assert expected["provenance"]["model"] == "é"
    assert store.table().schema.metadata is None, "a reader of zarrow has it from the store"


def test_a_large_provenance_is_in_one_place(tmp_path: Path) -> None:
    """What would be repeated in every part, though it is large, is in zarrow.json only."""
    path = write(tmp_path / "run.zarrow", provenance={"notes": "x" * (16 << 10)})
    store = zarrow.open(path)
    assert len(store.provenance["notes"]) == 16 << 10
    assert said(path) == [{"format": 1, "uuid": store.uuid}] * 3
    assert zarrow.verify(path).findings == ()


def test_conventions_are_declared(tmp_path: Path) -> None:
    """zarr-cm accepts the declaration of each node, and finds it in group, quantized and ragged arrays."""
    path = write(tmp_path / "run.zarrow")
    group = zarr.open_group(path / GROUP, mode="r")
    nodes = {"": group, **dict(group.arrays())}
    found = {name: node.attrs.get("zarr_conventions", []) for name, node in nodes.items()}
    for conventions in found.values():
        assert zarr_cm.validate_convention_metadata_objects(conventions) == conventions
    assert {name for name, conventions in found.items() if CONVENTION in conventions} == {
        "",
        "q",
        "t",
        "t_extent",
    }
    assert group.attrs["Conventions"] == "CF-1.12"
    assert dict(group["t_extent"].attrs)["units"] == "1"


def test_meaning_that_others_add_is_kept_and_shown(tmp_path: Path) -> None:
    """Units, titles and conventions that zarr-python adds survive more rows, and xarray shows them."""
    path = write(tmp_path / "run.zarrow")
    group = zarr.open_group(path / GROUP, mode="a")
    group.attrs.update(Conventions="ACDD-1.3, CF-1.12", title="Night 7")
    ucum = zarr_cm.uom.create(ucum={"unit": "mV"})
    for name in ("e", "q"):
        with_units = zarr_cm.uom.insert(dict(group[name].attrs), ucum)
        group[name].attrs.update(with_units | {"units": "mV", "long_name": "leads"})
    assert zarrow.verify(path).findings == ()
    with zarrow.Writer(path, mode="a") as writer:
        columns = {"id": [12], "ef": [0.1], "stay": pa.array([1], pa.duration("s"))}
        wide = np.ones((1, 3), np.float32)
        writer.append(columns, {"e": wide, "q": wide, "t": zarrow.Ragged(wide, [1])})
        writer.finalize()
    assert zarrow.verify(path).findings == ()
    plain = xr.open_zarr(path / GROUP)
    assert plain.attrs["Conventions"] == "ACDD-1.3, CF-1.12"
    assert zarr_cm.uom.extract(plain["q"].attrs)[1] == ucum
    dataset = xr.open_dataset(path)
    assert (dataset.attrs["title"], dataset.attrs["Conventions"]) == ("Night 7", "ACDD-1.3, CF-1.12")
    assert dataset["e"].attrs["units"] == dataset["q"].attrs["units"] == "mV"
    store = zarrow.open(path)
    assert (store.attrs["title"], store["e"].attrs["long_name"], store["t"].attrs) == ("Night 7", "leads", {})


def test_other_conventions_are_joined_to_ours(tmp_path: Path) -> None:
    """A program that names other conventions only is not undone: they stand behind CF."""
    path = write(tmp_path / "run.zarrow")
    group = zarr.open_group(path / GROUP, mode="a")
    group.attrs["Conventions"] = "ACDD-1.3"
    assert "another program may have changed it" in str(zarrow.verify(path).findings[0])
    zarrow.repair(path)
    assert zarr.open_group(path / GROUP, mode="r").attrs["Conventions"] == "CF-1.12 ACDD-1.3"
    assert zarrow.verify(path).findings == ()


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [
        ("", "zarr_conventions", []),
        ("", "zarrow", {"format": 1}),
        ("t_extent", "units", "2"),
        ("q", "zarr_conventions", [{"uuid": "1"}]),
    ],
)
def test_meaning_that_was_changed_is_found_and_mended(
    tmp_path: Path, node: str, name: str, value: Any
) -> None:
    """What zarrow says there is audited like the rest of Zarr's metadata."""
    path = write(tmp_path / "run.zarrow")
    zarr.open(path / GROUP / node, mode="a").attrs[name] = value
    (finding,) = zarrow.verify(path).findings
    assert (finding.severity, finding.path) == ("defect", str(Path(GROUP) / node / "zarr.json"))
    zarrow.repair(path)
    assert zarrow.verify(path).findings == ()


def test_columns_keep_their_units(tmp_path: Path) -> None:
    """Units and names in an Arrow schema are in the parts, in exports, in xarray and in netCDF."""
    path = write(tmp_path / "run.zarrow")
    expected = {b"units": b"%", b"long_name": b"ejection fraction"}
    assert zarrow.open(path).schema.field("ef").metadata == expected
    assert ds.dataset(path / "table").schema.field("ef").metadata.items() >= expected.items()
    zarrow.transfer.export(path, tmp_path / "run.parquet")
    zarrow.transfer.import_(tmp_path / "run.parquet", tmp_path / "again.zarrow")
    zarrow.pack(tmp_path / "again.zarrow", codecs="zstd")
    dataset = xr.open_dataset(tmp_path / "again.zarrow")
    assert dataset["ef"].attrs == {"units": "%", "long_name": "ejection fraction"}
    dataset[["ef", "stay", "e"]].load().to_netcdf(tmp_path / "run.nc", engine="scipy")
    again = xr.open_dataset(tmp_path / "run.nc", engine="scipy")
    assert again["ef"].attrs["units"] == "%"
    assert again.attrs["Conventions"] == "CF-1.12"
    assert (again["stay"] == np.timedelta64(60, "s")).all()
