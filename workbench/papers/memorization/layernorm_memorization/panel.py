"""Noisy-labels panel: over a finished LayerNorm-memorization Result, move through the epochs, choose what was removed,
click a sample.

No model is run and nothing is trained: the numbers are those of the Result, and the heading says whether its runs are
stored or were made in it. Plain functions behind it: panel_figures.py.
"""

import html

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.panels.drawn import HeatMap
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, plot_area, row
from workbench.papers.memorization.layernorm_memorization import figures as views
from workbench.papers.memorization.layernorm_memorization import panel_figures as samples
from workbench.papers.memorization.layernorm_memorization.scores import runs_of

REMOVED_IN = {
    "removed": "all layers",
    "early": "the early third",
    "middle": "the middle third",
    "late": "the late third",
    "whole": "all layers, the whole norm",
    "placebo": "nowhere: placebo",
}


class NoisyLabelsState(PanelState):
    """data, placement, seed, origin: which runs. arm: what stands beside the kept run. look: whose samples. epoch.
    sample: -1 for none.
    """

    data = traitlets.Unicode()
    origin = traitlets.Unicode()
    placement = traitlets.Unicode("post")
    arm = traitlets.Unicode("removed")
    look = traitlets.Unicode("arm")
    seed = traitlets.Int(0)
    epoch = traitlets.Int(0, min=0)
    sample = traitlets.Int(-1)


class NoisyLabels(Panel):
    """`NoisyLabels(result)` in a cell: stacked bars at an epoch, a map of samples and epochs, and the sample that
    was clicked.
    """

    title = "What became of the noisy labels"

    def __init__(self, result: Result, state: NoisyLabelsState | None = None):
        self.state: NoisyLabelsState
        super().__init__(state or NoisyLabelsState())
        if not result.data.sizes.get("run"):
            raise BadData("this Result holds no runs yet, so there is nothing to show; finish the run first")
        self._is_setting = False
        sets = views.data_sets(result)
        self.state.data = self.state.data or sets[0]
        self.data = labelled(widgets.Dropdown, "Data", "Which set was learned", "200px", options=sets)
        self.origin = labelled(
            widgets.Dropdown,
            "Runs",
            "Stored runs ship with the project",
            "220px",
            options=views.origins(result, self.state.data),
        )
        self.state.origin = self.state.origin or self.origin.options[0]
        self.placement = labelled(
            widgets.Dropdown,
            "LayerNorm",
            "After each residual sum (Post-LN) or before each sub-layer (Pre-LN)",
            "220px",
            options=[(v, k) for k, v in views.PLACES.items()],
        )
        self.arm = labelled(
            widgets.Dropdown,
            "Removed in",
            "Where gain and bias were taken away",
            "280px",
            options=self._arms(result, self.state.data, self.state.origin),
        )
        self.look = labelled(
            widgets.ToggleButtons,
            "Samples of",
            "Which run the map of samples shows",
            "330px",
            options=[("removed", "arm"), ("kept", "kept")],
        )
        self.seed = labelled(widgets.Dropdown, "Seed", "Noise, head and order of samples", "140px", options=[0])
        self.epoch = labelled(widgets.IntSlider, "Epochs trained", "0 is before training", "420px", min=0, max=1)
        if self.state.arm not in [value for _, value in self.arm.options]:
            self.state.arm = self.arm.options[0][1]
        link(
            self.state,
            data=self.data,
            origin=self.origin,
            placement=self.placement,
            arm=self.arm,
            look=self.look,
            epoch=self.epoch,
        )
        self.summary, self.card, self.map = widgets.HTML(), widgets.HTML(), HeatMap(height=380)
        self.bars, self.history = plot_area(), plot_area()
        self.map.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.seed.observe(lambda change: self._take_seed(change["new"]), names="value")
        self.state.observe(lambda _: self.attempt(self._new_data), names=["data", "origin"])
        self.state.observe(lambda _: self.attempt(self._new_run), names=["placement", "arm", "look", "seed"])
        self.state.observe(lambda _: self.attempt(self._draw_epoch), names=["epoch"])
        self.state.observe(lambda _: self.attempt(self._draw_sample), names=["sample"])
        self.frame(
            row(self.data, self.origin, self.placement, self.arm, self.seed),
            row(self.epoch, self.look),
            self.summary,
            self.bars,
            self.map,
            row(self.card, self.history),
        )
        self.state.result = result
        self.attempt(self._new_run)
        self.state.epoch = self.epoch.max

    @staticmethod
    def _arms(result: Result, data: str, origin: str) -> list[tuple[str, str]]:
        present = views.arms_of(result, data, origin)
        return [(text, arm) for arm, text in REMOVED_IN.items() if arm in present] or [
            (views.SHORT[arm], arm) for arm in present
        ]

    @property
    def _shown_arm(self) -> str:
        return "kept" if self.state.look == "kept" else self.state.arm

    def _run(self) -> object:
        s = self.state
        return samples.one_run(s.result, s.data, s.placement, self._shown_arm, s.seed, s.origin)

    def _new_data(self) -> None:
        """Offer the arms of this data set and origin, and keep what is still there."""
        if self._is_setting:
            return
        s = self.state
        self._is_setting = True
        try:
            known = views.origins(s.result, s.data)
            if tuple(self.origin.options) != tuple(known):
                self.origin.options = known
            s.origin = s.origin if s.origin in known else known[0]
            arms = self._arms(s.result, s.data, s.origin)
            wanted = s.arm if s.arm in [arm for _, arm in arms] else arms[0][1]
            if tuple(self.arm.options) != tuple(arms):
                self.arm.options = arms
            s.arm = wanted
            places = set(runs_of(s.result.data, data=s.data, origin=s.origin, arm=wanted)["placement"].values.tolist())
            s.placement = s.placement if s.placement in places else sorted(places)[0]
        finally:
            self._is_setting = False
        self._new_run()

    def _take_seed(self, seed: int | None) -> None:
        if not self._is_setting and seed is not None:
            self.state.seed = seed

    def _new_run(self) -> None:
        """Another run: its seeds, its epochs, its samples."""
        s = self.state
        if self._is_setting or s.result is None:
            return
        found = runs_of(s.result.data, data=s.data, origin=s.origin, placement=s.placement, arm=self._shown_arm)
        seeds = sorted(int(v) for v in found["seed"].values)
        if not seeds:
            self.map.show(np.zeros((0, 0)), [], [], x_title="", y_title="", unit="", alt="No such run")
            raise BadData(
                f"no {views.SHORT[self._shown_arm]} run on {s.data}, {views.PLACES[s.placement]}"
                f" ({views.said(s.origin)}); choose another arm, placement or origin"
            )
        self._is_setting = True
        try:
            s.seed = s.seed if s.seed in seeds else seeds[0]
            self.seed.options, self.seed.value = seeds, s.seed
        finally:
            self._is_setting = False
        run = self._run()
        at_end = s.epoch >= self.epoch.max
        self.epoch.max = int(run["n_epochs"])
        s.epoch = self.epoch.max if at_end else min(s.epoch, self.epoch.max)
        self._index, fate = samples.fates(run)
        names = [f"{views.PLACES[s.placement]}, {views.SHORT[self._shown_arm]}, seed {s.seed}"]
        alt = (
            f"What became of {len(self._index)} noisy samples by epoch: {names[0]} on {s.data}"
            f" ({views.said(s.origin)})."
        )
        self.map.show(
            fate,
            self._index,
            range(fate.shape[1]),
            x_title="epochs trained",
            y_title="noisy sample",
            unit="1 memorised, 0 random, -1 recovered",
            limits=(-1.0, 1.0),
            alt=alt,
        )
        if s.sample not in self._index:
            s.sample = -1
        self._draw_epoch()
        self._draw_sample()

    def _choose(self) -> None:
        if self.map.chosen is not None:
            self.state.sample = int(self._index[self.map.chosen[0]])
            self.state.epoch = self.map.chosen[1]

    def _draw_epoch(self) -> None:
        s = self.state
        if s.result is None or self._is_setting:
            return
        table = self.table()
        counts = {word: int((table["became"] == word).sum()) for word in samples.BECAME}
        self.summary.value = (
            f"<p>{html.escape(views.said(s.origin).capitalize())}. {views.PLACES[s.placement]},"
            f" {html.escape(views.SHORT[self._shown_arm])}, seed {s.seed}, after epoch {s.epoch}: of {len(table)} noisy"
            f" samples <b>{counts['memorised']} are memorised, {counts['recovered']} recovered, {counts['random']}"
            " random</b>. A row of the map is a sample; click it.</p>"
        )
        draw(self.bars, self._bars())
        self._draw_card()

    def _bars(self) -> go.Figure:
        s = self.state
        arms = tuple(arm for arm in ("kept", s.arm) if arm in views.arms_of(s.result, s.data, s.origin))
        return samples.outcome_at(s.result, s.data, s.epoch, arms, s.seed, s.origin)

    def _draw_sample(self) -> None:
        s = self.state
        draw(
            self.history,
            (
                None
                if s.sample < 0 or s.result is None
                else samples.sample_history(s.result, s.data, s.sample, s.placement, self._shown_arm, s.seed, s.origin)
            ),
        )
        self._draw_card()

    def _draw_card(self) -> None:
        s = self.state
        if s.sample < 0 or s.result is None:
            self.card.value = ""
            return
        one = self.table().query("sample == @s.sample").iloc[0]
        labels = "".join(
            f"<li>{name}: <b>{html.escape(str(value))}</b></li>"
            for name, value in (
                ("true label", one.true),
                ("noisy label", one.noisy),
                (f"predicted after epoch {s.epoch}", one.predicted),
            )
        )
        self.card.value = (
            f"<div><b>Sample {s.sample}</b>: {one.became}{samples.sample_html(one.text)}<ul style='margin:.2em"
            f" 0'>{labels}</ul></div>"
        )

    def table(self) -> pd.DataFrame:
        """The noisy samples of the run shown, after the epoch shown."""
        s = self.state
        return samples.noisy_samples(s.result, s.data, s.placement, self._shown_arm, s.seed, s.epoch, s.origin)

    def figures(self) -> dict[str, go.Figure]:
        """The bars, the map of samples, and the sample chosen."""
        s = self.state
        made = {
            "outcome": self._bars(),
            "samples": samples.fate_map(s.result, s.data, s.placement, self._shown_arm, s.seed, s.origin),
        }
        if s.sample >= 0:
            made["sample"] = samples.sample_history(
                s.result, s.data, s.sample, s.placement, self._shown_arm, s.seed, s.origin
            )
        return made
