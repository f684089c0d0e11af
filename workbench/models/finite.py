"""Weights and outputs that are NaN, infinite or absurd are refused: the largest of NaNs is a token like any other.

Cost: one pass over the weights at load; one maximum over the outputs of each forward.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from workbench.core.errors import NotFinite

LARGEST_WEIGHT = 1e6  # trained weights stay below float16's 65504; a flipped bit of an exponent is far above


def refuse_weights(weights: Iterable[tuple[str, torch.Tensor]], label: str) -> None:
    """Look at every weight once.

    Args:
        weights: (name, tensor) of each.
        label: of the model or adapter, for the sentence.

    Raises:
        NotFinite: naming the first tensor with a value that is not finite, or larger than any trained one.
    """
    for name, tensor in weights:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))  # NaN comes through
        size = max(abs(low), abs(high))
        if size <= LARGEST_WEIGHT:
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        found = f"values up to {size:.3g}" if size < float("inf") else "values that are NaN or infinite"
        raise NotFinite(
            f"{label!r} has {found} in {name} (in {dtype}), so whatever is read from it means nothing; copy the weights"
            " again, or load them in a wider dtype if they overflowed"
        )


def refuse_outputs(out: torch.Tensor, label: str, mask: torch.Tensor | None = None) -> None:
    """Look at the outputs of one forward.

    -inf alone is allowed, because some models forbid tokens by it.

    Args:
        out: [batch, ...] logits or residual stream.
        label: of the model, for the sentence.
        mask: [batch, pos] non-zero at real tokens, reaching to the last position of `out`; what padding gives is not
            looked at.

    Raises:
        NotFinite: if a value is NaN or +inf, or all are -inf.
    """
    if not out.numel() or _has_maximum(out):
        return
    if mask is not None and out.ndim == 3 and mask.shape[1] >= out.shape[1]:
        real = mask[:, mask.shape[1] - out.shape[1] :].bool()
        if not bool(real.any()) or _has_maximum(out[real]):
            return
    dtype = str(out.dtype).removeprefix("torch.")
    raise NotFinite(
        f"outputs of {label} are not finite in {dtype}, so nothing can be read from them; use a wider dtype, or a"
        " smaller change where something is added to the stream"
    )


def _has_maximum(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values.detach().amax()))  # NaN comes through a maximum


def watch_outputs(runner: Any, label: str, head: nn.Module | None = None) -> None:
    """Look at what comes out of every forward of a loaded model from here on, whoever runs it.

    Args:
        runner: the module that gives the model's output; its attention mask is read from the call.
        label: of the model, for the sentence.
        head: a last module that is run by itself, beside the runner.
    """

    def look(module: nn.Module, args: Any, given: dict[str, Any], out: Any) -> None:
        values = out if isinstance(out, torch.Tensor) else getattr(out, "logits", None)
        if values is None:
            values = out[0]
        refuse_outputs(values, label, given.get("attention_mask"))

    for module in (runner, head):
        if module is not None:
            module.register_forward_hook(look, with_kwargs=True)
