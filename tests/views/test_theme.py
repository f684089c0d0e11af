"""The house look: a copy for any page is inked on every axis, keeps what it is not asked to change, and leaves the
figure alone.
"""

import json

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from workbench.core.provenance import Provenance
from workbench.views import theme
from workbench.views.drawn_data import drawn_data

INK = {"color": "#767676", "gridcolor": "rgba(128,128,128,.25)", "linecolor": "#767676"}


def four_panes() -> go.Figure:
    return make_subplots(2, 2).add_scatter(x=[1], y=[2], row=2, col=2).update_layout(width=300, font={"size": 9})


@pytest.mark.parametrize("figure", [go.Figure(), four_panes()], ids=["empty", "four panes"])
def test_a_copy_for_any_paper_is_what_plotly_updates_make(figure):
    before = json.loads(figure.to_json())
    by_hand = go.Figure(figure).update_xaxes(**INK).update_yaxes(**INK)
    clear = "rgba(0,0,0,0)"
    by_hand.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, font={"color": "#767676"}, width=None, autosize=True)
    assert json.loads(theme.on_any_paper(figure).to_json()) == json.loads(by_hand.to_json())
    assert json.loads(figure.to_json()) == before


ABOUT = Provenance("x", {}, 0, model={"name": "a <b> model"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [("<s>", "&lt;s&gt;"), ("a & b", "a &amp; b"), ("\n\t", "↵⇥"), ("\x1b\x00\x7f", r"\x1b\x00\x7f"), (5, "5")],
)
def test_a_label_shows_every_character(text, shown):
    assert theme.label(text) == shown


def test_what_is_exported_is_what_a_label_stands_for():
    figure = go.Figure(go.Heatmap(z=[[1.0]], x=[theme.label("<s> & 1")], y=["a"], text=[[theme.label("</s>")]]))
    [row] = drawn_data(figure).to_dict("records")
    assert (row["x"], row["text"], row["z"]) == ("<s> & 1", "</s>", 1.0)


NAN = float("nan")


@pytest.mark.parametrize(
    "figure",
    [
        go.Figure(go.Heatmap(z=[[NAN, NAN]], x=["1", "2"])).add_scatter(x=[1.0], y=[2.0], mode="text"),
        go.Figure(go.Bar(x=["1", "2"], y=[NAN, float("inf")])),
        go.Figure(go.Bar(y=["1", "2"], x=[NAN, NAN], orientation="h")),
        go.Figure(go.Scatter(x=[1, 2], y=[NAN, NAN])),
    ],
    ids=["map", "bars", "lying bars", "line"],
)
def test_a_figure_without_a_finite_number_says_so(figure):
    done = theme.finish(figure, "t", "A figure.", ABOUT)
    assert done.layout.meta["alt"] == f"A figure. {theme.NOTHING}"
    assert done.layout.annotations[0].text == theme.NOTHING
    assert "a &lt;b&gt; model" in done.layout.annotations[-1].text, "the line of provenance stays the last"


@pytest.mark.parametrize(
    "figure",
    [go.Figure(), go.Figure(go.Heatmap(z=[[NAN, 0.0]])), go.Figure(go.Bar(x=["1"], y=[2.0])), four_panes()],
    ids=["empty", "map", "bars", "panes"],
)
def test_a_figure_with_numbers_or_without_any_says_nothing(figure):
    assert theme.finish(figure, "t", "A figure.", ABOUT).layout.meta["alt"] == "A figure."


def test_limits_and_the_largest_leave_out_what_is_no_number():
    values = [[NAN, -3.0], [float("inf"), 2.0]]
    assert theme.signed_limits(values) == {"zmin": -3.0, "zmax": 3.0, "zmid": 0.0} and theme.largest_at(values) == (
        0,
        1,
    )
    assert theme.signed_limits([NAN]) == {"zmin": -1.0, "zmax": 1.0, "zmid": 0.0} and theme.largest_at([NAN]) is None
