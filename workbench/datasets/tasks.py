"""Evaluation tasks as token rows: what to run, and how logits become a score per input.

Two kinds: next-token accuracy on sequences, and multiple choice by log-likelihood. Both give `rows` (unpadded ids) and
`score(logits, batch indices) -> correct`, so a sweep needs to know nothing else about them.
Multiple-choice files are JSONL, one object a line: {"question": str, "choices": [str, ...], "answer": index,
"subject": str (optional)}; the hub's `cais/mmlu` has the same fields.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from workbench.core.errors import BadData

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, eq=False)
class NextTokenTask:
    """Share of counted positions whose next token is the most likely one.

    tokens: [row, pos]. counted: [row, pos - 1] which predictions count.
    """

    tokens: np.ndarray
    counted: np.ndarray
    name: str = "next-token accuracy"

    @property
    def n_inputs(self) -> int:
        return len(self.tokens)

    @property
    def rows(self) -> list[list[int]]:
        return self.tokens.tolist()

    def score(self, logits: torch.Tensor, index: torch.Tensor) -> np.ndarray:
        """[batch, pos, d_vocab] logits of rows `index` -> [batch] accuracy in [0, 1]; nan where nothing counts."""
        right = logits[:, :-1].argmax(-1).cpu().numpy() == self.tokens[index.numpy(), 1:]
        counted = self.counted[index.numpy()]
        n = counted.sum(1)
        return np.where(n > 0, (right & counted).sum(1) / np.maximum(n, 1), np.nan)

    @property
    def warnings(self) -> list[str]:
        empty = int((~self.counted.any(1)).sum())
        return (
            [f"{empty} of {self.n_inputs} inputs have no position that counts and are left out of accuracies"]
            if empty
            else []
        )


@dataclass(frozen=True)
class ChoiceItem:
    """One multiple-choice question."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True, eq=False)
class ChoiceTask:
    """Multiple choice where each choice is one token after a shared prompt (letters, as in MMLU): one row an item.

    prompts: token ids per item. options: [item][choice] token id. answers: [item] index of the right choice.
    """

    prompts: list[list[int]]
    options: list[list[int]]
    answers: np.ndarray
    name: str = "multiple-choice accuracy"
    warnings: list[str] = field(default_factory=list)

    @property
    def n_inputs(self) -> int:
        return len(self.prompts)

    @property
    def rows(self) -> list[list[int]]:
        return self.prompts

    def score(self, logits: torch.Tensor, index: torch.Tensor) -> np.ndarray:
        """[batch, pos, d_vocab] logits of unpadded rows `index` -> [batch] 1.0 where the right letter is the
        likeliest.
        """
        last = logits[:, -1].float().cpu()
        picked = [
            int(torch.argmax(row[torch.tensor(self.options[int(i)])])) for row, i in zip(last, index, strict=True)
        ]
        return (np.array(picked) == self.answers[index.numpy()]).astype(float)


def read_choice_items(path: Path | str) -> list[ChoiceItem]:
    """Questions of a JSONL file.

    Raises:
        BadData: naming file and line of the first row that cannot be used; none is dropped silently.
    """
    path, items = Path(path), []
    if not path.is_file():
        raise BadData(f"no file {path.name!r}; give a JSONL file with question, choices and answer on every line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as found:
        raise BadData(f"{path.name} is not UTF-8 text (byte {found.start}); save it as UTF-8 JSONL") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(_choice_item(json.loads(line)))
        except (ValueError, KeyError, TypeError) as found:
            why = f"lacks {found}" if isinstance(found, KeyError) else str(found)
            raise BadData(
                f"{path.name} line {number}: {why}; wanted {{'question': str, 'choices': [str, ...], 'answer': index}}"
            ) from None
    if not items:
        raise BadData(f"{path.name} holds no questions")
    return items


def _choice_item(row: dict) -> ChoiceItem:
    if not isinstance(row["choices"], (list, tuple)):
        raise ValueError(f"choices must be a list, got {row['choices']!r}")
    choices, answer = tuple(str(c) for c in row["choices"]), row["answer"]
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        answer = LETTERS.index(answer)
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} choices where 2 to {len(LETTERS)} work")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"answer {row['answer']!r} is not one of its {len(choices)} choices")
    return ChoiceItem(str(row["question"]), choices, answer, str(row.get("subject", "")))


def hub_choice_items(name: str, *, config: str | None, split: str, n: int, seed: int) -> list[ChoiceItem]:
    """`n` questions of a hub data set (or a local directory `datasets` can read), drawn by `seed`."""
    import datasets

    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as found:  # datasets raises a different class for each way a source can be missing
        raise BadData(
            f"data set {name!r} ({config or 'no config'}, split {split}) could not be read:"
            f" {str(found).splitlines()[0]}. Give a local JSONL file instead"
        ) from found
    chosen = np.random.default_rng(seed).permutation(len(table))[:n]
    return [_choice_item(table[int(i)]) for i in chosen]


def format_question(item: ChoiceItem, *, with_answer: bool) -> str:
    """The question, lettered choices and 'Answer:' with or without the letter - the layout common for MMLU."""
    lines = [
        item.question.strip(),
        *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)),
        "Answer:",
    ]
    return "\n".join(lines) + (f" {LETTERS[item.answer]}" if with_answer else "")


def choice_task(
    items: Sequence[ChoiceItem],
    shots: Sequence[ChoiceItem],
    to_rows: Callable[..., list[list[int]]],
    *,
    n_ctx: int | None = None,
) -> ChoiceTask:
    """Tokenise questions behind `shots` worked examples.

    Args:
        items: the questions to score. shots: examples shown before each, with their answers.
        to_rows: `Model.to_rows`.
        n_ctx: context of the model; a prompt that does not fit loses shots from the front, and the task says so.

    Raises:
        BadData: if two letters share a token, or a question does not fit even without shots.
    """
    text = {letter: to_rows(f" {letter}", bos=False)[0] for letter in LETTERS}
    option = {letter: ids[-1] for letter, ids in text.items()}
    widest = max(len(i.choices) for i in items)
    used = [option[letter] for letter in LETTERS[:widest]]
    if len(set(used)) < widest:
        raise BadData(
            "the tokenizer gives two answer letters the same token, so choices cannot be told apart by their letter"
        )
    prompts, warnings = [], []
    for item in items:
        for n_shots in range(len(shots), -1, -1):
            parts = [format_question(s, with_answer=True) for s in shots[len(shots) - n_shots :]]
            row = to_rows("\n\n".join([*parts, format_question(item, with_answer=False)]))[0]
            if n_ctx is None or len(row) <= n_ctx:
                break
        else:
            raise BadData(f"a question of {len(row)} tokens does not fit the context of {n_ctx}")
        if n_shots < len(shots):
            warnings.append(f"question {len(prompts)} keeps {n_shots} of {len(shots)} shots to fit {n_ctx} tokens")
        prompts.append(row)
    return ChoiceTask(
        prompts, [used[: len(i.choices)] for i in items], np.array([i.answer for i in items]), warnings=warnings[:5]
    )
