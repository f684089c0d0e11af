"""Attribution views from small Results made by hand: parts in order, heads in their cells, neurons by size, signed
scales.
"""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import attribution as views
from workbench.views import theme

HEADS = ["embed", *(f"L{layer}H{head}" for layer in (0, 1) for head in range(12)), "L0 attn bias", "L1 mlp"]
NEURONS = ["embed", "L0 attn", *(f"L0N{i}" for i in range(30)), "L0 mlp bias"]


def result(parts, others=None) -> Result:
    values = np.random.default_rng(1).normal(size=(len(parts), 1)).astype(np.float32)
    data = xr.Dataset(
        {
            "attribution": (("part", "example"), values, {"unit": "logits"}),
            "logit": (("example",), values.sum(0), {"unit": "logits"}),
        },
        coords={"part": parts, "answer": ("example", ["<b>"])},
    )
    return Result(Provenance("direct_logit_attribution", {"others": others}, 0), data)


def test_parts_know_their_layer_and_unit():
    table = views.parts_table(
        result(["embed", "pos_embed", "L0 attn", "L11H3", "L2N450", "L11 mlp bias", "norm bias", "after unembedding"])
    )
    assert table.layer.tolist() == [-1, -1, 0, 11, 2, 11, -1, -1] and table.unit.tolist() == [
        -1,
        -1,
        -1,
        3,
        450,
        -1,
        -1,
        -1,
    ]


def test_heads_are_in_their_cells_even_with_two_digits():
    found = result(HEADS)
    cells = views.head_map(found)
    assert cells.shape == (2, 12)
    for layer, head in ((0, 2), (1, 10), (1, 11)):
        assert cells[layer, head] == pytest.approx(float(found.data.attribution.sel(part=f"L{layer}H{head}")[0]))
    heat = views.heads(found).data[0]
    np.testing.assert_array_equal(heat.z, cells)
    assert heat.zmin == -heat.zmax and heat.colorbar.title.text == "logits"


def test_neurons_come_by_size_and_the_rest_is_said():
    found = result(NEURONS)
    table = views.top_neurons(found, 5)
    every = found.data.attribution[2:32, 0].values
    np.testing.assert_allclose(table.logits, every[np.argsort(-np.abs(every))[:5]])
    said, first = views.neurons_said(found, 5)
    assert f"30 neurons together {every.sum():+.3f}" in said and first.equals(table)
    bars = views.neurons(found, 5).data[0]
    np.testing.assert_array_equal(bars.y, table.logits)
    assert list(bars.x) == table.part.tolist()


def test_components_are_drawn_in_order_with_their_sum_in_the_title():
    found = result(["embed", "L0 attn", "L0 mlp"])
    figure = views.components(found)
    np.testing.assert_allclose(figure.data[0].y, found.data.attribution[:, 0])
    assert f"{float(found.data.logit[0]):.2f}" in figure.layout.title.text
    assert [c == theme.RED for c in figure.data[0].marker.color] == (found.data.attribution[:, 0] >= 0).values.tolist()


def test_what_is_split_is_named():
    assert views.of_what(result(["embed"])) == "logit of '<b>'"
    other = result(["embed"], others=[7])
    assert views.of_what(other) == "logit of '<b>' minus that of 'token 7'"
    other.data.coords["other"] = ("example", ["c"])
    assert views.of_what(other) == "logit of '<b>' minus that of 'c'"


def test_every_figure_has_titles_alt_text_and_provenance():
    for figure in (
        views.components(result(HEADS)),
        views.components(result(HEADS[:3])),
        views.heads(result(HEADS)),
        views.neurons(result(NEURONS)),
    ):
        assert figure.layout.xaxis.title.text and "logits" in (
            figure.layout.yaxis.title.text + str(figure.data[0].to_plotly_json().get("colorbar"))
        )
        assert len(figure.layout.meta["alt"]) > 20 and "direct_logit_attribution" in figure.layout.annotations[-1].text
