"""Fine-tuning with units held exactly: what protects refusals, which units change their part, aligning through few
units.

In every arm but "full", "new_task" and "lora" nothing but units is trained: embeddings, norms and the unembedding stay
as they were. Where units are frozen the steps are doubled, so that the loss is no worse.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.datasets import world
from workbench.models import load
from workbench.models.chat import Pair
from workbench.organisms.chat import pairs_of
from workbench.primitives.score.unit_importance import LABELS, Ratios
from workbench.runs.arms import Arm
from workbench.runs.study import Steps
from workbench.training import recipes
from workbench.training.freezing import unit_masks
from workbench.training.loop import TrainSpec
from workbench.training.lora import LoraSpec

from .prompts import Prompts, score
from .pruning import Labelled, importance_of

if TYPE_CHECKING:
    from .method import Spec

LORA_LR_FACTOR = 6.0
UNHELD = ("full", "units", "lora", "new_task")  # arms in which no unit is frozen
ARMS = {
    "full": Arm("everything trained", "baseline"),
    "units": Arm("all units trained, nothing else", "control", "full"),
    "lora": Arm("LoRA on all projections", "baseline", "full"),
    "i": Arm("SCU and top CU frozen", follows="full"),
    "ii": Arm("SCU and all CU frozen", follows="full"),
    "random_i": Arm("as many random units frozen as in (i)", "control", "i"),
    "random_ii": Arm("as many random units frozen as in (ii)", "control", "ii"),
    "new_task": Arm("everything trained, on a format never met", "baseline", "full"),
}


def held_units(arm: str, units: Labelled, top_complex: float, seed: int) -> np.ndarray:
    """bool [unit] what an arm freezes. Top CU are those of the largest importance on the safety set (inferred)."""
    if arm in UNHELD:
        return np.zeros(len(units.labels), bool)
    held, complex_units = units.group("SCU"), np.flatnonzero(units.group("CU"))
    if not arm.endswith("ii"):
        importance = units.units.sel(scale=units.scale, set="safety").values[complex_units]
        complex_units = complex_units[np.argsort(-importance, kind="stable")][: round(top_complex * len(held))]
    held[complex_units] = True
    return units.random(held, seed, 21) if arm.startswith("random") else held


def transfer(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """Flow of units between labels: share of all units, in percent, that was one and became the other."""
    rows = [
        (a, b, int(((before == i) & (after == j)).sum())) for i, a in enumerate(LABELS) for j, b in enumerate(LABELS)
    ]
    table = pd.DataFrame(rows, columns=["before", "after", "n_units"])
    return table.assign(share=100 * table["n_units"] / len(before))


class Bench:
    """Fine-tunes copies of a module with some units held, and scores them; `rows` grow by one a fine-tune."""

    def __init__(self, module: Any, tokenizer: Any, units: Labelled, prompts: Prompts, start: str, steps: Steps):
        self.module, self.tokenizer, self.units, self.prompts = module, tokenizer, units, prompts
        self.start, self.steps = start, steps
        self.rows: list[dict[str, Any]] = []

    def tune(self, arm: str, pairs: list[Pair], how: TrainSpec, held: np.ndarray, *, only_units: bool) -> Any:
        """The tuned Model; whoever asked unloads it."""
        masks = unit_masks(self.module, self.units.units, held) if only_units else None
        adapter = LoraSpec(init_seed=how.seed) if arm == "lora" else None
        tuned = recipes.tuned(self.module, pairs, how, held=masks, only_named=True, lora=adapter, progress=self.steps)
        model = load(tuned.module, tokenizer=self.tokenizer)
        about = {"start": self.start, "arm": arm, "steps": how.steps, "loss": tuned.loss, "n_held": int(held.sum())}
        self.rows.append(about | {"n_frozen": tuned.n_frozen} | score(model, self.prompts.shown, self.prompts.refusals))
        return model


def tune_aligned(bench: Bench, spec: "Spec", seed: int, **how: str) -> dict[str, pd.DataFrame]:
    """Every arm of the spec from the aligned model; tables tuning, and transfer where everything was trained."""
    tables = {}
    for number, arm in enumerate(spec.arms):
        bench.steps.at(45 + 35 * number // len(spec.arms), f"fine-tuning ({arm})")
        examples = world.sample(spec.new_task if arm == "new_task" else spec.task, spec.n_tuning, seed=4000 + seed)
        pairs = pairs_of(bench.tokenizer, examples)
        settings, held = spec.tuning.replace(seed=seed), held_units(arm, bench.units, spec.top_complex, seed)
        if arm not in UNHELD:
            settings = settings.replace(steps=2 * settings.steps)
        if arm == "lora":
            settings = settings.replace(lr=settings.lr * LORA_LR_FACTOR)
        model = bench.tune(arm, pairs, settings, held, only_units=arm not in ("full", "lora", "new_task"))
        if arm == "full":
            calibration = bench.prompts.calibration
            after = importance_of(model, (calibration.safety, calibration.utility), **how)
            labels = Labelled(after, bench.units.scale, bench.units.ratios).labels
            tables["transfer"] = transfer(bench.units.labels, labels)
        model.unload()
    return tables | {"tuning": pd.DataFrame(bench.rows)}


def align_base(bench: Bench, spec: "Spec", seed: int) -> pd.DataFrame:
    """Align the base model through all of it, its redundant units, and as many random ones; bench.units are of the
    base.
    """
    examples = [*world.forbidden(2 * spec.n_tuning, seed=5000 + seed), *world.benign(spec.n_tuning, seed=5000 + seed)]
    pairs = pairs_of(bench.tokenizer, examples)
    units = Labelled(bench.units.units, bench.units.scale, Ratios(0.0, 0.0, spec.budget_share))
    trained = units.group("RU")
    arms = {"full": np.zeros(len(trained), bool), "redundant": ~trained, "random": ~units.random(trained, seed, 22)}
    for number, (arm, held) in enumerate(arms.items()):
        bench.steps.at(80 + 6 * number, f"aligning the base ({arm})")
        how = spec.alignment.replace(seed=seed, steps=spec.alignment.steps * (1 if arm == "full" else 2))
        bench.tune(arm, pairs, how, held, only_units=arm != "full").unload()
    return pd.DataFrame(bench.rows)
