"""A checkpoint as a classifier: the body is the checkpoint's, the head is new and seeded, and a random body is
refused.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from workbench.core.errors import BadSpec, ModelNotFound, NotFinite, UnsupportedModel, WorkbenchError
from workbench.models import ModelSpec
from workbench.training.pretrained_classifier import image_shape, load_classifier, locate


def load(folder, n_classes=4, seed=0, **options):
    return load_classifier(ModelSpec(name=str(folder)), n_classes, seed=seed, **options)


@pytest.mark.parametrize("family", ["bert", "bert_mlm", "gpt2", "llama", "neox", "qwen2", "opt"])
def test_the_body_is_the_checkpoints_and_the_head_is_new(tiny_models, family):
    module, _ = load(tiny_models[family])
    stored = load_file(tiny_models[family] / "model.safetensors")
    body = dict(module.base_model.named_parameters())
    shared = {name: p for name, p in body.items() if f"{module.base_model_prefix}.{name}" in stored or name in stored}
    assert len(shared) >= len([n for n in body if "pooler" not in n])
    for name, p in shared.items():
        torch.testing.assert_close(
            p, stored.get(f"{module.base_model_prefix}.{name}", stored.get(name)), rtol=0, atol=0
        )
    assert module.num_labels == 4 and next(module.parameters()).dtype == torch.float32


def test_seeds_draw_the_head_and_nothing_else(tiny_models):
    one, same, other = (dict(load(tiny_models["gpt2"], seed=s)[0].named_parameters()) for s in (1, 1, 2))
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert {n for n in one if not torch.equal(one[n], other[n])} == {"score.weight"}


def test_from_scratch_keeps_only_the_configuration(tiny_models):
    module, _ = load(tiny_models["gpt2"], seed=7, from_scratch=True)  # the fixture itself was drawn with seed 0
    pretrained, _ = load(tiny_models["gpt2"])
    assert not torch.equal(module.transformer.wte.weight, pretrained.transformer.wte.weight)
    assert (module.transformer.ln_f.weight == 1).all() and (module.transformer.ln_f.bias == 0).all()


def test_a_fitting_head_is_kept_and_another_size_is_new(tiny_models):
    stored = load_file(tiny_models["bert_classifier"] / "model.safetensors")["classifier.weight"]
    torch.testing.assert_close(load(tiny_models["bert_classifier"], n_classes=3)[0].classifier.weight, stored)
    assert load(tiny_models["bert_classifier"], n_classes=5)[0].classifier.weight.shape == (5, 32)


def test_the_callers_random_state_is_left_alone(tiny_models):
    state = torch.random.get_rng_state()
    load(tiny_models["gpt2"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_padding_is_known_where_the_checkpoint_has_none(tmp_path, tiny_models):
    tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=1, bos_token_id=1)
    ).save_pretrained(tmp_path)
    from workbench.datasets.bigram_backcopy import VOCABULARY
    from workbench.organisms.tokenizer import word_tokenizer

    word_tokenizer(VOCABULARY, add_bos=True).save_pretrained(tmp_path)
    module, tokenizer = load(tmp_path)
    assert module.config.pad_token_id == tokenizer.pad_token_id == 0


def test_a_missing_body_is_refused(tiny_models, tmp_path):
    tensors = load_file(tiny_models["gpt2"] / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "h.1.mlp" not in n},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "config.json").write_text((tiny_models["gpt2"] / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="lacks weights of the body"):
        load(tmp_path)


def test_bad_names_say_what_would_work(tmp_path, tiny_models):
    with pytest.raises(ModelNotFound, match="could not be read as a model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text((tiny_models["gpt2"] / "config.json").read_text())
    with pytest.raises(ModelNotFound, match=r"no model\.safetensors or model\.safetensors\.index\.json"):
        load(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(BadSpec, match="sees no CUDA"):
            load_classifier(ModelSpec(name=str(tiny_models["gpt2"]), device="cuda"), 2, seed=0)


def test_a_model_without_a_classification_class_is_refused(tmp_path):
    tf.VitDetConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="no sequence or image classification class"):
        load(tmp_path)


def test_what_an_image_classifier_reads(tiny_models):
    assert image_shape(ModelSpec(name=str(tiny_models["vit"]))) == (1, 8, 8)
    assert image_shape(ModelSpec(name=str(tiny_models["bert"]))) is None
    assert load(tiny_models["vit"], n_classes=10)[1] is None


def test_names_hold_no_path(tiny_models):
    assert locate(ModelSpec(name=str(tiny_models["bert"])))[1] == "bert"
    assert locate(ModelSpec(name="google-bert/bert-base-uncased")) == ("google-bert/bert-base-uncased",) * 2


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"),
            UnsupportedModel,
            "lfs",
        ),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2", "n_embd": "x"}'), None, "n_embd"),
        (lambda folder: entry(folder, quantization_config={"quant_method": "awq"}), UnsupportedModel, "quantised .awq"),
        (lambda folder: spoil(folder), NotFinite, "NaN or infinite in transformer.wte.weight"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(damage, error, says, tmp_path, tiny_models):
    folder = Path(shutil.copytree(tiny_models["gpt2"], tmp_path / "m"))
    damage(folder)
    with pytest.raises(error or WorkbenchError, match=says):
        load(folder)


def entry(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
