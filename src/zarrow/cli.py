"""Command line — the application ``zarrow``: its commands, and what an error of theirs looks like.

The commands are in `_commands`, one file per panel of ``zarrow --help``. Anything heavy or optional is
imported by the command that needs it, so that ``zarrow info`` answers at once and runs without torch.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage, or there is no store; 130 interrupted. An error
of zarrow's own is one line on standard error, never a traceback.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Annotated, Any

from typer import BadParameter, Exit, Option, Typer
from typer.core import TyperGroup

from zarrow._commands import analyse, compare, draw, guides, keep, look, move, run
from zarrow._commands.interrupts import INTERRUPTED, working
from zarrow._commands.terminal import err, escape, out, say
from zarrow.errors import NotFoundError, ZarrowError

__all__ = ["app"]

FAILED, WRONG_USAGE = 1, 2


class _Group(TyperGroup):
    """Commands whose errors are one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with working():
                return super().invoke(ctx)
        except (ZarrowError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            say(f"[bold red]error:[/] {escape(_in_options(str(error), command))}", err)
            raise Exit(WRONG_USAGE if isinstance(error, NotFoundError) else FAILED) from error
        except BadParameter as error:
            error.message = error.message.replace("Value error, ", "")  # pydantic's, by way of typer
            raise
        except (KeyboardInterrupt, RuntimeError) as error:
            if isinstance(error, RuntimeError) and str(error) != "Query interrupted":  # so DuckDB says Ctrl-C
                raise
            say("[yellow]interrupted[/]", err)
            raise Exit(INTERRUPTED) from None


def _in_options(message: str, command: Any) -> str:
    """Return a message that names arguments as Python does with the options of a command instead."""

    def option(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        flag, value = f"--{found[1].replace('_', '-')}", found[2].strip("'")
        if command is not None and command.name == "predict":  # LightningCLI's, for the callback
            return f"--writer.{found[1]} {value.lower()}"
        if command is None or not any(flag in parameter.opts for parameter in command.params):
            return found[0]
        return flag if value in ("True", "") else f"{flag} {value}"

    # Calls are left as they are.
    return re.sub(r"\w\([^()]*\)|(?<!\w)(\w+)=(True|'\w+'|(?=[\s,;:.)]|$))", option, message)


app = Typer(
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Predictions on disk: narrow columns as Parquet, vectors as sharded Zarr, joined by row.",
)
for _panel in (run, look, guides, keep, move, analyse, compare, draw):
    app.add_typer(_panel.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"zarrow {version('zarrow')}")
        raise Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool,
        Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass
