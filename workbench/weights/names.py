"""Where a weight lies in a model, by its name alone: which block, attention or MLP, which projection.

The one parser of parameter names, so that directories and adapters need no model. It knows the names of the families
that transformers has and TransformerLens bridges; what it does not know has no role. Cost: none.
"""

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", ""]

OUTSIDE = -1  # layer of what belongs to no block
TRANSPOSED = ("gpt2", "openai-gpt")  # model types whose projections are stored [in, out]
WRITING: tuple[Role, ...] = ("o", "down")  # their outputs are added to the residual stream

_BLOCK = re.compile(r"(?:(?P<before>.*?)\.)?(?:layers|layer|h|blocks|block)\.(?P<layer>\d+)\.(?P<inside>.+)")
_ATTENTION = {"self_attn", "attn", "attention", "self_attention"}
_MLP = {"mlp", "ffn", "fc1", "fc2", "intermediate", "output", "block_sparse_moe"}
_ROLES: dict[str, dict[Role, tuple[str, ...]]] = {
    "attention": {
        "q": ("q_proj", "query", "query_proj", "q_lin", "q"),
        "k": ("k_proj", "key", "key_proj", "k_lin", "k"),
        "v": ("v_proj", "value", "value_proj", "v_lin", "v"),
        "qkv": ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv"),
        "o": ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "Wo", "o"),
    },
    "mlp": {
        "gate": ("gate_proj",),
        "up": ("up_proj", "c_fc", "fc_in", "fc1", "dense_h_to_4h", "lin1", "intermediate.dense"),
        "gate_up": ("gate_up_proj", "Wi"),
        "down": ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "lin2", "Wo", "output.dense"),
    },
}
_ROLE: dict[tuple[str, str], Role] = {
    (part, name): role for part, roles in _ROLES.items() for role, names in roles.items() for name in names
}


@dataclass(frozen=True)
class Place:
    """Where one parameter (or module) lies.

    layer: number of its block, -1 outside. before: the name of the list of blocks' owner, which tells an encoder from a
    decoder. inside: its name within the block, without ".weight". part: "attention", "mlp" or "" (a norm, or outside).
    role: what the projection does; "" where it is none that is known here. projection: its own name, such as up_proj.
    is_expert: of a mixture of experts, of which each sees other tokens.
    """

    layer: int
    before: str
    inside: str
    part: Literal["attention", "mlp", ""]
    role: Role
    projection: str
    is_expert: bool

    @property
    def units_are_rows(self) -> bool:
        """Whether a neuron, or a head's channel, owns a row of the weight as [out, in]; else it owns a column."""
        return self.role not in WRITING


def place(name: str) -> Place:
    """The place of a parameter or module.

    >>> place("model.layers.3.mlp.up_proj.weight").role
    'up'
    """
    found = _BLOCK.fullmatch(name)
    if found is None:
        inside = name.removesuffix(".weight")
        return Place(OUTSIDE, "", inside, "", "", inside.removesuffix(".bias").rsplit(".", 1)[-1], False)
    inside = found["inside"].removesuffix(".weight")
    steps = inside.removesuffix(".bias").split(".")
    is_attention = bool(_ATTENTION & set(steps))
    part = "attention" if is_attention else "mlp" if _MLP & set(steps) else ""
    own = steps[-1]
    if part == "mlp" and own == "dense":  # BERT tells its two by the module around them
        own = ".".join(steps[-2:])
    is_gain = "norm" in inside.lower() or re.search(r"(^|\.)ln", inside) is not None
    role: Role = "" if is_gain else _ROLE.get((part, own), "")
    return Place(
        int(found["layer"]), found["before"] or "", inside, "" if is_gain else part, role, own, "experts" in steps
    )
