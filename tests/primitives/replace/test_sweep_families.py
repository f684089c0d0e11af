"""Exact sweeps of families whose blocks differ in form: tuples, a bias per head, a residual inside the MLP."""

import functools

import numpy as np
import pytest
import torch
import transformers as tf
from models.architectures import HEAD, loaded

from workbench.models import load
from workbench.models.model import Model
from workbench.models.resumed import BaseRun
from workbench.primitives.replace import sweep_plan
from workbench.primitives.replace.sweeps import denoise
from workbench.primitives.score import metrics

FAMILIES = (
    *(
        "GPT-Neo",
        "GPT-J",
        "CodeGen",
        "Bloom",
        "MPT",
        "Falcon",
        "GPT-2",
        "GPT-NeoX",
        "Llama",
        "Gemma 2",
        "OPT",
        "Mixtral",
    ),
    *("Qwen 2", "OLMo 2", "EXAONE 4", "gpt-oss", "DeepSeek V3", "OPT-350m", "StableLM, parallel"),
)
METRIC = metrics.logit_diff([10, 11], [20, 21])


@functools.cache
def model_of(family: str) -> Model:
    return loaded(family)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] - 5 + 7) % 55 + 5
    return clean, corrupted


def by_hand(model: Model, site: str) -> np.ndarray:
    """[layer, pos, example] of whole forwards with one hook each."""
    clean, corrupted = pair()
    found = np.empty((model.n_layers, clean.shape[1], len(clean)), np.float32)
    for layer in range(model.n_layers):
        name, kept = model.hook_name(site, layer), []
        model.forward(clean, hook_fns=[(name, lambda tensor, hook, kept=kept: kept.append(tensor.clone()))])
        for pos in range(clean.shape[1]):

            def put(tensor, hook, kept=kept, pos=pos):
                tensor = tensor.clone()
                tensor[:, pos] = kept[0][:, pos]
                return tensor

            found[layer, pos] = METRIC(model.forward(corrupted, hook_fns=[(name, put)])).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_the_short_way_is_used_and_equals_hooks_by_hand(family, site):
    model = model_of(family)
    result = denoise(model, *pair(), METRIC, site=site)
    assert result.data.attrs["engine"] == "resumed" and not result.warnings
    np.testing.assert_allclose(result.data["value"], by_hand(model, site), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_short_way_is_left_for_the_plain_one(family, monkeypatch):
    model = model_of(family)
    monkeypatch.setattr(BaseRun, "run", lambda *a, **k: (_ for _ in ()).throw(IndexError("too few dims")))
    result = denoise(model, *pair(), METRIC, site="attn_out")
    assert result.data.attrs["engine"] == "plain" and "too few dims" in " ".join(result.warnings)
    np.testing.assert_allclose(result.data["value"], by_hand(model, "attn_out"), atol=1e-4)


def test_the_check_joins_rows_at_several_blocks(monkeypatch):
    """A short way that is right for one row alone and wrong for rows of several blocks is found out."""
    real = BaseRun.run

    def run(self, layer, *args, **kwargs):
        logits = real(self, layer, *args, **kwargs)
        return logits if len(set(np.atleast_1d(layer).tolist())) == 1 else logits.flip(-1)

    monkeypatch.setattr(BaseRun, "run", run)
    result = denoise(model_of("GPT-2"), *pair(), METRIC, site="attn_out")
    assert result.data.attrs["engine"] == "plain"
    np.testing.assert_allclose(result.data["value"], by_hand(model_of("GPT-2"), "attn_out"), atol=1e-4)


def test_a_plan_of_a_model_that_cannot_be_resumed_is_that_of_whole_forwards():
    torch.manual_seed(0)
    model = load(tf.Gemma2ForCausalLM(tf.Gemma2Config(**HEAD, sliding_window=4)), tokenizer=False)
    plan = sweep_plan.plan(model, pair()[1], METRIC, site="resid_pre")
    assert plan.token_blocks == plan.plain_token_blocks == 2 * 6 * 2 * 2 * 6 and plan.seconds > 0
