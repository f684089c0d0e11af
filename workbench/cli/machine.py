"""Commands on this machine: lab, doctor."""

import os
import secrets
import socket
from typing import Annotated

import typer

from workbench.core.errors import BadSpec

from .checkout import checkout

app = typer.Typer()


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="0 picks a free one", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
    allow_root: Annotated[bool, typer.Option("--allow-root", help="start although this is the root user")] = False,
) -> None:
    """Open JupyterLab on the notebooks: this machine only, with a token of its own; the address says which port."""
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not allow_root:
        raise BadSpec(
            "this is the root user, and whoever gets at the server could then do anything on this machine; start it as"
            " another user, or say --allow-root"
        )
    port, token = _free_port(port), secrets.token_hex(24)
    from jupyterlab.labapp import LabApp

    # Told to the server in this process: a command line is seen by every user of the machine. It outranks JUPYTER_TOKEN
    # and configuration files, which may have switched the token off.
    settings = [
        f"--ServerApp.root_dir={checkout() / 'notebooks'}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--ServerApp.allow_remote_access=False",
    ]
    settings += [] if browser else ["--no-browser"]
    settings += ["--allow-root"] if allow_root else []
    typer.echo(f"JupyterLab: http://127.0.0.1:{port}/lab?token={token}")  # the server hides a token it was given
    LabApp.launch_instance(settings)


def _free_port(port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        BadSpec: if it is in use.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            raise BadSpec(
                f"port {port} is in use or not allowed; give another, or leave --port out to have a free one picked"
            ) from None
        return tried.getsockname()[1]


@app.command()
def doctor() -> None:
    """What this machine has: Python, GPU, memory, browser, hub, and package versions against the pins."""
    from .doctor import report

    lines, healthy = report()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)
