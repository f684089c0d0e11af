"""Figures of steering from a small Result: the line is the direction, the band the random arms, texts stand beside
their control; no model.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import figures
from workbench.views import steering as views

ARMS, COEFFICIENTS = ["direction", "random 0", "random 1"], [-2.0, 0.0, 2.0]


def steered(arms=ARMS, metric=True, normalise="none", missing=()) -> Result:
    shape = (len(arms), 3, 2)
    loss = np.arange(np.prod(shape), dtype=float).reshape(shape)
    loss[(*missing,)] = np.nan if missing else loss[(*missing,)]
    names = {
        "continuation_loss": ("Loss of the continuation under the unsteered model", "nats/token", loss),
        "effect": ("Largest logit change on prompt and continuation", "logits", loss / 2),
    }
    names |= {
        name: (name, "share of tokens", loss * 0)
        for name in ("repeated_ngram_share", "longest_run_share", "is_degenerate")
    } | {"n_tokens": ("New tokens", "tokens", loss * 0 + 3)}
    if metric:
        names["metric"] = ("logit_diff", "logits", -loss)
    dims = ("arm", "coefficient", "example")
    data = xr.Dataset(
        {n: (dims, v, {"long_name": t, "unit": u}) for n, (t, u, v) in names.items()},
        coords={"arm": arms, "coefficient": COEFFICIENTS, "example": [0, 1]},
    )
    data["is_degenerate"].values[0, 2, 1] = 1
    rows = [
        (arm, c, i, f"prompt {i}", f"{arm} at {c:g} <b>{i}</b>", [1])
        for arm in arms
        for c in COEFFICIENTS
        for i in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["arm", "coefficient", "example", "prompt", "text", "ids"])
    return Result(Provenance("steering", {"normalise": normalise, "norm": 3.0}, 0), data, {"generations": table})


def drawn(figure):
    return {trace.name: trace for trace in figure.data}


def test_the_line_is_the_direction_and_the_band_the_range_of_the_random_arms():
    result = steered()
    table = views.curve_table(result, "continuation_loss")
    np.testing.assert_allclose(table["direction"], [0.5, 2.5, 4.5])
    np.testing.assert_allclose(
        table[["random_low", "random_mean", "random_high"]], [[6.5, 9.5, 12.5], [8.5, 11.5, 14.5], [10.5, 13.5, 16.5]]
    )
    figure = views.curve(result, "continuation_loss", chosen=2.0)
    traces = drawn(figure)
    np.testing.assert_allclose(traces["this direction"].y, table["direction"])
    np.testing.assert_allclose(traces["2 random directions of that norm: range"].y, [12.5, 14.5, 16.5, 10.5, 8.5, 6.5])
    np.testing.assert_allclose(traces["random directions: mean"].y, table["random_mean"])
    assert (
        figure.layout.yaxis.title.text == "Loss of the continuation (nats/token)"
        and figure.layout.xaxis.title.text == "Coefficient (1 = the vector, norm 3)"
    )
    assert {s.x0 for s in figure.layout.shapes} == {
        0,
        2.0,
    } and "random directions 10.5 to 16.5 there" in figure.layout.meta["alt"]


@pytest.mark.parametrize(
    ("normalise", "said"),
    [("unit", "units of the activations"), ("stream", "1 = as long as the activation")],
    ids=["unit", "stream"],
)
def test_the_axis_says_what_a_coefficient_of_one_adds(normalise, said):
    assert said in views.curve(steered(normalise=normalise), "effect").layout.xaxis.title.text


def test_measures_are_those_that_were_taken_with_the_target_in_words():
    assert list(views.measures(steered())) == [
        "metric",
        "continuation_loss",
        "repeated_ngram_share",
        "longest_run_share",
        "is_degenerate",
        "effect",
    ]
    assert views.measures(steered())[
        "metric"
    ] == "Logit of the target minus the other word" and "metric" not in views.measures(steered(metric=False))
    assert next(iter(figures(steered(metric=False)))) == "steering_continuation_loss"


def test_without_random_arms_there_is_no_band():
    result = steered(arms=["direction"])
    assert list(drawn(views.curve(result, "effect"))) == ["this direction"] and "random" not in views.side_by_side(
        result, 2.0
    )
    assert "random" not in views.side_by_side_html(result, 2.0)


def test_what_did_not_come_leaves_a_gap():
    result = steered(missing=(slice(None), 2))
    table = views.curve_table(result, "continuation_loss")
    assert np.isnan(table["direction"][2]) and np.isfinite(table["direction"][:2]).all()
    assert len(drawn(views.curve(result, "continuation_loss"))["2 random directions of that norm: range"].x) == 4
    nothing = steered(missing=(slice(None),))
    assert "Nothing was measured" in views.curve(nothing, "continuation_loss").layout.meta["alt"]


def test_texts_stand_beside_their_control_and_a_random_direction():
    found = views.side_by_side(steered(), 2.0)
    assert found.loc[1, ["prompt", "at_0", "steered", "random"]].tolist() == [
        "prompt 1",
        "direction at 0 <b>1</b>",
        "direction at 2 <b>1</b>",
        "random 0 at 2 <b>1</b>",
    ]
    assert views.has_coefficient(steered(), 2.0 + 1e-12) and not views.has_coefficient(steered(), 1.0)
    half = steered()
    half.tables["generations"] = half.tables["generations"].query("not (arm == 'direction' and coefficient == 2)")
    assert views.ran(half) == [-2.0, 0.0] and not views.has_coefficient(half, 2.0)
    assert views.side_by_side(steered(), 1.0)["steered"].tolist() == ["", ""]


def test_the_html_escapes_texts_and_marks_what_broke():
    page = views.side_by_side_html(steered(), 2.0)
    assert "direction at 2 &lt;b&gt;0&lt;/b&gt;" in page and "<b>0</b>" not in page
    assert (
        page.count(">degenerate<") == 1
        and "coefficient 0 (control)" in page
        and "4.00 nats/token" in page
        and "target -4" in page
    )
    assert views.side_by_side_html(steered(), 1.0).count("not run") == 4


def test_an_empty_continuation_is_called_empty():
    result = steered(missing=(0, 2, 0))
    result.tables["generations"].loc[
        lambda t: (t.arm == "direction") & (t.coefficient == 2) & (t.example == 0), "text"
    ] = ""
    page = views.side_by_side_html(result, 2.0)
    assert "<i>empty</i>" in page and "no tokens" in page


def test_the_table_has_every_text_with_its_measures():
    result = steered()
    table = views.table(result)
    assert len(table) == 3 * 3 * 2
    one = table.query("arm == 'random 1' and coefficient == -2 and example == 1").iloc[0]
    assert one.continuation_loss == 13 and one.metric == -13 and one.text == "random 1 at -2 <b>1</b>"
    mean = table[table.arm == "direction"].groupby("coefficient")["continuation_loss"].mean()
    np.testing.assert_allclose(mean, views.curve_table(result, "continuation_loss")["direction"])
