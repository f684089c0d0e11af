"""The figure of a logit lens shows the Result's own numbers, with units, names and words in the cells."""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import lenses as views


@pytest.fixture
def lens() -> Result:
    """Two layers and the embedding over two positions; likelier with depth; the followed token climbs from rank 99
    to the top.
    """
    p = np.array([[[0.2, 0.1]] * 2, [[0.5, 0.2]] * 2, [[0.9, 0.05]] * 2])
    data = xr.Dataset(
        {
            "probability": (("layer", "pos", "rank"), p, {"unit": "probability", "long_name": "Probability"}),
            "token": (
                ("layer", "pos", "rank"),
                np.array([[[f"L{k}p{i}", "x"] for i in range(2)] for k in range(3)]),
                {"unit": "text", "long_name": "Token"},
            ),
            "token_id": (
                ("layer", "pos", "rank"),
                np.arange(12).reshape(3, 2, 2),
                {"unit": "id", "long_name": "Token id"},
            ),
            "entropy": (
                ("layer", "pos"),
                [[4.0, 3.0], [2.0, 1.0], [0.5, 0.25]],
                {"unit": "nats", "long_name": "Entropy"},
            ),
            "target_rank": (
                ("layer", "pos", "target"),
                [[[99], [9]], [[9], [0]], [[0], [0]]],
                {"unit": "tokens above", "long_name": "Rank"},
            ),
        },
        coords={"layer": range(3), "pos": range(2), "rank": range(2), "prompt": ("pos", ["<bos>", "tea"])},
    )
    return Result(Provenance("logit_lens", {}, 0, model={"name": "m"}), data)


@pytest.mark.parametrize(
    ("quantity", "values", "unit"),
    [
        ("probability", [[0.2, 0.2], [0.5, 0.5], [0.9, 0.9]], "probability"),
        ("entropy", [[4, 3], [2, 1], [0.5, 0.25]], "nats"),
        ("rank", [[2, 1], [1, 0], [0, 0]], "log10(1 + rank)"),
    ],
    ids=["probability", "entropy", "rank"],
)
def test_the_grid_shows_the_quantity_with_its_unit(lens, quantity, values, unit):
    figure = views.lens_grid(lens, quantity)
    assert np.allclose(figure.data[0].z, values) and figure.data[0].colorbar.title.text == unit
    assert np.array_equal(views.lens_values(lens, quantity), figure.data[0].z)
    assert figure.data[0].zmin == 0, "an unsigned map starts at its own zero"


def test_cells_say_the_likeliest_token_and_axes_what_they_are(lens):
    figure = views.lens_grid(lens)
    assert figure.data[0].text.tolist() == [["L0p0", "L0p1"], ["L1p0", "L1p1"], ["L2p0", "L2p1"]]
    assert (
        figure.layout.xaxis.title.text == "Position (token read)" and figure.layout.yaxis.title.text == "Blocks passed"
    )
    assert list(figure.data[0].y) == ["embed", "1", "2 (output)"] and figure.data[0].x[1] == "1 tea"
    assert figure.layout.yaxis.autorange == "reversed", "the embedding is at the top"


def test_equal_tokens_at_two_positions_stay_two_columns(lens):
    lens.data["prompt"].values[:] = "tea"
    assert len(set(views.lens_grid(lens).data[0].x)) == 2


def test_alt_and_provenance_are_in_the_figure(lens):
    meta = views.lens_grid(lens).layout.meta
    assert "first choice is L2p1" in meta["alt"] and meta["provenance"].startswith("logit_lens · m")


def test_a_cell_lists_its_tokens_in_order(lens):
    table = views.cell_table(lens, 1, 0)
    assert list(table.columns) == ["rank", "token", "token_id", "probability"]
    assert (
        table.token.tolist() == ["L1p0", "x"]
        and table.probability.tolist() == [0.5, 0.2]
        and table.token_id.tolist() == [4, 5]
    )


def test_figures_of_a_lens(lens):
    assert list(views.figures(lens)) == ["logit_lens"]
