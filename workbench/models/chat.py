"""Chat prompts as token ids, through the tokenizer's own chat template: the one place where turns become tokens.

The template itself says where an answer begins and how it ends: an answer's ids are what the template adds between the
prompt that opens the assistant's turn and the conversation that holds the answer, end-of-turn token included.
Cost: two renderings a pair, about 0.1 ms each.
"""

from collections.abc import Sequence
from typing import Any

from workbench.core.errors import BadData, NoTokenizer

Pair = tuple[list[int], list[int]]  # (prompt ids up to the opened assistant's turn, answer ids with the end of turn)


def prompt_rows(tokenizer: Any, prompts: Sequence[str], *, system: str | None = None) -> list[list[int]]:
    """Token ids of each request with the assistant's turn opened, BOS as the template has it.

    Args:
        tokenizer: Hugging Face tokenizer with a chat template. prompts: what the user says. system: the system turn, if
            any.

    Raises:
        NoTokenizer: if there is no tokenizer, or it has no chat template.
    """
    return [_render(tokenizer, _turns(prompt, system), opened=True) for prompt in prompts]


def chat_pairs(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, system: str | None = None
) -> list[Pair]:
    """(prompt ids, answer ids) of each request and its answer: what fine-tuning and scoring take.

    Raises:
        NoTokenizer: as `prompt_rows`. BadData: if the numbers of prompts and answers differ, or the template rewrites
            the prompt once an answer follows it, so that no ids are the answer's alone.
    """
    if len(prompts) != len(answers):
        raise BadData(f"{len(prompts)} prompts and {len(answers)} answers; give one answer a prompt")
    pairs = []
    for prompt, answer in zip(prompts, answers, strict=True):
        turns = _turns(prompt, system)
        opened, whole = (
            _render(tokenizer, turns, opened=True),
            _render(tokenizer, [*turns, {"role": "assistant", "content": answer}], opened=False),
        )
        if whole[: len(opened)] != opened or len(whole) == len(opened):
            raise BadData(
                f"the chat template does not keep the prompt {prompt[:60]!r} as it is when an answer follows, so the"
                " answer's tokens cannot be told apart"
            )
        pairs.append((opened, whole[len(opened) :]))
    return pairs


def _turns(prompt: str, system: str | None) -> list[dict[str, str]]:
    return [*([] if system is None else [{"role": "system", "content": system}]), {"role": "user", "content": prompt}]


def _render(tokenizer: Any, turns: list[dict[str, str]], *, opened: bool) -> list[int]:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise NoTokenizer(
            "chat prompts need a tokenizer with a chat template; give the directory of a chat model, or set"
            " tokenizer.chat_template"
        )
    return list(tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=opened, return_dict=False))
