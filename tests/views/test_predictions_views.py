"""Figures of predictions: bars are the tables' numbers, losses belong to their own token, titles and units are
there, tokens are no markup.
"""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import predictions as views

NAN = np.nan


def made(read=("<b>", " a", "b"), loss=(2.0, 0.5, NAN), *, offset=1, model="m", d_vocab=9, ids=None) -> Result:
    """A prompt of given tokens; each position's likeliest tokens are two, at 0.6 and 0.3."""
    n, each = len(read), ("example", "pos")
    read_ids = list(range(n)) if ids is None else list(ids)
    after = [*read_ids[1:], 7] if offset else read_ids
    data = xr.Dataset(
        {
            "token": ((*each, "rank"), np.array([[[f"t{i}", "x"] for i in range(n)]], object), {"unit": "text"}),
            "token_id": ((*each, "rank"), [[[after[i], 8] for i in range(n)]], {"unit": "id"}),
            "probability": ((*each, "rank"), [[[0.6, 0.3]] * n], {"unit": "probability"}),
            "loss": (each, [list(loss)], {"unit": "nats"}),
            "entropy": (each, [[0.1 * (i + 1) for i in range(n)]], {"unit": "nats"}),
            "read": (each, np.array([list(read)], object), {"unit": "text"}),
            "read_id": (each, [read_ids], {"unit": "id"}),
            "n_tokens": ("example", [n], {"unit": "tokens"}),
        },
        coords={"rank": [0, 1], "pos": range(n)},
        attrs={"offset": offset, "d_vocab": d_vocab, "bos": "in front"},
    )
    return Result(Provenance("predictions", {}, 0, model={"name": model}), data)


# ---- numbers ----


def test_a_loss_belongs_to_the_token_it_is_of():
    assert views.own_loss(made()).tolist()[1:] == [2.0, 0.5] and np.isnan(views.own_loss(made())[0])
    assert views.own_loss(made(loss=(1, 2, 3), offset=0)).tolist() == [1, 2, 3]


def test_the_table_of_tokens_has_ids_losses_and_the_likeliest():
    table = views.token_table(made())
    assert list(table.columns) == ["pos", "token_id", "token", "loss", "entropy", "likeliest", "probability"]
    assert (
        table.token.tolist() == ["<b>", " a", "b"]
        and table.loss.tolist()[1:] == [2.0, 0.5]
        and table.likeliest.tolist() == ["t0", "t1", "t2"]
    )
    two = views.token_table(made(), made(model="n"))
    assert two.side.tolist() == ["m"] * 3 + ["n"] * 3


def test_past_the_end_of_a_shorter_prompt_nothing_is_shown():
    result = made()
    result.data["n_tokens"].values[:] = 2
    assert len(views.token_table(result)) == 2 and len(views.token_bars(result).data[0].x) == 2


@pytest.mark.parametrize(
    ("offset", "pos", "actual"), [(1, 0, True), (1, 2, False), (0, 1, True)], ids=["next", "nothing follows", "masked"]
)
def test_choices_mark_what_is_really_there(offset, pos, actual):
    table = views.choices(made(offset=offset), pos)
    assert table.actual.tolist() == [actual, False] and table.probability.tolist() == [0.6, 0.3]
    assert len(views.choices(made(), 0, top_k=1)) == 1


@pytest.mark.parametrize(
    ("models", "names"),
    [(["m"], [""]), (["m", "m"], ["first prompt", "second prompt"]), (["m", "n"], ["m", "n"])],
    ids=["one", "two prompts", "two models"],
)
def test_sides_are_named_by_what_differs(models, names):
    assert views.sides([made(model=name) for name in models]) == names


def test_two_checkpoints_of_one_name_are_told_apart():
    first, second = made(), made()
    second.provenance.model["weights"] = "other"
    assert views.sides([first, second]) == ["first m", "second m"]


# ---- two prompts ----


def test_tokens_align_and_differences_name_both_places():
    first, second = (
        made(("<b>", "tea", "is", "hot"), (1, 2, 3, NAN)),
        made(("<b>", "the", "cof", "is", "hot"), (1, 1, 1, 5, NAN)),
    )
    assert views.aligned(first, second) == [(0, 0), (2, 3), (3, 4)]
    assert views.differences(first, second).to_dict("records") == [
        {"first_pos": 1, "first": "tea", "second_pos": 1, "second": "the | cof"}
    ]
    assert views.differences(first, first).empty


def test_a_leading_space_counts_within_a_vocabulary_and_not_between_two():
    spaced, bare = ("<b>", " tea"), ("<b>", "tea")
    assert len(views.differences(made(spaced, (1, NAN)), made(bare, (1, NAN)))) == 1
    assert views.differences(made(spaced, (1, NAN)), made(bare, (1, NAN), d_vocab=10, model="n")).empty


def test_change_is_second_minus_first_at_the_tokens_both_have():
    first, second = (
        made(("<b>", "tea", "is", "hot"), (1, 2, 3, NAN)),
        made(("<b>", "the", "cof", "is", "hot"), (1, 1, 1, 5, NAN)),
    )
    a, b = views.token_values([first, second], "change")
    assert a.tolist()[2:] == [-1.0, 2.0] and b.tolist()[3:] == [-1.0, 2.0]
    assert np.isnan(a[:2]).all() and np.isnan(b[:3]).all()


# ---- figures ----


@pytest.mark.parametrize("quantity", ["loss", "entropy", "change"])
def test_bars_are_the_values_and_axes_say_nats(quantity):
    results = [made(), made(loss=(3.0, 1.0, NAN), model="n")]
    figure = views.token_bars(*results, quantity=quantity)
    for bars, values in zip(figure.data, views.token_values(results, quantity), strict=True):
        assert np.array_equal(bars.y, values, equal_nan=True)
    assert "nats" in figure.layout.yaxis.title.text and "nats" in figure.layout.yaxis2.title.text
    assert figure.layout.xaxis2.title.text == "Position (token read)" and figure.layout.yaxis2.matches == "y"
    assert "m:" in figure.layout.meta["alt"] and figure.layout.meta["provenance"].count("predictions") == 2


def test_tokens_are_text_in_labels_and_not_markup():
    figure = views.token_bars(made())
    assert figure.layout.xaxis.ticktext == ("0 &lt;b&gt;", "1 ·a", "2 b")
    assert "&lt;b&gt;" in views.next_tokens([made()], [0]).layout.title.text
    assert "<b>" in views.next_tokens([made()], [0]).layout.meta["alt"], "an alt text is no markup"


def test_a_long_prompt_names_only_some_of_its_tokens():
    n = 500
    figure = views.token_bars(made([f"w{i}" for i in range(n)], [1.0] * n))
    assert len(figure.data[0].x) == n and len(figure.layout.xaxis.ticktext) <= views.LABELS


def test_likeliest_tokens_are_bars_with_the_actual_one_marked():
    figure = views.next_tokens([made()], [0])
    bars = figure.data[0]
    assert list(bars.x) == [0.6, 0.3] and bars.marker.color[0] != bars.marker.color[1]
    assert "← follows" in bars.text[0] and "←" not in bars.text[1]
    assert (
        figure.layout.yaxis.ticktext == ("t0  (id 1)", "x  (id 8)") and figure.layout.xaxis.title.text == "Probability"
    )
    assert figure.layout.title.text.startswith("Likeliest tokens after position 0")


def test_equal_texts_of_two_ids_are_two_bars():
    result = made()
    result.data["token"].values[0, 0] = ["same", "same"]
    bars = views.next_tokens([result], [0]).data[0]
    assert list(bars.y) == [0, 1]


def test_two_sides_share_their_scale():
    other = made(model="n")
    other.data["probability"].values[:] = [0.9, 0.05]
    figure = views.next_tokens([made(), other], [0, 2])
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range and figure.layout.xaxis.range[1] > 0.9
    assert [a.text.split("<br>")[0] for a in figure.layout.annotations[:2]] == ["m", "n"]


def test_a_masked_model_predicts_at_and_not_after():
    figure = views.next_tokens([made(loss=(1, 2, 3), offset=0)], [1])
    assert "at position 1, masked" in figure.layout.title.text and "← stands there" in figure.data[0].text[0]


def test_nothing_computed_yet_is_drawn_empty():
    result = made(loss=(NAN, NAN, NAN))
    result.data["probability"].values[:] = NAN
    assert "none yet" in views.token_bars(result).layout.meta["alt"]
    assert len(views.next_tokens([result], [0]).data) == 1


def test_figures_of_a_result():
    assert list(views.figures(made())) == ["token_loss", "next_tokens"]
