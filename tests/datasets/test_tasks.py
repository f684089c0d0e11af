"""Tasks score hand-made logits rightly, lay questions out as MMLU does, and name file and line of what they cannot
read.
"""

import json

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData
from workbench.core.places import data_folder
from workbench.datasets.tasks import (
    ChoiceItem,
    ChoiceTask,
    NextTokenTask,
    choice_task,
    format_question,
    read_choice_items,
)

GOOD = {"question": "Which is a bird?", "choices": ["eagle", "lake"], "answer": 0}
ITEM = ChoiceItem("  Which is water? ", ("stone", "lake", "bread"), 1, "words")


def letters_tokenizer(texts, *, bos=None) -> list[list[int]]:
    """One id per character, 0 in front unless bos is False: long prompts are long, letters are told apart."""
    texts = [texts] if isinstance(texts, str) else texts
    return [([] if bos is False else [0]) + [ord(c) for c in text] for text in texts]


# ---- next token ----


def one_hot(tokens: list[list[int]], size: int = 8) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), size).float()


def test_next_token_accuracy_by_hand():
    task = NextTokenTask(np.array([[1, 2, 3, 4], [1, 5, 6, 7]]), np.array([[False, True, True], [True, True, True]]))
    said = one_hot([[7, 3, 0, 0], [5, 6, 0, 0]])  # row 0: wrong (not counted), right, wrong; row 1: right, right, wrong
    assert task.score(said, torch.tensor([0, 1])) == pytest.approx([1 / 2, 2 / 3])
    assert task.score(said.flip(0), torch.tensor([1, 0])) == pytest.approx([2 / 3, 1 / 2])
    assert (task.n_inputs, task.rows) == (2, [[1, 2, 3, 4], [1, 5, 6, 7]])


# ---- choices ----


def test_choice_scoring_by_hand():
    """Only the last position and only the offered letters count, whatever else the model would rather say."""
    task = ChoiceTask([[1, 2], [3, 4], [5, 6]], [[2, 3, 4], [2, 3], [2, 3, 4]], np.array([1, 0, 2]))
    logits = torch.zeros(3, 2, 8)
    logits[:, -1, 7] = 100  # no letter
    logits[:, 0, 2] = 50  # another position
    logits[0, -1, 3] = 1  # picks B: right
    logits[1, -1, 3], logits[1, -1, 4] = 1, 9  # C is not on offer, picks B: wrong
    logits[2, -1, 4] = 1  # picks C: right
    assert task.score(logits, torch.tensor([0, 1, 2])).tolist() == [1, 0, 1]
    assert task.score(logits.flip(0), torch.tensor([2, 1, 0])).tolist() == [1, 0, 1]


def test_a_question_is_laid_out_as_in_mmlu():
    assert format_question(ITEM, with_answer=False) == "Which is water?\nA. stone\nB. lake\nC. bread\nAnswer:"
    assert format_question(ITEM, with_answer=True) == "Which is water?\nA. stone\nB. lake\nC. bread\nAnswer: B"


def test_shots_stand_before_the_question_with_their_answers():
    shot = ChoiceItem("Which is a bird?", ("eagle", "lake"), 0)
    task = choice_task([ITEM], [shot, shot], letters_tokenizer)
    (row,) = task.rows
    worked = format_question(shot, with_answer=True)
    assert "".join(map(chr, row[1:])) == "\n\n".join([worked, worked, format_question(ITEM, with_answer=False)])
    assert row[0] == 0
    assert task.options == [[ord("A"), ord("B"), ord("C")]]
    assert task.answers.tolist() == [1]
    assert task.warnings == []


def test_shots_are_dropped_from_the_front_until_the_prompt_fits():
    shots = [ChoiceItem(f"shot {i}", ("one", "two"), 0) for i in range(3)]
    full = [choice_task([ITEM], shots[k:], letters_tokenizer).rows[0] for k in range(4)]
    for n_dropped in range(4):
        task = choice_task([ITEM], shots, letters_tokenizer, n_ctx=len(full[n_dropped]))
        assert task.rows[0] == full[n_dropped]
        assert bool(task.warnings) == (n_dropped > 0)
        if n_dropped:
            assert task.warnings == [
                f"question 0 keeps {3 - n_dropped} of 3 shots to fit {len(full[n_dropped])} tokens"
            ]
    with pytest.raises(
        BadData, match=f"a question of {len(full[3])} tokens does not fit the context of {len(full[3]) - 1}"
    ):
        choice_task([ITEM], shots, letters_tokenizer, n_ctx=len(full[3]) - 1)


def test_items_of_different_widths_offer_their_own_letters():
    narrow = ChoiceItem("Which?", ("a", "b"), 1)
    assert choice_task([ITEM, narrow], [], letters_tokenizer).options == [[65, 66, 67], [65, 66]]


def test_letters_that_share_a_token_are_refused():
    with pytest.raises(BadData, match="two answer letters the same token"):
        choice_task([ITEM], [], lambda texts, bos=None: [[3]])


def test_a_tokenizer_that_knows_no_letters_is_refused(organism):
    """The organism's words are a closed list: every letter is <unk> to it."""
    with pytest.raises(BadData, match="two answer letters the same token"):
        choice_task([ITEM], [], organism.to_rows)


# ---- files ----


def write(tmp_path, *lines: str):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_questions_are_read_as_written(tmp_path):
    path = write(tmp_path, json.dumps(GOOD), "", json.dumps(GOOD | {"answer": "B", "subject": "naïve"}))
    assert read_choice_items(path) == [
        ChoiceItem("Which is a bird?", ("eagle", "lake"), 0),
        ChoiceItem("Which is a bird?", ("eagle", "lake"), 1, "naïve"),
    ]
    assert read_choice_items(str(path)) == read_choice_items(path)


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ('{"question": "a"', "questions.jsonl line 2: "),
        (json.dumps({"question": "a", "choices": ["x", "y"]}), "line 2: lacks 'answer'; wanted"),
        (json.dumps({"choices": ["x", "y"], "answer": 0}), "line 2: lacks 'question'"),
        (json.dumps(GOOD | {"choices": ["x"]}), "line 2: 1 choices where 2 to 10 work"),
        (json.dumps(GOOD | {"choices": ["x"] * 11}), "line 2: 11 choices where 2 to 10 work"),
        (json.dumps(GOOD | {"answer": 2}), "line 2: answer 2 is not one of its 2 choices"),
        (json.dumps(GOOD | {"answer": -1}), "line 2: answer -1 is not"),
        (json.dumps(GOOD | {"answer": "C"}), "line 2: answer 'C' is not"),
        (json.dumps(GOOD | {"answer": ""}), "line 2: answer '' is not"),
        (json.dumps(GOOD | {"answer": "AB"}), "line 2: answer 'AB' is not"),
        (json.dumps(GOOD | {"answer": True}), "line 2: answer True is not"),
        (json.dumps(GOOD | {"answer": 0.0}), "line 2: answer 0.0 is not"),
        (json.dumps(GOOD | {"choices": "xy"}), "line 2: .*choices"),
        (json.dumps(GOOD | {"choices": None}), "line 2: "),
        ("[1, 2]", "line 2: "),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(line, phrase, tmp_path):
    with pytest.raises(BadData, match=phrase) as found:
        read_choice_items(write(tmp_path, json.dumps(GOOD), line, json.dumps(GOOD)))
    assert "questions.jsonl" in str(found.value)
    assert str(tmp_path) not in str(found.value)


def test_files_without_questions_are_refused(tmp_path):
    with pytest.raises(BadData, match=r"no file 'absent.jsonl'"):
        read_choice_items(tmp_path / "absent.jsonl")
    with pytest.raises(BadData, match=r"questions.jsonl holds no questions"):
        read_choice_items(write(tmp_path, "", "  "))


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9", "choices": ["a", "b"], "answer": 0}\n')
    with pytest.raises(BadData, match=r"latin.jsonl"):
        read_choice_items(tmp_path / "latin.jsonl")


def test_the_questions_that_ship_are_whole():
    items = read_choice_items(data_folder() / "attention_sinks" / "questions.jsonl")
    assert len(items) >= 10
    assert all(len(set(item.choices)) == len(item.choices) for item in items)
    assert len({item.answer for item in items}) > 1
