"""Site names: the classic words for places in a transformer, and the one function that finds them on a model.

Specs, tables and figures say `resid_pre`, `z`, `pattern`; TransformerLens 4.3 knows each point by a canonical name
(`blocks.0.attn.o.hook_in`) and lists classic names as aliases of it. `resolve` turns the former into the latter, so an
activation is never cached under two names. `known` is always the model's own map {any name: canonical name}.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UnknownSite


@dataclass(frozen=True)
class Site:
    """A kind of place: the classic hook name ("{layer}" for per-layer sites), its dims after `batch`, what it holds."""

    template: str
    dims: tuple[str, ...]
    holds: str

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.template


_STREAM, _HEADS, _KV = ("pos", "d_model"), ("pos", "head", "d_head"), ("pos", "kv_head", "d_head")

SITES: dict[str, Site] = {
    "embed": Site("hook_embed", _STREAM, "token embedding"),
    "resid_pre": Site("blocks.{layer}.hook_resid_pre", _STREAM, "residual stream entering the block"),
    "resid_mid": Site("blocks.{layer}.hook_resid_mid", _STREAM, "residual stream between attention and MLP"),
    "resid_post": Site("blocks.{layer}.hook_resid_post", _STREAM, "residual stream leaving the block"),
    "attn_out": Site("blocks.{layer}.hook_attn_out", _STREAM, "what attention writes"),
    "mlp_out": Site("blocks.{layer}.hook_mlp_out", _STREAM, "what the MLP writes"),
    "q": Site("blocks.{layer}.attn.hook_q", _HEADS, "queries, before any rotation"),
    "k": Site("blocks.{layer}.attn.hook_k", _KV, "keys, before any rotation"),
    "v": Site("blocks.{layer}.attn.hook_v", _KV, "values"),
    "z": Site("blocks.{layer}.attn.hook_z", _HEADS, "head outputs before the output projection"),
    "attn_scores": Site(
        "blocks.{layer}.attn.hook_attn_scores", ("head", "query_pos", "key_pos"), "attention before softmax"
    ),
    "pattern": Site("blocks.{layer}.attn.hook_pattern", ("head", "query_pos", "key_pos"), "attention after softmax"),
    "mlp_pre": Site("blocks.{layer}.mlp.hook_pre", ("pos", "d_mlp"), "MLP before its nonlinearity"),
    "mlp_post": Site("blocks.{layer}.mlp.hook_post", ("pos", "d_mlp"), "neurons: MLP after its nonlinearity"),
    "ln_final": Site("ln_final.hook_normalized", _STREAM, "final norm, before its gain"),
    "logits": Site("unembed.hook_out", ("pos", "d_vocab"), "unembedding output"),
}


def name(site: str, layer: int | None = None) -> str:
    """The classic hook name of a site: `name("resid_pre", 5)` -> "blocks.5.hook_resid_pre".

    Raises:
        UnknownSite: if there is no such site, or a layer is missing or superfluous.
    """
    if site not in SITES:
        raise UnknownSite.among("site", site, SITES)
    entry = SITES[site]
    if entry.per_layer and layer is None:
        raise UnknownSite(f"site {site!r} exists once per layer: say which, as in name({site!r}, layer=0)")
    if not entry.per_layer and layer is not None:
        raise UnknownSite(f"site {site!r} exists once in a model, so it takes no layer (got {layer})")
    return entry.template.format(layer=layer)


def resolve(site: str, layer: int | None, known: Mapping[str, str], model: str = "this model") -> str:
    """The canonical hook name of a site (or of a full hook name) on a model.

    Args:
        site: a word of SITES, or any full hook name the model knows.
        layer: the block, from 0; None for sites that exist once and for full hook names.
        known: {alias or canonical name: canonical name}, as `Model.hook_names` gives it.
        model: how to call the model in an error.

    Raises:
        UnknownSite: with the closest names, or with the reason where the architecture has no such point.
    """
    if site not in SITES:
        if site in known and layer is None:
            return known[site]
        if site in known:
            raise UnknownSite(f"{site!r} is a full hook name, so it takes no layer (got {layer})")
        raise UnknownSite.among(
            "site or hook",
            site,
            [*SITES, *known],
            f"`model.sites()` lists the sites of {model}, `model.hook_names` every hook.",
        )
    wanted = name(site, layer)
    if wanted in known:
        return known[wanted]
    n_layers = 1 + max((int(k.split(".")[1]) for k in known if k.startswith("blocks.")), default=-1)
    if layer is not None and not 0 <= layer < n_layers:
        raise UnknownSite(f"{model} has layers 0 to {n_layers - 1}, so there is no {site} at layer {layer}")
    neurons = (
        "its experts run as one fused operation"
        if f"blocks.{layer}.mlp.gate.hook_out" in known
        else "its MLP does not expose it"
    )
    why = {
        "resid_mid": "attention and MLP read the same stream there (parallel residual), so nothing lies between them",
        "mlp_pre": neurons,
        "mlp_post": neurons,
    }.get(site, "its TransformerLens adapter does not expose it")
    have = [s for s, entry in SITES.items() if entry.template.format(layer=layer or 0) in known]
    raise UnknownSite(f"{model} has no site {site!r}: {why}. It has: {', '.join(have)}.")
