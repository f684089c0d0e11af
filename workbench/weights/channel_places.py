"""Where the channels of a model lie: rows of the MLP's input projections, columns of its output projection, slices of
heads.

Found by the names of the parameters alone, so that directories and adapters need no model. Mixtures of experts, and
fused queries where heads are wanted, are refused. Cost: none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import UnsupportedModel
from workbench.weights.checkpoint_weights import Checkpoint

HEAD = "head"
_INTO, _OUT = (
    ("gate_proj", "up_proj", "c_fc", "fc_in", "fc1", "dense_h_to_4h"),
    ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h"),
)
_Q, KEYS_AND_VALUES, _O = ("q_proj",), ("k_proj", "v_proj"), ("o_proj", "out_proj", "dense")
_BLOCK = r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\."
_MLP = re.compile(_BLOCK + rf"(?:mlp\.)?({'|'.join(_INTO + _OUT)})\.weight")
_ATTENTION = re.compile(
    _BLOCK + rf"(?:self_attn|attn|attention)\.(?:attention\.)?({'|'.join(_Q + KEYS_AND_VALUES + _O)})\.weight"
)
TRANSPOSED = ("gpt2", "openai-gpt")  # their projections are stored [in, out]

Key = tuple[int, str]  # layer, module


@dataclass(frozen=True)
class Part:
    """A weight, and how its channels lie in it."""

    name: str
    kind: str
    by_row: bool


def channel_places(checkpoint: Checkpoint, *, heads: bool = False) -> dict[Key, list[Part]]:
    """{(layer, module): the weights its channels lie in}, by the names of the checkpoint's own parameters.

    Args:
        heads: whether attention heads are wanted; queries come first in their list, as they say how wide the heads are.

    Raises:
        UnsupportedModel: on experts, layers that cannot be told apart, fused queries, or projections of names not known
            here.
    """
    if expert := next((n for n in sorted(checkpoint.names) if ".experts." in n), None):
        raise UnsupportedModel(
            f"{checkpoint.label!r} has a mixture of experts ({expert}), whose channels are not read here"
        )
    places: dict[Key, list[Part]] = {}
    order = _INTO + _OUT + _Q + _O + KEYS_AND_VALUES
    matched = [
        (m, n) for n in checkpoint.names for m in (_MLP.fullmatch(n), _ATTENTION.fullmatch(n) if heads else None) if m
    ]
    for match, name in sorted(matched, key=lambda entry: order.index(entry[0][2])):
        layer, kind = int(match[1]), match[2]
        attention = match.re is _ATTENTION
        here = places.setdefault((layer, HEAD if attention else kind), [])
        if any(p.kind == kind for p in here):
            raise UnsupportedModel(
                f"{checkpoint.label!r} has {kind} of layer {layer} twice ({here[0].name} and {name}), so layers cannot"
                " be told apart"
            )
        here.append(Part(name, kind, kind not in (_O if attention else _OUT)))
    gone = [
        key
        for key, parts in places.items()
        if key[1] == HEAD and (parts[0].kind in KEYS_AND_VALUES or not (checkpoint.is_adapter or parts[0].kind in _Q))
    ]
    for key in gone:
        del places[key]
    if not any(key[1] != HEAD for key in places):
        known = "gate_proj/up_proj/down_proj, c_fc/c_proj, fc_in/fc_out, fc1/fc2 or dense_h_to_4h/dense_4h_to_h"
        raise UnsupportedModel(
            f"{checkpoint.label!r} has no MLP projections by the names {known}; its channels cannot be read"
        )
    if heads and not any(key[1] == HEAD for key in places):
        raise UnsupportedModel(
            f"{checkpoint.label!r} has no separate q_proj (fused or absent), so its heads cannot be read; leave"
            " heads=False"
        )
    if (
        any(key[1] == "c_fc" for key in places)
        and not checkpoint.is_adapter
        and "model_type" not in checkpoint.settings
    ):
        raise UnsupportedModel(
            f"{checkpoint.label!r} has no config.json that says whether c_fc is stored [out, in] or [in, out]; put it"
            " beside the weights"
        )
    return places


def query_heads(settings: Mapping[str, Any]) -> int | None:
    """Number of query heads by a model's config; None where it does not say."""
    return settings.get("num_attention_heads") or settings.get("n_head")
