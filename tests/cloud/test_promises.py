"""What is promised of stores and writers on a disk, in a bucket: by the same tests, put there by a plugin."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_stores_and_writers_keep_their_promises_in_a_bucket(figures):
    """All that is not about directories, locks, links or maps of a disk."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cloud.in_bucket", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, TESTS / "test_store.py", TESTS / "test_writer.py"],
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|deselected)", done.stdout)}
    figures("promises of a disk, in a bucket", kept=counts["passed"], of_a_disk_only=counts["deselected"])
    assert counts["passed"] > 500
