"""Which channels change, and change alike, whenever a model is taught a backdoor: scores over N pairs of checkpoints.

Each variant is a poisoned fine-tune with a clean one beside it; Delta_i is the difference of their weights, in which
the model both started from cancels. A channel is a row of an MLP's input projections (gate, up) or a column of its
output projection (down): score = mean norm of its Delta_i + alignment_weight * mean positive cosine between the
Delta_i. The top share of each module is the signature, which is then reinitialised or zeroed in the suspicious model.
A head is scored over its rows of q, k, v and columns of o together; under grouped queries k and v belong to several
heads, so there a head is its q rows and o columns alone. A bias is not scored, but goes where its row goes.
Source: Li & Kim, "Purifying Generative LLMs from Backdoors without Prior Knowledge or Clean Reference" (ICLR 2026),
    from the paper card. Cost: one pass over the weights of all variants; memory of one module's N differences, never of
    a whole checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, NotFired
from workbench.core.progress import SILENT, Progress
from workbench.primitives.score.unit_importance import module_groups
from workbench.weights.channel_places import HEAD, KEYS_AND_VALUES, Key, Part, channel_places, query_heads
from workbench.weights.checkpoint_weights import Checkpoint, LowRank, Source, open_checkpoint
from workbench.weights.names import TRANSPOSED

_AT_ONCE = 1 << 19  # numbers in double precision at a time

Delta = torch.Tensor | LowRank


# ---- changes of channels ----


def channel_changes(
    poisoned: Sequence[Source],
    clean: Sequence[Source],
    *,
    heads: bool = False,
    n_heads: int | None = None,
    progress: Progress = SILENT,
) -> xr.Dataset:
    """How far each channel moved in each variant, and how alike it moved in each two.

    Args:
        poisoned, clean: N checkpoints each, of one architecture, i against i: Hugging Face modules, local directories
            of safetensors, PEFT adapter directories or {module: Factors} (of which the products scale * B
            A are subtracted).
        heads: whether attention heads are scored too. n_heads: query heads, where no config says it (adapters).
        progress: per module; cancelling raises Cancelled.

    Returns:
        Over `channel` with coordinates layer, module (the projection's name, or "head"), index: `norm` [variant,
        channel], L2, 0 where nothing moved; `cosine` [pair, channel] with coordinates first, second, 0 where one of the
        two did not move.

    Raises:
        BadData: if the checkpoints do not correspond. UnsupportedModel: if channels cannot be told apart in them,
            saying why.
    """
    if not poisoned or len(poisoned) != len(clean):
        raise BadData(
            "every poisoned checkpoint needs its clean counterpart, and there must be one pair at least; got"
            f" {len(poisoned)} and {len(clean)}"
        )
    pairs = [(open_checkpoint(p), open_checkpoint(c)) for p, c in zip(poisoned, clean, strict=True)]
    each = [checkpoint for pair in pairs for checkpoint in pair]
    if len({checkpoint.is_adapter for checkpoint in each}) > 1:
        raise BadData(
            "adapters are compared with adapters and whole checkpoints with whole ones; merge the adapters first"
            " (training.lora.merge)"
        )
    found = [channel_places(checkpoint, heads=heads) for checkpoint in each]
    for checkpoint, places in zip(each, found, strict=True):
        if differing := {_outline(key, p) for key, p in found[0].items()} ^ {
            _outline(key, p) for key, p in places.items()
        }:
            raise BadData(
                f"{each[0].label!r} and {checkpoint.label!r} do not have the same projections:"
                f" {', '.join(sorted(differing)[:3])} is in one of them only"
            )
    n_heads = n_heads or query_heads(each[0].settings)
    parts = []
    for done, key in enumerate(sorted(found[0], key=lambda k: (k[0], k[1] == HEAD))):
        named = [places[key] for places in found]
        inner = _of_heads(pairs, named, n_heads, key) if key[1] == HEAD else _of_parts(pairs, named, 0, key)
        parts.append(_dataset(inner, key))
        progress.update(done + 1, len(found[0]), f"layer {key[0]} {key[1]}")
    whole = xr.concat(parts, "channel")
    whole["norm"].attrs = {"long_name": "Norm of the change of a channel", "unit": "L2 norm"}
    whole["cosine"].attrs = {"long_name": "Cosine of the changes of a channel in two variants", "unit": "cosine"}
    return whole.assign_attrs(n_variants=len(pairs))


def _outline(key: Key, parts: Sequence[Part]) -> str:
    return f"layer {key[0]} {key[1]} ({', '.join(p.projection for p in parts)})"


def _dataset(inner: torch.Tensor, key: Key) -> xr.Dataset:
    """Norms and cosines from inner products [channel, variant, variant]."""
    products = inner.cpu().numpy()
    norm = np.sqrt(np.maximum(np.diagonal(products, axis1=1, axis2=2), 0)).T  # [variant, channel]
    first, second = (np.array([pair[i] for pair in combinations(range(len(norm)), 2)], int) for i in (0, 1))
    size = norm[first] * norm[second]
    cosine = np.divide(products[:, first, second].T, size, out=np.zeros_like(size), where=size > 0).clip(-1, 1)
    n = norm.shape[1]
    where = {
        "layer": ("channel", np.full(n, key[0])),
        "module": ("channel", np.full(n, key[1])),
        "index": ("channel", np.arange(n)),
    }
    both = {"norm": (("variant", "channel"), norm), "cosine": (("pair", "channel"), cosine)}
    return xr.Dataset(
        both, coords={"variant": np.arange(len(norm)), "first": ("pair", first), "second": ("pair", second)} | where
    )


def _of_parts(
    pairs: Sequence[tuple[Checkpoint, Checkpoint]], named: Sequence[Sequence[Part]], which: int, key: Key
) -> torch.Tensor:
    """[channel, variant, variant] inner products of one weight's changes, channel by channel; all its deltas are
    dropped on return.
    """
    deltas = [_delta(p, c, named[2 * i][which], named[2 * i + 1][which]) for i, (p, c) in enumerate(pairs)]
    shapes = {(d[1].shape[0], d[0].shape[1]) if isinstance(d, tuple) else tuple(d.shape) for d in deltas}
    if len(shapes) > 1:
        raise BadData(
            f"layer {key[0]} {key[1]} has different shapes in these checkpoints"
            f" ({', '.join(map(str, sorted(shapes)))}), so they are not of one architecture"
        )
    return _inner(deltas, named[0][which].by_row)


def _of_heads(
    pairs: Sequence[tuple[Checkpoint, Checkpoint]], named: Sequence[Sequence[Part]], n_heads: int | None, key: Key
) -> torch.Tensor:
    if not n_heads:
        raise BadData("adapters do not say how many heads there are; give n_heads, the number of query heads")
    total: torch.Tensor | None = None
    for which, part in enumerate(named[0]):
        inner = _of_parts(pairs, named, which, key)
        if total is not None and len(inner) != len(total):
            if part.role in KEYS_AND_VALUES:
                continue  # grouped queries: these rows belong to several heads
            raise BadData(f"layer {key[0]}: {part.projection} has {len(inner)} channels and the queries {len(total)}")
        total = inner if total is None else total + inner
    assert total is not None
    if len(total) % n_heads:
        raise BadData(f"layer {key[0]}: {len(total)} rows of queries are not divisible by {n_heads} heads")
    return total.reshape(n_heads, -1, *total.shape[1:]).sum(1)


def _delta(poisoned: Checkpoint, clean: Checkpoint, one: Part, other: Part) -> Delta:
    """What poisoning adds to the clean fine-tune: [out, in], or the factors of it (the clean ones below, with a
    minus).
    """
    if poisoned.is_adapter:
        (a, b), (a_clean, b_clean) = poisoned.factors(one.name), clean.factors(other.name)
        if a.shape[1] != a_clean.shape[1] or b.shape[0] != b_clean.shape[0]:
            raise BadData(
                f"{one.name} has different shapes in {poisoned.label!r} and {clean.label!r}, so they are not of one"
                " base"
            )
        return torch.cat([a, a_clean.to(a.device)]), torch.cat([b, -b_clean.to(b.device)], 1)
    matrix, base = poisoned.read(one.name), clean.read(other.name)
    if matrix.shape != base.shape or matrix.ndim != 2:
        raise BadData(
            f"{one.name} is {list(matrix.shape)} in {poisoned.label!r} and {list(base.shape)} in {clean.label!r}; give"
            " checkpoints of one architecture"
        )
    delta = matrix - base.to(matrix.device)
    return delta.T if poisoned.settings.get("model_type") in TRANSPOSED else delta


def _inner(deltas: Sequence[Delta], by_row: bool) -> torch.Tensor:
    """[channel, variant, variant] inner products in float64, from chunks of channels, or from factors without the
    full matrices.
    """
    low_rank = [(_double(d[0]), _double(d[1])) for d in deltas if isinstance(d, tuple)]
    if low_rank:
        sides = [(b, a) if by_row else (a.T, b.T) for a, b in low_rank]  # a channel's vector is row @ other
        return torch.stack(
            [
                torch.stack([((row @ (side @ other_side.T)) * other).sum(1) for other, other_side in sides], 1)
                for row, side in sides
            ],
            1,
        )
    matrices = [d if by_row else d.T for d in deltas if isinstance(d, torch.Tensor)]
    step = max(1, _AT_ONCE // (len(matrices) * matrices[0].shape[1]))
    chunks = []
    for start in range(0, len(matrices[0]), step):
        rows = torch.stack([_double(m[start : start + step]) for m in matrices], 1)  # [channel, variant, other side]
        chunks.append(rows @ rows.transpose(1, 2))
    return torch.cat(chunks)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # mps has no float64


# ---- scores and the choice ----


def magnitude(changes: xr.Dataset, *, normalised: bool = False) -> xr.DataArray:
    """[channel] mean norm over the variants; normalised, in units of its module's mean (1 is an average channel, 0 a
    module that nothing moved).
    """
    mean = changes["norm"].mean("variant")
    if normalised:
        values = mean.values.copy()
        for hit in module_groups(changes):
            average = values[hit].mean()
            values[hit] = values[hit] / average if average > 0 else 0.0
        mean = mean.copy(data=values)
    return mean.rename("score").assign_attrs(
        long_name="Mean norm of the change", unit="module means" if normalised else "L2 norm"
    )


def alignment(changes: xr.Dataset) -> xr.DataArray:
    """[channel] mean over pairs of variants of max(0, cosine), in [0, 1]; 0 with a single variant."""
    positive = changes["cosine"].clip(min=0)
    mean = positive.mean("pair") if changes.sizes["pair"] else xr.zeros_like(changes["norm"].isel(variant=0, drop=True))
    return mean.rename("score").assign_attrs(long_name="Mean positive cosine between variants", unit="cosine")


def scores(
    changes: xr.Dataset,
    *,
    alignment_weight: float = 0.01,
    normalised: bool = False,
    variants: int | None = None,
    only: Literal["magnitude", "alignment"] | None = None,
) -> xr.DataArray:
    """Score of each channel: higher changes more, or more alike, whenever a backdoor is taught.

    Args:
        changes: of `channel_changes`. alignment_weight: lambda of the paper; 0.01 caps the second term at 0.01, which
            decides little where norms are much larger. normalised: divide mean norms by their module's mean, so that
            both terms are of one size.
        variants: how many of the first N are used; all if not given. only: one of the two terms alone, without the
            weight.

    Returns:
        [channel] unit L2 norm, module means or cosine, with the coordinates of `changes`.

    Raises:
        BadData: if there are not that many variants.

    Source: Li & Kim (ICLR 2026), channel score; the normalised form is ours.
    """
    n = changes.sizes["variant"]
    if variants is not None:
        if not 1 <= variants <= n:
            raise BadData(f"{variants} variants were asked for and there are {n}")
        changes = changes.isel(variant=slice(variants), pair=changes["second"].values < variants)
    if only == "alignment":
        return alignment(changes)
    size = magnitude(changes, normalised=normalised)
    if only == "magnitude":
        return size
    return (
        (size + alignment_weight * alignment(changes))
        .rename("score")
        .assign_attrs(long_name="Score of a channel", unit=size.attrs["unit"])
    )


def signature(s: xr.DataArray, share: float) -> np.ndarray:
    """bool [channel] the ceil(share * n) highest of the n channels of each (layer, module); ties fall to the lower
    index.

    Args:
        s: [channel] scores. share: tau of the paper, in [0, 1].

    Raises:
        BadData: on a share outside [0, 1] or scores that are not finite.
    """
    if not 0 <= share <= 1 or not np.isfinite(s.values).all():
        raise BadData(f"a signature needs finite scores and a share between 0 and 1, got {share}")
    chosen = np.zeros(s.sizes["channel"], bool)
    for hit in module_groups(s):
        count = ceil(share * len(hit) - 1e-9)  # 0.07 * 100 is a little more than 7
        chosen[hit[np.argsort(-s.values[hit], kind="stable")][:count]] = True
    return chosen


# ---- suppressing them ----


@torch.no_grad()
def neutralise(
    module: torch.nn.Module,
    chosen: np.ndarray,
    channels: xr.DataArray | xr.Dataset,
    how: Literal["reinitialise", "zero"] = "reinitialise",
    seed: int = 0,
) -> int:
    """Overwrite the chosen channels of a Hugging Face module, in place: rows of gate and up, columns of down, all
    slices of a head.

    Args:
        chosen: bool [channel]. channels: the coordinates they were scored with. how: fresh Xavier-uniform values with
            the fan-in and fan-out of the whole matrix, or zeros; biases of chosen rows become 0 in both. seed: of the
            fresh values.

    Returns:
        Weights that are not what they were.

    Raises:
        NotFired: if nothing changed. BadData: if the module has no such channel.
    """
    checkpoint, parameters = open_checkpoint(module), dict(module.named_parameters())
    flipped, generator, changed = (
        checkpoint.settings.get("model_type") in TRANSPOSED,
        torch.Generator().manual_seed(seed),
        0,
    )
    places = channel_places(checkpoint, heads=HEAD in channels["module"].values)
    for part, lines in _chosen_lines(
        places, chosen, channels, lambda p: parameters[p.name].shape[0 if p.by_row != flipped else 1]
    ):
        weight = parameters[part.name].data.T if flipped else parameters[part.name].data
        bound = sqrt(6 / sum(weight.shape))
        by_channel = weight if part.by_row else weight.T
        new = torch.zeros(len(lines), by_channel.shape[1])
        changed += _overwrite(
            by_channel, lines, new.uniform_(-bound, bound, generator=generator) if how == "reinitialise" else new
        )
        bias = parameters.get(part.name.removesuffix("weight") + "bias")
        if part.by_row and bias is not None:
            changed += _overwrite(bias.data, lines, torch.zeros(len(lines)))
    if not changed:
        raise NotFired(
            f"{int(chosen.sum())} channels were chosen and not one weight of {type(module).__name__} changed"
        )
    return changed


def _overwrite(target: torch.Tensor, lines: torch.Tensor, new: torch.Tensor) -> int:
    """Write new rows into a view of a weight; how many numbers are now others."""
    new, lines = new.to(target), lines.to(target.device)
    changed = int((target[lines] != new).sum())
    target[lines] = new
    return changed


def neutralise_adapter(
    factors: Mapping[str, Any], chosen: np.ndarray, channels: xr.DataArray | xr.Dataset
) -> dict[str, Any]:
    """Factors whose update no longer touches the chosen channels: rows of B (gate, up, q, k, v) or columns of A (down,
    o) are zero.

    Args:
        factors: {module name: Factors} of the suspicious adapter, which is left as it is. chosen,
            channels: as for `neutralise`.

    Raises:
        NotFired: if nothing changed. BadData: if the adapter has no such channel.
    """
    new, changed = dict(factors), 0
    places = channel_places(open_checkpoint(factors), heads=HEAD in channels["module"].values)
    for part, lines in _chosen_lines(
        places, chosen, channels, lambda p: len(_side(factors[p.name.removesuffix(".weight")], p.by_row))
    ):
        name = part.name.removesuffix(".weight")
        kept = _side(new[name], part.by_row).clone()  # [channel, r]
        changed += int((kept[lines] != 0).sum())
        kept[lines] = 0
        new[name] = replace(new[name], B=kept) if part.by_row else replace(new[name], A=kept.T.contiguous())
    if not changed:
        raise NotFired(f"{int(chosen.sum())} channels were chosen and the adapter's update is 0 in all of them already")
    return new


def _side(factors: Any, by_row: bool) -> torch.Tensor:
    return factors.B if by_row else factors.A.T


def _chosen_lines(
    places: Mapping[Key, Sequence[Part]],
    chosen: np.ndarray,
    channels: xr.DataArray | xr.Dataset,
    size: Callable[[Part], int],
) -> Iterator[tuple[Part, torch.Tensor]]:
    """(weight, numbers of its chosen rows or columns) for every weight that has some."""
    if len(chosen) != channels.sizes["channel"]:
        raise BadData(f"{len(chosen)} channels are marked or not, and {channels.sizes['channel']} were scored")
    for hit in module_groups(channels):
        if not chosen[hit].any():
            continue
        key = (int(channels["layer"].values[hit[0]]), str(channels["module"].values[hit[0]]))
        if key not in places:
            raise BadData(
                f"there is no {key[1]} of layer {key[0]} here; neutralise a model of the architecture that was scored"
            )
        width, marked = size(places[key][0]), channels["index"].values[hit[chosen[hit]]]
        if key[1] == HEAD:
            marked = (marked[:, None] * (width // len(hit)) + np.arange(width // len(hit))).reshape(-1)
        elif width != len(hit):
            raise BadData(f"{key[1]} of layer {key[0]} has {width} channels here, and {len(hit)} were scored")
        for part in places[key]:
            if size(part) == width:  # keys and values of grouped queries are narrower, and stay
                yield part, torch.from_numpy(marked)
