"""The target of every panel: computed data is redrawn in a tenth of a second of work on the machine of the targets."""

import time
from collections.abc import Callable

import plotly.graph_objects as go

LIMIT = 0.1  # seconds of work
YARDSTICK = 0.0045  # seconds that `_yardstick` takes on the quiet two-core machine on which the target was set


def _yardstick() -> None:
    """A fixed piece of what a redraw is made of: figures by plotly."""
    figure = go.Figure()
    for k in range(8):
        figure.add_scatter(x=[0, 1], y=[0, k], line={"width": 2}, name=str(k))


def _work(step: Callable[[], object]) -> float:
    started = time.thread_time()
    step()
    return time.thread_time() - started


def assert_quick(*steps: Callable[[], object], limit: float = LIMIT) -> None:
    """The quickest of `steps`, each one redraw, keeps the limit; a machine that is slower now, by the yardstick, gets
    longer by as much.
    """
    least = min(_work(step) for step in steps)
    slower = max(1.0, min(_work(_yardstick) for _ in range(4)) / YARDSTICK)
    assert least < limit * slower, f"{1000 * least:.0f} ms of work; the limit is {1000 * limit * slower:.0f} ms here"


def settings(owner: object, name: str, *values: object) -> list[Callable[[], object]]:
    """Steps that set `owner.name` to each value in turn."""
    return [lambda value=value: setattr(owner, name, value) for value in values]
