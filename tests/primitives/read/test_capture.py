"""Captured activations equal TransformerLens's own cache, cost the bytes predicted, share no storage and leave no
hooks.
"""

import pytest
import torch
from models.families import DECODERS

from workbench.core.errors import NoRoom, NotFired, UnknownSite, WorkbenchError
from workbench.core.hooks import SITES
from workbench.core.progress import Progress
from workbench.models import load
from workbench.models.inputs import pad
from workbench.models.model import Model
from workbench.primitives.read.capture import capture, observe, plan_capture

LAYERS = 2


def rows_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 64, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def models(tiny_models) -> dict[str, Model]:
    return {family: load(str(tiny_models[family])) for family in (*DECODERS, "bert", "bert_classifier")}


def hooks_left(model: Model) -> list[str]:
    return [name for name, point in model.live.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]


class Counting(Progress):
    """Counts updates; cancels itself after `stop_after` of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.steps, self.stop_after = 0, stop_after

    def show(self) -> None:
        self.steps += 1
        if self.steps == self.stop_after:
            self.cancel()


# ---- what is captured ----


@pytest.mark.parametrize("family", DECODERS)
def test_every_site_equals_transformer_lens_own_cache(family, models):
    model, rows = models[family], rows_of(6, 6, 6)
    taken = capture(model, rows, model.sites())
    with torch.no_grad():
        _, cache = model.live.run_with_cache(
            torch.tensor(rows), names_filter=[model.hook_name(*key) for key in taken.tensors]
        )
    assert {site for site, _ in taken.tensors} == set(model.sites())
    for key, tensor in taken.tensors.items():
        assert torch.equal(tensor, cache[model.hook_name(*key)]), key


@pytest.mark.parametrize("site", ["resid_post", "z", "pattern", "logits"])
def test_positions_are_those_of_the_whole(site, models):
    model, rows = models["gpt2"], rows_of(6, 6)
    dim = 1 + SITES[site].dims.index("query_pos" if site == "pattern" else "pos")
    whole, some = capture(model, rows, [site]), capture(model, rows, [site], positions=[3, 0, -1])
    for key in whole.tensors:
        assert torch.equal(some[key], whole[key].index_select(dim, torch.tensor([3, 0, 5])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_that_of_the_stored_tensor_only(dtype, models):
    whole, stored = (capture(models["gpt2"], rows_of(6, 6), ["z"], dtype=wanted) for wanted in (None, dtype))
    assert stored["z", 1].dtype == dtype
    assert torch.equal(stored["z", 1], whole["z", 1].to(dtype))


def second_largest(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tensor.masked_fill(~mask.reshape(*mask.shape, *[1] * (tensor.ndim - 2)), -torch.inf).sort(1).values[:, -2]


REDUCTIONS = {
    "mean": lambda row: row.mean(0),
    "last": lambda row: row[-1],
    second_largest: lambda row: row.sort(0).values[-2],
}


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=["mean", "last", "callable"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert_classifier"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_reductions_of_ragged_rows_equal_each_row_alone(reduce, family, batch_size, models):
    model, rows = models[family], rows_of(5, 9, 5, 2, 9, 5)
    taken = capture(model, rows, ["resid_mid", "z"], reduce=reduce, batch_size=batch_size)
    assert taken.n_done == len(rows)
    for site in ("resid_mid", "z"):
        for layer in range(LAYERS):
            for i, row in enumerate(rows):
                alone = capture(model, [row], [site], layers=[layer])[site, layer][0]
                torch.testing.assert_close(taken[site, layer][i], REDUCTIONS[reduce](alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_positions_then_reduce(reduce, models):
    """Positions count from the end of each row, also where rows have different lengths."""
    model, rows = models["gpt2"], rows_of(5, 9, 3)
    taken = capture(model, rows, ["z"], positions=[-3, -2], reduce=reduce)
    for i, row in enumerate(rows):
        alone = capture(model, [row], ["z"])["z", 0][0, -3:-1]
        torch.testing.assert_close(taken["z", 0][i], REDUCTIONS[reduce](alone), atol=1e-6, rtol=0)


def test_a_pattern_reduced_over_queries_keeps_heads_and_keys(models):
    whole = capture(models["gpt2"], rows_of(6, 6), ["pattern"])["pattern", 0]
    assert torch.equal(
        capture(models["gpt2"], rows_of(6, 6), ["pattern"], reduce="last")["pattern", 0], whole[:, :, -1]
    )
    mean = capture(models["gpt2"], rows_of(6, 6), ["pattern"], reduce="mean")["pattern", 0]
    torch.testing.assert_close(mean, whole.mean(2), atol=1e-6, rtol=0)


def test_ragged_patterns_cannot_be_stacked_and_say_so(models):
    """A reduction over queries leaves the key axis, whose length differs by row."""
    with pytest.raises(WorkbenchError, match="length"):
        capture(models["gpt2"], rows_of(6, 4), ["pattern"], reduce="last")


@pytest.mark.parametrize("how", [{"positions": [0, 2]}, {"reduce": "mean"}, {"reduce": "last"}])
@pytest.mark.parametrize("site", ["z", "pattern", "resid_pre"])
def test_a_full_hook_name_means_the_same_as_its_site(site, how, models):
    model = models["gpt2"]
    for name in (SITES[site].template.format(layer=1), model.hook_name(site, 1)):
        assert torch.equal(
            capture(model, rows_of(6, 6), [name], **how)[name],
            capture(model, rows_of(6, 6), [site], layers=[1], **how)[site, 1],
        ), name


# ---- how it is kept ----


def test_every_tensor_has_its_own_storage_and_no_more(models):
    taken = capture(models["gpt2"], rows_of(6, 6, 6), ["resid_pre", "resid_post", "z"], positions=[1, 2])
    assert taken.n_bytes == sum(t.numel() * t.element_size() for t in taken.tensors.values())
    assert len({t.untyped_storage().data_ptr() for t in taken.tensors.values()}) == 3 * LAYERS
    before = {key: tensor.clone() for key, tensor in taken.tensors.items()}
    for edited in before:
        taken[edited].fill_(7)
        for key, tensor in before.items():
            assert key == edited or torch.equal(taken[key], tensor)
        taken[edited].copy_(before[edited])
    assert not any(t.requires_grad for t in taken.tensors.values())


def test_editing_what_was_captured_leaves_the_model_alone(models):
    model, tokens = models["gpt2"], torch.tensor(rows_of(6))
    before = model.forward(tokens)
    for tensor in capture(model, tokens.tolist(), model.sites()).tensors.values():
        tensor.zero_()
    assert torch.equal(model.forward(tokens), before)


def test_a_place_named_twice_is_kept_once(models):
    model = models["gpt2"]
    taken = capture(model, rows_of(6), ["z", model.hook_name("z", 0), "z", "blocks.1.attn.hook_z"], layers=[0, 1, 0])
    assert list(taken.tensors) == [("z", 0), ("z", 1)]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"positions": [0, -1]},
        {"dtype": torch.float16},
        {"reduce": "mean"},
        {"reduce": "last", "dtype": torch.bfloat16},
        {"layers": [1]},
        {"reduce": second_largest},
    ],
    ids=["all", "two positions", "half precision", "mean", "last in bfloat16", "one layer", "a function"],
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_the_plan_knows_the_bytes_exactly(family, how, models):
    rows, sites = rows_of(*[6] * 5), ["resid_pre", "v", "pattern", "logits"]
    plan = plan_capture(models[family], 5, 6, sites, batch_size=2, **how)
    taken = capture(models[family], rows, sites, batch_size=2, **how)
    assert plan.kept_bytes == taken.n_bytes
    assert plan.shapes == {key: tuple(tensor.shape) for key, tensor in taken.tensors.items()}
    assert plan.peak_bytes > plan.kept_bytes
    assert f"keeps {plan.kept_bytes / 1e6:.1f} MB" in str(plan)


def test_halved_batches_give_the_same_tensors(models):
    model, rows = models["gpt2"], rows_of(*[6] * 8)
    plan = plan_capture(model, 8, 6, ["z", "pattern"], batch_size=2)
    whole, halved = Counting(), Counting()
    free = capture(model, rows, ["z", "pattern"], batch_size=8, progress=whole)
    tight = capture(model, rows, ["z", "pattern"], batch_size=8, budget_bytes=plan.peak_bytes, progress=halved)
    assert (whole.total, halved.total) == (1, 4)
    for key in free.tensors:
        torch.testing.assert_close(tight[key], free[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("budget", ["kept", "peak of one row"])
def test_what_will_not_fit_even_row_by_row_is_refused_before_the_first_row(budget, models):
    model = models["gpt2"]
    plan = plan_capture(model, 8, 6, ["z"], batch_size=1)
    progress = Counting()
    with pytest.raises(NoRoom, match="name fewer sites, layers or positions, or reduce='mean'"):
        capture(
            model,
            rows_of(*[6] * 8),
            ["z"],
            budget_bytes=(plan.kept_bytes if budget == "kept" else plan.peak_bytes) - 1,
            progress=progress,
        )
    assert progress.steps == 0


# ---- stopping and failing ----


@pytest.mark.parametrize("lengths", [(6,) * 8, (6, 4, 6, 4, 6, 4, 6, 4)])
def test_a_cancelled_capture_keeps_the_rows_it_has(lengths, models):
    model, rows = models["gpt2"], rows_of(*lengths)
    whole = capture(model, rows, ["z"], reduce="mean", batch_size=2)
    part = capture(model, rows, ["z"], reduce="mean", batch_size=2, progress=Counting(stop_after=1))
    assert part.partial and 0 < part.n_done < len(rows)
    assert not whole.partial
    filled = [torch.equal(part["z", 0][i], whole["z", 0][i]) for i in range(len(rows))]
    assert sum(filled) == part.n_done
    for i, is_filled in enumerate(filled):
        assert is_filled or not part["z", 0][i].any(), "a row that was not reached must not look like a result"
    assert not hooks_left(model)


def test_nothing_is_left_behind_after_an_error_in_a_hook(models):
    model, tokens = models["llama"], torch.tensor(rows_of(6, 6))
    before = model.forward(tokens)

    def broken(tensor, mask):
        raise RuntimeError("inside the reduction")

    with pytest.raises(RuntimeError, match="inside the reduction"):
        capture(model, tokens.tolist(), ["z"], reduce=broken)
    assert not hooks_left(model)
    assert torch.equal(model.forward(tokens), before)


def test_a_hook_of_the_users_own_stays(models):
    model, calls = models["gpt2"], []
    model.live.add_hook(model.hook_name("z", 0), lambda tensor, hook: calls.append(1))
    try:
        capture(model, rows_of(6), ["z"])
        so_far = len(calls)
        model.forward(torch.tensor(rows_of(6)))
        assert so_far > 0 and len(calls) == so_far + 1
    finally:
        model.live.reset_hooks()


def test_a_site_that_never_fires_is_an_error_and_not_an_empty_tensor(monkeypatch, models):
    call = Model._call
    monkeypatch.setattr(Model, "_call", lambda self, tokens, mask, stop, cache: call(self, tokens, mask, 1, cache))
    with pytest.raises(NotFired, match="z of layer 1 never fired in gpt2"):
        capture(models["gpt2"], rows_of(6), ["z"])
    with pytest.raises(NotFired, match="z of layer 1 never fired in gpt2"):
        observe(models["gpt2"], torch.tensor(rows_of(6)), ["z"], lambda layer, acts: None)


def test_an_encoder_without_a_head_has_no_logits_to_capture(models):
    with pytest.raises((NotFired, UnknownSite), match="logits"):
        capture(models["bert"], rows_of(6), ["logits"])


# ---- looking without keeping ----


@pytest.mark.parametrize("family", DECODERS)
def test_observe_shows_each_layer_once_with_the_captured_tensors(family, models):
    model, rows, seen = models[family], rows_of(6, 6), []
    sites = ["pattern", "v", "z"]
    out = observe(
        model,
        torch.tensor(rows),
        sites,
        lambda layer, acts: seen.append((layer, {site: acts[site].clone() for site in acts})),
    )
    taken = capture(model, rows, sites)
    assert [layer for layer, _ in seen] == [0, 1]
    for layer, acts in seen:
        assert set(acts) == set(sites)
        for site in sites:
            assert torch.equal(acts[site], taken[site, layer])
    assert torch.equal(out, model.forward(torch.tensor(rows)))


def test_observe_takes_padded_batches_and_some_layers(models):
    model, rows, seen = models["gpt2"], rows_of(6, 3), {}
    batch = pad(rows, 0, "left")
    observe(model, batch, ["z"], lambda layer, acts: seen.update({layer: acts["z"].clone()}), layers=[1])
    assert list(seen) == [1]
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            seen[1][i][batch.mask[i]], capture(model, [row], ["z"])["z", 1][0], atol=1e-5, rtol=0
        )


def test_observe_takes_a_site_named_twice(models):
    seen = []
    observe(models["gpt2"], torch.tensor(rows_of(6)), ["z", "z"], lambda layer, acts: seen.append(layer))
    assert seen == [0, 1]


def test_an_error_while_looking_leaves_no_hooks(models):
    def broken(layer, acts):
        raise RuntimeError("inside look")

    with pytest.raises(RuntimeError, match="inside look"):
        observe(models["gpt2"], torch.tensor(rows_of(6)), ["z"], broken)
    assert not hooks_left(models["gpt2"])
