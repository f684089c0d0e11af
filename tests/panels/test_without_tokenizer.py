"""Panels of a model that came without a tokenizer: prompts and answers are ids written out, in every one of them."""

import pytest
import transformers

from workbench import panels
from workbench.models import load


@pytest.fixture(scope="module")
def model():
    config = transformers.GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return load(transformers.GPT2LMHeadModel(config))


PANELS = {
    "tokens": lambda model: panels.Tokens(model, "5 6 7 8"),
    "lens": lambda model: panels.Lens(model, "5 6 7 8"),
    "attention": lambda model: panels.Attention(model, "5 6 7 8"),
    "attribution": lambda model: panels.Attribution(model, "5 6 7 8", "10", "11"),
    "patching": lambda model: panels.Patching(model, "5 6 7 8", "5 9 7 8", "10", "11"),
    "ablation": lambda model: panels.Ablation(model, ["5 6 7 8"], ["10"], ["11"]),
    "steering": lambda model: panels.Steering(model, ["5 6"], ["7 8"], ["9 10"]),
    "circuit graph": lambda model: panels.CircuitGraph(model, "5 6 7 8", "5 9 7 8", "10", "11"),
}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_reads_ids_that_are_written_out(name, model):
    panel = PANELS[name](model).run().wait(60)
    assert panel.state.error == "" and len(panel.table())


def test_both_checkpoints_are_swept_on_ids(model):
    panel = panels.TwoCheckpoints(model, model, prompts=["5 6 7 8"])
    panel.state.look = "sweep"
    panel.run().wait(60)
    assert panel.state.error == "" and panel.state.sweep is not None
