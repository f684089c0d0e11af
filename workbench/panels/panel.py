"""Panel: what every panel does in the same way - work in a thread, progress and errors in words, tables, files, a
static view.

A panel is state (traitlets, plain data), compute (plain functions of primitives/ or methods/, injectable) and views
(pure). Heavy work starts on a button and runs in a worker thread; widgets are changed by traits only, never by prints;
errors show as one sentence. Nothing is computed when a panel is made. While it is shown in a notebook, a picture and a
table of what it shows are kept as ordinary outputs beneath it, hidden as long as the live panel is there: a reopened
notebook, GitHub and nbconvert show those.
"""

import base64
import html
import json
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets
from IPython import get_ipython
from IPython.display import display

from workbench.core.errors import WorkbenchError
from workbench.core.progress import Cancelled, Progress
from workbench.core.result import Result
from workbench.reports import images
from workbench.reports.page import write_view
from workbench.views import theme

SETTLE_SECONDS = 0.8  # how long nothing must change before the static view is drawn again
SHOWN_ROWS = 30
SAME_CHANGE = (
    0.05  # seconds between two observers of one change, of which the second must not wipe out the first one's error
)


class PanelState(traitlets.HasTraits):
    """What every panel knows; panels add their own fields. No widgets here."""

    running = traitlets.Bool(False)
    error = traitlets.Unicode()
    notice = traitlets.Unicode()
    result = traitlets.Instance(Result, allow_none=True)


class _Bar(Progress):
    """Progress on widgets: traits only, because the work is in another thread."""

    def __init__(self, bar: widgets.IntProgress, says: widgets.Label):
        super().__init__()
        self._bar, self._says = bar, says

    def show(self) -> None:
        self._bar.max, self._bar.value = max(1, self.total), self.done
        seconds = self.eta_seconds  # read once: it moves with the clock
        eta = "" if seconds != seconds else f", {seconds:.0f} s left"
        self._says.value = f"{self.done} of {self.total} {self.text}{eta}"


_shown: "weakref.WeakSet[Panel]" = weakref.WeakSet()


def keep_static_views() -> None:
    """Draw the static view of every panel that was shown, from this very cell: for reports, which end the kernel at
    once and see only what a cell sends, not what a timer sends later."""
    for panel in list(_shown):
        if panel._settling is not None:
            panel._settling.cancel()
            panel._settling.join()
        panel.wait()
        panel.keep_static_view()


class Panel(widgets.VBox):
    """A panel: `Panel(...)` in a cell shows it; `table()`, `figures()` and `save()` give what it shows.

    Subclasses make their controls, hand them to `frame`, and start work with `work`. They override `figures` and
    `table`.

    Attributes:
        state: plain data. title: what it is, for headings and files.
    """

    title = "Panel"

    def __init__(self, state: PanelState | None = None):
        self.state = state or PanelState()
        self._identity = f"wb-{uuid.uuid4().hex[:10]}"
        self._progress: Progress | None = None
        self._thread: threading.Thread | None = None
        self._settling: threading.Timer | None = None
        self._shown = False
        self._failed_at = float("-inf")
        self.bar = widgets.IntProgress(layout=widgets.Layout(width="160px"))
        self.stage = widgets.Label()
        self.says = widgets.HTML()
        self.stop = widgets.Button(description="Cancel", disabled=True, tooltip="Stop; what is finished is kept")
        self.stop.on_click(lambda _: self.cancel())
        self._working = widgets.HBox([self.stop, self.bar, self.stage], layout=widgets.Layout(display="none"))
        self._hides_static = widgets.HTML(layout=widgets.Layout(display="none"))
        self.state.observe(self._show_state, names=["running", "error", "notice"])
        super().__init__()
        self.add_class(self._identity)
        self.add_class("workbench-panel")

    # ---- for subclasses ----

    def frame(self, *rows: widgets.Widget) -> None:
        """Put the panel together: heading, rows, and the line of progress, errors and notices after the first row."""
        heading = widgets.HTML(f"<b>{html.escape(self.title)}</b>")
        first, rest = rows[:1], rows[1:]
        self.children = [self._hides_static, heading, *first, self._working, self.says, *rest]

    def work(self, compute: Callable[[Progress], Any], done: Callable[[Any], None]) -> None:
        """Run `compute(progress)` in a worker thread, then `done(what it returned)` there. Work under way is left
        alone.

        Errors of both land in `state.error` as one sentence; a cancel lands in `state.notice`.
        """
        if self.state.running:
            self.state.notice = "still working on the last request; cancel it first"
            return
        self.state.error, self.state.notice, self.state.running = "", "", True
        progress = self._progress = _Bar(self.bar, self.stage)

        def body() -> None:
            try:
                done(compute(progress))
            except Cancelled as found:
                self.state.notice = str(found)
            except Exception as found:  # the one place where a broad except is right: a callback's error would vanish
                self.state.error = sentence(found)
            finally:
                self.state.running = False
                self.settle()

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    def attempt(self, change: Callable[[], None]) -> None:
        """Do something light at once (a redraw, a click); an error becomes the panel's sentence."""
        try:
            if time.monotonic() - self._failed_at > SAME_CHANGE:
                self.state.error = ""
            change()
        except Exception as found:
            self.state.error, self._failed_at = sentence(found), time.monotonic()
        self.settle()

    def cancel(self) -> None:
        """Ask the work under way to stop at its next step."""
        if self._progress is not None:
            self._progress.cancel()

    def wait(self, timeout: float | None = None) -> "Panel":
        """Block until the work ends, for scripts and tests.

        Raises:
            TimeoutError: if it has not ended by then.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"{self.title}: still working after {timeout} s")
        return self

    # ---- what it shows, as data ----

    def table(self) -> pd.DataFrame:
        """What the panel shows now, as numbers."""
        return pd.DataFrame()

    def figures(self) -> dict[str, go.Figure]:
        """What the panel shows now, as figures for reports."""
        return {}

    def save(self, path: Path | str) -> Path:
        """Write what the panel shows to one self-contained HTML file: figures, table, notices and provenance.

        Raises:
            WorkbenchError: if there is nothing to show yet.
        """
        figures, table = self.figures(), self.table()
        if not figures and table.empty:
            raise WorkbenchError(f"{self.title} has nothing to save yet: run it first")
        return write_view(
            path, self.title, figures, table, self.state.result, [self.state.notice] if self.state.notice else []
        )

    # ---- static view ----

    def _ipython_display_(self) -> None:
        """Show the live panel and, beneath it, the static view that the notebook keeps."""
        first = not self._shown
        self._shown = True
        sibling = ".jp-OutputArea-child"
        live = f"{sibling}:has(.{self._identity})"
        self._hides_static.value = f"<style>{live} + {sibling}, {live} + {sibling} + {sibling} {{display:none}}</style>"
        display({**self._repr_mimebundle_(), "text/plain": self.title}, raw=True)
        display(
            {"text/plain": "", "text/html": self._static_table(pd.DataFrame())},
            raw=True,
            display_id=f"{self._identity}-table",
        )
        display({"text/plain": ""}, raw=True, display_id=f"{self._identity}-picture")
        if first:
            self.state.observe(lambda _: self.settle(), names=traitlets.All)
        self.settle()

    def settle(self) -> None:
        """Draw the static view once nothing has changed for a moment."""
        if not self._shown or get_ipython() is None:
            return
        _shown.add(self)
        if self._settling is not None:
            self._settling.cancel()
        self._settling = threading.Timer(SETTLE_SECONDS, self.keep_static_view)
        self._settling.daemon = True
        self._settling.start()

    def keep_static_view(self) -> None:
        """Refresh picture and table beneath the live panel. Without a browser on this machine there is no picture."""
        if not self._shown or self.state.running:
            return
        try:
            display(
                {"text/plain": self.title, "text/html": self._static_table(self.table())},
                raw=True,
                display_id=f"{self._identity}-table",
                update=True,
            )
            first = next(iter(self.figures().values()), None)
            picture, problem = (b"", "") if first is None else images.small_picture(first)
            bundle = {"text/plain": problem or _alt(first)} | (
                {"image/png": base64.b64encode(picture).decode()} if picture else {}
            )
            display(bundle, raw=True, display_id=f"{self._identity}-picture", update=True)
        except Exception as found:  # a static view must never take the live one down
            self.state.notice = f"the static view was not refreshed: {sentence(found)}"

    def _static_table(self, table: pd.DataFrame) -> str:
        # Reopened without a kernel, the widget's place says "model not found": that line is hidden where this table
        # follows it.
        sibling = ".jp-OutputArea-child"
        hide = (
            f"<style>{sibling}:has(+ {sibling} #{self._identity}) > .jp-OutputArea-output.jupyter-widgets:not(:has(*))"
            " {display:none}</style>"
        )
        more = f"<p>{len(table)} rows, the first {SHOWN_ROWS} shown</p>" if len(table) > SHOWN_ROWS else ""
        body = (
            ""
            if table.empty
            else table.head(SHOWN_ROWS).to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")
        )
        result = self.state.result
        said = [
            self.state.error,
            self.state.notice,
            *(result.warnings if result is not None else ()),
            "cancelled: only what was finished is shown" if result is not None and result.partial else "",
        ]
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in dict.fromkeys(said) if line)
        return (
            f"{hide}<div id='{self._identity}'><b>{html.escape(self.title)}</b> (static view){notes}{body}{more}</div>"
        )

    # ---- state on widgets ----

    def _show_state(self, _: object) -> None:
        state = self.state
        self.stop.disabled = not state.running
        self._working.layout.display = "flex" if state.running else "none"
        if not state.running:
            self.stage.value = ""
        lines = [_line(state.error, "#D55E00", "alert")] if state.error else []
        lines += [_line(state.notice, "#E69F00", "status")] if state.notice else []
        self.says.value = "".join(lines)


def _line(text: str, colour: str, role: str) -> str:
    return (
        f"<div role='{role}' style='border-left:4px solid {colour};padding:.3em .8em;margin:.2em"
        f" 0'>{html.escape(text)}</div>"
    )


def sentence(found: BaseException) -> str:
    """An error as one sentence; our own need no class name in front."""
    text = str(found).strip().splitlines()[0] if str(found).strip() else "no further word"
    return text if isinstance(found, WorkbenchError) else f"{type(found).__name__}: {text}"


def _alt(figure: go.Figure | None) -> str:
    meta = None if figure is None else figure.layout.meta
    return meta.get("alt", "") if isinstance(meta, dict) else ""


def plot_area() -> widgets.Output:
    """A place for one plotly figure, filled by `draw`; 24 kB a figure where a FigureWidget has 5 MB."""
    return widgets.Output()


def draw(area: widgets.Output, figure: go.Figure | None) -> None:
    """Show a figure in a `plot_area`, transparent, with ink that reads on light and dark. Trait assignment, because
    callbacks run in other threads.
    """
    if figure is None:
        area.outputs = ()
        return
    shown = theme.on_any_paper(figure)
    data = {"application/vnd.plotly.v1+json": json.loads(shown.to_json()), "text/plain": _alt(figure)}
    area.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


def labelled(kind: type[widgets.Widget], label: str, tip: str = "", width: str = "320px", **options: Any) -> Any:
    """A control with a label, a tooltip and the house's widths; sliders report when they are let go."""
    options.setdefault("style", {"description_width": "initial"})
    if "Slider" in kind.__name__:
        options.setdefault("continuous_update", False)
    return kind(description=label, tooltip=tip or label, layout=widgets.Layout(width=width), **options)


def row(*children: widgets.Widget) -> widgets.HBox:
    """Controls side by side, wrapping where the page is narrow."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def link(state: traitlets.HasTraits, **controls: widgets.Widget) -> None:
    """Bind state fields to the `value` of controls, both ways; the state's value wins at first."""
    for name, control in controls.items():
        traitlets.link((state, name), (control, "value"))


def names(values: Sequence[object]) -> list[str]:
    """Position labels: number and token, so that equal tokens stay apart."""
    return [f"{i} {value}" for i, value in enumerate(values)]
