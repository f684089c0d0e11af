"""Nothing is read from weights or outputs that are NaN, infinite or absurd: whichever way they come, and whoever runs
the model."""

import math

import pytest
import torch
import transformers as tf
from models.families import FAMILIES, GPT2, NO_SPECIAL, SIZE

from workbench.core.errors import NotFinite
from workbench.models import load
from workbench.models.finite import LARGEST_WEIGHT, refuse_outputs, refuse_weights
from workbench.models.resumed import BaseRun

IDS = torch.randint(6, 64, (2, 7), generator=torch.Generator().manual_seed(0))
WRONG = {"NaN": math.nan, "infinite": math.inf, "minus infinite": -math.inf, "absurd": 1e20}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("family", ["gpt2", "bert_classifier", "vit"])
def test_one_wrong_weight_is_refused_by_the_name_of_its_tensor(value, family, tmp_path):
    module = FAMILIES[family]()
    name, parameter = list(module.named_parameters())[7]
    parameter.data.view(-1)[3] = WRONG[value]
    module.save_pretrained(tmp_path / "m")
    for given in (str(tmp_path / "m"), module):
        with pytest.raises(NotFinite, match=f"has values (up to 1e.20|that are NaN or infinite) in {name} "):
            load(given)


def test_weights_that_overflow_in_a_narrow_dtype_are_refused_there_alone(tmp_path):
    module = FAMILIES["gpt2"]()
    module.transformer.h[0].mlp.c_fc.bias.data[0] = 70_000.0
    module.save_pretrained(tmp_path)
    assert load(str(tmp_path)).kind == "causal-lm"
    with pytest.raises(NotFinite, match=r"c_fc.bias \(in float16\).*wider dtype"):
        load(str(tmp_path), dtype="float16")


def test_outputs_that_overflow_at_load_are_refused(tmp_path):
    """Every weight is a number of a usual size, and what they give is none."""
    module = FAMILIES["gpt2"]()
    for name, parameter in module.named_parameters():
        if "ln_f" in name or "wte" in name:
            parameter.data.fill_(9e5 if "ln_f" in name else 10.0)
    module.save_pretrained(tmp_path)
    assert load(str(tmp_path)).kind == "causal-lm"
    with pytest.raises(NotFinite):
        load(str(tmp_path), dtype="float16")
    module.transformer.h[0].ln_1.eps = math.nan
    with pytest.raises(NotFinite, match="outputs of GPT2LMHeadModel are not finite in float32"):
        load(module)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert_mlm", "bert", "bert_classifier", "llama_classifier"])
def test_a_forward_whose_outputs_are_no_numbers_is_refused(value, family, tiny_models):
    model = load(str(tiny_models[family]))
    name = model.hook_name("resid_post", model.n_layers - 1)
    with pytest.raises(NotFinite, match=f"outputs of {family} are not finite in float32"):
        model.forward(IDS, hook_fns=[(name, lambda tensor, hook: tensor * value)])
    assert torch.isfinite(model.forward(IDS)).all(), "the hook is gone"


def test_a_run_that_goes_on_from_the_middle_is_watched_too(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    run, name = BaseRun(model, IDS), model.hook_name("resid_post", 1)
    with pytest.raises(NotFinite, match="outputs of gpt2"):
        run.run(1, 3, torch.tensor([0, 1]), hook_fns=[(name, lambda tensor, hook: tensor * math.nan)])


def test_the_residual_stream_of_a_stopped_run_is_watched_too(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    with pytest.raises(NotFinite, match="outputs of gpt2"):
        model.forward(IDS, stop_at_layer=1, hook_fns=[("blocks.0.hook_resid_pre", lambda t, hook: t * math.nan)])


def test_what_padding_gives_is_not_looked_at(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False

    def spoil(tensor: torch.Tensor, hook: object, row: int = 1) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[row, 5:] = math.nan
        return tensor

    name = model.hook_name("resid_post", 1)
    found = model.forward(IDS, mask=mask, hook_fns=[(name, spoil)])
    assert found[1, 5:].isnan().all() and torch.isfinite(found[mask]).all()
    with pytest.raises(NotFinite):
        model.forward(IDS, mask=mask, hook_fns=[(name, lambda tensor, hook: spoil(tensor, hook, row=0))])


def test_forbidden_tokens_are_allowed_and_a_row_without_any_is_not():
    logits = torch.zeros(1, 2, 5)
    logits[:, :, 2:] = -math.inf
    refuse_outputs(logits, "m")
    refuse_outputs(torch.zeros(0, 2, 5), "m")
    with pytest.raises(NotFinite):
        refuse_outputs(torch.full((1, 2, 5), -math.inf), "m")


def test_a_trained_models_largest_weights_are_allowed():
    refuse_weights([("w", torch.tensor([-LARGEST_WEIGHT, LARGEST_WEIGHT])), ("packed", torch.tensor([255]))], "m")
    refuse_weights([("empty", torch.zeros(0)), ("elsewhere", torch.zeros(3, device="meta"))], "m")


def test_absurd_is_more_than_any_weight_of_a_model_at_initialisation():
    for module in (tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | NO_SPECIAL)), tf.BertModel(tf.BertConfig(**SIZE))):
        assert max(float(p.abs().max()) for p in module.parameters()) < LARGEST_WEIGHT / 1e3
