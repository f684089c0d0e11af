"""Scores by which units are ablated: how large they are, what each is worth alone, and the scores of attention heads.

Each is [layer, unit] over the prompts of a Bench; `score_units` gives any of them by name, with provenance. A score
says in what order to ablate, not which end of it matters: `side` of the curve does.
Cost: one forward over the prompts, or one for each unit for "alone".
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, UnknownName
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.model import Model
from workbench.primitives.read.capture import observe
from workbench.primitives.replace.ablation_bench import Bench, seen
from workbench.primitives.score import head_scores

SCORES: dict[str, str] = {"size": "Mean size of the output", "alone": "Change of the metric when ablated alone"}
OF_HEADS: dict[str, str] = {
    key: f"{s.title} (inactive where {'low' if s.inactive == '<' else 'high'})" for key, s in head_scores.SCORES.items()
}


def score_units(bench: Bench, by: str, *, progress: Progress = SILENT) -> Result:
    """Scores of all units by a key of SCORES, or for heads of OF_HEADS.

    Returns:
        Result with `score` [layer, unit]; partial, with nan where it did not get, if cancelled.

    Raises:
        UnknownName: on another key.
    """
    started = time.monotonic()
    known = SCORES | (OF_HEADS if bench.kind == "heads" else {})
    if by not in known:
        raise UnknownName.among(f"score of {bench.kind}", by, known)
    score = (
        unit_sizes(bench)
        if by == "size"
        else unit_effects(bench, progress)
        if by == "alone"
        else mean_head_score(bench, by)
    )
    found = scored(
        bench.model,
        score,
        {"by": by, "kind": bench.kind, "value": bench.value, "metric": bench.metric.name, "n_prompts": len(bench.rows)},
        started,
    )
    return replace(found, partial=bool(score.isnull().any()))


def scored(model: Model, score: xr.DataArray, settings: Mapping[str, object], started: float | None = None) -> Result:
    """A score [layer, unit] as a Result, such as one of the caller's own; settings say what it is of. nan keeps a
    unit out.
    """
    provenance = Provenance.start("ablation", dict(settings), 0, model=model.provenance())
    return Result(provenance.finish(time.monotonic() if started is None else started), score.to_dataset(name="score"))


def unit_sizes(bench: Bench) -> xr.DataArray:
    """[layer, unit] how large a unit's output is: mean over tokens of a neuron's |activation|, or of a vector's
    length.
    """
    names, totals = [name for layer in bench.places for name in layer], {}
    for batch in bench.batches:
        for name, tensor in seen(bench.model, batch.tokens, names).items():
            size = tensor.float().abs() if bench.kind == "neurons" else tensor.float().norm(dim=-1)
            totals[name] = totals.get(name, 0) + size.double().sum((0, 1)).cpu()
    n_tokens = sum(batch.tokens.numel() for batch in bench.batches)
    values = np.stack(
        [np.concatenate([np.atleast_1d((totals[name] / n_tokens).numpy()) for name in layer]) for layer in bench.places]
    )
    return unit_map(
        bench.shape,
        bench.labels,
        values,
        "Mean |activation|" if bench.kind == "neurons" else "Mean output norm",
        "activation units",
    )


def unit_effects(bench: Bench, progress: Progress = SILENT) -> xr.DataArray:
    """[layer, unit] |change of the metric| when a unit alone is ablated, mean over prompts; nan where cancelled before.

    Cost: a forward over the prompts for each unit.
    """
    values = np.full(bench.shape, np.nan)
    try:
        for i, (layer, unit) in enumerate(np.ndindex(*bench.shape)):
            progress.update(i, values.size, f"layer {layer}, {bench.kind} {bench.labels[unit]} alone")
            mask = np.zeros(bench.shape, bool)
            mask[layer, unit] = True
            values[layer, unit] = abs(float((bench.run(mask).value - bench.clean).mean()))
        progress.update(values.size, values.size, "done")
    except Cancelled:
        pass
    return unit_map(
        bench.shape, bench.labels, values, f"|Change of {bench.metric.name}| when ablated alone", bench.metric.unit
    )


def mean_head_score(bench: Bench, key: str) -> xr.DataArray:
    """[layer, head] a score of `head_scores.SCORES`, mean over prompts."""
    score = head_scores.score_named(key)
    totals = np.zeros(bench.shape)
    for batch in bench.batches:

        def look(layer: int, acts: Mapping[str, torch.Tensor]) -> None:
            W_O = bench.model.W_O(layer) if key.startswith("apon") else None
            totals[layer] += (
                head_scores.head_scores(acts["pattern"], acts["v"], acts["z"], W_O=W_O, keys=(key,))[key]
                .sum(0)
                .cpu()
                .numpy()
            )

        observe(bench.model, batch, ("pattern", "v", "z"), look)
    return unit_map(bench.shape, bench.labels, totals / len(bench.rows), score.title, score.shown_unit)


def unit_map(shape: tuple[int, int], labels: list[str], values: np.ndarray, title: str, unit: str) -> xr.DataArray:
    """Numbers [layer, unit] with their labels; BadData where they are of another shape."""
    if values.shape != shape:
        raise BadData(f"the score has shape {values.shape} and there are {shape[0]} layers of {shape[1]} units here")
    coords = {"layer": range(shape[0]), "unit": labels}
    return xr.DataArray(
        values.astype(np.float32),
        dims=("layer", "unit"),
        coords=coords,
        name="score",
        attrs={"long_name": title, "unit": unit},
    )
