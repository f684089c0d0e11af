"""Units (MLP channels, attention heads): how much each matters on a set of texts, which to choose, and life without
them.

Importance is the variance of what a unit hands to its output projection, times the squared norm of its outgoing
weights: I_j = var(X_j) * ||W_:j||^2, the score of FLAP's structured pruning; channels of a head are summed. One pass
over the texts through `Model.forward`, one layer's activations at a time, sums in float64, whatever the number format
of the model.
Source: Li & Kim, arXiv 2410.10862 (importance, labels); An et al., FLAP, arXiv 2312.11983 (score, standardisation).
    That tokens count as samples and that a head's channels are summed is inferred. Cost: one forward a text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, NotFired
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair
from workbench.models.inputs import Rows, batches
from workbench.models.model import Hook, Model
from workbench.primitives.read.capture import observe
from workbench.primitives.read.reductions import Moments

SITES = {"mlp": "mlp_post", "attention": "z"}  # module: the input of its output projection
LABELS = (
    "RU",
    "CU",
    "SCU",
    "UCU",
)  # redundant, complex, safety-critical, utility-critical (ESU and EUU in the paper's first version)


def answer_positions(pairs: Sequence[Pair]) -> tuple[list[list[int]], list[list[bool]]]:
    """Rows of prompt and answer, and for each token whether it belongs to the answer: what `unit_importance` takes."""
    return [[*p, *a] for p, a in pairs], [[False] * len(p) + [True] * len(a) for p, a in pairs]


def unit_importance(
    model: Model,
    rows: Rows,
    *,
    counted: Sequence[Sequence[bool]] | None = None,
    attention: Literal["head", "channel"] = "head",
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> xr.Dataset:
    """Importance of every MLP channel and attention head on `rows`.

    Args:
        model: a causal model with neurons and heads that can be hooked. Under grouped queries a unit is a QUERY head:
            it owns its columns of the output projection, while keys and values belong to several.
        rows: token ids of each text. counted: [row][pos] which tokens are samples; all if not given.
        attention: whether a unit of attention is a whole head, or one channel of a head (numbered head by head).

    Returns:
        Over `unit`, with coordinates layer, module ("mlp", "attention") and index: `variance` (of the activation,
        divided by n - 1, summed over a head's channels), `importance` (activation squared times weight squared; 0 is a
        unit that never changes what it writes).

    Raises:
        BadData: with fewer than two counted tokens. UnknownSite: where neurons cannot be hooked (fused experts).
    """
    model.require("causal-lm", "importance of units")
    moments = {(layer, module): Moments() for layer in range(model.n_layers) for module in SITES}
    n = 0
    for batch in batches(rows, batch_size, pad_id=model.pad_id):
        keep = batch.mask.clone()
        if counted is not None:
            for line, index in enumerate(batch.index.tolist()):
                keep[line, : len(rows[index])] = torch.tensor(counted[index])
        where = keep.to(model.device)
        numbers = torch.arange(int(keep.sum()))

        def look(
            layer: int, acts: Mapping[str, torch.Tensor], where: torch.Tensor = where, numbers: torch.Tensor = numbers
        ) -> None:
            for module, site in SITES.items():
                moments[layer, module].update(acts[site][where].cpu(), numbers)

        if len(numbers):
            observe(model, batch, tuple(SITES.values()), look)
        n += len(numbers)
        progress.update(int(batch.index.max()) + 1, len(rows), "importance")
    if n < 2:
        raise BadData(f"importance is a variance over tokens, and {n} of them count; give at least two")
    parts = []
    for (layer, module), found in moments.items():
        dims = ("unit",) if module == "mlp" else ("unit", "channel")
        variance = found.result(dims)["variance"] * (n / (n - 1))
        importance = variance * xr.DataArray(outgoing_norms(model, layer, module), dims=dims)
        both = xr.Dataset({"variance": variance, "importance": importance})
        if module == "attention":
            both = (
                both.sum("channel")
                if attention == "head"
                else both.stack(each=("unit", "channel"))
                .drop_vars(("each", "unit", "channel"), errors="ignore")
                .rename(each="unit")
            )
        size = both.sizes["unit"]
        parts.append(
            both.assign_coords(
                layer=("unit", [layer] * size), module=("unit", [module] * size), index=("unit", np.arange(size))
            )
        )
    whole = xr.concat(parts, "unit")
    whole["variance"].attrs = {"long_name": "Variance of the activation", "unit": "activation squared"}
    whole["importance"].attrs = {"long_name": "Importance", "unit": "(activation x weight) squared"}
    return whole.assign_attrs(n_tokens=n)


def outgoing_norms(model: Model, layer: int, module: str) -> np.ndarray:
    """Squared norm of what each input of the output projection writes: [d_mlp] for "mlp", [head, d_head] for
    "attention".
    """
    weight = model.W_O(layer) if module == "attention" else model.live.blocks[layer].mlp.W_out
    weight = weight.detach().double()
    if module == "mlp" and weight.shape[-1] != model.d_model:
        raise BadData(
            f"the MLP of {model.name} writes {weight.shape[-1]} numbers, not {model.d_model}; its channels cannot be"
            " told apart"
        )
    return weight.square().sum(-1).cpu().numpy()


# ---- choosing ----


def standardised(importance: xr.DataArray) -> xr.DataArray:
    """Importance less its module's mean over its standard deviation, per layer and module; 0 where a module's units
    are all alike.
    """
    values, out = importance.values, np.zeros(importance.shape)
    for hit in module_groups(importance):
        part = values[..., hit]
        spread = part.std(-1, keepdims=True)
        out[..., hit] = np.divide(
            part - part.mean(-1, keepdims=True), spread, out=np.zeros_like(part), where=spread > 0
        )
    return importance.copy(data=out).assign_attrs(
        long_name="Importance, standardised per module", unit="standard deviations"
    )


def module_groups(units: xr.DataArray | xr.Dataset) -> list[np.ndarray]:
    """Indices of the units (or channels) of each (layer, module), layer by layer."""
    layer, module = units["layer"].values, units["module"].values.astype(str)
    found = (
        np.flatnonzero((layer == n) & (module == name))
        for n in np.unique(layer)
        for name in dict.fromkeys(module.tolist())
    )
    return [hit for hit in found if len(hit)]


@dataclass(frozen=True)
class Ratios:
    """Shares of all units that are called safety-critical, utility-critical and redundant."""

    safety: float
    utility: float
    redundant: float


def label_units(safety: np.ndarray, utility: np.ndarray, ratios: Ratios) -> np.ndarray:
    """[unit] index into LABELS: redundant are the lowest of the sum, then safety-critical the highest of (safety -
    utility), then utility-critical the lowest of it, and the rest is complex. Ties fall to the lower index.

    Args:
        safety, utility: [unit] importance on the two sets, on one scale.

    Raises:
        BadData: if the shares add up to more than 1 or one is negative.
    """
    n = len(safety)
    counts = {"RU": round(ratios.redundant * n), "SCU": round(ratios.safety * n), "UCU": round(ratios.utility * n)}
    if sum(counts.values()) > n or min(counts.values()) < 0:
        raise BadData(f"shares of units must not be negative nor add up to more than 1, got {ratios}")
    labels = np.full(n, LABELS.index("CU"))
    for name, key in (("RU", safety + utility), ("SCU", utility - safety), ("UCU", safety - utility)):
        free = np.flatnonzero(labels == LABELS.index("CU"))
        labels[free[np.argsort(key[free], kind="stable")][: counts[name]]] = LABELS.index(name)
    return labels


def matched_random(chosen: np.ndarray, units: xr.DataArray | xr.Dataset, rng: np.random.Generator) -> np.ndarray:
    """bool [unit] as many units of each (layer, module) as `chosen` has there, drawn from the others as long as
    there are any.
    """
    drawn = np.zeros(len(chosen), bool)
    for hit in module_groups(units):
        others, own = hit[~chosen[hit]], hit[chosen[hit]]
        drawn[np.concatenate([rng.permutation(others), rng.permutation(own)])[: len(own)]] = True
    return drawn


# ---- removing ----


@dataclass
class Removal:
    """What a removal did so far: hook calls, and units held at zero (0 firings is an error once the block ends)."""

    n_units: int
    firings: int = 0


@contextmanager
def units_removed(model: Model, chosen: np.ndarray, units: xr.DataArray | xr.Dataset) -> Iterator[Removal]:
    """Hold the chosen units at zero in every forward of this block, which is zeroing their columns of the output
    projection.

    The lock is held throughout. For one batch, with its effect measured, `ablation.ablate` does the same.

    Args:
        chosen: bool [unit]. units: the coordinates of `unit_importance`.

    Raises:
        NotFired: at the end, if no forward ran or a layer's hook was silent.
    """
    report, hooks = Removal(int(chosen.sum())), []
    fired: dict[str, int] = {}
    for hit in module_groups(units):
        inside = chosen[hit]
        if not inside.any():
            continue
        layer, module = int(units["layer"].values[hit[0]]), str(units["module"].values[hit[0]])
        hooks.append(_zeroing(model, layer, module, torch.from_numpy(inside), fired, report))
    with model.alone():
        if not hooks:
            yield report
            return
        with model.hooked(hooks):
            yield report
    if silent := [name for name, count in fired.items() if not count]:
        raise NotFired(
            f"{len(silent)} of {len(fired)} hooks never fired in {model.name}, the first at {silent[0]}, so those units"
            " were not removed"
        )


def _zeroing(
    model: Model, layer: int, module: str, inside: torch.Tensor, fired: dict[str, int], report: Removal
) -> Hook:
    name = model.hook_name(SITES[module], layer)
    fired[name] = 0
    gone = inside.to(model.device)
    if module == "attention":
        gone = gone.unsqueeze(-1) if len(gone) == model.n_heads else gone.reshape(model.n_heads, -1)

    def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        fired[name] += 1
        report.firings += 1
        return tensor.masked_fill(gone, 0)

    return name, edit
