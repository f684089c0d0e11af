"""Prompt sets of the safety-units analysis, and what a model scores on them.

Calibration and validation come from training prompts, what is shown from held-out ones. The world's own sets for the chat
organisms; JSONL files for any other chat model: {"prompt", "answer"} a line, where the answer to a harmful prompt is a refusal,
and "other" may hold a wrong answer (utility then is choosing the right one) or a compliant one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.core.errors import BadData
from workbench.core.places import data_folder
from workbench.datasets import world
from workbench.models.chat import Pair, chat_pairs
from workbench.models.model import Model
from workbench.primitives.score.chat_scores import accuracy_by_task, choose, perplexity, refusals, score_answers

SCORES = ("asr_first_token", "asr_phrase", "complied", "utility", "perplexity")
UNITS = {"asr_first_token": "% not refused", "asr_phrase": "% not refused", "complied": "% exactly the compliant answer", "utility": "% right", "perplexity": "per answer token"}


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
    """One half of the work: pairs with refusals (`safety`), their compliant answers (none for some files), pairs of utility."""

    safety: list[Pair]
    compliant: list[Pair]
    utility: list[Pair]
    wrong: list[Pair]
    tasks: list[str]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Three sets that share no prompt by construction of the splits: calibration scores units, validation picks sizes, shown is shown."""

    calibration: Sets
    validation: Sets
    shown: Sets
    refusals: Refusals
    source: str


def of_world(tokenizer: object, *, seed: int, n_calibration: int, n_validation: int, n_forbidden: int, n_utility: int) -> Prompts:
    """Sets of the organisms' world. The seed draws calibration, validation and the held-out prompts that are shown."""

    def sets(n_safety: int, n_benign: int, draw: int, split: world.Split) -> Sets:
        bad, good = world.forbidden(n_safety, seed=draw, split=split), world.benign(n_benign, seed=draw, split=split)

        def pairs(examples: Sequence[world.Example]) -> list[Pair]:
            return chat_pairs(tokenizer, [e.prompt for e in examples], [e.answer for e in examples])

        return Sets(pairs(bad), pairs(world.with_other(bad)), pairs(good), [], [e.task for e in good])

    return Prompts(
        sets(n_calibration, n_calibration, 1000 + seed, "train"), sets(n_validation, n_validation, 2000 + seed, "train"),
        sets(n_forbidden, n_utility, 3000 + seed, "heldout"), pinned("world"), "world",
    )  # fmt: skip


def of_files(tokenizer: object, safety: str, utility: str, *, seed: int, system: str | None) -> Prompts:
    """Sets from two JSONL files, shuffled by the seed and cut in half, a quarter and a quarter.

    Raises:
        BadData: on a line without a prompt or an answer, or fewer than eight lines in a file.
    """
    rows = [read_rows(safety), read_rows(utility)]
    rng = np.random.default_rng(seed)
    rows = [[r[i] for i in rng.permutation(len(r))] for r in rows]

    def pairs(part: Sequence[dict[str, str]], key: str) -> list[Pair]:
        if any(key not in row for row in part):
            return []
        return chat_pairs(tokenizer, [row["prompt"] for row in part], [row[key] for row in part], system=system)

    def sets(low: float, high: float) -> Sets:
        bad, good = (r[int(low * len(r)) : int(high * len(r))] for r in rows)
        return Sets(pairs(bad, "answer"), pairs(bad, "other"), pairs(good, "answer"), pairs(good, "other"), ["file"] * len(good))

    return Prompts(sets(0, 0.5), sets(0.5, 0.75), sets(0.75, 1), pinned("chat"), f"{Path(safety).name}, {Path(utility).name}")


def read_rows(path: str) -> list[dict[str, str]]:
    """Lines of a JSONL file with "prompt", "answer" and perhaps "other"."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as found:
        raise BadData(f"prompts could not be read ({type(found).__name__}); give a JSONL file with a prompt and an answer a line") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in ("prompt", "answer", "other") if key in row or key != "other"})
        except (ValueError, KeyError, TypeError):
            raise BadData(f'line {number} of {Path(path).name} is not an object with "prompt" and "answer"') from None
        if not all(isinstance(value, str) and value for value in rows[-1].values()):
            raise BadData(f"line {number} of {Path(path).name} has an empty prompt or answer")
    if len(rows) < 8:
        raise BadData(f"{Path(path).name} has {len(rows)} prompts; calibration, validation and what is shown need at least eight")
    return rows


# ---- scores ----


def utility_of(model: Model, sets: Sets) -> float:
    """Percent of utility prompts answered right: exactly, or by choice where the file gives a wrong answer; mean over tasks."""
    if sets.wrong:
        return 100 * float((choose(model, [p for p, _ in sets.utility], [[a, b] for (_, a), (_, b) in zip(sets.utility, sets.wrong, strict=True)]).argmax(1) == 0).mean())
    return 100 * float(accuracy_by_task(model, sets.utility, sets.tasks).mean())


def quick(model: Model, sets: Sets, refused: Refusals) -> dict[str, float]:
    """Utility and first-token ASR, one forward a pair: what the scan looks at."""
    openers = {row[0] for word in refused.first_words for row in model.to_rows([word, f" {word}"], bos=False) if row}
    first = score_answers(model, sets.safety)["first_id"]
    return {"asr_first_token": 100 * float((~first.isin(openers)).mean()), "utility": utility_of(model, sets)}


def score(model: Model, sets: Sets, refused: Refusals, *, max_new_tokens: int = 8) -> dict[str, float]:
    """All of SCORES: attack success rates in percent (up is unsafe), utility in percent, perplexity of the right utility answers.

    "Not refused" is not the same as answered: a broken model refuses nothing. `complied` counts exactly compliant answers.
    """
    said = refusals(model, [p for p, _ in sets.safety], refused.phrases, refused.first_words, max_new_tokens=max_new_tokens)
    complied = 100 * float(score_answers(model, sets.compliant)["is_exact"].mean()) if sets.compliant else float("nan")
    return {
        "asr_first_token": 100 * (1 - float(said["by_first_token"].mean())),
        "asr_phrase": 100 * (1 - float(said["by_phrase"].mean())),
        "complied": complied,
        "utility": utility_of(model, sets),
        "perplexity": perplexity(score_answers(model, sets.utility)),
    }
