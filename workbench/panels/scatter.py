"""Scatter: many points coloured by group, to point at, walk through by keys, and click.

A drawn widget like those of drawn.py. Cost: 22 bytes a point; a new colouring sends one byte a point.
"""

from collections.abc import Sequence

import anywidget
import numpy as np
import traitlets

from .drawn import script


class Scatter(anywidget.AnyWidget):
    """`selected` is the number of the point clicked last, -1 for none, and `clicks` counts clicks."""

    _esm = traitlets.Unicode(script("scatter")).tag(sync=True)
    x = traitlets.Bytes(b"").tag(sync=True)
    y = traitlets.Bytes(b"").tag(sync=True)
    places = traitlets.Bytes(b"").tag(sync=True)
    groups = traitlets.Bytes(b"").tag(sync=True)
    kinds = traitlets.Bytes(b"").tag(sync=True)
    group_names = traitlets.List().tag(sync=True)
    kind_names = traitlets.List().tag(sync=True)
    colours = traitlets.List().tag(sync=True)
    order = traitlets.List().tag(sync=True)
    x_limits = traitlets.List([0.0, 1.0]).tag(sync=True)
    y_limits = traitlets.List([0.0, 1.0]).tag(sync=True)
    x_title = traitlets.Unicode().tag(sync=True)
    y_title = traitlets.Unicode().tag(sync=True)
    x_short = traitlets.Unicode("x").tag(sync=True)
    y_short = traitlets.Unicode("y").tag(sync=True)
    log = traitlets.Bool(False).tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(430).tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    clicks = traitlets.Int(0).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def show(
        self, x: np.ndarray, y: np.ndarray, places: np.ndarray, groups: np.ndarray, kinds: np.ndarray, *,
        group_names: Sequence[str], colours: Sequence[str], order: Sequence[int], kind_names: Sequence[str],
        titles: tuple[str, str], short: tuple[str, str], log: bool, alt: str,
    ) -> None:  # fmt: skip
        """Draw.

        Args:
            x, y: [point]; with `log` they must be above 0. places: [point, 2] layer and number. groups, kinds: [point]
                small integers.
            group_names, colours: by group. order: groups from the lowest layer of ink to the top. kind_names: by kind.
            titles: of the axes, with units. short: what a tooltip calls x and y.
        """
        drawn = [np.log10(v) if log else np.asarray(v, float) for v in (x, y)]
        with self.hold_sync():
            self.x, self.y = (v.astype(np.float32).tobytes() for v in drawn)
            self.places, self.kinds = (
                np.ascontiguousarray(places, np.int32).tobytes(),
                np.asarray(kinds, np.uint8).tobytes(),
            )
            self.x_limits, self.y_limits = _limits(drawn[0]), _limits(drawn[1])
            self.kind_names, (self.x_title, self.y_title), (self.x_short, self.y_short), self.log = (
                list(kind_names),
                titles,
                short,
                log,
            )
            self.group_names, self.colours, self.order, self.selected = (
                list(group_names),
                list(colours),
                list(order),
                -1,
            )
            self.recolour(groups, alt)

    def recolour(self, groups: np.ndarray, alt: str) -> None:
        """Other groups for the same points."""
        with self.hold_sync():
            self.groups, self.alt = np.asarray(groups, np.uint8).tobytes(), alt
            self.version += 1

    def click(self, point: int) -> None:
        """What a click in the browser does; for scripts and tests."""
        self.selected = point
        self.clicks += 1


def _limits(values: np.ndarray) -> list[float]:
    """Ends of an axis: the values and a little room."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.5
    return [low - room, high + room]
