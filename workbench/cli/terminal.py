"""How far a run is, on one line of the terminal; Ctrl-C cancels it."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from workbench.core.errors import BadSpec
from workbench.core.progress import Progress

CLEAR_LINE = "\r\x1b[K"


def _keep_seconds() -> float:
    """How often a run keeps what it has."""
    text = os.environ.get("WORKBENCH_KEEP_SECONDS", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise BadSpec(f"WORKBENCH_KEEP_SECONDS must be a number of seconds from 0 up, got {text!r}")
    return seconds


class Terminal(Progress):
    """Progress on one line of stderr, as a context: `with Terminal() as progress: method.run(spec, progress=progress)`.

    Ctrl-C cancels the run, which then keeps what it has; a second one stops at once. With a `folder`, the result so far
    is saved there every half minute (WORKBENCH_KEEP_SECONDS overrides it), so that a killed run can be resumed too.

    Raises:
        BadSpec: if WORKBENCH_KEEP_SECONDS is no number of seconds.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder, self._kept = folder, time.monotonic()
        self._every, self._could_keep = _keep_seconds(), True

    def keep(self, partial: Callable[[], Any]) -> None:
        if self.folder is None or time.monotonic() - self._kept < self._every:
            return
        try:
            partial().save(self.folder)
            self._could_keep = True
        except Exception as trouble:  # whatever it is, a run that may still finish must not end for it
            if self._could_keep:
                why = (trouble.strerror if isinstance(trouble, OSError) else None) or trouble or type(trouble).__name__
                typer.echo(f"what is finished so far could not be kept ({why}); the run goes on", err=True)
            self._could_keep = False
        self._kept = time.monotonic()

    def show(self) -> None:
        if sys.stderr.isatty():
            seconds = self.eta_seconds  # read once: it moves with the clock
            eta = "" if seconds != seconds else f", {seconds:.0f} s left"
            sys.stderr.write(f"{CLEAR_LINE}{self.done}/{self.total} {self.text}{eta}")
            sys.stderr.flush()

    def __enter__(self) -> "Terminal":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self.cancel()

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if sys.stderr.isatty():
            sys.stderr.write(CLEAR_LINE)
