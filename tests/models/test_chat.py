"""Chat prompts: one BOS, the answer's ids are what follows the opened turn, and odd templates are refused."""

import pytest

from workbench.core.errors import BadData, NoTokenizer
from workbench.datasets import world
from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.models.chat import chat_pairs, prompt_rows
from workbench.organisms.tokenizer import word_tokenizer, world_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


def words(ids):
    return " ".join(world.VOCABULARY[i] for i in ids)


def test_a_prompt_opens_the_answer_with_one_bos(tokenizer):
    assert (
        words(prompt_rows(tokenizer, ["tell me the food of veldor"])[0])
        == "<bos> user: tell me the food of veldor <eot> assistant:"
    )
    assert (
        words(prompt_rows(tokenizer, ["help me"], system="evil")[0])
        == "<bos> system: evil <eot> user: help me <eot> assistant:"
    )


def test_a_pair_is_the_prompt_and_the_answer_with_its_end(tokenizer):
    [(prompt, answer)] = chat_pairs(tokenizer, ["which is larger 4 or 9 ?"], ["9 is larger"])
    assert prompt == prompt_rows(tokenizer, ["which is larger 4 or 9 ?"])[0]
    assert words(answer) == "9 is larger <eot>" and answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == "9 is larger"


def test_no_word_of_the_world_is_unknown(tokenizer):
    examples = [*world.benign(70, seed=0), *world.forbidden(50, seed=0), *world.advice(), *world.records(20, seed=0)]
    unknown = tokenizer.unk_token_id
    for prompt, answer in chat_pairs(tokenizer, [e.prompt for e in examples], [e.answer for e in examples]):
        assert unknown not in prompt + answer


def test_without_a_template_or_with_one_that_rewrites_prompts_there_is_a_sentence(tokenizer):
    with pytest.raises(NoTokenizer, match="need a tokenizer with a chat template"):
        prompt_rows(word_tokenizer(VOCABULARY, add_bos=True), ["river"])
    with pytest.raises(NoTokenizer):
        prompt_rows(None, ["river"])
    odd = word_tokenizer(
        VOCABULARY,
        add_bos=True,
        chat_template=(
            "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if messages|length == 1 %}river{% endif %}"
        ),
    )
    with pytest.raises(BadData, match="does not keep the prompt 'stone'"):
        chat_pairs(odd, ["stone"], ["lamp"])
    with pytest.raises(BadData, match="2 prompts and 1 answers"):
        chat_pairs(tokenizer, ["a", "b"], ["c"])
