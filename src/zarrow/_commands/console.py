"""Where do the commands print?

To a terminal as wide as it is; to a pipe or a file without ever wrapping or squeezing, for grep and less -S,
unless ``COLUMNS`` says how wide.

Place: below the modules of commands, which print through the same two.
"""

import os

from rich.console import Console

__all__ = ["err", "out"]

UNBOUNDED = 10_000

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
for _console in (out, err):
    if not _console.is_terminal and "COLUMNS" not in os.environ:
        _console.width = UNBOUNDED
