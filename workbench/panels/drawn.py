"""The drawn widgets of panels: a heat map to click and a line of tokens, as small inline anywidgets.

Ours and not FigureWidgets, because a FigureWidget carries 5 MB, cannot be reached by keyboard and ignores the lab's
theme. They hold numbers and report clicks; what the numbers mean is the panel's business, and the figure of a report is
drawn by views/. No network: the script is in the widget. Cost: 4 bytes a cell; above `MAX_CELLS` cells are pooled and
the caller is told.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import anywidget
import numpy as np
import traitlets

MAX_CELLS = 40_000  # a canvas repaints that in some 30 ms
MAX_COLUMNS = 240  # at 3 pixels each they fit beside labels and colour bar; rows may go on downwards


@cache
def script(name: str) -> str:
    """web/NAME.js with what the drawn widgets share in front, as one module."""
    folder = Path(__file__).parent / "web"
    shared = (folder / "paint.js").read_text("utf-8").replace("export ", "")
    return shared + (folder / f"{name}.js").read_text("utf-8")


class HeatMap(anywidget.AnyWidget):
    """Rows down, columns across; `selected` is [row, col] of the last click and `clicks` counts them."""

    _esm = traitlets.Unicode(script("heatmap")).tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)
    shape = traitlets.List([0, 0]).tag(sync=True)
    row_labels = traitlets.List().tag(sync=True)
    col_labels = traitlets.List().tag(sync=True)
    texts = traitlets.List().tag(sync=True)
    x_title = traitlets.Unicode().tag(sync=True)
    y_title = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    signed = traitlets.Bool(True).tag(sync=True)
    low = traitlets.Float(0.0).tag(sync=True)
    high = traitlets.Float(1.0).tag(sync=True)
    height = traitlets.Int(420).tag(sync=True)
    marked = traitlets.List().tag(sync=True)
    selected = traitlets.List().tag(sync=True)
    clicks = traitlets.Int(0).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)
    _steps: tuple[int, int] = (1, 1)  # rows and columns that one drawn cell stands for

    def show(
        self,
        values: np.ndarray,
        rows: Sequence[object],
        cols: Sequence[object],
        *,
        x_title: str,
        y_title: str,
        unit: str,
        alt: str,
        signed: bool = True,
        limits: tuple[float, float] | None = None,
        texts: Sequence[str] = (),
        marked: Sequence[tuple[int, int]] = (),
    ) -> str:
        """Draw [row, col] numbers; nan is a blank cell. Signed maps are centred at 0.

        Returns:
            A sentence if the map was pooled because it has more than MAX_CELLS cells, else "". Pooled cells show the
            largest size among theirs, and a click reports the first of them.
        """
        values = np.asarray(values, np.float32)
        row_step, col_step = _steps(values.shape)
        notice = ""
        if row_step * col_step > 1:
            notice = (
                f"{values.shape[0]} x {values.shape[1]} cells are too many to draw: each shown cell is the largest of"
                f" {row_step} x {col_step}; the table has all"
            )
            values, texts = _pooled(values, row_step, col_step), ()
        self._steps = (row_step, col_step)
        if limits is None:
            top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
            least = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
            limits = (
                (-(top or 1.0), top or 1.0)
                if signed
                else (min(0.0, least), max(float(np.nanmax(values)) if np.isfinite(values).any() else 1.0, 1e-9))
            )
        with self.hold_sync():
            self.values, self.shape = values.tobytes(), list(values.shape)
            self.row_labels, self.col_labels = (
                [str(r) for r in list(rows)[::row_step]],
                [str(c) for c in list(cols)[::col_step]],
            )
            self.texts, self.marked = list(texts), [[r // row_step, c // col_step] for r, c in marked]
            self.x_title, self.y_title, self.unit, self.alt = x_title, y_title, unit, alt
            self.signed, (self.low, self.high), self.selected = signed, limits, []
            self.version += 1
        return notice

    @property
    def chosen(self) -> tuple[int, int] | None:
        """Row and column of the last click, in the numbers that `show` was given."""
        if len(self.selected) != 2:
            return None
        (row, col), (row_step, col_step) = self.selected, self._steps
        return row * row_step, col * col_step

    def outline(self, row: int, col: int) -> None:
        """Mark a cell as the one chosen; `show` forgets which it was."""
        self.selected = [row // self._steps[0], col // self._steps[1]]

    def click(self, row: int, col: int) -> None:
        """What a click in the browser does; for scripts and tests."""
        self.outline(row, col)
        self.clicks += 1


def _steps(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many rows and columns go into one drawn cell: the longer side gives way first."""
    steps = [1, -(-shape[1] // MAX_COLUMNS) or 1]
    while -(-shape[0] // steps[0]) * -(-shape[1] // steps[1]) > MAX_CELLS:
        steps[0 if shape[0] / steps[0] >= shape[1] / steps[1] else 1] += 1
    return steps[0], steps[1]


def _pooled(values: np.ndarray, row_step: int, col_step: int) -> np.ndarray:
    """The value of the largest size in every row_step x col_step block."""
    rows, cols = -(-values.shape[0] // row_step), -(-values.shape[1] // col_step)
    padded = np.full((rows * row_step, cols * col_step), np.nan, np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(rows, row_step, cols, col_step).swapaxes(1, 2).reshape(rows, cols, -1)
    size = np.where(np.isnan(blocks), -1, np.abs(blocks)).argmax(-1)
    return np.take_along_axis(blocks, size[..., None], -1)[..., 0]


class TokenStrip(anywidget.AnyWidget):
    """Tokens as a line of buttons coloured by a number each; `selected` is the last one clicked, -1 for none.

    With a [pos, pos] `matrix`, pointing at a token colours the others by its row (where it attends).
    """

    _esm = traitlets.Unicode(script("tokens")).tag(sync=True)
    tokens = traitlets.List().tag(sync=True)
    ids = traitlets.List().tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)
    matrix = traitlets.Bytes(b"").tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    signed = traitlets.Bool(False).tag(sync=True)
    low = traitlets.Float(0.0).tag(sync=True)
    high = traitlets.Float(1.0).tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def show(
        self,
        tokens: Sequence[str],
        ids: Sequence[int],
        *,
        alt: str,
        values: np.ndarray | None = None,
        matrix: np.ndarray | None = None,
        unit: str = "",
        signed: bool = False,
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Draw tokens. values: [pos] numbers in `unit`, nan for none. matrix: [pos, pos] numbers that a pointed row
        shows.
        """
        own = np.full(len(tokens), np.nan) if values is None else values
        with self.hold_sync():
            self.tokens, self.ids, self.alt, self.unit, self.signed = (
                list(tokens),
                [int(i) for i in ids],
                alt,
                unit,
                signed,
            )
            self.values = np.asarray(own, np.float32).tobytes()
            self.matrix = b"" if matrix is None else np.asarray(matrix, np.float32).tobytes()
            self.low, self.high = limits
            if self.selected >= len(tokens):
                self.selected = -1
            self.version += 1
