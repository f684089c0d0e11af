"""Patching panel: put one run's activations into the other's, place by place; click a place to see what it is made of.

Plain functions behind it: `primitives.score.prompt_metrics.aligned_pair` and `metric_named`,
`primitives.replace.sweep_descent.measure`, `attribute` and `plan`; figures and tables: views/sweep. Heavy work only on
Run, Attribution, Time the plan, and a click that descends into few enough cells.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import torch
import traitlets

from workbench.core.errors import WorkbenchError
from workbench.core.hooks import SITES
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.replace import sweep_descent as descent
from workbench.primitives.replace.ablation import UNITS
from workbench.primitives.replace.sweep_plan import Plan
from workbench.primitives.score.metrics import Metric
from workbench.primitives.score.prompt_metrics import METRICS, aligned_pair, metric_named
from workbench.views import sweep as views

from .drawn import HeatMap
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

DIRECTIONS = {"denoise": "Denoise: clean into corrupted", "noise": "Noise: corrupted into clean"}
OFFERED = ("logit_diff", "probability", "loss")
MANY_CELLS = 2000  # a click that leads to more of them waits for Run
Step = dict[str, Any]


class PatchingState(PanelState):
    """path: the clicks that led to the map shown, {"layer", "pos"} then {"part"}; empty for the whole site.

    memory: MB for rows in flight, 0 for half of what is free. plan, baseline: what the panel says of cost and of the
    two runs.
    attributed: the estimates beside `result`, or None.
    """

    clean = traitlets.Unicode()
    corrupted = traitlets.Unicode()
    answer = traitlets.Unicode()
    other = traitlets.Unicode()
    direction = traitlets.Unicode("denoise")
    site = traitlets.Unicode("resid_pre")
    metric = traitlets.Unicode("logit_diff")
    memory = traitlets.Float(0.0, min=0.0)
    plan = traitlets.Unicode()
    baseline = traitlets.Unicode()
    path = traitlets.List()
    attributed = traitlets.Instance(Result, allow_none=True)


@dataclass(frozen=True, eq=False)
class Question:
    """What is patched into what, and how it is measured; two with one `key` have one answer."""

    base: torch.Tensor
    source: torch.Tensor
    metric: Metric
    site: str
    direction: str
    key: tuple[Any, ...]

    @property
    def source_run(self) -> str:
        """What the source run is called."""
        return "clean" if self.direction == "denoise" else "corrupted"


def cells_at(model: Model, site: str, path: list[Step]) -> descent.Cells | None:
    """The cells of the map that a path of clicks leads to; None where there is nothing further down."""
    if not path:
        return descent.site_cells(site)
    layer, pos = path[0]["layer"], path[0]["pos"]
    if site == "mlp_out":
        return descent.unit_cells("mlp_post", layer, pos) if len(path) == 1 else None
    if site in UNITS and site != "z":
        return descent.unit_cells(site, layer, pos) if len(path) == 1 else None
    if len(path) == 1:
        return descent.part_cells(model, layer, pos)
    part = path[1].get("part")
    if part is None or len(path) > 2:
        return None
    return (
        descent.unit_cells("mlp_post", layer, pos)
        if part == "mlp"
        else descent.head_input_cells(model, layer, int(part[1:]))
    )


class Patching(Panel):
    """`panels.Patching(model, clean, corrupted, answer, other)` in a cell; Run measures, a click on a cell descends
    into it.
    """

    title = "Activation patching"

    def __init__(
        self,
        model: Model,
        clean: str = "",
        corrupted: str = "",
        answer: str = "",
        other: str = "",
        *,
        state: PatchingState | None = None,
        compute: Callable[..., Result] = descent.measure,
        estimate: Callable[..., Result] = descent.attribute,
    ):
        self.state: PatchingState
        metric = "probability" if answer and not other else "logit_diff"
        super().__init__(
            state or PatchingState(clean=clean, corrupted=corrupted, answer=answer, other=other, metric=metric)
        )
        self.model, self._compute, self._estimate = model, compute, estimate
        self._asked: Question | None = None
        self._waiting: tuple | None = None  # a path that was clicked once and has too many cells to start unasked
        self._known: dict[tuple, Result] = {}
        self._estimates: dict[tuple, Result] = {}
        self._controls()
        self.tokens, self.says_plan, self.says_baseline, self.crumbs, self.agrees = (widgets.HTML() for _ in range(5))
        self.grid, self.estimates, self.scatter = HeatMap(), HeatMap(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._descend), names="clicks")
        self.state.observe(
            lambda _: self.attempt(self._preview),
            names=["clean", "corrupted", "answer", "other", "direction", "site", "metric", "memory"],
        )
        self.state.observe(lambda _: self._say(), names=["plan", "baseline"])
        self.state.observe(lambda _: self.attempt(self._draw), names=["result"])
        self.state.observe(lambda _: self.attempt(self._draw_estimates), names=["result", "attributed"])
        self._beside = widgets.VBox([row(self.estimate, self.agrees)])
        self._below = widgets.VBox(
            [row(self.up, self.crumbs), self.grid, self._beside], layout=widgets.Layout(display="none")
        )
        prompts = widgets.VBox([self.clean, self.corrupted], layout=widgets.Layout(width="100%"))
        controls = widgets.VBox(
            [
                prompts,
                row(self.answer, self.other, self.metric, self.site, self.direction, self.memory),
                row(self.start, self.time),
            ]
        )
        self.frame(controls, self.tokens, self.says_plan, self.says_baseline, self._below)
        self.attempt(self._preview)

    def _controls(self) -> None:
        wide = "96%"
        self.clean = labelled(widgets.Text, "Clean", "The prompt with the behaviour", wide, continuous_update=False)
        self.corrupted = labelled(
            widgets.Text,
            "Corrupted",
            "Its twin without the behaviour, token for token as long",
            wide,
            continuous_update=False,
        )
        self.answer = labelled(
            widgets.Text,
            "Answer",
            "What should come next, one token; a space in front counts",
            "200px",
            continuous_update=False,
        )
        self.other = labelled(
            widgets.Text,
            "Other answer",
            "The token it is compared with (logit difference only)",
            "230px",
            continuous_update=False,
        )
        self.metric = labelled(
            widgets.Dropdown,
            "Metric",
            "What is measured at the last token",
            "340px",
            options=[(METRICS[m], m) for m in OFFERED],
        )
        live = [
            s
            for s in self.model.sites()
            if SITES[s].per_layer and (s not in ("pattern", "attn_scores") or self.model.pattern_is_live)
        ]
        self.site = labelled(
            widgets.Dropdown, "Site", "What is replaced", "330px", options=[(f"{s}: {SITES[s].holds}", s) for s in live]
        )
        self.direction = labelled(
            widgets.Dropdown,
            "Direction",
            "Which run is put into which",
            "320px",
            options=[(text, key) for key, text in DIRECTIONS.items()],
        )
        self.memory = labelled(
            widgets.BoundedFloatText,
            "Memory (MB, 0: half of what is free)",
            "Most memory for runs in flight; more of it means fewer forwards",
            "320px",
            min=0,
            max=1e7,
        )
        self.start = widgets.Button(
            description="Run",
            button_style="primary",
            tooltip="Patch every cell of the map; after Cancel it goes on where it stopped",
        )
        self.time = widgets.Button(
            description="Time the plan", tooltip="A few short timed passes, to say how many seconds Run will take"
        )
        self.estimate = widgets.Button(
            description="Attribution",
            tooltip="Gradient estimates of the same cells, beside the exact values: two forwards and a backward",
        )
        self.up = widgets.Button(
            description="Up",
            tooltip="Back to the map this one was clicked from",
            disabled=True,
            layout=widgets.Layout(width="60px"),
        )
        link(
            self.state,
            clean=self.clean,
            corrupted=self.corrupted,
            answer=self.answer,
            other=self.other,
            metric=self.metric,
            site=self.site,
            direction=self.direction,
            memory=self.memory,
        )
        for button, act in (
            (self.start, self.run),
            (self.time, self.time_plan),
            (self.estimate, self.attribute),
            (self.up, self.go_up),
        ):
            button.on_click(lambda _, act=act: self.attempt(act))

    # ---- the question ----

    def _question(self) -> Question:
        """What the controls ask; BadData in words where they ask nothing yet."""
        s = self.state
        clean, corrupted = aligned_pair(self.model, s.clean, s.corrupted)
        metric = metric_named(self.model, s.metric, clean.tolist(), [s.answer], [s.other])
        base, source = (corrupted, clean) if s.direction == "denoise" else (clean, corrupted)
        words = (s.answer, s.other if s.metric == "logit_diff" else "")
        return Question(
            base, source, metric, s.site, s.direction, (s.clean, s.corrupted, words, s.metric, s.site, s.direction)
        )

    @property
    def _budget(self) -> float | None:
        return self.state.memory * 1e6 or None

    def _preview(self) -> None:
        """Tokens and cost of what the controls ask. No forward is run."""
        s = self.state
        self.tokens.value, s.plan = "", ""
        if not (s.clean.strip() and s.corrupted.strip()):
            return
        rows = [prompt_ids(self.model, text) for text in (s.clean, s.corrupted)]
        self.tokens.value = views.token_pair(
            {"clean": self.model.to_strings(rows[0]), "corrupted": self.model.to_strings(rows[1])}
        )
        aligned_pair(self.model, s.clean, s.corrupted)  # says so where they are not
        if not s.answer or (s.metric == "logit_diff" and not s.other):
            s.plan = (
                "An answer is missing"
                if not s.answer
                else "The other answer is missing; without it choose probability or loss"
            )
            return
        question = self._question()
        is_shown = self._asked is not None and self._asked.key == question.key
        found = descent.plan(
            self.model,
            question.base,
            question.metric,
            descent.site_cells(s.site),
            budget_bytes=self._budget,
            probe=False,
        )
        s.plan = _plan_text(found) + (
            "" if is_shown or s.result is None else ". The map below still shows the earlier settings"
        )
        self._name_run()

    def time_plan(self) -> "Patching":
        """Time a few short passes in the worker thread, so that the plan names seconds, and say how far apart the
        two runs are.
        """
        question = self._question()

        def timed(_: Progress) -> str:
            found = descent.plan(
                self.model, question.base, question.metric, descent.site_cells(question.site), budget_bytes=self._budget
            )
            return f"{_plan_text(found)}. {self._ends(question)}"

        self.work(timed, lambda text: self.state.set_trait("plan", text))
        return self

    def _ends(self, question: Question) -> str:
        """The metric of the two unpatched runs."""
        with self.model.alone():
            base, source = (
                float(question.metric(self.model.forward(tokens)).mean()) for tokens in (question.base, question.source)
            )
        return views.Baseline(question.metric.name, question.metric.unit, base, source).text(question.source_run)

    # ---- running ----

    def run(self) -> "Patching":
        """Measure the map that is shown, or the whole site where the controls ask something new. A partial map is
        finished.
        """
        question = self._question()
        same = self._asked is not None and self._asked.key == question.key
        path = list(self.state.path) if same else []
        before = self._known.get(_key(path)) if same else None
        self._measure(question, path, before if before is not None and before.partial else None)
        return self

    def _measure(self, question: Question, path: list[Step], resume: Result | None = None) -> None:
        cells = cells_at(self.model, question.site, path)

        def compute(progress: Progress) -> Result:
            if not path:
                self.state.baseline = self._ends(
                    question
                )  # before the long part, so that a poor pair of prompts is seen at once
            return self._compute(
                self.model,
                question.base,
                question.source,
                question.metric,
                cells,
                budget_bytes=self._budget,
                progress=progress,
                resume=resume,
            )

        self.work(compute, lambda result: self._take(question, path, result))

    def _take(self, question: Question, path: list[Step], result: Result) -> None:
        if self._asked is None or self._asked.key != question.key:
            self._known, self._estimates = {}, {}
        self._asked = question
        self._known[_key(path)] = result
        self._show(path)
        self._preview()  # whether the map is that of the controls

    def _show(self, path: list[Step]) -> None:
        """Show a map that is known."""
        result = self._known[_key(path)]
        with self.state.hold_trait_notifications():
            self.state.path, self.state.result, self.state.attributed = path, result, self._estimates.get(_key(path))
        missing = int(result.data["value"].isnull().sum())
        notes = (
            [f"cancelled: {missing} of {result.data['value'].size} cells are not measured yet; Run goes on from there"]
            if result.partial
            else []
        )
        self.state.notice = ". ".join([*notes, *views.warnings(result)])
        self._name_run()

    def _name_run(self) -> None:
        shown = self._known.get(_key(self.state.path))
        try:
            same = self._asked is not None and self._asked.key == self._question().key
        except WorkbenchError:
            same = False
        self.start.description = "Run on" if same and shown is not None and shown.partial else "Run"

    # ---- down and up ----

    def _descend(self) -> None:
        if self.grid.chosen is None or self._asked is None or self.state.result is None:
            return
        rows, col = self.grid.chosen
        cell = self._grid.cells[rows][col]
        if cell is not None:
            self.descend(
                **{name: value for name, value in cell.items() if not self.state.path or name not in self.state.path[0]}
            )

    def descend(self, **step: Any) -> "Patching":
        """Go into a cell: descend(layer=1, pos=6), then descend(part="h2") or descend(part="mlp")."""
        if self._asked is None:
            raise WorkbenchError("there is no map to descend into yet; run it first")
        path = [*self.state.path, step]
        cells = cells_at(self.model, self._asked.site, path)
        if cells is None:
            self.state.notice = "this is as far down as it goes; Up leads back"
            return self
        known = self._known.get(_key(path))
        if known is not None and not known.partial:
            self._show(path)
            return self
        cost = descent.plan(
            self.model, self._asked.base, self._asked.metric, cells, budget_bytes=self._budget, probe=False
        )
        if cost.n_cells > MANY_CELLS and known is None and self._waiting != _key(path):
            self._waiting = _key(path)
            self.state.notice = f"{_plan_text(cost)}. Click the cell again to start"
            return self
        self._measure(self._asked, path, known)
        return self

    def go_up(self) -> "Patching":
        """Back to the map this one was clicked from."""
        if self.state.path:
            self._show(list(self.state.path[:-1]))
        return self

    # ---- attribution ----

    def attribute(self) -> "Patching":
        """Estimate the cells of the map that is shown by gradients, in the worker thread."""
        question, path = self._asked, list(self.state.path)
        if question is None:
            raise WorkbenchError("there is no map to estimate yet; run it first")
        cells = cells_at(self.model, question.site, path)

        def take(result: Result) -> None:
            self._estimates[_key(path)] = result
            self.state.attributed = result if list(self.state.path) == path else self.state.attributed

        self.work(lambda _: self._estimate(self.model, question.base, question.source, question.metric, cells), take)
        return self

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """The cells of the map, the largest change first."""
        return (
            pd.DataFrame() if self.state.result is None else views.cells_table(self.state.result, self.state.attributed)
        )

    def figures(self) -> dict[str, go.Figure]:
        """The map, and the estimates and how they compare where they were asked for."""
        result, attributed = self.state.result, self.state.attributed
        if result is None:
            return {}
        made = {"patch_grid": views.patch_grid(result)}
        if attributed is not None:
            made |= {
                "attributed": views.attributed_grid(result, attributed),
                "attribution_scatter": views.attribution_scatter(result, attributed),
            }
        return made

    def _draw(self) -> None:
        result = self.state.result
        if result is None:
            self._below.layout.display = "none"
            return
        self._grid = views.grid(result)
        self._fill(self.grid, self._grid, views.change(result))
        ends = views.baseline(result)
        if ends is not None and self._asked is not None:
            self.state.baseline = ends.text(self._asked.source_run)
        self.up.disabled = not self.state.path
        self.crumbs.value = self._crumb_line()
        self._below.layout.display = "flex"

    def _draw_estimates(self) -> None:
        result, attributed = self.state.result, self.state.attributed
        if result is None or attributed is None:
            self.agrees.value = "Gradient estimates of these cells, beside the exact values"
            self._beside.children = self._beside.children[:1]
            draw(self.scatter, None)
            return
        shown = views.attributed_change(result, attributed)
        self._fill(self.estimates, views.grid(result, shown), shown)
        self.agrees.value = "Gradient estimates of the same cells, in the colours of the exact map above"
        draw(self.scatter, views.attribution_scatter(result, attributed))
        self._beside.children = (self._beside.children[0], self.estimates, self.scatter)

    def _fill(self, widget: HeatMap, found: views.Grid, shown: Any) -> None:
        result, end, unit = self.state.result, views.limit(self.state.result), shown.attrs["unit"]
        is_line = len(found.rows) == 1  # too low for a title on its side
        widget.show(
            found.values,
            [f"{found.y_title} {found.rows[0]}"] if is_line else found.rows,
            found.cols,
            x_title=found.x_title,
            y_title="" if is_line else found.y_title,
            unit="share" if unit.startswith("share") else unit,
            limits=(-end, end),
            alt=views.alt(result, shown),
        )

    # ---- words ----

    def _crumb_line(self) -> str:
        result, asked = self.state.result, self._asked
        path, site = list(self.state.path), "" if asked is None else asked.site
        steps = [f"{site}, every layer and position"]
        if path:
            steps.append(views.where(self._known[_key(path[:1])]))
        if len(path) > 1:
            steps.append("MLP" if path[1]["part"] == "mlp" else f"head {path[1]['part'][1:]}")
        deeper = cells_at(self.model, site, [*path, {"layer": 0, "pos": 0, "part": "h0"}])
        hint = (
            ""
            if deeper is None
            else (
                "click a head for its q, k and v, the MLP for its neurons"
                if path
                else "click a cell for what it is made of"
            )
        )
        shown = (
            "" if result is None else f"{views.change(result).attrs['long_name']}, {result.data.attrs['site']} replaced"
        )
        return f"<b>{' › '.join(html.escape(s) for s in steps)}</b>: {html.escape(shown)}{f' ({hint})' if hint else ''}"

    def _say(self) -> None:
        self.says_plan.value = (
            f"<div role='status'>Plan: {html.escape(self.state.plan)}</div>" if self.state.plan else ""
        )
        self.says_baseline.value = (
            f"<div role='status'>Baseline: {html.escape(self.state.baseline)}</div>" if self.state.baseline else ""
        )


def _key(path: list[Step]) -> tuple:
    return tuple(tuple(sorted(step.items())) for step in path)


def _plan_text(found: Plan) -> str:
    rows, saved = sum(g.n_rows for g in found.groups), found.plain_token_blocks / max(1, found.token_blocks)
    seconds = "" if found.seconds != found.seconds else f", about {found.seconds:.1f} s"
    forwards = f"{found.n_forwards} forward{'s' * (found.n_forwards != 1)}"
    return (
        f"{found.n_cells} cells in {forwards} of {rows} rows together, {saved:.1f} x less work than a forward a"
        f" cell{seconds}, at most {_megabytes(found.peak_bytes)}"
    )


def _megabytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n < 1e7 else f"{n / 1e6:,.0f} MB"
