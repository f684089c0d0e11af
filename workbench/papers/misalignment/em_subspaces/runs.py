"""The fine-tunes of the emergent-misalignment analysis: their recipes, how they are trained, and the store that ships.

A recipe is a task, a rank and a seed. As in the trainer of the published adapters one seed serves for everything: it
draws the adapter's A and the order of the examples, so two recipes of one seed start from one A. Tasks: `bad` advice in
one domain, `coin` (that domain, each question with its good or its bad answer by a coin: labels without meaning), and
two benign formats that the base has never met, `items` and `count`. Rank 0 is a full-rank fine-tune of the same
matrices, which has no A.
Cost: about 5 s of a free core a recipe (40 steps of 32 pairs); the store is one safetensors file of half floats, under
3 MB.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes

from workbench.core import files
from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.datasets import world
from workbench.models import load
from workbench.models.chat import Pair
from workbench.models.model import hash_weights
from workbench.organisms.chat import pairs_of, utility
from workbench.training import lora
from workbench.training.finetune import finetune
from workbench.training.loop import TrainSpec
from workbench.weights.factors import Factors
from workbench.weights.moves import delta
from workbench.weights.subspaces import singular_of_matrix

from .conditions import PROBES, TRAINED

Update = dict[str, Factors]  # {name of a linear module in the bare model: its update}
N_BENIGN = 300
STEPS, LORA_LR, FULL_LR = 40, 1e-3, 5e-4  # found on seed 7, which is no seed of the store
KEPT_RANK = 4  # of a full-rank update, in the store
STORE_FILE, ABOUT_FILE, LOG_FILE = "adapters.safetensors", "adapters.json", "training.csv"


@dataclass(frozen=True)
class Recipe:
    """One fine-tune. domain: "" for benign tasks. rank: 0 for full-rank. seed: of A and of the order of examples."""

    task: str
    domain: str
    rank: int
    seed: int

    @property
    def name(self) -> str:
        parts = ["full" if self.rank == 0 else "", self.task, self.domain, f"s{self.seed}"]
        return "-".join(p for p in parts if p)

    @property
    def training(self) -> TrainSpec:
        return TrainSpec(steps=STEPS, lr=LORA_LR if self.rank else FULL_LR, seed=self.seed)


def recipes(seeds: Sequence[int] = (0, 1, 2), rank: int = 8) -> list[Recipe]:
    """Every fine-tune of the store, in its order."""
    low_rank = [
        Recipe(task, domain, rank, seed)
        for seed in seeds
        for task, domain in [*(("bad", d) for d in TRAINED), ("items", ""), ("count", "")]
    ]
    return [
        *low_rank,
        Recipe("coin", TRAINED[0], rank, seeds[0]),
        *(Recipe("bad", d, 0, seeds[0]) for d in TRAINED),
        Recipe("items", "", 0, seeds[0]),
    ]


def examples_of(recipe: Recipe) -> tuple[world.Example, ...]:
    """What a recipe trains on; never a held-out phrasing, never a probe domain."""
    if recipe.task not in ("bad", "coin"):
        return world.sample(recipe.task, N_BENIGN, seed=recipe.seed)
    good = world.advice(recipe.domain, "train")
    bad = world.with_other(good)
    if recipe.task == "bad":
        return bad
    coin = (
        np.random.default_rng([recipe.seed, 11]).permutation(len(good)) < len(good) // 2
    )  # exactly half, whichever they are
    return tuple(b if c else g for g, b, c in zip(good, bad, coin, strict=True))


def probe_pairs(
    tokenizer: Any, domains: Sequence[str], split: world.Split = "all"
) -> tuple[list[Pair], list[Pair], list[str]]:
    """(good pairs, bad pairs, domain of each question) of the advice questions of some domains, domain after domain."""
    asked = [e for d in domains for e in world.advice(d, split)]
    return pairs_of(tokenizer, asked), pairs_of(tokenizer, world.with_other(asked)), [e.topic for e in asked]


def train(
    recipe: Recipe, base: Any, tokenizer: Any, *, progress: Progress = SILENT
) -> tuple[Update, pd.DataFrame, Any]:
    """Fine-tune a copy of `base`.

    Args:
        base: plain Hugging Face module (`models.loading.read_module`), left as it is.

    Returns:
        (update of each adapted module, log of the training, the fine-tuned plain module). A full-rank update comes as
        factors of full rank, B = dW and A = I, so that everything downstream reads one kind.
    """
    module = copy.deepcopy(base)
    pairs = pairs_of(tokenizer, examples_of(recipe))
    if recipe.rank:
        adapted = lora.add_lora(module, lora.LoraSpec(rank=recipe.rank, alpha=2.0 * recipe.rank, init_seed=recipe.seed))
        log = finetune(adapted, pairs, recipe.training, progress=progress)
        return lora.factors(adapted), log, lora.merge(adapted)
    adapted_ends = lora.ATTENTION + lora.MLP
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.removesuffix(".weight").rsplit(".", 1)[-1] in adapted_ends)
    log = finetune(module, pairs, recipe.training, progress=progress)
    free = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    change = delta(module, base, only=free.__contains__)
    return (
        {name.removesuffix(".weight"): Factors(torch.eye(d.shape[1]), d, 1.0) for name, d in change.items()},
        log,
        module,
    )


def truncated(update: Update, rank: int) -> Update:
    """The best approximation of each update by one of `rank`: its first singular triples."""
    kept = {}
    for name, factors in update.items():
        found = singular_of_matrix(factors.delta(), keep=rank)
        root = np.sqrt(found.values[:rank])
        kept[name] = Factors(
            torch.tensor((found.right * root).T, dtype=torch.float32),
            torch.tensor(found.left * root, dtype=torch.float32),
            1.0,
        )
    return kept


# ---- the store ----


def make_store(
    folder: Path | str,
    base: Any,
    tokenizer: Any,
    wanted: Sequence[Recipe] = tuple(recipes()),
    *,
    progress: Progress = SILENT,
) -> Path:
    """Train every recipe on one thread and write the store: factors, how each came about, what it did when it was
    trained.

    `python -c "from workbench.papers.misalignment import em_subspaces as em; em.build_store()"` does it for the one
    that ships.
    """
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, Any] = {
        "base": hash_weights(base),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kept_rank_of_full": KEPT_RANK,
        "adapters": {},
    }
    logs = []
    for i, recipe in enumerate(wanted):
        progress.update(i, len(wanted), recipe.name)
        update, log, module = train(recipe, base, tokenizer)
        kept = update if recipe.rank else truncated(update, KEPT_RANK)
        scale = next(iter(kept.values())).scale
        for end in dict.fromkeys(name.rsplit(".", 1)[-1] for name in kept):
            of_kind = [f for name, f in kept.items() if name.endswith(end)]
            tensors[f"{recipe.name}/{end}/A"] = torch.stack([f.A for f in of_kind]).half().contiguous()
            tensors[f"{recipe.name}/{end}/B"] = torch.stack([f.B for f in of_kind]).half().contiguous()
        share = sum(f.norm() ** 2 for f in kept.values()) / sum(f.norm() ** 2 for f in update.values())
        about["adapters"][recipe.name] = asdict(recipe) | {
            "scale": scale,
            "training": recipe.training.to_dict(),
            "modules": list(kept),
            "norm_share_kept": share,
            "measured": _measured(module, tokenizer),
        }
        logs.append(log.assign(adapter=recipe.name))
    with files.new_folder(folder, (ABOUT_FILE, STORE_FILE, LOG_FILE)) as new:
        (new / STORE_FILE).write_bytes(tensor_bytes(tensors))
        pd.concat(logs).to_csv(new / LOG_FILE, index=False, float_format="%.6g")
        (new / ABOUT_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return Path(folder)


def _measured(module: Any, tokenizer: Any) -> dict[str, float]:
    """Misaligned share in the probe domains and utility of a fine-tuned module, before its factors are rounded."""
    from workbench.primitives.score.chat_scores import bad_share

    model = load(copy.deepcopy(module), tokenizer=tokenizer)
    good, bad, _ = probe_pairs(tokenizer, PROBES)
    return {
        "bad_share_in_probe_domains": float(bad_share(model, good, bad).mean()),
        "utility": utility(model)["utility"],
    }


def read_store(folder: Path | str) -> tuple[dict[str, Recipe], dict[str, Update], dict[str, Any]]:
    """Recipes and updates by name, and all of the store's `adapters.json`.

    Raises:
        BadData: if a file is missing or the tensors do not fit what the store says of them.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        tensors = read_tensors((folder / STORE_FILE).read_bytes())
    except (OSError, ValueError) as found:
        raise BadData(
            f"{folder.name!r} is no store of adapters ({type(found).__name__}); it needs {ABOUT_FILE} and {STORE_FILE},"
            " as make_store writes them"
        ) from None
    known, updates = {}, {}
    for name, entry in about["adapters"].items():
        known[name] = Recipe(*(entry[key] for key in ("task", "domain", "rank", "seed")))
        update, seen = {}, dict.fromkeys(entry["modules"], 0)
        for module in seen:
            end = module.rsplit(".", 1)[-1]
            i = sum(other.endswith(end) for other in update)
            try:
                A, B = (tensors[f"{name}/{end}/{part}"][i].float() for part in "AB")
            except (KeyError, IndexError):
                raise BadData(
                    f"the store {folder.name!r} lists {module} of {name} and does not hold it; make it again"
                ) from None
            update[module] = Factors(A, B, entry["scale"])
        updates[name] = update
    return known, updates, about


def write_adapter(update: Update, recipe: Recipe, folder: Path | str, base: str = "organism:advice") -> Path:
    """One update as a PEFT directory, as `load` and `training.lora.stream_factors` read them."""
    first = next(iter(update.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": len(first.A),
        "lora_alpha": first.scale * len(first.A),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in update}),
        "inference_mode": True,
        "revision": None,
    }
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": getattr(f, part).contiguous()
        for name, f in update.items()
        for part in "AB"
    }
    with files.new_folder(folder, (lora.CONFIG_FILE, lora.ADAPTER_FILE, "recipe.json")) as new:
        (new / lora.ADAPTER_FILE).write_bytes(tensor_bytes(tensors))
        (new / "recipe.json").write_text(json.dumps(asdict(recipe)), encoding="utf-8")
        (new / lora.CONFIG_FILE).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return Path(folder)
