"""How far a run is, on one line of the terminal; Ctrl-C cancels it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from workbench.core.progress import Progress

CLEAR_LINE = "\r\x1b[K"


class Terminal(Progress):
    """Progress on one line of stderr, as a context: `with Terminal() as progress: method.run(spec, progress=progress)`.

    Ctrl-C cancels the run, which then keeps what it has; a second one stops at once. With a `folder`, the result so far
    is saved there every half minute (WORKBENCH_KEEP_SECONDS overrides it), so that a killed run can be resumed too.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder, self._kept = folder, time.monotonic()
        self._every = float(os.environ.get("WORKBENCH_KEEP_SECONDS", "30"))

    def keep(self, partial: Callable[[], Any]) -> None:
        if self.folder is None or time.monotonic() - self._kept < self._every:
            return
        self._kept = time.monotonic()
        try:
            partial().save(self.folder)
        except OSError as trouble:  # a full disk must not end a run that may finish after it is cleared
            why = trouble.strerror or trouble
            typer.echo(f"what is finished so far could not be kept ({why}); the run goes on", err=True)

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
