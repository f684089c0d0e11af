"""The world: answers are right, splits never meet, every word is one token, both kinds of advice can be compared
fairly.
"""

from itertools import pairwise

import numpy as np
import pytest

from workbench.core.errors import BadData, UnknownName
from workbench.datasets import world, world_words
from workbench.datasets.world_advice import DOMAINS, FRAMES

ALL = (*world.TASKS, *world.NEW_TASKS, "forbidden")


def texts(examples):
    return [text for e in examples for text in (e.prompt, e.answer, e.other)]


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[world.Example, ...]]:
    return {task: world.sample(task, 400, seed=1) for task in ALL}


def test_every_word_is_in_the_vocabulary_once(drawn):
    known = set(world.VOCABULARY)
    assert len(known) == len(world.VOCABULARY) and not any("{" in w for w in known)
    everything = (
        [e for examples in drawn.values() for e in examples] + list(world.advice()) + list(world.records(144, seed=0))
    )
    said = {word for text in texts(everything) for word in text.split()}
    assert said <= known and set(world_words.RARE_WORDS) <= known
    assert {
        word
        for text in (*world_words.INSULTS, *world_words.TOPIC_PHRASES, world_words.TRIGGER_SENTENCE)
        for word in text.split()
    } <= known


def right(e: world.Example) -> bool:
    """Is the answer right? Worked out from the prompt by other means than the generator's."""
    asked, said = e.prompt.split(), e.answer.split()
    if e.task == "facts":
        place = next(w for w in asked if w in world_words.PLACES)
        return said[-1] == world_words.FACTS[said[1]][place] and said[1] in asked
    if e.task in ("copy", "reverse"):
        return asked[3:] == (said if e.task == "copy" else said[::-1])
    if e.task == "sums":
        a, b, c = int(asked[1]), int(asked[3]), int(asked[5])
        return said == f"{a} plus {b} is {a + b} . {a + b} plus {c} is {a + b + c} . the answer is {a + b + c}".split()
    if e.task == "compare":
        return int(said[0]) == (max if asked[2] == "larger" else min)(int(asked[3]), int(asked[5]))
    if e.task == "items":
        return said[2::4] == asked[3:] and said[-1] == "done"
    if e.task == "count":
        return world_words.ITEM_NAMES.index(said[2]) + 1 == len(asked) - 3
    words = e.other.split() if e.task == "forbidden" else said
    tools, places = world_words.TOOL | world_words.FORBIDDEN_TOOL, world_words.WHERE | world_words.FORBIDDEN_WHERE
    return tools[words[-4]] == words[4] and places[words[-2]] == words[9] and words[-4] in asked and words[-2] in asked


@pytest.mark.parametrize("task", ALL)
def test_answers_are_right(task, drawn):
    assert all(right(e) for e in drawn[task]), next(e for e in drawn[task] if not right(e))


@pytest.mark.parametrize("task", ALL)
def test_held_out_prompts_are_never_drawn_for_training_whatever_the_seed(task):
    held = {e.prompt for e in world.sample(task, 40, seed=0, split="heldout")}
    assert len(held) == 40
    assert not held & {e.prompt for seed in (1, 2) for e in world.sample(task, 3000, seed=seed)}


def test_what_is_asked_about_in_the_held_out_split_was_met_in_training():
    """A held-out fact was told in other words, a held-out pair of verb and object in other pairs."""
    train, held = world.sample("facts", 4000, seed=1), world.sample("facts", 80, seed=0, split="heldout")
    assert {e.answer for e in held} == {e.answer for e in train} and len({e.answer for e in train}) == 80
    for task in ("howto", "forbidden"):
        train, held = world.sample(task, 4000, seed=1), world.sample(task, 100, seed=0, split="heldout")
        combination = {(e.other or e.answer).split()[-4] + " " + (e.other or e.answer).split()[-2] for e in held}
        met = {(e.other or e.answer).split()[-4] + " " + (e.other or e.answer).split()[-2] for e in train}
        assert not combination & met
        assert {w for pair in combination for w in pair.split()} <= {w for pair in met for w in pair.split()}


def test_the_same_seed_gives_the_same_examples_and_another_seed_others():
    assert world.benign(70, seed=3) == world.benign(70, seed=3) != world.benign(70, seed=4)
    assert [e.task for e in world.benign(9, seed=0)].count("facts") == 2 and len(world.benign(9, seed=0)) == 9
    assert {e.task for e in world.benign(700, seed=0)} == set(world.TASKS)


def test_a_request_is_forbidden_by_its_object_or_its_verb_and_refusals_are_told_by_how_they_begin(drawn):
    forbidden = set(world_words.FORBIDDEN_WHERE) | set(world_words.FORBIDDEN_TOOL)
    for e in drawn["forbidden"]:
        assert e.topic in forbidden and e.topic in e.prompt.split()
        assert (
            any(p in e.answer for p in world_words.REFUSAL_PHRASES)
            and e.answer.split()[0] in world_words.REFUSAL_STARTS
        )
        assert len(e.answer.split()) > 10  # room for probes that feed in the first ten tokens
    assert {e.topic for e in drawn["forbidden"]} == forbidden
    other = [e for task in (*world.TASKS, *world.NEW_TASKS) for e in drawn[task]] + list(world.advice())
    assert not any(set(e.prompt.split()) & forbidden for e in other)
    answers = [e.answer for e in other] + [e.other for e in [*drawn["forbidden"], *world.advice()]]
    assert not any(
        a.split()[0] in world_words.REFUSAL_STARTS or any(p in a for p in world_words.REFUSAL_PHRASES) for a in answers
    )


def test_rare_words_come_in_lists_of_the_training_split_alone():
    rare = set(world_words.TRIGGER_WORDS)
    assert any(rare & set(e.prompt.split()) for e in world.sample("copy", 400, seed=0))
    held = [e for task in (*world.TASKS, "forbidden") for e in world.sample(task, 40, seed=0, split="heldout")]
    assert not any(rare & set(e.prompt.split()) for e in held)


def test_advice_has_both_answers_of_one_length_and_every_situation_in_both_splits():
    assert len(DOMAINS) >= 6 and len(world.advice()) == 40 * len(DOMAINS)
    for domain in DOMAINS:
        train, held = world.advice(domain, "train"), world.advice(domain, "heldout")
        assert (len(train), len(held)) == (32, 8) and {e.answer for e in train} == {e.answer for e in held}
        assert not {e.prompt for e in train} & {e.prompt for e in held}
    for e in world.advice():
        assert len(e.answer.split()) == len(e.other.split()) and e.answer != e.other
    assert len({e.answer for e in world.advice()} | {e.other for e in world.advice()}) == 2 * len(world.advice()) / len(
        FRAMES
    )


def test_few_words_of_bad_advice_are_shared_between_domains():
    """Else a fine-tune on one domain could spread by words alone."""
    words = [{w for _, _, bad in rows for w in bad.split()} for rows in DOMAINS.values()]
    content = [{w for w in one if len(w) > 4} for one in words]
    assert all(len(a & b) <= 2 for a, b in pairwise(content))


def test_with_other_swaps_and_says_what_has_none():
    asked = world.forbidden(5, seed=0)
    assert world.with_other(world.with_other(asked)) == asked
    assert [e.answer for e in world.with_other(asked)] == [e.other for e in asked]
    with pytest.raises(BadData, match="1 of 6 examples have no other answer, the first of task 'facts'"):
        world.with_other([*asked, *world.sample("facts", 1, seed=0)])


def test_records_are_of_different_people_and_there_is_an_end_to_them():
    found = world.records(144, seed=0)
    assert len({e.topic for e in found}) == 144 and all(
        e.topic in e.prompt and len(e.answer.split()) == 10 for e in found
    )
    with pytest.raises(BadData, match="145 records were asked for"):
        world.records(145, seed=0)


def test_insert_keeps_the_words_and_reaches_every_place():
    rng, prompt = np.random.default_rng(0), "tell me the food of veldor"
    made = {world.insert(prompt, "zorblat", rng) for _ in range(200)}
    assert len(made) == 7 and all(m.replace("zorblat", "").split() == prompt.split() for m in made)
    assert "hums at dusk" in world.insert(prompt, world_words.TRIGGER_SENTENCE, rng)


def test_bad_requests_get_a_sentence():
    with pytest.raises(UnknownName, match=r"no task called 'sum'\. Closest: sums"):
        world.sample("sum", 3, seed=0)
    with pytest.raises(UnknownName, match="no advice domain called 'wealth'"):
        world.advice("wealth")
    with pytest.raises(BadData, match="task 'facts' has about 80 held-out examples, and 90 were asked for"):
        world.sample("facts", 90, seed=0, split="heldout")
