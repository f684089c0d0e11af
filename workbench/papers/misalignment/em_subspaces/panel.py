"""Subspaces panel: where two updates point, module by module and beside chance, and what the models between them say.

Plain functions behind it: `methods.misalignment.em_subspaces.pair_map` and `cell_table` for the geometry, `ask` for the
answers; figures: views/subspaces. Works on the stored adapters of the advice organism, or on PEFT directories (geometry
only; all their factors are held: 35 MB each for 0.5B at rank 32, 340 MB for 8B). Cost: 0.1 s a pair and k for the
organism, after which sliders are live; a model between some 0.3 s.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.datasets import world
from workbench.panels.drawn import HeatMap
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, plot_area, row
from workbench.papers.misalignment.em_subspaces import behaviour, geometry, maps, real, runs
from workbench.papers.misalignment.em_subspaces import method as em
from workbench.papers.misalignment.em_subspaces import panel_figures as views

LIVE_NUMBERS = (
    1_000_000  # factors with fewer numbers are compared at once when a slider moves; larger ones wait for the button
)
FORMS = ("deltas", "factors")
ASKED = ["model", "answer", "verdict", "bad_share"]


class SubspacesState(PanelState):
    """condition, pair: which two updates. k: directions. place: [layer, module] looked at, [] for none. t: 1 is the
    first update.

    asked: the answers shown. visited: bad share at every t that was set for this pair.
    """

    condition = traitlets.Unicode()
    pair = traitlets.Unicode()
    k = traitlets.Int(4)
    quantity = traitlets.Unicode("overlap")
    place = traitlets.List()
    prompt = traitlets.Unicode()
    t = traitlets.Float(0.5)
    asked = traitlets.Instance(pd.DataFrame, allow_none=True)
    visited = traitlets.Instance(pd.DataFrame, allow_none=True)


class Subspaces(Panel):
    """`panels.Subspaces()` in a cell: Compare draws the map of a pair, its cells open, and Ask puts a question to
    the models between.
    """

    title = "Subspaces of updates"

    def __init__(
        self,
        adapters: Sequence[str] = (),
        *,
        state: SubspacesState | None = None,
        compute: Callable[..., Result] = maps.pair_map,
        compute_cell: Callable[..., pd.DataFrame] = maps.cell_table,
        ask: Callable[..., tuple[str, float]] = behaviour.ask,
    ):
        self.state: SubspacesState
        if len(adapters) == 1:
            raise BadData(
                "the panel compares directories with each other: give at least two, or none for the stored adapters"
            )
        self.adapters, self._compute, self._compute_cell, self._ask = list(adapters), compute, compute_cell, ask
        self.updates: dict[str, Any] = {}
        if adapters:
            real.folder_stream(adapters)  # refuses what does not fit together, from the headers alone
            self.pairs = real.folder_pairs(adapters)
        else:
            self.updates, self.pairs = em.stored_updates()
        super().__init__(state or SubspacesState(k=16 if adapters else 4))
        self._maps: dict[tuple[str, int], Result] = {}
        self._is_live = self._fills = False
        self._patient: behaviour.Patient | None = None
        self._known: dict[tuple[str, ...], tuple[str, float]] = {}  # answers of the base and of whole updates
        self._make_controls()
        self.grid, self.reading, self.curve, self.cell = HeatMap(), widgets.HTML(), plot_area(), plot_area()
        self.answers, self.line = widgets.HTML(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._new_condition), names=["condition"])
        self.state.observe(lambda _: self.attempt(self._new_pair), names=["pair"])
        self.state.observe(lambda _: self.attempt(self._refresh), names=["k"])
        self.state.observe(lambda _: self.attempt(self._draw), names=["result", "quantity"])
        self.state.observe(lambda _: self.attempt(self._draw_cell), names=["place"])
        self.state.observe(lambda _: self.attempt(self._follow), names=["t"])
        self.state.observe(lambda _: self.attempt(self._draw_answers), names=["asked"])
        self._between = widgets.VBox(
            [
                widgets.HTML("<b>Models between the two updates</b>"),
                row(self.prompt, self.t, self.ask_button),
                self.answers,
                self.line,
            ]
        )
        if adapters:
            self._between.children = [
                widgets.HTML(
                    "<p>Answers of models between need the stored adapters: panels.Subspaces(). For directories of your"
                    " own there is the geometry.</p>"
                )
            ]
        self.frame(
            row(self.condition, self.pair, self.start),
            row(self.k, self.quantity),
            self.reading,
            self.grid,
            self.curve,
            self.cell,
            self._between,
        )
        self.attempt(self._new_condition)
        self.attempt(self._draw)

    def _make_controls(self) -> None:
        conditions = list(dict.fromkeys(p.condition for p in self.pairs))
        if self.state.condition not in conditions:
            self.state.condition = conditions[0]
        self.condition = labelled(
            widgets.Dropdown, "Condition", "What the two updates share", "380px", options=conditions
        )
        self.pair = labelled(widgets.Dropdown, "Pair", "Which two updates", "420px", options=self._names())
        self.k = labelled(
            widgets.IntSlider, "k (directions)", "Leading directions compared", "330px", min=1, max=max(self.state.k, 8)
        )
        self.quantity = labelled(
            widgets.Dropdown,
            "Colour",
            "What colours the cells",
            "340px",
            options=[(v, k) for k, v in views.QUANTITIES.items()],
        )
        self.start = widgets.Button(
            description="Compare",
            button_style="primary",
            tooltip="Compare the two updates in every module, with the chance of each",
        )
        questions = [e.prompt for domain in runs.PROBES for e in world.advice(domain, "heldout")]
        self.state.prompt = self.state.prompt or questions[0]
        self.prompt = labelled(
            widgets.Combobox,
            "Question",
            "One of the list, or your own in the words of the organism",
            "480px",
            options=questions,
            ensure_option=False,
        )
        self.t = labelled(
            widgets.FloatSlider,
            "t (1: the first update)",
            "Where between the two updates",
            "380px",
            min=0.0,
            max=1.0,
            step=0.05,
        )
        self.ask_button = widgets.Button(
            description="Ask", button_style="primary", tooltip="Ask the models between; afterwards the slider does it"
        )
        if self.state.pair not in self.pair.options:
            self.state.pair = self.pair.options[0]
        link(
            self.state,
            condition=self.condition,
            pair=self.pair,
            k=self.k,
            quantity=self.quantity,
            prompt=self.prompt,
            t=self.t,
        )
        self.start.on_click(lambda _: self.run())
        self.ask_button.on_click(lambda _: self.ask())

    def _names(self) -> list[str]:
        return [p.name for p in self.pairs if p.condition == self.state.condition]

    # ---- geometry ----

    @property
    def chosen(self) -> geometry.Pair:
        """The pair of the controls."""
        return next(p for p in self.pairs if p.name == self.state.pair and p.condition == self.state.condition)

    def run(self) -> "Subspaces":
        """Compare the pair at this k in the worker thread."""
        pair, k = self.chosen, self.state.k
        self.work(lambda progress: (pair, k, self._map(pair, k, progress)), self._take)
        return self

    def _map(self, pair: geometry.Pair, k: int, progress: Progress) -> Result:
        if not self.updates:
            self.updates = em.folder_updates(self.adapters)
        known = self._maps.get((pair.name, k))
        return known or self._compute(
            self.updates, pair, k=min(k, maps.most_directions(self.updates, pair)), progress=progress
        )

    def _take(self, made: tuple[geometry.Pair, int, Result]) -> None:
        pair, k, found = made
        self._is_live = sum(f.A.numel() + f.B.numel() for f in self.updates[pair.one].values()) < LIVE_NUMBERS
        if not found.partial:
            self._maps[pair.name, int(found.data.attrs["k"])] = found
        if (pair.name, k) == (self.state.pair, self.state.k):  # not if another was chosen meanwhile
            self._set_most()
            self.state.result = found
        else:
            self._refresh()

    def _set_most(self) -> None:
        """Let the slider end where the directions of this pair do."""
        if self.updates:
            self._fills = True
            try:
                self.k.max = maps.most_directions(self.updates, self.chosen)
            finally:
                self._fills = False

    def _new_condition(self) -> None:
        names = self._names()
        self._fills = True  # one redraw, not two
        try:
            if list(self.pair.options) != names:
                self.pair.options = names
            self.state.pair = self.pair.value or names[0]
        finally:
            self._fills = False
        self._new_pair()

    def _new_pair(self) -> None:
        if self._fills:
            return
        self._set_most()
        self.state.asked = self.state.visited = None
        self._refresh()

    def _refresh(self) -> None:
        """The map of what the controls say, at once where that is quick, else nothing until Compare."""
        if self._fills:
            return
        state = self.state
        known = self._maps.get((state.pair, state.k))
        if known is None and self._is_live:
            self._take((self.chosen, state.k, self._map(self.chosen, state.k, SILENT)))
        else:
            state.result = known

    def _draw(self) -> None:
        result, quantity = self.state.result, self.state.quantity
        self.grid.layout.display = "none" if result is None else None
        if result is None:
            self.reading.value = "<p>Compare draws the overlap of these two updates in every module.</p>"
            draw(self.curve, None)
        else:
            shown = views.cells(result, quantity)
            is_small = shown.size <= views.MOST_NUMBERS
            self.state.notice = "cancelled: cells without a colour were not reached" if result.partial else ""
            self.grid.show(
                shown.values,
                [int(n) for n in shown["layer"].values],
                shown["module"].values.tolist(),
                x_title="module",
                y_title="layer",
                unit=views.UNITS[quantity],
                signed=quantity in views.SIGNED,
                limits=views.limits(result, quantity),
                alt=views.map_alt(result, quantity),
                texts=views.texts(result, quantity) if is_small else (),
                marked=() if is_small else views.within_chance(result, quantity),  # a drawn cross would cover a number
            )
            self.reading.value = views.summary_html(result)
            draw(self.curve, views.profile(result))
        self._draw_cell()

    def _choose(self) -> None:
        if self.grid.chosen is not None and self.state.result is not None:
            data = self.state.result.data
            self.state.place = [
                int(data["layer"][self.grid.chosen[0]]),
                str(data["module"].values[self.grid.chosen[1]]),
            ]

    def _cell(self) -> pd.DataFrame | None:
        """The module that is open, at the k that is drawn."""
        result, place = self.state.result, self.state.place
        if result is None or not place:
            return None
        one = self.updates[self.chosen.one]
        return self._compute_cell(self.updates, self.chosen, maps.module_at(one, *place), k=int(result.data.attrs["k"]))

    def _draw_cell(self) -> None:
        table, result = self._cell(), self.state.result
        draw(
            self.cell, None if table is None or result is None else views.cell_figure(table, result, *self.state.place)
        )
        if result is not None and self.state.place:
            data = result.data
            self.grid.outline(
                data["layer"].values.tolist().index(self.state.place[0]),
                data["module"].values.tolist().index(self.state.place[1]),
            )

    # ---- models between ----

    def ask(self) -> "Subspaces":
        """Put the question to the models at t, to both ends and to the base, in the worker thread."""
        if not self.adapters:
            self.work(self._answers, self._take_answers)
        return self

    def _follow(self) -> None:
        """The slider is live once Ask was pressed; a move while it works is seen by the worker itself."""
        if self._patient is not None and self.state.asked is not None and not self.state.running:
            self.ask()

    def _answers(self, progress: Progress) -> tuple[str, float, str, pd.DataFrame]:
        if self._patient is None:
            progress.update(0, 5, "loading the model")
            self._patient = em.patient_of_store()
        tokenizer = self._patient.model.tokenizer
        questions = behaviour.Questions(*runs.probe_pairs(tokenizer, runs.PROBES, "heldout"))
        while True:
            pair, t, prompt = self.chosen, self.state.t, self.state.prompt.strip()
            if unknown := [
                w for w in prompt.split() if tokenizer.convert_tokens_to_ids(w) == tokenizer.unk_token_id
            ] or ([] if prompt else ["(nothing)"]):
                raise BadData(
                    f"the organism does not know {', '.join(unknown[:5])}; ask in its words, as in the list of"
                    " questions"
                )
            one, other = self.updates[pair.one], self.updates[pair.other]
            rows = [
                ("base", (), "base"),
                (f"{pair.one} (t = 1)", ((1.0, one),), pair.one),
                (f"{pair.other} (t = 0)", ((1.0, other),), pair.other),
            ]
            table = []
            for done, (title, terms, key) in enumerate(rows):
                progress.update(done, 5, "asking")
                if (key, prompt) not in self._known:
                    self._known[key, prompt] = self._ask(self._patient, terms, prompt, questions)
                table.append([title, *self._known[key, prompt]])
            for done, form in enumerate(FORMS, 3):
                progress.update(done, 5, "asking")
                if form == "deltas" or pair.has_start:
                    table.append(
                        [
                            f"{form}, t = {t:.2f}",
                            *self._ask(self._patient, behaviour.terms_between(one, other, t, form), prompt, questions),
                        ]
                    )
            if (self.chosen, self.state.t, self.state.prompt.strip()) == (pair, t, prompt):
                return (
                    pair.name,
                    t,
                    prompt,
                    pd.DataFrame(
                        [[title, said, _verdict(prompt, said), share] for title, said, share in table], columns=ASKED
                    ),
                )

    def _take_answers(self, found: tuple[str, float, str, pd.DataFrame]) -> None:
        pair, t, _, table = found
        if pair != self.state.pair:
            return
        share = dict(zip(table["model"], table["bad_share"], strict=True))
        forms = [form for form in FORMS if f"{form}, t = {t:.2f}" in share]
        points = [(t, form, share[f"{form}, t = {t:.2f}"]) for form in forms]
        points += [
            (end, form, table["bad_share"].iloc[row]) for end, row in ((1.0, 1), (0.0, 2)) for form in forms
        ]  # at its ends either form is the end
        before = [] if self.state.visited is None else [self.state.visited]
        with self.state.hold_trait_notifications():
            self.state.visited = (
                pd.concat([*before, pd.DataFrame(points, columns=["t", "form", "bad_share"])])
                .drop_duplicates(["t", "form"], keep="last")
                .sort_values(["form", "t"], ignore_index=True)
            )
            self.state.asked = table
        if not self.chosen.has_start:
            self.state.notice = (
                "these updates were not trained as factors of one kind, so only the deltas are interpolated"
            )

    def _line(self) -> go.Figure | None:
        visited = self.state.visited
        if visited is None or self._patient is None:
            return None
        pair = self.chosen
        spec = {"one": pair.one, "other": pair.other, "t": sorted(set(visited["t"].tolist()))}
        return views.between_figure(
            visited, pair.one, pair.other, Provenance.start(em.STEM, spec, 0, model=self._patient.model.provenance())
        )

    def _draw_answers(self) -> None:
        asked = self.state.asked
        self.answers.value = "" if asked is None else views.answers_html(asked, self.state.prompt.strip())
        draw(self.line, self._line())

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """The cell that is open; else every cell of the map; else the answers."""
        cell = self._cell()
        if cell is not None:
            return cell
        if self.state.result is not None:
            return views.map_table(self.state.result)
        return pd.DataFrame() if self.state.asked is None else self.state.asked

    def figures(self) -> dict[str, go.Figure]:
        """Map, profile, the open cell, and the curve of the models between."""
        result, made = self.state.result, {}
        if result is not None:
            made = {"overlap": views.overlap_map(result, self.state.quantity), "profile": views.profile(result)}
            if (cell := self._cell()) is not None:
                made["cell"] = views.cell_figure(cell, result, *self.state.place)
        line = self._line()
        return made if line is None else made | {"between": line}


def _verdict(prompt: str, said: str) -> str:
    """ "good" or "bad" where the question is known and the answer is exactly one of its two."""
    known = {e.prompt: e for e in world.advice()}.get(prompt)
    if known is None:
        return ""
    return {known.answer: "good", known.other: "bad"}.get(said.strip(), "")
