"""Attention views from small Results made by hand: what is drawn is the pattern, futures are blank, pooled
thumbnails keep the largest.
"""

import html

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import attention as views
from workbench.views import figures, theme


def result(side=4, causal=1, n_layers=2, n_heads=3, effect=False) -> Result:
    rng = np.random.default_rng(0)
    pattern = rng.random((n_layers, n_heads, side, side)).astype(np.float32)
    pattern = np.tril(pattern) if causal else pattern
    pattern /= pattern.sum(-1, keepdims=True)
    scores = rng.random((2, n_layers, n_heads)).astype(np.float32)
    scores[1] *= 3
    data = xr.Dataset(
        {
            "pattern": (("layer", "head", "query_pos", "key_pos"), pattern),
            "scores": (("score", "layer", "head"), scores),
        },
        coords={
            "query_pos": range(side),
            "key_pos": range(side),
            "token": ("query_pos", [f"<t{i}>" for i in range(side)]),
            "token_id": ("query_pos", range(side)),
            "layer": range(n_layers),
            "head": range(n_heads),
            "score": ["first_token", "entropy"],
            "title": ("score", ["First", "Entropy"]),
            "unit": ("score", ["share of attention", "nats"]),
        },
        attrs={"pool": 1, "n_pos": side, "causal": causal},
    )
    if effect:
        data["probability"] = (
            ("run", "candidate"),
            np.array([[0.7, 0.1], [0.2, 0.6]]),
            {"long_name": "Probability of the next token", "unit": "probability"},
        )
        data["candidate_id"] = ("candidate",), [5, 6]
        data = data.assign_coords(candidate=("candidate", ["same", "same"])).assign_attrs(
            n_replaced=2, firings=1, effect=1.0
        )
    return Result(Provenance("attention", {}, 0), data)


@pytest.mark.parametrize("causal", [1, 0])
def test_thumbnails_are_the_roots_of_the_weights(causal):
    found = result(causal=causal)
    codes, pattern = views.thumbnails(found), found.data["pattern"].values
    past = np.tril(np.ones((4, 4), bool)) if causal else np.ones((4, 4), bool)
    np.testing.assert_allclose((codes[..., past] / views.TOP) ** 2, pattern[..., past], atol=1 / views.TOP)
    assert (codes[..., ~past] == views.BLANK).all() and codes.dtype == np.uint8


def test_large_thumbnails_keep_the_largest_of_each_block():
    found = result(side=130)
    codes = views.thumbnails(found)
    assert codes.shape == (2, 3, 44, 44)  # blocks of 3
    corner = found.data["pattern"].values[:, :, :3, :3].max((2, 3))
    np.testing.assert_array_equal(codes[:, :, 0, 0], np.rint(views.TOP * np.sqrt(corner)))
    assert codes[0, 0, -1, -1] == round(
        views.TOP * float(np.sqrt(found.data["pattern"].values[0, 0, 129, 129]))
    )  # a block of one


def test_all_thumbnails_together_stay_small():
    assert views.thumbnails(result(side=64, n_layers=12, n_heads=12)).nbytes == 144 * 64 * 64 <= views.MAX_BYTES
    assert views.thumbnails(result(side=64, n_layers=32, n_heads=32)).nbytes <= views.MAX_BYTES


def test_weights_are_blank_where_a_causal_model_cannot_look():
    causal, both = result(), result(causal=0)
    shown = views.weights(causal, 1, 2)
    assert np.isnan(shown[np.triu_indices(4, 1)]).all() and np.isfinite(shown[np.tril_indices(4)]).all()
    np.testing.assert_array_equal(views.weights(both, 1, 2), both.data["pattern"].values[1, 2])


def test_tables_are_the_data():
    found = result()
    heads = views.head_table(found, [[1, 0]])
    assert (
        list(heads) == ["layer", "head", "first_token", "entropy", "off"]
        and heads.off.tolist() == [False] * 3 + [True] + [False] * 2
    )
    np.testing.assert_array_equal(heads.entropy.to_numpy().reshape(2, 3), found.data["scores"][1])
    cells = views.pattern_table(found, 0, 1)
    assert len(cells) == 10 and cells.weight.sum() == pytest.approx(4, abs=1e-5)
    assert cells.iloc[-1].tolist()[:4] == [3, "<t3>", 3, "<t3>"]
    assert views.change_table(found).empty
    change = views.change_table(result(effect=True))
    np.testing.assert_allclose(change.change, [-0.5, 0.5])


def test_the_grid_draws_every_thumbnail_and_names_its_score():
    found = result()
    figure = views.grid(found, "entropy", [[0, 1]])
    sheet, codes = np.asarray(figure.data[0].z), views.thumbnails(found, views.DRAWN_SIDE)
    drawn = np.sort(sheet[np.isfinite(sheet)])
    np.testing.assert_allclose(drawn, np.sort(codes[codes != views.BLANK] / views.TOP), atol=1e-6)
    values = found.data["scores"][1].values.ravel()
    assert list(figure.data[1].text) == [f"{v:.2f}" + (" off" if i == 1 else "") for i, v in enumerate(values)]
    rows = sheet.shape[0] // 2, sheet.shape[1] // 3
    tile = sheet[rows[0] :, 2 * rows[1] :]
    np.testing.assert_allclose(np.nanmax(tile), codes[1, 2][codes[1, 2] != views.BLANK].max() / views.TOP, atol=1e-6)
    assert "head" in figure.layout.meta["alt"] and figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_a_pattern_has_its_tokens_and_starts_at_zero():
    found = result()
    heat = views.pattern(found, 0, 2).data[0]
    np.testing.assert_array_equal(heat.z, views.weights(found, 0, 2))
    assert (
        [html.unescape(t) for t in heat.x] == ["0 <t0>", "1 <t1>", "2 <t2>", "3 <t3>"]
        and heat.zmin == 0
        and heat.zmax == np.nanmax(heat.z)
    )


def test_pooled_rows_are_named_as_such():
    found = result()
    found.data.attrs["pool"] = 3
    assert views.token_names(found)[1] == "1 <t1> ..."


def test_scores_of_shares_go_from_0_to_1_and_others_to_their_largest():
    found = result()
    assert views.score_limits(found, "first_token") == (0.0, 1.0)
    assert views.score_limits(found, "entropy") == (0.0, pytest.approx(float(found.data["scores"][1].max())))
    heat = views.head_scores(found, "entropy").data[0]
    np.testing.assert_array_equal(heat.z, found.data["scores"][1])
    found.data["scores"][1] = np.nan
    assert views.score_limits(found, "entropy") == (0.0, 1.0)


def test_change_draws_both_runs_and_keeps_equal_texts_apart():
    figure = views.change(result(effect=True))
    np.testing.assert_allclose([trace.y for trace in figure.data], [[0.7, 0.1], [0.2, 0.6]])
    assert len(set(figure.data[0].x)) == 2 and list(figure.layout.xaxis.ticktext) == ["same", "same"]
    assert "2 heads off" in figure.layout.title.text and "0.700 to 0.200" in figure.layout.meta["alt"]


def test_every_figure_has_titles_alt_text_and_provenance():
    found = result(effect=True)
    drawn = figures(found) | {"pattern": views.pattern(found, 0, 0)}
    assert list(drawn) == ["attention_grid", "head_scores", "heads_off", "pattern"]
    for name, figure in drawn.items():
        assert (
            figure.layout.xaxis.title.text and figure.layout.yaxis.title.text and len(figure.layout.meta["alt"]) > 20
        ), name
        assert found.provenance.short() in [a.text for a in figure.layout.annotations], name


def test_one_position_can_be_drawn():
    for causal in (1, 0):
        for figure in figures(result(side=1, causal=causal)).values():
            assert figure.layout.meta["alt"]
        assert "largest weight is 1.00" in views.pattern(result(side=1, causal=causal), 0, 0).layout.meta["alt"]


def test_a_pattern_without_a_number_is_drawn_and_says_so():
    found = result()
    found.data["pattern"][:] = np.nan
    for layer_head in ((0, 0), (1, 2)):
        assert views.pattern(found, *layer_head).layout.meta["alt"].endswith(f". {theme.NOTHING}")
    assert all(figure.layout.meta["alt"].endswith(".") for figure in figures(found).values())
