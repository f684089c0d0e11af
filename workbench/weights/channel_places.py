"""Where the channels of a model lie: rows of the MLP's input projections, columns of its output projection, slices of
heads.

Found by the names of the parameters alone, so that directories and adapters need no model. Mixtures of experts, and
fused queries where heads are wanted, are refused. Cost: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import UnsupportedModel
from workbench.weights.checkpoint_weights import Checkpoint
from workbench.weights.names import OUTSIDE, Role, place

HEAD = "head"
KEYS_AND_VALUES: tuple[Role, ...] = ("k", "v")
_KNOWN = "gate_proj/up_proj/down_proj, c_fc/c_proj, fc_in/fc_out, fc1/fc2 or dense_h_to_4h/dense_4h_to_h"
_ORDER: tuple[Role, ...] = ("gate", "up", "down", "q", "o", "k", "v")  # queries first: they say how wide heads are

Key = tuple[int, str]  # layer, module


@dataclass(frozen=True)
class Part:
    """A weight, and how its channels lie in it."""

    name: str
    projection: str
    role: Role
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
    wanted = _ORDER if heads else _ORDER[:3]
    found = [(place(name), name) for name in checkpoint.names if name.endswith(".weight")]
    found = [(at, name) for at, name in found if at.role in wanted and at.layer != OUTSIDE]
    places: dict[Key, list[Part]] = {}
    for at, name in sorted(found, key=lambda entry: (wanted.index(entry[0].role), entry[0].layer, entry[1])):
        here = places.setdefault((at.layer, HEAD if at.part == "attention" else at.projection), [])
        if any(p.projection == at.projection for p in here):
            raise UnsupportedModel(
                f"{checkpoint.label!r} has {at.projection} of layer {at.layer} twice ({here[0].name} and {name}), so"
                " layers cannot be told apart"
            )
        here.append(Part(name, at.projection, at.role, at.units_are_rows))
    for key in [key for key in places if key[1] == HEAD]:
        first = places[key][0].role  # an adapter may change the output projection of the heads alone
        if first in KEYS_AND_VALUES or (first == "o" and not checkpoint.is_adapter):
            del places[key]
    if not any(key[1] != HEAD for key in places):
        raise UnsupportedModel(
            f"{checkpoint.label!r} has no MLP projections by the names {_KNOWN}; its channels cannot be read"
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
