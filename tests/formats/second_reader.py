"""The second reader — a process of the reader in JavaScript, which was written from FORMAT.md alone."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

FOLDER = Path(__file__).parent / "reader"


def install() -> str | None:
    """Install what the reader needs, unless it is there; return why it cannot run here, or None."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm, which run the reader in JavaScript, are not installed"
    with (FOLDER / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may come at once
        done = FOLDER / "node_modules/.package-lock.json"
        if not done.exists() or done.stat().st_mtime < (FOLDER / "package.json").stat().st_mtime:
            command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=FOLDER, check=True, timeout=300)
    return None


class SecondReader:
    """A running process of the reader, for any number of stores."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["node", str(FOLDER / "reader.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def read(self, path: Path) -> dict[str, Any]:
        """Return what it says of a store: its summary, with the rows as ``rows``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        rows = []
        for line in self._process.stdout:
            found = json.loads(line)
            if "store" in found:
                return {**found, "rows": rows}
            rows.append(found)
        raise AssertionError(f"the reader ended at {path} with status {self._process.wait()}")
