"""Commands on this machine: lab, doctor."""

import os
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
    command += [] if browser else ["--no-browser"]
    os.execv(
        command[0], command
    )  # becomes the server, so that what ends this process ends it, and its kernels, in order


@app.command()
def doctor() -> None:
    """What this machine has: Python, GPU, memory, browser, hub, and package versions against the pins."""
    from .doctor import report

    lines, healthy = report()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)
