"""The house look: a copy for any page is inked on every axis, keeps what it is not asked to change, and leaves the
figure alone.
"""

import json

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from workbench.views import theme

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
