"""HeadGrid: every head's pattern as a thumbnail on one canvas, its score beneath, to point at, click, and switch off.

A drawn widget like those of drawn.py. Cost: one byte a cell (views/attention.thumbnails keeps all of them under 600
kB); the patterns are turned into pixels once, and pointing at a head only draws them again.
"""

from collections.abc import Sequence

import anywidget
import numpy as np
import traitlets

from .drawn import script


class HeadGrid(anywidget.AnyWidget):
    """Layers down, heads across. `selected` is [layer, head] of the last click, `clicks` counts them, `off` lists heads
    switched off.

    In the browser: click or Enter selects, Shift+click or the key "o" switches the head off and on.
    """

    _esm = traitlets.Unicode(script("headgrid")).tag(sync=True)
    patterns = traitlets.Bytes(b"").tag(sync=True)
    shape = traitlets.List([0, 0, 0]).tag(sync=True)
    scores = traitlets.Bytes(b"").tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    low = traitlets.Float(0.0).tag(sync=True)
    high = traitlets.Float(1.0).tag(sync=True)
    off = traitlets.List().tag(sync=True)
    selected = traitlets.List().tag(sync=True)
    clicks = traitlets.Int(0).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def show(
        self, patterns: np.ndarray, scores: np.ndarray, *, title: str, unit: str, limits: tuple[float, float], alt: str
    ) -> None:
        """Draw.

        Args:
            patterns: [layer, head, side, side] uint8 as views/attention.thumbnails makes them.
            scores: [layer, head] in `unit`, nan for none. title: what they are. limits: ends of their colour bar.
        """
        n_layers, n_heads, side, _ = patterns.shape
        with self.hold_sync():
            self.patterns, self.shape = np.ascontiguousarray(patterns, np.uint8).tobytes(), [n_layers, n_heads, side]
            self.scores = np.asarray(scores, np.float32).tobytes()
            self.title, self.unit, self.alt, (self.low, self.high) = title, unit, alt, limits
            self.version += 1

    def click(self, layer: int, head: int) -> None:
        """What a click in the browser does; for scripts and tests."""
        self.selected = [layer, head]
        self.clicks += 1

    def switch(self, layer: int, head: int) -> None:
        """Switch a head off, or on again, as Shift+click does."""
        self.off = toggled(self.off, layer, head)


def toggled(off: Sequence[Sequence[int]], layer: int, head: int) -> list[list[int]]:
    """The list with a head put in or taken out, sorted."""
    now = {tuple(pair) for pair in off} ^ {(layer, head)}
    return [list(pair) for pair in sorted(now)]
