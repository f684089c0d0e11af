"""Ablation curves: what is replaced is what was asked for, counts are exact, ends are known, curves resume, the
known circuit is found.
"""

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData, NotFired, UnknownName, UnsupportedModel, WorkbenchError
from workbench.core.progress import Progress
from workbench.models import load
from workbench.organisms.induction import head_roles
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import ablate, reference_mean
from workbench.primitives.replace.ablation_bench import KINDS, VALUES, Bench, unit_labels
from workbench.primitives.replace.ablation_curves import ablate_set, ablation_curve
from workbench.primitives.replace.ablation_scores import OF_HEADS, SCORES, score_units, unit_effects, unit_sizes
from workbench.primitives.score.metrics import answer_loss, sequence_loss
from workbench.primitives.score.prompt_metrics import next_token_accuracy


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def gpt2(tiny_models):
    return load(str(tiny_models["gpt2"]))


ROWS = torch.randint(8, 60, (5, 9), generator=torch.Generator().manual_seed(2)).tolist()
UNEQUAL = [ROWS[0], ROWS[1][:4], ROWS[2], ROWS[3][:4], ROWS[4][:6]]


def bench(model, rows=ROWS, **options):
    return Bench(model, rows, sequence_loss(rows), **options)


def masked(bench, *units):
    mask = np.zeros(bench.shape, bool)
    for layer, unit in units:
        mask[layer, unit] = True
    return mask


# ---- one set of units ----


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_unit_is_the_untouched_model_and_every_unit_moves_it(gpt2, kind):
    found = bench(gpt2, UNEQUAL, kind=kind)
    metric = sequence_loss(UNEQUAL)
    for i, row in enumerate(UNEQUAL):
        assert found.clean[i] == pytest.approx(
            metric(gpt2.forward(torch.tensor([row])), torch.tensor([i])).item(), abs=1e-5
        )
    nothing, everything = found.run(masked(found)), found.run(np.ones(found.shape, bool))
    np.testing.assert_array_equal(nothing.value, found.clean)
    assert (nothing.firings, nothing.n_replaced, nothing.effect) == (0, 0, 0.0)
    assert everything.effect > 0 and everything.n_replaced == np.prod(found.shape) * 5
    assert not np.allclose(everything.value, found.clean)


@pytest.mark.parametrize(
    ("kind", "site", "width"), [("heads", "z", 4), ("neurons", "mlp_post", 128)], ids=["heads", "neurons"]
)
def test_zeroed_units_are_those_of_ablate(gpt2, kind, site, width):
    found = bench(gpt2, kind=kind, batch_size=2)
    assert found.shape == (2, width)
    mask = np.random.default_rng(0).random(found.shape) < 0.5
    wanted = sequence_loss(ROWS)(ablate(gpt2, torch.tensor(ROWS), torch.from_numpy(mask), site=site).output)
    done = found.run(mask)
    np.testing.assert_allclose(done.value, wanted, atol=1e-5)
    assert (
        done.n_replaced == mask.sum() * 5 and done.firings == int(mask.any(1).sum()) * 3
    )  # three batches of at most two


@pytest.mark.parametrize("kind", ["layers", "norms"])
@pytest.mark.parametrize("unit", [0, 1])
def test_zeroed_places_are_modules_that_return_zero(tiny_models, gpt2, kind, unit):
    """The oracle is Hugging Face's own module with a forward hook of torch."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"]).eval()
    block = module.transformer.h[1]
    part = {"layers": (block.attn, block.mlp), "norms": (block.ln_1, block.ln_2)}[kind][unit]
    handle = part.register_forward_hook(
        lambda m, args, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)
    )
    with torch.no_grad():
        wanted = sequence_loss(ROWS)(module(torch.tensor(ROWS)).logits)
    handle.remove()
    found = bench(gpt2, kind=kind)
    done = found.run(masked(found, (1, unit)))
    np.testing.assert_allclose(done.value, wanted, atol=1e-4)
    assert (done.firings, done.n_replaced) == (1, 5)


def test_norms_and_layers_are_named_as_the_model_has_them(gpt2, tiny_models):
    assert unit_labels(gpt2, "layers") == ["attention", "MLP"] and unit_labels(gpt2, "norms") == ["ln1", "ln2"]
    assert unit_labels(load(str(tiny_models["gemma2"])), "norms") == ["ln1", "ln1_post", "ln2", "ln2_post"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_mean_is_over_all_tokens_of_all_prompts(gpt2, kind):
    found = bench(gpt2, UNEQUAL, kind=kind, value="mean", batch_size=2)
    for name in found.places[1]:
        kept = [capture(gpt2, [row], [name])[name, None] for row in UNEQUAL]
        wanted = torch.cat([t[0] for t in kept]).mean(0)
        torch.testing.assert_close(found._given[0][name], wanted, atol=1e-5, rtol=1e-4)
    if kind == "heads":
        mask, reference = np.ones(found.shape, bool), reference_mean(gpt2, torch.tensor(ROWS))
        wanted = sequence_loss(ROWS)(
            ablate(gpt2, torch.tensor(ROWS), torch.from_numpy(mask), value="mean", reference=reference).output
        )
        np.testing.assert_allclose(bench(gpt2, kind=kind, value="mean").run(mask).value, wanted, atol=1e-5)


def test_the_mean_over_one_token_changes_nothing(gpt2):
    alone = Bench(gpt2, [[9]], answer_loss([10]), kind="heads", value="mean")  # one token: the mean is the value itself
    np.testing.assert_allclose(alone.run(np.ones(alone.shape, bool)).value, alone.clean, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_resampling_takes_another_prompt_of_the_same_length_never_the_own(gpt2, kind):
    rows = [ROWS[0], ROWS[1][:4], ROWS[2], ROWS[3][:4]]
    found = bench(gpt2, rows, kind=kind, value="resample")
    twin = {0: 2, 1: 3, 2: 0, 3: 1}
    layer, unit = 1, 1
    outcome = found.run(masked(found, (layer, unit)))
    name = found.places[layer][0 if kind in ("heads", "neurons") else unit]
    for i, row in enumerate(rows):
        there = {}
        gpt2.forward(
            torch.tensor([rows[twin[i]]]),
            hook_fns=[(name, lambda tensor, hook, there=there: there.update(v=tensor.clone()))],
        )

        def put(tensor, hook, there=there):
            new = tensor.clone()
            if kind in ("heads", "neurons"):
                new[:, :, unit] = there["v"][:, :, unit]
                return new
            return there["v"]

        wanted = sequence_loss(rows)(gpt2.forward(torch.tensor([row]), hook_fns=[(name, put)]), torch.tensor([i]))
        assert outcome.value[i] == pytest.approx(wanted.item(), abs=1e-5)


def test_resampling_among_copies_changes_nothing(gpt2):
    found = bench(gpt2, [ROWS[0]] * 3, value="resample")
    outcome = found.run(np.ones(found.shape, bool))
    np.testing.assert_allclose(outcome.value, found.clean, atol=1e-5)


def test_a_prompt_without_a_twin_cannot_be_resampled(gpt2):
    with pytest.raises(BadData, match="prompt 4 is the only one of 6 tokens"):
        bench(gpt2, UNEQUAL, value="resample")


def test_what_did_not_fire_is_an_error(gpt2, monkeypatch):
    found = bench(gpt2, kind="norms")
    forward = type(gpt2).forward
    monkeypatch.setattr(
        type(gpt2),
        "forward",
        lambda self, tokens, *, hook_fns=(), **o: forward(self, tokens, hook_fns=list(hook_fns)[1:], **o),
    )
    with pytest.raises(NotFired, match=r"5 entries were replaced .* where 2 units on 5 prompts"):
        found.run(masked(found, (0, 0), (1, 1)))


def test_bad_questions_are_refused_in_words(gpt2, tiny_models):
    with pytest.raises(UnknownName, match="no kind of unit called 'head'"):
        bench(gpt2, kind="head")
    with pytest.raises(UnknownName, match="no replacement called 'noise'"):
        bench(gpt2, value="noise")
    with pytest.raises(WorkbenchError, match=r"mask has shape \(2, 5\)"):
        bench(gpt2).run(np.ones((2, 5), bool))
    with pytest.raises(UnsupportedModel, match="needs a causal-lm"):
        bench(load(str(tiny_models["bert"])))
    with pytest.raises(BadData, match="no unit is chosen"):
        ablate_set(bench(gpt2), np.zeros((2, 4), bool))
    with pytest.raises(BadData, match=r"score has shape \(4, 2\) and there are 2 layers of 4 units"):
        ablation_curve(bench(gpt2), np.ones((4, 2)))
    with pytest.raises(BadData, match="no unit has a score"):
        ablation_curve(bench(gpt2), np.full((2, 4), np.nan))
    assert set(VALUES) == {"zero", "mean", "resample"}


# ---- scores ----


@pytest.mark.parametrize("kind", list(KINDS))
def test_sizes_are_means_over_tokens(gpt2, kind):
    found = bench(gpt2, UNEQUAL, kind=kind, batch_size=2)
    sizes = unit_sizes(found)
    assert sizes.shape == found.shape and sizes.attrs["unit"] == "activation units"
    for unit in (0, 1):
        name = found.places[1][unit if kind in ("layers", "norms") else 0]
        kept = torch.cat([capture(gpt2, [row], [name])[name, None][0] for row in UNEQUAL])
        own = kept[:, unit] if kind in ("heads", "neurons") else kept
        wanted = own.abs().mean() if kind == "neurons" else own.norm(dim=-1).mean()
        assert float(sizes[1, unit]) == pytest.approx(wanted.item(), rel=1e-4)


def test_effects_are_those_of_single_ablations_and_keep_what_a_cancel_leaves(gpt2):
    found = bench(gpt2)
    effects = unit_effects(found)
    assert float(effects[1, 2]) == pytest.approx(
        abs(float((found.run(masked(found, (1, 2))).value - found.clean).mean())), rel=1e-5
    )

    class Three(Progress):
        def show(self):
            if self.done == 3:
                self.cancel()

    part = unit_effects(found, Three())
    assert 0 < int(np.isnan(part).sum()) < part.size
    np.testing.assert_array_equal(part.values.ravel()[:4], effects.values.ravel()[:4])


def test_head_scores_are_means_over_prompts_of_any_length(gpt2):
    found = bench(gpt2, UNEQUAL, batch_size=2)
    score = score_units(found, "awft").data["score"]
    each = np.stack(
        [capture(gpt2, [row], ["pattern"], layers=[1])["pattern", 1][0, :, :, 0].mean(-1) for row in UNEQUAL]
    )
    np.testing.assert_allclose(score.sel(layer=1), each.mean(0), atol=1e-5)
    assert score.attrs["long_name"] == "First-token weight"


@pytest.mark.parametrize("by", [*SCORES, *OF_HEADS])
def test_every_score_ranks_all_heads_and_orders_a_curve(gpt2, by):
    found = bench(gpt2)
    result = score_units(found, by)
    assert result.data["score"].shape == (2, 4) and not result.partial and np.isfinite(result.data["score"]).all()
    assert (
        ablation_curve(found, result.data["score"], shares=(0, 0.5), n_random=1).provenance.spec["score"]
        == result.data["score"].attrs["long_name"]
    )


def test_a_score_that_is_none_is_refused(gpt2):
    with pytest.raises(UnknownName, match="no score of norms called 'awft'"):
        score_units(bench(gpt2, kind="norms"), "awft")


# ---- curves ----


def test_a_curve_takes_units_in_the_order_of_the_score(gpt2):
    found = bench(gpt2)
    score = np.array([[3.0, 1.0, np.nan, 2.0], [7.0, 6.0, 5.0, 4.0]])
    for side, order in (("low", [(0, 1), (0, 3), (0, 0), (1, 3)]), ("high", [(1, 0), (1, 1), (1, 2), (1, 3)])):
        curve = ablation_curve(found, score, side=side, shares=(0, 0.15, 0.3, 0.4, 0.6), n_random=2).data
        assert curve["n_ablated"].values.tolist() == [0, 1, 2, 3, 4] and curve.attrs["n_units"] == 7
        np.testing.assert_allclose(curve["share"], np.arange(5) / 7)
        np.testing.assert_array_equal(curve["n_replaced"], np.arange(5) * 5)
        np.testing.assert_array_equal(curve["value"][0], found.clean)
        for k in range(1, 5):
            np.testing.assert_allclose(curve["value"][k], found.run(masked(found, *order[:k])).value, atol=1e-6)
        assert curve["threshold"].values[1:].tolist() == [score[at] for at in order]


def test_random_sets_are_nested_seeded_and_without_what_has_no_score(gpt2, monkeypatch):
    found, seen = bench(gpt2), []
    run = Bench.run
    monkeypatch.setattr(Bench, "run", lambda self, mask: seen.append(mask.copy()) or run(self, mask))
    score = np.arange(8.0).reshape(2, 4)
    score[1, 3] = np.nan
    one = ablation_curve(found, score, shares=(0, 0.3, 0.6, 1), n_random=3, seed=4).data
    masks = [m for m in seen if 0 < m.sum() < 7]
    own, random = masks[::4], [[masks[1 + d], masks[5 + d]] for d in range(3)]
    assert [m.sum() for m in own] == [2, 4] and all(not m[1, 3] for m in seen)
    for few, many in random:
        assert few.sum() == 2 and many.sum() == 4 and (many | few == many).all()
    assert len({tuple(many.ravel()) for _, many in random}) > 1
    again, other = (ablation_curve(found, score, shares=(0, 0.3, 0.6, 1), n_random=3, seed=s).data for s in (4, 5))
    np.testing.assert_array_equal(one["random_value"], again["random_value"])
    assert not np.array_equal(one["random_value"], other["random_value"])
    np.testing.assert_array_equal(one["random_value"][:, -1], np.broadcast_to(one["value"][-1], (3, 5)))


def masks_of_draws(monkeypatch, measure):
    """(the score's sets [step], the random ones [draw][step]) that `measure` ran, without no unit and every unit."""
    seen, run = [], Bench.run
    with monkeypatch.context() as patched:
        patched.setattr(Bench, "run", lambda self, mask: seen.append(mask.copy()) or run(self, mask))
        measure()
    inner = [mask for mask in seen if 0 < mask.sum() < mask.size]
    assert inner and len(inner) % 3 == 0  # by score, draw 0, draw 1
    return inner[::3], [inner[1::3], inner[2::3]]


@pytest.mark.parametrize("side", ["low", "high"])
def test_random_sets_do_not_depend_on_the_score(gpt2, monkeypatch, side):
    """Any score of the same units, from either side, stands beside the very same sets, which are no score's choice."""
    found, shares = bench(gpt2), (0, 0.25, 0.5, 0.75, 1)
    rng = np.random.default_rng(3)
    scores = [np.arange(8.0).reshape(2, 4), -np.arange(8.0).reshape(2, 4), *(rng.normal(size=(3, 2, 4)))]
    options = {"shares": shares, "n_random": 2, "seed": 6}
    runs = [masks_of_draws(monkeypatch, lambda s=s: ablation_curve(found, s, side=side, **options)) for s in scores]
    low = masks_of_draws(monkeypatch, lambda: ablation_curve(found, scores[0], side="low", **options))
    for own, random in runs:
        np.testing.assert_array_equal(random, low[1])
        assert all(not np.array_equal(own, draw) for draw in random)
    np.testing.assert_array_equal(runs[0][0], ~np.array(runs[1][0])[::-1])  # the scores' own orders do differ
    assert not np.array_equal(*low[1])


def test_random_sets_beside_a_chosen_set_do_not_depend_on_it(gpt2, monkeypatch):
    found = bench(gpt2)
    chosen = [masked(found, (0, 1), (1, 2)), masked(found, (0, 0), (1, 3))]
    runs = [masks_of_draws(monkeypatch, lambda m=m: ablate_set(found, m, n_random=2, seed=1)) for m in chosen]
    for mask, (own, random) in zip(chosen, runs, strict=True):
        np.testing.assert_array_equal(own, [mask])
        np.testing.assert_array_equal(random, runs[0][1])


def test_a_cancelled_curve_is_finished_to_the_same_numbers(gpt2):
    found, score = bench(gpt2), np.arange(8.0).reshape(2, 4)
    whole = ablation_curve(found, score, n_random=2)

    class Stop(Progress):
        def show(self):
            if self.done == 5:
                self.cancel()

    part = ablation_curve(found, score, n_random=2, progress=Stop())
    assert part.partial and np.isnan(part.data["value"]).any() and not np.isnan(part.data["value"][1]).any()
    counted = []
    run = found.run
    found.run = lambda mask: counted.append(1) or run(mask)
    rest = ablation_curve(found, score, n_random=2, resume=part)
    assert not rest.partial and 0 < len(counted) < int(whole.data.sizes["share"]) * 3 - 4
    for name in whole.data.data_vars:
        np.testing.assert_array_equal(rest.data[name], whole.data[name])
    for other in ({"n_random": 3}, {"side": "high"}, {"seed": 1}):
        with pytest.raises(BadData, match="another curve"):
            ablation_curve(found, score, **{"n_random": 2, "resume": part, **other})
    with pytest.raises(BadData, match="another curve"):
        ablation_curve(found, -score, n_random=2, resume=part)


def test_a_chosen_set_stands_beside_random_ones_of_its_size(gpt2):
    found = bench(gpt2)
    mask = masked(found, (0, 1), (1, 2), (1, 3))
    done = ablate_set(found, mask, n_random=4).data
    assert done["n_ablated"].values.tolist() == [0, 3] and done["n_replaced"].values.tolist() == [0, 15]
    np.testing.assert_array_equal(done["value"][1], found.run(mask).value)
    assert done["random_value"].shape == (4, 2, 5) and not np.isnan(done["random_value"]).any()


def test_a_result_survives_being_saved(gpt2, tmp_path):
    curve = ablation_curve(bench(gpt2), np.arange(8.0).reshape(2, 4), n_random=2)
    back = type(curve).load(curve.save(tmp_path / "curve"))
    np.testing.assert_array_equal(back.data["value"], curve.data["value"])


def test_units_nothing_reads_give_a_warning(gpt2):
    found = Bench(gpt2, [[9, 8]] * 2, answer_loss([10, 11]), value="resample")  # each prompt's twin is its copy
    result = ablate_set(found, np.ones(found.shape, bool), n_random=1)
    assert "the logits of the first batch did not move" in result.warnings[0] and float(result.data["effect"][1]) == 0


# ---- the known circuit ----


def test_previous_token_heads_stand_in_for_each_other_and_nothing_for_both(model):
    """Either head that copies the previous word can go; without both, induction is gone, and random pairs cost less on
    average (single ones do not: a pair with another head that matters is as bad)."""
    from workbench.datasets.repeated_words import RepeatedWords

    rows = RepeatedWords(shortest=6, longest=8).sample(12, 24, np.random.default_rng(1)).tolist()
    roles = head_roles(model, RepeatedWords().sample(40, 64, np.random.default_rng(5)))
    copying = [(0, int(h)) for h in np.flatnonzero(roles["previous"][0] > 0.4)]
    assert len(copying) == 2
    found = Bench(model, rows, next_token_accuracy(rows))
    clean = float(found.clean.mean())
    for one in copying:
        assert float(found.run(masked(found, one)).value.mean()) > 0.8 * clean
    both = ablate_set(found, masked(found, *copying), n_random=20).data
    assert float(both["value"][1].mean()) < 0.2 * clean
    assert float(both["random_value"][:, 1].mean()) > 2 * float(both["value"][1].mean())
