"""Two-checkpoints panel: which modules moved and along which directions, and where the same sweep gives another number.

Plain functions behind it: `primitives.replace.module_changes.module_changes` for the weights (norms, spectra, principal
angles beside chance), `primitives.replace.two_checkpoints.sweep_effects_both` for the measurement; figures:
views/two_checkpoints. Cost: two SVDs a block matrix; two sweeps.
"""

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.replace.module_changes import module_changes
from workbench.primitives.replace.sweeps import FromRun, Mean, Resample, Source, Zero
from workbench.primitives.replace.two_checkpoints import refuse_misaligned, sweep_effects_both
from workbench.primitives.score.prompt_metrics import metric_named
from workbench.views import two_checkpoints as views

from .drawn import HeatMap
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

PARTS = {
    "heads": ("Heads (z), all positions", "z", ("unit",)),
    "resid_pre": ("Stream (resid_pre), each position", "resid_pre", ("pos",)),
    "attn_out": ("Attention output, each position", "attn_out", ("pos",)),
    "mlp_out": ("MLP output, each position", "mlp_out", ("pos",)),
}
SOURCES = {
    "zero": "zero",
    "mean": "its mean over the prompts",
    "resample": "another prompt's",
    "corrupted": "that of the corrupted prompt",
}


class TwoCheckpointsState(PanelState):
    """look: "weights" or "sweep". place: [layer, module] of the weights looked at, cell: [row, col] of the sweep's,
    [] for none. Texts: one a line.
    """

    look = traitlets.Unicode("weights")
    k = traitlets.Int(4)
    quantity = traitlets.Unicode("relative")
    side = traitlets.Unicode("right")
    place = traitlets.List()
    prompts = traitlets.Unicode()
    corrupted = traitlets.Unicode()
    answers = traitlets.Unicode()
    part = traitlets.Unicode("heads")
    source = traitlets.Unicode("zero")
    cell = traitlets.List()
    weights = traitlets.Instance(Result, allow_none=True)
    sweep = traitlets.Instance(Result, allow_none=True)


class TwoCheckpoints(Panel):
    """`panels.TwoCheckpoints(base, tuned)` in a cell; Run compares what is chosen above, a click on a cell opens it."""

    title = "Two checkpoints"

    def __init__(
        self,
        a: Model,
        b: Model,
        third: Model | None = None,
        prompts: Sequence[str] = (),
        *,
        state: TwoCheckpointsState | None = None,
        compute: Callable[..., Result] = module_changes,
        compute_sweep: Callable[..., Result] = sweep_effects_both,
    ):
        self.state: TwoCheckpointsState
        super().__init__(state or TwoCheckpointsState(prompts="\n".join(prompts)))
        self.a, self.b, self.third, self._compute, self._compute_sweep = a, b, third, compute, compute_sweep
        self._make_controls()
        self.start = widgets.Button(description="Run", button_style="primary", tooltip="Compare the two checkpoints")
        self.start.on_click(lambda _: self.run())
        self.grid, self.beside, self.area = HeatMap(), widgets.HTML(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._draw), names=["weights", "sweep", "look", "side"])
        self.state.observe(lambda _: self.attempt(self._draw_map), names=["quantity"])
        self.state.observe(lambda _: self.attempt(self._draw_cell), names=["place", "cell"])
        about = " · ".join(
            f"<b>{letter}</b> {html.escape(m.name)}"
            for letter, m in (("A", a), ("B", b), ("C", third))
            if m is not None
        )
        self.frame(
            row(self.look, self.start),
            widgets.HTML(about),
            self._of_weights,
            self._of_sweep,
            self.grid,
            self.beside,
            self.area,
        )
        self._show_controls()

    def _make_controls(self) -> None:
        self.look = labelled(
            widgets.ToggleButtons,
            "Compare",
            "What is compared",
            "400px",
            style={"description_width": "initial", "button_width": "auto"},
            options=[("Weights", "weights"), ("Same sweep on both", "sweep")],
        )
        self.k = labelled(
            widgets.IntSlider,
            "k (directions)",
            "Leading directions of a change taken as its subspace",
            "270px",
            min=1,
            max=min(64, self.a.d_model),
        )
        self.quantity = labelled(
            widgets.Dropdown,
            "Colour",
            "What colours the cells",
            "410px",
            options=[(views.QUANTITIES["relative"], "relative")],
        )
        self.side = labelled(
            widgets.Dropdown,
            "Side",
            "Directions a matrix reads (input) or writes (output)",
            "200px",
            options=[(v, k) for k, v in views.SIDES.items()],
        )
        self.prompts, self.corrupted = (
            labelled(widgets.Textarea, name, f"{name}, one a line", "460px", rows=4)
            for name in ("Prompts", "Corrupted")
        )
        self.answers = labelled(
            widgets.Textarea,
            "Answers",
            "The word after each prompt, one a line; empty: the loss of the whole prompt is measured",
            "260px",
            rows=4,
        )
        self.part = labelled(
            widgets.Dropdown,
            "Replace",
            "What is replaced, one cell at a time, in every layer",
            options=[(title, key) for key, (title, _, _) in PARTS.items()],
        )
        self.source = labelled(
            widgets.Dropdown, "by", "What is put in its place", "280px", options=[(v, k) for k, v in SOURCES.items()]
        )
        link(self.state, look=self.look, k=self.k, quantity=self.quantity, side=self.side)
        link(
            self.state,
            prompts=self.prompts,
            corrupted=self.corrupted,
            answers=self.answers,
            part=self.part,
            source=self.source,
        )
        self._of_weights = row(self.k, self.quantity, self.side)
        self._of_sweep = widgets.VBox([row(self.part, self.source), row(self.prompts, self.answers, self.corrupted)])
        self.state.observe(lambda _: self._show_controls(), names=["look", "source"])

    def _show_controls(self) -> None:
        state = self.state
        self._of_weights.layout.display = "flex" if state.look == "weights" else "none"
        self._of_sweep.layout.display = "flex" if state.look == "sweep" else "none"
        self.corrupted.layout.display = "flex" if state.source == "corrupted" else "none"

    # ---- work ----

    def run(self) -> "TwoCheckpoints":
        """Compare weights, or run the same sweep on both, in the worker thread."""
        if self.state.look == "weights":
            k = self.state.k
            self.work(
                lambda progress: self._compute(self.a, self.b, self.third, k=k, progress=progress), self._take_weights
            )
        else:
            asked = {name: getattr(self.state, name) for name in ("prompts", "corrupted", "answers", "part", "source")}
            self.work(lambda progress: self._sweep(progress, **asked), self._take_sweep)
        return self

    def _sweep(
        self, progress: Progress, *, prompts: str, corrupted: str, answers: str, part: str, source: str
    ) -> Result:
        texts, words = _lines(prompts), _lines(answers)
        base = self._rows(texts, "prompts")
        has_words = self.a.tokenizer is not None and self.b.tokenizer is not None
        refuse_misaligned(self.a, self.b, texts if has_words else base)
        other: Source = (
            Zero()
            if source == "zero"
            else (
                Mean(base)
                if source == "mean"
                else Resample()
                if source == "resample"
                else FromRun(self._rows(_lines(corrupted), "corrupted prompts"))
            )
        )
        metric = metric_named(
            self.a, "loss" if words else "next_token_loss", base, words * len(base) if len(words) == 1 else words
        )
        _, site, axes = PARTS[part]
        return self._compute_sweep(self.a, self.b, base, other, metric, site=site, axes=axes, progress=progress)

    def _rows(self, texts: list[str], what: str) -> list[list[int]]:
        if not texts:
            raise BadData(f"a sweep needs {what}: give at least one, one a line")
        return [prompt_ids(self.a, text) for text in texts]

    def _take_weights(self, result: Result) -> None:
        known, was = views.quantities(result), self.state.quantity
        with self.state.hold_trait_notifications():
            self.quantity.options = [
                (title, name) for name, title in known.items()
            ]  # which puts the choice back to the first
            self.state.quantity = was if was in known else "relative"
            self.state.place, self.state.weights = [], result

    def _take_sweep(self, result: Result) -> None:
        with self.state.hold_trait_notifications():
            self.state.cell, self.state.sweep = [], result

    # ---- what it shows ----

    @property
    def shown(self) -> Result | None:
        """The Result of the comparison looked at."""
        return self.state.weights if self.state.look == "weights" else self.state.sweep

    def table(self) -> pd.DataFrame:
        """The cell looked at - spectrum and angles, or every example - or else all cells."""
        state, result = self.state, self.shown
        if result is None:
            return pd.DataFrame()
        if state.look == "sweep":
            return views.example_table(result, *state.cell) if state.cell else views.difference_table(result)
        spectrum = views.module_table(result, *state.place, state.side) if state.place else pd.DataFrame()
        return spectrum if len(spectrum) else views.change_table(result)

    def figures(self) -> dict[str, go.Figure]:
        """The map, and the cell looked at."""
        state, result = self.state, self.shown
        if result is None:
            return {}
        whole = (
            {"difference": views.difference_map(result)}
            if state.look == "sweep"
            else {"weight_change": views.change_map(result, state.quantity, state.side)}
        )
        cell = self._cell_figure()
        return whole if cell is None else whole | {"cell": cell}

    def _cell_figure(self) -> go.Figure | None:
        state, result = self.state, self.shown
        if result is None:
            return None
        if state.look == "sweep":
            return views.example_figure(result, *state.cell) if state.cell else None
        has = state.place and len(views.spectrum_table(result, *state.place)) > 0
        return views.module_figure(result, *state.place, state.side) if has else None

    def _draw(self) -> None:
        self._draw_map()
        self._draw_cell()

    def _draw_map(self) -> None:
        state, result = self.state, self.shown
        state.result = result
        self.grid.layout.display = "none" if result is None else None
        said = ["cancelled: cells without a colour were not reached"] if result is not None and result.partial else []
        if result is not None:
            pooled = self._draw_sweep(result) if state.look == "sweep" else self._draw_weights(result)
            state.notice = "; ".join(s for s in (*said, *result.warnings, pooled) if s)
        self.beside.value = self._words()

    def _draw_weights(self, result: Result) -> str:
        quantity, side = self.state.quantity, self.state.side
        shown = views.cells(result, quantity, side)
        self._modules = shown.module.values.tolist()
        return self.grid.show(
            shown.values,
            [int(n) for n in shown.layer.values],
            self._modules,
            x_title="module",
            y_title="layer",
            unit=views.unit(quantity),
            signed=quantity == "cosine_changes",
            limits=(-1.0, 1.0) if quantity == "cosine_changes" else None,
            marked=views.within_chance(result, quantity, side),
            alt=views.map_alt(result, quantity, side),
        )

    def _draw_sweep(self, result: Result) -> str:
        down, across = views.difference_axes(result)
        mean = result.data["mean"]
        return self.grid.show(
            mean.values,
            [str(v) for v in result.data[down].values],
            views.difference_labels(result),
            x_title=across,
            y_title=down,
            unit=f"B\u2212A ({mean.attrs.get('unit', '')})",
            marked=views.not_told_apart(result),
            alt=views.difference_alt(result),
        )

    def _choose(self) -> None:
        chosen, result = self.grid.chosen, self.shown
        if chosen is None or result is None:
            return
        if self.state.look == "sweep":
            self.state.cell = list(chosen)
            return
        self.state.place = [int(result.data.layer[chosen[0]]), self._modules[chosen[1]]]

    def _draw_cell(self) -> None:
        draw(self.area, self._cell_figure())
        self.beside.value = self._words()

    def _words(self) -> str:
        """What the map leaves out: how to read crosses, parameters outside the blocks, a vector that was clicked."""
        state, result = self.state, self.shown
        if result is None:
            return ""
        if state.look == "sweep":
            untouched = result.data["base_difference"]
            metric = untouched.attrs["long_name"].split(" of ")[0].replace("_", " ")
            gap = f"{float(untouched.mean()):+.3g} {untouched.attrs['unit']}"
            return (
                f"<p>Untouched, the {html.escape(metric)} of B is that of A {html.escape(gap)}; the map is about"
                " the rest. Crossed: the interval holds 0. Click a cell for every prompt.</p>"
            )
        crossed = "Crossed: no more overlap than random subspaces have. " if views.is_overlap(state.quantity) else ""
        rest = ", ".join(
            f"{html.escape(str(r.parameter).removesuffix('.weight'))} {r.relative:.3g}"
            for r in views.outside(result).itertuples()
        )
        said = (
            f"<p>{crossed}Click a cell for its spectrum and angles. Relative change outside the blocks:"
            f" {rest or 'none'}.</p>"
        )
        if state.place and not len(views.spectrum_table(result, *state.place)):
            layer, module = state.place
            cell = result.data.sel(layer=layer, module=module)
            said += (
                f"<p>Layer {layer}, {html.escape(module)} has no spectrum: it is no matrix, or was not reached. Its"
                f" change is {float(cell['change']):.3g}, {float(cell['relative']):.3g} of |A|.</p>"
            )
        return said


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
