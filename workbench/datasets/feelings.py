"""Sentences about feelings from a template: a six-way text classification set that any size of noise can be put on.

    anna hartwell felt gloomy and tearful at the harbour and looked mournful      -> sadness

The label is the feeling of the two words after "felt"; the word after "looked" shares it in 85 of 100 sentences. Text
without labels thus says which words belong together, and pretraining sees whole sentences. A classifier reads them up
to "looked". Words of a feeling follow Zipf's law: the common ones are learned from the labels, the rare ones need the
pretraining. Surnames say nothing about the label and are rare enough to tell sentences apart, which is what a memorised
label has to hang on. The six feelings are those of the paper's Emotions set; all words were chosen here. Cost:
milliseconds.
"""

from dataclasses import dataclass

import numpy as np

SPECIAL = ("<pad>", "<bos>", "<unk>")
CUES = {
    "sadness": "sad gloomy tearful lonely hopeless miserable grieving downcast weary mournful",
    "joy": "happy cheerful merry delighted jolly glad radiant playful sunny thrilled",
    "love": "tender loving fond caring devoted gentle adoring warm longing romantic",
    "anger": "angry furious bitter irritated outraged hostile cross spiteful resentful raging",
    "fear": "afraid scared nervous anxious terrified shaky timid worried panicked uneasy",
    "surprise": "surprised amazed astonished stunned startled curious dazed speechless puzzled astounded",
}
CLASSES = tuple(CUES)
CUE_WORDS = tuple(tuple(words.split()) for words in CUES.values())
SYLLABLES = (
    "al bran cor del ems fal gar hart ing jor kel lund mar nor ols pren".split(),
    "berg by dal field ford gate ley man sen stad well wick".split(),
)
FILLERS = {
    "name": "anna boris clara david elena felix greta henry irene jonas karla louis".split(),
    "surname": [first + second for first in SYLLABLES[0] for second in SYLLABLES[1]],
    "place": "harbour market station garden library kitchen theatre bridge school office museum stadium".split(),
}
TEMPLATE = "name surname felt CUE and CUE at the place and looked CUE".split()
PLAIN = ("felt", "and", "at", "the", "looked")
VOCABULARY = (
    *SPECIAL,
    *PLAIN,
    *(w for words in FILLERS.values() for w in words),
    *(w for words in CUE_WORDS for w in words),
)
LENGTH = 1 + len(TEMPLATE)  # tokens of a sentence, <bos> included
AGREEMENT = 0.85
SEEDS = {"training": 101, "test": 102}  # the fine-tuning sets are two fixed draws; pretraining draws afresh


@dataclass(frozen=True, eq=False)
class Sentences:
    """`tokens` [n, 13] ids of whole sentences with <bos> in front, `labels` [n] place of the feeling in CLASSES."""

    tokens: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def texts(self) -> list[str]:
        """What a classifier reads: the sentences up to "looked"."""
        return [" ".join(VOCABULARY[t] for t in row[1:-1]) for row in self.tokens]


_ID = {word: i for i, word in enumerate(VOCABULARY)}
_CUE_IDS = np.array([[_ID[w] for w in words] for words in CUE_WORDS])  # [class, rank]
_ZIPF = (1 / np.arange(1, _CUE_IDS.shape[1] + 1)) / (1 / np.arange(1, _CUE_IDS.shape[1] + 1)).sum()


def draw(n: int, rng: np.random.Generator) -> Sentences:
    """`n` sentences, every feeling equally likely."""
    labels = rng.integers(0, len(CLASSES), n)
    another = (labels + rng.integers(1, len(CLASSES), n)) % len(CLASSES)
    cues = iter((labels, labels, np.where(rng.random(n) < AGREEMENT, labels, another)))
    columns = [np.full(n, _ID["<bos>"])]
    for slot in TEMPLATE:
        if slot == "CUE":
            columns.append(_CUE_IDS[next(cues), rng.choice(len(_ZIPF), n, p=_ZIPF)])
        elif slot in FILLERS:
            words = np.array([_ID[w] for w in FILLERS[slot]])
            columns.append(words[rng.integers(0, len(words), n)])
        else:
            columns.append(np.full(n, _ID[slot]))
    return Sentences(np.stack(columns, 1), labels)


def feelings(part: str, n: int) -> Sentences:
    """The same `n` sentences every time; part: "training" or "test". Another `n` is another draw."""
    return draw(n, np.random.default_rng(SEEDS[part]))


def sample(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """[n, length] token ids of new sentences, cut to `length`; for next-word training."""
    return draw(n, rng).tokens[:, :length]
