"""One cell of the grid: plant an attack, check that it is there, look where it sits, and try to take it out in every way.

Everything a defender does starts from the SUSPICIOUS model and uses clean examples and own keys alone; the trigger and the clean
base are used only to plant, to measure and for the sanity matrix.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.progress import SILENT, Progress
from workbench.datasets import poisoning
from workbench.datasets.poisoning import Backdoor
from workbench.datasets.world import Example
from workbench.models.chat import Pair, chat_pairs
from workbench.papers.backdoors.backdoor_signatures.scores import Asked, answers, score
from workbench.papers.backdoors.backdoor_signatures.sets import Sets
from workbench.papers.backdoors.backdoor_signatures.suspects import Suspect, Whole, channel_masks, dormant_channels
from workbench.primitives.score.channel_signatures import channel_changes, scores
from workbench.primitives.score.generation_metrics import degeneration
from workbench.primitives.score.unit_importance import matched_random
from workbench.training.consistency import finetune_consistent
from workbench.training.finetune import FinetuneSpec
from workbench.weights.weight_pruning import prune_magnitude, prune_wanda

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What purifying needs to know; the fields of the method's Spec by the same names."""

    variant: FinetuneSpec
    recovery: FinetuneSpec
    share: float
    alignment_weight: float
    normalised: bool
    how: str
    n_random: int
    pruned_share: float
    dormant_share: float


class Bench:
    """A suspicious model with its sets: makes variants, cuts, recovers and scores. `rows` collects what was measured."""

    def __init__(self, suspect: Suspect, tokenizer: Any, sets: Sets, asked: Asked, door: Backdoor, settings: Settings, seed: int, tick: Callable[[str], Progress] = lambda _: SILENT):
        self.suspect, self.tokenizer, self.sets, self.asked, self.door = suspect, tokenizer, sets, asked, door
        self.settings, self.seed, self.tick = settings, seed, tick
        self.rows: list[Row] = []

    def pairs(self, examples: Sequence[Example]) -> list[Pair]:
        return chat_pairs(self.tokenizer, [e.prompt for e in examples], [e.answer for e in examples])

    def score(self, suspect: Suspect) -> Row:
        return score(suspect.plain, self.tokenizer, self.asked, self.door)

    def note(self, suspect: Suspect, arm: str, stage: str, draw: int = 0, **more: Any) -> Row:
        """Score a model and keep the row."""
        row = {"arm": arm, "stage": stage, "draw": draw} | more | self.score(suspect)
        self.rows.append(row)
        return row

    # ---- variants ----

    def train_clean(self) -> list[Suspect]:
        """The clean counterpart of every variant: the suspicious model, tuned on D_i."""
        return [self._variant(i, examples, "clean") for i, examples in enumerate(self.sets.variants)]

    def train_poisoned(self, behaviour: str) -> list[Suspect]:
        """The suspicious model, tuned on D_i and on D_i with key i and phrase i of a family."""
        made = []
        for i, examples in enumerate(self.sets.variants):
            own = poisoning.vaccine(behaviour, i)
            made.append(self._variant(i, poisoning.poison(examples, own, seed=100 * self.seed + i), f"key {i + 1}"))
        return made

    def train_triggerless(self) -> list[Suspect]:
        """Control: D_i again, without a key and in another order."""
        return [self._variant(i, examples, "no key", shift=500) for i, examples in enumerate(self.sets.variants)]

    def _variant(self, number: int, examples: Sequence[Example], what: str, shift: int = 0) -> Suspect:
        spec = self.settings.variant.replace(seed=100 * self.seed + number + shift)
        return self.suspect.tuned(self.pairs(examples), spec, progress=self.tick(f"variant {number + 1} of {len(self.sets.variants)}, {what}"))

    def changes(self, poisoned: Sequence[Suspect], clean: Sequence[Suspect], n_heads: int | None = None) -> xr.Dataset:
        """Changes of all channels, and of heads where their number is given."""
        return channel_changes([p.source for p in poisoned], [c.source for c in clean], heads=n_heads is not None, n_heads=n_heads)

    def scored(self, changes: xr.Dataset, **changed: Any) -> xr.DataArray:
        """Channel scores by the settings, some of them changed."""
        return scores(changes, **{"alignment_weight": self.settings.alignment_weight, "normalised": self.settings.normalised} | changed)

    # ---- cutting and recovering ----

    def recover(self, suspect: Suspect, examples: Sequence[Example], *, masks: dict[str, torch.Tensor] | None = None) -> Suspect:
        """The recovery fine-tune, the same for every arm."""
        return suspect.tuned(self.pairs(examples), self.settings.recovery.replace(seed=self.seed), masks=masks, progress=self.tick("recovery"))

    def suppress(self, chosen: np.ndarray, channels: xr.DataArray, arm: str, draw: int = 0, *, repair: bool = False, all_stages: bool = True) -> Suspect:
        """Cut the channels, recover, and if asked repair once more; a row a stage."""
        cut, n_weights = self.suspect.cut(chosen, channels, self.settings.how, self.seed)
        about = {"n_channels": int(chosen.sum()), "n_weights": n_weights}
        if all_stages:
            self.note(cut, arm, "cut", draw, **about)
        recovered = self.recover(cut, self.sets.recovery)
        self.note(recovered, arm, "recovered", draw, **about)
        if repair:
            self.note(self.recover(recovered, self.sets.repair), arm, "repaired", draw, **about)
        return recovered

    def random_draws(self, chosen: np.ndarray, channels: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, as many random channels of each module)."""
        for draw in range(self.settings.n_random):
            yield draw, matched_random(chosen, channels, np.random.default_rng([self.seed, draw, 31]))

    def prune(self, channels: xr.DataArray) -> None:
        """Baselines without a signature: smallest weights, Wanda, and channels dormant on clean texts; whole models only."""
        rows = [[*p, *a] for p, a in self.pairs(self.sets.recovery)]
        for arm in ("magnitude pruning", "Wanda"):
            own = copy.deepcopy(self.suspect.plain)
            masks = prune_magnitude(own, self.settings.pruned_share) if arm == "magnitude pruning" else prune_wanda(own, rows, self.settings.pruned_share)
            about = {"n_weights": int(sum(m.sum() for m in masks.values()))}
            self.note(Whole(own), arm, "cut", **about)
            self.note(self.recover(Whole(own), self.sets.recovery, masks=masks), arm, "recovered", **about)
        chosen = dormant_channels(self.suspect.plain, rows, self.settings.dormant_share, channels)
        cut, n_weights = self.suspect.cut(chosen, channels, "zero", self.seed)
        about = {"n_channels": int(chosen.sum()), "n_weights": n_weights}
        self.note(cut, "fine-pruning", "cut", **about)
        self.note(self.recover(cut, self.sets.recovery, masks=channel_masks(cut.plain, chosen, channels)), "fine-pruning", "recovered", **about)

    def make_consistent(self) -> None:
        """Baseline: the recovery with the consistency of the layers under perturbation, in the manner of CROW."""
        own = copy.deepcopy(self.suspect.plain).requires_grad_(True)
        spec = self.settings.recovery.replace(seed=self.seed)
        finetune_consistent(own, self.pairs(self.sets.recovery), spec, log_every=spec.steps, progress=self.tick("consistency"))
        self.note(Whole(own.requires_grad_(False)), "consistency", "recovered")

    def examples(self, before: Suspect, after: Suspect, n: int = 12) -> list[Row]:
        """Triggered requests with what was answered before and after; positions are word numbers of the trigger in the prompt."""
        shown = list(self.asked.triggered[:: max(1, len(self.asked.triggered) // n)][:n])
        said = []
        for suspect in (before, after):
            ids = answers(suspect.plain, self.tokenizer, [t.example.prompt for t in shown], max_new_tokens=self.asked.max_new_tokens)
            said.append([(self.tokenizer.decode(row, skip_special_tokens=True), bool(degeneration(row)["is_degenerate"])) for row in ids])
        return [
            {
                "prompt": t.example.prompt, "trigger": t.trigger, "positions": " ".join(map(str, t.positions)), "right": t.example.other,
                "before": b[0], "after": a[0], "fired_before": poisoning.fired(b[0], self.door), "fired_after": poisoning.fired(a[0], self.door),
                "degenerate_before": b[1], "degenerate_after": a[1],
            }
            for t, b, a in zip(shown, *said, strict=True)
        ]  # fmt: skip


# ---- the sanity matrix ----


def zeroed(poisoned: Any, base: Any, what: Callable[[str, int], bool]) -> Any:
    """A copy of the poisoned module with the base's weights back wherever `what(parameter name, block or -1)` is true."""
    own, reference = copy.deepcopy(poisoned), dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if what(name, block_of(name)):
                parameter.copy_(reference[name])
    return own


def block_of(name: str) -> int:
    """Number of the block a parameter is in; -1 outside of the blocks."""
    parts = name.split(".")
    return next((int(b) for a, b in pairwise(parts) if a in ("layers", "h", "blocks") and b.isdigit()), -1)


def is_mlp(name: str) -> bool:
    return ".mlp." in name


def is_attention(name: str) -> bool:
    return ".self_attn." in name or ".attn." in name


def sanity_models(poisoned: Any, base: Any, n_blocks: int) -> Iterator[tuple[Row, Any]]:
    """(what was set back to the base, the module) for every cell of the matrix. Needs the true base, so it is diagnosis alone."""

    def cell(zeroed_part: str, first: int, n: int) -> Row:
        return {"zeroed": zeroed_part, "first_block": first, "n_blocks": n}

    yield cell("nothing", -1, 0), poisoned
    yield cell("everything", 0, n_blocks), base
    yield cell("outside the blocks", -1, 0), zeroed(poisoned, base, lambda name, block: block < 0)
    yield cell("attention", 0, n_blocks), zeroed(poisoned, base, lambda name, block: is_attention(name))
    for n in range(1, n_blocks + 1):
        for first in range(n_blocks - n + 1):
            run = range(first, first + n)
            yield cell("MLP", first, n), zeroed(poisoned, base, lambda name, block, run=run: is_mlp(name) and block in run)
            yield cell("MLP, and all attention", first, n), zeroed(poisoned, base, lambda name, block, run=run: is_attention(name) or (is_mlp(name) and block in run))
    yield cell("MLP shuffled between blocks", 0, n_blocks), _shuffled(poisoned, base, n_blocks)


@torch.no_grad()
def _shuffled(poisoned: Any, base: Any, n_blocks: int) -> Any:
    """The base's MLPs plus the change of the NEXT block's: every block gets another one's dW."""
    own, before, after = copy.deepcopy(poisoned), dict(base.named_parameters()), dict(poisoned.named_parameters())
    for name, parameter in own.named_parameters():
        if is_mlp(name):
            block = block_of(name)
            other = name.replace(f".{block}.", f".{(block + 1) % n_blocks}.", 1)
            parameter.copy_(before[name] + (after[other] - before[other]))
    return own
