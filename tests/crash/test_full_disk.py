"""Full disks — accepted rows can be read, and the run continues once there is space again."""

import contextlib
import shutil
import subprocess

import numpy as np
import pytest

import zarrow
from crash.workloads import (
    NAME,
    OPTIONS,
    Run,
    Workload,
    _uncommitted,
    recover_and_check,
    small_chunks,
    vectors_of,
)
from zarrow.errors import WriteFailedError, ZarrowError
from zarrow.writer import Writer

pytestmark = pytest.mark.slow

WIDE = {"e": ((256,), "float32")}


class _Silent:
    def note(self):
        pass


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(run, writer):
    """Append until the disk is full."""
    for _ in range(900):
        run.append(writer, 7)
        writer.flush()


def read_all(path):
    """Read and check every accepted row."""
    with zarrow.open(path, partial=True) as store:
        ids = store.table(columns=["id"])["id"].to_numpy()
        assert ids.tolist() == list(range(len(ids)))
        rows = np.asarray(store["e"][np.arange(len(ids))])
        assert np.array_equal(rows, vectors_of(WIDE, ids)["e"])
        return len(ids)


@pytest.mark.parametrize("codecs", [None, "zstd"])
def test_a_full_disk_costs_no_accepted_row(small_disk, codecs, figures):
    """ENOSPC names the safe rows, readable from the full disk, even read-only; the run continues later."""
    options = OPTIONS | {"segment_rows": 64, "codecs": codecs}
    workload = Workload("full disk", lambda run: None, {0: 3_000}, arrays=WIDE, options=options)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(700_000 if codecs is None else 1_500_000))
    run = Run(small_disk / NAME, workload, _Silent())
    with small_chunks(workload):
        writer = run.open()
        with pytest.raises(WriteFailedError) as caught:
            fill(run, writer)
        assert caught.value.errno in (28, 122)
        accepted = writer.accepted_rows
        assert caught.value.accepted_rows <= accepted
        with contextlib.suppress(ZarrowError):
            writer.close()
        assert 0 < accepted < 3_000
        with contextlib.suppress(OSError):  # all remaining space except less than a page
            (small_disk / "rest").write_bytes(bytes(2_000_000))
        assert read_all(small_disk / NAME) >= accepted
        # A writer may not find room either, but it must not make things worse.
        with contextlib.suppress(ZarrowError, OSError):
            Writer(small_disk / NAME, **workload.options).close()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert read_all(small_disk / NAME) >= accepted
        with pytest.raises(OSError, match="cannot write"):
            Writer(small_disk / NAME, **workload.options)
        subprocess.run(["mount", "-o", "remount,rw,size=20m", str(small_disk)], check=True)
        counts = recover_and_check(small_disk / NAME, workload, {0: accepted}, twice=True)
    figures("full disk", runs=1, accepted_rows=accepted, recovered_rows=counts[0], bad=0)
    assert not _uncommitted(small_disk / NAME)
