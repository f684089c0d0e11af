"""Panel over a finished inactive-heads Result: choose a score, a share and an input; see which heads are off and what it costs.

State is plain data, the drawing is views.attention_sinks, and no model is run: the numbers are those of the Result. The
figure is a plain plotly output (24 kB) and not a FigureWidget (5 MB each). Plain function behind it: `heads_off`.
"""

import json

import ipywidgets as widgets
import pandas as pd
import traitlets

from workbench.core.result import Result
from workbench.methods.attention import attention_sinks
from workbench.primitives.head_scores import SCORES
from workbench.views import attention_sinks as views


def heads_off(result: Result, score: str = "ahon_ln", share: float = 0.15, input: int = 0) -> pd.DataFrame:
    """Every head on one input.

    Args:
        result: of the inactive-heads analysis. score: key of a score in it. share: a target share. input: row number.

    Returns:
        Columns layer, head, value, threshold, off.
    """
    values = result.data["value"].sel(score=score).isel(input=input)
    at = float(result.data.share.sel(share=share, method="nearest"))
    off = attention_sinks.flagged(result.data, score, at)[input]
    table = values.to_dataframe(name="value").reset_index()[["layer", "head", "value"]]
    return table.assign(threshold=float(result.data["threshold"].sel(score=score, share=at)), off=off.ravel())


class HeadsState(traitlets.HasTraits):
    """What is shown; no widgets here."""

    score = traitlets.Unicode("ahon_ln")
    share = traitlets.Float(0.15)
    input = traitlets.Int(0)


class HeadsPanel(widgets.VBox):
    """`HeadsPanel(result)` in a cell shows it; `panel.table()` gives what it shows as a DataFrame."""

    def __init__(self, result: Result, state: HeadsState | None = None):
        self.result, self.state = result, state or HeadsState()
        names = [str(k) for k in result.data.score.values]
        self.score = widgets.Dropdown(options=[(SCORES[k].title, k) for k in names], description="Score")
        self.share = widgets.SelectionSlider(options=[(f"{s:.0%}", float(s)) for s in result.data.share.values], description="Share off", continuous_update=False)
        self.input = widgets.IntSlider(min=0, max=result.data.sizes["input"] - 1, description="Input", continuous_update=False)
        self.state.share = float(result.data.share.sel(share=self.state.share, method="nearest"))
        for control, name in ((self.score, "score"), (self.share, "share"), (self.input, "input")):
            traitlets.link((self.state, name), (control, "value"))
        self.says, self.grid, self.drawing = widgets.HTML(), widgets.HTML(), widgets.Output()
        self.state.observe(self._draw, names=["score", "share", "input"])
        super().__init__([widgets.HBox([self.score, self.share, self.input]), self.says, self.grid, self.drawing])
        self._draw()

    def table(self) -> pd.DataFrame:
        """What the panel shows now, as `heads_off` gives it."""
        return heads_off(self.result, self.state.score, self.state.share, self.state.input)

    def _draw(self, _: object = None) -> None:
        state, table = self.state, self.table()
        lost = attention_sinks.loss_at(self.result.data, "accuracy", state.share, score=state.score)
        random = attention_sinks.loss_at(self.result.data, "random_accuracy", state.share)
        self.says.value = (
            f"<p>On input {state.input}, <b>{int(table.off.sum())} of {len(table)}</b> heads are off. Over all inputs this costs "
            f"<b>{lost:.1f}</b> points of accuracy; as many random heads cost {random:.1f}.</p>"
        )
        self.grid.value = _grid(table)
        figure = views.score_histogram(self.result, state.score, state.share)
        # Trait assignment, not `with output:`, because callbacks may run in another thread than the cell's.
        data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()), "text/plain": figure.layout.meta["alt"]}
        self.drawing.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


def _grid(table: pd.DataFrame) -> str:
    """Layer x head as an HTML table; heads that are off are blue, and say so for those who do not see the colour."""
    rows = []
    for layer, heads in table.groupby("layer"):
        cells = "".join(
            f"<td title='layer {layer}, head {h.head}: {h.value:.3f}' style='padding:.3em .6em;text-align:center;border:1px solid var(--jp-border-color2,#ccc);"
            f"{'background:#0072B2;color:#fff' if h.off else ''}'>{h.value:.2f}{' off' if h.off else ''}</td>"
            for h in heads.itertuples()
        )
        rows.append(f"<tr><th style='padding:.3em .6em'>layer {layer}</th>{cells}</tr>")
    return f"<table style='border-collapse:collapse'>{''.join(rows)}</table>"
