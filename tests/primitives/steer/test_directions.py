"""A direction knows its place; differences recover a planted shift, components a planted axis, probes a planted
boundary.
"""

import numpy as np
import pytest
import torch
from models.families import FAMILIES

from workbench.core.errors import BadData, UnknownSite
from workbench.models import load
from workbench.primitives.read.capture import Capture, capture
from workbench.primitives.steer import directions
from workbench.primitives.steer.directions import (
    Direction,
    given,
    mean_difference,
    principal_component,
    probe_direction,
    random_like,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load(FAMILIES["gpt2"]())


def rows(n: int = 6, length: int = 5, seed: int = 1) -> list[list[int]]:
    return torch.randint(6, 64, (n, length), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def planted(monkeypatch):
    """Makes `capture` give chosen activations, by the first token of each row."""

    def plant(table: dict[int, torch.Tensor]) -> None:
        def fake(model, rows, sites, *, layers, **rest):
            return Capture({(sites[0], layers[0]): torch.stack([table[row[0]] for row in rows])}, len(rows), len(rows))

        monkeypatch.setattr(directions, "capture", fake)

    return plant


def test_the_difference_of_shifted_copies_is_the_shift(model):
    """The same prompts but for their last token: at the embedding, the last position is shifted by W_E[to] -
    W_E[from].
    """
    prompts = [row[:-1] for row in rows()]
    W_E = model.live.W_E.detach()
    found = mean_difference(model, [[*p, 9] for p in prompts], [[*p, 8] for p in prompts], site="embed", layer=None)
    torch.testing.assert_close(found.vector, W_E[9] - W_E[8])
    assert found.norm == pytest.approx(float((W_E[9] - W_E[8]).norm()))
    spread = mean_difference(
        model, [[*p, 9] for p in prompts], [[*p, 8] for p in prompts], site="embed", layer=None, pos="mean"
    )
    torch.testing.assert_close(spread.vector, (W_E[9] - W_E[8]) / 5, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("pos", ["last", "mean"])
def test_the_difference_is_that_of_the_captured_means_and_turns_with_its_sides(model, pos):
    ragged = [row[:n] for row, n in zip(rows(), (5, 3, 4, 5, 2, 3), strict=True)]
    taken = capture(model, ragged, ["resid_post"], layers=[1], reduce=pos)["resid_post", 1]
    found = mean_difference(model, ragged[:4], ragged[4:], layer=1, pos=pos)
    torch.testing.assert_close(found.vector, taken[:4].mean(0) - taken[4:].mean(0), atol=1e-6, rtol=1e-5)
    assert torch.equal(mean_difference(model, ragged[4:], ragged[:4], layer=1, pos=pos).vector, -found.vector)
    assert (found.site, found.layer) == ("resid_post", 1)
    assert f"4 positive rows minus mean of 2 negative rows, {pos} token" in found.source


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_component_is_the_planted_axis_with_its_largest_entry_positive(model, planted, sign):
    generator = torch.Generator().manual_seed(3)
    axis = sign * torch.nn.functional.normalize(torch.tensor([0.1, -0.9, *[0.05] * 30]), dim=0)
    planted({i: 7 + (i - 10) * axis + 0.01 * torch.randn(32, generator=generator) for i in range(20)})
    found = principal_component(model, [[i] for i in range(20)], layer=0)
    assert found.norm == pytest.approx(1)
    assert float(found.vector[1]) > 0 and float(found.vector @ -axis) * sign > 0.999
    assert "100 % of the variance" in found.source


def test_a_probe_points_at_the_positive_side_and_is_the_same_twice(model, planted):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(40, 32, generator=generator)
    planted({i: noise[i] + (8.0 if i < 20 else -8.0) * torch.eye(32)[5] for i in range(40)})
    sides = [[i] for i in range(20)], [[i] for i in range(20, 40)]
    found = probe_direction(model, *sides, layer=1, seed=0)
    assert found.norm == pytest.approx(1) and int(found.vector.abs().argmax()) == 5 and float(found.vector[5]) > 0.9
    assert "training accuracy 1.00" in found.source
    assert torch.equal(probe_direction(model, *sides, layer=1, seed=0).vector, found.vector)
    assert float(probe_direction(model, *sides[::-1], layer=1).vector[5]) < -0.9


def test_a_probe_on_the_model_itself_separates_its_own_rows(model):
    found = probe_direction(model, [[*r, 9] for r in rows()], [[*r, 8] for r in rows()], layer=1, penalty=1e-3)
    assert "training accuracy 1.00" in found.source


def test_random_controls_have_the_norm_and_place_of_their_direction():
    direction = given(np.arange(1.0, 33.0), "resid_mid", 1)
    draws = [random_like(direction, seed) for seed in (0, 0, 1)]
    assert all(
        draw.norm == pytest.approx(direction.norm, rel=1e-6) and (draw.site, draw.layer) == ("resid_mid", 1)
        for draw in draws
    )
    assert torch.equal(draws[0].vector, draws[1].vector) and not torch.equal(draws[0].vector, draws[2].vector)
    assert (
        abs(
            float(
                torch.stack([random_like(direction, s).unit().vector for s in range(200)])
                .matmul(direction.unit().vector)
                .mean()
            )
        )
        < 0.05
    )
    assert "random, seed 1" in draws[2].source


def test_a_direction_keeps_its_own_copy():
    source = torch.ones(4, dtype=torch.float64)
    direction = given(source, "resid_post", 0)
    source.zero_()
    assert direction.vector.dtype == torch.float32 and direction.norm == 2 and direction.unit().norm == 1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: given(torch.zeros(4), "resid_post", 0), BadData, "finite, non-zero"),
        (lambda: given(torch.tensor([1.0, float("nan")]), "resid_post", 0), BadData, "finite, non-zero"),
        (lambda: given(torch.ones(2, 2), "resid_post", 0), BadData, r"shape \(2, 2\)"),
        (lambda: given(torch.ones(4), "z", 0), UnknownSite, "use one of embed, resid_pre"),
        (lambda: given(torch.ones(4), "resid_post", None), UnknownSite, "say which"),
        (lambda: Direction(torch.ones(4), "residual", 0, "x"), UnknownSite, "no site called 'residual'"),
    ],
)
def test_what_is_no_direction_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_makers_refuse_what_gives_no_direction(model):
    with pytest.raises(BadData, match="norm 0"):
        mean_difference(model, rows(), rows(), layer=0)
    with pytest.raises(BadData, match="there are no prompts"):
        mean_difference(model, rows(), [], layer=0)
    with pytest.raises(BadData, match="no variance"):
        principal_component(model, rows()[:1] * 3, layer=0)
    with pytest.raises(BadData, match="no variance"):
        principal_component(model, rows()[:1], layer=0)
    with pytest.raises(BadData, match="pos must be 'last' or 'mean'"):
        mean_difference(model, rows(), rows(), layer=0, pos="first")
