"""The sanity matrix: which part of dW = W(poisoned) - W(base) carries the backdoor.

Needs the true base, so it is diagnosis alone.
"""

import copy
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch

from workbench.weights.names import OUTSIDE, Place, place


def sanity_models(poisoned: Any, base: Any, n_blocks: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """(what was set back to the base, the module) for every cell of the matrix: zeroed, first_block, n_blocks."""

    def cell(part: str, first: int, n: int, what: Callable[[Place], bool]) -> tuple[dict[str, Any], Any]:
        return {"zeroed": part, "first_block": first, "n_blocks": n}, zeroed(poisoned, base, what)

    yield cell("nothing", -1, 0, lambda at: False)
    yield cell("everything", 0, n_blocks, lambda at: True)
    yield cell("outside the blocks", -1, 0, lambda at: at.layer == OUTSIDE)
    yield cell("attention", 0, n_blocks, lambda at: at.part == "attention")
    for first, end in sorted(combinations(range(n_blocks + 1), 2), key=lambda ends: ends[1] - ends[0]):

        def mlp(at: Place, run: range = range(first, end)) -> bool:
            return at.part == "mlp" and at.layer in run

        yield cell("MLP", first, end - first, mlp)
        also = "MLP, and all attention"
        yield cell(also, first, end - first, lambda at, m=mlp: m(at) or at.part == "attention")
    about = {"zeroed": "MLP shuffled between blocks", "first_block": 0, "n_blocks": n_blocks}
    yield about, shuffled(poisoned, base, n_blocks)


@torch.no_grad()
def zeroed(poisoned: Any, base: Any, what: Callable[[Place], bool]) -> Any:
    """A copy of the poisoned module with the base's weights back wherever `what(place)` is true."""
    own, reference = copy.deepcopy(poisoned), dict(base.named_parameters())
    for name, parameter in own.named_parameters():
        if what(place(name)):
            parameter.copy_(reference[name])
    return own


@torch.no_grad()
def shuffled(poisoned: Any, base: Any, n_blocks: int) -> Any:
    """The base's MLPs plus the change of the NEXT block's: every block gets another one's dW."""
    own, before, after = copy.deepcopy(poisoned), dict(base.named_parameters()), dict(poisoned.named_parameters())
    for name, parameter in own.named_parameters():
        block = place(name).layer
        if place(name).part == "mlp":
            other = name.replace(f".{block}.", f".{(block + 1) % n_blocks}.", 1)
            parameter.copy_(before[name] + (after[other] - before[other]))
    return own
