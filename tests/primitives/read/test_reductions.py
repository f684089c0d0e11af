"""One pass gives what numpy gives on everything at once, in any order and any split, and saved halves merge."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import BadData, BadSpec
from workbench.primitives.read.reductions import (
    Covariance,
    Moments,
    Projected,
    Quantiles,
    Reduction,
    Together,
    TopK,
    load_reduction,
    project,
    save_reduction,
)

N, SHAPE = 257, (3, 4)
DIMS = ("head", "d_head")


def activations(seed: int = 0) -> torch.Tensor:
    """Heavy tails, exact ties and zeros, a unit of one sign and one far from 0: what activations are like."""
    x = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(seed)) ** 3
    x[::5] = 0.0
    x[:, 0, 0] = x[:, 0, 0].abs().round()
    x[:, 1, 1] += 1000
    return x


X, NUMBERS = activations(), torch.arange(N)


def everything() -> Together:
    directions = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    return Together(
        {
            "m": Moments(),
            "c": Covariance(),
            "t": TopK(4),
            "q": Quantiles((0.0, 0.1, 0.5, 0.9, 1.0)),
            "p": Projected(directions, Together({"m": Moments(), "t": TopK(2)})),
        }
    )


def passed(reduction: Reduction, order=None, cuts=()) -> Reduction:
    """Updated in the given order, cut into batches."""
    order = torch.arange(N) if order is None else order
    for chunk in torch.tensor_split(order, list(cuts)):
        reduction.update(X[chunk], NUMBERS[chunk])
    return reduction


# ---- what they measure ----


def test_mean_variance_and_covariance_are_those_of_all_tokens():
    x = X.double().numpy()
    found = passed(Moments(), cuts=(10, 11, 200)).result(DIMS)
    assert found["mean"].dims == DIMS and found.attrs["n_tokens"] == N
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["variance"], x.var(0), rtol=1e-10)
    flat = passed(Covariance(), cuts=(100,)).result(DIMS)
    assert flat["covariance"].dims == ("unit", "unit_b")
    np.testing.assert_allclose(flat["covariance"], np.cov(x.reshape(N, -1).T, bias=True), atol=1e-9)
    np.testing.assert_allclose(np.diag(flat["covariance"]), x.var(0).reshape(-1), rtol=1e-9)


def test_variance_far_from_zero_keeps_its_digits():
    """The sum-of-squares formula loses them all here."""
    moments = Moments()
    for part in torch.tensor([1e8, 1e8 + 1, 1e8 + 2, 1e8 + 3], dtype=torch.float64)[:, None].split(2):
        moments.update(part, torch.arange(2))
    assert float(moments.result(("d_model",))["variance"][0]) == 1.25


def test_top_k_are_the_largest_with_ties_to_the_earlier_token():
    found = passed(TopK(6), cuts=(50, 120)).result(DIMS)
    values = X.numpy().reshape(N, -1)
    for unit in range(values.shape[1]):
        order = sorted(range(N), key=lambda n: (-values[n, unit], n))[:6]
        assert found["number"].values.reshape(6, -1)[:, unit].tolist() == order
        assert found["value"].values.reshape(6, -1)[:, unit].tolist() == values[order, unit].tolist()


def test_top_k_of_nan_and_of_ties_at_the_edge():
    values = torch.tensor([[1.0, math.nan], [2.0, 5.0], [2.0, 6.0], [2.0, 7.0]])
    top = TopK(2)
    top.update(values, torch.tensor([3, 2, 1, 0]))
    assert top.result(("d_model",))["number"].values.tolist() == [
        [0, 3],
        [1, 0],
    ], "ties to the earlier; nan is seen first"


def test_top_k_of_fewer_tokens_than_k_and_of_signs():
    top = TopK(10)
    top.update(torch.tensor([[-1.5], [0.0], [-0.0], [2.5], [-math.inf]]), torch.tensor([7, 3, 2, 2**32 - 1, 0]))
    found = top.result(("d_model",))
    assert found["value"].values[:, 0].tolist() == [2.5, 0.0, 0.0, -1.5, -math.inf]
    assert found["number"].values[:, 0].tolist() == [2**32 - 1, 2, 3, 7, 0]
    with pytest.raises(BadData, match="2\\^32"):
        top.update(torch.ones(1, 1), torch.tensor([2**32]))


@pytest.mark.parametrize("accuracy", [0.2, 0.01, 0.001])
def test_quantiles_are_within_their_accuracy(accuracy):
    asked = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
    found = passed(Quantiles(asked, accuracy), cuts=(3, 90)).result(DIMS)["quantile"].values
    exact = np.quantile(X.numpy(), asked, axis=0, method="lower")
    assert np.all(np.abs(found - exact) <= accuracy * np.abs(exact) + 2.0**-16)


@settings(deadline=None, max_examples=50)
@given(st.floats(2.0**-16, 2.0**16 - 1, width=32), st.sampled_from([-1.0, 1.0]))
def test_one_value_is_its_own_quantile(value, sign):
    sketch = Quantiles((0.5,), 0.01)
    sketch.update(torch.tensor([[sign * value]]), torch.arange(1))
    assert float(sketch.result(("d_model",))["quantile"][0, 0]) == pytest.approx(sign * value, rel=0.01)


def test_a_quantile_sketch_does_not_grow_and_clamps():
    sketch = Quantiles((0.0, 0.5, 1.0))
    sketch.update(torch.tensor([[1e-7], [-1e-9], [0.0], [-0.0]]), torch.arange(4))
    size = sum(t.numel() for t in sketch.state.values())
    assert sketch.result(("d_model",))["quantile"].values[:, 0].tolist() == [0.0, 0.0, 0.0]
    sketch.update(torch.full((1000, 1), 1e30), torch.arange(1000))
    assert sum(t.numel() for t in sketch.state.values()) == size
    assert float(sketch.result(("d_model",))["quantile"][2, 0]) == pytest.approx(2.0**16, rel=0.02), (
        "the largest it counts"
    )
    with pytest.raises(BadData, match="finite"):
        sketch.update(torch.tensor([[math.nan]]), torch.arange(1))


def test_projections_are_dot_products():
    directions = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    found = passed(Projected(directions, Moments()), cuts=(60,)).result(DIMS)
    by_hand = np.einsum("nhd,mhd->nm", X.double().numpy(), directions.double().numpy())
    assert found["mean"].dims == ("direction",)
    np.testing.assert_allclose(found["mean"], by_hand.mean(0), rtol=1e-4)
    np.testing.assert_allclose(project(X, directions), by_hand, rtol=1e-3, atol=1e-3)
    with pytest.raises(BadData, match="directions have 7 numbers"):
        project(X, torch.ones(1, 7))


# ---- order, split and number of workers do not change the answer ----


@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, N), max_size=6), n_workers=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_any_order_split_and_merge_gives_the_same(seed, cuts, n_workers):
    whole = passed(everything()).result(DIMS)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    workers = [everything() for _ in range(n_workers)]
    for i, chunk in enumerate(torch.tensor_split(order, sorted(cuts))):
        workers[i % n_workers].update(X[chunk], NUMBERS[chunk])
    total = everything()
    for worker in workers:
        total.merge(worker)
    found = total.result(DIMS)
    for name in whole.data_vars:
        if str(name).startswith(("t_", "q_")):
            np.testing.assert_array_equal(found[name], whole[name], err_msg=str(name))
        else:
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-9, err_msg=str(name))


def test_merging_changes_neither_the_other_nor_a_copy():
    a, b = passed(everything()), passed(everything())
    before = b.result(DIMS)
    a.merge(b)
    a.update(X, NUMBERS + N)
    assert b.result(DIMS).identical(before) and a.fresh().of["m"].state == {}
    empty = everything()
    a.merge(empty)
    assert a.result(DIMS)["m_mean"].shape == SHAPE


def test_an_empty_batch_is_nothing_and_an_empty_pass_has_no_answer():
    moments = Moments()
    moments.update(X[:0], NUMBERS[:0])
    with pytest.raises(BadData, match="Moments has seen no tokens"):
        moments.result(DIMS)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (TopK(3), TopK(4)),
        (Moments(), Covariance()),
        (Quantiles((0.5,)), Quantiles((0.6,))),
        (Projected(torch.ones(1, 2), Moments()), Projected(torch.zeros(1, 2), Moments())),
        (Together({"a": Moments()}), Together({"b": Moments()})),
    ],
    ids=["k", "kinds", "quantiles", "directions", "names"],
)
def test_different_measurements_do_not_merge(a, b):
    with pytest.raises(BadSpec, match="cannot be merged"):
        a.merge(b)


def test_units_of_another_shape_are_refused():
    moments = passed(Moments())
    with pytest.raises(BadData, match=r"units of shape \[3, 4\] and is given \[5\]"):
        moments.update(torch.ones(2, 5), torch.arange(2))


@pytest.mark.parametrize(
    "make",
    [lambda: TopK(0), lambda: Quantiles((1.5,)), lambda: Quantiles(accuracy=0.0), lambda: Quantiles(())],
    ids=["k", "quantile", "accuracy", "none"],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(BadSpec):
        make()


def test_a_half_saved_and_merged_elsewhere_is_the_whole(tmp_path):
    first, second = everything(), everything()
    first.update(X[:100], NUMBERS[:100])
    second.update(X[100:], NUMBERS[100:])
    back = load_reduction(save_reduction(first, tmp_path / "a.safetensors"))
    back.merge(load_reduction(save_reduction(second, tmp_path / "b.safetensors")))
    assert back.result(DIMS).identical(passed(everything(), cuts=(100,)).result(DIMS))
    asked = load_reduction(save_reduction(everything(), tmp_path / "c.safetensors"))
    assert passed(asked).result(DIMS).identical(passed(everything()).result(DIMS)), (
        "settings alone, as a worker gets them"
    )
