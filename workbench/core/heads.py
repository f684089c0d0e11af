"""One name for an attention head everywhere: `Head(1, 0)`, printed and parsed as "L1H0"."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .errors import BadData

NAME = re.compile(r"L(\d+)H(\d+)")


class Head(NamedTuple):
    """Head number `head` of block `layer`, both counted from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def of(cls, name: "str | tuple[int, int] | Head") -> "Head":
        """A head from its name or its two numbers.

        Raises:
            BadData: on anything else.
        """
        if isinstance(name, str):
            if found := NAME.fullmatch(name.strip()):
                return cls(int(found[1]), int(found[2]))
        elif len(name) == 2:
            return cls(int(name[0]), int(name[1]))
        raise BadData(f"a head is named like L1H0 (block 1, head 0) or (1, 0), got {name!r}")


def head_mask(heads: "Iterable[str | tuple[int, int] | Head]", n_layers: int, n_heads: int) -> np.ndarray:
    """bool [layer, head], True at the heads named.

    Raises:
        BadData: on a name that is none, or a head that the model does not have.
    """
    mask = np.zeros((n_layers, n_heads), bool)
    for head in map(Head.of, heads):
        if not (0 <= head.layer < n_layers and 0 <= head.head < n_heads):
            raise BadData(f"there is no head {head}; this model has L0H0 to {Head(n_layers - 1, n_heads - 1)}")
        mask[head] = True
    return mask
