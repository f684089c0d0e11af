"""Attribution panel: which components, heads and neurons wrote the answer's logit at the last position; click a head to
see its attention.

Plain function behind it: `primitives.read.lenses.direct_logit_attribution`, once for each split; figures:
views/attribution. Two forwards a split and one to find the model's own answer.
"""

import html
from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import torch
import traitlets

from workbench.core.errors import BadData, UnknownSite
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.read.lenses import direct_logit_attribution
from workbench.primitives.score.prompt_metrics import one_token
from workbench.views import attribution as views

from .attention import Attention
from .drawn import HeatMap
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

N_NEURONS = 15
SHORTER = 140  # pixels by which the live bars are lower than a report's


class AttributionState(PanelState):
    """prompt: text. answer: the token whose logit is split, empty for the model's own first choice. other: subtracted,
    empty for none.

    ran: the prompt that `result` is of. by_neuron: split MLPs too. heads, neurons: the results by head and by neuron,
    beside `result` by component. layer, head: the head clicked last, -1 for none.
    """

    prompt = traitlets.Unicode()
    answer = traitlets.Unicode()
    other = traitlets.Unicode()
    ran = traitlets.Unicode()
    by_neuron = traitlets.Bool(True)
    heads = traitlets.Instance(Result, allow_none=True)
    neurons = traitlets.Instance(Result, allow_none=True)
    layer = traitlets.Int(-1)
    head = traitlets.Int(-1)


class Attribution(Panel):
    """`panels.Attribution(model, prompt="...", answer="...")` in a cell; Run splits the logit, a click on a head opens
    its attention.

    attention: an Attention panel that clicked heads are shown in; without one a new panel opens beneath (`opened`).
    """

    title = "Direct logit attribution"

    def __init__(
        self,
        model: Model,
        prompt: str = "",
        answer: str = "",
        other: str = "",
        *,
        attention: Attention | None = None,
        state: AttributionState | None = None,
        compute: Callable[..., Result] = direct_logit_attribution,
    ):
        self.state: AttributionState
        super().__init__(state or AttributionState(prompt=prompt, answer=answer, other=other))
        self.model, self._compute, self.opened = model, compute, attention
        self.prompt = labelled(
            widgets.Text, "Prompt", "Text the model reads; the logit at its last token is split", "350px"
        )
        self.answer = labelled(
            widgets.Text,
            "Answer",
            "The token whose logit is split, with its leading space if it has one; empty: the model's first choice",
            "170px",
        )
        self.other = labelled(widgets.Text, "Minus", "A token whose logit is subtracted; empty: none", "150px")
        self.by_neuron = labelled(
            widgets.Checkbox, "Neurons", "Also split every MLP into neurons", "90px", indent=False
        )
        link(self.state, prompt=self.prompt, answer=self.answer, other=self.other, by_neuron=self.by_neuron)
        self.start = widgets.Button(description="Run", button_style="primary", tooltip="Split the logit")
        self.start.on_click(lambda _: self.run())
        self.sums, self.bars, self.neuron_table = widgets.HTML(), plot_area(), widgets.HTML()
        self.grid, self.inside = HeatMap(height=360), widgets.VBox()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._draw), names="result")
        where = "beneath" if attention is None else "in the attention panel"
        hint = widgets.HTML(f"<p><b>Heads</b>: a click shows the head's attention {where}</p>")
        half = {"flex": "1 1 400px", "min_width": "340px"}
        split = widgets.HBox(
            [
                widgets.VBox([hint, self.grid], layout=widgets.Layout(**half)),
                widgets.VBox([self.neuron_table], layout=widgets.Layout(**half)),
            ],
            layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"),
        )
        self.found = widgets.VBox([self.sums, self.bars, split, self.inside], layout=widgets.Layout(display="none"))
        self.frame(row(self.prompt, self.answer, self.other, self.by_neuron, self.start), self.found)

    # ---- work ----

    def run(self) -> "Attribution":
        """Split the logit by component, by head and (if asked for) by neuron in the worker thread."""
        state = self.state
        prompt, answer, other, by_neuron = state.prompt, state.answer, state.other, state.by_neuron
        self.work(
            lambda progress: self._splits(prompt, answer, other, by_neuron, progress),
            lambda found: self._take(prompt, *found),
        )
        return self

    def _splits(
        self, prompt: str, answer: str, other: str, by_neuron: bool, progress: Progress
    ) -> tuple[dict[str, Result], list[str]]:
        """{split: Result} and notices."""
        self.model.require("causal-lm", "direct logit attribution")
        row_ids, notes = prompt_ids(self.model, prompt), []
        if answer:
            answers = [one_token(self.model, answer)]
        else:
            answers = [int(self.model.forward(torch.tensor([row_ids]))[0, -1].argmax())]
        others = [one_token(self.model, other)] if other else None
        if others == answers:
            raise BadData(
                f"answer and other token are both {self.model.to_strings(answers)[0]!r}, so their difference is 0"
                " everywhere; name two tokens"
            )
        kinds, found = ["component", "head", *(["neuron"] if by_neuron else [])], {}
        for done, by in enumerate(kinds):
            progress.update(done, len(kinds), f"by {by}")
            try:
                result = self._compute(self.model, [row_ids], answers, others, by=by)
            except UnknownSite as refused:  # fused experts show no neurons; the other splits are still right
                if by == "component":
                    raise
                notes.append(f"no split by {by}: {refused}")
                continue
            if others is not None:
                result.data.coords["other"] = ("example", self.model.to_strings(others))
            found[by] = result
        progress.update(len(kinds), len(kinds), "done")
        return found, notes

    def _take(self, prompt: str, results: dict[str, Result], notes: list[str]) -> None:
        state = self.state
        with state.hold_trait_notifications():
            state.layer = state.head = -1
            state.ran = prompt
            state.heads, state.neurons, state.result = results.get("head"), results.get("neuron"), results["component"]
        self.found.layout.display = "flex"
        state.notice = "; ".join([*notes, *state.result.warnings])

    # ---- what it shows, as data ----

    def table(self) -> pd.DataFrame:
        """All that is shown: columns split (component, head, neuron), part, layer, unit, logits; of the neurons the
        first ones.
        """
        state = self.state
        if state.result is None:
            return pd.DataFrame()
        tables = [views.parts_table(state.result).assign(split="component")]
        if state.heads is not None:
            tables.append(views.parts_table(state.heads).query("unit >= 0").assign(split="head"))
        if state.neurons is not None:
            tables.append(views.top_neurons(state.neurons, N_NEURONS).assign(split="neuron"))
        return pd.concat(tables, ignore_index=True)[["split", "part", "layer", "unit", "logits"]]

    def figures(self) -> dict[str, go.Figure]:
        """Bars of components, the map of heads, bars of the first neurons."""
        state = self.state
        if state.result is None:
            return {}
        found = {"attribution_components": views.components(state.result)}
        if state.heads is not None:
            found["attribution_heads"] = views.heads(state.heads)
        return found | (
            {"attribution_neurons": views.neurons(state.neurons, N_NEURONS)} if state.neurons is not None else {}
        )

    # ---- drawing ----

    def _draw(self) -> None:
        state = self.state
        if state.result is None:
            return
        bars = views.components(state.result)
        draw(self.bars, bars.update_layout(height=bars.layout.height - SHORTER))
        self.sums.value = _sums(state.result)
        self.neuron_table.value = "" if state.neurons is None else _neurons(state.neurons)
        if state.heads is not None:
            values = views.head_map(state.heads)
            pooled = self.grid.show(
                values,
                range(values.shape[0]),
                range(values.shape[1]),
                x_title="head",
                y_title="layer",
                unit="logits",
                alt=views.heads_alt(state.heads),
            )
            state.notice = pooled or state.notice

    # ---- clicks ----

    def _choose(self) -> None:
        if self.grid.chosen is None:
            return
        with self.state.hold_trait_notifications():
            self.state.layer, self.state.head = self.grid.chosen
        if self.opened is None:
            self.opened = Attention(self.model)
            self.inside.children = (self.opened,)
        self.opened.show_head(self.state.layer, self.state.head, self.state.ran)


def _sums(result: Result) -> str:
    """Answer, logit and the sum of the parts, as HTML."""
    logit, total = float(result.data["logit"].values[0]), float(result.data["attribution"].sum("part").values[0])
    return (
        f"<p>The {html.escape(views.of_what(result))} after the last token is <b>{logit:.3f}</b>; the"
        f" {result.data.sizes['part']} parts add up to <b>{total:.3f}</b> (gap {abs(total - logit):.1e}). Convention:"
        f" {html.escape(result.data.attrs['convention'])}.</p>"
    )


def _neurons(result: Result) -> str:
    said, table = views.neurons_said(result, N_NEURONS)
    shown = table.rename(columns={"unit": "neuron"})[["layer", "neuron", "logits"]]
    return (
        f"<p><b>Neurons</b> that add most ({said})</p><div"
        f" style='line-height:1.4'>{shown.to_html(index=False, border=0, float_format=lambda x: f'{x:+.3f}')}</div>"
    )
