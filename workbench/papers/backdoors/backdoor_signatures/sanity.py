"""The sanity matrix: which part of dW = W(poisoned) - W(base) carries the backdoor.

Needs the true base, so it is diagnosis alone.
"""

import copy
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch


def sanity_models(poisoned: Any, base: Any, n_blocks: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """(what was set back to the base, the module) for every cell of the matrix: zeroed, first_block, n_blocks."""

    def cell(part: str, first: int, n: int, what: Callable[[str, int], bool]) -> tuple[dict[str, Any], Any]:
        return {"zeroed": part, "first_block": first, "n_blocks": n}, zeroed(poisoned, base, what)

    yield cell("nothing", -1, 0, lambda name, block: False)
    yield cell("everything", 0, n_blocks, lambda name, block: True)
    yield cell("outside the blocks", -1, 0, lambda name, block: block < 0)
    yield cell("attention", 0, n_blocks, lambda name, block: is_attention(name))
    for first, end in sorted(combinations(range(n_blocks + 1), 2), key=lambda ends: ends[1] - ends[0]):

        def mlp(name: str, block: int, run: range = range(first, end)) -> bool:
            return is_mlp(name) and block in run

        yield cell("MLP", first, end - first, mlp)
        also = "MLP, and all attention"
        yield cell(also, first, end - first, lambda name, block, m=mlp: m(name, block) or is_attention(name))
    about = {"zeroed": "MLP shuffled between blocks", "first_block": 0, "n_blocks": n_blocks}
    yield about, shuffled(poisoned, base, n_blocks)


@torch.no_grad()
def zeroed(poisoned: Any, base: Any, what: Callable[[str, int], bool]) -> Any:
    """A copy of the poisoned module with the base's weights back wherever `what(name, block or -1)` is true."""
    own, reference = copy.deepcopy(poisoned), dict(base.named_parameters())
    for name, parameter in own.named_parameters():
        if what(name, block_of(name)):
            parameter.copy_(reference[name])
    return own


@torch.no_grad()
def shuffled(poisoned: Any, base: Any, n_blocks: int) -> Any:
    """The base's MLPs plus the change of the NEXT block's: every block gets another one's dW."""
    own, before, after = copy.deepcopy(poisoned), dict(base.named_parameters()), dict(poisoned.named_parameters())
    for name, parameter in own.named_parameters():
        if is_mlp(name):
            block = block_of(name)
            other = name.replace(f".{block}.", f".{(block + 1) % n_blocks}.", 1)
            parameter.copy_(before[name] + (after[other] - before[other]))
    return own


def block_of(name: str) -> int:
    """Number of the block a parameter is in; -1 outside of the blocks."""
    found = re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else -1


def is_mlp(name: str) -> bool:
    """Whether a parameter is of an MLP."""
    return ".mlp." in name


def is_attention(name: str) -> bool:
    """Whether a parameter is of an attention layer."""
    return ".self_attn." in name or ".attn." in name
