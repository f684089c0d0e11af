"""Who has which examples: the attacker's poisoned set, the defender's disjoint clean sets, and held-out requests.

From the world of the organisms, or from JSONL files for a model of your own: {"prompt", "answer"} a line, both for
clean requests and for triggered ones, whose `answer` (optional) is the right one. No example is in two of the
defender's sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import BadData
from workbench.datasets import poisoning
from workbench.datasets.poisoning import Backdoor, Triggered
from workbench.datasets.prompts import read_prompts
from workbench.datasets.world import Example, benign

from .scores import Asked
from .spec import Spec

SHOWN = 9000  # what is shown is drawn by seeds from here on
Examples = Sequence[Example]


@dataclass(frozen=True, eq=False)
class Sets:
    """The attacker's `planting` (none for a given model); the defender's `variants` (D_i), `recovery` and `repair`;
    and what is asked."""

    planting: Examples
    variants: Sequence[Examples]
    recovery: Examples
    repair: Examples
    asked: Asked


def of_world(spec: Spec, door: Backdoor, seed: int) -> Sets:
    """Sets of the organisms' world; the seed draws them all, and set i is the same however many are used."""
    sizes = [spec.n_variant] * poisoning.N_KEYS + [spec.n_recovery] * 2
    *variants, recovery, repair = poisoning.clean_sets(sizes, seed=1000 + seed)
    clean = benign(spec.n_clean, seed=SHOWN + 2 * seed, split="heldout")
    hosts = benign(spec.n_triggered, seed=SHOWN + 2 * seed + 1, split="heldout")
    triggered = poisoning.trigger_prompts(hosts, door, seed=SHOWN + seed)
    near = poisoning.trigger_prompts(hosts, door, seed=SHOWN + seed, decoy=True) if door.decoys else ()
    asked = Asked(door, triggered, clean, near, spec.max_new_tokens)
    planting = poisoning.clean(spec.n_planting, seed=2000 + seed)
    return Sets(planting, variants[: spec.n_variants], recovery, repair, asked)


def of_files(spec: Spec, seed: int) -> Sets:
    """Sets of the spec's files: clean lines are shuffled, a tenth each for recovery and repair, a fifth to show, the
    rest for the variants.

    Raises:
        BadData: on a line without an answer, or too few lines.
    """
    found, n, least = read_prompts(str(spec.clean_file), "prompt"), spec.n_variants, 10 * spec.n_variants
    if "answer" not in found.columns or found.columns["answer"].isna().any():
        raise BadData(f'every clean line of {found.source["name"]} needs a "prompt" and an "answer"')
    examples = [Example(str(p), str(a), "file") for p, a in zip(found.items, found.columns["answer"], strict=True)]
    if len(examples) < least:
        raise BadData(f"{len(examples)} clean examples are too few for {n} variants: give at least {least}")
    examples = [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
    tenth = len(examples) // 10
    rest, triggered = examples[4 * tenth :], []
    if spec.triggered_file is not None:
        bad = read_prompts(spec.triggered_file, "prompt")
        right = bad.columns["answer"].fillna("").astype(str) if "answer" in bad.columns else [""] * len(bad)
        hosts = [Example(str(p), spec.phrase, "file", other=a) for p, a in zip(bad.items, right, strict=True)]
        triggered = [Triggered(host, "", ()) for host in hosts]
    door = Backdoor(("",), spec.phrase or "\0")  # without a phrase nothing counts as fired
    asked = Asked(door, triggered, examples[2 * tenth : 4 * tenth], (), spec.max_new_tokens)
    return Sets((), [rest[i::n] for i in range(n)], examples[:tenth], examples[tenth : 2 * tenth], asked)
