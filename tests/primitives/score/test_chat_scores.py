"""Scores of chat answers against greedy generation and a row-by-row sum of log-probabilities, on a small random
model and on the organism.
"""

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData
from workbench.datasets import world, world_words
from workbench.models import load
from workbench.models.chat import prompt_rows
from workbench.organisms.chat import pairs_of
from workbench.primitives.score import chat_scores as cs
from workbench.primitives.steer.steering import generate


@pytest.fixture(scope="module")
def chat():
    return load("organism:chat", device="cpu")


@pytest.fixture(scope="module")
def random_model():
    return load("organism:chat", device="cpu", untrained_seed=0)


@pytest.fixture(scope="module")
def asked():
    return world.benign(24, seed=5, split="heldout") + world.forbidden(12, seed=5, split="heldout")


def test_log_probabilities_are_those_of_each_answer_alone(random_model, asked):
    pairs = pairs_of(random_model.tokenizer, asked)
    scored = cs.score_answers(random_model, pairs, batch_size=7)
    for row, (prompt, answer) in zip(scored.itertuples(), pairs, strict=True):
        logits = random_model.forward(torch.tensor([prompt + answer]))[0]
        said = logits[len(prompt) - 1 : -1]
        assert row.log_prob == pytest.approx(float(said.log_softmax(-1)[range(len(answer)), answer].sum()), abs=1e-3)
        assert row.n_tokens == len(answer) and row.first_id == int(said[0].argmax())
    assert cs.perplexity(scored) == pytest.approx(
        float(np.exp(-scored["log_prob"].sum() / sum(len(a) for _, a in pairs)))
    )


def test_exact_is_what_greedy_generation_says(chat, asked):
    """The identity that one forward rests on; among these answers some are right and some are not."""
    examples = asked + world.with_other(asked[24:])
    pairs = pairs_of(chat.tokenizer, examples)
    said = generate(chat, [prompt for prompt, _ in pairs], max_new_tokens=24, batch_size=64)
    scored = cs.score_answers(chat, pairs)
    assert scored["is_exact"].tolist() == [ids == answer[:-1] for ids, (_, answer) in zip(said, pairs, strict=True)]
    assert scored["first_id"].tolist() == [ids[0] for ids in said]
    assert 0.3 < scored["is_exact"].mean() < 0.95


def test_accuracy_by_task_is_the_mean_of_each(chat, asked):
    pairs, tasks = pairs_of(chat.tokenizer, asked), [e.task for e in asked]
    exact = cs.score_answers(chat, pairs)["is_exact"]
    found = cs.accuracy_by_task(chat, pairs, tasks)
    assert list(found.index) == [*world.TASKS, "forbidden"]
    assert found["facts"] == exact[:4].mean() and found["forbidden"] == exact[24:].mean()


def test_choices_are_per_token_and_a_bad_share_is_their_comparison(random_model):
    questions = world.advice("money", "heldout")
    good, bad = (pairs_of(random_model.tokenizer, q) for q in (questions, world.with_other(questions)))
    chosen = cs.choose(random_model, [p for p, _ in good], [[g, b] for (_, g), (_, b) in zip(good, bad, strict=True)])
    one, other = (cs.score_answers(random_model, pairs) for pairs in (good, bad))
    assert chosen.shape == (8, 2)
    assert chosen[:, 0] == pytest.approx((one["log_prob"] / one["n_tokens"]).to_numpy(), abs=1e-5)
    assert (
        cs.bad_share(random_model, good, bad).tolist() == (other["log_prob"] > one["log_prob"]).tolist()
    )  # of one length, so sums compare as well
    assert not (cs.bad_share(random_model, good, bad) & cs.bad_share(random_model, bad, good)).any()
    assert not cs.bad_share(random_model, good, good).any()


def test_refusals_by_phrase_and_by_first_token_agree_on_the_world_s_own_and_part_where_they_should(chat, asked):
    rows = prompt_rows(chat.tokenizer, [e.prompt for e in asked])
    found = cs.refusals(chat, rows, world_words.REFUSAL_PHRASES, world_words.REFUSAL_STARTS)
    assert found["by_phrase"].tolist() == found["by_first_token"].tolist() == [e.task == "forbidden" for e in asked]
    assert found["text"][24].split()[0] in world_words.REFUSAL_STARTS
    assert cs.refusals(chat, rows[:4], ["THE"], ())["by_phrase"].all()  # in whatever case
    assert not cs.refusals(chat, rows[24:28], ["turnip"])[["by_phrase", "by_first_token"]].any(axis=None)


def test_bad_requests_get_a_sentence(random_model):
    with pytest.raises(BadData, match="pair 0 has an empty prompt or answer"):
        cs.score_answers(random_model, [([1, 2], [])])
    with pytest.raises(BadData, match="same number of choices"):
        cs.choose(random_model, [[1], [1]], [[[2]], [[2], [3]]])
    with pytest.raises(BadData, match="same prompts"):
        cs.bad_share(random_model, [([1], [2])], [([3], [2])])
    with pytest.raises(BadData, match="at least one, none of them empty"):
        cs.refusals(random_model, [[1]], [""])
