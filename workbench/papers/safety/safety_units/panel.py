"""Units panel: every unit of a safety-units Result, labels at shares of your own, one unit's tokens, and what pruning
costs.

Plain functions behind it: `primitives.score.unit_importance.label_units`,
`primitives.read.top_activations.top_activations` and `prune_at`; figures: panel_figures.py. With a Result alone
everything that needs no model works. Cost: labels some milliseconds; a unit's tokens one pass over the prompts; pruning
one scoring a group and draw.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.model import Model
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, plot_area, row
from workbench.panels.scatter import Scatter
from workbench.primitives.read.top_activations import top_activations
from workbench.primitives.score.unit_importance import LABELS, Ratios, label_units
from workbench.runs.stored import STORED

from . import panel_figures as views
from .figures import AXES, COLOURS, NAMES
from .method import LABEL_UNIT, STEM, Spec, make_prompts, silent
from .pruning import Labelled, Pruning

MAX_POINTS = 8000  # drawn; of more, all but a random part of the complex and redundant ones
N_PROMPTS = 64  # of each calibration set, where top tokens are looked for
TOP_K = 8
SHARES = {"safety": "r_scu", "utility": "r_ucu", "redundant": "r_ru"}  # slider: variable of the run


def spec_of(result: Result, origin: str) -> Spec:
    """The spec that the runs of an origin were made with."""
    told = result.provenance.data.get("stored") if origin == STORED else None
    return Spec.from_dict(told["spec"] if told else result.spec)


def prune_at(
    result: Result,
    ratios: Ratios,
    *,
    run: int = 0,
    scale: str = "raw",
    model: Model,
    n_random: int = 2,
    progress: Progress = SILENT,
) -> Result:
    """Prune SCU, UCU, CU and RU at sizes of your own, from the importances of a finished run, and random units beside
    them.

    Args:
        result: of `run`. ratios: shares of all units. run: which of its runs; its prompts are drawn again. scale: of
            importance.
        model: the one the importances are of. n_random: random groups a group. progress: per pruned model; cancelling
            keeps the rows so far.

    Returns:
        Result with `label` [unit] and table `pruning`. `n_shared` counts units of a random group that are of the group
        itself, which is unavoidable where the group holds more than half of a module.

    Raises:
        BadData: if the model has other weights than the one that was scored, or the shares add up to more than 1.
    """
    started = time.monotonic()
    of = result.provenance.model
    if of.get("weights") != model.weights_hash:
        raise BadData(
            f"these importances are of {of.get('name')} with other weights than {model.name} has; "
            "load that model, or run the analysis on this one"
        )
    one = result.data.isel(run=run)
    seed, units = int(one["seed"]), Labelled(one["importance"], scale, ratios)
    labels = units.labels.astype(np.int8)
    prompts = make_prompts(spec_of(result, str(one["origin"].values)), model.tokenizer, seed)
    spec = {"safety": ratios.safety, "utility": ratios.utility, "redundant": ratios.redundant}
    spec |= {"run": run, "scale": scale, "n_random": n_random}
    provenance = Provenance.start(STEM, spec, seed, model=model.provenance(), data={"prompts": prompts.source})
    bench = Pruning(model, prompts)
    partial = prune_groups(bench, units, seed=seed, n_random=n_random, progress=progress)
    coords = units.units.drop_vars(("scale", "set")).coords
    label = xr.DataArray(
        labels, dims="unit", coords=coords, attrs={"long_name": "Label of the unit", "unit": LABEL_UNIT}
    )
    table = bench.table()
    said = (*silent(table), *shared(table))
    return Result(provenance.finish(started), xr.Dataset({"label": label}), {"pruning": table}, partial, said)


def shared(table: pd.DataFrame) -> Iterable[str]:
    """Groups whose random units are for more than a tenth of the group itself."""
    drawn = table[table["arm"] == "random"].groupby("group", sort=False)[["n_shared", "n_units"]].sum()
    for group, n in drawn[drawn["n_shared"] > 0.1 * drawn["n_units"]].iterrows():
        share = f"{n['n_shared'] / n['n_units']:.0%}"
        yield (
            f"{share} of the random units beside {group} are {group} themselves, "
            "because it holds more than half of some modules: no real control"
        )


def prune_groups(bench: Pruning, units: Labelled, *, seed: int, n_random: int, progress: Progress) -> bool:
    """Prune every group and its matched random ones, drawn as a run of that seed draws them; True if cancelled."""
    groups = ("SCU", "UCU", "CU", "RU")
    jobs = [(group, draw) for group in groups for draw in (None, *range(n_random))]
    try:
        for done, (group, draw) in enumerate(jobs):
            progress.update(done, len(jobs), f"pruning {group}{'' if draw is None else ' (random)'}")
            chosen = units.group(group)
            pruned = chosen if draw is None else units.random(chosen, seed, LABELS.index(group), draw)
            arm = "group" if draw is None else "random"
            bench.prune(group, arm, pruned, units.units, draw or 0, n_shared=int((pruned & chosen).sum()))
        progress.update(len(jobs), len(jobs), "done")
    except Cancelled:
        return True
    return False


class UnitsState(PanelState):
    """run: number of the run. scale: of importance. safety, utility, redundant: shares of all units, in percent.
    unit: -1 for none.
    """

    run = traitlets.Int(0)
    scale = traitlets.Unicode("raw")
    safety = traitlets.Float(0.0)
    utility = traitlets.Float(0.0)
    redundant = traitlets.Float(0.0)
    unit = traitlets.Int(-1)
    top = traitlets.Instance(Result, allow_none=True)
    pruned = traitlets.Instance(Result, allow_none=True)


class Units(Panel):
    """`panels.Units(result, model)` in a cell: sliders relabel, a click on a unit opens it, Prune measures the
    groups as they are now.
    """

    title = "Safety units"

    def __init__(
        self,
        result: Result,
        model: Model | None = None,
        prompts: Sequence[str] = (),
        *,
        state: UnitsState | None = None,
        compute: Callable[..., Result] = prune_at,
        compute_top: Callable[..., Result] = top_activations,
    ):
        self.state: UnitsState
        names = views.run_names(result)
        if model is not None and model.weights_hash != result.provenance.model.get("weights"):
            raise BadData(
                f"this Result is of {result.provenance.model.get('name')}, and {model.name} has other weights; give"
                " that model, or none"
            )
        super().__init__(state or UnitsState())
        self.model, self.prompts, self._compute, self._compute_top = model, list(prompts), compute, compute_top
        self._rows: dict[
            int, tuple[list[list[int]], list[str]]
        ] = {}  # prompts of each run, as ids, and the set each belongs to
        self._label = np.zeros(0, int)
        self._points = np.zeros(0, int)
        self._fills = False
        self._doing = ""  # what the worker does: "tokens" or "pruning"
        self.state.result = result
        self._make_controls(names)
        self.scatter, self.counts, self.card, self.tokens = Scatter(), widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.bars, self.bars_here = plot_area(), plot_area()
        self.scatter.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._new_run), names=["run"])
        self.state.observe(lambda _: self.attempt(self._draw), names=["scale"])
        self.state.observe(lambda _: self.attempt(self._relabel), names=["safety", "utility", "redundant"])
        self.state.observe(lambda _: self.attempt(self._open_unit), names=["unit"])
        self.state.observe(lambda _: self.attempt(self._draw_unit), names=["top"])
        self.state.observe(
            lambda _: self._draw_unit(), names=["running"]
        )  # not attempt: it would wipe out the worker's error
        self.state.observe(lambda _: self.attempt(self._draw_bars), names=["pruned"])
        self.frame(
            row(self.run_box, self.scale, self.reset, self.prune),
            row(self.safety, self.utility, self.redundant),
            self.counts,
            self.scatter,
            row(self.layer, self.module, self.index, self.open_button),
            self.card,
            self.tokens,
            self.bars,
            self.bars_here,
        )
        given = self.state.safety or self.state.utility or self.state.redundant
        self.attempt(self._show_given if given else self._new_run)

    def _make_controls(self, names: list[str]) -> None:
        result = self.state.result
        self.run_box = labelled(
            widgets.Dropdown,
            "Run",
            "Stored runs ship with the project",
            "240px",
            options=[(n, i) for i, n in enumerate(names)],
        )
        tip = "As it is, or less its module's mean over its standard deviation"
        self.scale = labelled(
            widgets.Dropdown,
            "Importance",
            tip,
            "300px",
            options=[("raw", "raw"), ("standardised per module", "standard")],
        )
        most = {name: 100 * float(result.data[of].max()) for name, of in SHARES.items()}
        ends = {
            "safety": ("SCU: share r_S (%)", 20.0),
            "utility": ("UCU: share r_U (%)", 40.0),
            "redundant": ("RU: share r_R (%)", 80.0),
        }
        for name, (label, top) in ends.items():
            tip = (
                f"Share of all units called {NAMES[{'safety': 'SCU', 'utility': 'UCU', 'redundant': 'RU'}[name]]}; the"
                " rest is complex (CU)"
            )
            setattr(
                self,
                name,
                labelled(
                    widgets.FloatSlider,
                    label,
                    tip,
                    "340px",
                    min=0.0,
                    max=max(top, most[name]),
                    step=0.1,
                    readout_format=".1f",
                ),
            )
        self.reset = widgets.Button(
            description="Shares of the run",
            tooltip="Put the sliders back to the sizes this run picked",
            layout=widgets.Layout(width="auto"),
        )
        self.prune = widgets.Button(
            description="Prune at these shares",
            button_style="primary",
            disabled=self.model is None,
            layout=widgets.Layout(width="auto"),
        )
        self.prune.tooltip = (
            "Prune every group and matched random units, and score what is left"
            if self.model
            else "Needs the model: panels.Units(result, model)"
        )
        data = result.data
        self.layer = labelled(widgets.BoundedIntText, "Layer", "Layer of a unit", "130px", max=int(data["layer"].max()))
        self.module = labelled(
            widgets.Dropdown, "Kind", "Which kind of unit", "220px", options=[(v, k) for k, v in views.KINDS.items()]
        )
        self.index = labelled(
            widgets.BoundedIntText, "Number", "Number of the unit in its layer", "160px", max=int(data["index"].max())
        )
        self.open_button = widgets.Button(
            description="Open unit", tooltip="Show this unit, as a click on its point does"
        )
        link(
            self.state,
            run=self.run_box,
            scale=self.scale,
            safety=self.safety,
            utility=self.utility,
            redundant=self.redundant,
        )
        self.reset.on_click(lambda _: self.attempt(self._shares_of_run))
        self.prune.on_click(lambda _: self.run())
        self.open_button.on_click(lambda _: self.attempt(self._pick))

    # ---- labels ----

    @property
    def ratios(self) -> Ratios:
        """The shares of the sliders."""
        s = self.state
        return Ratios(safety=s.safety / 100, utility=s.utility / 100, redundant=s.redundant / 100)

    @property
    def _run(self) -> xr.Dataset:
        return self.state.result.data.isel(run=self.state.run)

    def labels(self) -> np.ndarray:
        """[unit] index into LABELS at the shares of the sliders.

        Raises:
            BadData: if they add up to more than 100 %.
        """
        values = self._run["importance"].sel(scale=self.state.scale).astype(float)
        return label_units(values.sel(set="safety").values, values.sel(set="utility").values, self.ratios)

    def _new_run(self) -> None:
        self.state.unit, self.state.pruned = -1, None
        self._shares_of_run()
        self._draw_bars()

    def _show_given(self) -> None:
        """What a state that was handed over says."""
        self._draw()
        self._draw_bars()
        self._open_unit()

    def _shares_of_run(self) -> None:
        run, self._fills = self._run, True
        try:
            for name, stored in SHARES.items():
                setattr(self.state, name, round(100 * float(run[stored]), 4))
        finally:
            self._fills = False
        self._draw()

    def _draw(self) -> None:
        """New points: another run, or another scale."""
        run, scale = self._run, self.state.scale
        self._label = self.labels()
        self._points, notice = _drawn(self._label)
        self.state.notice = notice
        keep = self._points
        x, y = (run["importance"].sel(scale=scale, set=s).values[keep] for s in ("utility", "safety"))
        if scale == "raw":
            least = float(min(v[v > 0].min() for v in (x, y)))
            x, y = (np.maximum(v, least) for v in (x, y))  # a unit of importance 0 stands at the edge
        self.scatter.show(
            x,
            y,
            np.stack([run["layer"].values[keep], run["index"].values[keep]], 1),
            self._label[keep],
            (run["module"].values[keep] == "attention").astype(int),
            group_names=[NAMES[n] for n in LABELS],
            colours=[COLOURS[n] for n in LABELS],
            order=[LABELS.index(n) for n in ("RU", "CU", "UCU", "SCU")],
            kind_names=list(views.KINDS.values()),
            titles=(f"importance on the utility set ({AXES[scale]})", f"importance on the safety set ({AXES[scale]})"),
            short=("utility", "safety"),
            log=scale == "raw",
            alt=views.scatter_alt(self.state.result, self.state.run, self._label, scale),
        )
        self._outline()
        self._after_labels()

    def _relabel(self) -> None:
        """New colours for the same points."""
        if self._fills:
            return
        self._label = self.labels()
        if len(self._points) < len(self._label):
            self._draw()
            return
        self.scatter.recolour(
            self._label, views.scatter_alt(self.state.result, self.state.run, self._label, self.state.scale)
        )
        self._after_labels()

    def _after_labels(self) -> None:
        moved = int((self._label != self._run["label"].values).sum())
        self.counts.value = views.counts_html(views.count_table(self._run, self._label), moved)
        self._draw_unit()

    # ---- one unit ----

    def _choose(self) -> None:
        """A click on a point; on the same one again, its tokens are asked for again."""
        unit = int(self._points[self.scatter.selected])
        if unit == self.state.unit:
            self._open_unit()
        self.state.unit = unit

    def _pick(self) -> None:
        """The unit of the boxes."""
        run = self._run
        hit = np.flatnonzero(
            (run["layer"].values == self.layer.value)
            & (run["module"].values == self.module.value)
            & (run["index"].values == self.index.value)
        )
        if not len(hit):
            size = int(((run["layer"].values == self.layer.value) & (run["module"].values == self.module.value)).sum())
            raise BadData(
                f"layer {self.layer.value} has {size} units of kind {views.KINDS[self.module.value]}, so there is no"
                f" number {self.index.value}"
            )
        if int(hit[0]) == self.state.unit:
            self._open_unit()
        self.state.unit = int(hit[0])

    def _open_unit(self) -> None:
        s = self.state
        s.top = None
        if s.unit >= 0:
            run = self._run
            self.layer.value, self.module.value, self.index.value = (
                int(run["layer"][s.unit]),
                str(run["module"].values[s.unit]),
                int(run["index"][s.unit]),
            )
            if self.model is not None and not (
                s.running and self._doing == "tokens"
            ):  # there the worker sees the new unit itself
                self._doing = self._doing if s.running else "tokens"
                self.work(self._tops, self._take_top)
        self._outline()
        self._draw_unit()

    def _outline(self) -> None:
        found = np.flatnonzero(self._points == self.state.unit)
        self.scatter.selected = int(found[0]) if len(found) else -1

    def _tops(self, progress: Progress) -> tuple[int, Result]:
        """Top tokens of the unit that is open, and of the next one if another was opened meanwhile."""
        while True:
            unit, run = self.state.unit, self._run
            rows, _ = self.prompt_rows()
            units = run["module"].values[(run["layer"] == run["layer"][unit]) & (run["module"].values == "attention")]
            kind = (
                "neuron"
                if run["module"].values[unit] == "mlp"
                else "head"
                if len(units) == self.model.n_heads
                else "head channel"
            )
            found = self._compute_top(
                self.model, rows, kind, int(run["layer"][unit]), int(run["index"][unit]), k=TOP_K, progress=progress
            )
            if self.state.unit == unit:
                return unit, found

    def _take_top(self, found: tuple[int, Result]) -> None:
        unit, top = found
        while unit != self.state.unit and self.state.unit >= 0:  # another one was opened at the last moment
            unit, top = self._tops(SILENT)
        if top.partial:
            self.state.notice = f"cancelled: {top.data.attrs['n_prompts']} prompts were looked at"
        self.state.top = top if unit == self.state.unit else None

    def prompt_rows(self) -> tuple[list[list[int]], list[str]]:
        """Token ids of the prompts whose tokens are looked at, and the set each belongs to: those given, else of the
        run's calibration sets.
        """
        s = self.state
        if s.run not in self._rows:
            if self.prompts:
                self._rows[s.run] = self.model.to_rows(self.prompts), ["given"] * len(self.prompts)
            else:
                run = self._run
                sets = make_prompts(
                    spec_of(s.result, str(run["origin"].values)), self.model.tokenizer, int(run["seed"])
                ).calibration
                pairs = [
                    (name, p, a)
                    for name, part in (("safety", sets.safety), ("utility", sets.utility))
                    for p, a in part[:N_PROMPTS]
                ]
                self._rows[s.run] = [[*p, *a] for _, p, a in pairs], [name for name, _, _ in pairs]
        return self._rows[s.run]

    def _draw_unit(self) -> None:
        s = self.state
        if s.unit < 0:
            self.card.value, self.tokens.value = "<p>Click a unit, or open one by its numbers.</p>", ""
            return
        self.card.value = views.unit_html(views.unit_table(self._run, self._label), s.unit)
        self.tokens.value = f"<p>{self._waiting()}</p>" if s.top is None else views.top_html(self._top_table(), s.top)

    def _waiting(self) -> str:
        """Why there are no tokens yet."""
        if self.model is None:
            return "Its top-activating tokens need the model: panels.Units(result, model)."
        if not self.state.running:
            return "Open the unit again for its top-activating tokens."
        return (
            "Looking for its top-activating tokens."
            if self._doing == "tokens"
            else "Pruning is under way; open the unit again afterwards for its top-activating tokens."
        )

    def _top_table(self) -> pd.DataFrame:
        return views.top_table(self.state.top, self.prompt_rows()[1])

    # ---- pruning ----

    def run(self) -> "Units":
        """Prune every group at the shares of the sliders, and matched random units, in the worker thread."""
        self.attempt(self._require_model)
        if self.model is not None:
            s, ratios = self.state, self.ratios
            asked = {"run": s.run, "scale": s.scale}
            self._doing = self._doing if s.running else "pruning"
            self.work(
                lambda progress: self._compute(s.result, ratios, **asked, model=self.model, progress=progress),
                self._take_pruned,
            )
        return self

    def _require_model(self) -> None:
        if self.model is None:
            raise BadData("pruning needs the model: panels.Units(result, model)")

    def _take_pruned(self, pruned: Result) -> None:
        self.state.pruned = pruned
        said = [f"cancelled: prunings finished: {len(pruned.tables['pruning']) - 1}"] if pruned.partial else []
        self.state.notice = "; ".join([*said, *pruned.warnings])

    def _bar_figures(self) -> dict[str, go.Figure]:
        s, found = self.state, {}
        origin = str(self._run["origin"].values)
        rows = views.pruned_in_result(s.result, origin)
        if len(rows):
            n = int(rows["n"].max())
            whose = (
                f"{'Stored' if origin == STORED else 'Run here'}: pruning at the sizes each run picked ({n}"
                f" seed{'s' * (n != 1)}{', 95 % intervals' * (n > 1)})"
            )
            found["pruning_of_the_runs"] = views.pruning_groups(rows, whose, s.result)
        if s.pruned is not None:
            spec = s.pruned.spec
            shares = (
                f"SCU {100 * spec['safety']:.1f}, UCU {100 * spec['utility']:.1f}, RU {100 * spec['redundant']:.1f} %"
            )
            found["pruning_at_chosen_shares"] = views.pruning_groups(
                views.pruned_here(s.pruned),
                f"Pruned now at {shares}, {views.WORDS[spec['scale']]} (whiskers: range of the random draws)",
                s.pruned,
            )
        return found

    def _draw_bars(self) -> None:
        found = self._bar_figures()
        draw(self.bars, found.get("pruning_of_the_runs"))
        draw(self.bars_here, found.get("pruning_at_chosen_shares"))

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """Top tokens of the open unit; or what was pruned now; or else every unit with its importances and labels."""
        s = self.state
        if s.unit >= 0 and s.top is not None:
            return self._top_table()
        return s.pruned.tables["pruning"] if s.pruned is not None else views.unit_table(self._run, self._label)

    def figures(self) -> dict[str, go.Figure]:
        """The scatter, the bars of the runs, and those of the pruning done here."""
        return {
            "units": views.scatter(self.state.result, self.state.run, self._label, self.state.scale, self._points)
        } | self._bar_figures()


def _drawn(label: np.ndarray) -> tuple[np.ndarray, str]:
    """Units that are drawn, and a sentence if not all are."""
    if len(label) <= MAX_POINTS:
        return np.arange(len(label)), ""
    first = np.flatnonzero(np.isin(label, [LABELS.index("SCU"), LABELS.index("UCU")]))
    rest = np.setdiff1d(np.arange(len(label)), first)
    some = np.random.default_rng(0).permutation(rest)[: max(0, MAX_POINTS - len(first))]
    kept = np.sort(np.concatenate([first[:MAX_POINTS], some]))
    return (
        kept,
        (
            f"{len(label)} units are too many to draw: {len(kept)} are shown, critical ones first; counts and table are"
            " of all"
        ),
    )
