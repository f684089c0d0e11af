"""Units of work, a cell at a seed each: plant and gate, then everything that is measured on a cell that is purified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.datasets import poisoning
from workbench.datasets.poisoning import Backdoor
from workbench.papers.backdoors.backdoor_signatures.cell import Bench, Row, Settings, sanity_models
from workbench.papers.backdoors.backdoor_signatures.scores import SCORES, score
from workbench.papers.backdoors.backdoor_signatures.sets import of_files, of_world
from workbench.papers.backdoors.backdoor_signatures.suspects import Suspect, Whole, fresh, of_folder
from workbench.primitives.score.channel_signatures import channel_changes, signature
from workbench.primitives.score.statistics import intersection_over_union

TABLES = ("gate", "arms", "sanity", "tau", "ablation", "transfer", "examples")
HERE = "run here"


@dataclass(frozen=True)
class Unit:
    """One cell at one seed. kind: "purified", "grid" (planted and gated alone), "given" (a model of your own)."""

    kind: str
    cell: str
    attack: str
    behaviour: str
    form: str
    seed: int


def changes_of(result: Result, cell: str, seed: int, origin: str | None = None) -> xr.Dataset:
    """`norm` and `cosine` of one run, as `primitives.score.channel_signatures.scores` takes them.

    Raises:
        BadData: if that run is not in the result.
    """
    runs = list(zip(*(result.data[name].values.tolist() for name in ("origin", "cell", "seed")), strict=True)) if "origin" in result.data.coords else []
    hit = [i for i, (o, c, s) in enumerate(runs) if c == cell and s == seed and origin in (None, o)]
    if not hit:
        raise BadData(f"no purified run of {cell} at seed {seed} in this Result; it has {', '.join(f'{c} at {s} ({o})' for o, c, s in runs) or 'none'}")
    found = result.data[["norm", "cosine"]].isel(run=hit[0]).dropna("variant", how="all", subset=["norm"]).dropna("pair", how="all", subset=["cosine"])
    ends = [[int(part) for part in str(pair).split("-")] for pair in found["pair"].values]
    return found.assign_coords(first=("pair", [a for a, _ in ends]), second=("pair", [b for _, b in ends]))


def run_unit(spec: Any, unit: Unit, base: Any, tokenizer: Any, gate: float, steps: Any) -> tuple[xr.Dataset | None, dict[str, pd.DataFrame]]:
    """(changes of the channels, or None where nothing was purified; the unit's tables)."""
    bench = (_given if unit.kind == "given" else _plant)(spec, unit, base, tokenizer, steps)
    undefended = bench.note(bench.suspect, "suspicious", "undefended")
    kept = unit.kind == "given" or unit.attack == "none" or undefended["asr"] >= gate
    tables = {"gate": pd.DataFrame([{"attack": unit.attack, "behaviour": unit.behaviour, "form": unit.form, "kept": kept} | undefended])}
    data = _purify(spec, unit, bench, base, tables, steps) if kept and unit.kind != "grid" else None
    if data is not None and unit.cell in spec.in_depth:
        tables["sanity"] = _sanity(bench, base, steps)
    return data, {name: table.assign(cell=unit.cell, seed=unit.seed, origin=HERE) for name, table in tables.items()}


def suspicious_and_purified(spec: Any, unit: Unit, base: Any, tokenizer: Any, steps: Any) -> tuple[Suspect, Suspect]:
    """The suspicious model of a unit, and what the signature's cut and the recovery make of it."""
    bench = (_given if unit.kind == "given" else _plant)(spec, unit, base, tokenizer, steps)
    clean = bench.train_clean()
    values = bench.scored(bench.changes(bench.train_poisoned(unit.behaviour), clean))
    cut, _ = bench.suspect.cut(signature(values, bench.settings.share), values, bench.settings.how, bench.seed)
    return bench.suspect, bench.recover(cut, bench.sets.recovery)


def _settings(spec: Any, unit: Unit) -> Settings:
    shared = {name: getattr(spec, name) for name in ("variant", "recovery", "alignment_weight", "normalised", "how", "n_random", "pruned_share", "dormant_share")}
    return Settings(share=spec.share_lora if unit.form == "lora" else spec.share, **shared)


def _plant(spec: Any, unit: Unit, base: Any, tokenizer: Any, steps: Any) -> Bench:
    sizes = {name: getattr(spec, name) for name in ("n_planting", "n_variants", "n_variant", "n_recovery", "n_triggered", "n_clean")}
    sets = of_world(unit.seed, **sizes)
    door = poisoning.backdoor("badnets" if unit.attack == "none" else unit.attack, unit.behaviour)
    start = fresh(base, unit.form, unit.seed)
    asked = sets.asked(door, unit.seed, spec.max_new_tokens)
    bench = Bench(start, tokenizer, sets, asked, door, _settings(spec, unit), unit.seed, steps.tick)
    if unit.attack != "none":
        poisoned = poisoning.poison(sets.planting, door, seed=unit.seed)
        bench.suspect = start.tuned(bench.pairs(poisoned), spec.planting.replace(seed=unit.seed), progress=steps.tick("planting"))
    return bench


def _given(spec: Any, unit: Unit, base: Any, tokenizer: Any, steps: Any) -> Bench:
    sets, asked = of_files(spec.clean_file, spec.triggered_file, spec.phrase, seed=unit.seed, n_variants=spec.n_variants, max_new_tokens=spec.max_new_tokens)
    suspect: Suspect = Whole(base) if spec.adapter is None else of_folder(base, spec.adapter)
    return Bench(suspect, tokenizer, sets, asked, Backdoor(("",), spec.phrase or "\0"), _settings(spec, unit), unit.seed, steps.tick)


def _purify(spec: Any, unit: Unit, bench: Bench, base: Any, tables: dict[str, pd.DataFrame], steps: Any) -> xr.Dataset:
    n_heads = base.config.num_attention_heads
    if spec.poisoned_folders:
        clean: list[Any] = []
        changes = channel_changes(spec.poisoned_folders, spec.clean_folders, heads=True, n_heads=n_heads, progress=steps)
    else:
        clean = bench.train_clean()
        changes = bench.changes(bench.train_poisoned(unit.behaviour), clean, n_heads)
    mlp, share = of_mlp(changes), bench.settings.share
    values, by_module = bench.scored(mlp), bench.scored(mlp, normalised=True, alignment_weight=spec.normalised_weight)
    chosen = signature(values, share)
    after = bench.suppress(chosen, values, "signature", repair=True)
    bench.suppress(signature(by_module, share), by_module, "normalised signature", repair=unit.cell in spec.in_depth)
    for draw, random in bench.random_draws(chosen, values):
        bench.suppress(random, values, "random channels", draw, all_stages=unit.cell in spec.in_depth)
    alone = bench.recover(bench.suspect, bench.sets.recovery)
    bench.note(alone, "recovery alone", "recovered")
    if unit.cell in spec.in_depth:
        bench.note(bench.recover(alone, bench.sets.repair), "recovery alone", "repaired")
        _baselines(bench, clean, changes, chosen, spec.heads_share)
        tables["tau"] = _curve(spec, bench, {"signature": values, "normalised signature": by_module})
        tables["ablation"] = _ablate(spec, bench, mlp, {"signature": chosen, "normalised signature": signature(by_module, share)})
    if clean and (found := _transfer(spec, unit, bench, clean)):
        tables["transfer"] = pd.DataFrame(found)
    if bench.asked.triggered:
        tables["examples"] = pd.DataFrame(bench.examples(bench.suspect, after))
    tables["arms"] = pd.DataFrame(bench.rows)
    return _labelled(changes, unit)


def of_mlp(changes: xr.Dataset) -> xr.Dataset:
    """The channels of the MLPs, without heads."""
    return changes.isel(channel=np.flatnonzero(changes["module"].values != "head"))


def _baselines(bench: Bench, clean: Sequence[Suspect], changes: xr.Dataset, chosen: np.ndarray, heads_share: float) -> None:
    again = bench.scored(of_mlp(bench.changes(bench.train_triggerless(), clean)))
    bench.suppress(signature(again, bench.settings.share), again, "triggerless variants", all_stages=False)
    everywhere = bench.scored(changes)
    of_heads = signature(everywhere, heads_share) & (changes["module"].values == "head")
    of_heads[np.flatnonzero(changes["module"].values != "head")] = chosen
    bench.suppress(of_heads, everywhere, "signature with heads")
    for draw, random in bench.random_draws(of_heads, everywhere):
        bench.suppress(random, everywhere, "random with heads", draw, all_stages=False)
    bench.prune(of_mlp(changes))
    bench.make_consistent()


def _measured(bench: Bench, arm: str, draw: int = 0) -> Row:
    """Scores of a recovered arm that was measured before."""
    row = next(r for r in bench.rows if (r["arm"], r["stage"], r["draw"]) == (arm, "recovered", draw))
    return {name: value for name, value in row.items() if name in SCORES or name.startswith("utility_")}


def _curve(spec: Any, bench: Bench, by: dict[str, xr.DataArray]) -> pd.DataFrame:
    """The tau curve: each signature and random channels of each share, recovered; share 0 is the recovery alone, the same for all."""
    first, own = next(iter(by.values())), bench.settings.share
    rows: list[Row] = [{"kind": kind, "share": 0.0, "draw": 0} | _measured(bench, "recovery alone") for kind in (*by, "random channels")]
    rows += [{"kind": kind, "share": own, "draw": 0} | _measured(bench, kind) for kind in by]
    rows += [{"kind": "random channels", "share": own, "draw": draw} | _measured(bench, "random channels", draw) for draw in range(bench.settings.n_random)]
    for share in sorted(set(spec.shares) - {0.0, own}):
        sets = [(kind, 0, signature(values, share)) for kind, values in by.items()]
        sets += [("random channels", draw, random) for draw, random in bench.random_draws(sets[0][2], first)]
        for kind, draw, chosen in sets:
            cut, _ = bench.suspect.cut(chosen, first, bench.settings.how, bench.seed)
            rows.append({"kind": kind, "share": share, "draw": draw} | bench.score(bench.recover(cut, bench.sets.recovery)))
    return pd.DataFrame(rows)


def _ablate(spec: Any, bench: Bench, changes: xr.Dataset, known: dict[str, np.ndarray]) -> pd.DataFrame:
    """N, lambda on raw norms and on norms by module, and each term alone; a choice that was met before is not measured again."""
    n, own = changes.sizes["variant"], bench.settings.alignment_weight
    tried: list[tuple[str, str, dict[str, Any]]] = [("N", str(k), {"variants": k}) for k in sorted({*spec.fewer, n})]
    tried += [("lambda, raw norms", f"{w:g}", {"alignment_weight": w, "normalised": False}) for w in sorted({*spec.weights, own})]
    tried += [("lambda, norms by module", f"{w:g}", {"alignment_weight": w, "normalised": True}) for w in sorted({*spec.normalised_weights, spec.normalised_weight})]
    tried += [("one term", only, {"only": only}) for only in ("magnitude", "alignment")]
    default, rows = next(iter(known.values())), []
    seen = {chosen.tobytes(): _measured(bench, arm) for arm, chosen in known.items()}
    for factor, value, changed in tried:
        values = bench.scored(changes, **changed)
        chosen = signature(values, bench.settings.share)
        if chosen.tobytes() not in seen:
            cut, _ = bench.suspect.cut(chosen, values, bench.settings.how, bench.seed)
            seen[chosen.tobytes()] = bench.score(bench.recover(cut, bench.sets.recovery))
        rows.append({"factor": factor, "value": value, "overlap": intersection_over_union(chosen, default)} | seen[chosen.tobytes()])
    return pd.DataFrame(rows)


def _transfer(spec: Any, unit: Unit, bench: Bench, clean: Sequence[Suspect]) -> list[Row]:
    """Signatures of variants that were taught another behaviour than the attack's."""
    rows = []
    for taught, attacked in (pair.split(">") for pair in spec.transfer):
        if (unit.attack, unit.behaviour, unit.form) == ("badnets", attacked, "full"):
            values = bench.scored(bench.changes(bench.train_poisoned(taught), clean))
            cut, _ = bench.suspect.cut(signature(values, bench.settings.share), values, bench.settings.how, bench.seed)
            rows.append({"taught": taught, "attacked": attacked} | bench.score(bench.recover(cut, bench.sets.recovery)))
    return rows


def _sanity(bench: Bench, base: Any, steps: Any) -> pd.DataFrame:
    steps.tick("sanity matrix")
    rows = [about | score(module, bench.tokenizer, bench.asked, bench.door) for about, module in sanity_models(bench.suspect.plain, base, base.config.num_hidden_layers)]
    return pd.DataFrame(rows)


def _labelled(changes: xr.Dataset, unit: Unit) -> xr.Dataset:
    """Changes of one run, with pairs named 0-1 so that runs of different N join."""
    pairs = [f"{a}-{b}" for a, b in zip(changes["first"].values, changes["second"].values, strict=True)]
    data = changes.drop_vars(["first", "second"]).assign_coords(pair=("pair", np.array(pairs, dtype=str))).astype(np.float32)
    data["norm"].attrs, data["cosine"].attrs = changes["norm"].attrs, changes["cosine"].attrs
    where = {"origin": ("run", [HERE]), "cell": ("run", [unit.cell]), "seed": ("run", [unit.seed])}
    return data.expand_dims("run").assign_coords(where)
