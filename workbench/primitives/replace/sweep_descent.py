"""From a cell of a sweep to what it is made of: exact values and gradient estimates of the same cells.

`Cells` says which places one map shows: a whole site; the heads and the MLP of one block at one position; the q, k and
v of one head at every position; the neurons of an MLP at one position. `measure` replaces each
(primitives/replace/sweeps), `attribute` estimates the same by gradients, (source - base activation) . gradient at base,
at any site. At z and mlp_out that estimate is `attribution.attribute_nodes` (the tests hold them equal), which knows no
streams, q/k/v or neurons.
Source: Nanda 2023, "Attribution patching"; Zhang & Nanda (arXiv 2309.16042) for the sweeps.
Cost: `measure` as `plan` says; `attribute` two forwards and a backward, and the sites' activations.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.hooks import SITES
from workbench.core.progress import SILENT, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.model import Hook, Model
from workbench.primitives.replace import sweep_plan
from workbench.primitives.replace.ablation import UNITS
from workbench.primitives.replace.sweep_plan import Axis, Job, Plan, read_site, settle
from workbench.primitives.replace.sweeps import FromRun, sweep
from workbench.primitives.score.metrics import Metric


@dataclass(frozen=True)
class Ask:
    """One sweep's worth of cells. labels: what its units (or its one site) are called on the axis "part"; if empty,
    the site's own dims are kept.
    """

    site: str
    axes: tuple[Axis, ...] = ("pos",)
    layers: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `sweep` and `plan` that say which cells."""
        return {
            "site": self.site,
            "axes": self.axes,
            "layers": self.layers,
            "positions": self.positions,
            "units": self.units,
        }


@dataclass(frozen=True)
class Cells:
    """The places one map shows. what: how to call one of them in a title."""

    what: str
    asks: tuple[Ask, ...]


def site_cells(site: str) -> Cells:
    """A site in every layer at every position."""
    return Cells(site, (Ask(site),))


def unit_cells(site: str, layer: int, pos: int) -> Cells:
    """The heads or neurons of a site in one layer at one position."""
    return Cells(site, (Ask(site, ("pos", "unit"), (layer,), (pos,)),))


def part_cells(model: Model, layer: int, pos: int) -> Cells:
    """Every head of a block, and its MLP, at one position."""
    asks = [Ask("z", ("pos", "unit"), (layer,), (pos,), None, tuple(f"h{h}" for h in range(model.n_heads)))]
    if "mlp_out" in model.sites():
        asks.append(Ask("mlp_out", ("pos",), (layer,), (pos,), None, ("mlp",)))
    return Cells("a head or the MLP", tuple(asks))


def head_input_cells(model: Model, layer: int, head: int) -> Cells:
    """The query, key and value of one head at every position. Under grouped-query attention its key and value are
    shared by a group of heads, and so is what replacing them does."""
    kv = head * model.n_kv_heads // model.n_heads
    shared = (
        ""
        if model.n_kv_heads == model.n_heads
        else f" (k and v: those of key/value head {kv}, which several heads share)"
    )
    asks = tuple(
        Ask(site, ("pos", "unit"), (layer,), None, (unit,), (site,))
        for site, unit in (("q", head), ("k", kv), ("v", kv))
    )
    return Cells(f"q, k or v of head {head}{shared}", asks)


# ---- exact ----


def plan(
    model: Model,
    base: torch.Tensor,
    metric: Metric,
    cells: Cells,
    *,
    budget_bytes: float | None = None,
    probe: bool = True,
) -> Plan:
    """What `measure` of the same cells will cost: sums over its sweeps, the largest of their memories."""
    plans = [
        sweep_plan.plan(model, base, metric, budget_bytes=budget_bytes, probe=probe, **ask.options)
        for ask in cells.asks
    ]
    summed = {
        name: sum(getattr(p, name) for p in plans)
        for name in ("n_cells", "token_blocks", "plain_token_blocks", "seconds")
    }
    return Plan(tuple(g for p in plans for g in p.groups), peak_bytes=max(p.peak_bytes for p in plans), **summed)


def measure(
    model: Model,
    base: torch.Tensor,
    source: torch.Tensor,
    metric: Metric,
    cells: Cells,
    *,
    budget_bytes: float | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
    resume: Result | None = None,
) -> Result:
    """The metric of every run in which one of `cells` was taken from the source run.

    Args:
        base, source: [example, pos] ids, aligned. Clean into corrupted is denoising, the reverse noising.
        resume: a partial Result of the same call. Cells of several sweeps are few and start again.

    Returns:
        Result as `sweep` gives it; several sweeps are joined along "part".

    Raises:
        As `sweep`.
    """
    given = resume if len(cells.asks) == 1 else None
    parts = [
        sweep(
            model,
            base,
            FromRun(source),
            metric,
            budget_bytes=budget_bytes,
            seed=seed,
            progress=progress,
            resume=given,
            **ask.options,
        )
        for ask in cells.asks
    ]
    if len(parts) == 1:
        return parts[0]
    values = _join([part.data["value"] for part in parts], cells)
    first = parts[0]
    data = values.to_dataset(name="value").assign({name: first.data[name] for name in ("base_value", "source_value")})
    data.attrs = {
        "site": cells.what,
        "metric": metric.name,
        "engine": " and ".join(sorted({p.data.attrs["engine"] for p in parts})),
        "check_max_abs_diff": float(np.max([p.data.attrs["check_max_abs_diff"] for p in parts])),
    }
    provenance = replace(
        first.provenance,
        spec=first.provenance.spec | {"sites": [ask.site for ask in cells.asks]},
        seconds=sum(p.provenance.seconds for p in parts),
    )
    return Result(
        provenance,
        data,
        partial=any(p.partial for p in parts),
        warnings=tuple(dict.fromkeys(w for p in parts for w in p.warnings)),
    )


def _join(arrays: Sequence[xr.DataArray], cells: Cells) -> xr.DataArray:
    """Arrays of several sweeps along one axis "part"; a single unlabelled one stays as it is."""
    if len(arrays) == 1 and not cells.asks[0].labels:
        return arrays[0]
    named = []
    for array, ask in zip(arrays, cells.asks, strict=True):
        unit = next((dim for dim in ("head", "kv_head", "neuron") if dim in array.dims), None)
        array = array.expand_dims("part") if unit is None else array.rename({unit: "part"})
        named.append(array.assign_coords(part=list(ask.labels)))
    dims = ["layer", "pos", "part", "example"]
    return xr.concat(named, dim="part", coords="minimal", compat="override", combine_attrs="override").transpose(
        *(d for d in dims if d in named[0].dims)
    )


# ---- estimated ----


def attribute(model: Model, base: torch.Tensor, source: torch.Tensor, metric: Metric, cells: Cells) -> Result:
    """What the gradient at the base run says that each of `cells` would do: (source - base activation) . gradient.

    Args:
        base, source: [example, pos] ids, aligned. metric: differentiable.

    Returns:
        Result with `score`, dims as `measure`'s `value`, in the metric's unit: an estimate of metric(base with that
        cell from the source) - metric(base). It is exact only where the rest of the model is linear.

    Raises:
        BadData: on prompts that are not aligned. WorkbenchError: if the metric has no gradient. As `sweep` on sites.
    """
    started = time.monotonic()
    model.require("causal-lm", "attribution")
    if base.shape != source.shape:
        raise BadData(
            f"base tokens have shape {tuple(base.shape)} and the source {tuple(source.shape)}; attribution needs"
            " aligned tokens"
        )
    jobs = [settle(model, base, **ask.options) for ask in cells.asks]
    provenance = Provenance.start(
        "cell_attribution",
        {"cells": cells.what, "metric": metric.name, "sites": [job.site for job in jobs]},
        0,
        model=model.provenance(),
    )
    places = [(job.site, layer) for job in jobs for layer in job.layers]
    probes: dict[tuple[str, int], torch.Tensor] = {}
    here: dict[tuple[str, int], torch.Tensor] = {}

    def probe(place: tuple[str, int]) -> Hook:
        def add(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            here[place], probes[place] = tensor.detach().clone(), torch.zeros_like(tensor, requires_grad=True)
            return tensor + probes[place]

        return model.hook_name(*place), add

    with model.alone(), torch.enable_grad():
        there = {
            site: read_site(model, source, site, layers)[0] for site, layers in ((job.site, job.layers) for job in jobs)
        }
        total = metric(model.forward(base, hook_fns=[probe(place) for place in places], grad=True)).sum()
        if not total.requires_grad:
            raise WorkbenchError(
                f"metric {metric.name} has no gradient, so nothing can be attributed by it; use logit_diff, probability"
                " or loss"
            )
        found = torch.autograd.grad(total, [probes[place] for place in places], allow_unused=True)
    pulled = {
        place: torch.zeros_like(probes[place]) if g is None else g for place, g in zip(places, found, strict=True)
    }
    arrays = []
    for job in jobs:
        layers = [
            _sum(((there[job.site][n] - here[job.site, n]).float() * pulled[job.site, n].float()).detach(), job)
            for n in job.layers
        ]
        arrays.append(_labelled(torch.stack(layers).cpu().numpy(), job, model, base))
    score = _join(arrays, cells).assign_attrs(unit=metric.unit, long_name=f"Attributed change of {metric.name}")
    data = score.to_dataset(name="score").assign_attrs(site=cells.what, metric=metric.name)
    return Result(provenance.finish(started), data)


def _sum(product: torch.Tensor, job: Job) -> torch.Tensor:
    """[example, *site] products -> [(pos), (unit), example], summed over what is not a cell's axis."""
    dims = list(SITES[job.site].dims)
    if "query_pos" in dims:
        product, dims = product.sum(-1).movedim(2, 1), ["pos", "head"]
    unit = UNITS.get(job.site)
    for dim in [d for d in dims if d not in ("pos", unit)]:
        product, dims = product.sum(1 + dims.index(dim)), [d for d in dims if d != dim]
    if "unit" not in job.axes and unit in dims:
        product, dims = product.sum(1 + dims.index(unit)), [d for d in dims if d != unit]
    if "pos" not in job.axes:
        product, dims = product.sum(1), dims[1:]
    for dim, kept in (("pos", job.positions), (unit, job.units)):
        if dim in dims:
            product = product.index_select(1 + dims.index(dim), torch.tensor(kept, device=product.device))
    return product.movedim(0, -1)


def _labelled(values: np.ndarray, job: Job, model: Model, base: torch.Tensor) -> xr.DataArray:
    """The dims and coords that `sweep` gives the same cells."""
    coords: dict[str, Any] = {"layer": list(job.layers)}
    if "pos" in job.axes:
        coords["pos"] = list(job.positions)
    if "unit" in job.axes:
        coords[job.unit_axis] = list(job.units)
    coords["example"] = list(range(job.n_examples))
    return xr.DataArray(values, dims=tuple(coords), coords=coords)
