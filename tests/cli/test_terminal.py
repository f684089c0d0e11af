"""The terminal's progress: when it keeps what is finished, and what Ctrl-C does."""

import signal
from pathlib import Path

import pytest

from workbench.cli.terminal import Terminal
from workbench.core.progress import Cancelled


class Saved:
    """Stands for the Result so far."""

    def __init__(self, trouble: OSError | None = None) -> None:
        self.folders, self.trouble = [], trouble

    def save(self, folder: Path) -> None:
        if self.trouble:
            raise self.trouble
        self.folders.append(folder)


@pytest.mark.parametrize(("seconds", "times"), [("0", 2), ("3600", 0)])
def test_what_is_finished_is_kept_when_its_time_has_come(seconds, times, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", seconds)
    partial, progress = Saved(), Terminal(tmp_path)
    for _ in range(2):
        progress.keep(lambda: partial)
    assert partial.folders == [tmp_path] * times


def test_nothing_is_made_without_a_folder(monkeypatch):
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    Terminal().keep(lambda: pytest.fail("made for nothing"))


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    Terminal(tmp_path).keep(lambda: Saved(OSError(28, "No space left on device")))
    assert "could not be kept (No space left on device); the run goes on" in capsys.readouterr().err


@pytest.fixture
def pythons_own_handler():
    """That of a fresh process: dask_jobqueue, once imported, leaves a handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_cancels_and_the_second_stops_at_once(pythons_own_handler):
    before = signal.getsignal(signal.SIGINT)
    with Terminal() as progress:
        progress.update(1, 3)
        signal.raise_signal(signal.SIGINT)
        assert progress.cancelled
        with pytest.raises(Cancelled, match="cancelled after 1 of 3 steps"):
            progress.update(2, 3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
