"""From words to numbers: prompts as people type them to aligned tokens, and named metrics of the answers that should
follow.

Every refusal shows the tokens, because what a tokenizer made of a word is what goes wrong first: an answer of two
tokens has no single logit, and a prompt one token longer than its twin would be patched one place off.
Cost: tokenising; no forward.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.core.errors import BadData, UnknownName
from workbench.models.inputs import Rows, prompt_ids
from workbench.models.model import Model
from workbench.primitives.score import metrics
from workbench.primitives.score.metrics import Metric

METRICS = {
    "logit_diff": "Logit of the answer minus the other answer",
    "probability": "Probability of the answer",
    "loss": "Loss of the answer",
    "accuracy": "Answer is the likeliest token",
    "next_token_loss": "Loss over all next tokens",
    "next_token_accuracy": "Accuracy over all next tokens",
}
OF_ANSWERS = ("logit_diff", "probability", "loss", "accuracy")  # the others need no answer
SHOWN_TOKENS = 40


def one_token(model: Model, word: str) -> int:
    """The id of a word that is one token; a space in front counts.

    Raises:
        BadData: if it is unknown, none or several, with the tokens it is, and with the spaced word where that is one.
    """
    ids = prompt_ids(model, word, bos=False) if word else []
    if len(ids) == 1 and ids[0] == getattr(model.tokenizer, "unk_token_id", None):
        raise BadData(f"{word!r} is not in the vocabulary of {model.name}")
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise BadData("an answer is empty; type a word that is one token")
    spaced = "" if word.startswith(" ") else f" {word}"
    hint = (
        f"; {spaced!r}, with a space in front, is one"
        if spaced and len(prompt_ids(model, spaced, bos=False)) == 1
        else ""
    )
    raise BadData(f"{word!r} is {len(ids)} tokens ({joined(model.to_strings(ids))}), and it must be one{hint}")


def aligned_pair(model: Model, clean: str, corrupted: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts as [1, pos] ids that correspond place by place.

    Raises:
        BadData: if one is empty, the two are the same, or they differ in length; then with both tokenisations.
    """
    for name, text in (("clean", clean), ("corrupted", corrupted)):
        if not text.strip():
            raise BadData(f"the {name} prompt is empty; type one")
    one, other = prompt_ids(model, clean), prompt_ids(model, corrupted)
    if len(one) != len(other):
        shown = [joined(model.to_strings(row)) for row in (one, other)]
        raise BadData(
            f"clean has {len(one)} tokens and corrupted {len(other)}, and a patch needs one for one. Clean: {shown[0]}"
            f" Corrupted: {shown[1]}"
        )
    if one == other:
        raise BadData(
            f"clean and corrupted are the same {len(one)} tokens, so there is nothing to patch; change at least one"
            " word"
        )
    return torch.tensor([one]), torch.tensor([other])


def joined(tokens: Sequence[str]) -> str:
    """Tokens in one line, parted by bars; the middle of a long prompt is left out."""
    tokens = [t.replace("\n", "\\n") for t in tokens]
    if len(tokens) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        tokens = [*tokens[:half], f"... {len(tokens) - 2 * half} more ...", *tokens[-half:]]
    return "|".join(tokens)


def metric_named(
    model: Model, name: str, rows: Rows, answers: Sequence[str] = (), others: Sequence[str] = ()
) -> Metric:
    """A metric of METRICS for these prompts.

    Args:
        rows: token ids per prompt. answers, others: one word each per prompt, where the metric reads them.

    Raises:
        UnknownName: on a name that is no metric. BadData: on a missing answer, or one that is not one token.
    """
    if name not in METRICS:
        raise UnknownName.among("metric", name, METRICS)
    if name == "next_token_loss":
        return replace(metrics.sequence_loss(rows), name=name)
    if name == "next_token_accuracy":
        return next_token_accuracy(rows)
    right = _ids(model, name, rows, answers, "answer")
    if name == "logit_diff":
        wrong = _ids(model, name, rows, others, "other answer")
        if same := [word for word, a, b in zip(answers, right, wrong, strict=True) if a == b]:
            raise BadData(
                f"answer and other answer are both {same[0]!r}, so their logits never differ; choose another word"
            )
        return metrics.logit_diff(right, wrong)
    return {"probability": metrics.probability, "loss": metrics.answer_loss, "accuracy": answer_accuracy}[name](right)


def _ids(model: Model, name: str, rows: Rows, words: Sequence[str], what: str) -> list[int]:
    if len(words) != len(rows):
        raise BadData(f"{name} needs one {what} for each prompt, and there are {len(rows)} prompts and {len(words)}")
    return [one_token(model, word) for word in words]


def answer_accuracy(answers: Sequence[int] | torch.Tensor, pos: int = -1) -> Metric:
    """1 where the answer is the likeliest token at `pos`, else 0. It has no gradient."""
    right = torch.as_tensor(answers, dtype=torch.long)

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        return (logits[:, 0].argmax(-1) == right.to(logits.device)[example]).float()

    return Metric("accuracy", "share right", compute, (pos,), len(right))


def next_token_accuracy(rows: Rows | torch.Tensor) -> Metric:
    """Share of a row's next tokens that are the likeliest ones, in [0, 1]. rows: token ids, any lengths from 2."""
    if any(len(row) < 2 for row in rows):
        raise BadData("a next token needs at least two tokens, one to read and one to predict")
    ids = [torch.as_tensor(row, dtype=torch.long) for row in rows]

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        targets = torch.stack([ids[int(i)] for i in example]).to(logits.device)[:, 1:]
        return (logits[:, :-1].argmax(-1) == targets).float().mean(-1)

    return Metric("next_token_accuracy", "share right", compute, None, len(ids))
