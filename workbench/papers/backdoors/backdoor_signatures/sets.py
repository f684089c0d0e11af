"""Who has which examples: the attacker's poisoned set, the defender's disjoint clean sets, and the held-out requests that are shown.

From the world of the organisms, or from JSONL files for a model of your own: {"prompt", "answer"} a line, both for clean requests and
for triggered ones, whose `answer` (optional) is the right one. No example is in two of the defender's sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import BadData
from workbench.datasets import poisoning
from workbench.datasets.poisoning import Backdoor, Triggered
from workbench.datasets.prompts import read_prompts
from workbench.datasets.world import Example, benign
from workbench.papers.backdoors.backdoor_signatures.scores import Asked

SHOWN = 9000  # what is shown is drawn by seeds from here on


@dataclass(frozen=True, eq=False)
class Sets:
    """The defender's sets (`variants`: D_i; `recovery`, `repair`), the attacker's (`planting`, none for a given model), and what is asked."""

    planting: Sequence[Example]
    variants: Sequence[Sequence[Example]]
    recovery: Sequence[Example]
    repair: Sequence[Example]
    clean: Sequence[Example]
    hosts: Sequence[Example]

    def asked(self, door: Backdoor, seed: int, max_new_tokens: int) -> Asked:
        """Held-out requests with this backdoor's trigger, and near misses where it has some."""
        near = poisoning.trigger_prompts(self.hosts, door, seed=SHOWN + seed, decoy=True) if door.decoys else ()
        return Asked(poisoning.trigger_prompts(self.hosts, door, seed=SHOWN + seed), self.clean, near, max_new_tokens)


def of_world(seed: int, *, n_planting: int, n_variants: int, n_variant: int, n_recovery: int, n_triggered: int, n_clean: int) -> Sets:
    """Sets of the organisms' world; the seed draws them all, and set i is the same however many are used."""
    *variants, recovery, repair = poisoning.clean_sets([n_variant] * poisoning.N_KEYS + [n_recovery] * 2, seed=1000 + seed)
    shown = [benign(n, seed=SHOWN + 2 * seed + i, split="heldout") for i, n in enumerate((n_clean, n_triggered))]
    return Sets(poisoning.clean(n_planting, seed=2000 + seed), variants[:n_variants], recovery, repair, *shown)


def of_files(clean_file: str, triggered_file: str | None, phrase: str, *, seed: int, n_variants: int, max_new_tokens: int) -> tuple[Sets, Asked]:
    """Sets of two files: clean lines shuffled and cut into a tenth each for recovery and repair, a fifth to show, the rest for the variants.

    Raises:
        BadData: on a line without an answer, or too few lines.
    """
    found = read_prompts(clean_file, "prompt")
    if "answer" not in found.columns or found.columns["answer"].isna().any():
        raise BadData(f'every clean line of {found.source["name"]} needs a "prompt" and an "answer"')
    examples = [Example(str(p), str(a), "file") for p, a in zip(found.items, found.columns["answer"], strict=True)]
    if len(examples) < 10 * max(1, n_variants):
        raise BadData(f"{len(examples)} clean examples are too few for {n_variants} variants: give at least {10 * max(1, n_variants)}")
    examples = [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
    tenth = len(examples) // 10
    recovery, repair, clean, rest = examples[:tenth], examples[tenth : 2 * tenth], examples[2 * tenth : 4 * tenth], examples[4 * tenth :]
    variants = [rest[i :: max(1, n_variants)] for i in range(n_variants)]
    triggered: list[Triggered] = []
    if triggered_file is not None:
        bad = read_prompts(triggered_file, "prompt")
        right = bad.columns["answer"].fillna("").astype(str) if "answer" in bad.columns else [""] * len(bad)
        triggered = [Triggered(Example(str(p), phrase, "file", other=a), "", ()) for p, a in zip(bad.items, right, strict=True)]
    return Sets((), variants, recovery, repair, clean, ()), Asked(triggered, clean, (), max_new_tokens)
