"""Texts, rows, a tensor and a Batch are one thing to every primitive: the same prompts give the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import BadData
from workbench.core.heads import Head, head_mask
from workbench.models import load
from workbench.models.inputs import Batch, batch_of, pad, rows_of, tokens_of
from workbench.primitives.explain.attribution import attribute_edges, attribute_nodes
from workbench.primitives.explain.path_patching import path_patch
from workbench.primitives.read.capture import capture
from workbench.primitives.read.lenses import direct_logit_attribution, logit_lens
from workbench.primitives.read.predictions import predictions
from workbench.primitives.read.reduce import reduce_activations
from workbench.primitives.read.reductions import Moments
from workbench.primitives.read.top_activations import top_activations
from workbench.primitives.replace.ablation import ablate
from workbench.primitives.replace.ablation_bench import Bench
from workbench.primitives.replace.sweeps import denoise
from workbench.primitives.score.metrics import logit_diff
from workbench.primitives.steer.directions import Direction
from workbench.primitives.steer.steering import generate, steer

TEXTS, OTHERS = ["apple river stone", "lamp glass apple"], ["lamp river stone", "river glass apple"]
METRIC = logit_diff([5, 6], [7, 8])


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


def forms(model, texts):
    rows = model.to_rows(texts)
    return {"texts": texts, "rows": rows, "tensor": torch.tensor(rows), "batch": pad(rows, model.pad_id)}


def direction(model):
    return Direction(torch.ones(model.d_model), "resid_post", 0, "made up")


CALLS = {
    "capture": lambda m, a, b: capture(m, a, ["z"])["z", 1],
    "reduce": lambda m, a, b: reduce_activations(m, a, ["resid_post"], Moments())["resid_post", 1]["mean"].values,
    "lens": lambda m, a, b: logit_lens(m, rows_of(m, a)[0] if isinstance(a, Batch) else a[:1]).data["entropy"].values,
    "logit attribution": lambda m, a, b: direct_logit_attribution(m, a, [5, 6]).data["attribution"].values,
    "predictions": lambda m, a, b: predictions(m, a).data["loss"].values,
    "top activations": lambda m, a, b: top_activations(m, a, "neuron", 0, 3, k=4).data["activation"].values,
    "ablate": lambda m, a, b: ablate(m, a, ["L0H1", Head(1, 0), (1, 2)]).output,
    "bench": lambda m, a, b: Bench(m, a, METRIC).clean,
    "denoise": lambda m, a, b: denoise(m, a, b, METRIC, site="z", axes=("unit",)).data["value"].values,
    "edges": lambda m, a, b: attribute_edges(m, a, b, METRIC).data["score"].values,
    "nodes": lambda m, a, b: attribute_nodes(m, a, b, METRIC).data["score"].values,
    "paths": lambda m, a, b: path_patch(m, a, b, ["embed"], ["logits"], METRIC).data["effect"].values,
    "steer": lambda m, a, b: steer(m, a, direction(m), 2.0).output,
    "generate": lambda m, a, b: np.array(generate(m, a, max_new_tokens=3, stop_ids=[])),
}


@pytest.mark.parametrize("name", CALLS)
def test_four_forms_of_the_same_prompts_give_the_same_numbers(model, name):
    ones, others = forms(model, TEXTS), forms(model, OTHERS)
    found = {form: np.asarray(CALLS[name](model, ones[form], others[form])) for form in ones}
    for form, values in found.items():
        np.testing.assert_allclose(values, found["rows"], atol=1e-6, err_msg=form)


@settings(deadline=None, database=None)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=5))
def test_rows_come_back_from_every_form(rows):
    model = load("organism:induction")
    assert rows_of(model, rows) == rows and rows_of(model, batch_of(model, rows)) == rows
    assert rows_of(model, pad(rows, 0, "left")) == rows and rows_of(model, rows[0]) == [rows[0]]
    order = list(range(len(rows)))[::-1]
    assert rows_of(model, pad([rows[i] for i in order], 0, index=order)) == rows
    same = [row[:1] for row in rows]
    assert (
        tokens_of(model, same).tolist() == rows_of(model, torch.tensor(same)) == rows_of(model, np.array(same)) == same
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "there are no prompts"),
        ([[1], []], "prompt 1 is empty"),
        (["apple", [3]], "1 of 2 prompts are texts"),
        (torch.zeros(2, 3, 4), r"got a tensor of shape \(2, 3, 4\)"),
        (torch.zeros(0, 3), "got a tensor of shape"),
    ],
)
def test_what_is_no_prompt_is_said(model, inputs, said):
    with pytest.raises(BadData, match=said):
        rows_of(model, inputs)


def test_prompts_that_are_compared_by_position_must_be_aligned(model):
    with pytest.raises(BadData, match=r"must have one length.*got 1 to 2 tokens"):
        tokens_of(model, [[1], [1, 2]])
    with pytest.raises(BadData, match="of one shape"):
        attribute_edges(model, [[1, 2]], [[1, 2, 3]], METRIC)


def test_a_head_has_one_name():
    assert str(Head(1, 0)) == "L1H0" and Head.of("L1H0") == Head.of((1, 0)) == Head(1, 0) == Head.of(" L1H0 ")
    assert head_mask(["L0H1", (1, 0)], 2, 3).tolist() == [[False, True, False], [True, False, False]]
    for name in ("a1.h0", "L1", (1, 2, 3), "1.0"):
        with pytest.raises(BadData, match="a head is named like L1H0"):
            Head.of(name)
    with pytest.raises(BadData, match="no head L2H0; this model has L0H0 to L1H2"):
        head_mask(["L2H0"], 2, 3)
