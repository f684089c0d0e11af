"""RunPanel: any method as a form, a button, progress with cancel, its claims and its figures.

State / compute / view apart: `RunState` is plain data, compute is the method's `run` (injectable, so tests pass a fake),
the views are `views.figures_of`. The run goes on in a worker thread, under the model's lock, so the kernel stays free.
"""

import json
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ipywidgets as widgets
import traitlets

from workbench.core.claims import check
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.views import figures_of

from .forms import SpecForm


class RunState(traitlets.HasTraits):
    """What the panel knows; no widgets here."""

    running = traitlets.Bool(False)
    error = traitlets.Unicode()
    result = traitlets.Instance(Result, allow_none=True)


class _Bar(Progress):
    """Progress on widgets: traits only, because the run is in another thread."""

    def __init__(self, bar: widgets.IntProgress, says: widgets.HTML):
        super().__init__()
        self._bar, self._says = bar, says

    def show(self) -> None:
        self._bar.max, self._bar.value = self.total, self.done
        eta = "" if self.eta_seconds != self.eta_seconds else f", {self.eta_seconds:.0f} s left"
        self._says.value = f"{self.done} of {self.total} {self.text}{eta}"


class RunPanel(widgets.VBox):
    """`RunPanel(wb.method("attention_sinks"))` in a cell shows it; `panel.state.result` is the last Result."""

    def __init__(self, method: ModuleType, *, model: Any = None, spec: Any = None, compute: Callable[..., Result] | None = None, only: tuple[str, ...] | None = None):
        self.method, self.model, self.state = method, model, RunState()
        self._compute = compute or method.run
        self.form = SpecForm(spec or method.Spec.tiny(), only)
        self.start = widgets.Button(description="Run", button_style="primary")
        self.stop = widgets.Button(description="Cancel", disabled=True)
        self.bar, self.says = widgets.IntProgress(), widgets.HTML()
        self.claims, self.drawing = widgets.HTML(), widgets.Output()
        self._progress: Progress | None = None
        self._thread: threading.Thread | None = None
        self.start.on_click(lambda _: self.run())
        self.stop.on_click(lambda _: self._progress.cancel() if self._progress else None)
        self.state.observe(self._show, names=["result", "error", "running"])
        super().__init__([self.form, widgets.HBox([self.start, self.stop, self.bar]), self.says, self.claims, self.drawing])

    def run(self) -> None:
        """Start the run in a worker thread; a run in progress is left alone. Errors land in `state.error`."""
        if self.state.running:
            return
        self.state.error, self.state.running = "", True
        self._progress = _Bar(self.bar, self.says)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> Result | None:
        """Block until the run ends, for scripts and tests."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.state.result

    def _work(self) -> None:
        try:
            self.state.result = self._compute(self.form.spec(), model=self.model, progress=self._progress)
        except Exception as found:  # the one place where a broad except is right: a callback's error would vanish
            self.state.error = f"{type(found).__name__}: {found}"
        finally:
            self.state.running = False

    def _show(self, change: Any) -> None:
        self.start.disabled, self.stop.disabled = self.state.running, not self.state.running
        if self.state.error:
            self.says.value = f"<div style='border-left:4px solid #D55E00;padding:.4em .8em'>{self.state.error}</div>"
        if change["name"] == "result" and self.state.result is not None:
            result = self.state.result
            self.claims.value = check(result, self.method.CLAIMS)._repr_html_()
            if result.partial:
                self.says.value = "<div style='border-left:4px solid #D55E00;padding:.4em .8em'>cancelled: what was finished is kept, no claim is tested on it</div>"
            figures = list(figures_of(result).values())[:1]
            self.drawing.outputs = tuple(
                {"output_type": "display_data", "data": {"application/vnd.plotly.v1+json": json.loads(f.to_json()), "text/plain": "figure"}, "metadata": {}} for f in figures
            )
