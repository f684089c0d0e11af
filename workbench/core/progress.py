"""How a long run reports where it is, and where it notices that it was cancelled.

A run calls `progress.update(done, total)` between forwards. `cancel()` may come from any thread or signal handler; the
next `update` raises Cancelled inside the run, which catches it, keeps what it has and returns a Result marked partial.
"""

import threading
import time
from collections.abc import Callable
from typing import Any


class Cancelled(Exception):
    """Raised inside a run by `Progress.update` after `cancel()`; a run turns it into a partial Result."""


class Progress:
    """Counts done of total and holds the cancel flag. Subclasses override `show`; the base class shows nothing."""

    def __init__(self) -> None:
        self.done, self.total, self.text = 0, 0, ""
        self._stop = threading.Event()
        self._started, self._first = time.monotonic(), 0

    def update(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total` steps.

        Raises:
            Cancelled: if `cancel` was called since the run began.
        """
        if self._stop.is_set():
            raise Cancelled(f"cancelled after {self.done} of {self.total} steps")
        if total != self.total or done < self.done:
            self._started, self._first = time.monotonic(), done
        self.done, self.total, self.text = done, total, text
        self.show()

    def keep(self, partial: Callable[[], Any]) -> None:
        """Call after each finished step; `partial()` builds the Result so far. The base class does not keep it; a
        subclass may save it now and then, so that a killed run can be resumed."""

    def show(self) -> None:
        """Draw the current state. Called in the thread of the run: set values, never print from here in a kernel."""

    def cancel(self) -> None:
        """Ask the run to stop at its next step. Safe from any thread."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    @property
    def eta_seconds(self) -> float:
        """Seconds left at the rate since this stage's first report; nan before its first step."""
        steps = self.done - self._first
        if steps <= 0:
            return float("nan")
        return (time.monotonic() - self._started) / steps * (self.total - self.done)


class _Silent(Progress):
    """Shared by every call that gives no progress, so it must not keep state or be cancellable."""

    def update(self, done: int, total: int, text: str = "") -> None:
        pass

    def cancel(self) -> None:
        raise RuntimeError("SILENT is shared by all runs: pass progress=Progress() to a run you want to cancel")


SILENT: Progress = _Silent()
