"""Ground truth: the induction organism's circuit is known, so the tools must find it, and must find nothing in its
untrained twin.
"""

import numpy as np
import pytest
import torch

from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.datasets.repeated_words import FIRST_WORD, RepeatedWords
from workbench.models import load
from workbench.organisms.induction import head_roles
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.circuits import calibrate, faithfulness
from workbench.primitives.explain.path_patching import path_patch
from workbench.primitives.replace.sweeps import denoise
from workbench.primitives.score.metrics import logit_diff

N, FIRST, LAST = 12, 5, 20  # the word at FIRST is said again at LAST; the answer stood at FIRST + 1


@pytest.fixture(scope="module")
def induction():
    return load("organism:induction")


@pytest.fixture(scope="module")
def twin():
    return load("organism:induction", untrained_seed=0)


@pytest.fixture(scope="module")
def roles(induction):
    return head_roles(induction, RepeatedWords().sample(40, 64, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def task():
    """Different words, the last one a repetition. Corrupted: its first occurrence is another word, so nothing
    repeats.
    """
    rng = np.random.default_rng(3)
    clean = np.stack([rng.permutation(np.arange(FIRST_WORD, len(VOCABULARY)))[: LAST + 2] for _ in range(N)])
    others = clean[:, LAST + 1].copy()  # words that are nowhere in the prompt
    clean = clean[:, : LAST + 1]
    clean[:, 0] = VOCABULARY.index("<bos>")
    clean[:, LAST] = clean[:, FIRST]
    corrupted = clean.copy()
    corrupted[:, FIRST] = others
    wrong = clean[:, FIRST - 2]
    return torch.tensor(clean), torch.tensor(corrupted), logit_diff(clean[:, FIRST + 1], wrong)


def previous_heads(roles):
    return {f"a0.h{h}" for h in np.flatnonzero(roles["previous"][0] > 0.4)}


def induction_heads(roles):
    return {f"a1.h{h}" for h in np.flatnonzero(roles["induction"][1] > 0.4)}


def test_attention_shows_the_two_kinds_of_heads(roles):
    assert previous_heads(roles) and induction_heads(roles)
    assert roles["previous"][1].max() < 0.1 and roles["induction"][0].max() < 0.1


def test_sweep_finds_both_steps_of_the_circuit_at_their_places(induction, roles, task):
    result = denoise(induction, *task, site="z", axes=("pos", "unit"))
    moved = (result.data["value"] - result.data["base_value"]).mean("example")
    gap = float((result.data["source_value"] - result.data["base_value"]).mean())
    assert gap > 2
    first, second = moved.sel(layer=0), moved.sel(layer=1)
    at = {dim: int(index) for dim, index in first.argmax(("pos", "head")).items()}
    assert at["pos"] == FIRST + 1 and f"a0.h{at['head']}" in previous_heads(roles)
    at = {dim: int(index) for dim, index in second.argmax(("pos", "head")).items()}
    assert at["pos"] == LAST and f"a1.h{at['head']}" in induction_heads(roles)
    elsewhere = first.where((first.pos != FIRST + 1) & (first.pos != FIRST) & (first.pos != LAST))
    assert float(abs(elsewhere).max()) < 0.25 * float(first.max())


def test_resid_pre_follows_the_information_from_word_to_successor_to_end(induction, task):
    result = denoise(induction, *task, site="resid_pre")
    share = (
        (result.data["value"] - result.data["base_value"]) / (result.data["source_value"] - result.data["base_value"])
    ).median("example")
    assert int(share.sel(layer=0).argmax()) == FIRST
    assert int(share.sel(layer=1).argmax()) == FIRST + 1


def test_top_edges_are_previous_token_into_induction_keys(induction, roles, task):
    edges = attribute_edges(induction, *task, steps=5, mode="activations").tables["edges"]
    between = edges[edges.writer.str.startswith("a0") & edges.reader.str.startswith("a1")]
    best = between.iloc[0]
    assert best.writer in previous_heads(roles)
    assert best.reader.endswith("<k>") and best.reader[:-3] in induction_heads(roles)
    keys = between[between.reader.str.endswith("<k>") & between.writer.isin(previous_heads(roles))].score.abs().sum()
    assert keys > 0.5 * between.score.abs().sum()


def test_exact_paths_agree(induction, roles, task):
    clean, corrupted, metric = task
    found = path_patch(
        induction,
        clean,
        corrupted,
        [f"a0.h{h}" for h in range(4)],
        [[f"a1.h{h}<{kind}>" for h in range(4)] for kind in "qkv"],
        metric,
    )
    effect = found.data["effect"].mean("example")
    at = {dim: int(index) for dim, index in effect.argmax(("sender", "receiver")).items()}
    assert str(effect.sender.values[at["sender"]]) in previous_heads(roles)
    assert str(effect.receiver.values[at["receiver"]]).endswith("<k>")


def test_few_edges_carry_the_behaviour_and_random_ones_do_not(induction, task):
    scores = attribute_edges(induction, *task, steps=5, mode="activations")
    n_edges = len(scores.tables["edges"])
    few = n_edges // 4
    kept = faithfulness(induction, *task, scores, [few, n_edges])
    assert float(kept.data["faithfulness"].sel(k=n_edges)) == pytest.approx(1, abs=1e-3)
    shuffled = scores.data.copy(deep=True)
    flat = shuffled["score"].values.ravel()
    real = np.flatnonzero(~np.isnan(flat))
    flat[real] = flat[np.random.default_rng(0).permutation(real)]
    control = faithfulness(induction, *task, type(scores)(scores.provenance, shuffled, scores.tables), [few])
    assert float(kept.data["faithfulness"].sel(k=few)) > 0.7
    assert float(control.data["faithfulness"].sel(k=few)) < 0.5


def test_attribution_ranks_nodes_as_exact_patching_does(induction, task):
    scores = attribute_edges(induction, *task, steps=5, mode="activations")
    assert float(calibrate(induction, *task, scores, n_top=6, n_random=5).data["spearman"].sel(over="all")) > 0.7


def test_the_untrained_twin_has_no_such_circuit(twin, task):
    roles = head_roles(twin, RepeatedWords().sample(40, 64, np.random.default_rng(5)))
    assert roles["previous"].max() < 0.4 and roles["induction"].max() < 0.4
    result = denoise(twin, *task, site="z", axes=("pos", "unit"))
    moved = float(abs(result.data["value"] - result.data["base_value"]).mean("example").max())
    assert moved < 0.1  # logits; the trained model moves by more than 2
