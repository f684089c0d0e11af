"""A suspicious model on the bench: look where a backdoor sits, and try to take it out in every way.

Everything a defender does starts from the SUSPICIOUS model and uses clean examples and own keys alone; the trigger
serves only to measure.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.datasets import poisoning
from workbench.models.chat import Pair, chat_pairs
from workbench.primitives.score.channel_signatures import channel_changes, scores
from workbench.primitives.score.generation_metrics import degeneration
from workbench.primitives.score.unit_importance import module_groups
from workbench.runs.arms import matched
from workbench.runs.study import Steps, Unit
from workbench.training.consistency import finetune_consistent
from workbench.weights.weight_pruning import prune_magnitude, prune_wanda

from .scores import answers, score
from .sets import Examples, Sets
from .spec import Spec
from .suspects import Suspect, Whole, channel_masks, dormant_channels

Row = dict[str, Any]


@dataclass(eq=False)
class Bench:
    """The suspicious model of a unit with its sets: makes variants, cuts, recovers, scores; `rows` are the arms."""

    spec: Spec
    unit: Unit
    suspect: Suspect
    tokenizer: Any
    sets: Sets
    steps: Steps
    rows: list[Row] = field(default_factory=list)

    @property
    def cell(self) -> str:
        """Name of the unit's cell."""
        return str(self.unit.axes["cell"])

    @property
    def share(self) -> float:
        """tau of this form."""
        return self.spec.share_lora if self.suspect.form == "lora" else self.spec.share

    def pairs(self, examples: Examples) -> list[Pair]:
        """Examples as token ids."""
        return chat_pairs(self.tokenizer, [e.prompt for e in examples], [e.answer for e in examples])

    def score(self, suspect: Suspect) -> Row:
        """All scores of a model."""
        return score(suspect.plain, self.tokenizer, self.sets.asked)

    def note(self, suspect: Suspect, arm: str, stage: str, draw: int = 0, **about: Any) -> Row:
        """Score a model and keep the row."""
        self.rows.append({"arm": arm, "stage": stage, "draw": draw} | about | self.score(suspect))
        return self.rows[-1]

    # ---- variants ----

    def variants(self, taught: str | None = None, *, shift: int = 0) -> list[Suspect]:
        """The suspicious model, tuned on each D_i: the clean counterparts.

        Args:
            taught: a behaviour; then on D_i and on D_i with key i and phrase i of that family. shift: another order.
        """
        made: list[Suspect] = []
        for i, examples in enumerate(self.sets.variants):
            seed = 100 * self.unit.seed + i
            own = examples if taught is None else poisoning.poison(examples, poisoning.vaccine(taught, i), seed=seed)
            what = "clean" if taught is None else f"key {i + 1}"
            steps = self.steps.tick(f"variant {i + 1} of {len(self.sets.variants)}, {what}")
            spec = self.spec.variant.replace(seed=seed + shift)
            made.append(self.suspect.tuned(self.pairs(own), spec, progress=steps))
        return made

    def changes(self, poisoned: Sequence[Suspect], clean: Sequence[Suspect], n_heads: int | None = None) -> xr.Dataset:
        """Changes of all channels, and of heads where their number is given."""
        sources = [p.source for p in poisoned], [c.source for c in clean]
        return channel_changes(*sources, heads=n_heads is not None, n_heads=n_heads)

    def scored(self, changes: xr.Dataset, **changed: Any) -> xr.DataArray:
        """Channel scores by the spec's lambda and norms, some settings changed."""
        own = {"alignment_weight": self.spec.alignment_weight, "normalised": self.spec.normalised}
        return scores(changes, **own | changed)

    # ---- cutting and recovering ----

    def recover(
        self, suspect: Suspect, examples: Examples, *, masks: Mapping[str, torch.Tensor] | None = None
    ) -> Suspect:
        """The recovery fine-tune, the same for every arm."""
        spec, steps = self.spec.recovery.replace(seed=self.unit.seed), self.steps.tick("recovery")
        return suspect.tuned(self.pairs(examples), spec, masks=masks, progress=steps)

    def cut(self, chosen: np.ndarray, channels: xr.DataArray) -> tuple[Suspect, Row]:
        """(a copy with the channels overwritten, how many channels and weights that were)."""
        cut, n_weights = self.suspect.cut(chosen, channels, self.spec.how, self.unit.seed)
        return cut, {"n_channels": int(chosen.sum()), "n_weights": n_weights}

    def purified(self, chosen: np.ndarray, channels: xr.DataArray) -> Suspect:
        """Cut and recovered."""
        return self.recover(self.cut(chosen, channels)[0], self.sets.recovery)

    def suppress(
        self,
        chosen: np.ndarray,
        channels: xr.DataArray,
        arm: str,
        draw: int = 0,
        *,
        repair: bool = False,
        all_stages: bool = True,
    ) -> Suspect:
        """Cut the channels, recover, and if asked repair once more; a row a stage."""
        cut, about = self.cut(chosen, channels)
        if all_stages:
            self.note(cut, arm, "cut", draw, **about)
        recovered = self.recover(cut, self.sets.recovery)
        self.note(recovered, arm, "recovered", draw, **about)
        if repair:
            self.note(self.recover(recovered, self.sets.repair), arm, "repaired", draw, **about)
        return recovered

    def random_draws(self, chosen: np.ndarray, channels: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, as many random channels of each module)."""
        for draw in range(self.spec.n_random):
            yield draw, matched(chosen, module_groups(channels), np.random.default_rng([self.unit.seed, draw, 31]))

    def prune(self, channels: xr.DataArray) -> None:
        """Baselines without a signature: smallest weights, Wanda, dormant channels; whole models only."""
        spec, rows = self.spec, [[*p, *a] for p, a in self.pairs(self.sets.recovery)]
        for arm in ("magnitude pruning", "Wanda", "fine-pruning"):
            own = copy.deepcopy(self.suspect.plain)
            if arm == "fine-pruning":
                chosen = dormant_channels(own, rows, spec.dormant_share, channels)
                cut, n_weights = self.suspect.cut(chosen, channels, "zero", self.unit.seed)
                masks = channel_masks(own, chosen, channels)
                about = {"n_channels": int(chosen.sum()), "n_weights": n_weights}
            else:
                wanda = arm == "Wanda"
                masks = prune_wanda(own, rows, spec.pruned_share) if wanda else prune_magnitude(own, spec.pruned_share)
                cut, about = Whole(own), {"n_weights": int(sum(m.sum() for m in masks.values()))}
            self.note(cut, arm, "cut", **about)
            self.note(self.recover(cut, self.sets.recovery, masks=masks), arm, "recovered", **about)

    def make_consistent(self) -> None:
        """Baseline: the recovery with the consistency of the layers under perturbation, in the manner of CROW."""
        own, spec = copy.deepcopy(self.suspect.plain).requires_grad_(True), self.spec.recovery
        pairs, steps = self.pairs(self.sets.recovery), self.steps.tick("consistency")
        finetune_consistent(own, pairs, spec.replace(seed=self.unit.seed), log_every=spec.steps, progress=steps)
        self.note(Whole(own.requires_grad_(False)), "consistency", "recovered")

    def examples(self, before: Suspect, after: Suspect, n: int = 12) -> list[Row]:
        """Triggered requests with the answers before and after; `positions` number the trigger's words in it."""
        asked = self.sets.asked
        shown = asked.triggered[:: max(1, len(asked.triggered) // n)][:n]
        rows: list[Row] = [
            {"prompt": t.example.prompt, "trigger": t.trigger, "positions": " ".join(map(str, t.positions))}
            | {"right": t.example.other}
            for t in shown
        ]
        for when, suspect in (("before", before), ("after", after)):
            prompts = [t.example.prompt for t in shown]
            ids = answers(suspect.plain, self.tokenizer, prompts, max_new_tokens=asked.max_new_tokens)
            for row, said in zip(rows, ids, strict=True):
                row[when] = self.tokenizer.decode(said, skip_special_tokens=True)
                row[f"fired_{when}"] = poisoning.fired(row[when], asked.door)
                row[f"degenerate_{when}"] = bool(degeneration(said)["is_degenerate"])
        return rows
