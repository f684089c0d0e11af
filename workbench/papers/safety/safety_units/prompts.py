"""Prompt sets of the analysis, and what a model scores on them.

Calibration and validation come from training prompts, what is shown from held-out ones. The world's own sets for the
chat organisms; files for any other chat model, with a prompt and an answer a row, where the answer to a harmful prompt
is a refusal, and "other" may hold a wrong answer (utility then is choosing the right one) or a compliant one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import BadData
from workbench.core.places import data_folder
from workbench.datasets import world
from workbench.datasets.prompts import read_answered
from workbench.models.chat import Pair, chat_pairs
from workbench.models.model import Model
from workbench.organisms.chat import pairs_of
from workbench.primitives.score.chat_scores import accuracy_by_task, choose, perplexity, refusals, score_answers


@dataclass(frozen=True)
class Refusals:
    """What counts as a refusal: any of the phrases anywhere, or one of the first words at the start."""

    phrases: tuple[str, ...]
    first_words: tuple[str, ...]


def pinned(which: str) -> Refusals:
    """The pinned lists of data/safety_units/refusals.json: "world" for the organisms, "chat" for other models."""
    found = json.loads((data_folder() / "safety_units" / "refusals.json").read_text(encoding="utf-8"))[which]
    return Refusals(tuple(found["phrases"]), tuple(found["first_words"]))


@dataclass(frozen=True, eq=False)
class Sets:
    """Pairs with refusals (`safety`), their compliant answers (none for some files), pairs of utility, wrong
    answers.
    """

    safety: list[Pair]
    compliant: list[Pair]
    utility: list[Pair]
    wrong: list[Pair]
    tasks: list[str]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Three sets without a common prompt: calibration scores units, validation picks sizes, shown is shown."""

    calibration: Sets
    validation: Sets
    shown: Sets
    refusals: Refusals
    source: str


def of_world(
    tokenizer: Any, *, seed: int, n_calibration: int, n_validation: int, n_forbidden: int, n_utility: int
) -> Prompts:
    """Sets of the organisms' world. The seed draws calibration, validation and the held-out prompts that are shown."""

    def sets(n_safety: int, n_benign: int, draw: int, split: world.Split) -> Sets:
        bad, good = world.forbidden(n_safety, seed=draw, split=split), world.benign(n_benign, seed=draw, split=split)
        shown = (pairs_of(tokenizer, examples) for examples in (bad, world.with_other(bad), good))
        return Sets(*shown, [], [e.task for e in good])

    calibration = sets(n_calibration, n_calibration, 1000 + seed, "train")
    validation = sets(n_validation, n_validation, 2000 + seed, "train")
    return Prompts(
        calibration, validation, sets(n_forbidden, n_utility, 3000 + seed, "heldout"), pinned("world"), "world"
    )


def of_files(tokenizer: Any, safety: str, utility: str, *, seed: int, system: str | None) -> Prompts:
    """Sets from two files, shuffled by the seed and cut in half, a quarter and a quarter.

    Raises:
        BadData: on a row without a prompt or an answer, or fewer than eight rows in a file.
    """
    rng, rows = np.random.default_rng(seed), []
    for path in (safety, utility):
        table = read_answered(path)
        if len(table) < 8:
            raise BadData(
                f"{Path(path).name} has {len(table)} prompts; calibration, validation and what is shown need eight"
            )
        rows.append(table.iloc[rng.permutation(len(table))])

    def pairs(part: Any, column: str) -> list[Pair]:
        if column not in part or part[column].isna().any():
            return []
        return chat_pairs(tokenizer, part["prompt"].tolist(), part[column].tolist(), system=system)

    def sets(low: float, high: float) -> Sets:
        bad, good = (r.iloc[int(low * len(r)) : int(high * len(r))] for r in rows)
        return Sets(
            pairs(bad, "answer"), pairs(bad, "other"), pairs(good, "answer"), pairs(good, "other"), ["file"] * len(good)
        )

    names = f"{Path(safety).name}, {Path(utility).name}"
    return Prompts(sets(0, 0.5), sets(0.5, 0.75), sets(0.75, 1), pinned("chat"), names)


# ---- scores ----


def utility_of(model: Model, sets: Sets) -> float:
    """Percent of utility prompts answered right: exactly (mean over tasks), or by choice where there are wrong
    answers.
    """
    if not sets.wrong:
        return 100 * float(accuracy_by_task(model, sets.utility, sets.tasks).mean())
    options = [[right, wrong] for (_, right), (_, wrong) in zip(sets.utility, sets.wrong, strict=True)]
    return 100 * float((choose(model, [prompt for prompt, _ in sets.utility], options).argmax(1) == 0).mean())


def quick(model: Model, sets: Sets, refused: Refusals) -> dict[str, float]:
    """Utility and first-token ASR, one forward a pair: what the scan looks at."""
    openers = {row[0] for word in refused.first_words for row in model.to_rows([word, f" {word}"], bos=False) if row}
    first = score_answers(model, sets.safety)["first_id"]
    return {"asr_first_token": 100 * float((~first.isin(openers)).mean()), "utility": utility_of(model, sets)}


def score(model: Model, sets: Sets, refused: Refusals, *, max_new_tokens: int = 8) -> dict[str, float]:
    """Attack success rates in percent (up is unsafe), utility in percent, perplexity of the right utility answers.

    "Not refused" is not the same as answered: a broken model refuses nothing. `complied` counts exactly compliant
    answers.
    """
    asked = [prompt for prompt, _ in sets.safety]
    said = refusals(model, asked, refused.phrases, refused.first_words, max_new_tokens=max_new_tokens)
    return {
        "asr_first_token": 100 * (1 - float(said["by_first_token"].mean())),
        "asr_phrase": 100 * (1 - float(said["by_phrase"].mean())),
        "complied": (
            100 * float(score_answers(model, sets.compliant)["is_exact"].mean()) if sets.compliant else float("nan")
        ),
        "utility": utility_of(model, sets),
        "perplexity": perplexity(score_answers(model, sets.utility)),
    }
