"""Commands on organisms: list, build, verify."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.core.places import data_folder, organism_folders
from workbench.core.progress import Cancelled
from workbench.notebook import quiet

from .terminal import Terminal

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The small models that ship: list them, build one again, verify what they show.",
)


@app.command("list")
def list_organisms() -> None:
    """Organisms, and where each one is."""
    from workbench.organisms.registry import names

    have = organism_folders()
    for name in names():
        if name not in have:
            state = "not built"
        else:
            state = "ships" if have[name].is_relative_to(data_folder()) else "built on this machine"
        typer.echo(f"{name:24} {state}")


@app.command("build")
def build_organism(
    name: Annotated[str, typer.Argument(help="which organism")],
    out: Annotated[Path | None, typer.Option(help="directory to write; the user's cache if not given")] = None,
) -> None:
    """Train an organism from its recipe (minutes) and measure what it shows."""
    from workbench.organisms.registry import build

    quiet()
    with Terminal() as progress:
        try:
            folder, table = build(name, out, progress)
        except Cancelled as stopped:
            typer.echo(f"{stopped}; nothing was written", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{table}\n\nwritten to {folder}")
    raise typer.Exit(0 if table.passed else 1)


@app.command("verify")
def verify_organisms(
    name: Annotated[str | None, typer.Argument(help="which organism; all that are here if not given")] = None,
) -> None:
    """Measure the declared behaviour of organisms again."""
    from workbench.organisms.registry import names, verify

    quiet()
    passed = True
    for each in [name] if name else [n for n in names() if n in organism_folders()]:
        table = verify(each)
        passed &= table.passed
        typer.echo(f"{each}\n{table}\n")
    raise typer.Exit(0 if passed else 1)
