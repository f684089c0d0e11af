"""Panel over a finished inactive-heads Result: choose a score, a share and an input; see which heads are off and what
it costs.

No model is run: the numbers are those of the Result. Plain function behind it: `heads_off`; figures: views/heads and
views/attention_sinks.
"""

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.result import Result
from workbench.panels.drawn import HeatMap
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, plot_area, row
from workbench.papers.attention.attention_sinks import figures as views
from workbench.papers.attention.attention_sinks.claims import flagged, loss_at
from workbench.papers.attention.attention_sinks.panel_figures import grid, heads_map
from workbench.primitives.score.head_scores import SCORES


def heads_off(result: Result, score: str = "ahon_ln", share: float = 0.15, input: int = 0) -> pd.DataFrame:
    """Every head on one input.

    Args:
        result: of the inactive-heads analysis. score: key of a score in it. share: a target share. input: row number.

    Returns:
        Columns layer, head, value, threshold, off.
    """
    values = result.data["value"].sel(score=score).isel(input=input)
    at = float(result.data.share.sel(share=share, method="nearest"))
    off = flagged(result.data, score, at)[input]
    table = values.to_dataframe(name="value").reset_index()[["layer", "head", "value"]]
    return table.assign(threshold=float(result.data["threshold"].sel(score=score, share=at)), off=off.ravel())


class HeadsState(PanelState):
    """score: key of a score. share: target share of heads off. input: row number. layer, head: the head looked at,
    -1 for none.
    """

    score = traitlets.Unicode("ahon_ln")
    share = traitlets.Float(0.15)
    input = traitlets.Int(0)
    layer = traitlets.Int(-1)
    head = traitlets.Int(-1)


class Heads(Panel):
    """`Heads(result)` in a cell; a click on a head says how often it is off. Nothing is computed: the Result has it
    all.
    """

    title = "Heads that are off"

    def __init__(self, result: Result, state: HeadsState | None = None):
        self.state: HeadsState
        super().__init__(state or HeadsState())
        known = [str(k) for k in result.data.score.values]
        self.score = labelled(
            widgets.Dropdown, "Score", "What says that a head is off", options=[(SCORES[k].title, k) for k in known]
        )
        self.share = labelled(
            widgets.SelectionSlider,
            "Share off",
            "Target share of heads, over all inputs",
            options=[(f"{s:.0%}", float(s)) for s in result.data.share.values],
        )
        self.input = labelled(
            widgets.IntSlider, "Input", "Number of the input", min=0, max=result.data.sizes["input"] - 1
        )
        self.state.share = float(result.data.share.sel(share=self.state.share, method="nearest"))
        link(self.state, score=self.score, share=self.share, input=self.input)
        self.summary, self.grid, self.cell, self.drawing = widgets.HTML(), HeatMap(), widgets.HTML(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._draw), names=["result", "score", "share", "input"])
        self.state.observe(lambda _: self.attempt(self._draw_cell), names=["layer", "head"])
        self.frame(row(self.score, self.share, self.input), self.summary, self.grid, self.cell, self.drawing)
        self.state.result = result

    def table(self) -> pd.DataFrame:
        """What the panel shows now, as `heads_off` gives it."""
        return heads_off(self.state.result, self.state.score, self.state.share, self.state.input)

    def figures(self) -> dict[str, go.Figure]:
        """The grid, and where the threshold falls."""
        state = self.state
        return {
            "heads_off": heads_map(
                self.table(),
                SCORES[state.score].title,
                SCORES[state.score].shown_unit,
                state.input,
                state.result.provenance,
            ),
            "score_histogram": views.score_histogram(state.result, state.score, state.share),
        }

    def _draw(self) -> None:
        state, table, data = self.state, self.table(), self.state.result.data
        values, off = grid(table)
        lost = loss_at(data, "accuracy", state.share, score=state.score)
        random = loss_at(data, "random_accuracy", state.share)
        self.summary.value = (
            f"<p>On input {state.input}, <b>{int(off.sum())} of {off.size}</b> heads are off (crossed out). Over all"
            f" inputs this costs <b>{lost:.1f}</b> points of accuracy; as many random heads cost {random:.1f}.</p>"
        )
        alt = (
            f"{SCORES[state.score].title} by layer and head on input {state.input}; {int(off.sum())} of {off.size}"
            " heads are off."
        )
        marked = [(int(layer), int(head)) for layer, head in zip(*off.nonzero(), strict=True)]
        state.notice = self.grid.show(
            values,
            range(len(values)),
            range(values.shape[1]),
            x_title="head",
            y_title="layer",
            unit=SCORES[state.score].shown_unit,
            signed=False,
            marked=marked,
            alt=alt,
        )
        draw(self.drawing, views.score_histogram(state.result, state.score, state.share))
        self._draw_cell()

    def _choose(self) -> None:
        if self.grid.chosen is not None:
            with self.state.hold_trait_notifications():
                self.state.layer, self.state.head = self.grid.chosen

    def _draw_cell(self) -> None:
        state = self.state
        if state.layer < 0:
            self.cell.value = ""
            return
        data = state.result.data
        off = flagged(data, state.score, state.share)[:, state.layer, state.head]
        here = self.table().query("layer == @state.layer and head == @state.head").iloc[0]
        self.cell.value = (
            f"<p>Layer {state.layer}, head {state.head}: {here.value:.3f} on this input, threshold"
            f" {here.threshold:.3f}, so it is <b>{'off' if here.off else 'on'}</b>; off on {off.mean():.0%} of the"
            f" {len(off)} inputs.</p>"
        )
