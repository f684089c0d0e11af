"""LoRA: an adapter starts as nothing, trains alone, its factors are its update, and a saved one comes back the same."""

import copy
import json

import pytest
import torch
from training.tiny import PAIRS, SHORT, fresh

from workbench.core.errors import BadData, BadSpec, ModelNotFound, UnsupportedModel
from workbench.models import load
from workbench.models.model import hash_weights
from workbench.training import lora
from workbench.training.finetune import finetune
from workbench.training.lora import LoraSpec

SPEC = LoraSpec(rank=4, alpha=8.0)
TOKENS = torch.tensor([[1, 5, 6, 7, 2, 9]])


@pytest.fixture(scope="module")
def trained():
    """(bare module, PeftModel trained from a copy of it)."""
    torch.set_num_threads(1)
    base = fresh()
    adapted = lora.add_lora(copy.deepcopy(base), SPEC)
    finetune(adapted, PAIRS, SHORT.replace(lr=1e-2, steps=20))
    return base, adapted


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module(TOKENS).logits


def test_a_new_adapter_changes_nothing_and_trains_alone():
    base = fresh()
    adapted = lora.add_lora(copy.deepcopy(base), SPEC)
    assert torch.equal(logits(adapted), logits(base))
    assert all(f.norm() == 0 and float(f.A.norm()) > 0 for f in lora.factors(adapted).values())
    assert all(p.requires_grad == ("lora_" in n) for n, p in adapted.named_parameters())


def test_factors_are_the_whole_difference_to_the_base(trained):
    """Merged weights minus base weights are scale * B A, and no other weight moved."""
    base, adapted = trained
    found = lora.factors(adapted)
    merged = dict(lora.merge(copy.deepcopy(adapted)).named_parameters())
    assert len(found) == 2 * 7 and all(f.A.shape[0] == 4 and f.scale == 2.0 for f in found.values())
    for name, weight in base.named_parameters():
        update = (
            found[name.removesuffix(".weight")].delta()
            if name.removesuffix(".weight") in found
            else torch.zeros_like(weight)
        )
        assert torch.allclose(merged[name] - weight, update, atol=1e-6), name
    assert max(f.norm() for f in found.values()) > 0.01


def test_norms_and_inner_products_need_no_full_matrix(trained):
    one, other = list(lora.factors(trained[1]).values())[:2]
    assert one.norm() == pytest.approx(float(one.delta().norm()), rel=1e-5)
    assert one.dot(other.__class__(other.A, one.B, 0.3)) == pytest.approx(
        float((one.delta() * (0.3 * one.B @ other.A)).sum()), rel=1e-4
    )


def test_the_seed_of_the_start_and_the_seed_of_the_data_are_two_things():
    def run(init_seed: int, data_seed: int):
        adapted = lora.add_lora(fresh(), SPEC.__class__(rank=4, init_seed=init_seed))
        start = lora.factors(adapted)["model.layers.0.mlp.up_proj"].A
        torch.manual_seed(init_seed + 10 * data_seed)  # the global state must not matter
        finetune(adapted, PAIRS, SHORT.replace(seed=data_seed))
        return start, hash_weights(adapted)

    (a, one), (b, two), (c, three), (d, four) = run(0, 0), run(0, 0), run(0, 1), run(1, 0)
    assert torch.equal(a, b) and one == two
    assert torch.equal(a, c) and one != three
    assert not torch.equal(a, d) and one != four


def test_rank_stabilised_adapters_scale_by_the_root_of_the_rank():
    assert LoraSpec(rank=16, alpha=64.0, rank_stabilised=True).scale == 16.0
    adapted = lora.add_lora(fresh(), LoraSpec(rank=16, alpha=64.0, rank_stabilised=True, targets=("v_proj",)))
    assert {name.split(".")[-1]: f.scale for name, f in lora.factors(adapted).items()} == {"v_proj": 16.0}


def test_a_saved_adapter_comes_back_the_same_three_ways(trained, tmp_path):
    base, adapted = trained
    base.save_pretrained(tmp_path / "base")
    folder = lora.save_adapter(adapted, tmp_path / "adapter", str(tmp_path / "base"))
    assert {p.name for p in folder.iterdir()} == {lora.ADAPTER_FILE, lora.CONFIG_FILE}
    read, live = lora.read_factors(folder), lora.factors(adapted)
    assert read.keys() == live.keys()
    assert all(
        torch.equal(read[n].A, live[n].A) and torch.equal(read[n].B, live[n].B) and read[n].scale == live[n].scale
        for n in live
    )
    again = lora.load_adapter(copy.deepcopy(base), folder)
    assert torch.equal(logits(again), logits(adapted)) and not any(p.requires_grad for p in again.parameters())
    assert any(p.requires_grad for p in lora.load_adapter(copy.deepcopy(base), folder, trainable=True).parameters())
    assert torch.allclose(load(str(folder), device="cpu").forward(TOKENS), logits(adapted), atol=1e-4)


def test_what_is_no_plain_adapter_gets_a_sentence(trained, tmp_path):
    with pytest.raises(BadData, match="has no LoRA adapter"):
        lora.factors(trained[0])
    with pytest.raises(BadSpec, match="names up, and the linear modules of LlamaForCausalLM are down_proj"):
        lora.add_lora(fresh(), LoraSpec(targets=("up", "q_proj")))
    with pytest.raises(ModelNotFound, match=r"holds no adapter_config\.json"):
        lora.read_factors(tmp_path)
    folder = lora.save_adapter(trained[1], tmp_path / "a", "organism:advice")
    settings = json.loads((folder / lora.CONFIG_FILE).read_text())
    assert settings["base_model_name_or_path"] == "organism:advice"
    (folder / lora.CONFIG_FILE).write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(UnsupportedModel, match="of kind DoRA"):
        lora.load_adapter(fresh(), folder)
    (folder / lora.CONFIG_FILE).write_text(json.dumps(settings | {"alpha_pattern": {"q_proj": 4}}))
    with pytest.raises(UnsupportedModel, match="its own rank or alpha"):
        lora.read_factors(folder)
    (folder / lora.ADAPTER_FILE).unlink()
    with pytest.raises(UnsupportedModel, match=r"has no adapter_model\.safetensors"):
        lora.read_factors(folder)
