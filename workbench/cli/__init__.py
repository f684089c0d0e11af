"""The command `workbench`: one file a group of commands.

Heavy packages are imported inside the commands, so that `--help` and `list` answer at once. Exit codes: 0 all testable
claims hold and all controls fail as they must, 1 not so, 2 a mistake in the call (one sentence), 130 cancelled.
"""

from pathlib import Path
from typing import NoReturn

import typer

from workbench.core.errors import WorkbenchError

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

_UsageError = typer.BadParameter.__bases__[0]  # typer does not export the base of its usage errors


def main() -> NoReturn:
    """Entry point: a mistake of the caller becomes one sentence and exit code 2.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        code = app(standalone_mode=False)
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
