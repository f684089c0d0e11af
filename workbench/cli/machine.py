"""Commands on this machine: lab, doctor."""

import subprocess
import sys
from typing import Annotated

import typer

from .checkout import checkout

app = typer.Typer()


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="0 picks a free one", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
) -> None:
    """Open JupyterLab on the notebooks: this machine only, with a token."""
    where = (f"--notebook-dir={checkout() / 'notebooks'}", "--ip=127.0.0.1", f"--port={port}")
    command = [sys.executable, "-m", "jupyterlab", *where]
    raise typer.Exit(subprocess.call(command if browser else [*command, "--no-browser"]))


@app.command()
def doctor() -> None:
    """What this machine has: Python, GPU, memory, browser, hub, and package versions against the pins."""
    from .doctor import report

    lines, healthy = report()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)
