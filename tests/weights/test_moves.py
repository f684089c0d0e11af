"""Weights come back bit by bit, whatever happens inside; the sum of terms is the sum; deltas are differences."""

import copy

import pytest
import torch
from torch import nn

from workbench.core.errors import BadData
from workbench.weights.factors import Factors
from workbench.weights.moves import delta, moved


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def bits(module: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in module.parameters()]


def test_inside_it_is_the_sum_of_the_terms_and_after_it_the_bits_of_before():
    module, update = net(), {"0.weight": torch.full((3, 4), 0.1)}
    factors = {"0.weight": Factors(torch.ones(1, 4), torch.arange(3.0)[:, None], 0.5), "2.bias": torch.ones(2)}
    before, was = bits(module), copy.deepcopy(module)
    with moved(dict(module.named_parameters()), (2.0, update), (-1.0, factors)):
        by_hand = was[0].weight + 0.2 - 0.5 * torch.arange(3.0)[:, None]
        torch.testing.assert_close(module[0].weight, by_hand)
        torch.testing.assert_close(module[2].bias, was[2].bias - 1)
        assert torch.equal(module[2].weight, was[2].weight)
        module(torch.ones(1, 4)).sum().backward()  # gradients are the caller's affair, and are not switched off
    assert bits(module) == before and module[0].weight.grad is not None


def test_an_error_inside_puts_them_back_too():
    module = net()
    before = bits(module)
    with pytest.raises(ZeroDivisionError), moved(dict(module.named_parameters()), (1e30, {"2.bias": torch.ones(2)})):
        _ = 1 / 0
    assert bits(module) == before


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"2.bias": torch.ones(2), "nosuch": torch.ones(1)}, "moves nosuch, and the model has no such parameter"),
        ({"2.bias": torch.ones(2), "0.weight": torch.ones(4, 3)}, r"0.weight has shape \(4, 3\), and the parameter"),
        ({"0.weight": Factors(torch.ones(1, 3), torch.ones(4, 1), 1.0)}, r"has shape \(4, 3\)"),
    ],
    ids=["name", "shape", "factors"],
)
def test_what_does_not_fit_is_refused_and_nothing_has_moved(update, said):
    module = net()
    before = bits(module)
    with pytest.raises(BadData, match=said), moved(dict(module.named_parameters()), (1.0, update)):
        raise AssertionError("not reached")
    assert bits(module) == before


def test_a_base_with_the_delta_of_a_model_is_that_model():
    base, other = net(0), net(1)
    change = delta(other, base)
    assert set(change) == {name for name, _ in base.named_parameters()}
    with moved(dict(base.named_parameters()), (1.0, change)):
        for one, two in zip(base.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two)
    assert set(delta(other, base, only=lambda name: "bias" in name)) == {"0.bias", "2.bias"}
    with pytest.raises(BadData, match=r"2.weight has shape \(2, 3\), and in the base it is missing"):
        delta(other, base[:1])
