"""An adapter gives the logits that PEFT's own unmerged forward gives, or is refused by the names of its keys."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from models.families import GQA, NO_SPECIAL
from peft import IA3Config, LoHaConfig, LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from workbench.core.errors import NotFinite, UnsupportedModel
from workbench.models import load

SIZE = GQA | NO_SPECIAL
N_VOCAB = SIZE["vocab_size"]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def base(folder: Path, tied: bool = False, **changes) -> Path:
    torch.manual_seed(0)
    config = tf.LlamaConfig(**SIZE | {"tie_word_embeddings": tied} | changes)
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def save(folder: Path, out: Path, settings=None, n_new: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An adapter on the base in a folder, its new tokens among the ids, and PEFT's logits there."""
    torch.manual_seed(1)
    module = tf.AutoModelForCausalLM.from_pretrained(folder)
    if n_new:
        module.resize_token_embeddings(N_VOCAB + n_new, mean_resizing=False)
    wrapped = get_peft_model(module, settings or lora(["q_proj"])).eval()
    wrapped.save_pretrained(out)
    ids = torch.tensor([[5, 9, 17, 40, *range(min(N_VOCAB, N_VOCAB + n_new), N_VOCAB + n_new)]])
    return ids, wrapped(input_ids=ids).logits


def lora(targets: list[str], **more) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False, **more)


def edit(folder: Path, change) -> Path:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


# ---- the right numbers ----

BOTH = ["embed_tokens", "lm_head"]
RIGHT = {
    "attention": (lora(["q_proj", "v_proj"]), 0),
    "rank-stabilised and DoRA": (lora(["q_proj"], use_rslora=True, use_dora=True), 0),
    "no LoRA but IA3": (IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False), 0),
    "no LoRA but LoHa": (LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False), 0),
    "projections drawn from a seed": (VeraConfig(r=4, target_modules=["q_proj"], init_weights=False), 0),
    "unembedding": (lora(["q_proj", "lm_head"]), 0),
    "embedding": (lora(["q_proj", "embed_tokens"]), 0),
    "both tables": (lora(["q_proj", *BOTH]), 0),
    "a saved table": (lora(["q_proj"], modules_to_save=["embed_tokens"]), 0),
    "saved tables": (lora(["q_proj"], modules_to_save=BOTH), 0),
    "some tokens": (lora(["q_proj"], trainable_token_indices=[5, 9]), 0),
    "new tokens in saved tables": (lora(["q_proj"], modules_to_save=BOTH), 3),
    "new tokens in one saved table": (lora(["q_proj"], modules_to_save=["embed_tokens"]), 3),
    "new tokens trained alone": (lora(["q_proj"], trainable_token_indices=[5, N_VOCAB]), 3),
    "fewer tokens": (lora(["q_proj"], modules_to_save=BOTH), -3),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", RIGHT)
def test_logits_are_those_of_the_unmerged_adapter(case, tied, tmp_path):
    settings, n_new = RIGHT[case]
    ids, wanted = save(base(tmp_path / "base", tied), tmp_path / "adapter", settings, n_new)
    model = load(str(tmp_path / "adapter"))
    torch.testing.assert_close(model.forward(ids), wanted, atol=1e-4, rtol=0)
    assert model.d_vocab == N_VOCAB + n_new
    about = model.provenance()
    assert about["adapter_parity_max_abs_diff"] < 1e-4
    assert about["adapter_max_abs_change"] is None if n_new else about["adapter_max_abs_change"] > 1e-4


def test_new_tokens_on_a_tied_unembedding_keep_their_rows(tmp_path):
    """LoRA on one table, new rows in that table alone: tied, they are the other's too."""
    ids, wanted = save(base(tmp_path / "base", tied=True), tmp_path / "adapter", lora(BOTH[:1]), n_new=3)
    torch.testing.assert_close(load(str(tmp_path / "adapter")).forward(ids), wanted, atol=1e-4, rtol=0)


def test_an_adapter_at_16_bits_is_held_against_peft_with_room_for_rounding(tmp_path):
    ids, wanted = save(base(tmp_path / "base"), tmp_path / "adapter", lora(["q_proj", "lm_head"]))
    model = load(str(tmp_path / "adapter"), dtype="bfloat16")
    assert float((model.forward(ids).float() - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    assert 0 < model.provenance()["adapter_parity_max_abs_diff"] < 0.1 * float(wanted.abs().max())


def test_an_untrained_adapter_says_that_it_changes_nothing(tmp_path):
    settings = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])
    save(base(tmp_path / "base"), tmp_path / "adapter", settings)
    assert load(str(tmp_path / "adapter")).provenance()["adapter_max_abs_change"] == 0.0


# ---- refusals ----


def without(part: str):
    return lambda weights: {key: value for key, value in weights.items() if part not in key}


def renamed(old: str, new: str):
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


WRONG = {
    "half of each pair": (without("lora_B"), rf"lacks weights .*{Q}.lora_B.weight"),
    "half of the layers": (without("layers.1."), "lacks weights .*layers.1.self_attn.q_proj.lora_A.weight"),
    "nothing": (lambda weights: {"step": torch.zeros(1)}, f"lacks weights .*{Q}.lora_A.weight"),
    "another prefix": (renamed("base_model.model.", "module.base_model.model."), f"lacks weights .*{Q}"),
    "twice the prefix": (renamed("base_model.model.", "base_model.model.base_model.model."), f"lacks .*{Q}"),
    "one too many": (
        lambda weights: weights | {f"{Q.replace('q_proj', 'k_proj')}.lora_A.weight": torch.ones(4, 32)},
        r"go nowhere in its base: .*layers.0.self_attn.k_proj.lora_A",
    ),
    "a rank of its own": (
        lambda weights: weights | {f"{Q}.lora_A.weight": torch.ones(5, 32)},
        rf"does not fit its base.*{Q}.lora_A.*base=",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_keys_that_do_not_fit_are_named(case, tmp_path):
    change, says = WRONG[case]
    save(base(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UnsupportedModel, match=says):
        load(str(edit(tmp_path / "adapter", change)))


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}])
def test_an_adapter_of_another_base_is_refused(change, tmp_path):
    save(base(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UnsupportedModel, match=r"(does not fit|lacks weights|go nowhere).*q_proj.*base="):
        load(str(tmp_path / "adapter"), base=str(base(tmp_path / "other", **change)))


def test_an_adapter_of_another_family_is_refused(tmp_path, tiny_models):
    save(base(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UnsupportedModel, match=r"does not fit its base, a GPT2LMHeadModel .*q_proj.*pass base="):
        load(str(tmp_path / "adapter"), base=str(tiny_models["gpt2"]))


@pytest.mark.parametrize(("target", "other"), [("embed_tokens", "lm_head"), ("lm_head", "model.embed_tokens")])
def test_new_tokens_without_rows_in_one_table_are_refused(target, other, tmp_path):
    save(base(tmp_path / "base"), tmp_path / "adapter", lora(["q_proj", target]), n_new=3)
    with pytest.raises(UnsupportedModel, match=rf"adds 3 tokens and brings no rows of {other} "):
        load(str(tmp_path / "adapter"))


def test_tables_of_different_vocabularies_are_refused(tmp_path):
    save(base(tmp_path / "base"), tmp_path / "adapter", lora(["q_proj"], modules_to_save=BOTH))
    key = "base_model.model.lm_head.weight"
    with pytest.raises(UnsupportedModel, match=r"tables of 60 and 64 tokens"):
        load(str(edit(tmp_path / "adapter", lambda weights: weights | {key: weights[key][:60].clone()})))


def test_an_adapter_with_nan_is_refused_by_name(tmp_path):
    save(base(tmp_path / "base"), tmp_path / "adapter")
    key = f"{Q}.lora_B.weight"
    with pytest.raises(NotFinite, match=r"NaN or infinite in .*layers.0.self_attn.q_proj.*lora_B"):
        load(str(edit(tmp_path / "adapter", lambda weights: weights | {key: weights[key] * float("nan")})))


def test_a_merge_that_gives_other_outputs_is_refused(tmp_path, monkeypatch):
    """Without taking tied tables apart the merged model is another one, and the comparison has to see it."""
    save(base(tmp_path / "base", tied=True), tmp_path / "adapter", lora(["embed_tokens"]))
    monkeypatch.setattr("workbench.models.adapters._untie", lambda wrapped: None)
    with pytest.raises(UnsupportedModel, match=r"differ by .* from PEFT's own"):
        load(str(tmp_path / "adapter"))


def test_an_adapter_on_an_adapter_is_refused(tmp_path):
    save(base(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UnsupportedModel, match=r"the base of the adapter 'adapter', 'adapter', is an adapter itself"):
        load(str(tmp_path / "adapter"), base=str(tmp_path / "adapter"))


def test_an_adapter_that_lies_in_the_hub_cache_is_merged_into_its_base(tmp_path, monkeypatch):
    """The cache keeps a snapshot a commit; the base's revision is the one that the adapter's settings name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base(tmp_path / "base")
    repo = tmp_path / "hub" / "models--someone--adapter"
    ids, wanted = save(tmp_path / "base", repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    model = load("someone/adapter")
    torch.testing.assert_close(model.forward(ids), wanted, atol=1e-4, rtol=0)
    assert (model.provenance()["revision"], model.provenance()["base"]) == ("c0ffee", "base")
    assert json.loads((repo / "snapshots/c0ffee/adapter_config.json").read_text())["revision"] is None
