"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadSpec
from workbench.core.progress import SILENT, Progress
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import world
from workbench.models import ModelSpec, load
from workbench.models.loading import read_module
from workbench.models.model import Model
from workbench.primitives.score.unit_importance import LABELS, Ratios
from workbench.runs.seeds import summary
from workbench.runs.stored import load_runs
from workbench.runs.study import Part, Steps, Tables, Unit, study
from workbench.training.loop import TrainSpec

from . import prompts as sets
from . import pruning, tuning
from .claims import SCORES
from .pruning import Labelled, importance_of
from .tuning import ARMS

STEM, ALIGNED, BASE = "safety_units", "organism:chat", "organism:chat-base"
LABEL_UNIT = "index into " + ", ".join(LABELS)
CONDITIONS = {"pruning": ("model", "group", "arm"), "tuning": ("start", "arm")}  # what tells rows of a table apart


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on."""

    model: ModelSpec = param(ModelSpec(name=ALIGNED), "the aligned chat model whose units are scored and pruned")
    base: str | None = param(BASE, "its unaligned twin: control, probe and alignment budget; none leaves them out")
    safety_file: str | None = param(None, "JSONL of harmful prompts with refusals; the world's own if not given")
    utility_file: str | None = param(None, "JSONL of benign prompts with answers; the world's own if not given")
    system: str | None = param(None, "system turn put before the prompts of files")
    n_calibration: int = param(256, "pairs a calibration set", unit="pairs", ge=8)
    n_validation: int = param(90, "training prompts a set on which sizes are picked", unit="prompts", ge=6)
    n_forbidden: int = param(60, "held-out forbidden requests", unit="prompts", ge=4)
    n_utility: int = param(120, "held-out benign requests, spread over six tasks", unit="prompts", ge=6)
    attention: str = param("head", "units of attention", choices=("head", "channel"))
    scale: str = param(
        "raw", "importance that labels are taken from; the other one is pruned beside it", choices=pruning.SCALES
    )
    counted: str = param("all", "tokens that are samples: all, or the answer's", choices=("all", "answer"))
    ratios: tuple[float, ...] = param((), "shares of SCU, UCU and RU; picked by the scan if not given", ge=0, le=1)
    safety_grid: tuple[float, ...] = param((0.08, 0.05, 0.03, 0.02, 0.01), "shares of SCU tried", ge=0, le=1)
    utility_grid: tuple[float, ...] = param((0.08, 0.05, 0.03, 0.02, 0.01), "shares of UCU tried", ge=0, le=1)
    redundant_grid: tuple[float, ...] = param((0.4, 0.3, 0.2, 0.15, 0.1), "shares of RU tried", ge=0, le=1)
    n_random: int = param(2, "matched random groups a group", ge=1)
    arms: tuple[str, ...] = param(tuple(ARMS), "fine-tunes", choices=tuple(ARMS))
    task: str = param("howto", "benign task that is fine-tuned on", choices=world.TASKS)
    new_task: str = param("items", "format never met, of the arm new_task", choices=world.NEW_TASKS)
    n_tuning: int = param(300, "pairs fine-tuned on", unit="pairs", ge=8)
    tuning: TrainSpec = param(
        TrainSpec(steps=40, batch_size=16, lr=7e-4), "how; steps are doubled where units are frozen"
    )
    top_complex: float = param(0.06, "share of all units frozen as top CU in (i)", ge=0, le=1)
    budget: bool = param(True, "align the base model through its redundant units, random ones, and all of it")
    budget_share: float = param(0.2, "share of units that are trained then", ge=0, le=1)
    alignment: TrainSpec = param(
        TrainSpec(steps=60, batch_size=16, lr=1e-3), "how; steps are doubled where units are frozen"
    )
    probe_ks: tuple[int, ...] = param((2, 3, 4, 6, 8, 10), "answer tokens fed to the probe", ge=1)
    n_probe: int = param(24, "queries of the probe; 0 leaves it out", ge=0)
    seeds: tuple[int, ...] = param(
        (0, 1, 2), "each draws all prompts, random groups, pairs and their order; the model is one", ge=0
    )
    stored: bool = param(False, "also load the runs that ship, marked as stored")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadSpec(f"{STEM}.seeds must name at least one seed and none twice, got {self.seeds}")
        if len(self.ratios) not in (0, 3):
            raise BadSpec(f"{STEM}.ratios are three shares (SCU, UCU, RU) or none, got {self.ratios}")
        if (self.safety_file is None) != (self.utility_file is None):
            raise BadSpec(f"{STEM} needs both safety_file and utility_file, or neither for the world's own prompts")
        if self.safety_file is not None and (self.arms or self.budget):
            raise BadSpec(
                f"{STEM} fine-tunes only on the world's prompts; with files set arms=() and budget=False (Spec.small"
                " does)"
            )
        if self.n_probe and max(self.probe_ks, default=0) > 10 and self.safety_file is None:
            raise BadSpec(f"{STEM}.probe_ks go to 10 answer tokens in this world, got {self.probe_ks}")

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored runs, and now: one seed of scoring, scan, pruning, probe and one fine-tune; well under a
        minute.
        """
        return cls(seeds=(0,), n_random=1, arms=("full",), budget=False, stored=True)

    @classmethod
    def full(cls) -> "Spec":
        """Everything that ships, made again: three seeds, all arms."""
        return cls()

    @classmethod
    def small(cls, model: str, safety_file: str | None = None, utility_file: str | None = None) -> "Spec":
        """A chat model of your own with your prompts, forward only, with the sizes picked by the scan."""
        files = {"safety_file": safety_file, "utility_file": utility_file}
        return cls(
            model=ModelSpec(name=model),
            base=None,
            **files,
            arms=(),
            budget=False,
            n_probe=16 if safety_file is None else 0,
        )

    @classmethod
    def paper(cls) -> "Spec":
        """Llama-2-7B-chat with the paper's shares; give AdvBench and Alpaca as files. About 16 GB in bfloat16."""
        return cls(
            model=ModelSpec(name="meta-llama/Llama-2-7b-chat-hf", dtype="bfloat16"),
            base=None,
            safety_file="advbench.jsonl",
            utility_file="alpaca.jsonl",
            ratios=(0.013, 0.133, 0.148),
            scale="standard",
            arms=(),
            budget=False,
            n_probe=0,
        )


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Score, label, prune, fine-tune and probe, seed by seed.

    Args:
        spec: what to run. model: used for scoring and pruning instead of loading `spec.model`; what is fine-tuned is a
            fresh copy of `spec.model`.
        progress: a hundred steps a seed; cancelling gives a partial Result with the finished seeds.
        resume: a partial Result of the same spec and weights, whose finished seeds are not run again.

    Returns:
        Result with, per `run` (coordinates origin, seed): `importance` [scale, set, unit], `label` [unit], and if
        probed `distance` [organism, direction, block, k]; tables scan, pruning, tuning, transfer, stability and
        summary.

    Raises:
        BadData: if stored runs were asked for another model than theirs. UnsupportedModel: if units cannot be hooked or
            held.
    """
    own = model is None
    model = load(spec.model) if model is None else model
    try:
        stored = load_runs(STEM, weights=model.weights_hash) if spec.stored else None
        base = load(spec.base, device=spec.model.device) if spec.base else None
        return study(
            STEM,
            spec,
            [Unit(seed) for seed in spec.seeds],
            partial(one_seed, spec, model, base),
            about=model.provenance(),
            stored=stored,
            derive=lambda data, tables: (data, tables | {"summary": summary(tables, CONDITIONS, SCORES)}),
            warn=warnings,
            progress=progress,
            resume=resume,
        )
    finally:
        if own:
            model.unload()


def one_seed(spec: Spec, model: Model, base: Model | None, unit: Unit, steps: Steps) -> Part:
    """All parts of one seed."""
    seed, how = unit.seed, {"counted": spec.counted, "attention": spec.attention}
    prompts = make_prompts(spec, model.tokenizer, seed)
    pairs = (prompts.calibration.safety, prompts.calibration.utility)
    tables: Tables = {}

    steps.at(0, "importance")
    importance = importance_of(model, pairs, **how)
    if spec.ratios:
        ratios = Ratios(*spec.ratios)
    else:
        steps.at(3, "scan")
        grids = {"safety": spec.safety_grid, "utility": spec.utility_grid, "redundant": spec.redundant_grid}
        ratios, tables["scan"] = pruning.scan(model, importance, spec.scale, prompts, grids)
    units = Labelled(importance, spec.scale, ratios)
    of_base = None if base is None else Labelled(importance_of(base, pairs, **how), spec.scale, ratios)

    tables["pruning"] = prune(spec, model, base, prompts, units, of_base, seed, steps)
    steps.at(38, "calibration halves")
    tables["stability"] = pruning.stability(model, prompts, units, seed, **how)
    data = described(units)
    if spec.n_probe and prompts.shown.compliant:
        steps.at(40, "probe")
        which = {"aligned": model} | ({} if base is None else {"base": base})
        found = [pruning.probe(m, prompts.shown, spec.probe_ks, spec.n_probe) for m in which.values()]
        about = {
            "long_name": "Distance of the query's last state to that with k answer tokens",
            "unit": "cosine distance",
        }
        data["distance"] = xr.concat(found, "organism").assign_coords(organism=list(which)).assign_attrs(about)

    if spec.arms:
        module, tokenizer = read_module(spec.model, device=spec.model.device)
        bench = tuning.Bench(module, tokenizer, units, prompts, "aligned", steps)
        tables |= tuning.tune_aligned(bench, spec, seed, **how)
    if spec.budget and of_base is not None:
        module, tokenizer = read_module(spec.base, device=spec.model.device)
        bench = tuning.Bench(module, tokenizer, of_base, prompts, "base", steps)
        tables["tuning"] = pd.concat([tables.get("tuning"), tuning.align_base(bench, spec, seed)], ignore_index=True)
    return Part(data, tables)


def prune(
    spec: Spec,
    model: Model,
    base: Model | None,
    prompts: sets.Prompts,
    units: Labelled,
    of_base: Labelled | None,
    seed: int,
    steps: Steps,
) -> pd.DataFrame:
    """Every group, matched random groups, the other scale, shuffled sets, and the base model's choice on both
    models.
    """
    steps.at(12, "pruning")
    bench = pruning.Pruning(model, prompts)
    elsewhere = Labelled(units.units, next(s for s in pruning.SCALES if s != spec.scale), units.ratios)
    for group in ("SCU", "UCU", "RU"):
        steps.at(12, f"pruning {group}")
        chosen = units.group(group)
        bench.prune(group, "group", chosen, units.units)
        for draw in range(spec.n_random):
            random = units.random(chosen, seed, LABELS.index(group), draw)
            bench.prune(group, "random", random, units.units, draw)
        bench.prune(group, f"{elsewhere.scale} scale", elsewhere.group(group), units.units)
    steps.at(30, "controls")
    mixed = pruning.shuffled(prompts.calibration, np.random.default_rng([seed, 11]))
    of_mixed = Labelled(importance_of(model, mixed, spec.counted, spec.attention), spec.scale, units.ratios)
    bench.prune("SCU", "shuffled sets", of_mixed.group("SCU"), units.units)
    if base is None or of_base is None:
        return bench.table().assign(model="aligned")
    bench.prune("SCU", "chosen on the base", of_base.group("SCU"), units.units)
    beside = pruning.Pruning(base, prompts)
    beside.prune("SCU", "group", of_base.group("SCU"), units.units)
    return pd.concat([bench.table().assign(model="aligned"), beside.table().assign(model="base")], ignore_index=True)


def make_prompts(spec: Spec, tokenizer: Any, seed: int) -> sets.Prompts:
    """Calibration, validation and shown prompts of a seed."""
    if spec.safety_file is not None and spec.utility_file is not None:
        return sets.of_files(tokenizer, spec.safety_file, spec.utility_file, seed=seed, system=spec.system)
    sizes = {name: getattr(spec, name) for name in ("n_calibration", "n_validation", "n_forbidden", "n_utility")}
    return sets.of_world(tokenizer, seed=seed, **sizes)


def described(units: Labelled) -> xr.Dataset:
    """Importance, labels and sizes of a run, with their units."""
    data = xr.Dataset({"importance": units.units.astype(np.float32), "label": ("unit", units.labels.astype(np.int8))})
    data["label"].attrs = {"long_name": "Label of the unit", "unit": LABEL_UNIT}
    for name, group in pruning.GROUPS.items():
        about = {"long_name": f"Share of {group}", "unit": "share of units"}
        data[f"r_{group.lower()}"] = ((), getattr(units.ratios, name), about)
    return data


def warnings(data: xr.Dataset, tables: Tables) -> Iterable[str]:
    """Sizes that break nothing, and prunings that moved nothing."""
    if "scan" in tables:
        for group, rows in tables["scan"].query("picked and not broke").groupby("group"):
            n = f"{len(rows)} of {data.sizes['run']} runs"
            yield (
                f"{group}: in {n} no size of the scan breaks what it should; the largest that keeps the rest was taken"
            )
    yield from silent(tables["pruning"])


def silent(table: pd.DataFrame) -> Iterable[str]:
    """How many prunings of at least one unit moved no logit."""
    if n := int(((table["n_units"] > 0) & (table["effect"] == 0)).sum()):
        yield f"{n} prunings moved no logit"
