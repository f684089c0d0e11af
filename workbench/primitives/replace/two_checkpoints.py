"""Two checkpoints side by side: are they comparable at all, what changed in a measurement, what changed in the weights.

A fine-tune and its base can be compared head by head only if heads, layers and tokens mean the same in both, so
`refuse_misaligned` comes first and says where they part. `compare` takes the same variable of two Results, paired by
example; `weight_change` needs no run at all.
Cost: `compare` n_draws x cells numbers, in chunks; `weight_change` one pass over the weights, a tensor at a time in
float64.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import BadData, UnknownName, UnsupportedModel
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Batch, Inputs, rows_of
from workbench.models.model import Model
from workbench.primitives.replace.sweeps import Source, sweep
from workbench.primitives.score.metrics import Metric

SHAPES = ("kind", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_vocab")
CELLS_AT_ONCE = 4096
FEW = 20  # examples below which an interval is legal but fragile


def refuse_misaligned(a: Model, b: Model, inputs: Inputs) -> None:
    """Raise unless the two models have the same shapes and read the same tokens.

    Args:
        inputs: none, to compare shapes alone; texts, tokenised by both; or ids, which are compared as text where both
            have a tokenizer.

    Raises:
        UnsupportedModel: naming the first shape that differs, with both values.
        BadData: naming text and position of the first token that differs, or the first id that means another token.
        NoTokenizer: on texts, if one model came without a tokenizer.
    """
    for name in SHAPES:
        if (one := getattr(a, name)) != (other := getattr(b, name)):
            raise UnsupportedModel(
                f"{a.name} and {b.name} cannot be compared place by place: {name} is {one} and {other}"
            )
    if isinstance(inputs, (list, tuple)) and not inputs:
        return  # shapes alone were asked about
    is_text = isinstance(inputs, str) or (not isinstance(inputs, (torch.Tensor, Batch)) and isinstance(inputs[0], str))
    if not is_text and (a.tokenizer is None or b.tokenizer is None):
        return  # ids of a model without a tokenizer have no text to compare
    for i, (one, other) in enumerate(zip(rows_of(a, inputs), rows_of(b, inputs), strict=True)):
        _refuse_other_tokens(a, b, one, other, f"{'text' if is_text else 'row'} {i}")


def _refuse_other_tokens(a: Model, b: Model, ids_a: Sequence[int], ids_b: Sequence[int], where: str) -> None:
    """BadData at the first position where id or text of the token differ."""
    one, other = (list(zip(m.to_strings(ids), ids, strict=True)) for m, ids in ((a, ids_a), (b, ids_b)))
    for pos, (token_a, token_b) in enumerate(zip_longest(one, other)):
        if token_a != token_b:
            said = [f"{token[0]!r} (id {int(token[1])})" if token else "nothing" for token in (token_a, token_b)]
            raise BadData(
                f"the tokenizers of {a.name} and {b.name} part at token {pos} of {where}: {said[0]} and {said[1]};"
                " positions beyond it do not correspond"
            )


# ---- a measurement ----


def sweep_both(a: Model, b: Model, base: Inputs, source: Source, metric: Metric, **options: Any) -> Result:
    """The same sweep on two checkpoints, and what is different: `compare` of b minus a, cell by cell.

    Args:
        a, b: models of the same shapes that read the same tokens. base, source, metric, options: as for `sweeps.sweep`;
            the metric must not depend on one of the models (kl_div to a run of `a` does).

    Raises:
        UnsupportedModel, BadData: if the models do not correspond, saying where.
    """
    refuse_misaligned(a, b, base)
    one, other = (sweep(model, base, source, metric, **options) for model in (a, b))
    return compare(one, other, "value")


def sweep_effects_both(a: Model, b: Model, base: Inputs, source: Source, metric: Metric, **options: Any) -> Result:
    """What replacing each cell does to the metric, in B minus in A: `compare` of (value - base_value), cell by cell.

    `sweep_both` compares the metric itself, so a fine-tune that is worse everywhere is worse in every cell; here the
    untouched run of each checkpoint is taken off first, and a cell stands out only if its role changed. Arguments as
    there.

    Returns:
        The Result of `compare`, with `mean_a` and `mean_b`, the mean effect in each, and `base_difference` [example],
        untouched B minus A.

    Raises:
        UnsupportedModel, BadData: if the models do not correspond, saying where.
    """
    refuse_misaligned(a, b, base)
    one, other = (_with_effect(sweep(model, base, source, metric, **options)) for model in (a, b))
    found = compare(one, other, "effect")
    for name, run in (("mean_a", one), ("mean_b", other)):
        found.data[name] = run.data["effect"].mean("example").assign_attrs(run.data["effect"].attrs)
    untouched = other.data["base_value"] - one.data["base_value"]
    found.data["base_difference"] = untouched.assign_attrs(
        unit=metric.unit, long_name=f"{metric.name} of the untouched run, change"
    )
    return found


def _with_effect(run: Result) -> Result:
    about = {
        "unit": run.data["value"].attrs["unit"],
        "long_name": f"Effect on {run.data.attrs['metric']} of replacing {run.data.attrs['site']}",
    }
    return replace(
        run,
        data=run.data.assign(
            effect=(run.data["value"] - run.data["base_value"]).transpose(*run.data["value"].dims).assign_attrs(about)
        ),
    )


def compare(
    run_a: Result, run_b: Result, variable: str, *, level: float = 0.95, n_draws: int = 2000, seed: int = 0
) -> Result:
    """B minus A of a variable measured on the same examples, with its uncertainty in every cell.

    Args:
        run_a, run_b: Results whose `variable` has the same dims and coords, `example` among them.
        level, n_draws, seed: of the percentile bootstrap over examples (`statistics.bootstrap_interval`, the same
            draws).

    Returns:
        Result with `difference` (all dims), and `mean`, `standard_error` (of the mean, nan for one example), `low`,
        `high` over all dims but `example`, in the variable's unit. Partial if one of the two is.

    Raises:
        UnknownName: if one has no such variable. BadData: if there is no `example` dim, or dims or coords differ,
            naming which.
    """
    started = time.monotonic()
    one, other = (_variable(run, variable, which) for run, which in ((run_a, "first"), (run_b, "second")))
    _refuse_other_cells(one, other, variable)
    difference = (other.astype(np.float64) - one.astype(np.float64)).transpose("example", ...)
    values = difference.values.reshape(difference.sizes["example"], -1)
    n = len(values)
    low, high = _intervals(values, level, n_draws, seed)
    spread = values.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[1], np.nan)
    unit, title = one.attrs.get("unit", ""), one.attrs.get("long_name", variable)
    cells = difference.isel(example=0, drop=True)
    data = difference.transpose(*one.dims).rename("difference").to_dataset()
    for name, found in {"mean": values.mean(0), "standard_error": spread, "low": low, "high": high}.items():
        data[name] = cells.copy(data=found.reshape(cells.shape))
    for name, words in {
        "difference": "",
        "mean": "mean ",
        "standard_error": "s.e. of the mean ",
        "low": f"{level:.0%} low ",
        "high": f"{level:.0%} high ",
    }.items():
        data[name].attrs = {"long_name": f"{title}, {words}change", "unit": unit}
    warnings = [*run_a.warnings, *run_b.warnings]
    if n < FEW:
        warnings.append(
            f"{n} example{'s' if n > 1 else ''}: intervals from fewer than {FEW} are narrower than they should be"
        )
    if unmeasured := int(np.isnan(values).any(0).sum()):
        warnings.append(
            f"{unmeasured} of {values.shape[1]} cells lack a value for some example, so their change is nan"
        )
    spec = {"variable": variable, "level": level, "n_draws": n_draws, "a": run_a.spec, "b": run_b.spec}
    models = {
        "a": run_a.provenance.model,
        "b": run_b.provenance.model,
        "name": " minus ".join(r.provenance.model.get("name", "no model") for r in (run_b, run_a)),
    }
    provenance = Provenance.start(
        "two_checkpoints", spec, seed, model=models, data={"a": run_a.provenance.data, "b": run_b.provenance.data}
    )
    return Result(provenance.finish(started), data, {}, run_a.partial or run_b.partial, tuple(dict.fromkeys(warnings)))


def _variable(run: Result, name: str, which: str) -> xr.DataArray:
    if name not in run.data.data_vars:
        raise UnknownName.among("variable", name, [str(v) for v in run.data.data_vars], f"That is the {which} Result.")
    if "example" not in run.data[name].dims:
        raise BadData(
            f"{name} of the {which} Result has dims {', '.join(map(str, run.data[name].dims))} and no `example` to pair"
            " and resample"
        )
    return run.data[name]


def _refuse_other_cells(one: xr.DataArray, other: xr.DataArray, variable: str) -> None:
    if one.dims != other.dims:
        raise BadData(f"{variable} has dims {list(one.dims)} in the first Result and {list(other.dims)} in the second")
    for dim in one.dims:
        labels = [list(array[dim].values) for array in (one, other)]
        if labels[0] != labels[1]:
            at = next(i for i, (x, y) in enumerate(zip_longest(*labels, fillvalue="nothing")) if x != y)
            said = [
                (
                    repr(values[at].item() if hasattr(values[at], "item") else values[at])
                    if at < len(values)
                    else "nothing"
                )
                for values in labels
            ]
            raise BadData(
                f"{variable} is not measured at the same places: {dim} {at} is {said[0]} in the first Result and"
                f" {said[1]} in the second"
            )


def _intervals(values: np.ndarray, level: float, n_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[example, cell] -> low and high [cell]: `statistics.bootstrap_interval` of each column, all from the same
    draws.
    """
    n = len(values)
    drawn = np.random.default_rng(seed).integers(0, n, (n_draws, n))
    weight = (
        np.stack([np.bincount(draw, minlength=n) for draw in drawn]) / n
    )  # [draw, example]: a mean is a product with it
    tails = [(1 - level) / 2, (1 + level) / 2]
    chunks = [
        np.quantile(weight @ values[:, i : i + CELLS_AT_ONCE], tails, axis=0)
        for i in range(0, values.shape[1], CELLS_AT_ONCE)
    ]
    low, high = np.concatenate(chunks, axis=1)
    return low, high


# ---- the weights ----


def weight_change(a: Model, b: Model) -> pd.DataFrame:
    """How far each parameter moved from A to B.

    Returns:
        One row per parameter: `parameter` (name in the checkpoint; fused queries, keys and values as q, k, v), `shape`,
        `n`, `norm_a`, `change` (Euclidean norm of B - A), `relative` (change / norm_a), `cosine` of the two flattened
        tensors (nan where one is zero).

    Raises:
        UnsupportedModel: naming the first parameter that only one has, or whose shapes differ.
    """
    first, second = sorted((a, b), key=id)  # one order for everybody, or two comparisons could wait for each other
    with first.alone(), second.alone():
        one, other = _parameters(a), _parameters(b)
        if odd := sorted(set(one) ^ set(other)):
            raise UnsupportedModel(
                f"{odd[0]} is a parameter of {(a if odd[0] in one else b).name} only ({len(odd)} such); their weights"
                " do not correspond"
            )
        return pd.DataFrame([_change(name, one[name], other[name]) for name in one])


def _parameters(model: Model) -> dict[str, Any]:
    """{name: parameter}, with the head of a classifier where there is one, and each weight once: wrapping keeps
    fused ones too.
    """
    module: Any = model.live.original_model if model.runner is model.bridge else model.runner
    found = {name.replace("_original_component.", ""): parameter for name, parameter in module.named_parameters()}
    return {
        name: parameter
        for name, parameter in found.items()
        if name.replace(".qkv.", ".q.") == name or name.replace(".qkv.", ".q.") not in found
    }


def _change(name: str, one: Any, other: Any) -> dict[str, Any]:
    if one.shape != other.shape:
        raise UnsupportedModel(
            f"{name} has shape {tuple(one.shape)} and {tuple(other.shape)}, so the two cannot be subtracted"
        )
    x, y = (tensor.detach().cpu().double().flatten() for tensor in (one, other))
    change, norm, product = float((y - x).norm()), float(x.norm()), float(x.norm() * y.norm())
    about = {"parameter": name, "shape": str(tuple(one.shape)), "n": one.numel(), "norm_a": norm, "change": change}
    return about | {
        "relative": change / norm if norm else float("nan"),
        "cosine": float(x @ y) / product if product else float("nan"),
    }
