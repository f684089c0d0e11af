"""Sites of every architecture of the guide page, against plain Hugging Face modules and identities of whole runs."""

import functools

import pytest
import torch
from models.architectures import ARCHITECTURES, PAGE, loaded, network, page, row

from workbench.core.errors import WorkbenchError
from workbench.core.hooks import SITES
from workbench.models.model import Model

pytestmark = pytest.mark.slow
REFUSED = ("ALBERT", "Falcon with ALiBi", "Jamba", "Mamba", "T5")
TOKENS = torch.randint(5, 64, (2, 8), generator=torch.Generator().manual_seed(4))
known = pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in REFUSED])


@functools.cache
def model_of(name: str) -> Model:
    return loaded(name)


def inputs_of(model: Model) -> torch.Tensor:
    if model.kind == "image-classifier":
        return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return TOKENS


def take(kept: dict, key: str):
    return lambda tensor, hook: kept.__setitem__(key, tensor.clone())


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / (1 + b.abs().max()))


@known
def test_replacing_the_stream_is_what_a_plain_hook_on_the_block_does(name):
    model, plain = model_of(name), network(name)
    inputs, width = inputs_of(model), model.d_model
    blocks = next(m for m in plain.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == model.n_layers)
    kept: dict = {}
    model.forward(inputs, hook_fns=[(model.hook_name("resid_pre", 1), take(kept, "shape"))])
    new = torch.randn(kept["shape"].shape, generator=torch.Generator().manual_seed(5))
    assert new.shape[-1] == width

    def enter(module, args, kwargs):
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    handle = blocks[1].register_forward_pre_hook(enter, with_kwargs=True)
    with torch.no_grad():
        given = {"pixel_values" if inputs.ndim == 4 else "input_ids": inputs}
        if model.kind == "causal-lm":
            given["use_cache"] = False
        wanted = plain(**given).logits
    handle.remove()
    found = model.forward(inputs, hook_fns=[(model.hook_name("resid_pre", 1), lambda tensor, hook: new)])
    assert gap(found, wanted) < 1e-5


@known
def test_the_last_stream_between_attention_and_mlp_decides_the_output(name):
    model = model_of(name)
    if "resid_mid" not in model.sites():
        pytest.skip("its block is parallel and has no resid_mid: architectures with serial blocks run this")
    inputs, kept = inputs_of(model), {}
    site = model.hook_name("resid_mid", 1)
    wanted = model.forward(inputs, hook_fns=[(site, take(kept, "mid"))])
    assert gap(model.forward(inputs.flip(-1), hook_fns=[(site, lambda tensor, hook: kept["mid"])]), wanted) < 1e-5


@known
@pytest.mark.parametrize("word", ["attn_out", "mlp_out"])
def test_what_is_written_makes_up_for_what_the_stream_lost(name, word):
    """With the stream moved by d and what is written to it by -d nothing changes; attention and MLP that read the moved
    stream are held at what they wrote."""
    model = model_of(name)
    if word not in model.sites():
        pytest.skip(f"it has no {word}: architectures that have it run this")
    serial, inputs, kept = "resid_mid" in model.sites(), inputs_of(model), {}
    stream = "resid_mid" if serial and word == "mlp_out" else "resid_pre"
    written = [w for w in ("attn_out", "mlp_out") if w in model.sites()] if not serial else [word]
    wanted = model.forward(inputs, hook_fns=[(model.hook_name(w, 1), take(kept, w)) for w in {*written, stream}])
    d = torch.randn(kept[stream].shape, generator=torch.Generator().manual_seed(6))
    edits = {stream: kept[stream] + d} | {w: kept[w] - (d if w == word else 0) for w in written}
    found = model.forward(
        inputs, hook_fns=[(model.hook_name(w, 1), lambda tensor, hook, new=new: new) for w, new in edits.items()]
    )
    assert gap(found, wanted) < 1e-5


@known
def test_heads_have_the_shapes_of_the_words_and_fill_the_output_projection(name):
    model = model_of(name)
    heads, kept = [s for s in ("q", "k", "v", "z") if s in model.sites()], {}
    model.forward(inputs_of(model), hook_fns=[(model.hook_name(s, 1), take(kept, s)) for s in heads])
    for site in heads:
        n_heads = model.n_heads if SITES[site].dims[1] == "head" else model.n_kv_heads
        assert kept[site].ndim == 4 and kept[site].shape[2] == n_heads, site
    if "z" in kept:
        assert kept["z"].shape[2:].numel() == model.W_O(1).shape[:2].numel()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_at_load_in_one_sentence(name):
    with pytest.raises(WorkbenchError, match=r"adapter|attention in|not one this workbench loads"):
        loaded(name)


def test_the_guide_page_is_up_to_date():
    rows = []
    for name in ARCHITECTURES:
        try:
            rows.append(row(name, model_of(name)))
        except WorkbenchError as found:
            rows.append(row(name, found))
    assert PAGE.read_text(encoding="utf-8") == page(rows), "run python tests/models/architectures.py"
