"""Noisy samples one by one: fates, tables, pictures and the bars of one epoch are the Result's numbers."""

import numpy as np
import pytest
from papers.memorization.layernorm_runs import N_EPOCHS, N_NOISY, made_result, stored

from workbench.datasets import digits
from workbench.datasets.classification import embedded
from workbench.papers.memorization.layernorm_memorization import panel_figures as views

PARTS = (("memorised", "memorisation"), ("recovered", "recovery"), ("random", "random"))


@pytest.fixture(scope="module")
def result():
    return made_result()


def test_a_sample_is_followed_through_the_epochs(result):
    figure = views.sample_history(result, "digits", 2, "post", "kept", 1, "stored")
    run = stored(result, "kept", "post").isel(run=1)
    assert list(figure.data[0].y) == run["predicted_train"].values[:, 2].tolist()
    assert list(figure.layout.yaxis.ticktext) == ["a", "b", "c"] and figure.layout.yaxis.title.text
    lines = sorted(shape.y0 for shape in figure.layout.shapes)
    assert lines == sorted([int(run["true_label"][2]), int(run["trained_label"][2])])


def test_the_table_says_what_became_of_each(result):
    run = stored(result, "removed", "post").isel(run=0)
    for epoch in (None, 0, 2, 99):
        table = views.noisy_samples(result, "digits", "post", "removed", 0, epoch=epoch, origin="stored")
        at = N_EPOCHS if epoch is None else min(epoch, N_EPOCHS)
        assert list(table["text"]) == [f"text {i}" for i in range(N_NOISY)]
        assert list(table["predicted"]) == ["abc"[k] for k in run["predicted_train"].values[at, :N_NOISY]]
        for word, score in PARTS:
            assert (table["became"] == word).mean() * 100 == pytest.approx(float(run[score][at]), rel=1e-5)


def test_the_map_counts_what_the_scores_count(result):
    run = stored(result, "kept", "pre").isel(run=1)
    index, fate = views.fates(run)
    drawn = views.fate_map(result, "digits", "pre", "kept", 1, "stored").data[0]
    assert fate.shape == (N_NOISY, N_EPOCHS + 1) and list(drawn.y) == [str(i) for i in index]
    np.testing.assert_array_equal(drawn.z, fate)
    for word, score in PARTS:
        np.testing.assert_allclose((fate == views.BECAME[word]).mean(0) * 100, run[score], rtol=1e-5)


@pytest.mark.parametrize("seed", [0, None], ids=["one seed", "mean"])
def test_bars_of_an_epoch(result, seed):
    figure = views.outcome_at(result, "digits", 1, ("kept", "late"), seed, "stored")
    bar = next(t for t in figure.data if t.name == "recovery" and t.xaxis == "x2")
    values = [stored(result, arm, "pre")["recovery"].values[:, 1] for arm in ("kept", "late")]
    np.testing.assert_allclose(bar.y, [v.mean() if seed is None else v[seed] for v in values], rtol=1e-5)
    assert (
        list(bar.x) == ["kept", "late third"]
        and "After epoch 1" in figure.layout.title.text
        and "stored runs" in figure.layout.title.text
    )


def test_a_seed_that_is_not_there_names_those_that_are(result):
    with pytest.raises(KeyError, match="seeds here: 0, 1"):
        views.one_run(result, "digits", "post", "kept", 7, "stored")


def test_digits_are_drawn_from_their_words():
    some = digits.digits("training")
    for text, image in zip(embedded("digits").train.texts[:5], some.images[:5], strict=True):
        np.testing.assert_array_equal(views.as_image(text), np.digitize(image, digits.EDGES))
        assert views.sample_html(text).count("<td") == 64
    assert views.as_image("anna hartwell felt gloomy") is None
    assert views.sample_html("a <b> & c") == "<blockquote style='margin:.4em 1em'>a &lt;b&gt; &amp; c</blockquote>"
