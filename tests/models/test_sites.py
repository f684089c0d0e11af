"""Every site of every family fires once a layer with the dims its word promises, and holds what its word says."""

import copy

import pytest
import torch
from models.families import DECODERS, FAMILIES, moved

from workbench.core import hooks
from workbench.core.errors import UnknownSite
from workbench.core.hooks import SITES
from workbench.models import load
from workbench.models.sites import measured
from workbench.primitives.read.capture import capture

LAYERS, D_MLP = 2, {"gpt2": 128}
SERIAL = tuple(f for f in DECODERS if f != "neox")
ROTARY = ("neox", "llama", "gemma2", "mixtral", "qwen2")
# Which words a family may lack, and only these (opt runs transformers' own attention, which shows no scores).
MAY_LACK = {"neox": {"resid_mid"}, "mixtral": {"mlp_pre", "mlp_post"}, "opt": {"attn_scores"}}
GAINS = {
    "neox": "gpt_neox.final_layer_norm",
    "gpt2": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
}  # the others: model.norm


def tokens(n: int = 3, n_pos: int = 7) -> torch.Tensor:
    return torch.randint(6, 64, (n, n_pos), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pairs() -> dict:
    """{family: (plain module, Model of a copy of it)}."""
    plain = {family: moved(family) for family in FAMILIES}
    return {family: (module, load(copy.deepcopy(module))) for family, module in plain.items()}


@pytest.fixture(scope="module")
def taken(pairs):
    """{family: everything its model has, on `tokens()`} for the decoders."""
    return {family: capture(pairs[family][1], tokens().tolist(), pairs[family][1].sites()) for family in DECODERS}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ---- every site, every family ----


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_listed_fires_once_a_layer(family, pairs):
    _, model = pairs[family]
    wanted = [
        (site, layer) for site in model.sites() for layer in (range(LAYERS) if SITES[site].per_layer else (None,))
    ]
    fired: dict = dict.fromkeys(wanted, 0)

    def count(key):
        def hook_fn(tensor, hook) -> None:
            fired[key] += 1

        return hook_fn

    model.forward(
        torch.rand(2, 1, 8, 8) if family == "vit" else tokens(),
        hook_fns=[(model.hook_name(*key), count(key)) for key in wanted],
    )
    assert {key: n for key, n in fired.items() if n != 1} == {}


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_has_every_word_but_those_its_architecture_cannot_have(family, pairs):
    assert set(SITES) - set(pairs[family][1].sites()) <= MAY_LACK.get(family, set())


@pytest.mark.parametrize("family", DECODERS)
def test_shapes_are_the_dims_of_the_table(family, pairs, taken):
    _, model = pairs[family]
    n_kv = 4 if family in ("gpt2", "neox", "opt") else 2
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_head, model.d_model, model.d_vocab) == (
        LAYERS,
        4,
        n_kv,
        8,
        32,
        64,
    )
    sizes = {
        "pos": 7,
        "query_pos": 7,
        "key_pos": 7,
        "d_model": 32,
        "head": 4,
        "kv_head": n_kv,
        "d_head": 8,
        "d_mlp": D_MLP.get(family, 64),
        "d_vocab": 64,
    }
    for (site, layer), tensor in taken[family].tensors.items():
        assert tuple(tensor.shape) == (3, *(sizes[dim] for dim in SITES[site].dims)), (site, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_sites_share_a_canonical_name(family, pairs):
    _, model = pairs[family]
    names = [
        model.hook_name(site, layer)
        for site in model.sites()
        for layer in (range(LAYERS) if SITES[site].per_layer else (None,))
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_names_are_fixed_points(family, pairs):
    _, model = pairs[family]
    for name, canonical in model.hook_names.items():
        assert model.hook_names.get(canonical, canonical) == canonical, name
    assert model.hook_name(hooks.name("z", 1)) == model.hook_name("z", 1)


# ---- what they hold ----


@pytest.mark.parametrize("family", SERIAL)
def test_the_stream_is_the_sum_of_what_is_written(family, taken):
    acts = taken[family]
    for layer in range(LAYERS):
        close(acts["resid_mid", layer], acts["resid_pre", layer] + acts["attn_out", layer])
        close(acts["resid_post", layer], acts["resid_mid", layer] + acts["mlp_out", layer])
    close(acts["resid_pre", 1], acts["resid_post", 0])


def test_a_parallel_block_writes_both_at_once(taken):
    acts = taken["neox"]
    for layer in range(LAYERS):
        close(acts["resid_post", layer], acts["resid_pre", layer] + acts["attn_out", layer] + acts["mlp_out", layer])
    close(acts["resid_pre", 1], acts["resid_post", 0])


@pytest.mark.parametrize("family", DECODERS)
def test_patterns_are_causal_distributions_and_make_z(family, taken):
    acts = taken[family]
    for layer in range(LAYERS):
        pattern = acts["pattern", layer]
        close(pattern.sum(-1), torch.ones(3, 4, 7))
        assert float(pattern.triu(1).abs().max()) == 0
        value = acts["v", layer].repeat_interleave(4 // acts["v", layer].shape[2], dim=2)
        close(torch.einsum("bhqk,bkhd->bqhd", pattern, value), acts["z", layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_the_softmax_of_the_scores(family, pairs):
    """Also where scores are kept before the causal mask. A model without scores to show says so and gives nothing
    else.
    """
    _, model = pairs[family]
    if "attn_scores" not in model.sites():
        with pytest.raises(UnknownSite, match="has no site 'attn_scores'"):
            model.hook_name("attn_scores", 0)
        return
    seen: dict = {}
    names = [
        (model.hook_name(site, 0), lambda tensor, hook, site=site: seen.update({site: tensor}))
        for site in ("attn_scores", "pattern")
    ]
    model.forward(torch.rand(2, 1, 8, 8) if family == "vit" else tokens(), hook_fns=names)
    scores = seen["attn_scores"]
    if family in DECODERS or family == "llama_classifier":
        scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf)
    close(scores.softmax(-1), seen["pattern"])


@pytest.mark.parametrize("family", FAMILIES)
def test_is_causal_says_whether_the_future_is_hidden(family, pairs):
    _, model = pairs[family]
    seen: list[torch.Tensor] = []
    inputs = torch.rand(2, 1, 8, 8) if family == "vit" else tokens()
    model.forward(inputs, hook_fns=[(model.hook_name("pattern", 0), lambda tensor, hook: seen.append(tensor))])
    assert model.is_causal == (float(seen[0].triu(1).max()) == 0)


@pytest.mark.parametrize("family", ROTARY)
def test_queries_and_keys_are_read_before_rotation(family, pairs):
    """One token at every position gives one query and one key at layer 0; after rotation they would differ."""
    same = capture(pairs[family][1], [[9] * 7], ["q", "k"], layers=[0])
    for site in ("q", "k"):
        close(same[site, 0], same[site, 0][:, :1].expand_as(same[site, 0]))


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "llama", "gemma2", "qwen2"])
def test_neurons_are_the_nonlinearity_of_what_precedes_them(family, pairs, taken):
    module, _ = pairs[family]
    acts = taken[family]
    for layer in range(LAYERS):
        if family in ("llama", "gemma2", "qwen2"):
            block = module.model.layers[layer]
            norm = block.pre_feedforward_layernorm if family == "gemma2" else block.post_attention_layernorm
            read = norm(acts["resid_mid", layer])
            close(block.mlp.gate_proj(read), acts["mlp_pre", layer])
            close(block.mlp.act_fn(acts["mlp_pre", layer]) * block.mlp.up_proj(read), acts["mlp_post", layer])
        else:
            where = {
                "gpt2": f"transformer.h.{layer}.mlp.act",
                "neox": f"gpt_neox.layers.{layer}.mlp.act",
                "opt": f"model.decoder.layers.{layer}.activation_fn",
            }
            close(module.get_submodule(where[family])(acts["mlp_pre", layer]), acts["mlp_post", layer])


@pytest.mark.parametrize("family", DECODERS)
def test_embed_is_the_row_of_the_table(family, pairs, taken):
    module, _ = pairs[family]
    found, rows = taken[family]["embed"], module.get_input_embeddings().weight[tokens()]
    close(found, rows * 32**0.5 if family == "gemma2" else rows)  # gemma multiplies by sqrt(d_model)


@pytest.mark.parametrize("family", DECODERS)
def test_ln_final_is_normalised_and_lacks_only_the_gain(family, pairs, taken):
    module, _ = pairs[family]
    found, norm = taken[family]["ln_final"], module.get_submodule(GAINS.get(family, "model.norm"))
    if isinstance(norm, torch.nn.LayerNorm):
        close(found * norm.weight + norm.bias, norm(taken[family]["resid_post", 1]))
    else:
        close(found * (1 + norm.weight if family == "gemma2" else norm.weight), norm(taken[family]["resid_post", 1]))


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_the_output(family, pairs, taken):
    found = taken[family]["logits"]
    close(
        30 * torch.tanh(found / 30) if family == "gemma2" else found, pairs[family][1].forward(tokens())
    )  # gemma2 caps after


# ---- post-norm encoders ----


@pytest.mark.parametrize("family", ["bert", "bert_mlm", "bert_classifier"])
def test_an_encoders_attn_out_is_before_residual_and_norm(family, pairs):
    module, model = pairs[family]
    acts = capture(model, tokens().tolist(), ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"])
    encoder = module.encoder if family == "bert" else module.bert.encoder
    for layer, block in enumerate(encoder.layer):
        close(
            acts["resid_mid", layer],
            block.attention.output.LayerNorm(acts["resid_pre", layer] + acts["attn_out", layer]),
        )
        close(acts["attn_out", layer], block.attention.output.dense(acts["z", layer].flatten(2)))
        close(acts["resid_post", layer], block.output.LayerNorm(acts["resid_mid", layer] + acts["mlp_out", layer]))


@pytest.mark.parametrize("family", ["bert", "bert_mlm", "bert_classifier"])
@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "mlp_out"])
def test_an_encoders_sites_can_be_edited_where_they_are_read(family, site, pairs):
    """Writing back what was read changes nothing, writing another input's changes the output."""
    _, model = pairs[family]
    name, other, kept = model.hook_name(site, 0), tokens().flip(1), []
    wanted = model.forward(tokens(), hook_fns=[(name, lambda tensor, hook: kept.append(tensor.clone()))])
    close(model.forward(tokens(), hook_fns=[(name, lambda tensor, hook: kept[0])]), wanted)
    untouched = model.forward(other)
    assert float((model.forward(other, hook_fns=[(name, lambda tensor, hook: kept[0])]) - untouched).abs().max()) > 1e-6
    if site == "resid_mid":
        close(model.forward(other, hook_fns=[(name, lambda tensor, hook: kept[0])]), wanted)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2", "mixtral", "qwen2"])
@pytest.mark.parametrize(
    "site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "embed"]
)
def test_a_decoders_sites_can_be_edited_where_they_are_read(family, site, pairs):
    _, model = pairs[family]
    layer = 0 if SITES[site].per_layer else None
    name, clean = model.hook_name(site, layer), model.forward(tokens())
    torch.testing.assert_close(
        model.forward(tokens(), hook_fns=[(name, lambda tensor, hook: tensor.clone())]), clean, atol=1e-6, rtol=0
    )
    assert (
        float((model.forward(tokens(), hook_fns=[(name, lambda tensor, hook: tensor.flip(0))]) - clean).abs().max())
        > 1e-5
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "mixtral"])
def test_editing_resid_mid_edits_the_stream_and_not_only_the_norm(family, tiny_models):
    """Whole replacement by another run's resid_mid at one position gives that run's block output there."""
    model = load(str(tiny_models[family]))
    clean, other, taken = torch.randint(5, 60, (2, 9)), torch.randint(5, 60, (2, 9)), {}
    mid, out = model.hook_name("resid_mid", 1), model.hook_name("resid_post", 1)
    model.forward(
        clean,
        hook_fns=[
            (mid, lambda t, hook: taken.__setitem__("mid", t.clone())),
            (out, lambda t, hook: taken.__setitem__("out", t.clone())),
        ],
    )

    def replace(tensor, hook):
        tensor = tensor.clone()
        tensor[:, 4] = taken["mid"][:, 4]
        return tensor

    model.forward(other, hook_fns=[(mid, replace), (out, lambda t, hook: taken.__setitem__("patched", t.clone()))])
    torch.testing.assert_close(taken["patched"][:, 4], taken["out"][:, 4], atol=1e-5, rtol=0)
    assert not torch.allclose(taken["patched"][:, 3], taken["out"][:, 3])


# ---- hooks that do not mean what their names say ----


def sites_with(model, planted: dict[str, str]):
    """The sites measured when a word's classic name stands for another hook."""
    known = model._bridged_names() | {
        SITES[word].template.format(layer=n): hook.format(layer=n) for word, hook in planted.items() for n in range(2)
    }

    def run(inputs, hook_fns):
        with torch.no_grad(), model.live.hooks(fwd_hooks=list(hook_fns)):
            model.live(inputs)

    return measured(known, run, tokens(2, 5), 2, {"head": 4, "kv_head": model.n_kv_heads, "d_model": 32})


@pytest.mark.parametrize(
    "word, hook",
    [
        ("resid_pre", "blocks.{layer}.ln1.hook_in"),  # the norm alone hears it
        ("q", "blocks.{layer}.hook_out"),  # other dims
        ("z", "blocks.{layer}.attn.k.hook_out"),  # right dims, and not what the projection reads
        ("mlp_post", "blocks.{layer}.mlp.in.hook_out"),  # a factor of the neurons
    ],
)
def test_a_wrong_hook_is_refused_with_a_reason(word, hook, pairs):
    _, model = pairs["gpt2" if word == "z" else "llama"]
    found = sites_with(model, {word: hook})
    assert found.refused.get(word)
    assert SITES[word].template.format(layer=0) not in found.names


@pytest.mark.parametrize(
    "word, hook",
    [
        ("resid_mid", "blocks.{layer}.ln2.hook_out"),
        ("resid_mid", "blocks.{layer}.mlp.hook_in"),
        ("attn_out", "blocks.{layer}.ln1.hook_out"),
        ("attn_out", "blocks.{layer}.mlp.hook_out"),
        ("mlp_out", "blocks.{layer}.hook_out"),
    ],
)
def test_a_wrong_name_of_a_place_gives_way_to_the_right_one_or_to_a_refusal(word, hook, pairs):
    _, model = pairs["llama"]
    found, name = sites_with(model, {word: hook}), SITES[word].template.format(layer=1)
    if word == "resid_mid":
        assert "MLP and the residual" in found.refused[word] and name not in found.names
    else:
        right = {"attn_out": ("blocks.1.attn.o.hook_out",), "mlp_out": ("blocks.1.mlp.out.hook_out",)}[word]
        assert found.names[name] in right and word not in found.refused


def test_sites_are_measured_once_and_a_refusal_names_the_reason(pairs):
    module, _ = pairs["opt"]
    model, n = load(copy.deepcopy(module)), 0
    real = model._call

    def count(*args):
        nonlocal n
        n += 1
        return real(*args)

    model._call = count
    with pytest.raises(UnknownSite, match="attn_scores': it is shown after the fact"):
        model.hook_name("attn_scores", 0)
    measuring = n
    model.sites(), model.hook_name("z", 1)
    assert 0 < measuring == n <= 4


def test_latent_attention_gives_its_heads_and_refuses_what_it_has_not():
    from models.architectures import loaded

    model = loaded("DeepSeek V3")
    kept = capture(model, tokens().tolist(), ["z", "attn_out"])
    assert kept["z", 0].shape == (3, 7, 4, 8)
    close(torch.einsum("bphd,hdm->bpm", kept["z", 1], model.W_O(1).detach()), kept["attn_out", 1])
    for word in ("q", "k", "v"):
        with pytest.raises(UnknownSite, match=f"no site '{word}': its hook shows"):
            model.hook_name(word, 0)


@pytest.mark.parametrize("processing", ["raw", "folded"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_stream_in_the_middle_decides_all_that_follows_with_folded_weights_too(tiny_models, family, processing):
    """What TransformerLens's hook returns there reaches the MLP alone when weights are folded."""
    model = load(str(tiny_models[family]), processing=processing)
    a, b = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10, 11, 12]])
    name, kept = model.hook_name("resid_mid", 0), {}
    wanted = model.forward(a, hook_fns=[(name, lambda x, hook: kept.update(a=x.clone()))])
    found = model.forward(b, hook_fns=[(name, lambda x, hook: kept["a"])])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
