"""One unit, a cell at a seed: plant and gate, then everything that is measured on a cell that is purified."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.datasets import poisoning
from workbench.primitives.score.channel_signatures import HEAD, channel_changes, signature
from workbench.primitives.score.statistics import intersection_over_union
from workbench.runs.study import Part, Steps, Unit

from .cell import Bench, Row
from .sanity import sanity_models
from .scores import SCORES, score
from .sets import of_files, of_world
from .spec import GIVEN, NEVER, Spec
from .suspects import Suspect, Whole, fresh, of_folder

GATE = 15.0  # undefended ASR, in percent, below which a cell is dropped (paper card, gate A)
SIGNATURE, NORMALISED, RANDOM, ALONE = "signature", "normalised signature", "random channels", "recovery alone"


def changes_of(result: Result, cell: str, seed: int, origin: str | None = None) -> xr.Dataset:
    """`norm` and `cosine` of one run, as `primitives.score.channel_signatures.scores` takes them.

    Raises:
        BadData: if that run is not in the result.
    """
    names = ("origin", "cell", "seed") if "origin" in result.data.coords else ()
    runs = list(zip(*(result.data[name].values.tolist() for name in names), strict=True))
    hit = [i for i, (o, c, s) in enumerate(runs) if c == cell and s == seed and origin in (None, o)]
    if not hit:
        there = ", ".join(f"{c} at {s} ({o})" for o, c, s in runs) or "none"
        raise BadData(f"no purified run of {cell} at seed {seed} in this Result; it has {there}")
    found = result.data[["norm", "cosine"]].isel(run=hit[0])
    found = found.dropna("variant", how="all", subset=["norm"]).dropna("pair", how="all", subset=["cosine"])
    first, second = np.array([str(pair).split("-") for pair in found["pair"].values], int).reshape(-1, 2).T
    return found.assign_coords(first=("pair", first), second=("pair", second))


def of_mlp(changes: xr.Dataset) -> xr.Dataset:
    """The channels of the MLPs, without heads."""
    return changes.isel(channel=np.flatnonzero(changes["module"].values != HEAD))


def prepared(spec: Spec, unit: Unit, base: Any, tokenizer: Any, steps: Steps) -> Bench:
    """The suspicious model of a unit with its sets: planted here, or given."""
    cell, seed = str(unit.axes["cell"]), unit.seed
    attack, behaviour, form = spec.parts(cell)
    if cell == GIVEN:
        given: Suspect = Whole(base) if spec.adapter is None else of_folder(base, spec.adapter)
        return Bench(spec, unit, given, tokenizer, of_files(spec, seed), steps)
    door = poisoning.backdoor("badnets" if attack == NEVER else attack, behaviour)
    bench = Bench(spec, unit, fresh(base, form, seed), tokenizer, of_world(spec, door, seed), steps)
    if attack != NEVER:
        pairs = bench.pairs(poisoning.poison(bench.sets.planting, door, seed=seed))
        bench.suspect = bench.suspect.tuned(pairs, spec.planting.replace(seed=seed), progress=steps.tick("planting"))
    return bench


def suspicious_and_purified(spec: Spec, unit: Unit, base: Any, tokenizer: Any, steps: Steps) -> tuple[Suspect, Suspect]:
    """The suspicious model of a unit, and what the signature's cut and the recovery make of it."""
    bench = prepared(spec, unit, base, tokenizer, steps)
    clean = bench.variants()
    values = bench.scored(bench.changes(bench.variants(spec.parts(bench.cell)[1]), clean))
    return bench.suspect, bench.purified(signature(values, bench.share), values)


def run_unit(spec: Spec, unit: Unit, base: Any, tokenizer: Any, steps: Steps) -> Part:
    """Changes of the channels, where the cell is purified, and the unit's tables."""
    bench = prepared(spec, unit, base, tokenizer, steps)
    attack, behaviour, form = spec.parts(bench.cell)
    undefended = bench.note(bench.suspect, "suspicious", "undefended")
    kept = attack in (NEVER, GIVEN) or undefended["asr"] >= GATE
    rows = {"gate": [{"attack": attack, "behaviour": behaviour, "form": form, "kept": kept} | undefended]}
    is_purified = kept and (bench.cell == GIVEN or bench.cell in spec.purified)
    data = _purify(bench, behaviour, base, rows) if is_purified else None
    return Part(data, {name: pd.DataFrame(found) for name, found in rows.items() if found})


def _purify(bench: Bench, behaviour: str, base: Any, rows: dict[str, list[Row]]) -> xr.Dataset:
    spec, deep, n_heads = bench.spec, bench.cell in bench.spec.in_depth, base.config.num_attention_heads
    clean: list[Suspect] = []
    if folders := (spec.poisoned_folders, spec.clean_folders) if spec.poisoned_folders else ():
        changes = channel_changes(*folders, heads=True, n_heads=n_heads, progress=bench.steps)
    else:
        clean = bench.variants()
        changes = bench.changes(bench.variants(behaviour), clean, n_heads)
    mlp, rows["arms"] = of_mlp(changes), bench.rows
    values = bench.scored(mlp)
    by_module = bench.scored(mlp, normalised=True, alignment_weight=spec.normalised_weight)
    chosen, other = signature(values, bench.share), signature(by_module, bench.share)
    after = bench.suppress(chosen, values, SIGNATURE, repair=True)
    bench.suppress(other, by_module, NORMALISED, repair=deep)
    for draw, random in bench.random_draws(chosen, values):
        bench.suppress(random, values, RANDOM, draw, all_stages=deep)
    alone = bench.recover(bench.suspect, bench.sets.recovery)
    bench.note(alone, ALONE, "recovered")
    if deep:
        bench.note(bench.recover(alone, bench.sets.repair), ALONE, "repaired")
        _baselines(bench, clean, changes, chosen)
        rows["tau"] = _curve(bench, {SIGNATURE: values, NORMALISED: by_module})
        rows["ablation"] = _ablate(bench, mlp, {SIGNATURE: chosen, NORMALISED: other})
        rows["sanity"] = _sanity(bench, base)
    if clean:
        rows["transfer"] = _transfer(bench, clean)
    if bench.sets.asked.triggered:
        rows["examples"] = bench.examples(bench.suspect, after)
    return _by_pair(changes)


def _baselines(bench: Bench, clean: Sequence[Suspect], changes: xr.Dataset, chosen: np.ndarray) -> None:
    again = bench.scored(of_mlp(bench.changes(bench.variants(shift=500), clean)))  # without a key, in another order
    bench.suppress(signature(again, bench.share), again, "triggerless variants", all_stages=False)
    everywhere, is_head = bench.scored(changes), changes["module"].values == HEAD
    with_heads = signature(everywhere, bench.spec.heads_share) & is_head
    with_heads[~is_head] = chosen
    bench.suppress(with_heads, everywhere, "signature with heads")
    for draw, random in bench.random_draws(with_heads, everywhere):
        bench.suppress(random, everywhere, "random with heads", draw, all_stages=False)
    bench.prune(again)  # for its coordinates: the channels of the MLPs
    bench.make_consistent()


def _measured(bench: Bench, arm: str, draw: int = 0) -> Row:
    """Scores of a recovered arm that was measured before."""
    row = next(r for r in bench.rows if (r["arm"], r["stage"], r["draw"]) == (arm, "recovered", draw))
    return {name: value for name, value in row.items() if name in SCORES or name.startswith("utility_")}


def _curve(bench: Bench, by: Mapping[str, xr.DataArray]) -> list[Row]:
    """Each signature and random channels of each share, recovered; share 0 is the recovery alone, the same for all."""
    rows = [{"kind": kind, "share": 0.0, "draw": 0} | _measured(bench, ALONE) for kind in (*by, RANDOM)]
    for share in sorted({bench.share, *bench.spec.shares} - {0.0}):
        sets = [(kind, 0, signature(values, share)) for kind, values in by.items()]
        sets += [(RANDOM, draw, random) for draw, random in bench.random_draws(sets[0][2], by[SIGNATURE])]
        for kind, draw, chosen in sets:
            known = share == bench.share
            found = _measured(bench, kind, draw) if known else bench.score(bench.purified(chosen, by[SIGNATURE]))
            rows.append({"kind": kind, "share": share, "draw": draw} | found)
    return rows


def _ablate(bench: Bench, changes: xr.Dataset, known: Mapping[str, np.ndarray]) -> list[Row]:
    """N, lambda on raw norms and by module, and each term alone; a choice that was met before is not measured again."""
    spec, n = bench.spec, changes.sizes["variant"]
    raw, by_module = {*spec.weights, spec.alignment_weight}, {*spec.normalised_weights, spec.normalised_weight}
    tried: list[tuple[str, object, Row]] = [("N", k, {"variants": k}) for k in sorted({*spec.fewer, n})]
    for factor, weights, is_normalised in (("raw norms", raw, False), ("norms by module", by_module, True)):
        changed = [{"alignment_weight": weight, "normalised": is_normalised} for weight in sorted(weights)]
        tried += [(f"lambda, {factor}", f"{each['alignment_weight']:g}", each) for each in changed]
    tried += [("one term", only, {"only": only}) for only in ("magnitude", "alignment")]
    seen = {chosen.tobytes(): _measured(bench, arm) for arm, chosen in known.items()}
    rows = []
    for factor, value, changed in tried:
        values = bench.scored(changes, **changed)
        chosen = signature(values, bench.share)
        if (key := chosen.tobytes()) not in seen:
            seen[key] = bench.score(bench.purified(chosen, values))
        overlap = intersection_over_union(chosen, known[SIGNATURE])
        rows.append({"factor": factor, "value": str(value), "overlap": overlap} | seen[key])
    return rows


def _transfer(bench: Bench, clean: Sequence[Suspect]) -> list[Row]:
    """Signatures of variants that were taught another behaviour than the attack's."""
    rows = []
    for taught, attacked in (pair.split(">") for pair in bench.spec.transfer):
        if bench.cell == f"badnets-{attacked}-full":
            values = bench.scored(bench.changes(bench.variants(taught), clean))
            left = bench.score(bench.purified(signature(values, bench.share), values))
            rows.append({"taught": taught, "attacked": attacked} | left)
    return rows


def _sanity(bench: Bench, base: Any) -> list[Row]:
    bench.steps.tick("sanity matrix")
    models = sanity_models(bench.suspect.plain, base, base.config.num_hidden_layers)
    return [about | score(module, bench.tokenizer, bench.sets.asked) for about, module in models]


def _by_pair(changes: xr.Dataset) -> xr.Dataset:
    """With pairs named 0-1, so that runs of different N join; single precision."""
    pairs = [f"{a}-{b}" for a, b in zip(changes["first"].values, changes["second"].values, strict=True)]
    data = changes.drop_vars(["first", "second"]).assign_coords(pair=("pair", np.array(pairs, dtype=str)))
    data = data.astype(np.float32)
    data["norm"].attrs, data["cosine"].attrs = changes["norm"].attrs, changes["cosine"].attrs
    return data
