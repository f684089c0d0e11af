"""The command `workbench`: one file a group of commands.

Heavy packages are imported inside the commands, so that `--help` and `list` answer at once. Exit codes: 0 all testable
claims hold and all controls fail as they must, 1 not so, 2 a mistake in the call (one sentence), 130 cancelled, 141
nobody reads what is printed any more (`workbench list | head`).
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import typer

from workbench.core.errors import BadSpec, WorkbenchError

from . import machine, organisms, papers, reports

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "A workbench for transformer interpretability, safety and privacy: one notebook per paper, "
        "every claim beside a control that must fail."
    ),
)
for group in (papers, machine, reports):  # the order of `workbench --help`
    app.add_typer(group.app)
app.add_typer(organisms.app, name="organisms")

BROKEN_PIPE = 128 + 13  # as the shell counts a command that ended by SIGPIPE
_UsageError = typer.BadParameter.__bases__[0]  # typer does not export the base of its usage errors


def main() -> NoReturn:
    """Entry point: a mistake of the caller becomes one sentence and exit code 2.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        _refuse_unprintable(sys.argv)
        code = app(standalone_mode=False)
    except SystemExit:  # typer's own way out of a closed pipe, with a code that means something else here
        raise SystemExit(BROKEN_PIPE) from None
    except _UsageError as mistake:
        wants_help = type(mistake).__name__ == "NoArgsIsHelpError"
        said = mistake.format_message()
        typer.echo(said if wants_help else f"workbench: {said} (see workbench --help)", err=not wants_help)
        raise SystemExit(2) from None
    except WorkbenchError as mistake:
        typer.echo(f"workbench: {mistake}", err=True)
        raise SystemExit(2) from None
    except OSError as trouble:
        file = Path(trouble.filename).name if trouble.filename else "no file named"
        typer.echo(f"workbench: {trouble.strerror or trouble} ({file})", err=True)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("workbench: cancelled", err=True)
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _refuse_unprintable(arguments: Iterable[str]) -> None:
    """A name that is no UTF-8 could be opened, but neither printed nor written into a report: said before any work."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise BadSpec(f"{argument!a} is not UTF-8; give a name that is") from None
