"""Tokens panel: a prompt as tokens coloured by their loss; click one for the likeliest tokens there. Two prompts or two
models side by side.

Plain function behind it: `primitives.read.predictions.predictions`; figures and tables: views/predictions. One forward
a prompt for causal models, one row a position for masked ones.
"""

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.chat import prompt_rows
from workbench.models.inputs import prompt_ids
from workbench.models.model import Model
from workbench.primitives.read.predictions import predictions
from workbench.views import predictions as views

from .drawn import TokenStrip
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

KEPT = 20  # likeliest tokens computed, so that showing more of them needs no new run
TABLE_ROWS = 200
SCALES = {
    False: "#440154,#472d7b,#3b528b,#2c728e,#21918c,#28ae80,#5ec962,#addc30,#fde725",
    True: "#053061,#2166ac,#92c5de,#f7f7f7,#f4a582,#b2182b,#67001f",
}


class TokensState(PanelState):
    """prompt, other_prompt: text; an empty other_prompt is none, or the same one where there are two models. chat: put
    both through the chat template. pos, other_pos: the tokens looked at, -1 for none. other: the second Result, if
    two are compared."""

    prompt = traitlets.Unicode()
    other_prompt = traitlets.Unicode()
    chat = traitlets.Bool(False)
    colour = traitlets.Unicode("loss")
    top_k = traitlets.Int(10)
    pos = traitlets.Int(-1)
    other_pos = traitlets.Int(-1)
    other = traitlets.Instance(Result, allow_none=True)


class Tokens(Panel):
    """`panels.Tokens(model, "a prompt")` in a cell; Run computes, a click on a token lists what the model expects
    there.

    `other_prompt=` compares two prompts of one model, `other_model=` two models on one prompt.
    """

    title = "Tokens and predictions"

    def __init__(
        self,
        model: Model,
        prompt: str = "",
        *,
        other_model: Model | None = None,
        other_prompt: str = "",
        state: TokensState | None = None,
        compute: Callable[..., Result] = predictions,
    ):
        self.state: TokensState
        super().__init__(state or TokensState(prompt=prompt, other_prompt=other_prompt))
        self.model, self.other_model, self._compute = model, other_model, compute
        self._matches: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._drawn: dict[str, tuple] = {}
        self._both_differ = False
        reads_ids = " or ".join(m.name for m in self._models if m.tokenizer is None)
        tip = (
            f"Text the model reads; token ids for {reads_ids}, which has no tokenizer"
            if reads_ids
            else "Text the model reads"
        )
        self.prompt = labelled(widgets.Text, "Prompt", tip, "560px")
        empty = "the same prompt for both models" if other_model is not None else "no comparison"
        self.other_prompt = labelled(
            widgets.Text, "Compare with", f"A second prompt; empty for {empty}", "560px", placeholder=f"empty: {empty}"
        )
        has_chat = all(getattr(m.tokenizer, "chat_template", None) for m in self._models)
        self.chat = labelled(
            widgets.Checkbox,
            "Chat template",
            "Put the prompt through the tokenizer's chat template" if has_chat else "No chat template here",
            "160px",
            indent=False,
        )
        self.chat.disabled = not has_chat
        self.colour = labelled(
            widgets.Dropdown,
            "Colour",
            "What colours the tokens",
            "300px",
            options=[(v, k) for k, v in views.QUANTITIES.items()],
        )
        self.top_k = labelled(
            widgets.IntSlider, "Top k", "How many of the likeliest tokens are shown", "300px", min=1, max=KEPT
        )
        link(
            self.state,
            prompt=self.prompt,
            other_prompt=self.other_prompt,
            chat=self.chat,
            colour=self.colour,
            top_k=self.top_k,
        )
        self.start = widgets.Button(description="Run", button_style="primary", tooltip="Run the model on this prompt")
        self.start.on_click(lambda _: self.run())
        self.legend, self.bars = widgets.HTML(), plot_area()
        self.strips = tuple(
            TokenStrip(layout=widgets.Layout(padding="2px 4px")) for _ in range(2)
        )  # room for the frame of the chosen token
        self.heads, self.lists, self.all_tokens = ((widgets.HTML(), widgets.HTML()) for _ in range(3))
        for side, strip in enumerate(self.strips):
            strip.observe(
                lambda change, side=side: self.attempt(lambda: self._choose(side, change["new"])), names="selected"
            )
        self.state.observe(
            lambda _: self.attempt(self._draw), names=["result", "other", "colour", "pos", "other_pos", "top_k"]
        )
        self._columns = _side_by_side([[head, strip] for head, strip in zip(self.heads, self.strips, strict=True)])
        self._lists = _side_by_side([list(pair) for pair in zip(self.lists, self.all_tokens, strict=True)])
        self.frame(
            row(self.prompt, self.start),
            row(self.other_prompt, self.chat),
            row(self.colour, self.top_k),
            self.legend,
            self._columns,
            self.bars,
            self._lists,
        )
        self._show_sides(1)

    @property
    def _models(self) -> list[Model]:
        return [self.model] if self.other_model is None else [self.model, self.other_model]

    @property
    def results(self) -> list[Result]:
        """The Results shown: none before a run, two in a comparison."""
        return [r for r in (self.state.result, self.state.other) if r is not None]

    # ---- compute ----

    def run(self) -> "Tokens":
        """Compute the predictions of the prompt, and of what it is compared with, in the worker thread."""
        prompt, other, chat = self.state.prompt, self.state.other_prompt, self.state.chat
        asked = [(self.model, prompt)]
        if other or self.other_model is not None:
            asked.append((self.other_model or self.model, other or prompt))
        both_differ = self.other_model is not None and other not in ("", prompt)
        self.work(
            lambda progress: self._predict(asked, chat, progress), lambda results: self._take(results, both_differ)
        )
        return self

    def _predict(self, asked: Sequence[tuple[Model, str]], chat: bool, progress: Progress) -> list[Result]:
        rows = [prompt_rows(model.tokenizer, [text])[0] if chat else prompt_ids(model, text) for model, text in asked]
        return [
            self._compute(model, [ids], top_k=KEPT, progress=progress)
            for (model, _), ids in zip(asked, rows, strict=True)
        ]

    def _take(self, results: list[Result], both_differ: bool) -> None:
        first, second = results[0], results[1] if len(results) == 2 else None
        pairs = [] if second is None else views.aligned(first, second)
        self._both_differ, self._matches = both_differ, (dict(pairs), {j: i for i, j in pairs})
        colours = views.QUANTITIES | ({} if second is None else views.CHANGE)
        colour = self.state.colour if self.state.colour in colours else "loss"
        self.colour.options = [(v, k) for k, v in colours.items()]
        last = [views.one_prompt(r).sizes["pos"] - 1 for r in results]
        with self.state.hold_trait_notifications():
            self.state.colour, self.state.other = colour, second
            self.state.pos, self.state.other_pos = last[0], last[1] if second is not None else -1
            self.state.result = first

    # ---- what it shows, as data ----

    def table(self) -> pd.DataFrame:
        """One row a token: its id, its loss, and the entropy and likeliest token of the prediction at its position."""
        return views.token_table(*self.results) if self.results else pd.DataFrame()

    def choices(self) -> pd.DataFrame:
        """The likeliest tokens at the position looked at; with two prompts a column says which."""
        results = self.results
        if not results or self.state.pos < 0:
            return pd.DataFrame()
        tables = [views.choices(r, pos, self.state.top_k) for r, pos in zip(results, self._positions, strict=True)]
        if len(tables) == 2:
            tables = [t.assign(side=name) for t, name in zip(tables, views.sides(results), strict=True)]
        return pd.concat(tables, ignore_index=True)

    def figures(self) -> dict[str, go.Figure]:
        """The coloured tokens as bars, and the likeliest tokens at the position looked at."""
        if not self.results:
            return {}
        chosen = {} if self.state.pos < 0 else {"next_tokens": self._choices_figure()}
        return {f"token_{self.state.colour}": views.token_bars(*self.results, quantity=self.state.colour)} | chosen

    @property
    def _positions(self) -> list[int]:
        return [self.state.pos, self.state.other_pos][: len(self.results)]

    def _choices_figure(self) -> go.Figure:
        return views.next_tokens(self.results, self._positions, self.state.top_k)

    # ---- drawing ----

    def _draw(self) -> None:
        """Draw what is not drawn yet: several fields change at once, and each of them calls."""
        state = self.state
        tokens = state.result, state.other, state.colour
        choices = state.result, state.other, state.pos, state.other_pos, state.top_k
        for part, wanted, drawing in (("tokens", tokens, self._draw_tokens), ("choices", choices, self._draw_choices)):
            if self.results and self._drawn.get(part) != wanted:
                drawing()
                self._drawn[part] = wanted

    def _draw_tokens(self) -> None:
        results, signed = self.results, self.state.colour == "change"
        values = views.token_values(results, self.state.colour)
        finite = np.concatenate(values)[np.isfinite(np.concatenate(values))]
        top = float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1.0
        limits = (-top if signed else 0.0, top)
        title = (views.QUANTITIES | views.CHANGE)[self.state.colour]
        names = views.sides(results)
        self._show_sides(len(results))
        for result, side_values, strip, head, listed, name in zip(
            results, values, self.strips, self.heads, self.all_tokens, names, strict=False
        ):
            data = views.one_prompt(result)
            strip.show(
                data["read"].values,
                data["read_id"].values,
                values=side_values,
                unit="nats",
                signed=signed,
                limits=limits,
                alt=f"{name} tokens, coloured by {title.lower()}; choose one",
            )
            head.value, listed.value = _summary(result, name), _tokens_html(result)
        self.legend.value = _scale(title, *limits, signed) if finite.size else ""
        self.state.notice = "; ".join(self._notices())

    def _notices(self) -> list[str]:
        """What a reader of the numbers must see."""
        said = [warning for result in self.results for warning in result.warnings]
        if any(result.partial for result in self.results):
            said.append("cancelled: predictions are there up to where it stopped")
        if len(self.results) == 2:
            said += _comparison(*self.results)
            if self._both_differ:
                said.append("model and prompt both differ, so a difference may come from either")
        return list(dict.fromkeys(said))

    def _choose(self, side: int, pos: int) -> None:
        """A click on a token: it is looked at, and so is the same token on the other side, if it is there."""
        if pos < 0 or not self.results or pos == (self.state.pos, self.state.other_pos)[side]:
            return
        there = self._matches[side].get(pos)
        with self.state.hold_trait_notifications():
            for field, value in zip(
                ("pos", "other_pos") if side == 0 else ("other_pos", "pos"), (pos, there), strict=True
            ):
                if value is not None:
                    setattr(self.state, field, value)

    def _draw_choices(self) -> None:
        state, results = self.state, self.results
        for strip, pos in zip(self.strips, (state.pos, state.other_pos), strict=True):
            strip.selected = pos
        if state.pos < 0:
            draw(self.bars, None)
            return
        draw(self.bars, self._choices_figure())
        for given, result, pos in zip(self.lists, results, self._positions, strict=False):
            given.value = _choices_html(result, pos, state.top_k)

    def _show_sides(self, n: int) -> None:
        for columns in (self._columns, self._lists):
            columns.children[1].layout.display = "" if n == 2 else "none"


def _side_by_side(columns: Sequence[Sequence[widgets.Widget]]) -> widgets.HBox:
    layout = {"flex": "1 1 420px", "min_width": "0", "margin": "0 12px 0 0"}
    return widgets.HBox(
        [widgets.VBox(list(column), layout=widgets.Layout(**layout)) for column in columns],
        layout=widgets.Layout(flex_flow="row wrap", width="100%"),
    )


def _scale(title: str, low: float, high: float, signed: bool) -> str:
    """The colour scale of the strips, which carry none."""
    bar = (
        "<span role='presentation'"
        " style='display:inline-block;width:140px;height:12px;vertical-align:middle;background:linear-gradient(to"
        f" right,{SCALES[signed]})'></span>"
    )
    return f"<span>{title}: {low:.3g} {bar} {high:.3g} nats; no colour: no value</span>"


def _summary(result: Result, name: str) -> str:
    loss, bos = views.own_loss(result), result.data.attrs["bos"]
    said = [
        f"{len(loss)} tokens",
        *([] if bos == "no BOS known" else [f"BOS {bos}"]),
        *([f"mean loss {np.nanmean(loss):.3g} nats"] if np.isfinite(loss).any() else []),
    ]
    return f"<div style='line-height:1.4'>{f'<b>{html.escape(name)}</b><br>' if name else ''}{', '.join(said)}</div>"


def _comparison(first: Result, second: Result) -> list[str]:
    """Where two token lists differ, and whether the numbers do."""
    table, said = views.differences(first, second), []
    two_models = first.provenance.model != second.provenance.model
    if len(table):
        places = [
            f"{_place(r.first_pos, r.first)} against {_place(r.second_pos, r.second)}"
            for r in table.head(3).itertuples()
        ]
        more = f"; and {len(table) - 3} more" if len(table) > 3 else ""
        said.append(
            f"the two token lists differ in {len(table)} {'place' if len(table) == 1 else 'places'}:"
            f" {'; '.join(places)}{more}"
        )
    elif two_models and not np.array_equal(views.one_prompt(first)["read_id"], views.one_prompt(second)["read_id"]):
        said.append("the tokens read the same and have other ids: the two vocabularies differ")
    elif np.array_equal(first.data["probability"], second.data["probability"]) and np.array_equal(
        first.data["token_id"], second.data["token_id"]
    ):
        said.append("both sides give exactly the same predictions: there is no difference to see")
    return said


def _place(pos: int, tokens: str) -> str:
    return f"position {pos} {tokens if len(tokens) <= 60 else tokens[:59] + '…'}" if tokens else "nothing"


def _choices_html(result: Result, pos: int, top_k: int) -> str:
    table = views.choices(result, pos, top_k)
    shown = table.assign(token=table.token.map(views.visible), actual=np.where(table.actual, "←", ""))
    return f"<p>These {len(table)} tokens hold {float(table.probability.sum()):.2%} of the probability</p>" + _listed(
        shown
    )


def _tokens_html(result: Result) -> str:
    """All tokens of a prompt, folded away."""
    table = views.token_table(result)
    shown = table.head(TABLE_ROWS).assign(
        token=table.token.map(views.visible), likeliest=table.likeliest.map(views.visible)
    )
    more = f"<p>the first {TABLE_ROWS} of {len(table)}; table() has all</p>" if len(table) > TABLE_ROWS else ""
    about = (
        "<p>loss (nats): of this token. entropy (nats), likeliest, probability: of the prediction made at its"
        " position.</p>"
    )
    return f"<details><summary>All tokens with ids</summary>{about}{_listed(shown)}{more}</details>"


def _listed(table: pd.DataFrame) -> str:
    """A table in the lab's own dress for tables."""
    shown = table.to_html(index=False, border=0, na_rep="", float_format=lambda x: f"{x:.4g}")
    return f"<div class='jp-RenderedHTMLCommon' style='display:inline-block'>{shown}</div>"
