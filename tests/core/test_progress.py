"""Progress counts, estimates the time left, and stops a run at its next step after a cancel from any thread."""

import math
import threading

import pytest

from workbench.core import progress as module
from workbench.core.progress import SILENT, Cancelled, Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock in a list: set clock[0]."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_update_keeps_the_state_and_shows_it():
    seen = []

    class Seen(Progress):
        def show(self):
            seen.append((self.done, self.total, self.text))

    progress = Seen()
    progress.update(0, 2, "a")
    progress.update(1, 2)
    assert seen == [(0, 2, "a"), (1, 2, "")]


def test_a_cancel_from_another_thread_stops_the_next_step():
    progress = Progress()
    progress.update(3, 10)
    thread = threading.Thread(target=progress.cancel)
    thread.start()
    thread.join()
    assert progress.cancelled
    for _ in range(2):
        with pytest.raises(Cancelled, match="cancelled after 3 of 10 steps"):
            progress.update(4, 10)
    assert progress.done == 3


def test_cancel_before_the_first_step_stops_there():
    progress = Progress()
    assert not progress.cancelled
    progress.cancel()
    with pytest.raises(Cancelled):
        progress.update(0, 5)


def test_cancelled_passes_by_handlers_of_mistakes():
    assert not issubclass(Cancelled, ValueError)


def test_no_estimate_before_the_first_step(clock):
    progress = Progress()
    assert math.isnan(progress.eta_seconds)
    progress.update(0, 10)
    assert math.isnan(progress.eta_seconds)


@pytest.mark.parametrize("first", [0, 1, 90], ids=["counted from the start", "first report after a step", "resumed"])
def test_at_a_steady_rate_the_estimate_is_right(clock, first):
    progress = Progress()
    for done in range(first, 100):
        progress.update(done, 100)
        if done >= first + 1:
            assert progress.eta_seconds == pytest.approx(10.0 * (100 - done))
        clock[0] += 10.0
    progress.update(100, 100)
    assert progress.eta_seconds == 0


def test_a_second_stage_is_timed_from_its_own_start(clock):
    progress = Progress()
    progress.update(0, 10)
    clock[0] += 1000.0
    progress.update(0, 4)
    clock[0] += 1.0
    progress.update(1, 4)
    assert progress.eta_seconds == pytest.approx(3.0)


def test_the_shared_silent_one_keeps_nothing_and_cannot_be_cancelled():
    SILENT.update(3, 10, "x")
    assert (SILENT.done, SILENT.total, SILENT.text) == (0, 0, "")
    with pytest.raises(RuntimeError, match=r"pass progress=Progress\(\)"):
        SILENT.cancel()
    assert not SILENT.cancelled
