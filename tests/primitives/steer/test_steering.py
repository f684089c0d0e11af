"""Coefficient 0 is bitwise the untouched model, c adds exactly c times the vector where it says, and greedy is
Hugging Face's.
"""

import copy
import math

import numpy as np
import pytest
import torch
from models.families import DECODERS, moved

from workbench.core.errors import BadData, NotFired, UnknownSite, UnsupportedModel, WorkbenchError
from workbench.core.progress import Cancelled, Progress
from workbench.core.result import Result
from workbench.models import load
from workbench.models.model import Model
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import Report
from workbench.primitives.score.metrics import logit_diff
from workbench.primitives.steer.directions import given
from workbench.primitives.steer.steering import Addition, NotFinite, generate, steer, sweep_coefficients

WITH_MID = [f for f in DECODERS if f != "neox"]


@pytest.fixture(scope="module")
def pairs() -> dict:
    """{family: (plain module, Model of a copy of it)}."""
    plain = {family: moved(family, 0.25, matrices=True) for family in DECODERS}
    return {family: (module, load(copy.deepcopy(module))) for family, module in plain.items()}


def ids(n: int = 3, n_pos: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randint(6, 64, (n, n_pos), generator=torch.Generator().manual_seed(seed))


def direction(site: str = "resid_post", layer: int | None = 0, scale: float = 1.0):
    return given(scale * torch.randn(32, generator=torch.Generator().manual_seed(5)), site, layer)


# ---- one forward ----


@pytest.mark.parametrize("normalise", ["none", "unit", "stream"])
@pytest.mark.parametrize("family", DECODERS)
def test_coefficient_zero_is_bitwise_the_untouched_model(family, normalise, pairs):
    _, model = pairs[family]
    done = steer(model, ids(), direction(), 0.0, normalise=normalise)
    assert torch.equal(done.output, model.forward(ids()))
    assert (done.report.firings, done.report.n_replaced, done.report.effect, done.report.warnings) == (1, 21, 0, [])


@pytest.mark.parametrize(
    ("positions", "steered"), [("all", [7, 7, 7]), ("prompt", [2, 5, 7]), ("generated", [5, 2, 0])]
)
@pytest.mark.parametrize(
    ("site", "layer"),
    [("resid_pre", 1), ("resid_mid", 0), ("resid_post", 0), ("attn_out", 1), ("mlp_out", 1), ("embed", None)],
)
def test_exactly_c_times_the_vector_is_added_where_it_says_and_nowhere_else(site, layer, positions, steered, pairs):
    _, model = pairs["llama"]
    push, report, seen = Addition(direction(site, layer), -1.7, positions), Report(), []
    hook = push.hook(model, [2, 5, 7], report)
    model.forward(ids(), hook_fns=[hook, (hook[0], lambda tensor, hook: seen.append(tensor.clone()))])
    clean = capture(model, ids().tolist(), [site], layers=None if layer is None else [layer])[site, layer]
    at = torch.arange(7) < torch.tensor([[2], [5], [7]])
    at = {"all": torch.ones_like(at), "prompt": at, "generated": ~at}[positions]
    assert at.sum(1).tolist() == steered and report.n_replaced == int(at.sum())
    assert torch.equal(seen[0][at], (clean + -1.7 * push.direction.vector)[at])
    assert torch.equal(seen[0][~at], clean[~at])


@pytest.mark.parametrize("family", DECODERS)
def test_steering_before_a_block_is_steering_after_the_last(family, pairs):
    """resid_post of layer 0 and resid_pre of layer 1 are one place; and at the last layer only the readout is
    between.
    """
    _, model = pairs[family]
    torch.testing.assert_close(
        steer(model, ids(), direction("resid_post", 0), 2.0).output,
        steer(model, ids(), direction("resid_pre", 1), 2.0).output,
        atol=1e-6,
        rtol=0,
    )
    push = direction("resid_post", 1)
    last = capture(model, ids().tolist(), ["resid_post"], layers=[1])["resid_post", 1] + 2.0 * push.vector
    with model.alone(), torch.no_grad():
        wanted = model.live.adapter.apply_output_logits_transform(
            model.live.ln_final(last) @ model.live.W_U + model.live.b_U
        )
    torch.testing.assert_close(steer(model, ids(), push, 2.0).output, wanted, atol=1e-5, rtol=1e-5)


def test_normalisations_say_what_one_adds(pairs):
    _, model = pairs["gpt2"]
    push = direction(scale=3.0)
    clean = capture(model, ids().tolist(), ["resid_post"], layers=[0])["resid_post", 0]
    for normalise, added in (
        ("none", push.vector),
        ("unit", push.unit().vector),
        ("stream", clean.norm(dim=-1, keepdim=True) * push.unit().vector),
    ):
        seen = []
        hook = Addition(push, 0.5, normalise=normalise).hook(model, 7, Report())
        model.forward(ids(), hook_fns=[hook, (hook[0], lambda tensor, hook, seen=seen: seen.append(tensor.clone()))])
        torch.testing.assert_close(seen[0], clean + 0.5 * added, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steering_a_position_leaves_earlier_ones_alone(family, pairs):
    _, model = pairs[family]
    done, clean = (
        steer(model, ids(), direction(), 4.0, positions="generated", prompt_lengths=[4, 4, 4]),
        model.forward(ids()),
    )
    assert torch.equal(done.output[:, :4], clean[:, :4]) and not torch.allclose(done.output[:, 4:], clean[:, 4:])
    moved = (done.output - clean).abs().flatten(1).amax(1)
    assert done.report.effect == pytest.approx(float(moved.mean()))
    assert (
        steer(model, ids(), direction(), 4.0, positions="generated", prompt_lengths=[4, 4, 4], clean=clean).report
        == done.report
    )


def test_what_reaches_nothing_gives_a_warning(pairs):
    _, model = pairs["gpt2"]
    assert "no position was steered" in steer(model, ids(), direction(), 1.0, positions="generated").report.warnings[0]
    tiny = steer(model, ids(), direction(), 1e-30).report
    assert tiny.effect == 0 and "the output did not move" in tiny.warnings[0]


def test_hooks_that_never_run_raise(monkeypatch, pairs):
    _, model = pairs["gpt2"]
    call = Model._call
    monkeypatch.setattr(Model, "_call", lambda self, tokens, mask, stop, cache: call(self, tokens, mask, 1, cache))
    with pytest.raises(NotFired, match=r"resid_post of layer 1 never fired in .*untouched run"):
        steer(model, ids(), direction(layer=1), 1.0)
    with pytest.raises(NotFired, match="never fired"):
        generate(model, ids().tolist(), max_new_tokens=2, direction=direction(layer=1), coefficient=1.0)


def test_nothing_is_left_behind_even_after_an_error(pairs):
    _, model = pairs["llama"]
    clean = model.forward(ids())

    class Failing(Report):
        def __setattr__(self, name, value):
            if name == "n_replaced" and value:
                raise RuntimeError("inside the hook")
            super().__setattr__(name, value)

    with pytest.raises(RuntimeError, match="inside the hook"):
        model.forward(ids(), hook_fns=[Addition(direction(), 3.0).hook(model, 7, Failing())])
    steer(model, ids(), direction(), 3.0)
    generate(model, ids().tolist(), max_new_tokens=2, direction=direction(), coefficient=3.0)
    assert torch.equal(model.forward(ids()), clean)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: steer(m, [[5, 6], [7]], direction(), 1.0), BadData, r"lengths \[1, 2\]"),
        (lambda m: steer(m, ids(), direction(), 1.0, prompt_lengths=[3]), BadData, "1 prompt lengths"),
        (
            lambda m: steer(m, ids(), given(torch.ones(31), "resid_post", 0), 1.0),
            BadData,
            "31 entries and the stream .* 32",
        ),
        (lambda m: steer(m, ids(), direction(layer=5), 1.0), UnknownSite, "layers 0 to 1"),
        (
            lambda m: steer(m, ids(), direction(), 1.0, positions="last"),
            WorkbenchError,
            "positions must be one of all, generated, prompt",
        ),
        (lambda m: steer(m, ids(), direction(), 1.0, normalise="yes"), WorkbenchError, "normalise must be one of"),
        (lambda m: steer(m, ids(), direction(), float("inf")), WorkbenchError, "finite"),
        (lambda m: generate(m, ids().tolist(), max_new_tokens=2, coefficient=1.0), WorkbenchError, "none was given"),
        (
            lambda m: generate(m, ids().tolist(), max_new_tokens=43),
            BadData,
            r"take 49 positions, more than the context of .* \(48\)",
        ),
        (
            lambda m: generate(
                m, ids().tolist(), max_new_tokens=1, direction=direction(), coefficient=3e38, normalise="stream"
            ),
            NotFinite,
            "not finite at coefficient",
        ),
        (
            lambda m: sweep_coefficients(m, ids().tolist(), direction(), [1, 1.0], max_new_tokens=1),
            BadData,
            "different coefficients",
        ),
        (lambda m: sweep_coefficients(m, [], direction(), [1], max_new_tokens=1), BadData, "there are no prompts"),
        (
            lambda m: sweep_coefficients(
                m,
                ids().tolist(),
                direction(),
                [1],
                max_new_tokens=1,
                metric=logit_diff([1], [2]),
                positions="generated",
            ),
            BadData,
            "leaves as they are",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, match, pairs):
    with pytest.raises(error, match=match):
        call(pairs["gpt2"][1])


def test_an_encoder_cannot_generate(tiny_models):
    with pytest.raises(UnsupportedModel, match="generating text needs a causal-lm"):
        generate(load(str(tiny_models["bert"])), [[5, 6]], max_new_tokens=1)


# ---- generation ----


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_is_what_hugging_face_generates(family, pairs):
    module, model = pairs[family]
    prompts = ids(4, 6).tolist()
    theirs = module.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(4, 6, dtype=torch.long),
        do_sample=False,
        max_new_tokens=10,
        pad_token_id=0,
    )[:, 6:].tolist()
    assert len({tuple(row) for row in theirs}) > 1 and len({token for row in theirs for token in row}) > 2, (
        "the text must vary, or the test shows nothing"
    )
    assert generate(model, prompts, max_new_tokens=10, batch_size=3) == theirs


def test_it_stops_where_hugging_face_stops(pairs):
    module, _ = pairs["llama"]
    module = copy.deepcopy(module)
    prompts = ids(4, 6).tolist()
    free = generate(load(copy.deepcopy(module)), prompts, max_new_tokens=10)
    late = next(token for token in free[0] if token != free[0][0])
    module.generation_config.eos_token_id = [late, free[1][0]]
    model = load(copy.deepcopy(module))
    cut = generate(model, prompts, max_new_tokens=10)
    for row, whole in zip(cut, free, strict=True):
        stops = [i for i, token in enumerate(whole) if token in module.generation_config.eos_token_id]
        assert row == whole[: stops[0] if stops else None]
    assert cut[1] == [] and 0 < len(cut[0]) < 10
    theirs = module.generate(
        torch.tensor(prompts[:1]),
        attention_mask=torch.ones(1, 6, dtype=torch.long),
        do_sample=False,
        max_new_tokens=10,
        pad_token_id=0,
    )[0, 6:].tolist()
    assert theirs[:-1] == cut[0]  # Hugging Face keeps the token that stopped it
    assert generate(model, prompts, max_new_tokens=10, stop_ids=[]) == free


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_coefficient_zero_generates_what_no_direction_does(family, temperature, pairs):
    _, model = pairs[family]
    prompts = [row[:n] for row, n in zip(ids(5).tolist(), (7, 3, 7, 5, 3), strict=True)]
    untouched = generate(model, prompts, max_new_tokens=8, temperature=temperature)
    assert (
        generate(model, prompts, max_new_tokens=8, direction=direction(), coefficient=0.0, temperature=temperature)
        == untouched
    )
    assert (
        generate(model, prompts, max_new_tokens=8, direction=direction(), coefficient=8.0, temperature=temperature)
        != untouched
    )
    alone = [generate(model, [p], max_new_tokens=8)[0] for p in prompts]
    assert temperature or untouched == alone


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_each_step_is_a_steered_forward_over_the_text_so_far(positions, pairs):
    _, model = pairs["llama"]
    prompts = ids(2, 5).tolist()
    new = generate(model, prompts, max_new_tokens=6, direction=direction(), coefficient=3.0, positions=positions)
    for step in range(6):
        text = [p + row[:step] for p, row in zip(prompts, new, strict=True)]
        logits = steer(model, text, direction(), 3.0, positions=positions, prompt_lengths=[5, 5]).output[:, -1]
        assert logits.argmax(-1).tolist() == [row[step] for row in new]


def test_sampling_draws_from_the_softmax_and_from_its_seed(pairs):
    _, model = pairs["gpt2"]
    prompt = ids(1, 4).tolist()
    p = (model.forward(torch.tensor(prompt))[0, -1] / 1.5).softmax(-1)
    drawn = generate(model, prompt * 4000, max_new_tokens=1, temperature=1.5, batch_size=4000)
    frequency = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=64) / 4000
    assert float((frequency - p).abs().max()) < 5 * math.sqrt(0.25 / 4000)
    few = {seed: generate(model, prompt * 8, max_new_tokens=4, temperature=1.5, seed=seed) for seed in (0, 1)}
    assert few[0] == generate(model, prompt * 8, max_new_tokens=4, temperature=1.5, batch_size=3) != few[1]


class StopAt(Progress):
    """Cancels itself once it has seen so many updates."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left, self.kept = n, []

    def show(self) -> None:
        assert 0 <= self.done <= self.total
        self.left -= 1
        if not self.left:
            self.cancel()

    def keep(self, partial) -> None:
        self.kept.append(partial())


def test_generation_can_be_cancelled_between_tokens(pairs):
    with pytest.raises(Cancelled):
        generate(pairs["gpt2"][1], ids().tolist(), max_new_tokens=30, progress=StopAt(2))


# ---- sweeps ----


@pytest.fixture(scope="module")
def swept(pairs) -> Result:
    _, model = pairs["llama"]
    prompts = [row[:n] for row, n in zip(ids(4).tolist(), (7, 4, 7, 4), strict=True)]
    metric = logit_diff([6, 7, 8, 9], [10, 11, 12, 13])
    return sweep_coefficients(
        model,
        prompts,
        direction(scale=0.5),
        [-4.0, 0.0, 4.0],
        metric=metric,
        max_new_tokens=10,
        n_random=2,
        batch_size=2,
    )


def test_at_zero_every_arm_is_the_untouched_model(swept, pairs):
    _, model = pairs["llama"]
    prompts = [row[:n] for row, n in zip(ids(4).tolist(), (7, 4, 7, 4), strict=True)]
    assert dict(swept.data.sizes) == {"arm": 3, "coefficient": 3, "example": 4} and list(swept.data.arm.values) == [
        "direction",
        "random 0",
        "random 1",
    ]
    zero = swept.data.sel(coefficient=0.0)
    assert not zero.effect.any()
    for name, variable in zero.data_vars.items():
        assert np.array_equal(variable.values, np.broadcast_to(variable.values[0], variable.shape), equal_nan=True), (
            name
        )
    for i, prompt in enumerate(prompts):
        last = model.forward(torch.tensor([prompt]))[0, -1]
        assert float(zero.metric[0, i]) == pytest.approx(float(last[6 + i] - last[10 + i]), abs=1e-5)
    untouched = generate(model, prompts, max_new_tokens=10)
    texts = swept.tables["generations"]
    assert len(texts) == 36
    for arm in swept.data.arm.values:
        assert texts[(texts.arm == arm) & (texts.coefficient == 0)].ids.tolist() == untouched


def test_a_sweep_measures_what_it_says(swept, pairs):
    _, model = pairs["llama"]
    assert (swept.data.effect.sel(coefficient=[-4.0, 4.0]) > 0).all()
    up, down = (swept.data.metric.sel(arm="direction", coefficient=c).values for c in (4.0, -4.0))
    assert not np.allclose(up, down)
    for row in swept.tables["generations"].itertuples():
        if row.arm != "direction":
            continue
        prompt = [int(i) for i in row.prompt.split()]
        log_p = model.forward(torch.tensor([prompt + list(row.ids)]))[0].log_softmax(-1)
        wanted = -np.mean([float(log_p[len(prompt) + k - 1, token]) for k, token in enumerate(row.ids)])
        cell = swept.data.sel(arm=row.arm, coefficient=row.coefficient, example=row.example)
        assert float(cell.continuation_loss) == pytest.approx(wanted, abs=1e-4)
        assert int(cell.n_tokens) == len(row.ids) == 10
        assert row.text == " ".join(map(str, row.ids))


def test_a_sweep_says_where_it_came_from_and_survives_the_disk(swept, tmp_path):
    assert (
        swept.stem == "steering" and swept.spec["source"] == "given" and swept.spec["coefficients"] == [-4.0, 0.0, 4.0]
    )
    assert swept.provenance.model["name"] and not swept.partial and swept.provenance.seconds > 0
    loaded = Result.load(swept.save(tmp_path / "sweep"))
    assert (
        loaded.data.equals(swept.data)
        and loaded.tables["generations"].text.tolist() == swept.tables["generations"].text.tolist()
    )
    assert all({"unit", "long_name"} <= set(v.attrs) for v in swept.data.data_vars.values())


@pytest.mark.parametrize("n", [1, 6, 13])
def test_a_cancelled_sweep_keeps_its_finished_cells(n, pairs):
    _, model = pairs["gpt2"]
    whole = sweep_coefficients(model, ids().tolist(), direction(), [0.0, 2.0], max_new_tokens=3, n_random=1)
    progress = StopAt(n)
    found = sweep_coefficients(
        model, ids().tolist(), direction(), [0.0, 2.0], max_new_tokens=3, n_random=1, progress=progress
    )
    assert found.partial and len(progress.kept) == len(found.tables["generations"]) / 3
    reached = ~np.isnan(found.data.effect.values)
    assert reached.any(-1).sum() == len(found.tables["generations"]) / 3 < 4
    assert np.array_equal(found.data.effect.values[reached], whole.data.effect.values[reached])


def test_generated_positions_and_a_tokenizer(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    found = sweep_coefficients(
        model,
        ids().tolist(),
        direction(),
        [0.0, 1.0],
        max_new_tokens=4,
        n_random=0,
        positions="generated",
        temperature=1.0,
    )
    assert list(found.data.arm.values) == ["direction"] and float(found.data.effect.sel(coefficient=1.0).min()) > 0
    row = found.tables["generations"].iloc[0]
    assert row.text == model.tokenizer.decode(row.ids)


def test_a_coefficient_that_overflows_costs_its_own_cell_only(pairs):
    found = sweep_coefficients(
        pairs["gpt2"][1], ids().tolist(), direction(), [3e38, 1.0], max_new_tokens=2, n_random=0, normalise="stream"
    )
    assert np.isnan(found.data.effect.values[0, 0]).all() and not np.isnan(found.data.effect.values[0, 1]).any()
    assert len(found.warnings) == 1 and "not finite at coefficient 3e+38" in found.warnings[0]
