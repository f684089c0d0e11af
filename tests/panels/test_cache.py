"""The cache panel without a browser: it lists what is held, opens sites as heat maps, frees on a button, deletes
only on a word.
"""

import threading

import numpy as np
import pytest
import torch

from workbench import panels
from workbench.core.errors import WorkbenchError
from workbench.models import load
from workbench.primitives.read.capture import Capture, capture
from workbench.primitives.read.store import write_store

ROWS = [[1, *range(3, 13)], [1, *range(13, 23)]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def acts(model):
    return capture(model, ROWS, ["resid_post", "z", "pattern"])


@pytest.fixture
def store(model, tmp_path):
    return write_store(model, ROWS, ["resid_post"], folder=tmp_path / "stores" / "mine")


@pytest.fixture
def panel(model, acts, store, tmp_path):
    made = panels.Cache({"model": model, "acts": acts}, folder=tmp_path / "stores").look().wait(30)
    assert made.state.error == ""
    return made


def choose(panel, text, site=""):
    panel.holding.value = next(key for label, key in panel.holding.options if text in label)
    if site:
        panel.site.value = site
    return panel


def drawn(panel):
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


def test_nothing_is_looked_at_when_it_is_made():
    made = panels.Cache(look=lambda *_: pytest.fail("looked"))
    assert made.table().empty and made.figures() == {} and made.free.disabled and made.drop.disabled
    with pytest.raises(WorkbenchError, match="nothing to save yet"):
        made.save("x.html")


def test_it_lists_models_captures_and_stores_with_shapes_and_bytes(panel, acts, monkeypatch):
    monkeypatch.setattr("workbench.views.cache.MOST_BARS", 10_000)  # models of other tests may be held too
    table = panel.table()
    assert {"model", "capture", "store"} <= set(table["kind"]) and "GB" in panel.state.memory
    mine = table[table["name"] == "acts"].set_index("site")
    assert (
        mine.loc["z 1", "shape"] == "example x pos x head x d_head: 2 x 11 x 4 x 16"
        and mine.loc["z 1", "where"] == "cpu"
    )
    assert mine["MB"].sum() == pytest.approx(acts.n_bytes / 1e6)
    kept = table[(table["kind"] == "store") & (table["site"] == "resid_post 1")]
    assert kept["shape"].item() == "token x d_model: 22 x 64" and kept["where"].item() == "disk"
    assert "example x pos x head" in panel.listing.value and list(panel.figures()) == ["held"]
    bars = {name: mb for bar in panel.figures()["held"].data for name, mb in zip(bar.y, bar.x, strict=True)}
    assert bars["acts"] == pytest.approx(acts.n_bytes / 1e6)


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("resid_post 1", lambda a: a["resid_post", 1][0]),
        ("z 0", lambda a: a["z", 0][0, :, 0]),
        ("pattern 1", lambda a: a["pattern", 1][0, 0]),
    ],
    ids=["stream", "heads", "pattern"],
)
def test_a_site_opens_as_it_was_captured(panel, acts, site, expected):
    choose(panel, "acts", site)
    assert panel.state.error == ""
    np.testing.assert_allclose(drawn(panel), expected(acts), rtol=1e-6)
    np.testing.assert_allclose(panel.figures()["site"].data[0].z, drawn(panel))
    np.testing.assert_allclose(panel.table()["norm"], np.linalg.norm(drawn(panel), axis=1), rtol=1e-4)
    np.testing.assert_allclose(panel.table()["largest"], drawn(panel).max(1), rtol=1e-6)
    assert panel.grid.signed == bool(drawn(panel).min() < 0)


def test_only_what_can_be_opened_offers_to_open(panel):
    choose(panel, "model = ")
    assert panel._opened.layout.display == "none"
    choose(panel, "acts")
    assert panel._opened.layout.display == "flex" and panel.grid.layout.display == "none"
    panel.site.value = "z 0"
    assert panel.grid.layout.display == "flex"
    panel.site.value = ""
    assert panel.grid.layout.display == "none" and "site" not in panel.figures()


def test_sliders_choose_the_example_and_the_cut(panel, acts):
    choose(panel, "acts", "z 0")
    assert (panel.state.axis, panel.index.max, panel.example.max) == ("head", 3, 1)
    panel.index.value = 2
    np.testing.assert_allclose(drawn(panel), acts["z", 0][0, :, 2])
    panel.example.value = 1
    np.testing.assert_allclose(drawn(panel), acts["z", 0][1, :, 2])
    panel.axis.value = "pos"
    np.testing.assert_allclose(drawn(panel), acts["z", 0][1, 2])
    assert panel.grid.y_title == "head" and panel.grid.x_title == "d_head"
    panel.site.value = "resid_post 0"
    assert panel.state.axis == "" and drawn(panel).shape == (11, 64)
    panel.site.value = "pattern 0"
    assert panel.state.axis == "head"


def test_a_stored_site_has_its_tokens(panel, acts, model):
    choose(panel, "mine", "resid_post 1")
    np.testing.assert_allclose(drawn(panel), acts["resid_post", 1][0], atol=1e-5)
    assert panel.grid.row_labels == [f"{i} {t}" for i, t in enumerate(model.to_strings(ROWS[0]))]
    assert list(panel.table()["pos"]) == panel.grid.row_labels and panel.drop.disabled


def test_a_click_says_the_value(panel, acts):
    choose(panel, "acts", "resid_post 1")
    panel.grid.click(3, 7)
    assert (
        f"{float(acts['resid_post', 1][0, 3, 7]):.6g}" in panel.about.value and "pos 3, d_model 7" in panel.about.value
    )


def test_a_huge_site_is_pooled_and_said():
    big = Capture({("resid_post", 0): torch.arange(2 * 300 * 400.0).reshape(2, 300, 400)}, n_rows=2, n_done=2)
    made = choose(panels.Cache({"big": big}).look().wait(30), "big", "resid_post 0")
    assert "too many to draw" in made.state.notice and made.grid.shape[0] * made.grid.shape[1] <= 40_000
    assert len(made.table()) == 300 and made.table()["largest"].max() == 300 * 400 - 1
    assert np.asarray(made.figures()["site"].data[0].z).shape == tuple(made.grid.shape)


def test_values_that_are_no_numbers_are_counted():
    values = torch.ones(1, 3, 4)
    values[0, 1, 2] = float("nan")
    bad = Capture({("resid_post", 0): values}, n_rows=1, n_done=1)
    made = choose(panels.Cache({"bad": bad}).look().wait(30), "bad", "resid_post 0")
    assert list(made.table()["not_finite"]) == [0, 1, 0] and made.state.error == ""


# ---- giving back ----


def test_free_drops_a_capture_and_the_list_knows(panel, acts):
    n_bytes = acts.n_bytes
    choose(panel, "acts", "z 0").free.click()
    panel.wait(30)
    assert acts.tensors == {} and panel.state.notice == f"dropped acts: {n_bytes / 1e3:.1f} kB on cpu"
    assert (
        "acts" not in set(panel.table()["name"])
        and panel.state.site == ""
        and not any("acts" in label for label, _ in panel.holding.options)
    )


def test_free_this_site_keeps_the_others(panel, acts):
    choose(panel, "acts", "z 0").drop.click()
    panel.wait(30)
    assert (
        ("z", 0) not in acts.tensors
        and ("z", 1) in acts.tensors
        and panel.state.notice.startswith("dropped z 0 of acts")
    )
    assert "z 0" not in set(panel.table()["site"]) and "acts" in set(panel.table()["name"])


def test_free_unloads_a_model():
    mine = load("organism:induction")
    made = panels.Cache({"mine": mine}).look().wait(30)
    choose(made, "mine").free.click()
    made.wait(30)
    assert mine.bridge is None and made.state.notice.startswith("unloaded mine = organism:induction")


def test_a_store_needs_a_word_before_it_is_deleted(panel, tmp_path):
    folder = tmp_path / "stores" / "mine"
    choose(panel, "mine").free.click()
    panel.wait(30)
    assert "say that it may be deleted" in panel.state.error and (folder / "store.json").is_file()
    panel.from_disk.value = True
    panel.free.click()
    panel.wait(30)
    assert panel.state.error == "" and not folder.exists() and not panel.state.from_disk, "the word is for one store"


def test_what_is_gone_by_itself_is_said(panel, acts):
    choose(panel, "acts")
    acts.tensors.clear()
    panel.site.value = "z 0"
    assert "not held any more; look again" in panel.state.error


def test_it_keeps_nothing_alive(model):
    mine = capture(model, ROWS, ["resid_post"])
    made = choose(panels.Cache({"mine": mine}).look().wait(30), "mine", "resid_post 0")
    del mine
    made.look().wait(30)
    assert "mine" not in set(made._listed()["name"]) and made.state.error == ""


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    made = panels.Cache(folder=tmp_path / "nowhere").look().wait(30)
    assert "there is no folder" in made.state.error and made.table().empty and not made.state.running


def test_while_it_looks_it_is_running():
    go_on = threading.Event()
    made = panels.Cache(look=lambda *_: [] if go_on.wait(20) else pytest.fail("late")).look()
    assert made.state.running and made.start.disabled and made.free.disabled
    go_on.set()
    made.wait(20)
    assert not made.state.running and "Nothing is held" in made.listing.value


def test_page_has_the_numbers(panel, tmp_path):
    choose(panel, "acts", "resid_post 0")
    page = panel.save(tmp_path / "x.html").read_text("utf-8")
    assert "resid_post 0 of acts, example 0" in page and "11 rows" in page and f"{panel.table()['norm'][3]:.5g}" in page
