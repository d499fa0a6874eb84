"""EveryQuery in its own environment — its commands with zarrow's writer in them, killed and resumed.

``ZARROW_KILLS`` is the number of SIGKILLs at random moments, 20 by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("ZARROW_KILLS", "20"))


def test_multitask(tmp_path: Path) -> None:
    """EQ_predict_multitask's file and metrics are the same to the last bit, whole and after every SIGKILL."""
    pytest.importorskip("every_query", exc_type=ImportError)
    script = Path(__file__).with_name("everyquery_multitask.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "--rows", "300"]
    command += ["--kills", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 + 30 * KILLS)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["same file"]
    assert report["same metrics"]
    assert report["same intervals"]
    assert report["killed"] > 0
