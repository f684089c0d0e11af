"""Lens panel: the next token that each layer would predict, at every position; click a cell for its likeliest tokens.

Plain function behind it: `primitives.read.lenses.logit_lens`; figure: views/lenses. One forward a prompt.
"""

import html
from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.read.lenses import logit_lens
from workbench.primitives.score.prompt_metrics import one_token
from workbench.views import lenses as views

from .drawn import HeatMap
from .panel import Panel, PanelState, labelled, link, names, row


class LensState(PanelState):
    """prompt: text. follow: a word whose rank is followed, or empty. layer, pos: the cell looked at, -1 for none."""

    prompt = traitlets.Unicode()
    follow = traitlets.Unicode()
    quantity = traitlets.Unicode("probability")
    layer = traitlets.Int(-1)
    pos = traitlets.Int(-1)


class Lens(Panel):
    """`panels.Lens(model, prompt="...")` in a cell; Run computes, a click on a cell lists its likeliest next tokens."""

    title = "Logit lens"

    def __init__(
        self,
        model: Model,
        prompt: str = "",
        *,
        state: LensState | None = None,
        compute: Callable[..., Result] = logit_lens,
    ):
        self.state: LensState
        super().__init__(state or LensState(prompt=prompt))
        self.model, self._compute = model, compute
        self.prompt = labelled(widgets.Text, "Prompt", "Text the model reads", "560px")
        self.follow = labelled(widgets.Text, "Follow", "A word whose rank is followed through the layers", "240px")
        self.quantity = labelled(
            widgets.Dropdown,
            "Colour",
            "What colours the cells",
            "300px",
            options=[(v, k) for k, v in views.QUANTITIES.items()],
        )
        link(self.state, prompt=self.prompt, follow=self.follow, quantity=self.quantity)
        self.start = widgets.Button(
            description="Run", button_style="primary", tooltip="Run the model once on this prompt"
        )
        self.start.on_click(lambda _: self.run())
        self.grid, self.cell = HeatMap(), widgets.HTML()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._draw), names=["result", "quantity"])
        self.state.observe(lambda _: self.attempt(self._draw_cell), names=["layer", "pos"])
        self.frame(row(self.prompt, self.follow, self.quantity, self.start), self.grid, self.cell)

    def run(self) -> "Lens":
        """Compute the lens of the prompt in the worker thread."""
        prompt, follow = self.state.prompt, self.state.follow  # a space in front counts
        self.work(lambda progress: self._lens(prompt, follow), self._take)
        return self

    def _lens(self, prompt: str, follow: str) -> Result:
        targets = [one_token(self.model, follow)] if follow else None
        return self._compute(self.model, prompt_ids(self.model, prompt), targets=targets)

    def _take(self, result: Result) -> None:
        follows = "target_rank" in result.data
        self.quantity.options = [
            *((v, k) for k, v in views.QUANTITIES.items()),
            *([("log10(1 + rank) of the followed token", "rank")] if follows else []),
        ]
        with self.state.hold_trait_notifications():
            self.state.layer = self.state.pos = -1
            self.state.quantity = "rank" if follows else "probability"
            self.state.result = result

    def table(self) -> pd.DataFrame:
        """The likeliest tokens of the cell looked at, or the likeliest token of every cell."""
        state = self.state
        if state.result is None:
            return pd.DataFrame()
        if state.layer >= 0:
            return views.cell_table(state.result, state.layer, state.pos)
        return (
            state.result.data[["token", "probability", "entropy"]]
            .isel(rank=0)
            .to_dataframe()
            .reset_index()[["layer", "pos", "token", "probability", "entropy"]]
        )

    def figures(self) -> dict[str, go.Figure]:
        """The grid as a report shows it."""
        return (
            {} if self.state.result is None else {"logit_lens": views.lens_grid(self.state.result, self.state.quantity)}
        )

    def _draw(self) -> None:
        result = self.state.result
        if result is None:
            return
        unit = {"probability": "probability", "entropy": "nats", "rank": "log10(1 + rank)"}[self.state.quantity]
        self.state.notice = self.grid.show(
            views.lens_values(result, self.state.quantity),
            views.layer_names(result),
            names(result.data["prompt"].values),
            x_title="position (token read)",
            y_title="blocks passed",
            unit=unit,
            signed=False,
            texts=[str(t) for t in result.data["token"].isel(rank=0).values.ravel()],
            alt=views.lens_grid(result, self.state.quantity).layout.meta["alt"],
        )
        if self.state.layer >= 0:
            self.grid.outline(self.state.layer, self.state.pos)
        self._draw_cell()

    def _choose(self) -> None:
        if self.grid.chosen is not None:
            with self.state.hold_trait_notifications():
                self.state.layer, self.state.pos = self.grid.chosen

    def _draw_cell(self) -> None:
        state = self.state
        if state.result is None or state.layer < 0:
            self.cell.value = ""
            return
        where = (
            f"after block {views.layer_names(state.result)[state.layer]}, position"
            f" {names(state.result.data['prompt'].values)[state.pos]}"
        )
        self.cell.value = f"<p>Likeliest next tokens {html.escape(where)}</p>" + self.table().to_html(
            index=False, border=0, float_format=lambda x: f"{x:.3f}"
        )
