"""load() gives every family, head, adapter and module in memory with the outputs that plain transformers and peft
give.
"""

import copy
import gc
import json
import os
import shutil
import weakref

import psutil
import pytest
import torch
import transformers as tf
from models.families import DECODERS, FAMILIES, GPT2, GQA, NO_SPECIAL, SIZE
from peft import LoraConfig, PeftModel, get_peft_model

from workbench.core.errors import BadSpec, ModelNotFound, UnsupportedModel, WorkbenchError
from workbench.models import ModelSpec, load

KINDS = dict.fromkeys(DECODERS, "causal-lm") | {
    "bert": "encoder",
    "bert_mlm": "masked-lm",
    "bert_classifier": "classifier",
    "llama_classifier": "classifier",
    "vit": "image-classifier",
}


def plain(folder, dtype=torch.float32):
    """The Hugging Face module that the directory's config names, loaded without the workbench."""
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(tf, named).from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


def an_input(family: str, n: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return torch.rand(n, 1, 8, 8, generator=generator)
    return torch.randint(6, 64, (n, 11), generator=generator)


@torch.no_grad()
def plain_output(module, family: str, inputs: torch.Tensor) -> torch.Tensor:
    out = module(pixel_values=inputs) if family == "vit" else module(input_ids=inputs)
    return out.last_hidden_state if family == "bert" else out.logits


def with_norms_moved(family: str):
    """A module whose norm gains and biases are not at their initial 1 and 0, so that folding them has something to
    do.
    """
    torch.manual_seed(3)
    module = FAMILIES[family]().eval()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.5 * torch.randn_like(parameter)
    return module


# ---- the same numbers as Hugging Face ----


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_equal_hugging_face(family, tiny_models):
    inputs = an_input(family)
    model = load(str(tiny_models[family]))
    wanted = plain_output(plain(tiny_models[family]), family, inputs)
    found = model.forward(inputs)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-4
    assert model.kind == KINDS[family]
    assert model.provenance()["parity_max_abs_diff"] < 1e-4


def test_every_family_has_an_expected_kind():
    assert set(KINDS) == set(FAMILIES)


@pytest.mark.parametrize(("family", "width"), [("bert_classifier", 3), ("llama_classifier", 3), ("vit", 10)])
def test_classification_heads_are_kept(family, width, tiny_models):
    model = load(str(tiny_models[family]))
    assert model.forward(an_input(family)).shape == (3, width)


@pytest.mark.parametrize(
    "name", ["BertForTokenClassification", "GPT2ForTokenClassification", "LlamaForTokenClassification"]
)
def test_token_classifiers_keep_a_label_per_token(name, tmp_path):
    settings = {
        "Bert": tf.BertConfig(**SIZE, num_labels=3),
        "GPT2": tf.GPT2Config(**GPT2, num_labels=3),
        "Llama": tf.LlamaConfig(**GQA, num_labels=3),
    }
    getattr(tf, name)(settings[name.removesuffix("ForTokenClassification")]).save_pretrained(tmp_path)
    inputs = an_input(name)
    wanted = plain_output(plain(tmp_path), name, inputs)
    found = load(str(tmp_path)).forward(inputs)
    assert found.shape == wanted.shape == (3, 11, 3)
    assert float((found - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["bert", "bert_classifier", "llama_classifier", "vit", "bert_mlm", "gpt2"])
@pytest.mark.parametrize("layer", [0, 1])
def test_hooks_act_on_the_output_of_every_kind(family, layer, tiny_models):
    """Patching the whole stream of one input into another turns its output into that of the first."""
    model = load(str(tiny_models[family]))
    a, b = an_input(family, seed=1), an_input(family, seed=2)
    name, taken = model.hook_name("resid_pre", layer), []
    wanted = model.forward(a, hook_fns=[(name, lambda tensor, hook: taken.append(tensor.clone()))])
    untouched = model.forward(b)
    patched = model.forward(b, hook_fns=[(name, lambda tensor, hook: taken[0])])
    assert float((untouched - wanted).abs().max()) > 1e-3
    torch.testing.assert_close(patched, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "bert", "bert_classifier", "llama_classifier", "vit"])
def test_a_module_in_memory_loads(family):
    module = FAMILIES[family]().eval()
    inputs = an_input(family)
    wanted = plain_output(module, family, inputs)
    model = load(module)
    assert model.kind == KINDS[family]
    torch.testing.assert_close(model.forward(inputs), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert"])
def test_a_module_in_memory_gives_its_patterns(family):
    """transformers builds modules with fused attention, which has no pattern to read; load() promises eager."""
    model, taken = load(FAMILIES[family]()), []
    model.forward(
        an_input(family), hook_fns=[(model.hook_name("pattern", 0), lambda tensor, hook: taken.append(tensor.sum(-1)))]
    )
    assert len(taken) == 1
    torch.testing.assert_close(taken[0], torch.ones(3, 4, 11))


@pytest.mark.parametrize(("option", "value"), [("dtype", "bfloat16"), ("untrained_seed", 3), ("device", "cuda:99")])
def test_an_option_a_module_in_memory_cannot_honour_is_refused(option, value):
    """Never ignored: either it takes effect or an error names it."""
    module = FAMILIES["llama"]()
    before = copy.deepcopy(module.state_dict())
    try:
        model = load(module, **{option: value})
    except WorkbenchError as refused:
        assert option in str(refused)
        return
    took = {
        "dtype": lambda: model.dtype_name == value,
        "untrained_seed": lambda: not torch.equal(model.live.original_model.lm_head.weight, before["lm_head.weight"]),
        "device": lambda: model.device == value,
    }
    assert took[option](), f"load(module, {option}={value!r}) went through and did nothing"


def test_a_sharded_checkpoint_loads(tmp_path, tiny_models):
    plain(tiny_models["llama"]).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = load(str(tiny_models["llama"])), load(str(tmp_path))
    assert sharded.weights_hash == whole.weights_hash


def test_bfloat16_weights(tiny_models):
    inputs = an_input("llama")
    model = load(str(tiny_models["llama"]), dtype="bfloat16")
    found = model.forward(inputs)
    assert (model.dtype, model.dtype_name, found.dtype) == (torch.bfloat16, "bfloat16", torch.bfloat16)
    wanted = plain_output(plain(tiny_models["llama"], torch.bfloat16), "llama", inputs)
    assert float((found - wanted).abs().max()) < 1e-2


@pytest.mark.parametrize("family", [*DECODERS, "bert_mlm"])
def test_folded_weights_give_the_same_probabilities(family):
    module, inputs = with_norms_moved(family), an_input(family)
    wanted = plain_output(module, family, inputs).softmax(-1)
    model = load(module, processing="folded")
    torch.testing.assert_close(model.forward(inputs).softmax(-1), wanted, atol=1e-5, rtol=1e-4)
    assert model.provenance()["processing"] == "folded"


@pytest.mark.parametrize("family", ["bert", "bert_classifier", "llama_classifier", "vit"])
def test_folding_never_changes_the_output_of_a_head_kept_outside(family):
    """Same output, or UnsupportedModel: a head that does not receive the folded gain would be silently wrong."""
    module, inputs = with_norms_moved(family), an_input(family)
    wanted = plain_output(module, family, inputs)
    try:
        model = load(module, processing="folded")
    except UnsupportedModel as refused:
        assert "folded" in str(refused)
        return
    torch.testing.assert_close(model.forward(inputs), wanted, atol=1e-4, rtol=0)


# ---- adapters ----


def lora(base_folder, folder, seed: int = 5):
    """A LoRA adapter with random A and B, saved as safetensors."""
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(plain(base_folder), settings).save_pretrained(folder)
    return folder


def test_a_peft_adapter_equals_pefts_own_logits(tmp_path, tiny_models):
    folder, inputs = lora(tiny_models["llama"], tmp_path / "adapter"), an_input("llama")
    own = plain_output(PeftModel.from_pretrained(plain(tiny_models["llama"]), folder).eval(), "llama", inputs)
    model = load(str(folder))
    found = model.forward(inputs)
    assert float((found - own).abs().max()) < 1e-5
    assert float((found - load(str(tiny_models["llama"])).forward(inputs)).abs().max()) > 1e-3
    assert model.provenance()["base"] == "llama"
    assert model.tokenizer is not None, "the base's tokenizer comes along"


def test_an_adapter_whose_base_has_moved_takes_base(tmp_path, tiny_models):
    folder = lora(tiny_models["llama"], tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(ModelNotFound, match=r"wants a base that is not here.*Pass base="):
        load(str(folder))
    moved = load(str(folder), base=str(tiny_models["llama"]))
    own = PeftModel.from_pretrained(plain(tiny_models["llama"]), folder).eval()
    torch.testing.assert_close(
        moved.forward(an_input("llama")), plain_output(own, "llama", an_input("llama")), atol=1e-5, rtol=0
    )


def test_a_classification_adapter_does_not_lose_its_head(tmp_path, tiny_models):
    """A SEQ_CLS adapter on a causal base brings its own `score`: keep it, or refuse."""
    torch.manual_seed(5)
    base = tf.AutoModelForSequenceClassification.from_pretrained(tiny_models["llama"], num_labels=3)
    settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    get_peft_model(base, settings).save_pretrained(tmp_path)
    try:
        model = load(str(tmp_path))
    except UnsupportedModel as refused:
        assert "score" in str(refused) or "SEQ_CLS" in str(refused)
        return
    assert model.kind == "classifier", f"the adapter's classification head was dropped: loaded as a {model.kind}"


# ---- untrained twins, hashes, provenance ----


def test_an_untrained_twin_has_the_config_and_none_of_the_weights(tiny_models):
    folder = str(tiny_models["llama"])
    trained, twin, again, other = (
        load(folder),
        load(folder, untrained_seed=7),
        load(folder, untrained_seed=7),
        load(folder, untrained_seed=8),
    )
    assert twin.weights_hash == again.weights_hash
    assert len({trained.weights_hash, twin.weights_hash, other.weights_hash}) == 3
    inputs = an_input("llama")
    assert torch.equal(twin.forward(inputs), again.forward(inputs))
    assert float((twin.forward(inputs) - trained.forward(inputs)).abs().max()) > 1e-3
    assert twin.name == "llama (untrained, seed 7)"
    assert (twin.n_layers, twin.n_heads, twin.d_vocab) == (trained.n_layers, trained.n_heads, trained.d_vocab)


def test_an_untrained_twin_of_seed_zero_is_untrained(tiny_models):
    assert load(str(tiny_models["gpt2"]), untrained_seed=0).name == "gpt2 (untrained, seed 0)"


def test_an_untrained_twin_needs_no_weights(tmp_path, tiny_models):
    shutil.copy(tiny_models["gpt2"] / "config.json", tmp_path)
    assert (
        load(str(tmp_path), untrained_seed=1).weights_hash
        == load(str(tiny_models["gpt2"]), untrained_seed=1).weights_hash
    )


@pytest.mark.parametrize("options", [{}, {"untrained_seed": 4}])
@pytest.mark.parametrize("family", ["gpt2", "bert_classifier"])
def test_loading_leaves_the_random_state_alone(family, options, tiny_models):
    torch.manual_seed(11)
    wanted = torch.rand(4)
    torch.manual_seed(11)
    load(str(tiny_models[family]), **options)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_hash_follows_the_weights(dtype, tmp_path, tiny_models):
    first = load(str(tiny_models["gpt2"]), dtype=dtype).weights_hash
    assert load(str(tiny_models["gpt2"]), dtype=dtype).weights_hash == first
    module = plain(tiny_models["gpt2"])
    module.transformer.h[1].mlp.c_proj.bias.data[3] += 1.0
    module.save_pretrained(tmp_path)
    assert load(str(tmp_path), dtype=dtype).weights_hash != first


def test_hashing_a_sample_says_so(monkeypatch, tiny_models):
    monkeypatch.setattr("workbench.models.model.HASH_ALL_BELOW", 100)
    first = load(str(tiny_models["gpt2"])).weights_hash
    assert first.startswith("~")
    assert load(str(tiny_models["gpt2"])).weights_hash == first
    assert load(str(tiny_models["gpt2"]), untrained_seed=1).weights_hash != first


def test_provenance_says_what_ran_and_holds_no_path(tiny_models):
    model = load(str(tiny_models["gpt2"]), dtype="float64")
    found = model.provenance()
    wanted = {
        "name": "gpt2",
        "kind": "causal-lm",
        "processing": "raw",
        "dtype": "float64",
        "device": "cpu",
        "weights": model.weights_hash,
    }
    assert found | wanted == found
    assert found["n_parameters"] == sum(p.numel() for p in plain(tiny_models["gpt2"]).parameters())
    assert str(tiny_models["gpt2"].parent) not in json.dumps(found)


def test_the_spec_of_a_model_makes_it_again(tiny_models):
    spec = ModelSpec(name=str(tiny_models["neox"]), dtype="bfloat16", untrained_seed=2, device="cpu")
    model = load(spec)
    assert model.spec == spec
    assert load(ModelSpec.from_json(model.spec.to_json())).weights_hash == model.weights_hash


def test_options_override_a_spec_and_tokenizer_false_loads_none(tiny_models):
    model = load(ModelSpec(name=str(tiny_models["gpt2"])), dtype="float64", tokenizer=False)
    assert model.dtype == torch.float64
    assert model.tokenizer is None
    given = load(str(tiny_models["gpt2"])).tokenizer
    assert load(str(tiny_models["gemma2"]), tokenizer=given).tokenizer is given


def test_a_hub_id_offline_names_what_is_missing_and_how_to_get_it():
    with pytest.raises(ModelNotFound) as found:
        load("nobody-here/no-such-model")
    for phrase in (
        "HF_HUB_OFFLINE is set",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "`hf download nobody-here/no-such-model`",
    ):
        assert phrase in str(found.value)


# ---- giving it back ----


def test_an_unloaded_model_says_so_and_stays_a_name(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    model.unload()
    model.unload()
    assert repr(model) == "Model(gpt2, unloaded)"
    for use in (lambda: model.forward(an_input("gpt2")), model.sites, lambda: model.n_layers, lambda: model.W_O(0)):
        with pytest.raises(WorkbenchError, match="gpt2 was unloaded; load it again"):
            use()


def test_a_with_block_unloads_also_after_an_error(tiny_models):
    with pytest.raises(RuntimeError, match="inside"), load(str(tiny_models["gpt2"])) as model:
        model.forward(an_input("gpt2"))
        raise RuntimeError("inside")
    assert model.bridge is None


@pytest.mark.parametrize("family", ["gpt2", "bert_classifier"])
def test_unloading_frees_the_weights(family, tiny_models):
    model = load(str(tiny_models[family]))
    model.forward(an_input(family))
    model.sites()
    alive = [weakref.ref(p) for p in model.live.original_model.parameters()]
    model.unload()
    assert not [ref for ref in alive if ref() is not None]


def test_twenty_loads_do_not_grow_memory(tmp_path):
    """20 x 16 MB pass through; what stays is less than 3 of them."""
    config = tf.LlamaConfig(**GQA | NO_SPECIAL | {"vocab_size": 8000, "hidden_size": 256})
    module = tf.LlamaForCausalLM(config)
    n_bytes = 4 * sum(p.numel() for p in module.parameters())
    module.save_pretrained(tmp_path)
    del module
    process, models = psutil.Process(os.getpid()), []

    def once() -> None:
        model = load(str(tmp_path))
        model.forward(torch.randint(6, 64, (1, 4)))
        model.unload()
        models.append(model)

    def n_tensors() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    once()
    gc.collect()
    gc.freeze()  # what the other tests hold is not searched again at each unload
    try:
        tensors, memory = n_tensors(), process.memory_info().rss
        for _ in range(20):
            once()
        assert n_tensors() <= tensors + 5
        assert process.memory_info().rss - memory < 3 * n_bytes
    finally:
        gc.unfreeze()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA: run `pytest -m gpu tests/models` on a machine with an NVIDIA GPU"
)
def test_a_gpu_gives_the_same_logits_and_its_memory_back(tiny_models):
    inputs, before = an_input("llama"), torch.cuda.memory_allocated()
    with load(str(tiny_models["llama"]), device="cuda") as model:
        torch.testing.assert_close(
            model.forward(inputs).cpu(),
            load(str(tiny_models["llama"]), device="cpu").forward(inputs),
            atol=1e-3,
            rtol=0,
        )
        assert torch.cuda.memory_allocated() > before
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 1_000_000


# ---- placement over devices ----


def test_placement_by_accelerate_gives_the_same_logits(tiny_models):
    """On a machine without a GPU 'auto' puts everything on the CPU; the path through accelerate is the one larger
    models take.
    """
    inputs = an_input("llama")
    placed = load(str(tiny_models["llama"]), device_map="auto", max_memory=("cpu=1GiB",))
    torch.testing.assert_close(placed.forward(inputs), load(str(tiny_models["llama"])).forward(inputs))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device_map": "auto", "max_memory": ("20GiB",)}, "DEVICE=AMOUNT"),
        ({"device_map": "auto", "max_memory": ("0=lots",)}, "DEVICE=AMOUNT"),
        ({"max_memory": ("cpu=1GiB",)}, "device_map='auto'"),
    ],
)
def test_a_placement_that_makes_no_sense_is_refused(tiny_models, options, says):
    with pytest.raises(BadSpec, match=says):
        load(str(tiny_models["llama"]), **options)


# ---- what the probe finds ----


def test_contexts_shorter_than_the_probe_and_images_that_are_not_square_load():
    import transformers as tf
    from models.architectures import SIZE, VIT

    short = SIZE | {"max_position_embeddings": 16}
    for module in (
        tf.BertForMaskedLM(tf.BertConfig(**short)),
        tf.RobertaForMaskedLM(tf.RobertaConfig(**short)),
        tf.ViTForImageClassification(tf.ViTConfig(**VIT | {"image_size": (8, 16)})),
        tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)),
    ):
        model = load(module, tokenizer=False)
        assert model.about["parity_max_abs_diff"] < 1e-4 and "z" in model.sites()


def test_folding_that_changes_what_the_model_says_is_refused():
    from models.architectures import network

    with pytest.raises(UnsupportedModel, match=r"folding the norms of GptOss.* moves log-probabilities by 0"):
        load(network("gpt-oss"), tokenizer=False, processing="folded")
    folded = load(network("Llama"), tokenizer=False, processing="folded")
    assert folded.about["folding_max_abs_diff"] < 1e-4 and "log-probabilities within" in repr(folded)


@pytest.mark.parametrize("name, why", [("Mamba", "in 2 of its 2 blocks"), ("Jamba", "in 1 of its 2 blocks")])
def test_blocks_without_attention_are_refused_at_load(name, why):
    from models.architectures import loaded

    with pytest.raises(UnsupportedModel, match=why):
        loaded(name)


def test_an_adapter_that_computes_something_else_is_refused():
    from models.architectures import loaded

    with pytest.raises(UnsupportedModel, match="away from Hugging Face's own"):
        loaded("Falcon with ALiBi")
