"""Weights moved for a while, and put back bit by bit; how far one model's weights lie from another's.

Cost of `moved`: a copy of the parameters that move. Cost of `delta`: the difference of the weights asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from workbench.core.errors import BadData
from workbench.weights.factors import Factors

Update = Mapping[str, torch.Tensor | Factors]  # by parameter name: what is added to it


@contextmanager
@torch.no_grad()
def moved(parameters: Mapping[str, torch.Tensor], *terms: tuple[float, Update]) -> Iterator[None]:
    """The parameters with the sum of share x update added to them, inside the block; after it the bits they had.

    >>> with moved(dict(module.named_parameters()), (0.5, delta(tuned, module))):
    ...     loss = answer_loss(module, pairs)

    Args:
        parameters: the live ones by name, such as a module's `named_parameters`.
        terms: (share, {parameter name: what is added at a share of 1, of its shape}).

    Raises:
        BadData: if an update names a parameter that is not there, or has another shape. Nothing has moved then.
    """
    named = {name: change for _, update in terms for name, change in update.items()}
    if missing := sorted(set(named) - set(parameters)):
        raise BadData(
            f"the update moves {', '.join(missing[:3])}, and the model has no such parameter; it has"
            f" {', '.join(sorted(parameters)[:3])} and so on"
        )
    for _, update in terms:
        for name, change in update.items():
            shape, there = tuple(change.shape), tuple(parameters[name].shape)
            if shape != there:
                raise BadData(f"the update of {name} has shape {shape}, and the parameter {there}")
    before = {name: parameters[name].detach().clone() for name in named}
    try:
        for share, update in terms:
            for name, change in update.items():
                full = change.delta() if isinstance(change, Factors) else change
                parameters[name].data.add_(share * full.to(parameters[name].device))
        yield
    finally:
        for name, values in before.items():
            parameters[name].data.copy_(values)


def delta(
    module: torch.nn.Module, base: torch.nn.Module, only: Callable[[str], bool] = lambda name: True
) -> dict[str, torch.Tensor]:
    """{parameter name: its values in `module` minus those in `base`}, for the names that `only` lets through.

    Raises:
        BadData: if a name is missing from `base` or has another shape there.
    """
    before = dict(base.named_parameters())
    found = {}
    for name, parameter in module.named_parameters():
        if not only(name):
            continue
        if name not in before or before[name].shape != parameter.shape:
            there = "is missing" if name not in before else f"has shape {tuple(before[name].shape)}"
            raise BadData(
                f"{name} has shape {tuple(parameter.shape)}, and in the base it {there}; the two differ in kind"
            )
        found[name] = parameter.detach() - before[name].detach()
    return found
