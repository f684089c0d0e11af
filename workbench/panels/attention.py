"""Attention panel: every head's pattern on one prompt; click a head to see it large, point at a token to see where it
attends, switch heads off.

Plain functions behind it: `primitives.read.attention_patterns.attention_patterns` and `switch_heads_off`; figures:
views/attention. One forward a prompt, two (three with means) to measure what switched-off heads do.
"""

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.read.attention_patterns import SCORES, attention_patterns, switch_heads_off
from workbench.views import attention as views

from .drawn import HeatMap, TokenStrip
from .head_grid import HeadGrid, toggled
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

HALF, MORE, LESS = (
    "1 1 440px",
    "3 1 540px",
    "2 1 380px",
)  # of the width: grid and large pattern share it, and many heads get more
SHORT = {
    "first_token": "first token",
    "entropy": "entropy (nats)",
    "previous": "previous token",
    "induction": "after an earlier copy",
}


class AttentionState(PanelState):
    """prompt: text. score: key of SCORES. layer, head: the head shown large, -1 for none. off: [layer, head] of heads
    switched off.

    replace: what a switched-off head's output becomes. run: whose patterns are shown, "on" (the model's) or "off".
    effect: the run with heads off, None until measured and again as soon as `off` changes.
    """

    prompt = traitlets.Unicode()
    score = traitlets.Unicode("first_token")
    layer = traitlets.Int(-1)
    head = traitlets.Int(-1)
    off = traitlets.List()
    replace = traitlets.Unicode("zero")
    run = traitlets.Unicode("on")
    effect = traitlets.Instance(Result, allow_none=True)


class Attention(Panel):
    """`panels.Attention(model, prompt="...")` in a cell; Run reads all patterns, a click on a head shows it large.

    Shift+click (or "o") on a head switches it off; Measure runs the model without those heads.
    """

    title = "Attention"

    def __init__(
        self,
        model: Model,
        prompt: str = "",
        *,
        state: AttentionState | None = None,
        compute: Callable[..., Result] = attention_patterns,
        switch: Callable[..., Result] = switch_heads_off,
    ):
        self.state: AttentionState
        super().__init__(state or AttentionState(prompt=prompt))
        self.model, self._compute, self._switch = model, compute, switch
        self.prompt = labelled(widgets.Text, "Prompt", "Text the model reads", "560px")
        self.score = labelled(
            widgets.Dropdown,
            "Score",
            "The number beneath every head",
            "320px",
            options=[(title, key) for key, (title, _) in SCORES.items()],
        )
        self.of = labelled(
            widgets.Dropdown,
            "Patterns of",
            "The model's own run, or the run with heads off once it was measured",
            "290px",
            options=[("the model", "on")],
        )
        self.replace = labelled(
            widgets.Dropdown,
            "Replace by",
            "What takes the place of a switched-off head's output",
            "240px",
            options=[("zero", "zero"), ("mean over the prompt", "mean")],
        )
        link(self.state, prompt=self.prompt, score=self.score, replace=self.replace, run=self.of)
        self.start = _button("Run", "Read all patterns in one forward", self.run, button_style="primary")
        self.toggle = _button("Switch head off", "Switch the head shown large off, or on again", self._toggle)
        self.clear = _button("All on", "Switch every head on again", lambda: self.state.set_trait("off", []))
        self.measure = _button("Measure", "Run the model with these heads off", self.run_effect, button_style="primary")
        self.grid = HeadGrid(layout=widgets.Layout(flex=HALF, min_width="340px"))
        self.large = HeatMap(height=440)
        self.tokens, self.says_head, self.hint, self.says_off, self.bars = (
            TokenStrip(),
            widgets.HTML(),
            widgets.HTML(),
            widgets.HTML(),
            plot_area(),
        )
        traitlets.link((self.state, "off"), (self.grid, "off"))
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._draw_grid), names=["result", "score", "run"])
        self.state.observe(lambda _: self.attempt(self._draw_head), names=["result", "layer", "head", "score", "run"])
        self.state.observe(lambda _: self.attempt(self._change_off), names=["off", "replace"])
        self.state.observe(lambda _: self.attempt(self._draw_off), names=["off", "layer", "head", "effect", "result"])
        self.side = widgets.VBox([self.says_head, self.large], layout=widgets.Layout(flex=HALF, min_width="340px"))
        maps = widgets.HBox(
            [self.grid, self.side], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        )
        off = row(self.toggle, self.clear, self.replace, self.measure)
        self.found = widgets.VBox(
            [row(self.score, self.of), maps, self.hint, self.tokens, off, self.says_off, self.bars],
            layout=widgets.Layout(display="none"),
        )
        self.frame(row(self.prompt, self.start), self.found)

    # ---- work ----

    def run(self) -> "Attention":
        """Read the patterns of the prompt in the worker thread."""
        prompt = self.state.prompt
        self.work(lambda progress: self._compute(self.model, prompt_ids(self.model, prompt)), self._take)
        return self

    def run_effect(self) -> "Attention":
        """Run the model with the heads in `state.off` replaced, on the prompt whose patterns are shown."""
        result, off, value = self.state.result, [tuple(pair) for pair in self.state.off], self.state.replace

        def measured(effect: Result) -> None:
            if (off, value) != (
                [tuple(pair) for pair in self.state.off],
                self.state.replace,
            ) or result is not self.state.result:
                self.state.notice = "heads were switched while this was measured, so it is not shown; measure again"
                return
            self.of.options = [("the model", "on"), (f"the run with {len(off)} head{'s' * (len(off) > 1)} off", "off")]
            self.state.effect = effect
            self._tell(effect)

        if result is None:
            self.state.notice = "run the prompt first"
        else:
            self.work(lambda progress: self._switch(self.model, result.spec["tokens"], off, value=value), measured)
        return self

    def show_head(self, layer: int, head: int, prompt: str | None = None) -> "Attention":
        """Show one head large, reading the patterns first where they are not those of this prompt; for other panels
        and scripts.
        """
        wanted = self.state.prompt if prompt is None else prompt
        known = self.state.result is not None and self.state.result.spec["tokens"] == prompt_ids(self.model, wanted)
        self.state.prompt = wanted
        with self.state.hold_trait_notifications():
            self.state.layer, self.state.head = layer, head
        return self if known else self.run()

    def _take(self, result: Result) -> None:
        state, sizes = self.state, result.data.sizes
        self.of.options = [("the model", "on")]
        with state.hold_trait_notifications():
            if not (0 <= state.layer < sizes["layer"] and 0 <= state.head < sizes["head"]):
                state.layer, state.head = _largest(result, state.score)
            state.effect, state.run, state.result = None, "on", result
        self.grid.layout.flex, self.side.layout.flex = (HALF, HALF) if sizes["head"] <= 6 else (MORE, LESS)
        self.found.layout.display = "flex"
        self._tell(result)

    def _tell(self, result: Result) -> None:
        notes = list(result.warnings)
        if (
            "induction" in result.data.score.values
            and not np.isfinite(result.data["scores"].sel(score="induction").values).any()
        ):
            notes.append("no token is said twice in this prompt, so the induction score has no value")
        self.state.notice = "; ".join(notes)

    # ---- what it shows, as data ----

    @property
    def shown(self) -> Result | None:
        """The run whose patterns are shown."""
        return self.state.effect if self.state.run == "off" and self.state.effect is not None else self.state.result

    def table(self) -> pd.DataFrame:
        """Every head with its scores in the run shown, and whether it is switched off."""
        return pd.DataFrame() if self.shown is None else views.head_table(self.shown, self.state.off)

    def pattern_table(self) -> pd.DataFrame:
        """The weights of the head shown large."""
        return (
            pd.DataFrame()
            if self.shown is None or self.state.layer < 0
            else views.pattern_table(self.shown, self.state.layer, self.state.head)
        )

    def effect_table(self) -> pd.DataFrame:
        """Probabilities with heads on and off, once measured."""
        return pd.DataFrame() if self.state.effect is None else views.change_table(self.state.effect)

    def figures(self) -> dict[str, go.Figure]:
        """The grid, the head shown large, the scores, and what switching off did."""
        state, shown = self.state, self.shown
        if shown is None:
            return {}
        found = {"attention_grid": views.grid(shown, state.score, state.off)}
        if state.layer >= 0:
            found["attention_pattern"] = views.pattern(shown, state.layer, state.head)
        found["head_scores"] = views.head_scores(shown, state.score)
        return found | (
            {"heads_off": views.change(state.effect)} if "probability" in getattr(state.effect, "data", ()) else {}
        )

    # ---- drawing ----

    def _draw_grid(self) -> None:
        shown, score = self.shown, self.state.score
        if shown is None:
            return
        values = shown.data["scores"].sel(score=score)
        alt = (
            f"Attention patterns of {values.sizes['layer']} layers x {values.sizes['head']} heads over"
            f" {shown.data.attrs['n_pos']} positions, with a score beneath each."
        )
        self.grid.show(
            views.thumbnails(shown),
            values.values,
            title=str(values.title.values),
            unit=str(values.unit.values),
            limits=views.score_limits(shown, score),
            alt=alt,
        )

    def _draw_head(self) -> None:
        shown, state = self.shown, self.state
        if shown is None or state.layer < 0:
            return
        layer, head = state.layer, state.head
        self.grid.selected = [layer, head]
        pattern, labels = views.weights(shown, layer, head), views.token_names(shown)
        scores = {
            key: float(shown.data["scores"].sel(score=key, layer=layer, head=head)) for key in shown.data.score.values
        }
        said = ", ".join(f"{SHORT.get(key, key)} {value:.2f}" for key, value in scores.items() if np.isfinite(value))
        self.says_head.value = f"<b>Layer {layer}, head {head}</b>: {html.escape(said)}"
        self.hint.value = (
            f"Point at a token: the colour of the others is how much L{layer}H{head} attends to them from there (a"
            " click keeps it)."
        )
        alt = f"Attention pattern of head {head} in layer {layer}: rows are queries, columns the keys they attend to."
        self.large.show(
            pattern,
            labels,
            labels,
            x_title="key (attended to)",
            y_title="query (attends)",
            unit="share",
            signed=False,
            limits=(0.0, views.pattern_top(pattern)),
            alt=alt,
        )
        tokens = [str(token) for token in shown.data["token"].values]
        about = (
            f"Tokens of the prompt; pointing at one colours the others by how much head {head} of layer {layer} attends"
            " to them from there."
        )
        self.tokens.show(
            tokens,
            shown.data["token_id"].values,
            matrix=pattern,
            unit="share",
            alt=about,
            limits=(0.0, views.pattern_top(pattern)),
        )

    def _draw_off(self) -> None:
        state = self.state
        is_off = [state.layer, state.head] in state.off
        self.toggle.disabled = state.layer < 0
        self.toggle.description = (
            "Switch head off" if state.layer < 0 else f"Switch L{state.layer}H{state.head} {'on' if is_off else 'off'}"
        )
        self.measure.disabled = self.clear.disabled = not state.off
        self.says_off.value = _said_off(state)
        has_bars = state.effect is not None and "probability" in state.effect.data
        draw(self.bars, views.change(state.effect).update_layout(height=400) if has_bars else None)

    def _change_off(self) -> None:
        with self.state.hold_trait_notifications():
            self.state.run, self.state.effect = "on", None
        self.of.options = [("the model", "on")]

    # ---- clicks ----

    def _choose(self) -> None:
        if len(self.grid.selected) == 2:
            with self.state.hold_trait_notifications():
                self.state.layer, self.state.head = self.grid.selected

    def _toggle(self) -> None:
        self.state.off = toggled(self.state.off, self.state.layer, self.state.head)


def _button(text: str, tip: str, act: Callable[[], object], **look: str) -> widgets.Button:
    button = widgets.Button(description=text, tooltip=tip, **look)
    button.on_click(lambda _: act())
    return button


def _largest(result: Result, score: str) -> tuple[int, int]:
    """The head to show first: the one with the largest score."""
    values = result.data["scores"].sel(score=score).values
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape) if np.isfinite(values).any() else (0, 0)
    return int(layer), int(head)


def _said_off(state: AttentionState) -> str:
    """Which heads are off and, once measured, what that did, as HTML."""
    if not state.off:
        return "<p>All heads are on. Shift+click a head, or press o on it, to switch it off.</p>"
    listed = _listed(state.off)
    if state.effect is None:
        return f"<p>Off: {listed}. Not measured yet.</p>"
    data = state.effect.data
    unit = data["moved"].attrs["unit"] if "moved" in data else "logits"
    text = (
        f"<p>Off: {listed} ({int(data.attrs['n_replaced'])} replaced by hooks that fired in"
        f" {_layers(data.attrs['firings'])}). Largest change of the output: {data.attrs['effect']:.3g} {unit}."
    )
    if "loss" in data:
        on, off = data["loss"].mean("pos").values
        text += (
            f" Mean loss on the prompt: {on:.3f} with all heads on, <b>{off:.3f}</b> with these off ({off - on:+.3f}"
            " nats a token)."
        )
    return text + "</p>"


def _layers(n: float) -> str:
    return f"{int(n)} layer{'s' * (n > 1)}"


def _listed(off: Sequence[Sequence[int]]) -> str:
    shown = ", ".join(f"L{layer}H{head}" for layer, head in off[:12])
    return shown + (f" and {len(off) - 12} more" if len(off) > 12 else "")
