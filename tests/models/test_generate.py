"""Cached, batched, left-padded generation is Hugging Face's token for token, and steered the uncached loop's."""

import copy

import pytest
import torch
import transformers as tf
from models.families import DECODERS, GQA, NO_SPECIAL, SIZE, moved

from workbench.core.errors import BadData, NotFinite, NoTokenizer, UnsupportedModel
from workbench.core.progress import Cancelled, Progress
from workbench.datasets import world
from workbench.models import load
from workbench.models.generate import Step, can_cache, end_ids, generate
from workbench.models.loading import read_module
from workbench.models.model import Model
from workbench.organisms.chat import pairs_of

LENGTHS = (9, 4, 6, 1, 9)


@pytest.fixture(scope="module")
def pairs() -> dict:
    """{family: (plain module, Model of a copy of it)}."""
    plain = {family: moved(family, 0.25, matrices=True) for family in DECODERS}
    return {family: (module, load(copy.deepcopy(module), tokenizer=False)) for family, module in plain.items()}


@pytest.fixture(scope="module")
def model(pairs) -> Model:
    return pairs["llama"][1]


def prompts(lengths=LENGTHS) -> list[list[int]]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(6, 64, (n,), generator=rng).tolist() for n in lengths]


def theirs(module: torch.nn.Module, rows: list[list[int]], n: int, stop: list[int] | None = None) -> list[list[int]]:
    """Hugging Face's greedy continuations, each row on its own and therefore without padding."""
    found, how = [], {"do_sample": False, "max_new_tokens": n, "pad_token_id": 0, "eos_token_id": stop}
    for row in rows:
        given = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        found.append(module.generate(**given, **how)[0, len(row) :].tolist())
    return found


def uncached(model: Model, row: list[int], n: int, hooks_at) -> list[int]:
    """The plain loop: the whole text of one row at every step, with `hooks_at(n_pos)`."""
    text = list(row)
    for _ in range(n):
        text.append(int(model.forward(torch.tensor([text]), hook_fns=hooks_at(len(text)))[0, -1].argmax()))
    return text[len(row) :]


def widths(model: Model, rows: list[list[int]], n: int) -> list[int]:
    """How many positions each forward of a generation saw."""
    seen: list[int] = []
    name = model.hook_name("resid_post", 0)
    generate(model, rows, max_new_tokens=n, hooks=[(name, lambda t, hook: seen.append(t.shape[1]))])
    return seen


def push(model: Model, where: str):
    """(hooks for a `Step`, hooks for a whole text of one row with so many prompt tokens): the same addition."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(5))
    name = model.hook_name("resid_post", 0)
    chosen = {
        "all": lambda places, n_prompt: places >= 0,
        "prompt": lambda places, n_prompt: places < n_prompt,
        "generated": lambda places, n_prompt: places >= n_prompt,
        "third": lambda places, n_prompt: places == 2,
        "tenth": lambda places, n_prompt: places == 9,
    }[where]

    def add(places: torch.Tensor, n_prompt: torch.Tensor | int):
        return [(name, lambda tensor, hook: tensor + 4.0 * vector * chosen(places, n_prompt).unsqueeze(-1))]

    def at_step(step: Step):
        return add(step.places, step.n_prompt[:, None])

    return at_step, lambda n_prompt: lambda n_pos: add(torch.arange(n_pos)[None], n_prompt)


# ---- against Hugging Face ----


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_is_hugging_faces_on_prompts_of_several_lengths(family, pairs):
    module, model = pairs[family]
    wanted = theirs(module, prompts(), 16)
    assert len({token for row in wanted for token in row}) > 4, "the text must vary, or the test shows nothing"
    assert can_cache(model)
    for batch_size in (2, 32):
        assert generate(model, prompts(), max_new_tokens=16, batch_size=batch_size) == wanted


def test_the_chat_organism_says_what_hugging_face_has_it_say():
    chat, (module, _) = load("organism:chat", device="cpu"), read_module("organism:chat", device="cpu")
    examples = world.benign(16, seed=5, split="heldout") + world.forbidden(8, seed=5, split="heldout")
    rows, stop = [prompt for prompt, _ in pairs_of(chat.tokenizer, examples)], set(end_ids(chat))
    assert len({len(row) for row in rows}) > 2 and can_cache(chat)
    wanted = [[i for i in ids if i not in stop] for ids in theirs(module.eval(), rows, 24, sorted(stop))]
    assert len({tuple(row) for row in wanted}) > 8
    assert generate(chat, rows, max_new_tokens=24, batch_size=10) == wanted


def test_a_window_of_attention_shorter_than_the_text():
    torch.manual_seed(3)
    module = tf.Gemma2ForCausalLM(tf.Gemma2Config(**GQA | NO_SPECIAL, head_dim=8, sliding_window=4)).eval()
    module.set_attn_implementation("eager")
    for parameter in module.parameters():
        parameter.data += 0.25 * torch.randn_like(parameter)
    model = load(copy.deepcopy(module), tokenizer=False)
    assert generate(model, prompts(), max_new_tokens=16) == theirs(module, prompts(), 16)
    assert can_cache(model)


# ---- hooks ----


def test_after_the_prompt_a_forward_sees_one_position(model):
    assert widths(model, prompts(), 6) == [9, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("where", ["all", "prompt", "generated", "third", "tenth"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen2"])
def test_a_steered_text_is_the_uncached_one(family, where, pairs):
    _, model = pairs[family]
    at_step, at_text = push(model, where)
    wanted = [uncached(model, row, 14, at_text(len(row))) for row in prompts()]
    assert generate(model, prompts(), max_new_tokens=14, hooks=at_step) == wanted
    assert wanted != generate(model, prompts(), max_new_tokens=14)


def test_an_addition_of_zero_changes_nothing(model):
    zero = [(model.hook_name("resid_post", 0), lambda tensor, hook: tensor + 0.0)]
    assert generate(model, prompts(), max_new_tokens=8, hooks=zero) == generate(model, prompts(), max_new_tokens=8)


def test_the_steps_say_which_columns_are_which(model):
    steps: list[Step] = []
    begins, hooks = [[7], [8, 9]], lambda step: steps.append(step) or []
    generate(model, prompts((3, 1)), max_new_tokens=3, prefixes=begins, hooks=hooks)
    assert [step.places.tolist() for step in steps] == [[[-1, 0, 1, 2], [0, 1, 2, 3]], [[3], [4]], [[4], [5]]]
    assert steps[0].index.tolist() == [1, 0] and all(step.n_prompt.tolist() == [1, 3] for step in steps)


# ---- sampling, stops, forced beginnings ----


def test_a_seed_gives_one_text_whatever_the_batch(model):
    drawn = [generate(model, prompts(), max_new_tokens=8, temperature=1.2, seed=4, batch_size=n) for n in (1, 2, 5)]
    assert drawn[0] == drawn[1] == drawn[2] != generate(model, prompts(), max_new_tokens=8, temperature=1.2, seed=5)
    assert drawn[0][:3] == generate(model, prompts()[:3], max_new_tokens=8, temperature=1.2, seed=4)


def test_ids_and_sequences_of_ids_stop_a_row_and_are_left_out(model):
    free = generate(model, prompts(), max_new_tokens=10)
    single, pair = free[0][3], (free[1][4], free[1][5])
    cut = generate(model, prompts(), max_new_tokens=10, stop_ids=[single, pair])
    for row, whole in zip(cut, free, strict=True):
        at = [i for i, token in enumerate(whole) if token == single or tuple(whole[i : i + 2]) == pair]
        assert row == whole[: at[0] if at else None]
    assert len(cut[0]) < 10 and len(cut[1]) < 10
    assert generate(model, prompts(), max_new_tokens=10, stop_ids=[free[0][0]])[0] == []


def test_it_ends_once_every_row_has(model):
    free = generate(model, prompts((4,)), max_new_tokens=10)[0]
    seen = []
    generate(model, prompts((4,)), max_new_tokens=10, stop_ids=[free[2]], hooks=lambda step: seen.append(0) or [])
    assert len(seen) == free.index(free[2]) + 1


def test_a_forced_beginning_is_kept_and_continued(model):
    rows, begins = prompts(), [[7, 8], [], [9], [10, 11, 12], [13]]
    found = generate(model, rows, max_new_tokens=6, prefixes=begins, stop_ids=[])
    joined = generate(model, [[*row, *ids] for row, ids in zip(rows, begins, strict=True)], max_new_tokens=6)
    assert found == [[*ids, *new] for ids, new in zip(begins, joined, strict=True)]
    stopped = generate(model, rows, max_new_tokens=6, prefixes=begins, stop_ids=[7])
    assert stopped[0][:2] == [7, 8], "only what was chosen can stop it"


# ---- without a cache, and what is refused ----


def test_where_a_cache_does_not_give_the_same_the_whole_text_runs_again():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = tf.LlamaConfig(**SIZE | NO_SPECIAL, rope_parameters=rope)
    model = load(tf.LlamaForCausalLM(config).eval(), tokenizer=False)
    assert not can_cache(model)
    assert widths(model, prompts((4, 4)), 3) == [4, 5, 6]
    assert generate(model, prompts(), max_new_tokens=5) == [uncached(model, row, 5, lambda n: ()) for row in prompts()]


def test_steering_is_the_same_with_and_without_a_cache(pairs, monkeypatch):
    _, model = pairs["gpt2"]
    at_step, _ = push(model, "generated")
    wanted = generate(model, prompts(), max_new_tokens=8, hooks=at_step)
    monkeypatch.setattr("workbench.models.generate.can_cache", lambda model: False)
    assert generate(model, prompts(), max_new_tokens=8, hooks=at_step) == wanted


class StopAtOnce(Progress):
    def show(self) -> None:
        self.cancel()


BROKEN = [("blocks.0.hook_resid_post", lambda tensor, hook: tensor * float("nan"))]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: generate(m, prompts(), max_new_tokens=2, prefixes=[[1]]), BadData, "5 rows and 1 prefixes"),
        (lambda m: generate(m, [[5], []], max_new_tokens=2), BadData, "prompt 1 is empty"),
        (lambda m: generate(m, ["text"], max_new_tokens=2), NoTokenizer, "came without a tokenizer"),
        (lambda m: generate(m, [], max_new_tokens=2), BadData, "there are no prompts"),
        (
            lambda m: generate(m, prompts(), max_new_tokens=41),
            BadData,
            r"49 positions, more than the context .* \(48\)",
        ),
        (lambda m: generate(m, prompts(), max_new_tokens=9, progress=StopAtOnce()), Cancelled, "after 1 of"),
        (lambda m: generate(m, prompts(), max_new_tokens=2, hooks=BROKEN), NotFinite, "not finite in float32"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, match, model):
    with pytest.raises(error, match=match):
        call(model)


def test_nothing_to_do_is_nothing_done(model):
    assert generate(model, prompts((2,)), max_new_tokens=0) == [[]]


def test_an_encoder_cannot_generate(tiny_models):
    with pytest.raises(UnsupportedModel, match="generating text needs a causal-lm"):
        generate(load(str(tiny_models["bert"])), [[5, 6]], max_new_tokens=1)
