"""The bigram-backcopy language: words follow a fixed chain, except that after a trigger word the word before it
repeats.

    <bos> river stone lamp again lamp bread ...      ("again" is a trigger: the next word is "lamp" once more)

Only at triggers does attention have work to do, so heads that do it can rest everywhere else. The task is known from
the literature on active and dormant attention heads (from memory; the word list and numbers here are our own).
Cost: a few milliseconds for 32 sequences of 64 tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SPECIAL = ("<pad>", "<bos>", "<unk>")
TRIGGERS = ("again", "ditto", "echo")
WORDS = tuple(
    """apple beach bread brick cabin candle chair cloud copper corn daisy door eagle ember field flute forest garden
    glass grain harbor honey island ivory jacket kettle ladder lake lamp lemon maple market meadow mirror moon ocean
    olive orchard paper pebble pepper piano planet pond rain ribbon river road saddle salt sand ship silver snow stone
    table thread tower""".split()
)
VOCABULARY = SPECIAL + TRIGGERS + WORDS


@dataclass(frozen=True)
class BigramBackcopy:
    """The language: which word follows which, and how often a trigger comes.

    trigger_rate: chance that a trigger follows a word. with_bos: whether every sequence opens with <bos>.
    chain_seed: draws the fixed chain; part of the language, not of a sample.
    """

    trigger_rate: float = 0.1
    with_bos: bool = True
    chain_seed: int = 1234

    @cached_property
    def transitions(self) -> np.ndarray:
        """[word, next] probabilities; zero rows for specials and triggers, whose successors do not come from the
        chain.
        """
        rng = np.random.default_rng(self.chain_seed)
        first, table = len(SPECIAL) + len(TRIGGERS), np.zeros((len(VOCABULARY), len(VOCABULARY)))
        for word in range(first, len(VOCABULARY)):
            successors = rng.choice(np.arange(first, len(VOCABULARY)), size=4, replace=False)
            table[word, successors] = (1 - self.trigger_rate) * np.array([0.7, 0.15, 0.1, 0.05])
            table[word, len(SPECIAL) : first] = self.trigger_rate / len(TRIGGERS)
        return table

    @cached_property
    def _cumulative(self) -> np.ndarray:
        cumulative = self.transitions.cumsum(1)
        cumulative[:, -1] = 1.0  # rounding must not leave a draw without a word
        return cumulative

    def sample(self, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """[n, length] token ids. The first word is uniform; <bos>, if any, counts towards the length."""
        first_word = len(SPECIAL) + len(TRIGGERS)
        start = 1 if self.with_bos else 0
        tokens = np.full((n, length), VOCABULARY.index("<bos>"), dtype=np.int64)
        tokens[:, start] = rng.integers(first_word, len(VOCABULARY), n)
        for t in range(start + 1, length):
            previous = tokens[:, t - 1]
            drawn = (rng.random(n)[:, None] >= self._cumulative[previous]).sum(1)
            back = tokens[:, t - 2] if t >= start + 2 else drawn
            tokens[:, t] = np.where(is_trigger(previous), back, drawn)
        return tokens

    def predictable(self, tokens: np.ndarray) -> np.ndarray:
        """[n, length - 1] True where the next word follows from the context: everywhere but after <bos>."""
        return tokens[:, :-1] != VOCABULARY.index("<bos>")

    def repeated(self, tokens: np.ndarray) -> np.ndarray:
        """[n, length - 1] True where the next word is a repetition, which only attention can know: after a trigger."""
        return is_trigger(tokens[:, :-1])


def is_trigger(tokens: np.ndarray) -> np.ndarray:
    """Elementwise: is this token id a trigger word?"""
    return (tokens >= len(SPECIAL)) & (tokens < len(SPECIAL) + len(TRIGGERS))
