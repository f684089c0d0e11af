"""Figures of the inactive-heads analysis: drawn numbers are the Result's, axes have titles and units, provenance is
under each.
"""

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.core.errors import UnknownName
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.attention.attention_sinks import figures as views
from workbench.papers.attention.attention_sinks import method as sinks
from workbench.papers.attention.attention_sinks.claims import flagged
from workbench.views import figures, theme


@pytest.fixture(scope="module")
def result(organism):
    spec = sinks.Spec.tiny().replace(
        n_inputs=12, scores=("awft", "ahon_ln", "lthon"), n_random=2, controls=False, length=48
    )
    return sinks.run(spec, model=organism)


def test_every_figure_has_axis_titles_alt_text_and_provenance(result):
    drawn = figures(result)
    assert next(iter(drawn)) == "accuracy_vs_share" and len(drawn) == 5
    for name, figure in drawn.items():
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text, name
        assert len(figure.layout.meta["alt"]) > 20, name
        assert result.provenance.short() in [a.text for a in figure.layout.annotations], name
        assert figure.layout.font.size is None or figure.layout.font.size >= 12


def test_curves_draw_the_results_numbers(result):
    figure = views.accuracy_vs_share(result)
    assert "%" in figure.layout.yaxis.title.text and "%" in figure.layout.xaxis.title.text
    blue = next(t for t in figure.data if t.name == "Average output norm (LN)")
    np.testing.assert_allclose(blue.y, result.data["accuracy"].sel(score="ahon_ln").mean("input").values * 100)
    np.testing.assert_allclose(blue.x, result.data["realised"].sel(score="ahon_ln").values * 100)


def test_maps_start_at_zero_and_name_their_unit(result):
    heat = views.score_map(result, "ahon_ln").data[0]
    assert heat.zmin == 0 and heat.colorbar.title.text == "ratio to layer mean"
    np.testing.assert_allclose(heat.z, result.data["value"].sel(score="ahon_ln").mean("input").values)
    assert views.overlap(result).data[0].zmax == 1


def test_raster_counts_what_the_method_flags(result):
    for score in ("ahon_ln", "awft"):
        drawn = np.asarray(views.raster(result, score).data[0].z)
        assert drawn.sum() == flagged(result.data, score, 0.15).sum()


def test_signed_limits_are_centred():
    limits = theme.signed_limits(np.array([[-1.0, 3.0], [np.nan, 0.0]]))
    assert limits == {"zmin": -3.0, "zmax": 3.0, "zmid": 0.0}


def test_a_result_without_views_says_so():
    with pytest.raises(UnknownName, match="no figures for 'nosuch'"):
        figures(Result(Provenance("nosuch", {}, 0)))


def test_finish_survives_an_empty_figure():
    figure = theme.finish(go.Figure(), "t", "nothing to see here, honestly", Provenance("s", {}, 0))
    assert figure.layout.title.text == "t" and figure.layout.width == theme.WIDTH
