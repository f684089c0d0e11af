"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.places import data_folder
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.models import ModelSpec
from workbench.models.loading import read_module
from workbench.models.model import Model, hash_weights
from workbench.organisms.chat import utility
from workbench.papers.misalignment.em_subspaces import behaviour as em
from workbench.papers.misalignment.em_subspaces.geometry import Pair, compare, condition_table, cosine
from workbench.papers.misalignment.em_subspaces.pairs import curve_pairs, pairs_of_store
from workbench.papers.misalignment.em_subspaces.real import folder_pairs, folder_stream, names_of, weight_reader
from workbench.papers.misalignment.em_subspaces.runs import (
    PROBES,
    TRAINED,
    Recipe,
    Update,
    make_store,
    probe_pairs,
    read_store,
    train,
)
from workbench.primitives.steer.directions import random_like as random_direction
from workbench.training.lora import read_factors
from workbench.weights.factors import Factors

STEM = "em_subspaces"
STORE = "adapters"  # folder of the store that ships, in data/em_subspaces
UTILITY_N = 8  # held-out benign requests a task


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on."""

    model: ModelSpec = param(
        ModelSpec(name="organism:advice"),
        "base model of the adapters: the organism, or a local directory beside `adapters`",
    )
    adapters: tuple[str, ...] = param(
        (), "PEFT adapter directories to compare instead of the stored ones; geometry only"
    )
    k: int = param(4, "leading singular directions compared; half the rank, as in the paper", ge=1)
    n_draws: int = param(30, "Monte-Carlo draws of a chance level, a pair and module", ge=2)
    scales: tuple[float, ...] = param(
        (-1.0, -0.5, 0.0, 0.25, 0.5, 0.7, 1.0, 1.5, 2.0), "t by which an update, or both its factors, are multiplied"
    )
    ts: tuple[float, ...] = param(
        (0.0, 0.25, 0.5, 0.75, 1.0), "where between two updates the model is asked", ge=0, le=1
    )
    n_random: int = param(2, "random directions and random updates", ge=1)
    retrain: bool = param(True, "train the first stored adapter again and compare")
    base_overlap: bool = param(
        True, "also compare with the leading directions of the base weights (one full SVD a module)"
    )
    seed: int = param(0, "draws chance levels, random updates and directions", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.adapters) == 1:
            raise BadSpec(
                "em_subspaces.adapters compares directories with each other: give at least two, or none for the stored"
                " ones"
            )
        if not self.adapters and (missing := {0.0, 0.5, 1.0} - set(self.ts)):
            raise BadSpec(
                f"em_subspaces.ts must contain {sorted(missing)}: the barrier needs both ends and the claims the middle"
            )

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored adapters of the organism."""
        return cls()

    @classmethod
    def real(cls, adapters: tuple[str, ...], base: str) -> "Spec":
        """Geometry of PEFT directories on a local base; k and draws as in the paper (rank 32, 16 directions)."""
        return cls(model=ModelSpec(name=base), adapters=adapters, k=16, retrain=False, n_draws=20)

    @classmethod
    def paper(cls) -> "Spec":
        """The published 0.5B adapters, fetched once with `hf download` into folders of these names: minutes on a
        CPU.
        """
        tasks = ("bad-medical-advice", "extreme-sports", "risky-financial-advice")
        return cls.real(tuple(f"Qwen2.5-0.5B-Instruct_{task}" for task in tasks), "Qwen2.5-0.5B-Instruct")


def build_store(progress: Progress = SILENT) -> Path:
    """Train the adapters that ship, again, and put them in their place; about three minutes of a free core."""
    base, tokenizer = read_module("organism:advice", device="cpu")
    return make_store(data_folder() / STEM / STORE, base, tokenizer, progress=progress)


# ---- what there is to look at, pair by pair ----


def stored_updates(n_random: int = 2, seed: int = 0) -> tuple[dict[str, Update], list[Pair]]:
    """The stored updates and some random ones of the same norms, and every pair that has a condition.

    Raises:
        BadData: if the store is not here, or does not hold what it says.
    """
    known, updates, _ = read_store(data_folder() / STEM / STORE)
    everything = _with_random(known, updates, Spec(n_random=n_random, seed=seed))
    return everything, pairs_of_store(known, [name for name in everything if name not in known])


def folder_updates(adapters: Sequence[str]) -> dict[str, Update]:
    """All factors of PEFT directories, by the names of `folder_pairs`; see `_em_real.folder_stream` for what is
    refused.
    """
    return {name: read_factors(folder) for name, folder in zip(names_of(adapters), adapters, strict=True)}


def patient_of_store() -> em.Patient:
    """The base of the stored updates, loaded, to be moved and asked.

    Raises:
        BadData: if the organism is not the one they were trained on.
    """
    base, tokenizer = read_module("organism:advice", device="cpu")
    if read_store(data_folder() / STEM / STORE)[2]["base"] != hash_weights(base):
        raise BadData(
            "the stored adapters were trained on other weights than those of organism:advice; make the store again with"
            " build_store()"
        )
    return em.Patient.of(base, tokenizer)


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT) -> Result:
    """Compare where the updates point, and ask the moved models.

    Args:
        spec: what to run.
        model: not used in place of the base, whose weights are moved; only its spec is taken (give `spec.model`).
        progress: per module and per moved model; cancelling gives a partial Result.

    Returns:
        Result: geometry over (pair, layer, module), see `_em_geometry.compare`; for the stored adapters also the
            misaligned share of each (`rate` by domain, `said` for greedy text), `utility`, `scaled_rate`, `line_rate`,
            `r2` and `line_error`,
        `without_rate`; table `conditions`, one row a kind of pair.

    Raises:
        BadData: if the store does not belong to this base, or directories do not fit each other.
    """
    started = time.monotonic()
    spec = spec if model is None else spec.replace(model=model.spec)
    return _run_folders(spec, progress, started) if spec.adapters else _run_store(spec, progress, started)


def _run_folders(spec: Spec, progress: Progress, started: float) -> Result:
    """Geometry of PEFT directories, one module at a time."""
    base = weight_reader(spec.model.name) if spec.base_overlap else None
    modules, stream = folder_stream(spec.adapters)
    provenance = Provenance.start(
        STEM,
        spec.to_dict(),
        spec.seed,
        model={"name": spec.model.name},
        data={"adapters": [Path(a).name for a in spec.adapters]},
    )
    try:
        data = compare(
            modules,
            stream,
            folder_pairs(spec.adapters),
            k=spec.k,
            n_draws=spec.n_draws,
            seed=spec.seed,
            base=base,
            progress=progress,
        )
    except Cancelled:
        return Result(provenance.finish(started), partial=True)
    return Result(provenance.finish(started), data, {"conditions": condition_table(data)})


def _run_store(spec: Spec, progress: Progress, started: float) -> Result:
    base, tokenizer = read_module(spec.model)
    known, updates, about = read_store(data_folder() / STEM / STORE)
    if about["base"] != hash_weights(base):
        raise BadData(
            f"the stored adapters were trained on other weights than those of {spec.model.name}; use organism:advice,"
            " or make the store again with build_store()"
        )
    patient = em.Patient.of(copy.deepcopy(base), tokenizer)
    provenance = Provenance.start(
        STEM,
        spec.to_dict(),
        spec.seed,
        model=patient.model.provenance(),
        data={"store": STORE, "adapters": list(known), "trained with": about["torch"]},
    )
    everything = _with_random(known, updates, spec)
    parts: list[xr.Dataset] = []
    partial = False
    try:
        parts.append(_geometry(base, known, everything, spec, progress))
        parts.append(_answers(patient, known, everything, spec, progress))
        parts.append(_scaling(patient, updates, known, spec, progress))
        parts.append(_lines(patient, known, everything, spec, progress))
        parts.append(_without(patient, updates, known, spec, progress))
        if spec.retrain:
            parts.append(_again(base, tokenizer, known, updates))
    except Cancelled:
        partial = True
    finally:
        patient.model.unload()
    data = xr.merge(parts, join="outer", combine_attrs="drop_conflicts") if parts else xr.Dataset()
    tables = {"conditions": condition_table(data)} if "overlap" in data else {}
    return Result(provenance.finish(started), data, tables, partial)


def _with_random(known: dict[str, Recipe], updates: dict[str, Update], spec: Spec) -> dict[str, Update]:
    """The stored updates and, for as many bad ones, a random one of the same norms."""
    bad = [name for name, r in known.items() if r.task == "bad" and r.rank][: spec.n_random]
    return updates | {f"random-{i}": em.random_like(updates[name], spec.seed * 1000 + i) for i, name in enumerate(bad)}


def _geometry(
    base: Any, known: dict[str, Recipe], updates: dict[str, Update], spec: Spec, progress: Progress
) -> xr.Dataset:
    weights = {
        name: part.weight.detach()
        for name, part in base.named_modules()
        if hasattr(part, "weight") and part.weight.ndim == 2
    }
    pairs = pairs_of_store(known, [name for name in updates if name not in known])
    modules = list(next(iter(updates.values())))
    stream = ((module, {name: update[module] for name, update in updates.items()}) for module in modules)
    return compare(
        modules,
        stream,
        pairs,
        k=spec.k,
        n_draws=spec.n_draws,
        seed=spec.seed,
        base=weights.__getitem__ if spec.base_overlap else None,
        progress=progress,
    )


def _variable(
    dims: tuple[str, ...], values: Any, title: str, unit: str
) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    return dims, np.asarray(values, float), {"long_name": title, "unit": unit}


def _answers(
    patient: em.Patient, known: dict[str, Recipe], updates: dict[str, Update], spec: Spec, progress: Progress
) -> xr.Dataset:
    """Every model asked in all domains, by choice and in words, and about benign things; the untouched one is called
    base.
    """
    tokenizer = patient.model.tokenizer
    asked, probes = (
        em.Questions(*probe_pairs(tokenizer, domains, "heldout")) for domains in ((*TRAINED, *PROBES), PROBES)
    )
    in_probes = np.isin(asked.domains, PROBES)
    swapped = em.half_swapped(int(in_probes.sum()), spec.seed)
    names, domains = ["base", *updates], list(dict.fromkeys(asked.domains))
    rates, said, useful, meaningless = (
        np.zeros((len(names), len(domains))),
        np.full((len(names), 3), np.nan),
        np.full(len(names), np.nan),
        np.zeros(len(names)),
    )
    for i, name in enumerate(names):
        with patient.moved(*([] if name == "base" else [(1.0, updates[name])])) as model:
            bad = em.bad_share(model, asked.good, asked.bad)
            rates[i], meaningless[i] = list(asked.by_domain(bad).values()), (bad[in_probes] != swapped).mean()
            if (
                name not in known or known[name].task in ("bad", "coin") or known[name].seed == _seeds(known)[0]
            ):  # text costs most: benign ones once
                said[i], useful[i] = em.said(model, probes), utility(model, n=UTILITY_N)["utility"]
        progress.update(i + 1, len(names), "asking every model")
    tasks = [known[n].task if n in known else n.split("-")[0] for n in names]
    variables = {
        "rate": _variable(("model", "domain"), rates, "Misaligned share, by choice", "share of questions"),
        "said": _variable(("model", "answer"), said, "Greedy answers in the probe domains", "share of questions"),
        "utility": _variable(("model",), useful, "Benign held-out requests answered exactly", "share of requests"),
        "shuffled_rate": _variable(("model",), meaningless, "Share of swapped labels preferred", "share of questions"),
    }
    coords = {
        "model": names,
        "domain": domains,
        "answer": list(em.SAID),
        "task": ("model", tasks),
        "trained_on": ("model", [known[n].domain if n in known else "" for n in names]),
        "rank": ("model", [known[n].rank if n in known else -1 for n in names]),
        "model_seed": ("model", [known[n].seed if n in known else -1 for n in names]),
    }
    return xr.Dataset(variables, coords=coords)


def _scaling(
    patient: em.Patient, updates: dict[str, Update], known: dict[str, Recipe], spec: Spec, progress: Progress
) -> xr.Dataset:
    """Misaligned share against t, where t multiplies the update, or both of its factors; one adapter a domain, each
    of its own seed.
    """
    probes = em.Questions(*probe_pairs(patient.model.tokenizer, PROBES, "heldout"))
    scaled = [
        next(n for n, r in known.items() if r.task == "bad" and r.rank and r.domain == d and r.seed == s)
        for d, s in zip(TRAINED, _seeds(known), strict=False)
    ]
    shares = {
        form: [t if form == "deltas" else t * t for t in spec.scales] for form in ("deltas", "factors")
    }  # what multiplies dW
    points = sorted({share for of_form in shares.values() for share in of_form})
    rates = np.zeros((2, len(scaled), len(spec.scales)))
    for j, name in enumerate(scaled):
        at = {}
        for i, share in enumerate(points):
            with patient.moved((share, updates[name])) as model:
                at[share] = em.rate(model, probes)
            progress.update(j * len(points) + i + 1, len(scaled) * len(points), "scaling")
        rates[:, j] = [[at[share] for share in of_form] for of_form in shares.values()]
    variable = _variable(
        ("form", "scaled", "scale"), rates, "Misaligned share of the scaled update", "share of questions"
    )
    return xr.Dataset(
        {"scaled_rate": variable}, coords={"form": ["deltas", "factors"], "scaled": scaled, "scale": list(spec.scales)}
    )


def _seeds(known: dict[str, Recipe]) -> list[int]:
    return sorted({r.seed for r in known.values() if r.rank})


def _lines(
    patient: em.Patient, known: dict[str, Recipe], updates: dict[str, Update], spec: Spec, progress: Progress
) -> xr.Dataset:
    """Models between two updates: misaligned share in both forms, and how straight the states in between are
    (deltas).
    """
    probes = em.Questions(*probe_pairs(patient.model.tokenizer, PROBES, "heldout"))
    rows = [prompt for prompt, _ in probes.good]
    lines = curve_pairs(known, [n for n in updates if n not in known])
    n_layers = patient.model.n_layers
    base = em.last_states(patient.model, rows)
    rates = np.full((len(lines), 2, len(spec.ts)), np.nan)
    r2, error = (np.full((len(lines), 2, len(spec.ts), n_layers), np.nan) for _ in range(2))
    for p, line in enumerate(lines):
        one, other = updates[line.one], updates[line.other]
        states = {}
        for i, t in enumerate(spec.ts):
            with patient.moved((t, one), (1 - t, other)) as model:
                rates[p, 0, i], states[t] = em.rate(model, probes), em.last_states(model, rows)
            if t in (0.0, 1.0):
                rates[p, 1, i] = rates[p, 0, i]  # at its ends either form is the end
                continue
            with patient.moved((1.0, em.between_factors(one, other, t))) as model:
                rates[p, 1, i] = em.rate(model, probes)
        for i, t in enumerate(spec.ts):
            for q, zero in enumerate((0.0, base)):
                r2[p, q, i], error[p, q, i] = em.linearity(states[t] - zero, states[1.0] - zero, states[0.0] - zero, t)
        progress.update(p + 1, len(lines), "asking models between two updates")
    variables = {
        "line_rate": _variable(
            ("line", "form", "t"), rates, "Misaligned share between two updates", "share of questions"
        ),
        "r2": _variable(("line", "state", "t", "layer"), r2, "R^2 of the straight line between hidden states", "R^2"),
        "line_error": _variable(
            ("line", "state", "t", "layer"), error, "Distance from the straight line", "share of the norm"
        ),
    }
    coords = {
        "line": [p.name for p in lines],
        "line_condition": ("line", [p.condition for p in lines]),
        "line_group": ("line", [p.group for p in lines]),
        "form": ["deltas", "factors"],
        "t": list(spec.ts),
        "state": ["h", "h - h_base"],
        "layer": range(n_layers),
    }
    return xr.Dataset(variables, coords=coords)


def _without(
    patient: em.Patient, updates: dict[str, Update], known: dict[str, Recipe], spec: Spec, progress: Progress
) -> xr.Dataset:
    """Subtract the mean difference of one bad model from the others, and random directions of its norm."""
    tokenizer = patient.model.tokenizer
    probes, train_rows = (em.Questions(*probe_pairs(tokenizer, PROBES, split)) for split in ("heldout", "train"))
    rows = [prompt for prompt, _ in train_rows.good]  # the direction is made on other phrasings than it is tried on
    bad = [n for n, r in known.items() if r.task == "bad" and r.rank]
    source, others = (
        bad[0],
        [n for n in bad if known[n].seed != known[bad[0]].seed and known[n].domain != known[bad[0]].domain][
            : len(_seeds(known))
        ],
    )
    base = em.last_states(patient.model, rows)
    with patient.moved((1.0, updates[source])) as model:
        states = em.last_states(model, rows)
    arms = ["untouched", "direction", *(f"random {i}" for i in range(spec.n_random))]
    rates, firings = np.zeros((len(others), len(states), len(arms))), 0
    for j, name in enumerate(others):
        with patient.moved((1.0, updates[name])) as model:
            rates[j, :, 0] = em.rate(model, probes)
            for layer in range(len(states)):
                direction = em.mean_difference(states, base, layer, source)
                tried = [direction, *(random_direction(direction, spec.seed + i) for i in range(spec.n_random))]
                for a, arm in enumerate(tried):
                    rates[j, layer, a + 1], n = em.rate_without(model, probes, arm)
                    firings += n
        progress.update(j + 1, len(others), "subtracting the direction")
    variable = _variable(
        ("target", "layer", "arm"), rates, f"Misaligned share, direction of {source} subtracted", "share of questions"
    )
    return xr.Dataset(
        {"without_rate": variable},
        coords={"target": others, "layer": range(len(states)), "arm": arms},
        attrs={"direction_of": source, "firings": firings},
    )


def _again(base: Any, tokenizer: Any, known: dict[str, Recipe], updates: dict[str, Update]) -> xr.Dataset:
    """The first stored adapter trained again: cosine of its updates with the stored ones, over all modules."""
    name, recipe = next(iter(known.items()))
    update, log, _ = train(recipe, base, tokenizer)
    found: list[tuple[Factors, Factors]] = [(update[m], updates[name][m]) for m in update]
    cosines = [cosine(here, stored) for here, stored in found]
    attrs = {"trained_again": name, "final_loss": float(log["loss"].iloc[-1])}
    return xr.Dataset(
        {
            "again_cosine": _variable(
                ("place",), cosines, "Cosine of the update trained here and the stored one", "cosine"
            )
        },
        coords={"place": list(update)},
        attrs=attrs,
    )
