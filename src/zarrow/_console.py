"""Where do the commands print?

Place: below the modules of commands, which print through the same two.
"""

from rich.console import Console

__all__ = ["err", "out"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
