"""Which parts can go: a metric as more and more units are ablated in the order of a score, beside as many drawn at
random.

A score finds what matters if its curve leaves the band of random sets of the same size. Each draw is one
random order; its larger sets contain its smaller ones, as the score's do. `ablation_bench` runs the
ablations and counts them.
Cost: (1 + n_random) forwards over the prompts for each share.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from workbench.core.errors import BadData, UnknownName
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.primitives.replace.ablation_bench import Bench, Outcome
from workbench.primitives.replace.ablation_scores import unit_map

Side = Literal["high", "low"]
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def ablation_curve(
    bench: Bench,
    score: xr.DataArray | np.ndarray,
    *,
    side: Side = "low",
    shares: Sequence[float] = SHARES,
    n_random: int = 5,
    seed: int = 0,
    progress: Progress = SILENT,
    resume: Result | None = None,
) -> Result:
    """The metric as units are ablated in the order of a score, and as many drawn at random.

    Args:
        score: [layer, unit]; nan keeps a unit out, of the random draws too. side: "high" takes the highest first.
        shares: of the units with a score; those that round to the same number are run once.
        n_random: draws; each is one random order, so its sets are nested as the score's are. seed: draws them.
        progress: per run; a cancelled curve has nan where it did not get, and can be given as `resume`.

    Returns:
        Result over share (realised), example, draw, layer, unit: `value` [share, example] and `random_value` [draw,
        share, example] in the metric's unit; `n_ablated`, `firings`, `n_replaced`, `effect` (logits, first batch) and
        `threshold` (score of the last unit taken) [share]; `random_effect` [draw, share]; `score` [layer, unit].

    Raises:
        BadData: on a score of the wrong shape or without a number, or a partial Result of another curve.
    """
    title, unit = (
        (score.attrs.get("long_name", "Score"), score.attrs.get("unit", "as given"))
        if isinstance(score, xr.DataArray)
        else ("Score", "as given")
    )
    given = unit_map(bench.shape, bench.labels, np.asarray(score, float), title, unit)
    ordered = _order(bench, given.values, side)
    counts = sorted({0, *(round(share * len(ordered)) for share in shares)})
    return _measure(bench, given, side, ordered, counts, n_random, seed, progress, resume)


def ablate_set(
    bench: Bench, mask: np.ndarray, *, n_random: int = 5, seed: int = 0, progress: Progress = SILENT
) -> Result:
    """A chosen set of units, bool [layer, unit], beside as many drawn at random: `ablation_curve` with one step.

    Raises:
        BadData: if the set is empty.
    """
    if not np.any(mask):
        raise BadData("no unit is chosen, so nothing would be ablated; choose at least one")
    given = unit_map(bench.shape, bench.labels, np.asarray(mask, float), "Chosen", "1 where chosen")
    return _measure(
        bench,
        given,
        "high",
        _order(bench, given.values, "high"),
        [0, int(np.sum(mask))],
        n_random,
        seed,
        progress,
        None,
    )


def _order(bench: Bench, score: np.ndarray, side: str) -> np.ndarray:
    """Flat numbers of the units with a score, the first to go first; ties in the order of the model."""
    flat = score.ravel()
    eligible = np.flatnonzero(np.isfinite(flat))
    if not len(eligible):
        raise BadData("no unit has a score, so there is no order to ablate them in")
    if side not in ("high", "low"):
        raise UnknownName.among("side", side, ("high", "low"))
    return eligible[np.argsort(-flat[eligible] if side == "high" else flat[eligible], kind="stable")]


def _measure(
    bench: Bench,
    score: xr.DataArray,
    side: str,
    ordered: np.ndarray,
    counts: Sequence[int],
    n_random: int,
    seed: int,
    progress: Progress,
    resume: Result | None,
) -> Result:
    started = time.monotonic()
    settings = {
        "kind": bench.kind,
        "value": bench.value,
        "metric": bench.metric.name,
        "side": side,
        "score": str(score.attrs.get("long_name", "")),
        "counts": list(counts),
        "n_random": n_random,
        "seed": seed,
        "pairing_seed": bench.seed,
        "order": _digest(ordered.tobytes()),
    }
    about = {"n_examples": len(bench.rows), "rows": _digest(repr([list(map(int, row)) for row in bench.rows]).encode())}
    provenance = Provenance.start("ablation", settings, seed, model=bench.model.provenance(), data=about)
    data = _empty(bench, score, ordered, counts, n_random)
    if resume is not None:
        before = resume.provenance
        if (
            before.spec != provenance.spec
            or before.data != provenance.data
            or before.model.get("weights") != provenance.model.get("weights")
        ):
            raise BadData(
                "the partial result is of another curve, other weights or other prompts, so its runs cannot be reused"
            )
        for name in data.data_vars:
            data[name].values[:] = resume.data[name].values
    runs = list(_runs(data, ordered, counts, n_random, seed))
    warnings: list[str] = []
    partial = False
    try:
        for done, (units, text, take) in enumerate(runs):
            progress.update(done, len(runs), text)
            mask = np.zeros(bench.shape, bool)
            mask.ravel()[units] = True
            outcome = bench.run(mask)
            take(outcome)
            if outcome.n_replaced and outcome.effect == 0:
                warnings.append(
                    f"{outcome.n_replaced} entries were replaced and the logits of the first batch did not move:"
                    " nothing downstream reads them"
                )
        progress.update(len(runs), len(runs), "done")
    except Cancelled:
        partial = bool(np.isnan(data["value"].values).any() or np.isnan(data["random_value"].values).any())
    return Result(provenance.finish(started), data, partial=partial, warnings=tuple(dict.fromkeys(warnings)))


def _runs(
    data: xr.Dataset, ordered: np.ndarray, counts: Sequence[int], n_random: int, seed: int
) -> Iterator[tuple[np.ndarray, str, Callable[[Outcome], None]]]:
    """(units, what to say, where the outcome goes) of every run that is still to be made, share by share."""
    drawn = [
        np.random.default_rng([seed, 17, draw]).permutation(np.sort(ordered)) for draw in range(n_random)
    ]  # whatever the score

    def take(i: int) -> Callable[[Outcome], None]:
        def own(outcome: Outcome) -> None:
            data["value"].values[i], data["effect"].values[i] = outcome.value, outcome.effect
            data["firings"].values[i], data["n_replaced"].values[i] = outcome.firings, outcome.n_replaced
            if counts[i] in (0, len(ordered)):  # then every random set is this one
                data["random_value"].values[:, i], data["random_effect"].values[:, i] = outcome.value, outcome.effect

        return own

    def take_random(i: int, draw: int) -> Callable[[Outcome], None]:
        def random(outcome: Outcome) -> None:
            data["random_value"].values[draw, i], data["random_effect"].values[draw, i] = outcome.value, outcome.effect

        return random

    for i, count in enumerate(counts):
        if np.isnan(data["value"].values[i]).any():
            yield ordered[:count], f"{count} units by score", take(i)
        for draw in range(n_random if 0 < count < len(ordered) else 0):
            if np.isnan(data["random_value"].values[draw, i]).any():
                yield drawn[draw][:count], f"{count} random units, draw {draw}", take_random(i, draw)


def _empty(bench: Bench, score: xr.DataArray, ordered: np.ndarray, counts: Sequence[int], n_random: int) -> xr.Dataset:
    sizes = {"share": len(counts), "example": len(bench.rows), "draw": n_random}
    unit = bench.metric.unit
    described = {
        "value": (("share", "example"), f"{bench.metric.name}, ablated by score", unit),
        "random_value": (("draw", "share", "example"), f"{bench.metric.name}, random units ablated", unit),
        "firings": (("share",), "Hooks that ran", "calls"),
        "n_replaced": (("share",), "Entries replaced", "units x prompts"),
        "effect": (("share",), "Largest logit change, mean over the first batch", "logits"),
        "random_effect": (("draw", "share"), "Largest logit change, mean over the first batch", "logits"),
    }
    counted = ("firings", "n_replaced")
    variables = {
        name: (
            dims,
            np.full([sizes[d] for d in dims], np.nan, np.float64 if name in counted else np.float32),
            {"long_name": title, "unit": u},
        )
        for name, (dims, title, u) in described.items()
    }
    flat = score.values.ravel()
    data = xr.Dataset(
        variables,
        {
            "share": np.array(counts) / len(ordered),
            "draw": range(n_random),
            "layer": range(bench.shape[0]),
            "unit": bench.labels,
        },
    )
    data["n_ablated"] = "share", np.array(counts), {"long_name": "Units ablated", "unit": "units"}
    data["threshold"] = (
        "share",
        np.array([np.nan if c == 0 else flat[ordered[c - 1]] for c in counts]),
        {"long_name": "Score of the last unit taken", "unit": score.attrs.get("unit", "")},
    )
    data["score"] = (
        ("layer", "unit"),
        score.values,
        {"long_name": score.attrs.get("long_name", "Score"), "unit": score.attrs.get("unit", "")},
    )
    data.attrs = {"metric": bench.metric.name, "kind": bench.kind, "value": bench.value, "n_units": len(ordered)}
    return data


def _digest(what: bytes) -> str:
    import hashlib

    return hashlib.sha256(what).hexdigest()[:16]
