"""LayerNorms: found in every family, removed as said and no more, out of the optimiser; gradients against plain
autograd.
"""

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from workbench.core.errors import BadSpec, NotFired, UnsupportedModel
from workbench.weights import layer_norms as ln

SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "num_labels": 4,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24, "num_labels": 4, "pad_token_id": 0}
NEO = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "attention_types": [[["global", "local", "global"], 1]],
    "max_position_embeddings": 24,
    "num_labels": 4,
    "pad_token_id": 0,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 4,
}
FAMILIES = {  # name: (module, placement, norms before and after the blocks)
    "bert": (lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZE)), "post", 1),
    "roberta": (lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZE)), "post", 1),
    "gpt": (lambda: tf.OpenAIGPTForSequenceClassification(tf.OpenAIGPTConfig(**GPT, afn="relu")), "post", 0),
    "gpt2": (lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT)), "pre", 1),
    "gpt_neo": (lambda: tf.GPTNeoForSequenceClassification(tf.GPTNeoConfig(**NEO)), "pre", 1),
    "roberta_preln": (
        lambda: tf.RobertaPreLayerNormForSequenceClassification(tf.RobertaPreLayerNormConfig(**SIZE)),
        "pre",
        2,
    ),
    "vit": (lambda: tf.ViTForImageClassification(tf.ViTConfig(**IMAGE)), "pre", 1),
    "qwen2": (lambda: tf.Qwen2ForSequenceClassification(tf.Qwen2Config(**SIZE, num_key_value_heads=2)), "pre", 1),
    "qwen3": (
        lambda: tf.Qwen3ForSequenceClassification(tf.Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8)),
        "pre",
        1,
    ),
    "gemma": (
        lambda: tf.GemmaForSequenceClassification(tf.GemmaConfig(**SIZE, num_key_value_heads=2, head_dim=8)),
        "pre",
        1,
    ),
}
RMS = ("qwen2", "qwen3", "gemma")


def make(family: str) -> nn.Module:
    """A small random model whose norms have been moved off 1 and 0, as pretraining does."""
    torch.manual_seed(0)
    module = FAMILIES[family][0]().eval()
    with torch.no_grad():
        for norm in ln.norms(module):
            norm.gain.add_(torch.randn_like(norm.gain) * 0.3)
            if norm.bias is not None:
                norm.bias.add_(torch.randn_like(norm.bias) * 0.3)
    return module


def inputs(family: str, n: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        {"pixel_values": torch.rand(n, 1, 8, 8, generator=generator)}
        if family == "vit"
        else {"input_ids": torch.randint(1, 40, (n, 9), generator=generator)}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_of_the_stream_is_found(family):
    module, n_outside = make(family), FAMILIES[family][2]
    found = ln.norms(module)
    assert [(n.block, n.place) for n in found if n.block is not None] == [(i, j) for i in range(3) for j in range(2)]
    assert sum(n.block is None for n in found) == n_outside
    assert all((n.bias is None) is (family in RMS) for n in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_numbered_as_they_run(family):
    module, ran = make(family), []
    for norm in ln.norms(module):
        if norm.block is not None:
            norm.module.register_forward_hook(lambda *_, key=(norm.block, norm.place): ran.append(key))
    module(**inputs(family))
    assert ran == sorted(ran)


@pytest.mark.parametrize("family", FAMILIES)
def test_placement_is_seen_in_a_forward(family):
    assert ln.placement(make(family), inputs(family)) == FAMILIES[family][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_removal_leaves_the_normalisation_and_nothing_else(family):
    """After removal every norm gives its input, centred (not RMSNorm) and scaled to unit size: N(x), by its formula."""
    module = make(family)
    removal = ln.remove_gain_and_bias(module)
    assert removal.n_norms == len(ln.norms(module)) and removal.gain_moved > 0.1
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    expected = (
        x / x.pow(2).mean(-1, keepdim=True).sqrt()
        if family in RMS
        else (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    )
    for norm in ln.norms(module):
        torch.testing.assert_close(norm.module(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_removed_is_out_of_training_and_the_rest_is_not(family):
    module = make(family)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    removal = ln.remove_gain_and_bias(module, "early")
    gone = {f"{norm.name}.{part}" for norm in ln.chosen(module, "early") for part in ("weight", "bias")}
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == gone & set(before) and sum(before[n].numel() for n in frozen) == removal.n_parameters == 32 * len(
        frozen
    )
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters() if n not in frozen)


def test_removal_moves_the_output_of_a_pretrained_model_and_not_of_a_fresh_one():
    moved, fresh = make("gpt2"), FAMILIES["gpt2"][0]().eval()
    for module, changes in ((moved, True), (fresh, False)):
        before = module(**inputs("gpt2")).logits
        ln.remove_gain_and_bias(module)
        assert (not torch.equal(module(**inputs("gpt2")).logits, before)) is changes


def test_the_whole_norm_is_another_removal():
    module = make("bert")
    ln.remove_whole_norm(module, "late")
    block = module.bert.encoder.layer[2]
    assert isinstance(block.output.LayerNorm, nn.Identity) and isinstance(
        module.bert.encoder.layer[1].output.LayerNorm, nn.LayerNorm
    )
    assert not any(name.startswith("bert.encoder.layer.2.output.LayerNorm") for name, _ in module.named_parameters())
    assert module(**inputs("bert")).logits.isfinite().all()


def test_thirds_part_the_layers():
    for n in (3, 4, 6, 12, 25):
        parts = [ln.third(n, where) for where in ("early", "middle", "late")]
        assert [layer for part in parts for layer in part] == list(range(n)) == list(ln.third(n, "all"))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(BadSpec, match="2 layers has no early third"):
        ln.third(2, "early")


def test_all_takes_the_norms_outside_the_blocks_and_thirds_do_not():
    module = make("gpt2")
    names = {where: {n.name for n in ln.chosen(module, where)} for where in ln.WHERE}
    assert (
        "transformer.ln_f" in names["all"]
        and names["all"] - {"transformer.ln_f"} == names["early"] | names["middle"] | names["late"]
    )


def test_a_model_without_norms_says_so():
    with pytest.raises(UnsupportedModel, match="no list of blocks"):
        ln.remove_gain_and_bias(nn.Sequential(nn.Linear(2, 2)))
    module = make("gpt")
    ln.remove_whole_norm(module)
    with pytest.raises(UnsupportedModel):
        ln.remove_gain_and_bias(module)


def test_a_norm_that_never_runs_is_an_error():
    module = make("gpt2")
    module.transformer.h[1].ln_2.forward = nn.functional.relu  # the module is still there; its pre-hook still fires
    module.transformer.h[1].mlp = nn.Identity()
    module.transformer.h[1].register_module("ln_9", nn.LayerNorm(32))
    with pytest.raises(NotFired, match="ln_9"):
        ln.gradient_norms(module, [(inputs("gpt2"), torch.tensor([0, 1, 2]))])


# ---- the placebo ----


def test_held_numbers_do_not_move_and_the_others_do():
    module = make("gpt2")
    masks = ln.hold_random(module, 448, seed=0)
    assert sum(int(m.sum()) for m in masks.values()) == 448 and not any(".ln_" in name for name in masks)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(**inputs("gpt2")).logits, torch.tensor([0, 1, 2])).backward()
        optimiser.step()
    after = dict(module.named_parameters())
    assert all(torch.equal(after[n][m], before[n][m]) for n, m in masks.items())
    free = torch.cat([(after[n] != before[n])[~m] for n, m in masks.items() if "wte" not in n and "wpe" not in n])
    assert free.float().mean() > 0.99


def test_holding_is_seeded_and_bounded():
    chosen = [ln.hold_random(make("gpt2"), 50, seed=s) for s in (0, 0, 1)]
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in ((chosen[0], chosen[1]), (chosen[0], chosen[2]))]
    assert same == [True, False]
    with pytest.raises(BadSpec, match="outside the norms"):
        ln.hold_random(make("gpt2"), 10**9, seed=0)


# ---- gradients ----

LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_each_sample_gives_alone(family):
    module, batch = make(family), inputs(family)
    together, losses = ln.gradient_norms(module, [(batch, LABELS)])
    alone, one_by_one = ln.gradient_norms(
        module, [({k: v[i : i + 1] for k, v in batch.items()}, LABELS[i : i + 1]) for i in range(3)]
    )
    assert together.shape == (3, 3, 2)
    np.testing.assert_allclose(together, alone, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-4)


def test_padding_adds_nothing():
    module = make("bert")
    ids = inputs("bert", 1)["input_ids"]
    padded = {
        "input_ids": torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1),
        "attention_mask": torch.tensor([[1] * 9 + [0] * 4]),
    }
    np.testing.assert_allclose(
        ln.gradient_norms(module, [(padded, LABELS[:1])])[0],
        ln.gradient_norms(module, [({"input_ids": ids}, LABELS[:1])])[0],
        rtol=1e-4,
    )


@pytest.mark.parametrize("family", ["gpt", "gpt2"])
def test_gradient_is_the_total_derivative_of_the_stream(family):
    """Oracle: move the tensor that enters the norm (stream and norm alike) a little along the gradient and watch the
    loss.
    """
    module, one = make(family).double(), inputs(family, 1)
    target = module.transformer.h[1].ln_2
    measured = ln.gradient_norms(module, [(one, LABELS[:1])])[0][0, 1, 1]
    seen = {}
    handle = target.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    loss = nn.functional.cross_entropy(module(**one).logits, LABELS[:1])
    direction = torch.autograd.grad(loss, seen["x"])[0]
    handle.remove()
    direction = direction / direction.norm()

    def loss_at(step: float) -> float:
        def move(module: nn.Module, args: tuple) -> None:
            args[0].add_(step * direction)  # in place: the residual sees it too

        shift = target.register_forward_pre_hook(move)
        with torch.no_grad():
            value = nn.functional.cross_entropy(module(**one).logits, LABELS[:1])
        shift.remove()
        return float(value)

    assert (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4 == pytest.approx(measured, rel=1e-4)


def test_measuring_leaves_no_hooks_and_no_gradients():
    module = make("vit")
    ln.gradient_norms(module, [(inputs("vit"), LABELS)])
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_pre_hooks for m in module.modules())
