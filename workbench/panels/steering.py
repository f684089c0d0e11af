"""Steering panel: add a multiple of a direction and read what the model then writes, beside coefficient 0 and a random
direction.

Plain functions behind it: `primitives.steer.directions` for the direction,
`primitives.steer.steering.sweep_coefficients` for texts and curves; figures: views/steering. Cost: (1 + random
directions) x coefficients x (new tokens + 2) forwards per batch of prompts.
"""

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.errors import BadData
from workbench.core.hooks import SITES
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.read.capture import capture
from workbench.primitives.score import metrics
from workbench.primitives.score.prompt_metrics import one_token
from workbench.primitives.steer.directions import (
    Direction,
    given,
    mean_difference,
    principal_component,
    probe_direction,
)
from workbench.primitives.steer.steering import sweep_coefficients
from workbench.views import steering as views

from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

SOURCES = {
    "mean difference": "mean of A minus mean of B",
    "probe": "probe between A and B",
    "principal component": "first principal component of A and B",
    "given": "the vector given",
}
POSITIONS = {"all": "all tokens", "prompt": "the prompt", "generated": "new tokens"}
NORMALISE = {
    "none": "the vector as it is",
    "unit": "the vector at norm 1",
    "stream": "a vector as long as the activation",
}
DIRECTION = ("source", "positive", "negative", "pooling", "site", "layer")
OTHERS = ("positions", "normalise", "prompts", "target", "against", "max_new_tokens", "temperature", "n_random", "seed")


class SteeringState(PanelState):
    """positive, negative, prompts: texts, one a line. target, against: words whose probability or logit difference is
    the metric, or empty.

    reach: the curve runs from -reach to reach in n_points. steered, curve: what was computed last, both with the same
    settings.
    """

    source = traitlets.Unicode("mean difference")
    positive = traitlets.Unicode()
    negative = traitlets.Unicode()
    pooling = traitlets.Unicode("last")
    site = traitlets.Unicode("resid_post")
    layer = traitlets.Int(0)
    positions = traitlets.Unicode("all")
    normalise = traitlets.Unicode("none")
    prompts = traitlets.Unicode()
    target = traitlets.Unicode()
    against = traitlets.Unicode()
    max_new_tokens = traitlets.Int(16)
    temperature = traitlets.Float(0.0)
    n_random = traitlets.Int(3)
    seed = traitlets.Int(0)
    coefficient = traitlets.Float(2.0)
    reach = traitlets.Float(4.0)
    n_points = traitlets.Int(9)
    measure = traitlets.Unicode("continuation_loss")
    steered = traitlets.Instance(Result, allow_none=True)
    curve = traitlets.Instance(Result, allow_none=True)


class Steering(Panel):
    """`panels.Steering(model, positive=[...], negative=[...], prompts=[...])` in a cell; Steer writes texts, Curve
    runs many coefficients.
    """

    title = "Steering"

    def __init__(
        self,
        model: Model,
        positive: Sequence[str] = (),
        negative: Sequence[str] = (),
        prompts: Sequence[str] = (),
        *,
        direction: Direction | None = None,
        state: SteeringState | None = None,
        compute: Callable[..., Result] = sweep_coefficients,
    ):
        self.state: SteeringState
        texts = {"positive": positive, "negative": negative, "prompts": prompts}
        start = (
            {"layer": model.n_layers // 2}
            if direction is None
            else {"source": "given", "site": direction.site, "layer": direction.layer or 0}
        )
        super().__init__(state or SteeringState(**start, **{name: "\n".join(lines) for name, lines in texts.items()}))
        self.model, self.given, self._compute = model, direction, compute
        self._settings: dict[str, Any] | None = None
        self._make_controls()
        self.about, self.texts, self.area = widgets.HTML(), widgets.HTML(), plot_area()
        self.state.observe(lambda _: self.attempt(self._draw), names=["steered", "curve", "coefficient", "measure"])
        self.state.observe(lambda _: self.attempt(self._say), names=[*DIRECTION, *OTHERS])
        self.frame(
            row(self.coefficient, self.steer, self.trace),
            row(self.source, self.site, self.layer, self.pooling),
            row(self.positive, self.negative, self.prompts),
            row(self.positions, self.normalise, self.max_new_tokens, self.temperature),
            row(self.n_random, self.seed, self.reach, self.n_points),
            row(self.target, self.against, self.measure),
            self.about,
            self.texts,
            self.area,
        )

    def _make_controls(self) -> None:
        sites = [s for s in self.model.sites() if SITES[s].dims == ("pos", "d_model")]
        if self.state.site not in sites:
            self.state.site = sites[0]
        known = [name for name in SOURCES if name != "given" or self.given is not None]
        small = {"width": "180px"}
        self.coefficient = labelled(
            widgets.FloatSlider,
            "Coefficient",
            "How much of the direction is added; nothing is computed until Steer",
            "460px",
            min=-4,
            max=4,
            readout_format=".3g",
        )
        self.source = labelled(
            widgets.Dropdown,
            "Direction",
            "Where the direction comes from",
            "310px",
            options=[(SOURCES[name], name) for name in known],
        )
        self.site = labelled(widgets.Dropdown, "Site", "Where it is read and added", "170px", options=sites)
        self.layer = labelled(
            widgets.IntSlider,
            "Layer",
            "Block whose stream is read and steered",
            "250px",
            min=0,
            max=self.model.n_layers - 1,
        )
        self.pooling = labelled(
            widgets.Dropdown,
            "Reads",
            "Which token of a text the direction is read from",
            "210px",
            options=[("the last token", "last"), ("the mean of all tokens", "mean")],
        )
        self.positive, self.negative, self.prompts = (
            labelled(widgets.Textarea, name, tip, "315px", rows=4)
            for name, tip in (
                ("A (towards)", "Texts the direction points to, one a line"),
                ("B (away)", "Texts it points away from, one a line"),
                ("Prompts", "Texts that are continued, one a line"),
            )
        )
        self.positions = labelled(
            widgets.Dropdown,
            "Steers",
            "Which tokens the direction is added to",
            "190px",
            options=[(v, k) for k, v in POSITIONS.items()],
        )
        self.normalise = labelled(
            widgets.Dropdown,
            "Coefficient 1 adds",
            "What a coefficient of 1 adds",
            "370px",
            options=[(v, k) for k, v in NORMALISE.items()],
        )
        self.max_new_tokens = labelled(
            widgets.BoundedIntText, "New tokens", "Tokens generated for each prompt", min=1, max=512, **small
        )
        self.temperature = labelled(
            widgets.BoundedFloatText,
            "Temperature",
            "0 takes the likeliest token; above it samples, the same draws for every coefficient",
            min=0,
            max=10,
            step=0.1,
            **small,
        )
        self.n_random = labelled(
            widgets.BoundedIntText, "Random directions", "Controls of the same norm", min=0, max=20, **small
        )
        self.seed = labelled(widgets.IntText, "Seed", "Draws the random directions", "140px")
        self.target = labelled(
            widgets.Text,
            "Target word",
            "Its probability as next word is the metric; empty for none",
            "240px",
            placeholder="a word",
        )
        self.against = labelled(
            widgets.Text,
            "minus",
            "If given, the metric is target minus this word, in logits",
            "200px",
            placeholder="another word",
        )
        self.reach = labelled(
            widgets.BoundedFloatText,
            "Curve to ±",
            "Largest coefficient of slider and curve",
            min=0.001,
            max=10000,
            **small,
        )
        self.n_points = labelled(
            widgets.Dropdown, "in steps", "Coefficients of the curve, 0 among them", "150px", options=[5, 9, 17, 33]
        )
        self.measure = labelled(
            widgets.Dropdown,
            "Curve of",
            "What the curve shows",
            "420px",
            options=[("Loss of the continuation under the unsteered model", "continuation_loss")],
        )
        self.steer = widgets.Button(
            description="Steer",
            button_style="primary",
            tooltip="Continue every prompt at coefficient 0 and at the one chosen",
        )
        self.trace = widgets.Button(description="Curve", tooltip="Run all coefficients of the curve")
        self.steer.on_click(lambda _: self.run())
        self.trace.on_click(lambda _: self.run_curve())
        self.state.observe(lambda _: self._scale(), names=["reach", "n_points"])
        self._scale()
        link(
            self.state,
            **{
                name: getattr(self, name)
                for name in (*DIRECTION, *OTHERS, "coefficient", "reach", "n_points", "measure")
            },
        )

    def _scale(self) -> None:
        """The slider ends where the curve does, and stops at each of its points."""
        reach, chosen = self.state.reach, self.state.coefficient
        with self.coefficient.hold_trait_notifications():
            self.coefficient.min, self.coefficient.max, self.coefficient.step = (
                -reach,
                reach,
                reach / (self.state.n_points - 1) / 2,
            )
            self.coefficient.value = min(max(chosen, -reach), reach)

    # ---- work ----

    def run(self) -> "Steering":
        """Continue the prompts at 0 and at the coefficient, in the worker thread."""
        return self._start([0.0, round(self.state.coefficient, 9)], "steered")

    def run_curve(self) -> "Steering":
        """Continue the prompts at every coefficient of the curve, in the worker thread."""
        return self._start(
            np.linspace(-self.state.reach, self.state.reach, self.state.n_points).round(9).tolist(), "curve"
        )

    def _start(self, coefficients: list[float], where: str) -> "Steering":
        settings = {name: getattr(self.state, name) for name in (*DIRECTION, *OTHERS)}
        self.work(
            lambda progress: self._sweep(settings, coefficients, progress),
            lambda found: self._take(found, settings, where),
        )
        return self

    def direction(self, settings: dict[str, Any] | None = None) -> Direction:
        """The direction that the controls describe (or did, in `settings`).

        Raises:
            BadData: if texts are missing on a side that is needed.
        """
        asked = settings or {name: getattr(self.state, name) for name in DIRECTION}
        where: dict[str, Any] = {
            "site": asked["site"],
            "layer": asked["layer"] if SITES[asked["site"]].per_layer else None,
        }
        if asked["source"] == "given":
            if self.given is None:
                raise BadData("no vector was given: panels.Steering(model, direction=...)")
            return given(self.given.vector, source=self.given.source, **where)
        sides = [_lines(asked[name]) for name in ("positive", "negative")]
        if not all(sides) and (asked["source"] != "principal component" or not any(sides)):
            raise BadData("the direction is read from two sets of texts: give at least one line in A and one in B")
        positive, negative = ([prompt_ids(self.model, line) for line in lines] for lines in sides)
        if asked["source"] == "principal component":
            return principal_component(self.model, [*positive, *negative], pos=asked["pooling"], **where)
        make = mean_difference if asked["source"] == "mean difference" else probe_direction
        return make(self.model, positive, negative, pos=asked["pooling"], **where)

    def _sweep(self, asked: dict[str, Any], coefficients: list[float], progress: Progress) -> tuple[Result, str]:
        prompts = _lines(asked["prompts"])
        if not prompts:
            raise BadData("there is nothing to continue: give at least one prompt, one a line")
        rows, direction = [prompt_ids(self.model, prompt) for prompt in prompts], self.direction(asked)
        options = {
            name: asked[name]
            for name in ("positions", "normalise", "max_new_tokens", "temperature", "n_random", "seed")
        }
        found = self._compute(
            self.model,
            rows,
            direction,
            sorted(set(coefficients), key=lambda c: (abs(c), c)),
            metric=self._metric(asked, len(rows)),
            progress=progress,
            **options,
        )
        lengths = (
            capture(
                self.model,
                rows,
                [direction.site],
                layers=None if direction.layer is None else [direction.layer],
                reduce="last",
            )[direction.site, direction.layer]
            .float()
            .norm(dim=-1)
        )
        return (
            found,
            (
                f"{direction.source}; norm {direction.norm:.3g}, where the prompts' last tokens have norm"
                f" {float(lengths.mean()):.3g}"
            ),
        )

    def _metric(self, asked: dict[str, Any], n: int) -> metrics.Metric | None:
        target, against = asked["target"].strip(), asked["against"].strip()
        if not target:
            return None
        ids = [one_token(self.model, word) for word in (target, against) if word]
        return metrics.logit_diff([ids[0]] * n, [ids[1]] * n) if against else metrics.probability(ids * n)

    def _take(self, found: tuple[Result, str], settings: dict[str, Any], where: str) -> None:
        result, about = found
        other = "curve" if where == "steered" else "steered"
        known, was = views.measures(result), self.state.measure
        with self.state.hold_trait_notifications():
            self.measure.options = [
                (title, name) for name, title in known.items()
            ]  # which puts the choice back to the first
            if settings == self._settings and was in known:
                self.state.measure = was
            if settings != self._settings:  # two computations with other settings do not belong on one screen
                setattr(self.state, other, None)
            self._settings = settings
            self.about.value = f"<p>{html.escape(about)}</p>"
            setattr(self.state, where, result)

    # ---- what it shows ----

    @property
    def written(self) -> Result | None:
        """The Result that holds texts at the coefficient of the slider, or the last one that holds texts at all."""
        has = [r for r in (self.state.steered, self.state.curve) if r is not None]
        return next((r for r in has if views.has_coefficient(r, self.state.coefficient)), has[0] if has else None)

    @property
    def coefficient_shown(self) -> float:
        """The coefficient of the texts on screen: the slider's where it was computed, else the nearest that was (0
        is on screen anyway).
        """
        result, wanted = self.written, self.state.coefficient
        if result is None or views.has_coefficient(result, wanted):
            return wanted
        return min((c for c in views.ran(result) if c != 0), key=lambda c: abs(c - wanted), default=0.0)

    def table(self) -> pd.DataFrame:
        """Every continuation with its measures, those on screen first."""
        parts = [views.table(r) for r in (self.state.curve, self.state.steered) if r is not None]
        if not parts:
            return pd.DataFrame()
        found = pd.concat(parts).drop_duplicates(["arm", "coefficient", "example"], ignore_index=True)
        on_screen = found["coefficient"].eq(0) | np.isclose(
            found["coefficient"], self.coefficient_shown, rtol=0, atol=1e-9
        )
        return pd.concat([found[on_screen], found[~on_screen]], ignore_index=True)

    def figures(self) -> dict[str, go.Figure]:
        """The curve on screen."""
        result = self.state.curve or self.state.steered
        return (
            {}
            if result is None
            else {"steering_curve": views.curve(result, self.state.measure, self.coefficient_shown)}
        )

    def _draw(self) -> None:
        result = self.written
        self.state.result = result
        if result is not None:
            self.texts.value = views.side_by_side_html(result, self.coefficient_shown)
            draw(self.area, self.figures()["steering_curve"])
        self._say()

    def _say(self) -> None:
        """The notice: what was cancelled, what has no effect, a control that is broken itself, and what the screen
        does not show.
        """
        result = self.written
        if result is None:
            return
        said = ["cancelled: what was finished is shown"] if result.partial else []
        said += result.warnings
        control = result.data["is_degenerate"].sel(arm=views.DIRECTION, coefficient=0.0)
        if broken := int((control == 1).sum()):
            said.append(
                f"already at coefficient 0, {broken} of {control.size} continuations are degenerate (empty, stuck or"
                " looping), so degeneration elsewhere says little"
            )
        now = {name: getattr(self.state, name) for name in (*DIRECTION, *OTHERS)}
        if result.data.sizes["coefficient"] == 1:
            said.append("coefficient 0 is the control itself; move the slider")
        if now != self._settings:
            said.append("settings changed since: what is shown was computed before; Steer or Curve computes it again")
        elif not views.has_coefficient(result, self.state.coefficient):
            said.append(f"shown is coefficient {self.coefficient_shown:g}; Steer computes {self.state.coefficient:g}")
        self.state.notice = "; ".join(dict.fromkeys(said))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
