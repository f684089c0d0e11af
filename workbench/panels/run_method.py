"""Run panel: any method as a form, a button, progress with cancel, its claims, all its figures, and a folder for a
review.

Plain functions behind it: the method's own `run`, and `reports.review.write_review`. A method that can resume goes on
from a cancelled run if the form still says the same. The run goes on in a worker thread; every forward of it takes the
model's lock, so a cell may use the same model meanwhile. Cost: the method's; a review folder takes some 5 s, for the
PNGs.
"""

import inspect
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.catalogue import PAPERS
from workbench.core.claims import ClaimsTable, check
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.core.spec import Spec
from workbench.models.model import Model
from workbench.papers import method as method_of
from workbench.reports.page import write_page
from workbench.reports.review import write_review
from workbench.views import figures

from .forms import SpecForm
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

REVIEWS = "reviews"  # in the current folder


def run(method: ModuleType | str, **options: Any) -> "Run":
    """`panels.run("attention_sinks")` in a cell shows the panel of a method; options as for `Run`."""
    return Run(method, **options)


def review_folder(stem: str, today: date | None = None) -> Path:
    """reviews/STEM-DATE in the current folder, or with -2, -3, ... behind it: the first that is not there yet."""
    first = Path(REVIEWS) / f"{stem}-{today or date.today():%Y-%m-%d}"
    found, number = first, 1
    while found.exists():
        number += 1
        found = first.with_name(f"{first.name}-{number}")
    return found


class RunState(PanelState):
    """figure: which of the figures is shown. folder: where a review goes, empty for `review_folder`. saved: where
    the last one went.
    """

    figure = traitlets.Unicode()
    folder = traitlets.Unicode()
    saved = traitlets.Unicode()


class Run(Panel):
    """`panels.run(method)` in a cell; Run computes, the claims and one figure at a time are shown, Save writes a review
    folder.

    Args:
        method: a method module or its stem. model: used instead of the Spec's own, whose fields then leave the form.
        spec: what the form starts from, `Spec.tiny()` if not given. only: fields of the form; all if not given.
        compute: the method's `run` if not given. views: Result -> {name: Figure}.
    """

    def __init__(
        self,
        method: ModuleType | str,
        *,
        model: Model | None = None,
        spec: Spec | None = None,
        only: Sequence[str] | None = None,
        state: RunState | None = None,
        compute: Callable[..., Result] | None = None,
        views: Callable[[Result], dict[str, go.Figure]] = figures,
    ):
        self.state: RunState
        self.method: Any = method_of(method) if isinstance(method, str) else method
        self.model, self._compute, self._figures_of = model, compute or self.method.run, views
        self.stem = self.method.__name__.rpartition(".")[2]
        self.title = PAPERS[self.stem].title if self.stem in PAPERS else self.stem
        self._figures: dict[str, go.Figure] = {}
        self._claims = ClaimsTable(())
        super().__init__(state or RunState())
        self.form = SpecForm(spec or self.method.Spec.tiny(), only, without=() if model is None else ("model",))
        self.start = widgets.Button(
            description="Run", button_style="primary", tooltip="Run the method with these settings"
        )
        self.start.on_click(lambda _: self.run())
        self.folder = labelled(
            widgets.Text,
            "Folder",
            "Where the review goes; a new folder in reviews/ if empty",
            "420px",
            placeholder=f"{REVIEWS}/{self.stem}-DATE",
        )
        self.keep = widgets.Button(
            description="Save to review folder",
            tooltip="Write the page, the PNGs and the Result into a new folder",
            disabled=True,
            layout=widgets.Layout(width="190px"),
        )
        self.keep.on_click(lambda _: self.save_review())
        self.claims, self.drawing = widgets.HTML(), plot_area()
        self.figure = labelled(
            widgets.Dropdown, "Figure", "Which of the figures is shown", "420px", options=[("none yet", "")]
        )
        link(self.state, figure=self.figure, folder=self.folder)
        self.state.observe(lambda _: self.attempt(self._draw), names=["figure"])
        self.state.observe(self._enable, names=["running", "result"])
        self.frame(
            widgets.VBox([self.form, row(self.start, self.folder, self.keep)]), self.claims, self.figure, self.drawing
        )

    def run(self) -> "Run":
        """Run the method in the worker thread; from where a cancelled run of the same Spec stopped, if it can."""
        self.work(self._run, self._take)
        return self

    def _run(self, progress: Progress) -> Result:
        spec, before = self.form.spec(), self.state.result
        more = (
            {"resume": before} if before is not None and self._goes_on(before) and before.spec == spec.to_dict() else {}
        )
        return self._compute(spec, model=self.model, progress=progress, **more)

    def _goes_on(self, result: Result) -> bool:
        return result.partial and "resume" in inspect.signature(self._compute).parameters

    def _take(self, result: Result) -> None:
        self._claims, self._figures = check(result, self.method.CLAIMS), self._figures_of(result)
        shown = self.state.figure if self.state.figure in self._figures else next(iter(self._figures), "")
        self.figure.options = [(name.replace("_", " "), name) for name in self._figures] or [
            ("no figure of a run that stopped so early", "")
        ]
        self.state.result, self.state.saved = result, ""
        self.state.figure = shown
        self.claims.value = f"<div style='line-height:1.35'>{self._claims._repr_html_()}</div>"
        after = "; Run goes on from there" if self._goes_on(result) else ""
        cancelled = [f"cancelled: what was finished is kept, no claim is tested on it{after}"] if result.partial else []
        self.state.notice = ". ".join([*cancelled, *result.warnings])
        self._draw()

    def table(self) -> pd.DataFrame:
        """The claims, measured."""
        return self._claims.frame()

    def figures(self) -> dict[str, go.Figure]:
        """All figures of the Result, the one that is shown first."""
        shown = self.state.figure
        return {name: self._figures[name] for name in sorted(self._figures, key=lambda name: name != shown)}

    def save(self, path: Path | str) -> Path:
        """Write the page of the Result - claims, all figures, provenance - to one self-contained HTML file.

        Raises:
            WorkbenchError: if there is nothing to show yet.
        """
        return write_page(path, self._result(), self._claims, self._figures)

    def save_review(self) -> "Run":
        """Write a review folder in the worker thread; `state.saved` says where it went."""
        self.work(lambda _: self._review(), self._tell)
        return self

    def _review(self) -> tuple[Path, str]:
        return write_review(
            self._result(), self._claims, self._figures, self.state.folder.strip() or review_folder(self.stem)
        )

    def _tell(self, written: tuple[Path, str]) -> None:
        folder, trouble = written
        self.state.saved = folder.as_posix()
        self.state.notice = ". ".join(
            part
            for part in (f"saved in {folder.as_posix()}: report.html, figures, claims.json and the Result", trouble)
            if part
        )

    def _result(self) -> Result:
        if self.state.result is None:
            raise WorkbenchError(f"{self.title} has nothing to save yet: run it first")
        return self.state.result

    def _enable(self, _: object) -> None:
        self.start.disabled, self.keep.disabled = self.state.running, self.state.running or self.state.result is None

    def _draw(self) -> None:
        draw(self.drawing, self._figures.get(self.state.figure))
