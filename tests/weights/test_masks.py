"""Masks against ranking by hand: one threshold over all or a share of each, and random ones of the same sizes."""

import pytest
import torch

from workbench.core.errors import BadData
from workbench.weights.masks import density, matched, top

SCORES = {
    "model.layers.0.mlp.up_proj.weight": torch.tensor([[1.0, 9.0], [2.0, 8.0]]),
    "model.layers.1.mlp.experts.down_proj": torch.tensor([[[3.0], [7.0]], [[6.0], [-1.0]]]),
    "lm_head.weight": torch.tensor([5.0, 4.0]),
}


def chosen(mask) -> list[list[float]]:
    return [SCORES[name][m].tolist() for name, m in mask.items()]


def test_one_threshold_over_all_and_a_share_of_each():
    assert chosen(top(SCORES, 0.5)) == [[9.0, 8.0], [7.0, 6.0], [5.0]]
    assert chosen(top(SCORES, 0.5, within_each=True)) == [[9.0, 8.0], [7.0, 6.0], [5.0]]
    assert chosen(top(SCORES, 0.2)) == [[9.0, 8.0], [], []]
    assert chosen(top(SCORES, 0.25, within_each=True)) == [[9.0], [7.0], []]  # half an entry of two rounds to none
    assert chosen(top(SCORES, 0.0)) == [[], [], []] and all(m.all() for m in top(SCORES, 1.0).values())
    assert all(m.shape == SCORES[name].shape for name, m in top(SCORES, 0.3).items())


def test_ties_fall_to_the_first():
    flat = {"a": torch.zeros(3), "b": torch.zeros(3)}
    assert [m.tolist() for m in top(flat, 0.5).values()] == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_and_a_nan_are_refused(share):
    with pytest.raises(BadData, match="between 0 and 1"):
        top(SCORES, share)
    with pytest.raises(BadData, match="scores of odd hold nan"):
        top({"odd": torch.tensor([1.0, float("nan")])}, 0.5)


def test_a_matched_mask_has_the_same_counts_in_other_places():
    mask = {"a": torch.arange(1000).view(10, 100) < 100, "b": torch.zeros(4, dtype=torch.bool)}
    drawn = matched(mask, torch.Generator().manual_seed(0))
    again = matched(mask, torch.Generator().manual_seed(0))
    assert {name: int(m.sum()) for name, m in drawn.items()} == {"a": 100, "b": 0}
    assert all(torch.equal(drawn[name], again[name]) for name in mask)
    overlap = int((drawn["a"] & mask["a"]).sum())
    assert overlap < 30 and drawn["a"].shape == (10, 100)  # chance: 10 of 100, standard deviation 2.8
    every = sum(matched(mask, torch.Generator().manual_seed(k))["a"].int() for k in range(400))
    assert every.float().std() == pytest.approx((400 * 0.1 * 0.9) ** 0.5, rel=0.15)  # no place is favoured


def test_density_says_where():
    table = density(top(SCORES, 0.5)).set_index("parameter")
    assert table["layer"].tolist() == [0, 1, -1] and table["part"].tolist() == ["mlp", "mlp", ""]
    assert table["projection"].tolist() == ["up_proj", "down_proj", "lm_head"]
    assert table["density"].tolist() == [0.5, 0.5, 0.5] and table["chosen"].tolist() == [2, 2, 1]
