"""One function turns the classic site names into a model's canonical hook names, and says why where there is none."""

import pytest

from workbench.core import hooks
from workbench.core.errors import UnknownName, UnknownSite

N_LAYERS = 2


def known(*without: str, **more: str) -> dict[str, str]:
    """The names of a two-layer model: every site under its classic alias and a canonical name, but for sites in
    `without`.
    """
    names = {}
    for site, entry in hooks.SITES.items():
        for layer in range(N_LAYERS) if entry.per_layer else [None]:
            canonical = f"canon.{site}" if layer is None else f"blocks.{layer}.canon_{site}.hook_out"
            if site not in without:
                names |= {entry.template.format(layer=layer): canonical, canonical: canonical}
    return names | more


def sentence(site: str, layer: int | None, names: dict[str, str]) -> str:
    with pytest.raises(UnknownSite) as found:
        hooks.resolve(site, layer, names, "toy")
    return str(found.value)


@pytest.mark.parametrize("site", list(hooks.SITES))
def test_every_site_resolves_to_one_canonical_name(site):
    for layer in range(N_LAYERS) if hooks.SITES[site].per_layer else [None]:
        classic = hooks.name(site, layer)
        canonical = known()[classic]
        assert hooks.resolve(site, layer, known()) == canonical != classic
        assert hooks.resolve(classic, None, known()) == canonical
        assert hooks.resolve(canonical, None, known()) == canonical


def test_names_are_the_classic_ones_and_differ_by_layer():
    assert (
        hooks.name("resid_pre", 5) == "blocks.5.hook_resid_pre"
        and hooks.name("pattern", 0) == "blocks.0.attn.hook_pattern"
    )
    assert hooks.name("embed") == "hook_embed"
    assert len(
        {hooks.name(s, layer) for s, e in hooks.SITES.items() for layer in ([0, 1] if e.per_layer else [None])}
    ) == sum(1 + e.per_layer for e in hooks.SITES.values())


@pytest.mark.parametrize("site", [s for s, entry in hooks.SITES.items() if entry.per_layer])
def test_a_missing_layer_is_asked_for(site):
    with pytest.raises(UnknownSite, match="exists once per layer: say which"):
        hooks.name(site)
    assert "exists once per layer: say which" in sentence(site, None, known())


@pytest.mark.parametrize("site", [s for s, entry in hooks.SITES.items() if not entry.per_layer])
def test_a_superfluous_layer_is_refused(site):
    with pytest.raises(UnknownSite, match=r"exists once in a model, so it takes no layer \(got 0\)"):
        hooks.name(site, 0)
    assert "takes no layer" in sentence(site, 0, known())


def test_a_full_hook_name_with_a_layer_is_told_that_it_takes_none():
    said = sentence("blocks.0.hook_resid_pre", 1, known())
    assert "takes no layer" in said and "no site or hook called" not in said


@pytest.mark.parametrize("layer", [N_LAYERS, 99, -1])
def test_a_layer_out_of_range_names_the_range(layer):
    assert sentence("z", layer, known()) == f"toy has layers 0 to 1, so there is no z at layer {layer}"


@pytest.mark.parametrize(
    ("asked", "closest"),
    [
        ("resid_pree", "resid_pre"),
        ("patern", "pattern"),
        ("mlp_pst", "mlp_post"),
        ("blocks.0.hook_resid_pr", "blocks.0.hook_resid_pre"),
    ],
)
def test_a_misspelt_site_names_the_closest(asked, closest):
    said = sentence(asked, None, known())
    assert f"no site or hook called '{asked}'" in said and closest in said.split("Closest: ")[1]
    assert "`model.sites()` lists the sites of toy" in said


def test_name_alone_names_the_closest_too():
    with pytest.raises(UnknownSite, match=r"no site called 'hidden_pre'.*resid_pre"):
        hooks.name("hidden_pre", 0)


@pytest.mark.parametrize(
    ("site", "names", "reason"),
    [
        ("resid_mid", known("resid_mid"), "parallel residual"),
        (
            "mlp_post",
            known("mlp_post", "mlp_pre", **{"blocks.0.mlp.gate.hook_out": "x"}),
            "experts run as one fused operation",
        ),
        (
            "mlp_pre",
            known("mlp_post", "mlp_pre", **{"blocks.0.mlp.gate.hook_out": "x"}),
            "experts run as one fused operation",
        ),
        ("mlp_post", known("mlp_post"), "its MLP does not expose it"),
        ("q", known("q"), "adapter does not expose it"),
    ],
)
def test_a_site_that_the_architecture_lacks_comes_with_the_reason_and_what_there_is(site, names, reason):
    said = sentence(site, 0, names)
    assert said.startswith(f"toy has no site '{site}': ") and reason in said
    have = said.split("It has: ")[1].rstrip(".").split(", ")
    assert site not in have and {"resid_pre", "resid_post", "pattern", "z", "logits"} <= set(have)


def test_a_missing_site_without_layers_still_lists_those_with_layers():
    have = sentence("logits", None, known("logits")).split("It has: ")[1].rstrip(".").split(", ")
    assert have == [site for site in hooks.SITES if site != "logits"]


def test_a_dense_first_layer_does_not_hide_why_an_expert_layer_lacks_neurons():
    names = known(**{"blocks.1.mlp.gate.hook_out": "x"})
    del names["blocks.1.mlp.hook_post"]
    said = sentence("mlp_post", 1, names)
    assert "experts run as one fused operation" in said
    assert "mlp_post" not in said.split("It has: ")[1], "that list is of layer 1, not of layer 0"


def test_unknown_sites_are_unknown_names():
    assert issubclass(UnknownSite, UnknownName)
