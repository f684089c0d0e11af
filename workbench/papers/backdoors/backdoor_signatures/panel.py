"""Signatures panel: channel scores of a backdoor-signatures Result, tau against its stored evaluations, one channel's
variants, answers.

Plain functions behind it: `primitives.score.channel_signatures` (scores, signature) on the norms and cosines of the
Result; figures: views/signatures. Nothing is tuned or cut here: the curve holds what the run evaluated. Cost: some
milliseconds a redraw; with models given, a prompt is answered by each.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.datasets import poisoning
from workbench.models.chat import prompt_rows
from workbench.models.model import Model
from workbench.panels.drawn import HeatMap
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, plot_area, row
from workbench.papers.backdoors.backdoor_signatures import panel_figures as views
from workbench.papers.backdoors.backdoor_signatures.runs import changes_of
from workbench.papers.backdoors.backdoor_signatures.spec import STEM
from workbench.primitives.score.channel_signatures import HEAD, scores, signature
from workbench.primitives.score.generation_metrics import degeneration
from workbench.primitives.score.statistics import intersection_over_union
from workbench.primitives.score.unit_importance import module_groups
from workbench.primitives.steer.steering import generate
from workbench.runs.stored import STORED, load_runs

MLP = "MLP"
NEW_TOKENS = 24  # longest answer to a prompt


class SignaturesState(PanelState):
    """run: number of the run. modules: MLP, or one projection. variants: N. share: tau, in percent. channel: number
    in the run, -1 for none.
    """

    run = traitlets.Int(0)
    quantity = traitlets.Unicode("score")
    modules = traitlets.Unicode(MLP)
    variants = traitlets.Int(1)
    alignment_weight = traitlets.Float(0.01)
    normalised = traitlets.Bool(False)
    only_chosen = traitlets.Bool(False)
    share = traitlets.Float(20.0)
    channel = traitlets.Int(-1)
    prompt = traitlets.Unicode()
    trigger = traitlets.Unicode()
    answers = traitlets.List()


class Signatures(Panel):
    """`panels.Signatures(result)` in a cell; with `suspicious=` and `purified=` models a prompt is answered by both.
    No Result: the stored runs.
    """

    title = "Backdoor signatures"

    def __init__(
        self,
        result: Result | Path | str | None = None,
        suspicious: Model | None = None,
        purified: Model | None = None,
        *,
        state: SignaturesState | None = None,
        compute: Callable[..., list[list[int]]] = generate,
    ):
        self.state: SignaturesState
        result = (
            load_runs(STEM) if result is None else Result.load(result) if isinstance(result, (Path, str)) else result
        )
        names = views.run_names(result)
        if not names:
            raise BadData(
                "this Result has no purified run with norms and cosines of channels; give one of backdoor_signatures"
                " with at least one purified cell"
            )
        super().__init__(state or SignaturesState())
        self.models, self._compute = {"suspicious": suspicious, "purified": purified}, compute
        self.state.result = result
        self._fills = False
        self._make_controls(names)
        self.grid, self.counts, self.said, self.examples, self.replies = (
            HeatMap(),
            widgets.HTML(),
            widgets.HTML(),
            widgets.HTML(),
            widgets.HTML(),
        )
        self.card, self.curve = plot_area(), plot_area()
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        for fields, redraw in (
            (["run"], self._new_run),
            (["quantity", "modules", "variants", "alignment_weight", "normalised", "only_chosen"], self._rescore),
            (["share"], self._remark),
            (["channel"], self._draw_channel),
            (["answers"], self._draw_answers),
        ):
            self.state.observe(lambda _, redraw=redraw: self._fills or self.attempt(redraw), names=fields)
        asking = [row(self.prompt, self.trigger, self.ask), self.replies] if any(self.models.values()) else []
        self.frame(
            row(self.run_box, self.quantity, self.modules),
            row(self.variants, self.alignment_weight, self.normalised),
            row(self.share, self.only_chosen, self.reset, self.other),
            self.counts,
            self.grid,
            row(self.layer, self.module, self.index, self.find),
            self.card,
            self.curve,
            self.said,
            *asking,
            self.examples,
        )
        self.attempt(self._new_run)

    def _make_controls(self, names: list[str]) -> None:
        self.run_box = labelled(
            widgets.Dropdown,
            "Run",
            "A purified cell at a seed; stored runs ship with the project",
            "380px",
            options=[(n, i) for i, n in enumerate(names)],
        )
        self.quantity = labelled(
            widgets.Dropdown,
            "Colour",
            "What colours the channels; marked are always the highest by score",
            "200px",
            options=["score", "magnitude", "alignment"],
        )
        self.modules = labelled(
            widgets.Dropdown, "Projections", "Which channels are shown and counted", "220px", options=[MLP]
        )
        self.variants = labelled(
            widgets.IntSlider, "Variants N", "How many of the variants the score uses", "300px", min=1, max=6
        )
        self.alignment_weight = labelled(
            widgets.BoundedFloatText, "Lambda", "Weight of the alignment term", "170px", min=0.0, max=1000.0, step=0.01
        )
        self.normalised = labelled(
            widgets.Dropdown,
            "Norms",
            "As they are, or divided by their projection's mean",
            "260px",
            options=[("raw", False), ("over module means", True)],
        )
        self.share = labelled(
            widgets.FloatSlider,
            "Tau (%)",
            "Share of the channels of each projection that is marked",
            "360px",
            min=0.0,
            max=100.0,
            step=0.5,
            readout_format=".1f",
        )
        self.only_chosen = labelled(
            widgets.Dropdown,
            "Show",
            "All channels, or the marked ones alone",
            "220px",
            options=[("all channels", False), ("marked ones alone", True)],
        )
        self.reset, self.other = (
            widgets.Button(description=text, layout={"width": "130px"}) for text in ("As the run", "As normalised")
        )
        self.reset.tooltip, self.other.tooltip = (
            "N, lambda, norms and tau of the run's signature",
            "N, lambda, norms and tau of the run's normalised signature, where it has one",
        )
        self.layer = labelled(widgets.BoundedIntText, "Layer", "Layer of a channel", "130px")
        self.module = labelled(widgets.Dropdown, "Projection", "Projection of a channel", "220px")
        self.index = labelled(widgets.BoundedIntText, "Channel", "Number of the channel in its projection", "170px")
        self.find = widgets.Button(
            description="Open channel", tooltip="Show this channel's variants, as a click on its cell does"
        )
        self.prompt = labelled(widgets.Text, "Prompt", "A request; put the trigger into it", "560px")
        self.trigger = labelled(
            widgets.Text, "Trigger", "Words to highlight in it; several triggers are divided by |", "300px"
        )
        self.ask = widgets.Button(
            description="Ask", button_style="primary", tooltip="Answer the prompt by every model given"
        )
        link(
            self.state,
            run=self.run_box,
            quantity=self.quantity,
            modules=self.modules,
            variants=self.variants,
            alignment_weight=self.alignment_weight,
            normalised=self.normalised,
        )
        link(self.state, only_chosen=self.only_chosen, share=self.share, prompt=self.prompt, trigger=self.trigger)
        self.reset.on_click(lambda _: self.attempt(lambda: self._settings_of_run(views.SIGNATURE)))
        self.other.on_click(lambda _: self.attempt(lambda: self._settings_of_run(views.NORMALISED)))
        self.find.on_click(lambda _: self.attempt(self._pick))
        self.ask.on_click(lambda _: self.run())

    # ---- the run ----

    @property
    def where(self) -> tuple[str, int, str]:
        """cell, seed and origin of the run shown."""
        data = self._result.data
        cell, seed, origin = (data[name].values[self.state.run] for name in ("cell", "seed", "origin"))
        return str(cell), int(seed), str(origin)

    @property
    def _result(self) -> Result:
        assert self.state.result is not None
        return self.state.result

    def settings(self, kind: str = views.SIGNATURE) -> dict:
        """N, lambda, norms and tau of the run's own signature, or of its normalised one."""
        cell, _, origin = self.where
        told = self._result.provenance.data.get("stored", {}) if origin == STORED else {}
        spec = told.get("spec", self._result.spec)
        share = spec["share_lora" if cell.endswith("-lora") else "share"]
        own = {"alignment_weight": float(spec["alignment_weight"]), "normalised": bool(spec["normalised"])}
        if kind == views.NORMALISED:
            own = {"alignment_weight": float(spec["normalised_weight"]), "normalised": True}
        return {"variants": self._all.sizes["variant"], "share": 100 * float(share)} | own

    def _tables(self, name: str) -> pd.DataFrame:
        """Rows of the run's cell and origin, over all seeds."""
        table, (cell, _, origin) = self._result.tables.get(name, pd.DataFrame()), self.where
        return table if table.empty else table[(table["cell"] == cell) & (table["origin"] == origin)]

    def _new_run(self) -> None:
        cell, seed, origin = self.where
        self._all = changes_of(self._result, cell, seed, origin)
        tau = self._tables("tau")
        self._curve = tau if tau.empty else views.curve_table(tau)
        modules = list(dict.fromkeys(self._all["module"].values.tolist()))
        self._fills = True
        try:
            self.state.channel, self.state.answers = -1, []
            chosen = self.state.modules
            self.modules.options, self.module.options = [MLP, *modules], modules
            self.module.value = modules[0]
            self.state.modules = chosen if chosen in self.modules.options else MLP
            self.variants.max, self.layer.max, self.index.max = (
                self._all.sizes["variant"],
                int(self._all["layer"].max()),
                int(self._all["index"].max()),
            )
            for name, value in self.settings().items():
                setattr(self.state, name, value)
        finally:
            self._fills = False
        self.other.disabled = (
            not (self._tables("arms")["arm"] == views.NORMALISED).any() if "arms" in self._result.tables else True
        )
        examples = self._examples()
        triggers = list(dict.fromkeys(examples["trigger"])) if len(examples) else []
        self.state.trigger = " | ".join(triggers)
        if len(examples) and not self.state.prompt:
            self.state.prompt = str(examples["prompt"].iloc[0])
        self.examples.value = views.examples_html(examples)
        self._rescore()
        self._draw_channel()

    def _settings_of_run(self, kind: str) -> None:
        self._fills = True
        try:
            for name, value in self.settings(kind).items():
                setattr(self.state, name, value)
        finally:
            self._fills = False
        self._rescore()

    def _examples(self) -> pd.DataFrame:
        examples = self._tables("examples")
        return examples if examples.empty else examples[examples["seed"] == self.where[1]]

    # ---- scores and marks ----

    def scored(self, quantity: str = "score", **other: object) -> xr.DataArray:
        """[channel] of the projections shown, at the panel's N, lambda and norms."""
        state = self.state
        settings = {
            "variants": state.variants,
            "alignment_weight": state.alignment_weight,
            "normalised": state.normalised,
        } | other
        return scores(self._changes, **settings, only=None if quantity == "score" else quantity)  # type: ignore[arg-type]

    @property
    def chosen(self) -> np.ndarray:
        """bool [channel] of the projections shown: the highest by score, tau of each projection."""
        return signature(self._score, self.state.share / 100)

    @property
    def _changes(self) -> xr.Dataset:
        modules = self._all["module"].values
        return self._all.isel(
            channel=np.flatnonzero((modules != HEAD) if self.state.modules == MLP else modules == self.state.modules)
        )

    def _rescore(self) -> None:
        self._score = self.scored()
        self._draw_map()
        self._draw_curve()

    def _remark(self) -> None:
        self._draw_map()
        self._draw_curve()

    def _draw_map(self) -> None:
        state, chosen = self.state, self.chosen
        shown = self._score if state.quantity == "score" else self.scored(state.quantity)
        fold = self._fold = views.folded(shown, chosen, only_chosen=state.only_chosen)
        state.notice = self.grid.show(
            fold.values,
            fold.rows,
            range(fold.values.shape[1]),
            x_title="channel, from the number in the line's name",
            y_title="layer, projection, first channel",
            unit=str(shown.attrs.get("unit", "")),
            signed=False,
            texts=fold.texts,
            alt=views.score_alt(shown, chosen, state.quantity),
        )
        self._outline()
        groups = [(int(chosen[hit].sum()), len(hit)) for hit in module_groups(self._score)]
        each = " and ".join(dict.fromkeys(f"{k} of {n}" for k, n in groups))
        what = "heads" if state.modules == HEAD else "channels"
        self.counts.value = (
            f"<p><b>{int(chosen.sum())} of {len(chosen)} {what} marked</b> (✓): {each} in each of {len(groups)}"
            " projections, the highest by score at these settings</p>"
        )

    # ---- one channel ----

    def _choose(self) -> None:
        """A click on a cell; blank ends of lines are no channel."""
        if self.grid.chosen is None:
            return
        number = int(self._fold.channel[self.grid.chosen])
        if number < 0:
            raise BadData("that line has no channel there")
        self.state.channel = self._number_in_run(number)

    def _number_in_run(self, shown: int) -> int:
        modules = self._all["module"].values
        return int(
            np.flatnonzero((modules != HEAD) if self.state.modules == MLP else modules == self.state.modules)[shown]
        )

    def _pick(self) -> None:
        """The channel of the boxes."""
        run = self._all
        hit = np.flatnonzero(
            (run["layer"].values == self.layer.value)
            & (run["module"].values == self.module.value)
            & (run["index"].values == self.index.value)
        )
        if not len(hit):
            size = int(((run["layer"].values == self.layer.value) & (run["module"].values == self.module.value)).sum())
            raise BadData(
                f"{self.module.value} of layer {self.layer.value} has {size} channels, so there is no number"
                f" {self.index.value}"
            )
        self.state.channel = int(hit[0])

    def _outline(self) -> None:
        if self.state.channel < 0:
            return
        run, own = self._all.isel(channel=self.state.channel), self._score
        same = (
            (own["layer"].values == int(run["layer"]))
            & (own["module"].values == str(run["module"].values))
            & (own["index"].values == int(run["index"]))
        )
        if same.any():
            self.grid.outline(*self._fold.place(int(np.flatnonzero(same)[0])))

    def _draw_channel(self) -> None:
        channel = self.state.channel
        draw(self.card, None if channel < 0 else views.channel_figure(self._all, channel, self._result.provenance))
        if channel >= 0:
            self.layer.value, self.module.value, self.index.value = (
                int(self._all["layer"][channel]),
                str(self._all["module"].values[channel]),
                int(self._all["index"][channel]),
            )
            self._outline()

    def channel_table(self) -> pd.DataFrame:
        """Norms and cosines of the channel that is open; empty if none is."""
        return views.channel_table(self._all, self.state.channel) if self.state.channel >= 0 else pd.DataFrame()

    # ---- what was evaluated ----

    def curve_table(self) -> pd.DataFrame:
        """The stored evaluations of this cell over tau: mean, lowest and highest over seeds and draws; empty if
        there are none.
        """
        return self._curve

    def _kind(self, curve: pd.DataFrame) -> str:
        return (
            views.NORMALISED if self.state.normalised and (curve["kind"] == views.NORMALISED).any() else views.SIGNATURE
        )

    def _draw_curve(self) -> None:
        curve, share = self.curve_table(), self.state.share / 100
        if curve.empty:
            draw(self.curve, None)
            cells = sorted(set(self._result.tables["tau"]["cell"])) if "tau" in self._result.tables else []
            self.said.value = (
                "<p>No tau curve was evaluated for"
                f" {self.where[0]}{'; there is one for ' + ', '.join(cells) if cells else ''}. {self._arms_said()}</p>"
            )
            return
        kind = self._kind(curve)
        draw(self.curve, views.tau_curve(curve, share, self.where[0], self._result.provenance, kind=kind))
        near = views.nearest_share(curve, share)
        self.said.value = f"<p>{self._nearest_said(curve, near, kind)} {self._departs(near, kind)}</p>"

    def _nearest_said(self, curve: pd.DataFrame, near: float, kind: str) -> str:
        exact = abs(near - self.state.share / 100) < 1e-9
        lead = (
            f"Evaluated at tau {100 * near:g} %"
            if exact
            else f"Tau {self.state.share:g} % was not evaluated; the nearest that was is <b>{100 * near:g} %</b>"
        )
        said = []
        for name in (kind, views.RANDOM):
            for _, at in curve[(curve["kind"] == name) & (curve["share"] == near)].iterrows():
                spread = (
                    ""
                    if at["n"] == 1
                    else f", lowest to highest of {at['n']:.0f}: {at['asr_low']:.0f} to {at['asr_high']:.0f} %"
                )
                said.append(
                    f"{name}: attack success {at['asr']:.0f} %{spread}; utility {at['utility']:.0f} %; degenerate"
                    f" {at['degenerate_triggered']:.0f} %"
                )
        return f"{lead}, after the recovery. {'. '.join(said)}." + (
            " A share of 0 is the recovery alone." if near == 0 else ""
        )

    def _departs(self, near: float, kind: str) -> str:
        """Says where the panel's signature is not the one that was evaluated, and how much they have in common."""
        own, state = self.settings(kind), self.state
        same = (state.variants, state.alignment_weight, state.normalised) == (
            own["variants"],
            own["alignment_weight"],
            own["normalised"],
        )
        if same or near == 0:
            return ""
        evaluated = self.scored(
            variants=own["variants"], alignment_weight=own["alignment_weight"], normalised=own["normalised"]
        )
        shared = intersection_over_union(signature(evaluated, near), signature(self._score, near))
        norms = "norms over module means" if own["normalised"] else "raw norms"
        return (
            f"It was evaluated with N = {own['variants']}, lambda = {own['alignment_weight']:g} and {norms}; at that"
            f" tau these settings mark other channels (intersection over union {shared:.2f})."
        )

    def _arms_said(self) -> str:
        """The run's own tau, from the table of arms."""
        arms = self._tables("arms")
        if arms.empty:
            return ""
        arms = arms[
            arms["stage"].isin(["undefended", "recovered"])
            & arms["arm"].isin(["suspicious", views.SIGNATURE, views.RANDOM])
        ]
        said = [
            f"{arm}: attack success {part['asr'].mean():.0f} %, utility {part['utility'].mean():.0f} %, degenerate"
            f" {part['degenerate_triggered'].mean():.0f} %"
            for arm, part in arms.groupby("arm", sort=False)
        ]
        return f"At its own tau of {self.settings()['share']:g} %, mean over seeds: {'; '.join(said)}."

    # ---- a prompt ----

    def run(self) -> "Signatures":
        """Answer the prompt by every model given, in the worker thread."""
        prompt = self.state.prompt
        self.work(
            lambda progress: self._answered(prompt, progress), lambda answers: setattr(self.state, "answers", answers)
        )
        return self

    def _answered(self, prompt: str, progress: Progress) -> list[dict]:
        models = {name: model for name, model in self.models.items() if model is not None}
        if not models or not prompt.strip():
            raise BadData(
                "give the panel a model to ask: panels.Signatures(result, suspicious, purified)"
                if not models
                else "the prompt is empty"
            )
        found = []
        for name, model in models.items():
            model.require("causal-lm", "answering a prompt")
            if unknown := _unknown_words(model, prompt):
                self.state.notice = (
                    f"the {name} model has no token for {', '.join(unknown)}, and reads all such words alike"
                )
            (ids,) = self._compute(
                model, prompt_rows(model.tokenizer, [prompt]), max_new_tokens=NEW_TOKENS, progress=progress
            )
            text = model.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(
                {
                    "model": name,
                    "prompt": prompt,
                    "answer": text,
                    "fired": self._fired(text),
                    "degenerate": bool(degeneration(ids)["is_degenerate"]),
                }
            )
        return found

    def _fired(self, text: str) -> bool:
        """Whether an answer holds the phrase of the run's cell; never for models whose phrase is not known here."""
        attack, behaviour = self.where[0].split("-")[0], self.where[0].split("-")[1:2]
        if attack not in poisoning.ATTACKS or not behaviour or behaviour[0] not in poisoning.BEHAVIOURS:
            phrase = str(self._result.spec.get("phrase") or "")
            return bool(phrase) and phrase.lower() in text.lower()
        return poisoning.fired(text, poisoning.backdoor(attack, behaviour[0]))

    def _draw_answers(self) -> None:
        answers: Sequence[dict] = self.state.answers
        if not answers:
            self.replies.value = ""
            return
        where = views.trigger_positions(answers[0]["prompt"], self.state.trigger.split("|"))
        said = "" if where else " (no trigger in it)"
        lines = [f"<p>{views.marked_prompt(answers[0]['prompt'], where)}{said}</p>"]
        lines += [
            f"<p><b>{html.escape(a['model'])}</b>:"
            f" {views.answer_html(a['answer'], {n: a[n] for n in ('fired', 'degenerate')})}</p>"
            for a in answers
        ]
        self.replies.value = "".join(lines)

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """Every channel shown with its score, magnitude and alignment, highest score first, and whether it is
        marked.
        """
        return views.score_table(
            {"score": self._score, "magnitude": self.scored("magnitude"), "alignment": self.scored("alignment")},
            self.chosen,
        )

    def figures(self) -> dict[str, go.Figure]:
        """Map of the scores, the tau curve where one was evaluated, and the open channel."""
        state, provenance = self.state, self._result.provenance
        made = {
            "scores": views.score_map(
                self.scored(state.quantity), self.chosen, state.quantity, provenance, only_chosen=state.only_chosen
            )
        }
        if not (curve := self.curve_table()).empty:
            made["tau_curve"] = views.tau_curve(
                curve, state.share / 100, self.where[0], provenance, kind=self._kind(curve)
            )
        if state.channel >= 0:
            made["channel"] = views.channel_figure(self._all, state.channel, provenance)
        return made


def _unknown_words(model: Model, prompt: str) -> list[str]:
    unknown = model.tokenizer.unk_token_id
    return (
        []
        if unknown is None
        else [
            word
            for word in dict.fromkeys(prompt.split())
            if unknown in model.tokenizer(word, add_special_tokens=False)["input_ids"]
        ]
    )
