"""Reading activations: named sites of chosen layers and positions, with the bytes known before the run.

`observe` hands each layer's tensors to a function as soon as they exist and keeps nothing: patterns of a large model
are scored layer by layer and never held together. `capture` keeps them, cloned after slicing (a slice is a view that
keeps the whole tensor alive), each under one canonical name. Only the named hooks are attached; TransformerLens's
default cache holds every activation about twice.
Cost: one forward per batch; memory as `plan_capture` predicts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from workbench.core.errors import NoRoom, NotFired, UnknownSite, WorkbenchError
from workbench.core.hooks import SITES
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.models import memory
from workbench.models.inputs import Batch, Inputs, batches, rows_of
from workbench.models.model import Hook, Model

Key = tuple[str, int | None]
Reduction = Literal["none", "mean", "last"] | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# ---- streaming: look at each layer once, keep nothing ----


def observe(
    model: Model,
    tokens: torch.Tensor | Batch,
    sites: Sequence[str],
    look: Callable[[int, Mapping[str, torch.Tensor]], object],
    *,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Run once and call `look(layer, {site: tensor})` when all the sites of a layer have fired.

    Args:
        model: any Model.
        tokens: [batch, pos] ids or a Batch.
        sites: per-layer sites; each tensor has the dims of core.hooks.SITES after [batch].
        look: must not keep the tensors it is given (clone what it keeps).
        layers: which blocks; all if not given.

    Returns:
        The forward's output.

    Raises:
        NotFired: if some site never fired, naming it.
    """
    wanted = range(model.n_layers) if layers is None else layers
    sites = list(dict.fromkeys(sites))
    waiting: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in wanted}

    def hook_for(site: str, layer: int) -> Hook:
        def see(tensor: torch.Tensor, hook: object) -> None:
            waiting[layer][site] = tensor
            if len(waiting[layer]) == len(sites):
                look(layer, waiting.pop(layer))

        return model.hook_name(site, layer), see

    out = model.forward(tokens, hook_fns=[hook_for(site, layer) for layer in wanted for site in sites])
    if waiting:
        silent = [f"{site} of layer {layer}" for layer, seen in waiting.items() for site in sites if site not in seen]
        raise NotFired(f"{', '.join(silent[:3])} never fired in {model.name}, so nothing was read there")
    return out


# ---- keeping ----


@dataclass(frozen=True)
class CapturePlan:
    """What a capture will hold: bytes kept at the end, and the most at one moment with this batch size."""

    kept_bytes: int
    peak_bytes: int
    batch_size: int
    n_rows: int
    shapes: dict[Key, tuple[int, ...]]

    def __str__(self) -> str:
        mb = 1e6
        return (
            f"{len(self.shapes)} sites x {self.n_rows} rows: keeps {self.kept_bytes / mb:.1f} MB, peak"
            f" {self.peak_bytes / mb:.1f} MB at batch size {self.batch_size}"
        )


@dataclass
class Capture:
    """Activations by (site, layer): [row, ...] in the order of the rows given. `n_done` rows are filled if
    cancelled.
    """

    tensors: dict[Key, torch.Tensor] = field(default_factory=dict)
    n_rows: int = 0
    n_done: int = 0

    @property
    def partial(self) -> bool:
        return self.n_done < self.n_rows

    def __getitem__(self, key: Key | str) -> torch.Tensor:
        wanted = key if isinstance(key, tuple) else (key, None)
        if wanted not in self.tensors:
            raise UnknownSite.among(
                "captured site", f"{wanted[0]} of layer {wanted[1]}", [f"{s} of layer {n}" for s, n in self.tensors]
            )
        return self.tensors[wanted]

    @property
    def n_bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self.tensors.values())


def plan_capture(
    model: Model,
    n_rows: int,
    n_pos: int,
    sites: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    reduce: Reduction = "none",
    batch_size: int = 32,
) -> CapturePlan:
    """Predict the memory of `capture` without running the model on the data.

    Shapes come from a forward of one row, so custom reductions and every architecture are covered.

    The peak is, for one batch, what is taken of it and the larger of a block's intermediates (attention scores and
    pattern, or the MLP's, with a few residual streams) and the logits; and, once there is more than one batch, all that
    is kept.
    """
    probe = torch.zeros(1, n_pos, dtype=torch.long)
    one = _run_batch(
        model,
        Batch(probe, torch.ones_like(probe, dtype=torch.bool), torch.zeros(1, dtype=torch.long)),
        _keys(model, sites, layers),
        positions,
        dtype,
        reduce,
        "cpu",
    )
    shapes = {key: (n_rows, *value.shape[1:]) for key, value in one.items()}
    kept = sum(value[0].numel() * value.element_size() for value in one.values()) * n_rows
    in_batch = min(batch_size, n_rows)
    item = model.dtype.itemsize
    cfg = model.live.cfg
    attention = 3 * model.n_heads * n_pos * n_pos * item
    mlp = 3 * n_pos * (getattr(cfg, "d_mlp", None) or 4 * model.d_model) * item
    stream = 4 * n_pos * model.d_model * item
    logits = n_pos * model.d_vocab * item if model.kind in ("causal-lm", "masked-lm") else 0
    moving = sum(value[0].numel() * value.element_size() for value in one.values())
    in_flight = in_batch * (moving + max(max(attention, mlp) + stream, logits))
    peak = max(kept + in_batch * moving, in_flight + (kept if n_rows > in_batch else 0))
    return CapturePlan(int(kept), int(peak), in_batch, n_rows, shapes)


def capture(
    model: Model,
    rows: Inputs,
    sites: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    reduce: Reduction = "none",
    batch_size: int = 32,
    budget_bytes: float | None = None,
    progress: Progress = SILENT,
) -> Capture:
    """Keep activations of named sites for many rows.

    Args:
        model: any Model that reads tokens.
        rows: texts, rows of ids, a tensor or a Batch. With `reduce="none"` all rows must have one length.
        sites: words of core.hooks.SITES.
        layers: blocks to read; all if not given. Sites that exist once are read once.
        positions: query positions to keep, negative from the end; all if not given.
        dtype: stored number format; the model's own if not given.
        device: where the result is kept.
        reduce: "mean" over real positions, "last" real position, or fn(tensor [batch, pos, ...], mask [batch, pos]) ->
            [batch, ...]; "none" keeps positions.
        batch_size: rows a forward; halved until the predicted peak fits the budget.
        budget_bytes: most that may be held at once; 80 % of the free memory if not given.
        progress: per batch; a cancelled capture keeps the rows it has (`Capture.partial`).

    Returns:
        A Capture; tensors are [row, ...] on `device`, without storage shared with the forward's.

    Raises:
        NoRoom: before running, if even one row a batch will not fit, with what would make it fit.
        UnknownSite, NotFired: as their names say.
    """
    rows = rows_of(model, rows)
    lengths = {len(row) for row in rows}
    keys = _keys(model, sites, layers)
    if len(lengths) > 1 and any("key_pos" in _dims(model, key) for key in keys):
        raise WorkbenchError(
            f"rows have {len(lengths)} different lengths, and scores and patterns keep an axis of that length; use rows"
            " of one length, or observe()"
        )
    if positions is not None and any(not -min(lengths) <= p < min(lengths) for p in positions):
        raise WorkbenchError(f"positions {list(positions)} go outside rows of {min(lengths)} tokens")
    if reduce == "none" and len(lengths) > 1:
        raise WorkbenchError(
            f"rows have {len(lengths)} different lengths ({min(lengths)} to {max(lengths)} tokens): use reduce='mean'"
            " or 'last', or rows of one length"
        )
    budget = 0.8 * memory.available_bytes(device) if budget_bytes is None else budget_bytes
    while True:
        plan = plan_capture(
            model,
            len(rows),
            max(lengths),
            sites,
            layers=layers,
            positions=positions,
            dtype=dtype,
            reduce=reduce,
            batch_size=batch_size,
        )
        if plan.peak_bytes <= budget:
            break
        if plan.kept_bytes > budget or batch_size == 1:
            raise NoRoom(
                f"capturing {len(keys)} sites of {len(rows)} rows x {max(lengths)} tokens keeps"
                f" {plan.kept_bytes / 1e9:.2f} GB (peak {plan.peak_bytes / 1e9:.2f} GB), the budget is"
                f" {budget / 1e9:.2f} GB; name fewer sites, layers or positions, or reduce='mean'"
            )
        batch_size //= 2
    kept = Capture(n_rows=len(rows))
    steps = list(batches(rows, batch_size, pad_id=model.pad_id))
    try:
        for step, batch in enumerate(steps):
            for key, value in _run_batch(model, batch, keys, positions, dtype, reduce, device).items():
                if key not in kept.tensors:
                    kept.tensors[key] = torch.zeros((len(rows), *value.shape[1:]), dtype=value.dtype, device=device)
                kept.tensors[key][batch.index.to(device)] = value
            kept.n_done += len(batch.index)
            progress.update(step + 1, len(steps), "capturing")
    except Cancelled:
        pass
    return kept


def _keys(model: Model, sites: Sequence[str], layers: Sequence[int] | None) -> list[Key]:
    """(site, layer) pairs, each place once even if it was named twice under different words."""
    keys: dict[str, Key] = {}
    for site in dict.fromkeys(sites):
        per_layer = site in SITES and SITES[site].per_layer
        for layer in (range(model.n_layers) if layers is None else layers) if per_layer else (None,):
            keys.setdefault(model.hook_name(site, layer), (site, layer))
    return list(keys.values())


def _dims(model: Model, key: Key) -> tuple[str, ...]:
    """Axes of a place after batch. A full hook name has those of the site it is; any other point is taken as (pos,
    ...).
    """
    if key[0] in SITES:
        return SITES[key[0]].dims
    first = re.sub(r"^blocks\.\d+\.", "blocks.0.", model.hook_name(*key))
    for site in SITES.values():
        if model.hook_names.get(site.template.format(layer=0)) == first:
            return site.dims
    return ("pos",)


def _run_batch(
    model: Model,
    batch: Batch,
    keys: Sequence[Key],
    positions: Sequence[int] | None,
    dtype: torch.dtype | None,
    reduce: Reduction,
    device: str,
) -> dict[Key, torch.Tensor]:
    taken: dict[Key, torch.Tensor] = {}

    def hook_for(key: Key) -> Hook:
        dims = _dims(model, key)
        pos_dim = 1 + dims.index("query_pos" if "query_pos" in dims else "pos")

        def take(tensor: torch.Tensor, hook: object) -> None:
            tensor = tensor.detach().movedim(pos_dim, 1)
            value = _reduce(tensor, batch.mask.to(tensor.device), positions, reduce)
            if reduce == "none":
                value = value.movedim(1, pos_dim)
            # A copy of its own: a slice or an in-place edit downstream must not reach what is kept.
            taken[key] = value.to(device=device, dtype=dtype or value.dtype, copy=True).contiguous()

        return model.hook_name(*key), take

    model.forward(batch, hook_fns=[hook_for(key) for key in keys])
    if silent := [f"{s} of layer {n}" for s, n in keys if (s, n) not in taken]:
        raise NotFired(f"{', '.join(silent[:3])} never fired in {model.name}, so nothing was captured there")
    # The closures of hooks take part in reference cycles: what they hold lives until the garbage collector comes, which
    # with few large tensors is many batches later. So they are left holding nothing.
    found = dict(taken)
    taken.clear()
    return found


def _reduce(
    tensor: torch.Tensor, mask: torch.Tensor, positions: Sequence[int] | None, reduce: Reduction
) -> torch.Tensor:
    """[batch, pos, ...] -> what is kept of it."""
    if mask.shape[1] != tensor.shape[1]:
        mask = torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
    if positions is not None:
        tensor, mask = tensor[:, list(positions)], mask[:, list(positions)]
    if callable(reduce):
        return reduce(tensor, mask)
    if reduce == "none":
        return tensor
    if reduce == "last":
        last = tensor.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return tensor[torch.arange(len(tensor), device=tensor.device), last]
    if reduce == "mean":
        weight = mask.reshape(*mask.shape, *[1] * (tensor.ndim - 2)).to(torch.float32)
        return ((tensor.float() * weight).sum(1) / weight.sum(1)).to(tensor.dtype)
    raise WorkbenchError(f"reduce must be 'none', 'mean', 'last' or a function, got {reduce!r}")
