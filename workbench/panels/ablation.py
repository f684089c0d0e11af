"""Ablation panel: choose heads, neurons, norms or layers on a map or by a threshold, take them out, and see what the
metric does.

Plain functions behind it: `primitives.replace.ablation_scores.score_units`,
`primitives.replace.ablation_curves.ablate_set` and `ablation_curve` on a `primitives.replace.ablation_bench.Bench`;
figures and tables: views/ablation. Heavy work only on Score, Ablate chosen and Curve; clicks and the threshold only
choose.
"""

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.replace import ablation_curves as curves
from workbench.primitives.replace import ablation_scores as scoring
from workbench.primitives.replace.ablation_bench import KINDS, VALUES, Bench, unit_labels
from workbench.primitives.score.prompt_metrics import METRICS, metric_named
from workbench.views import ablation as views

from .drawn import HeatMap
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

GIVEN = "given"


class AblationState(PanelState):
    """prompts, answers, others: one a line. score: what orders the units, "given" for the caller's own. side: which end
    goes first.

    chosen: [layer, unit] pairs. scores: a Result with `score`, or None. measured: the chosen set's Result; `result` is
    the curve's.
    """

    prompts = traitlets.Unicode()
    answers = traitlets.Unicode()
    others = traitlets.Unicode()
    metric = traitlets.Unicode("next_token_loss")
    kind = traitlets.Unicode("heads")
    value = traitlets.Unicode("zero")
    score = traitlets.Unicode("size")
    side = traitlets.Unicode("low")
    n_random = traitlets.Int(5, min=0)
    seed = traitlets.Int(0, min=0)
    threshold = traitlets.Float(0.0)
    chosen = traitlets.List()
    scores = traitlets.Instance(Result, allow_none=True)
    measured = traitlets.Instance(Result, allow_none=True)


class Ablation(Panel):
    """`panels.Ablation(model, prompts)` in a cell; click units or move the threshold, then Ablate chosen, or Curve.

    Args:
        prompts: texts, or one text with a prompt a line. answers, others: a word for each, for the metrics that read
            them.
        scores: [layer, unit] numbers of the caller's own for units of `kind`, or a DataArray with long_name and unit.
    """

    title = "Ablation"

    def __init__(
        self,
        model: Model,
        prompts: str | Sequence[str] = "",
        answers: Sequence[str] = (),
        others: Sequence[str] = (),
        *,
        kind: str = "heads",
        scores: xr.DataArray | np.ndarray | None = None,
        state: AblationState | None = None,
        score: Callable[..., Result] = scoring.score_units,
        ablate: Callable[..., Result] = curves.ablate_set,
        curve: Callable[..., Result] = curves.ablation_curve,
    ):
        self.state: AblationState
        text = prompts if isinstance(prompts, str) else "\n".join(prompts)
        metric = "logit_diff" if others else "loss" if answers else "next_token_loss"
        super().__init__(
            state
            or AblationState(
                prompts=text, answers="\n".join(answers), others="\n".join(others), metric=metric, kind=kind
            )
        )
        self.model, self._score, self._ablate, self._curve = model, score, ablate, curve
        self._given = None if scores is None else self._own(scores, kind)
        self._bench: tuple[tuple, Bench] | None = None
        self._settings_of: dict[str, tuple] = {}  # what curve and set were measured with
        self._is_setting = False
        self._partial: tuple[tuple, Result] | None = None  # a curve to go on with, and what it is of
        self._controls()
        self.counts, self.effect = widgets.HTML(), widgets.HTML()
        self.grid, self.drawing = HeatMap(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._click), names="clicks")
        self.state.observe(lambda _: self.attempt(self._new_kind), names=["kind"])
        self.state.observe(lambda _: self.attempt(self._new_scores), names=["scores"])
        self.state.observe(lambda _: self.attempt(self._beyond_threshold), names=["threshold"])
        self.state.observe(lambda _: self.attempt(self._reset_threshold), names=["side"])
        self.state.observe(lambda _: self.attempt(self._draw_chosen), names=["chosen"])
        self.state.observe(lambda _: self.attempt(self._draw), names=["result", "measured"])
        self.state.observe(
            lambda _: self.attempt(self._draw_effect),
            names=["prompts", "answers", "others", "metric", "value", "kind", "seed"],
        )
        texts = row(self.prompts, self.answers, self.others)
        controls = widgets.VBox(
            [
                texts,
                row(self.kind, self.value, self.metric),
                row(self.score, self.side, self.n_random, self.seed),
                row(self.find, self.start, self.sweep),
            ]
        )
        self.frame(controls, row(self.threshold, self.clear, self.counts), self.grid, self.effect, self.drawing)
        self.attempt(self._new_kind)

    def _controls(self) -> None:
        area = {"rows": 4, "continuous_update": False}
        self.prompts = labelled(widgets.Textarea, "Prompts", "One prompt a line", "470px", **area)
        self.answers = labelled(
            widgets.Textarea,
            "Answers",
            "One token a line, for the metrics of an answer; a space in front counts",
            "210px",
            **area,
        )
        self.others = labelled(
            widgets.Textarea, "Other answers", "One token a line, for the logit difference", "240px", **area
        )
        self.kind = labelled(
            widgets.Dropdown,
            "Units",
            "What is taken out",
            "270px",
            options=[(text, key) for key, text in KINDS.items()],
        )
        self.value = labelled(
            widgets.Dropdown,
            "Put in",
            "What stands in the unit's place",
            "290px",
            options=[(text, key) for key, text in VALUES.items()],
        )
        self.metric = labelled(
            widgets.Dropdown,
            "Metric",
            "What is measured",
            "340px",
            options=[(text, key) for key, text in METRICS.items()],
        )
        self.score = labelled(
            widgets.Dropdown,
            "Score",
            "What orders the units, for the threshold and the curve",
            "420px",
            options=[(text, key) for key, text in self._scores_of(self.state.kind).items()],
        )
        self.side = labelled(
            widgets.Dropdown,
            "First to go",
            "Which end of the score",
            "230px",
            options=[("lowest score", "low"), ("highest score", "high")],
        )
        self.n_random = labelled(
            widgets.BoundedIntText, "Random draws", "Random sets of each size, for the band", "170px", min=0, max=100
        )
        self.seed = labelled(
            widgets.BoundedIntText,
            "Seed",
            "Draws the random sets and the pairs for resampling",
            "130px",
            min=0,
            max=2**31 - 1,
        )
        self.threshold = labelled(
            widgets.FloatSlider,
            "Threshold",
            "Chooses the units beyond it; then click to change single ones",
            "420px",
            min=0.0,
            max=1.0,
            step=0.01,
            readout_format=".3g",
            disabled=True,
        )
        self.clear = widgets.Button(description="Choose none", tooltip="Empty the choice")
        self.find = widgets.Button(description="Score", tooltip="Compute the score of every unit on these prompts")
        self.start = widgets.Button(
            description="Ablate chosen",
            button_style="primary",
            tooltip="Run the prompts without the chosen units, and without as many random ones",
        )
        self.sweep = widgets.Button(
            description="Curve",
            tooltip="Ablate more and more units in the order of the score; after Cancel it goes on where it stopped",
        )
        names = (
            "prompts",
            "answers",
            "others",
            "metric",
            "kind",
            "value",
            "score",
            "side",
            "n_random",
            "seed",
            "threshold",
        )
        link(self.state, **{name: getattr(self, name) for name in names})
        for button, act in (
            (self.clear, self.choose_none),
            (self.find, self.score_units),
            (self.start, self.ablate_chosen),
            (self.sweep, self.run),
        ):
            button.on_click(lambda _, act=act: self.attempt(act))

    def _own(self, scores: xr.DataArray | np.ndarray, kind: str) -> Result:
        """The caller's scores as a Result."""
        values = np.asarray(scores, float)
        labels = [str(i) for i in range(values.shape[-1])] if kind == "neurons" else unit_labels(self.model, kind)
        attrs = scores.attrs if isinstance(scores, xr.DataArray) else {}
        found = scoring.unit_map(
            (self.model.n_layers, len(labels)),
            labels,
            values,
            attrs.get("long_name", "Given score"),
            attrs.get("unit", "as given"),
        )
        return scoring.scored(self.model, found, {"by": GIVEN, "kind": kind})

    def _scores_of(self, kind: str) -> dict[str, str]:
        """The scores there are for a kind of unit, the caller's own first."""
        own = {GIVEN: "The caller's own"} if self._given is not None and self._given.spec["kind"] == kind else {}
        return own | scoring.SCORES | (scoring.OF_HEADS if kind == "heads" else {})

    # ---- the question ----

    def _bench_of(self, settings: tuple) -> Bench:
        """The bench of what the controls said; kept until they say something else. Runs forwards: for the worker
        thread.
        """
        if self._bench is None or self._bench[0] != settings:
            prompts, answers, others, metric, kind, value, seed = settings
            texts = [line for line in prompts.splitlines() if line.strip()]
            if not texts:
                raise BadData("there are no prompts; type at least one, a prompt a line")
            rows = [prompt_ids(self.model, text) for text in texts]
            measured = metric_named(self.model, metric, rows, _lines(answers), _lines(others))
            self._bench = settings, Bench(self.model, rows, measured, kind=kind, value=value, seed=seed)
        return self._bench[1]

    def _settings(self) -> tuple:
        s = self.state
        return s.prompts, s.answers, s.others, s.metric, s.kind, s.value, s.seed

    def _mask(self) -> np.ndarray:
        """[layer, unit] bool of the chosen units."""
        mask = np.zeros(self._shape, bool)
        for layer, unit in self.state.chosen:
            mask[layer, unit] = True
        return mask

    # ---- the map: scores and choice ----

    def _new_kind(self) -> None:
        """Another kind of unit: another map, other scores, an empty choice. No forward is run."""
        s = self.state
        options = self._scores_of(s.kind)
        own = self._given if GIVEN in options else None
        wanted = GIVEN if own is not None else s.score if s.score in options else "size"
        self.score.options = [(text, key) for key, text in options.items()]
        s.score = wanted
        self._labels = (
            [] if s.kind == "neurons" else unit_labels(self.model, s.kind)
        )  # how many neurons there are is known once scored
        self._shape = (self.model.n_layers, len(self._labels))
        with s.hold_trait_notifications():
            s.measured, s.chosen, s.scores = None, [], own
        self._new_scores()

    def score_units(self) -> "Ablation":
        """Compute the score that is chosen, for every unit, in the worker thread."""
        by, settings = self.state.score, self._settings()
        self.work(
            lambda progress: self._found(by, settings, progress), lambda result: self._take_scores(result, settings)
        )
        return self

    def _found(self, by: str, settings: tuple, progress: Progress) -> Result:
        if by == GIVEN and self._given is not None:
            return self._given
        return self._score(self._bench_of(settings), by, progress=progress)

    def _take_scores(self, result: Result, settings: tuple) -> None:
        self._settings_of["scores"] = settings
        self.state.scores = result
        if result.partial:
            self.state.notice = (
                f"cancelled: {int(result.data['score'].isnull().sum())} of {result.data['score'].size} units have no"
                " score, and are not ablated by it"
            )

    def _new_scores(self) -> None:
        """Draw the map of the scores, or an empty one to click where there are none."""
        scores = self.state.scores
        self.threshold.disabled = scores is None
        if scores is None:
            score = xr.DataArray(
                np.full(self._shape, np.nan),
                dims=("layer", "unit"),
                coords={"unit": self._labels},
                attrs={"long_name": "No score yet", "unit": ""},
            )
        else:
            score = scores.data["score"]
            self._shape, self._labels = score.shape, [str(u) for u in score["unit"].values]
        if score.size:
            values, names, self._step = views.blocks(score)
            title = {"heads": "head", "neurons": "neuron", "norms": "norm", "layers": "part"}[self.state.kind] + (
                f"s, {self._step} a cell (the highest score)" if self._step > 1 else ""
            )
            self.grid.show(
                values,
                range(self._shape[0]),
                names,
                x_title=title,
                y_title="layer",
                unit=score.attrs["unit"].split(" ")[0],
                signed=False,
                alt=f"{score.attrs['long_name']} by layer and {title}.",
            )
        else:
            self.grid.show(np.zeros((0, 0)), [], [], x_title="", y_title="", unit="", alt="No map yet")
        self._reset_threshold()

    def _reset_threshold(self) -> None:
        """The slider over the range of the scores, at the end where it chooses nothing."""
        scores, slider = self.state.scores, self.threshold
        if scores is not None and np.isfinite(scores.data["score"]).any():
            low, high = float(np.nanmin(scores.data["score"])), float(np.nanmax(scores.data["score"]))
            high = high if high > low else low + 1.0
            self._is_setting = True
            try:
                slider.min, slider.max = min(low, slider.min), max(high, slider.max)
                slider.value = high if self.state.side == "high" else low
                slider.min, slider.max, slider.step = low, high, (high - low) / 200
                self.state.threshold = slider.value
            finally:
                self._is_setting = False
        self.state.chosen = []
        self._draw_chosen()

    def _beyond_threshold(self) -> None:
        """Choose the units beyond the threshold, on the side that goes first."""
        if self._is_setting or self.state.scores is None:
            return
        values = self.state.scores.data["score"].values
        beyond = values > self.state.threshold if self.state.side == "high" else values < self.state.threshold
        self.state.chosen = np.argwhere(beyond).tolist()

    def _click(self) -> None:
        """Take the clicked unit, or block of neurons, into the choice, or out of it."""
        if self.grid.chosen is None:
            return
        layer, block = self.grid.chosen
        units = range(block * self._step, min((block + 1) * self._step, self._shape[1]))
        mask = self._mask()
        mask[layer, list(units)] = not mask[layer, list(units)].all()
        self.state.chosen = np.argwhere(mask).tolist()

    def choose_none(self) -> None:
        """Empty the choice."""
        self.state.chosen = []

    def _draw_chosen(self) -> None:
        """Crosses on the map, and how many there are; what was measured of another choice is no longer shown."""
        mask = self._mask()
        self.grid.marked = (
            sorted({(int(layer), int(unit) // self._step) for layer, unit in np.argwhere(mask)}) if mask.size else []
        )
        n = int(mask.sum())
        self.counts.value = f"<b>{n} of {mask.size}</b> {html.escape(views.UNITS[self.state.kind])} chosen" + (
            f" ({n / mask.size:.0%})" if mask.size else "; Score shows them"
        )
        if self.state.measured is not None and not np.array_equal(self.state.measured.data["score"].values > 0, mask):
            self.state.measured = None

    # ---- running ----

    def ablate_chosen(self) -> "Ablation":
        """Run the prompts without the chosen units and without as many random ones, in the worker thread."""
        s, mask, settings = self.state, self._mask(), self._settings()
        n_random, seed = s.n_random, s.seed
        if not mask.any():
            raise BadData("no unit is chosen; click cells of the map, or score the units and move the threshold")

        def take(result: Result) -> None:
            self._settings_of["measured"] = settings
            self.state.measured = result
            self._tell(result, "the set and its random sets are not all measured")

        self.work(
            lambda progress: self._ablate(
                self._bench_of(settings), mask, n_random=n_random, seed=seed, progress=progress
            ),
            take,
        )
        return self

    def run(self) -> "Ablation":
        """Measure the curve of the score that is shown, scoring first where there is none, in the worker thread. A
        partial curve is finished.
        """
        s, settings = self.state, self._settings()
        by, side, n_random, seed, scores = s.score, s.side, s.n_random, s.seed, s.scores
        is_current = (
            scores is not None
            and scores.spec.get("by") == by
            and (by == GIVEN or self._settings_of.get("scores") == settings)
        )

        def compute(progress: Progress) -> tuple[Result, Result | None]:
            found = scores if is_current and scores is not None else self._found(by, settings, progress)
            if progress.cancelled:
                return found, None
            key = (settings, side, n_random, found.data["score"].values.tobytes())
            partial = self._partial[1] if self._partial is not None and self._partial[0] == key else None
            result = self._curve(
                self._bench_of(settings),
                found.data["score"],
                side=side,
                n_random=n_random,
                seed=seed,
                progress=progress,
                resume=partial,
            )
            self._partial = (key, result) if result.partial else None
            return found, result

        def take(found: tuple[Result, Result | None]) -> None:
            if not is_current:
                self._take_scores(found[0], settings)
            if found[1] is not None:
                self._settings_of["curve"] = settings
                self.state.result = found[1]
                self.sweep.description = "Curve, go on" if found[1].partial else "Curve"
                self._tell(found[1], "Curve goes on from there")

        self.work(compute, take)
        return self

    def _tell(self, result: Result, rest: str) -> None:
        missing = int(
            result.data["value"].isnull().any("example").sum()
            + result.data["random_value"].isnull().any("example").sum()
        )
        notes = [f"cancelled: {missing} runs are not made yet; {rest}"] if result.partial else []
        self.state.notice = ". ".join([*notes, *result.warnings])

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """The curve's rows and the chosen set's; before either, the scores of all units."""
        s = self.state
        if s.result is None and s.measured is None:
            return pd.DataFrame() if s.scores is None else views.score_table(s.scores, self._mask())
        return views.table(s.result, self._comparable())

    def figures(self) -> dict[str, go.Figure]:
        """The curve with the chosen set, and the map of scores with the choice."""
        s, made = self.state, {}
        if s.result is not None or s.measured is not None:
            made["ablation_curve"] = views.curve_figure(s.result, self._comparable())
        if s.scores is not None:
            made["score_map"] = views.score_map(s.scores, self._mask())
        return made

    def _comparable(self) -> Result | None:
        """The chosen set, if it was measured as the curve was."""
        s = self.state
        if s.result is not None and self._settings_of.get("curve") != self._settings_of.get("measured"):
            return None
        return s.measured

    def _draw(self) -> None:
        s = self.state
        draw(
            self.drawing,
            None if s.result is None and s.measured is None else views.curve_figure(s.result, self._comparable()),
        )
        self._draw_effect()

    def _draw_effect(self) -> None:
        s, now = self.state, self._settings()
        lines = [] if s.measured is None else [f"<p role='status'>{html.escape(views.set_text(s.measured))}</p>"]
        old = [
            what
            for what, shown in (("curve", s.result), ("measured", s.measured))
            if shown is not None and self._settings_of.get(what) != now
        ]
        if old:
            words = {"curve": "the curve", "measured": "the chosen set"}
            lines.append(f"<p>Of earlier settings: {' and '.join(words[what] for what in old)}.</p>")
        self.effect.value = "".join(lines)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]
