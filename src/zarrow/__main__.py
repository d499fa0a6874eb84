"""Start — what the script ``zarrow`` and ``python -m zarrow`` call.

Nothing large is imported before Ctrl-C can be answered: the imports of a command take half a second, and
numpy or Arrow, interrupted half-way, print tracebacks of their own.
"""

from zarrow._commands import interrupts

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    interrupts.leave_at_once()  # to the end: Ctrl-C while Python shuts down is no traceback either
    from zarrow.cli import app

    app()


if __name__ == "__main__":
    main()
