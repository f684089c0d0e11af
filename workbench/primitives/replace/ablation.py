"""Ablation: replace heads, neurons or whole sites by zero, a mean or another example, and prove that it happened.

Every ablated run reports how often its hooks fired, how many entries they replaced and how far the output moved. Hooks
that never fire raise NotFired; replaced entries without any movement give a warning that travels with the result.
Masks may differ per input, and may be computed inside the forward from the layer's own activations (dynamic ablation).
Cost: one forward per run, plus one clean forward if its output is not given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from workbench.core.errors import NotFired, UnsupportedModel, WorkbenchError
from workbench.core.heads import Head, head_mask
from workbench.core.hooks import SITES
from workbench.models.inputs import Batch, Inputs, batch_of
from workbench.models.model import Hook, Model

UNITS = {
    "z": "head",
    "q": "head",
    "k": "kv_head",
    "v": "kv_head",
    "pattern": "head",
    "attn_scores": "head",
    "mlp_post": "d_mlp",
    "mlp_pre": "d_mlp",
}
DynamicMask = Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass
class Report:
    """What an intervention did: the three questions every ablation must answer.

    firings: hook calls. n_replaced: (input, unit) entries set, summed over layers; n_possible: how many there were.
    effect: mean over inputs of the largest |logit change| against the clean run, in logits; None if not compared.
    """

    firings: int = 0
    n_replaced: int = 0
    n_possible: int = 0
    effect: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Realised share of units replaced."""
        return self.n_replaced / self.n_possible if self.n_possible else 0.0


@dataclass(frozen=True)
class Ablated:
    """Output of an ablated run, its report, and the tokens it read."""

    output: torch.Tensor
    report: Report
    tokens: torch.Tensor | Batch

    @property
    def predicted(self) -> torch.Tensor:
        """[batch] the likeliest token after each prompt, or the likeliest class."""
        if self.output.ndim == 2:
            return self.output.argmax(-1).cpu()
        n = len(self.output)
        last = _last(self.tokens) if isinstance(self.tokens, Batch) else torch.full((n,), -1)
        return self.output[torch.arange(n), last].argmax(-1).cpu()


def _last(batch: Batch) -> torch.Tensor:
    """[batch] index of each row's last real token, on whichever side it is padded."""
    return (batch.mask * torch.arange(batch.mask.shape[1])).argmax(1)


def ablate(
    model: Model,
    tokens: Inputs,
    mask: torch.Tensor | DynamicMask | Sequence[str | Head | tuple[int, int]],
    *,
    site: str = "z",
    value: Literal["zero", "mean", "resample"] = "zero",
    reference: Mapping[int, torch.Tensor] | None = None,
    reads: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    clean: torch.Tensor | None = None,
    compare: bool = True,
    seed: int = 0,
) -> Ablated:
    """Run with some units replaced.

    Args:
        model: any Model whose hooks at `site` act on the output.
        tokens: texts, rows of ids (padded where their lengths differ), [batch, pos] ids or a Batch.
        mask: which units to replace: heads by name (["L1H0"]), bool [layer, unit] for all inputs, [batch, layer, unit]
            per input, or a function (layer, {site: tensor}) -> bool [batch, unit] of the activations of this very run,
            which sees what earlier layers' ablations did. Units are heads for z, q, pattern; key/value heads for k, v;
            neurons for mlp_post; for the other sites there is one unit, the site itself.
        site: where to replace.
        value: "zero"; "mean": `reference`; "resample": the same unit of a row of `reference`, drawn by `seed`.
        reference: {layer: tensor} at `site`: for "mean" without batch dim (as `reference_mean` makes it), for
            "resample" [row, ...] with the same positions.
        reads: further sites a mask function needs (they must fire before `site` in the layer).
        layers: blocks to touch; all if not given.
        clean: output of the untouched run, to measure the effect without running it again.
        compare: measure the effect.
        seed: draws the rows for "resample".

    Returns:
        Ablated: output, report, and `predicted` [batch].

    Raises:
        NotFired: if no hook fired. WorkbenchError: on a mask of the wrong shape or a missing reference.
    """
    if site in ("pattern", "attn_scores") and not model.pattern_is_live:
        raise UnsupportedModel(
            f"{model.name} shows its pattern after the fact, so replacing it would change nothing; ablate z instead"
        )
    if value not in ("zero", "mean", "resample"):
        raise WorkbenchError(f"value must be zero, mean or resample, got {value!r}")
    if value != "zero" and reference is None:
        raise WorkbenchError(
            f"value={value!r} needs reference={{layer: tensor}}; primitives.replace.ablation.reference_mean makes one"
        )
    tokens = tokens if isinstance(tokens, torch.Tensor) else batch_of(model, tokens)
    if not callable(mask) and not isinstance(mask, torch.Tensor):
        mask = torch.from_numpy(head_mask(mask, model.n_layers, model.n_heads))
    report = Report()
    seen: dict[int, dict[str, torch.Tensor]] = {}
    chosen = list(range(model.n_layers) if layers is None else layers)
    generator = torch.Generator().manual_seed(seed)
    if not callable(mask) and (mask.ndim not in (2, 3) or mask.shape[-2] != model.n_layers):
        raise WorkbenchError(
            f"mask must be [layer, unit] or [batch, layer, unit] with {model.n_layers} layers, got shape"
            f" {tuple(mask.shape)}"
        )

    def reader(layer: int, name: str) -> Hook:
        def read(tensor: torch.Tensor, hook: object) -> None:
            seen.setdefault(layer, {})[name] = tensor

        return model.hook_name(name, layer), read

    def editor(layer: int) -> Hook:
        def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor | None:
            acts = seen.pop(layer, {}) | {site: tensor}
            if missing := [name for name in reads if name not in acts]:
                raise NotFired(
                    f"{', '.join(missing)} of layer {layer} had not fired when {site} did in {model.name}, so the mask"
                    " cannot read it there"
                )
            flags = mask(layer, acts) if callable(mask) else mask[..., layer, :]
            flags = _per_input(flags, site, tensor)
            report.firings += 1
            report.n_replaced += int(flags.sum())
            report.n_possible += flags.numel()
            if not bool(flags.any()):
                return None
            new = _replacement(value, reference, layer, tensor, generator)
            spread = _spread(flags, site, tensor)
            if site == "attn_scores":  # a masked score must stay masked, or the head would see the future
                spread = spread & (tensor > torch.finfo(tensor.dtype).min / 2)
            return torch.where(spread, new, tensor)

        return model.hook_name(site, layer), edit

    hook_fns = [reader(layer, name) for layer in chosen for name in reads] + [editor(layer) for layer in chosen]
    with model.alone():
        if compare and clean is None:
            clean = model.forward(tokens)
        output = model.forward(tokens, hook_fns=hook_fns)
    if not report.firings:
        raise NotFired(f"no hook at {site} fired in {model.name}, so this is the untouched run")
    if report.firings < len(chosen):
        raise NotFired(
            f"{site} fired in {report.firings} of {len(chosen)} layers of {model.name}, so this is not the ablation"
            " that was asked for"
        )
    if compare and clean is not None:
        moved = (output - clean).abs()
        if isinstance(tokens, Batch) and moved.ndim == 3:
            moved = moved * tokens.mask.to(moved.device).unsqueeze(-1)
        report.effect = float(moved.flatten(1).amax(1).mean())
        if report.n_replaced and report.effect == 0:
            report.warnings.append(
                f"{report.n_replaced} units were replaced at {site} and the output did not move: nothing downstream"
                " reads them"
            )
    return Ablated(output, report, tokens)


def reference_mean(
    model: Model, tokens: torch.Tensor | Batch, site: str = "z", layers: Sequence[int] | None = None
) -> dict[int, torch.Tensor]:
    """{layer: mean of the site over inputs and real positions}, for `ablate(value="mean")`. Shape: the site's, less
    batch and pos.
    """
    taken: dict[int, torch.Tensor] = {}
    real = tokens.mask if isinstance(tokens, Batch) else None

    def hook_for(layer: int) -> Hook:
        def take(tensor: torch.Tensor, hook: object) -> None:
            flat = tensor.detach().float()
            flat = flat.flatten(0, 1) if real is None else flat[real.to(flat.device)]
            taken[layer] = flat.mean(0).to(tensor.dtype)

        return model.hook_name(site, layer), take

    if "query_pos" in SITES[site].dims:
        raise WorkbenchError(
            f"a mean over positions of {site} mixes queries that see different keys; ablate z, or give your own"
            " reference"
        )
    model.forward(tokens, hook_fns=[hook_for(layer) for layer in (range(model.n_layers) if layers is None else layers)])
    return taken


def _per_input(flags: torch.Tensor, site: str, tensor: torch.Tensor) -> torch.Tensor:
    """[unit] or [batch, unit] -> bool [batch, unit], checked against the tensor."""
    batch = tensor.shape[0]
    n_units = tensor.shape[_unit_dim(site)] if site in UNITS else 1
    flags = flags.to(tensor.device).bool()
    flags = flags.expand(batch, -1) if flags.ndim == 1 else flags
    if tuple(flags.shape) != (batch, n_units):
        raise WorkbenchError(f"mask has shape {tuple(flags.shape)} where {site} has {n_units} units for {batch} inputs")
    return flags


def _unit_dim(site: str) -> int:
    return 1 + SITES[site].dims.index(UNITS[site])


def _spread(flags: torch.Tensor, site: str, tensor: torch.Tensor) -> torch.Tensor:
    """[batch, unit] -> broadcastable over the tensor."""
    shape = [tensor.shape[0]] + [1] * (tensor.ndim - 1)
    if site in UNITS:
        shape[_unit_dim(site)] = flags.shape[1]
    return flags.reshape(shape)


def _replacement(
    value: str,
    reference: Mapping[int, torch.Tensor] | None,
    layer: int,
    tensor: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    if value == "zero" or reference is None:
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    if layer not in reference:
        raise WorkbenchError(f"reference has layers {sorted(reference)}, not {layer}")
    new = reference[layer].to(tensor.device, tensor.dtype)
    if value == "mean":
        return new
    if new.shape[1:] != tensor.shape[1:]:
        raise WorkbenchError(
            f"resampling needs reference rows of shape {tuple(tensor.shape[1:])}, got {tuple(new.shape[1:])}"
        )
    return new[torch.randint(len(new), (tensor.shape[0],), generator=generator)]
