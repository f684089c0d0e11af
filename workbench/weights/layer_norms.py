"""LayerNorms of a Hugging Face model: where they are, taking their gain and bias away, and gradients at their inputs.

Two removals that are easily confused, each with its own function:
    remove_gain_and_bias   LN(x) = w * N(x) + b becomes N(x): the normalisation STAYS (what "LN removal" means in
                           Singhal & Kim 2025, arXiv 2511.10566). RMSNorm has no bias and loses its gain.
    remove_whole_norm      LN(x) becomes x.
Works on plain modules (BERT, GPT-2, GPT-Neo, ViT, Llama- and Qwen-style RMSNorm, Gemma's 1 + w), which are changed in
place.
Cost: none, but for `gradient_norms`: one forward and backward.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from workbench.core.errors import BadSpec, NotFired, UnsupportedModel

Where = Literal["all", "early", "middle", "late"]
WHERE: tuple[Where, ...] = ("all", "early", "middle", "late")


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm: its dotted `name`, the `block` it is in (None for those before and after the blocks) and its `place`
    there (0 is the first norm of the block, 1 the second)."""

    name: str
    module: nn.Module
    block: int | None
    place: int

    @property
    def gain(self) -> nn.Parameter:
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        return getattr(self.module, "bias", None)

    @property
    def n_parameters(self) -> int:
        return self.gain.numel() + (0 if self.bias is None else self.bias.numel())


def blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Dotted name and list of the transformer blocks: the outermost list whose members all hold norms.

    Raises:
        UnsupportedModel: if there is none.
    """
    for name, child in module.named_modules():
        if (
            isinstance(child, nn.ModuleList)
            and len(child)
            and all(any(_is_norm(m) for m in block.modules()) for block in child)
        ):
            return name, child
    raise UnsupportedModel(
        f"{type(module).__name__} has no list of blocks with LayerNorm or RMSNorm in them, so there is nothing to"
        " remove"
    )


def norms(module: nn.Module) -> list[Norm]:
    """The norms over the residual stream, in the order they stand in the model; norms inside attention (of queries
    and keys) are not.
    """
    list_name, block_list = blocks(module)
    inside = [[(n, m) for n, m in block.named_modules() if _is_norm(m)] for block in block_list]
    width = max(m.weight.numel() for found in inside for _, m in found)  # type: ignore[union-attr, operator]
    found, places = [], [0] * len(block_list)
    for name, child in module.named_modules():
        if not _is_norm(child) or child.weight.numel() != width:  # type: ignore[union-attr, operator]
            continue
        if name.startswith(f"{list_name}."):
            block = int(name[len(list_name) + 1 :].split(".")[0])
            found.append(Norm(name, child, block, places[block]))
            places[block] += 1
        else:
            found.append(Norm(name, child, None, 0))
    return found


def _is_norm(module: nn.Module) -> bool:
    """LayerNorm or RMSNorm with a gain; recognised by class name because each model family brings its own RMSNorm."""
    named = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    return named and isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 1  # type: ignore[union-attr, operator]


def placement(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> str:
    """ "post" if a block returns what one of its norms returned (the norm closes the residual sum), else "pre".

    Seen in a forward on `inputs`, not guessed from a name.
    """
    returned: dict[int, list[torch.Tensor]] = {}
    _, block_list = blocks(module)
    closes: list[bool] = []

    def keep(block: int, out: Any) -> None:
        returned.setdefault(block, []).append(out.detach())

    def compare(block: int, out: Any) -> None:
        value = out[0] if isinstance(out, (tuple, list)) else out
        closes.append(
            any(
                norm.numel() == value.numel() and torch.equal(norm.reshape(value.shape), value)
                for norm in returned.get(block, ())
            )
        )

    with ExitStack() as stack:
        for norm in norms(module):
            if norm.block is not None:
                stack.callback(
                    norm.module.register_forward_hook(lambda m, a, out, block=norm.block: keep(block, out)).remove
                )
        for block, child in enumerate(block_list):
            stack.callback(child.register_forward_hook(lambda m, a, out, block=block: compare(block, out)).remove)
        with torch.no_grad():
            module(**inputs)
    if not closes:
        raise NotFired(f"no block of {type(module).__name__} ran, so the place of its norms was not seen")
    return "post" if all(closes) else "pre"


def third(n_layers: int, where: Where) -> range:
    """Layers of the early, middle or late third; "all" is every layer. What does not divide goes to the earlier thirds.

    Raises:
        BadSpec: if there are fewer than three layers to part.
    """
    if where == "all":
        return range(n_layers)
    if n_layers < 3:
        raise BadSpec(f"a model of {n_layers} layers has no {where} third; use 'all'")
    part = np.array_split(np.arange(n_layers), 3)[("early", "middle", "late").index(where)]
    return range(int(part[0]), int(part[-1]) + 1)


def chosen(module: nn.Module, where: Where) -> list[Norm]:
    """The norms of a third; "all" also takes those before and after the blocks (embedding norm, final norm)."""
    everything = norms(module)
    if where == "all":
        return everything
    layers = third(len(blocks(module)[1]), where)
    return [norm for norm in everything if norm.block is not None and norm.block in layers]


@dataclass(frozen=True)
class Removal:
    """What was done: how many norms and parameters, and how far they were from a plain N(x) (mean |gain - 1|, mean
    |bias|).
    """

    n_norms: int
    n_parameters: int
    gain_moved: float
    bias_moved: float


def remove_gain_and_bias(module: nn.Module, where: Where = "all") -> Removal:
    """Fix gain to 1 and bias to 0 and leave both out of training: N(x) stays. RMSNorm loses only its gain.

    Raises:
        NotFired: if nothing was there to remove.
        UnsupportedModel: if a norm's neutral gain is neither 1 nor, as in Gemma, 0.
    """
    targets = chosen(module, where)
    if not targets:
        raise NotFired(f"no norm in the {where} part of {type(module).__name__}")
    before = moved(targets)
    with torch.no_grad():
        for norm in targets:
            norm.gain.fill_(neutral_gain(norm))
            norm.gain.requires_grad_(False)
            if norm.bias is not None:
                norm.bias.zero_()
                norm.bias.requires_grad_(False)
    return Removal(len(targets), sum(n.n_parameters for n in targets), *before)


def remove_whole_norm(module: nn.Module, where: Where = "all") -> Removal:
    """Put the identity in place of the norms: nothing is normalised any more. NOT what the paper calls LN removal."""
    targets = chosen(module, where)
    if not targets:
        raise NotFired(f"no norm in the {where} part of {type(module).__name__}")
    removal = Removal(len(targets), sum(n.n_parameters for n in targets), *moved(targets))
    for norm in targets:
        parent, _, child = norm.name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    return removal


def moved(found: Sequence[Norm]) -> tuple[float, float]:
    """Mean |gain - neutral gain| and mean |bias| (nan without one) over norms: 0 and 0 at initialisation."""
    with torch.no_grad():
        gains = torch.cat([(n.gain - neutral_gain(n)).abs().float().flatten() for n in found])
        biases = [n.bias.abs().float().flatten() for n in found if n.bias is not None]
    return float(gains.mean()), float(torch.cat(biases).mean()) if biases else float("nan")


def neutral_gain(norm: Norm) -> float:
    """The gain at which a norm returns N(x): 1 for nearly all, 0 where the model multiplies by 1 + w. Found by
    trying.
    """
    probe = torch.linspace(-1, 1, norm.gain.numel(), device=norm.gain.device, dtype=torch.float32)[None] * 3
    kept, bias = norm.gain.detach().clone(), None if norm.bias is None else norm.bias.detach().clone()
    try:
        with torch.no_grad():
            if norm.bias is not None:
                norm.bias.zero_()
            for value in (1.0, 0.0):
                norm.gain.fill_(value)
                if abs(float(norm.module(probe.to(norm.gain.dtype)).float().pow(2).mean()) - 1) < 0.02:
                    return value
    finally:
        with torch.no_grad():
            norm.gain.copy_(kept)
            if bias is not None and norm.bias is not None:
                norm.bias.copy_(bias)
    raise UnsupportedModel(
        f"{norm.name} ({type(norm.module).__name__}) normalises to unit size with no gain tried, so 'removed' is"
        " undefined for it"
    )


def hold_random(module: nn.Module, n_parameters: int, *, seed: int) -> dict[str, torch.Tensor]:
    """The placebo of a removal: as many single numbers of other tensors, drawn at random, get no gradient.

    Returns:
        {parameter name: boolean mask of what is held}. With an optimiser without weight decay, held numbers stay as
        they are.

    Raises:
        BadSpec: if there are fewer trainable numbers than asked for.
    """
    of_norms = {id(p) for norm in norms(module) for p in norm.module.parameters()}
    free = {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in of_norms}
    total = sum(p.numel() for p in free.values())
    if n_parameters > total:
        raise BadSpec(f"{n_parameters} parameters were to be held, and there are {total} outside the norms")
    flat = torch.zeros(total, dtype=torch.bool)
    flat[torch.from_numpy(np.random.default_rng([seed, 13]).choice(total, n_parameters, replace=False))] = True
    masks = dict(
        zip(
            free,
            (
                m.view(p.shape)
                for m, p in zip(flat.split([p.numel() for p in free.values()]), free.values(), strict=True)
            ),
            strict=True,
        )
    )
    for name, mask in masks.items():
        free[name].register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask.to(gradient.device), 0.0))
    return masks


def gradient_norms(
    module: nn.Module, batches: Iterable[tuple[Mapping[str, torch.Tensor], torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """L2 norm of dLoss/d(input of the norm), per sample, at every norm of the blocks.

    The loss of a batch is SUMMED over samples, and samples do not meet in a transformer, so each sample's gradient is
    the one it would have alone. The derivative is the total one of the tensor that enters the norm: in a Pre-LN block
    this is the residual stream, so the way around the norm counts too (as the bounds with 1 + s_max(J) in the paper
    have it; inferred).

    Args:
        module: a classifier, in eval mode, whose parameters require gradients.
        batches: (inputs of the module, [batch] class numbers).

    Returns:
        [sample, layer, norm] L2 norms over all token x feature entries; nan where a block has fewer norms. And [sample]
        loss in nats.
    """
    in_blocks = [norm for norm in norms(module) if norm.block is not None]
    sizes = (max(n.block for n in in_blocks) + 1, max(n.place for n in in_blocks) + 1)  # type: ignore[type-var, operator]
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name] = args[0]

    rows, losses = [], []
    with ExitStack() as stack, torch.enable_grad():
        for norm in in_blocks:
            stack.callback(norm.module.register_forward_pre_hook(partial(keep, norm.name)).remove)
        for inputs, labels in batches:
            seen.clear()
            loss = nn.functional.cross_entropy(module(**inputs).logits.float(), labels, reduction="none")
            if missing := [n.name for n in in_blocks if n.name not in seen]:
                raise NotFired(f"{len(missing)} norms never ran, among them {missing[0]}")
            gradients = torch.autograd.grad(loss.sum(), [seen[n.name] for n in in_blocks])
            row = torch.full((len(labels), *sizes), float("nan"))
            for norm, gradient in zip(in_blocks, gradients, strict=True):
                row[:, norm.block, norm.place] = gradient.float().reshape(len(labels), -1).norm(dim=1).cpu()
            rows.append(row)
            losses.append(loss.detach().cpu())
    return torch.cat(rows).numpy(), torch.cat(losses).numpy()
