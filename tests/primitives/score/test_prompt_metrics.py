"""Prompts and answers in words: what is refused says which tokens were found; metrics are the formulas done by hand."""

import pytest
import torch

from workbench.core.errors import BadData, UnknownName
from workbench.models import load
from workbench.primitives.score.prompt_metrics import METRICS, OF_ANSWERS, aligned_pair, joined, metric_named, one_token


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


PROMPTS = ["apple beach bread apple", "apple bread"]
ANSWERS, OTHERS = ["beach", "beach"], ["bread", "apple"]


def test_a_word_is_one_token_or_the_sentence_shows_its_tokens(model):
    assert model.to_strings([one_token(model, "beach")]) == ["beach"]
    with pytest.raises(BadData, match=r"'apple beach' is 2 tokens \(apple\|beach\), and it must be one"):
        one_token(model, "apple beach")
    with pytest.raises(BadData, match="an answer is empty"):
        one_token(model, "")


def test_a_space_in_front_is_proposed_only_where_it_helps():
    class Pieces:
        """Cuts a word that has no space in front, as byte-level tokenizers do."""

        tokenizer = object()

        def to_rows(self, text, *, bos=None):
            return [[7]] if text == " Paris" else [[1, 2]]

        def to_strings(self, ids):
            return [{1: "Par", 2: "is", 7: " Paris"}[i] for i in ids]

    assert one_token(Pieces(), " Paris") == 7
    with pytest.raises(BadData, match=r"\(Par\|is\).*' Paris', with a space in front, is one"):
        one_token(Pieces(), "Paris")
    with pytest.raises(BadData) as found:
        one_token(Pieces(), "Rome")
    assert "space" not in str(found.value)


def test_a_pair_is_aligned_or_both_tokenisations_are_shown(model):
    clean, corrupted = aligned_pair(model, "apple beach bread", "apple chair bread")
    assert clean.shape == corrupted.shape and (clean != corrupted).sum() == 1
    with pytest.raises(BadData) as found:
        aligned_pair(model, "apple beach bread", "apple beach")
    assert "clean has 4 tokens and corrupted 3" in str(found.value) and "<bos>|apple|beach|bread" in str(found.value)
    with pytest.raises(BadData, match="the same 3 tokens"):
        aligned_pair(model, "apple beach", "apple beach")
    with pytest.raises(BadData, match="the corrupted prompt is empty"):
        aligned_pair(model, "apple beach", "  ")


def test_a_long_prompt_is_cut_in_its_middle():
    assert joined(list("abc")) == "a|b|c"
    shown = joined([str(i) for i in range(100)])
    assert shown.startswith("0|1|") and shown.endswith("|98|99") and "60 more" in shown


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_is_its_formula(model, name):
    rows = model.to_rows(PROMPTS)
    metric = metric_named(model, name, rows, ANSWERS, OTHERS)
    for i, row in enumerate(rows):
        logits = model.forward(torch.tensor([row]))
        last, log_p = logits[0, -1], logits[0].log_softmax(-1)
        right, wrong = (model.to_rows(words[i], bos=False)[0][0] for words in (ANSWERS, OTHERS))
        targets = torch.tensor(row[1:])
        wanted = {
            "logit_diff": last[right] - last[wrong],
            "probability": log_p[-1, right].exp(),
            "loss": -log_p[-1, right],
            "accuracy": (last.argmax() == right).float(),
            "next_token_loss": -log_p[:-1].gather(-1, targets[:, None]).mean(),
            "next_token_accuracy": (logits[0, :-1].argmax(-1) == targets).float().mean(),
        }[name]
        assert metric(logits, torch.tensor([i])).item() == pytest.approx(wanted.item(), abs=1e-5)
    assert metric.unit and set(OF_ANSWERS) < set(METRICS)


def test_metrics_refuse_what_they_cannot_measure(model):
    rows = model.to_rows(PROMPTS)
    with pytest.raises(UnknownName, match="no metric called 'lossy'"):
        metric_named(model, "lossy", rows)
    with pytest.raises(BadData, match="needs one answer for each prompt, and there are 2 prompts and 1"):
        metric_named(model, "loss", rows, ["beach"])
    with pytest.raises(BadData, match="both 'beach'"):
        metric_named(model, "logit_diff", rows, ["beach", "bread"], ["beach", "apple"])
    with pytest.raises(BadData, match="at least two tokens"):
        metric_named(model, "next_token_accuracy", [[1]])
