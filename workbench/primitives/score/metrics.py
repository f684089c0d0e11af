"""Metrics on logits that say which positions they read, so that a sweep computes no others.

Each is made for a set of examples (the rows of a run, in order) and applied to any batch of rows that are copies of
them: `compute(logits, example)` with logits [row, read_pos, d_vocab] at the read positions only, and example [row]
saying which example each row is. Values are per row; nothing is averaged here.
Cost: a softmax over the vocabulary at most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from workbench.core.errors import BadData, DegenerateBaseline

Ids = Sequence[int] | torch.Tensor


@dataclass(frozen=True)
class Metric:
    """A number per row from logits at some positions.

    positions: which positions of a row are read, negative from the end; None reads all of them.
    n_examples: how many examples it knows; None if it does not depend on the example.
    """

    name: str
    unit: str
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    positions: tuple[int, ...] | None = (-1,)
    n_examples: int | None = None

    def __call__(self, logits: torch.Tensor, example: torch.Tensor | None = None) -> torch.Tensor:
        """[row, pos, d_vocab] logits at ALL positions -> [row] values in `unit`, float32.

        Args:
            logits: of whole rows. example: [row] which example each row is; counted from 0 if not given.
        """
        example = torch.arange(len(logits), device=logits.device) if example is None else example
        return self.at_read(logits if self.positions is None else logits[:, list(self.positions)], example)

    def of(self, index: Sequence[int] | np.ndarray) -> "Metric":
        """The same metric for some of its examples, renumbered from 0. index: [example] their numbers here."""
        chosen, compute = torch.as_tensor(np.asarray(index), dtype=torch.long), self.compute
        if self.n_examples is not None and len(chosen) and int(chosen.max()) >= self.n_examples:
            raise BadData(
                f"metric {self.name} was made for {self.n_examples} examples, and example {int(chosen.max())} was"
                " asked for"
            )
        return replace(
            self,
            compute=lambda logits, example: compute(logits, chosen.to(example.device)[example]),
            n_examples=len(chosen),
        )

    def at_read(self, logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        """[row, read_pos, d_vocab] logits at the read positions only -> [row], float32.

        Raises:
            BadData: if there are more examples than the metric was made for.
        """
        if self.n_examples is not None and int(example.max()) >= self.n_examples:
            raise BadData(
                f"metric {self.name} was made for {self.n_examples} examples, and example {int(example.max())} was run"
            )
        return self.compute(logits.float(), example)


def _ids(ids: Ids) -> torch.Tensor:
    return torch.as_tensor(list(ids) if not isinstance(ids, torch.Tensor) else ids, dtype=torch.long)


def _at(values: torch.Tensor, ids: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """[row, d_vocab] values -> [row], each row's own answer's."""
    own = ids.to(values.device)[example]
    if int(own.min()) < 0 or int(own.max()) >= values.shape[-1]:
        raise BadData(
            f"an answer has id {int(own.min()) if int(own.min()) < 0 else int(own.max())}, and the model knows tokens 0"
            f" to {values.shape[-1] - 1}"
        )
    return values.gather(-1, own.unsqueeze(-1)).squeeze(-1)


def logit_diff(answers: Ids, others: Ids, pos: int = -1) -> Metric:
    """Logit of the right answer minus logit of the wrong one, in logits; positive where the model prefers the answer.

    Args:
        answers: [example] token ids. others: [example] token ids.

    Raises:
        BadData: if there are more of one than of the other; when it is computed, on ids that the model does not have.
    """
    right, wrong = _ids(answers), _ids(others)
    if len(right) != len(wrong):
        raise BadData(
            f"every example needs an answer and another one, and there are {len(right)} answers and {len(wrong)} others"
        )

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        return _at(logits[:, 0], right, example) - _at(logits[:, 0], wrong, example)

    return Metric("logit_diff", "logits", compute, (pos,), len(right))


def probability(answers: Ids, pos: int = -1) -> Metric:
    """Probability of the answer at `pos`, in [0, 1]."""
    right = _ids(answers)

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        return _at(logits[:, 0].softmax(-1), right, example)

    return Metric("probability", "probability", compute, (pos,), len(right))


def answer_loss(answers: Ids, pos: int = -1) -> Metric:
    """Negative log-probability of the answer at `pos`, in nats."""
    right = _ids(answers)

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        return -_at(logits[:, 0].log_softmax(-1), right, example)

    return Metric("loss", "nats", compute, (pos,), len(right))


def sequence_loss(tokens: torch.Tensor | Sequence[Sequence[int]]) -> Metric:
    """Mean next-token loss over a whole row, in nats. tokens: [example, pos], or rows of any lengths from 2."""
    if any(len(row) < 2 for row in tokens):
        raise BadData("a loss over a row needs at least two tokens, one to read and one to predict")
    rows = [torch.as_tensor(row, dtype=torch.long) for row in tokens]

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        targets = torch.stack([rows[int(i)] for i in example]).to(logits.device)[:, 1:]
        return -logits[:, :-1].log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).mean(-1)

    return Metric("loss", "nats", compute, None, len(rows))


def kl_div(reference: torch.Tensor | Sequence[torch.Tensor], pos: int = -1) -> Metric:
    """KL(reference || run) of the next-token distributions at `pos`, in nats; 0 where they agree.

    Args:
        reference: [example, pos, d_vocab] logits of the reference run, or one [pos, d_vocab] per row.
    """
    log_p = torch.stack([row[pos] for row in reference]).float().log_softmax(-1)

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        p = log_p.to(logits.device)[example]
        return (p.exp() * (p - logits[:, 0].log_softmax(-1))).sum(-1)

    return Metric("kl_div", "nats", compute, (pos,), len(reference))


def rank(answers: Ids, pos: int = -1) -> Metric:
    """How many tokens are likelier than the answer at `pos`; 0 is the top."""
    right = _ids(answers)

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        own = _at(logits[:, 0], right, example)
        return (logits[:, 0] > own.unsqueeze(1)).sum(1).float()

    return Metric("rank", "tokens above", compute, (pos,), len(right))


def recovered(
    patched: torch.Tensor, clean: torch.Tensor, corrupted: torch.Tensor, *, eps: float = 1e-6
) -> torch.Tensor:
    """Share of the clean-minus-corrupted difference that a patch restores.

    0 means the patch did nothing, 1 means it restored the clean behaviour; values outside [0, 1] are real and are kept.

    Args:
        patched: [*cell, example]. clean: [example]. corrupted: [example]. eps: smallest meaningful |clean - corrupted|.

    Returns:
        [*cell, example], unitless.

    Raises:
        DegenerateBaseline: if |clean - corrupted| < eps for some example, naming how many.

    Source: Zhang & Nanda, "Towards Best Practices of Activation Patching in Language Models" (arXiv 2309.16042).
    """
    gap = clean - corrupted
    if small := int((gap.abs() < eps).sum()):
        raise DegenerateBaseline(
            f"clean and corrupted agree within {eps:g} on {small} of {gap.numel()} examples, so a recovered share has"
            " no meaning there; drop them"
        )
    return (patched - corrupted) / gap
