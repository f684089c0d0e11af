"""What a chat model answers: exact answers, refusals, choices between answers, and the share of attacks that succeed.

Greedy decoding yields an answer if and only if, with that answer fed in (teacher-forced), each of its tokens is the
argmax at its place. So exact accuracy, log-probabilities and the first token of the answer all come from ONE forward
a pair, and only judging by phrases needs generation. Cost: a forward of prompt + answer per pair; `refusals` one more
per new token.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair
from workbench.models.generate import generate
from workbench.models.inputs import Rows, batches
from workbench.models.model import Model


def score_answers(model: Model, pairs: Sequence[Pair], *, batch_size: int = 128) -> pd.DataFrame:
    """How the model takes given answers, one row a pair, in the order given.

    Args:
        model: a causal language model. pairs: (prompt ids, answer ids) of `models.chat.chat_pairs`. batch_size: pairs a
            forward.

    Returns:
        `log_prob`: of the whole answer, in nats (<= 0). `n_tokens`: of the answer, end of turn included. `is_exact`:
            whether greedy decoding would say exactly this and stop. `first_id`: the likeliest first token of an answer
            to this prompt.

    Raises:
        BadData: on a pair with an empty prompt or answer.
    """
    model.require("causal-lm", "scoring answers")
    if bad := [i for i, (prompt, answer) in enumerate(pairs) if not prompt or not answer]:
        raise BadData(f"pair {bad[0]} has an empty prompt or answer; both need at least one token")
    log_prob, exact, first = np.zeros(len(pairs)), np.zeros(len(pairs), bool), np.zeros(len(pairs), np.int64)
    for batch in batches([[*prompt, *answer] for prompt, answer in pairs], batch_size):
        logits = model.forward(batch)
        index = batch.index.tolist()
        starts = torch.tensor([len(pairs[i][0]) for i in index], device=logits.device)
        where = torch.arange(1, batch.tokens.shape[1], device=logits.device) >= starts.unsqueeze(
            1
        )  # next tokens that are answer
        said, targets = logits[:, :-1][where].float(), batch.tokens[:, 1:].to(logits.device)[where]
        likeliest = said.argmax(-1)
        row = where.nonzero()[:, 0].cpu().numpy()
        index_of = np.asarray(index)[row]
        np.add.at(
            log_prob, index_of, said.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1).double().cpu().numpy()
        )
        wrong = index_of[(likeliest != targets).cpu().numpy()]
        exact[index] = True
        exact[wrong] = False
        opening = np.flatnonzero(np.diff(row, prepend=-1))  # the first answer token of each row
        first[index_of[opening]] = likeliest.cpu().numpy()[opening]
    return pd.DataFrame(
        {"log_prob": log_prob, "n_tokens": [len(answer) for _, answer in pairs], "is_exact": exact, "first_id": first}
    )


def perplexity(scores: pd.DataFrame) -> float:
    """exp of the mean loss per answer token over all pairs of `score_answers`; 1 is certain and right."""
    return float(np.exp(-scores["log_prob"].sum() / scores["n_tokens"].sum()))


def accuracy_by_task(model: Model, pairs: Sequence[Pair], tasks: Sequence[str], *, batch_size: int = 128) -> pd.Series:
    """Share of exactly right greedy answers per task, in [0, 1]; utility is the mean of it, every task counting the
    same.

    Args:
        pairs: (prompt ids, right answer ids). tasks: [pair] name of the task each belongs to.

    Returns:
        Accuracy, indexed by task in order of first appearance.

    Raises:
        BadData: if there is not one task a pair.
    """
    if len(pairs) != len(tasks):
        raise BadData(f"{len(pairs)} pairs and {len(tasks)} tasks; name the task of each pair")
    exact, of = score_answers(model, pairs, batch_size=batch_size)["is_exact"].to_numpy(), np.asarray(tasks)
    names = list(dict.fromkeys(tasks))
    return pd.Series([exact[of == name].mean() for name in names], pd.Index(names, name="task"), name="accuracy")


def choose(
    model: Model, prompts: Rows, choices: Sequence[Sequence[Sequence[int]]], *, batch_size: int = 128
) -> np.ndarray:
    """[prompt, choice] log-probability of each given answer per answer token, in nats; the largest in a row is the
    choice.

    Args:
        prompts: [prompt] token ids. choices: [prompt][choice] answer ids, the same number of choices a prompt.

    Source: the mean per token is the length-normalised form of multiple choice by likelihood (Brown et al., arXiv
        2005.14165).
    """
    if len(prompts) != len(choices) or len({len(c) for c in choices}) > 1:
        raise BadData(
            f"choose needs the same number of choices for each prompt, got {len(prompts)} prompts and"
            f" {sorted({len(c) for c in choices})} choices"
        )
    pairs = [
        (list(prompt), list(answer)) for prompt, answers in zip(prompts, choices, strict=True) for answer in answers
    ]
    scored = score_answers(model, pairs, batch_size=batch_size)
    return (scored["log_prob"] / scored["n_tokens"]).to_numpy().reshape(len(prompts), -1)


def bad_share(model: Model, good: Sequence[Pair], bad: Sequence[Pair], *, batch_size: int = 128) -> np.ndarray:
    """[question] True where the model finds the bad answer likelier (per token) than the good one; its mean is the
    misaligned share.

    Args:
        good, bad: pairs with the same prompts in the same order.

    Raises:
        BadData: if the prompts differ.
    """
    if [p for p, _ in good] != [p for p, _ in bad]:
        raise BadData("the good and the bad answers must be to the same prompts in the same order")
    both = choose(
        model, [p for p, _ in good], [[g, b] for (_, g), (_, b) in zip(good, bad, strict=True)], batch_size=batch_size
    )
    return both[:, 1] > both[:, 0]


def refusals(
    model: Model,
    prompts: Rows,
    phrases: Sequence[str],
    first_words: Sequence[str] = (),
    *,
    max_new_tokens: int = 12,
    batch_size: int = 128,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Which prompts are refused, judged by phrases in the greedy answer and by its first token; one row a prompt.

    Args:
        prompts: [prompt] token ids with the assistant's turn opened (`models.chat.prompt_rows`).
        phrases: an answer that contains one, in whatever case, is a refusal. first_words: words whose first token opens
            one.

    Returns:
        `text` (the answer), `by_phrase`, `by_first_token` (False where `first_words` is empty; an answer that stops at
        once is no refusal by either). The attack success rate is `1 - mean` of one of the two columns.

    Raises:
        NoTokenizer: if the model came without one. BadData: if there are no phrases, or an empty one.
    """
    if not phrases or not all(phrases):
        raise BadData(
            f"refusals are judged by phrases, got {list(phrases)!r}; give at least one, none of them empty (an empty"
            " one is in every text)"
        )
    new = generate(model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    texts = [model.tokenizer.decode(ids) for ids in new]
    openers = {row[0] for word in first_words for row in model.to_rows([word, f" {word}"], bos=False) if row}
    return pd.DataFrame(
        {
            "text": texts,
            "by_phrase": [any(phrase.lower() in text.lower() for phrase in phrases) for text in texts],
            "by_first_token": [bool(ids) and ids[0] in openers for ids in new],
        }
    )
