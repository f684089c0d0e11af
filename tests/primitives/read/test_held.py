"""What is held is found without being registered, its bytes are counted once, a site opens as it was captured or
stored, and what is let go of is gone.
"""

import gc
import weakref

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData, UnknownSite, WorkbenchError
from workbench.models import load
from workbench.primitives.read import held
from workbench.primitives.read.capture import capture
from workbench.primitives.read.store import Store, write_store

ROWS = [[1, *range(3, 13)], [1, *range(13, 20)]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def acts(model):
    return capture(model, [ROWS[0], ROWS[0][::-1]], ["resid_post", "z", "pattern"])


@pytest.fixture
def stored(model, tmp_path):
    return write_store(model, ROWS, ["resid_post", "z"], folder=tmp_path / "stores" / "mine")


def _of(thing, **options):
    found = held.held_now(**options)
    return next(h for h in found if h.find() is thing)


def test_what_lives_is_found_and_called_by_its_names(model, acts):
    found = held.held_now({"m": model, "again": model, "acts": acts, "_": acts, "x": 3})
    assert next(h for h in found if h.find() is model).name == "m = again = organism:induction"
    assert next(h for h in found if h.find() is acts).name == "acts"
    assert _of(acts).name.startswith("capture without a name (")


def test_looking_keeps_nothing_alive(model):
    mine = capture(model, ROWS[:1], ["resid_post"])
    holding, gone = _of(mine), weakref.ref(mine)
    del mine
    gc.collect()
    assert gone() is None and holding.find() is None
    with pytest.raises(WorkbenchError, match="is not held any more; look again"):
        held.open_site(holding, ("resid_post", 0))


def test_bytes_of_a_model_are_its_tensors_counted_once(model):
    holding = _of(model)
    expected = sum(
        t.numel() * t.element_size()
        for t in {
            t.data_ptr(): t for t in [*model.live.original_model.parameters(), *model.live.original_model.buffers()]
        }.values()
    )
    assert held.model_bytes(model) == {"cpu": holding.n_bytes} and holding.n_bytes == pytest.approx(expected, rel=0.01)
    assert holding.n_bytes >= 4 * model.n_parameters and (holding.where, holding.dtype) == ("cpu", "float32")


def test_tied_weights_are_counted_once(tiny_models):
    tied = load(str(tiny_models["gpt2"]), tokenizer=False)
    embedding = tied.live.original_model.get_input_embeddings().weight
    listed = sum(p.numel() * p.element_size() for p in tied.live.original_model.parameters(recurse=True))
    assert held.model_bytes(tied)["cpu"] <= listed + sum(
        b.numel() * b.element_size() for b in tied.live.original_model.buffers()
    )
    assert held.model_bytes(tied)["cpu"] >= embedding.numel() * 4
    tied.unload()
    assert held.model_bytes(tied) == {} and tied not in [h.find() for h in held.held_now()]


def test_shapes_and_bytes_of_a_capture(acts):
    holding = _of(acts)
    assert holding.n_bytes == acts.n_bytes and holding.n_examples == 2 and holding.about == "6 sites, 2 examples"
    site = holding.site(("z", 1))
    assert (site.dims, site.shape, site.dtype, site.device) == (
        ("example", "pos", "head", "d_head"),
        (2, 11, 4, 16),
        "float32",
        "cpu",
    )
    with pytest.raises(UnknownSite, match="no held site called 'mlp_out 1'"):
        holding.site(("mlp_out", 1))


def test_axes_reduced_away_have_no_name(model):
    mean = capture(model, ROWS, ["resid_post", "z"], reduce="mean")
    assert [s.dims for s in _of(mean).sites if s.key[1] == 0] in (
        [("example", "d_model"), ("example", "head", "d_head")],
        [("example", "head", "d_head"), ("example", "d_model")],
    )
    assert held.capture_dims(("blocks.0.mlp.hook_in", None), 3) == ("example", "axis_1", "axis_2")
    whole = held.open_site(_of(mean), ("resid_post", 0))
    assert whole.dims == ("example", "d_model") and whole.shape == (2, 64)


def test_a_captured_site_opens_as_it_was_captured(acts):
    found = held.open_site(_of(acts), ("pattern", 1), example=1)
    assert found.dims == ("head", "query_pos", "key_pos") and found.attrs["unit"] == "share of attention"
    np.testing.assert_array_equal(found.values, acts["pattern", 1][1].numpy())
    with pytest.raises(BadData, match="has examples 0 to 1; asked for 2"):
        held.open_site(_of(acts), ("pattern", 1), example=2)


def test_a_store_is_found_and_opens_as_it_was_stored(model, stored, tmp_path):
    holding = next(h for h in held.held_now(folders=[tmp_path / "stores"]) if h.kind == "store")
    assert (
        holding.name == "mine" and holding.where == "disk" and holding.n_examples == 2 and "19 tokens" in holding.about
    )
    assert holding.n_bytes == sum(p.stat().st_size for p in (tmp_path / "stores" / "mine").rglob("*") if p.is_file())
    assert holding.site(("resid_post", 1)).shape == (19, 64)
    found = held.open_site(holding, ("resid_post", 1), example=1)
    assert found.dims == ("pos", "d_model") and list(found["token"].values) == model.to_strings(ROWS[1])
    np.testing.assert_allclose(found.values, capture(model, ROWS[1:], ["resid_post"])["resid_post", 1][0], atol=1e-5)


def test_stores_of_the_cache_are_found_and_a_folder_that_is_not_there_is_said(model, tmp_path):
    assert [h for h in held.held_now() if h.kind == "store"] == []
    write_store(model, ROWS, ["resid_post"])
    assert [h.problem for h in held.held_now() if h.kind == "store"] == [""]
    with pytest.raises(BadData, match="there is no folder"):
        held.held_now(folders=[tmp_path / "nowhere"])


def test_a_model_let_go_of_is_gone():
    model = load("organism:induction")
    weight = weakref.ref(next(model.live.original_model.parameters()))
    said = held.let_go(_of(model))
    assert said.startswith("unloaded organism:induction: 401.2 kB on cpu") and "stayed" not in said
    assert model.bridge is None and weight() is None


def test_what_something_else_still_holds_is_said(model):
    mine = capture(model, ROWS[:1], ["resid_post"])
    kept = mine["resid_post", 0]
    said = held.let_go(_of(mine, names={"mine": mine}))
    assert (
        said == f"dropped mine: {held.size_text(2 * kept.untyped_storage().nbytes())} on cpu; 1 of its tensors stayed,"
        " because something else refers to it"
    )
    assert mine.tensors == {} and kept.shape == (1, 11, 64)


def test_one_site_can_be_dropped(acts, stored, tmp_path):
    n_bytes = acts.n_bytes
    said = held.drop_site(_of(acts), ("z", 0))
    assert (
        said.startswith("dropped z 0 of") and ("z", 0) not in acts.tensors and acts.n_bytes == n_bytes - 2 * 11 * 64 * 4
    )
    holding = next(h for h in held.held_now(folders=[tmp_path / "stores"]) if h.kind == "store")
    with pytest.raises(WorkbenchError, match="is a store; single sites can be dropped from a capture only"):
        held.drop_site(holding, ("resid_post", 0))


def test_a_store_is_deleted_only_if_that_is_said_and_nothing_else_with_it(stored, tmp_path):
    folder = tmp_path / "stores" / "mine"
    (folder / "notes.txt").write_text("mine", "utf-8")
    holding = next(h for h in held.held_now(folders=[folder]) if h.kind == "store")
    with pytest.raises(WorkbenchError, match="say that it may be deleted"):
        held.let_go(holding)
    assert Store(folder).is_complete
    said = held.let_go(holding, from_disk=True)
    assert said.startswith("deleted mine: ") and said.endswith("other files in its folder were left")
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_a_store_without_anything_else_leaves_no_folder(stored, tmp_path):
    holding = next(h for h in held.held_now(folders=[tmp_path / "stores"]) if h.kind == "store")
    assert held.let_go(holding, from_disk=True).endswith("on disk") and list((tmp_path / "stores").iterdir()) == []


def test_a_folder_that_cannot_be_read_as_a_store_is_never_deleted(tmp_path):
    folder = tmp_path / "shop"
    (folder / "parts").mkdir(parents=True)
    (folder / "store.json").write_text('{"apples": 3}', "utf-8")
    (folder / "parts" / "000.parquet").write_text("precious", "utf-8")
    holding = next(h for h in held.held_now(folders=[folder]) if h.kind == "store")
    assert "no readable store.json" in holding.problem and holding.sites == ()
    with pytest.raises(WorkbenchError, match="nothing in it is deleted"):
        held.let_go(holding, from_disk=True)
    assert (folder / "parts" / "000.parquet").read_text("utf-8") == "precious"


@pytest.mark.parametrize(
    ("n", "said"), [(12, "12 bytes"), (3_400, "3.4 kB"), (5_600_000, "5.6 MB"), (7.25e9, "7.2 GB")]
)
def test_sizes_are_words(n, said):
    assert held.size_text(n) == said


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA: runs on any machine where torch.cuda.is_available()"
)
def test_memory_of_a_gpu_comes_back():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = load("organism:induction", device="cuda")
    acts = capture(model, ROWS[:1], ["resid_post"], device="cuda")
    assert (
        _of(acts).where.startswith("cuda")
        and _of(model).where.startswith("cuda")
        and torch.cuda.memory_allocated() > before
    )
    held.let_go(_of(acts))
    held.let_go(_of(model))
    assert torch.cuda.memory_allocated() == before
