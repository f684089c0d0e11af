"""Pruning single weights of a model: the smallest, or those that matter least on a set of texts.

Both set a share of every linear layer of the blocks to zero and return where, so that a fine-tune can keep them there
(`training.freezing.Frozen`). Magnitude compares |W| within a matrix; Wanda compares |W_ij| * ||X_j||_2 within a row,
X_j being the j-th input of that layer over all tokens, block after block, so that later blocks see pruned ones before
them.
Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), score and
    row-wise comparison. Cost: magnitude one sort of each matrix; Wanda a forward of all texts for each block.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch

from workbench.core.errors import BadData, NotFired, UnsupportedModel
from workbench.models.inputs import Rows, batches
from workbench.weights.names import OUTSIDE, place

Where = Literal["mlp", "attention", "all"]


@torch.no_grad()
def prune_magnitude(module: torch.nn.Module, share: float, only: Where = "mlp") -> dict[str, torch.Tensor]:
    """Set the smallest `share` of each matrix to zero, in place.

    Args:
        module: a Hugging Face model. share: of the weights of each matrix, in (0, 1). only: which linear layers of the
            blocks.

    Returns:
        {parameter name: bool mask of its shape, True where pruned}.

    Raises:
        BadData: on a share outside (0, 1). UnsupportedModel: if there are no such linear layers, or experts.
    """
    return _prune(_layers(module, only), share, lambda _, weight: weight.abs().float().reshape(1, -1))


@torch.no_grad()
def prune_wanda(
    module: torch.nn.Module, rows: Rows, share: float, only: Where = "mlp", *, batch_size: int = 32
) -> dict[str, torch.Tensor]:
    """Set the `share` of each row of each matrix to zero that has the smallest |W_ij| * ||X_j||_2, in place.

    Args:
        module: a Hugging Face causal model. rows: token ids of the calibration texts, all tokens counted. Others as in
            `prune_magnitude`.

    Returns, raises:
        As `prune_magnitude`; NotFired if a layer read no input.
    """
    if not rows:
        raise BadData("Wanda weighs inputs on texts, so give at least one row of token ids")
    layers, masks = _layers(module, only), {}
    for block in dict.fromkeys(place(name).layer for name in layers):
        here = {name: part for name, part in layers.items() if place(name).layer == block}
        norms = _input_norms(module, here, rows, batch_size)
        masks |= _prune(here, share, lambda name, weight, norms=norms: weight.abs().double() * norms[name])
    return masks


def _prune(
    layers: dict[str, torch.nn.Module], share: float, score: Callable[[str, torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Zero the lowest `share` of every row of the scores; scores may be one row for the whole matrix. Ties fall to
    the first.
    """
    if not 0 < share < 1:
        raise BadData(f"a share of weights to prune lies between 0 and 1, got {share}")
    masks = {}
    for name, part in layers.items():
        weight: Any = part.weight
        matrix = weight.data.T if _is_transposed(part) else weight.data  # [out, in]
        found = score(name, matrix)
        lowest = found.argsort(dim=-1, stable=True)[:, : round(share * found.shape[1])]
        mask = torch.zeros_like(found, dtype=torch.bool).scatter_(1, lowest, True).reshape(matrix.shape)
        matrix[mask] = 0
        masks[f"{name}.weight"] = mask.T.contiguous() if _is_transposed(part) else mask
    return masks


def _input_norms(
    module: torch.nn.Module, layers: dict[str, torch.nn.Module], rows: Rows, batch_size: int
) -> dict[str, torch.Tensor]:
    """{layer: [in] L2 norm of each input over all tokens}, summed in float64."""
    squares: dict[str, torch.Tensor] = {}

    def see(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found = inputs[0].detach()
            found = (
                (found.cpu() if found.device.type == "mps" else found)
                .double()
                .square()
                .reshape(-1, found.shape[-1])
                .sum(0)
            )
            squares[name] = squares[name] + found if name in squares else found

        return hook

    handles = [part.register_forward_pre_hook(see(name)) for name, part in layers.items()]
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    try:
        for batch in batches(rows, batch_size):
            module(input_ids=batch.tokens.to(device))
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    if silent := sorted(set(layers) - set(squares)):
        raise NotFired(f"{silent[0]} read no input in {len(rows)} texts, so its weights cannot be weighed")
    return {name: found.sqrt().to(next(layers[name].parameters()).device) for name, found in squares.items()}


def _layers(module: torch.nn.Module, only: Where) -> dict[str, torch.nn.Module]:
    """{name: linear layer} of the blocks, in order."""
    if any(place(name).is_expert for name, _ in module.named_modules()):
        raise UnsupportedModel(
            f"{type(module).__name__} has a mixture of experts, of which each sees other tokens; its weights are not"
            " pruned here"
        )
    found = {}
    for name, part in module.named_modules():
        at = place(name)
        is_linear = isinstance(part, torch.nn.Linear) or _is_transposed(part)
        if is_linear and at.layer != OUTSIDE and only in ("all", at.part):
            found[name] = part
    if not found:
        raise UnsupportedModel(
            f"{type(module).__name__} has no linear layers in blocks ({only}); give a Hugging Face decoder that load()"
            " has not wrapped"
        )
    return found


def _is_transposed(part: torch.nn.Module) -> bool:
    return type(part).__name__ == "Conv1D"  # transformers' linear layer of GPT-2, stored [in, out]
