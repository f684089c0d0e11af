"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import world
from workbench.models import ModelSpec, load
from workbench.models.chat import chat_pairs
from workbench.models.loading import read_module
from workbench.models.model import Model
from workbench.papers.safety.safety_units import ablation as pruning
from workbench.papers.safety.safety_units import prompts as sets
from workbench.papers.safety.safety_units import tuning
from workbench.papers.safety.safety_units.claims import HERE, summary
from workbench.primitives.score.unit_importance import LABELS, Ratios
from workbench.runs import stored as stored_runs
from workbench.runs.stored import STORED
from workbench.training.finetune import FinetuneSpec

STEM, ALIGNED, BASE = "safety_units", "organism:chat", "organism:chat-base"
ARMS = tuning.ARMS
TABLES = ("scan", "pruning", "tuning", "transfer", "stability")


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
    scale: str = param("raw", "importance that labels are taken from; the other one is pruned beside it", choices=pruning.SCALES)
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
    tuning: FinetuneSpec = param(FinetuneSpec(steps=40, batch_size=16, lr=7e-4), "how; steps are doubled where units are frozen")
    top_complex: float = param(0.06, "share of all units frozen as top CU in (i)", ge=0, le=1)
    budget: bool = param(True, "align the base model through its redundant units, random ones, and all of it")
    budget_share: float = param(0.2, "share of units that are trained then", ge=0, le=1)
    alignment: FinetuneSpec = param(FinetuneSpec(steps=60, batch_size=16, lr=1e-3), "how; steps are doubled where units are frozen")
    probe_ks: tuple[int, ...] = param((2, 3, 4, 6, 8, 10), "answer tokens fed to the probe", ge=1)
    n_probe: int = param(24, "queries of the probe; 0 leaves it out", ge=0)
    seeds: tuple[int, ...] = param((0, 1, 2), "each draws all prompts, random groups, pairs and their order; the model is one", ge=0)
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
            raise BadSpec(f"{STEM} fine-tunes only on the world's prompts; with files set arms=() and budget=False (Spec.small does)")
        if self.n_probe and max(self.probe_ks, default=0) > 10 and self.safety_file is None:
            raise BadSpec(f"{STEM}.probe_ks go to 10 answer tokens in this world, got {self.probe_ks}")

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored runs, and now: one seed of scoring, scan, pruning, probe and one fine-tune; well under a minute."""
        return cls(seeds=(0,), n_random=1, arms=("full",), budget=False, stored=True)

    @classmethod
    def full(cls) -> "Spec":
        """Everything that ships, made again: three seeds, all arms."""
        return cls()

    @classmethod
    def small(cls, model: str, safety_file: str | None = None, utility_file: str | None = None) -> "Spec":
        """A chat model of your own with your prompts, forward only, with the sizes picked by the scan."""
        files = {"safety_file": safety_file, "utility_file": utility_file}
        return cls(model=ModelSpec(name=model), base=None, **files, arms=(), budget=False, n_probe=16 if safety_file is None else 0)

    @classmethod
    def paper(cls) -> "Spec":
        """Llama-2-7B-chat with the paper's shares; give AdvBench and Alpaca as files. About 16 GB in bfloat16."""
        return cls(
            model=ModelSpec(name="meta-llama/Llama-2-7b-chat-hf", dtype="bfloat16"), base=None, safety_file="advbench.jsonl", utility_file="alpaca.jsonl",
            ratios=(0.013, 0.133, 0.148), scale="standard", arms=(), budget=False, n_probe=0,
        )  # fmt: skip


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Score, label, prune, fine-tune and probe, seed by seed.

    Args:
        spec: what to run. model: used for scoring and pruning instead of loading `spec.model`; what is fine-tuned is a fresh copy of
            `spec.model`.
        progress: per part of a seed; cancelling gives a partial Result with the finished seeds.
        resume: a partial Result of the same spec and weights, whose finished seeds are not run again.

    Returns:
        Result with, per `run` (coordinates origin, seed): `importance` [scale, set, unit], `label` [unit], and if probed `distance`
        [organism, direction, block, k]; tables scan, pruning, tuning, transfer and stability, whose rows name origin and seed.

    Raises:
        BadData: if stored runs were asked for another model than theirs. UnsupportedModel: if units cannot be hooked or frozen.
    """
    started = time.monotonic()
    own = model is None
    model = load(spec.model) if model is None else model
    stored = load_stored() if spec.stored else None
    if stored is not None and stored.provenance.model["weights"] != model.weights_hash:
        raise BadData(f"the stored runs are of other weights than {model.name}; run with stored=False")
    told = {} if stored is None else {"stored": stored_runs.told(stored)}
    provenance = Provenance.start(STEM, spec.to_dict(), min(spec.seeds), model=model.provenance(), data=told)
    parts = [] if stored is None else [(stored.data, stored.tables)]
    done: set[int] = set()
    if resume is not None:
        parts += _finished(resume, provenance)
        done = {int(s) for d, _ in parts for o, s in zip(d["origin"].values, d["seed"].values, strict=True) if o == HERE}
    partial = False
    try:
        base = load(spec.base, device=spec.model.device) if spec.base else None
        for number, seed in enumerate(spec.seeds):
            if seed not in done:
                parts.append(_Seed(spec, seed, model, base, _Steps(progress, number, len(spec.seeds))).run())
                progress.keep(lambda: _result(provenance.finish(started), parts, True))
        progress.update(100 * len(spec.seeds), 100 * len(spec.seeds), "done")
    except Cancelled:
        partial = True
    finally:
        if own:
            model.unload()
    return _result(provenance.finish(started), parts, partial)


def make_prompts(spec: Spec, tokenizer: Any, seed: int) -> sets.Prompts:
    """Calibration, validation and shown prompts of a seed."""
    if spec.safety_file is not None and spec.utility_file is not None:
        return sets.of_files(tokenizer, spec.safety_file, spec.utility_file, seed=seed, system=spec.system)
    return sets.of_world(tokenizer, seed=seed, n_calibration=spec.n_calibration, n_validation=spec.n_validation, n_forbidden=spec.n_forbidden, n_utility=spec.n_utility)


def spec_of(result: Result, origin: str) -> Spec:
    """The spec that the runs of an origin were made with."""
    told = result.provenance.data.get("stored") if origin == STORED else None
    return Spec.from_dict(told["spec"] if told else result.spec)


def prune_at(result: Result, ratios: Ratios, *, run: int = 0, scale: str = "raw", model: Model, n_random: int = 2, progress: Progress = SILENT) -> Result:
    """Prune SCU, UCU, CU and RU at sizes of your own, from the importances of a finished run, and matched random units beside them.

    Args:
        result: of `run`. ratios: shares of all units. run: which of its runs; its prompts are drawn again. scale: of importance.
        model: the one the importances are of. n_random: random groups a group. progress: per pruned model; cancelling keeps the rows so far.

    Returns:
        Result with `label` [unit] and table `pruning`. `n_shared` counts units of a random group that are of the group itself, which is
        unavoidable where the group holds more than half of a module.

    Raises:
        BadData: if the model has other weights than the one that was scored, or the shares add up to more than 1.
    """
    started = time.monotonic()
    of = result.provenance.model
    if of.get("weights") != model.weights_hash:
        raise BadData(f"these importances are of {of.get('name')} with other weights than {model.name} has; load that model, or run the analysis on this one")
    one = result.data.isel(run=run)
    seed, units = int(one["seed"]), one["importance"]
    labels = pruning.labels_of(units, scale, ratios)
    prompts = make_prompts(spec_of(result, str(one["origin"].values)), model.tokenizer, seed)
    spec = {"safety": ratios.safety, "utility": ratios.utility, "redundant": ratios.redundant, "run": run, "scale": scale, "n_random": n_random}
    provenance = Provenance.start(STEM, spec, seed, model=model.provenance(), data={"prompts": prompts.source})
    bench = pruning.Pruning(model, prompts.shown, prompts)
    partial = pruning.prune_groups(bench, labels, units, seed=seed, n_random=n_random, progress=progress)
    label = xr.DataArray(labels.astype(np.int8), dims="unit", coords=units.drop_vars(("scale", "set")).coords, attrs={"long_name": "Label of the unit", "unit": "index into " + ", ".join(LABELS)})
    tables = {"pruning": bench.table()}
    return Result(provenance.finish(started), xr.Dataset({"label": label}), tables, partial, (*_silent(tables), *_shared(tables["pruning"])))


class _Steps(Progress):
    """A hundred steps a seed; finer reports from fine-tunes only look whether to stop."""

    def __init__(self, outer: Progress, number: int, of: int):
        super().__init__()
        self.outer, self.start, self.of, self.at = outer, 100 * number, of, 0

    def to(self, percent: int, text: str) -> None:
        self.at = percent
        self.outer.update(self.start + percent, 100 * self.of, text)

    def update(self, done: int, total: int, text: str = "") -> None:
        self.outer.update(self.start + self.at, 100 * self.of, text)


class _Seed:
    """All parts of one seed."""

    def __init__(self, spec: Spec, seed: int, model: Model, base: Model | None, steps: _Steps):
        self.spec, self.seed, self.model, self.base, self.steps = spec, seed, model, base, steps
        self.prompts = make_prompts(spec, model.tokenizer, seed)
        self.how = {"counted": spec.counted, "attention": spec.attention}
        self.tables: dict[str, pd.DataFrame] = {}

    def run(self) -> tuple[xr.Dataset, dict[str, pd.DataFrame]]:
        self.score()
        self.prune()
        self.check_stability()
        distance = self.probe()
        self.tune()
        data = xr.Dataset({"importance": self.importance.astype(np.float32), "label": ("unit", self.labels.astype(np.int8))})
        data["label"].attrs = {"long_name": "Label of the unit", "unit": "index into " + ", ".join(LABELS)}
        for name, share in zip(("r_scu", "r_ucu", "r_ru"), (self.ratios.safety, self.ratios.utility, self.ratios.redundant), strict=True):
            data[name] = ((), share, {"long_name": f"Share of {name[2:].upper()}", "unit": "share of units"})
        if distance is not None:
            data["distance"] = distance
        data = data.expand_dims("run").assign_coords(origin=("run", [HERE]), seed=("run", [self.seed]))
        return data, {name: table.assign(seed=self.seed, origin=HERE) for name, table in self.tables.items()}

    def score(self) -> None:
        """Importance, sizes and labels."""
        spec, calibration = self.spec, self.prompts.calibration
        self.steps.to(0, f"importance, seed {self.seed}")
        self.importance = pruning.importance_of(self.model, calibration.safety, calibration.utility, **self.how)
        if spec.ratios:
            self.ratios = Ratios(safety=spec.ratios[0], utility=spec.ratios[1], redundant=spec.ratios[2])
        else:
            self.steps.to(3, f"scan, seed {self.seed}")
            grids = {"safety": spec.safety_grid, "utility": spec.utility_grid, "redundant": spec.redundant_grid}
            self.ratios, self.tables["scan"] = pruning.scan(self.model, self.importance, spec.scale, self.prompts, grids)
        self.labels = pruning.labels_of(self.importance, spec.scale, self.ratios)

    def prune(self) -> None:
        """Every group, matched random groups, the other scale, shuffled sets, the base model's choice."""
        spec, units, rng = self.spec, self.importance, np.random.default_rng([self.seed, 11])
        self.steps.to(12, f"pruning, seed {self.seed}")
        bench = pruning.Pruning(self.model, self.prompts.shown, self.prompts)
        other = next(s for s in pruning.SCALES if s != spec.scale)
        elsewhere = pruning.labels_of(units, other, self.ratios)
        for group in ("SCU", "UCU", "RU"):
            self.steps.to(12, f"pruning {group}, seed {self.seed}")
            chosen = self.labels == pruning.code(group)
            bench.prune(group, "group", chosen, units)
            for draw in range(spec.n_random):
                bench.prune(group, "random", pruning.random_like(chosen, units, self.seed, pruning.code(group), draw), units, draw)
            bench.prune(group, f"{other} scale", elsewhere == pruning.code(group), units)
        self.steps.to(30, f"controls, seed {self.seed}")
        mixed = pruning.importance_of(self.model, *pruning.shuffled(self.prompts, rng), **self.how)
        bench.prune("SCU", "shuffled sets", pruning.labels_of(mixed, spec.scale, self.ratios) == pruning.code("SCU"), units)
        tables = [bench.table().assign(model="aligned")]
        if self.base is not None:
            calibration = self.prompts.calibration
            self.of_base = pruning.importance_of(self.base, calibration.safety, calibration.utility, **self.how)
            by_base = pruning.labels_of(self.of_base, spec.scale, self.ratios) == pruning.code("SCU")
            bench.prune("SCU", "chosen on the base", by_base, units)
            beside = pruning.Pruning(self.base, self.prompts.shown, self.prompts)
            beside.prune("SCU", "group", by_base, units)
            tables = [bench.table().assign(model="aligned"), beside.table().assign(model="base")]
        self.tables["pruning"] = pd.concat(tables, ignore_index=True)

    def check_stability(self) -> None:
        self.steps.to(38, f"calibration halves, seed {self.seed}")
        found, a, b, units = pruning.halves(self.model, self.prompts, self.spec.scale, self.ratios, **self.how)
        chance = pruning.chance_overlap(a, b, units, np.random.default_rng([self.seed, 12]))
        self.tables["stability"] = pd.DataFrame([{"jaccard": found, "chance": chance, "n_scu": int(a.sum())}])

    def probe(self) -> xr.DataArray | None:
        if not self.spec.n_probe or not self.prompts.shown.compliant:
            return None
        self.steps.to(40, f"probe, seed {self.seed}")
        which = {"aligned": self.model} | ({} if self.base is None else {"base": self.base})
        parts = [pruning.probe(m, self.prompts.shown, self.spec.probe_ks, self.spec.n_probe) for m in which.values()]
        found = xr.concat(parts, "organism").assign_coords(organism=list(which))
        return found.assign_attrs(long_name="Distance of the query's last state to that with k answer tokens", unit="cosine distance")

    def tune(self) -> None:
        """Fine-tunes of the aligned model, then of the base."""
        rows: list[dict[str, Any]] = []
        if self.spec.arms:
            self._tune_aligned(rows)
        if self.spec.budget and self.base is not None:
            self._tune_base(rows)
        if rows:
            self.tables["tuning"] = pd.DataFrame(rows)

    def _pairs(self, task: str) -> list[Any]:
        examples = world.sample(task, self.spec.n_tuning, seed=4000 + self.seed)
        return chat_pairs(self.model.tokenizer, [e.prompt for e in examples], [e.answer for e in examples])

    def _one(self, module: Any, pairs: list[Any], how: FinetuneSpec, arm: str, start: str, held: np.ndarray, **more: Any) -> tuple[dict[str, Any], Model]:
        tuned = tuning.tune(module, self.model.tokenizer, pairs, how, units=self.importance, held=held, on_step=self.steps, **more)
        found = sets.score(tuned.model, self.prompts.shown, self.prompts.refusals)
        return {"start": start, "arm": arm, "steps": tuned.steps, "loss": tuned.loss, "n_held": int(held.sum()), "n_frozen": tuned.n_frozen} | found, tuned.model

    def _tune_aligned(self, rows: list[dict[str, Any]]) -> None:
        spec = self.spec
        module, _ = read_module(spec.model, device=spec.model.device)
        pairs = {task: self._pairs(task) for task in {spec.task, *([spec.new_task] if "new_task" in spec.arms else [])}}
        how = spec.tuning.replace(seed=self.seed)
        for number, arm in enumerate(spec.arms):
            self.steps.to(45 + 35 * number // len(spec.arms), f"fine-tuning ({arm}), seed {self.seed}")
            held = tuning.held_units(arm, self.importance, spec.scale, self.labels, spec.top_complex, lambda like: pruning.random_like(like, self.importance, self.seed, 21))
            settings = how.replace(steps=2 * how.steps) if arm in tuning.TWICE else how.replace(lr=how.lr * tuning.LORA_LR_FACTOR) if arm == "lora" else how
            row, tuned = self._one(module, pairs[spec.new_task if arm == "new_task" else spec.task], settings, arm, "aligned", held, only_units=arm not in ("full", "lora", "new_task"), as_lora=arm == "lora")
            rows.append(row)
            if arm == "full":
                calibration = self.prompts.calibration
                after = pruning.importance_of(tuned, calibration.safety, calibration.utility, **self.how)
                self.tables["transfer"] = tuning.transfer(self.labels, pruning.labels_of(after, spec.scale, self.ratios))
            tuned.unload()

    def _tune_base(self, rows: list[dict[str, Any]]) -> None:
        spec = self.spec
        module, tokenizer = read_module(spec.base, device=spec.model.device)
        examples = [*world.forbidden(2 * spec.n_tuning, seed=5000 + self.seed), *world.benign(spec.n_tuning, seed=5000 + self.seed)]
        pairs = chat_pairs(tokenizer, [e.prompt for e in examples], [e.answer for e in examples])
        trained = pruning.labels_of(self.of_base, spec.scale, Ratios(0.0, 0.0, spec.budget_share)) == pruning.code("RU")
        arms = {"full": np.zeros(len(trained), bool), "redundant": ~trained, "random": ~pruning.random_like(trained, self.importance, self.seed, 22)}
        for number, (arm, held) in enumerate(arms.items()):
            self.steps.to(80 + 6 * number, f"aligning the base ({arm}), seed {self.seed}")
            how = spec.alignment.replace(seed=self.seed, steps=spec.alignment.steps * (1 if arm == "full" else 2))
            row, tuned = self._one(module, pairs, how, arm, "base", held, only_units=arm != "full")
            rows.append(row)
            tuned.unload()


# ---- stored runs, joining ----


def load_stored() -> Result:
    """The runs that ship, marked as stored.

    Raises:
        ModelNotFound: if they are not here. BrokenResult: if a file changed.
    """
    kept = stored_runs.load_runs(STEM)
    return Result(kept.provenance, kept.data.assign_coords(origin=("run", [STORED] * kept.data.sizes["run"])), {n: t.assign(origin=STORED) for n, t in kept.tables.items()}, kept.partial, kept.warnings)


def _finished(resume: Result, now: Provenance) -> Iterable[tuple[xr.Dataset, dict[str, pd.DataFrame]]]:
    before = resume.provenance
    if before.spec != now.spec or before.model.get("weights") != now.model.get("weights"):
        raise BadData("the partial result is of another spec or other weights, so its seeds cannot be reused; give another output folder")
    if "origin" in resume.data.coords:
        mine = resume.data.isel(run=np.flatnonzero(resume.data["origin"].values == HERE))
        if mine.sizes["run"]:
            yield mine, {n: t[t["origin"] == HERE] for n, t in resume.tables.items()}


def _result(provenance: Provenance, parts: list[tuple[xr.Dataset, dict[str, pd.DataFrame]]], partial: bool) -> Result:
    if not parts:
        return Result(provenance, xr.Dataset(), {}, True)
    data = xr.concat([d for d, _ in parts], "run", join="outer", combine_attrs="override") if len(parts) > 1 else parts[0][0]
    tables = {name: pd.concat(found, ignore_index=True) for name in TABLES if (found := [t[name] for _, t in parts if name in t])}
    tables["summary"] = summary(tables)
    return Result(provenance, data, tables, partial, tuple(_warnings(data, tables, provenance)))


def _warnings(data: xr.Dataset, tables: dict[str, pd.DataFrame], provenance: Provenance) -> Iterable[str]:
    if about := provenance.data.get("stored"):
        yield stored_runs.sentence(about, data.sizes["run"])
    if "scan" in tables:
        picked = tables["scan"].query("picked and not broke")
        for group, rows in picked.groupby("group"):
            yield f"{group}: in {len(rows)} of {data.sizes['run']} runs no size of the scan breaks what it should; the largest that keeps the rest was taken"
    yield from _silent(tables)


def _shared(table: pd.DataFrame) -> Iterable[str]:
    drawn = table[table["arm"] == "random"].groupby("group", sort=False)[["n_shared", "n_units"]].sum()
    for group, n in drawn[drawn["n_shared"] > 0.1 * drawn["n_units"]].iterrows():
        yield f"{n['n_shared'] / n['n_units']:.0%} of the random units beside {group} are {group} themselves, because it holds more than half of some modules: no real control"


def _silent(tables: dict[str, pd.DataFrame]) -> Iterable[str]:
    if "pruning" in tables and (silent := int(((tables["pruning"]["n_units"] > 0) & (tables["pruning"]["effect"] == 0)).sum())):
        yield f"{silent} prunings moved no logit"
