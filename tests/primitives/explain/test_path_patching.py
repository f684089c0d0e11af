"""Path patching against runs that really freeze what lies between, TransformerLens's direct paths, and identities."""

import numpy as np
import pytest
import torch
from transformer_lens import patching

from workbench.core.errors import BadData, UnknownName, UnsupportedModel
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models import load
from workbench.primitives.explain.path_patching import path_patch, plan_path_patch
from workbench.primitives.explain.residual_graph import Graph
from workbench.primitives.score.metrics import logit_diff

SUPPORTED = ("gpt2", "neox", "llama", "mixtral", "opt", "qwen2", "gptj")
METRIC = logit_diff([3, 4, 5], [6, 7, 8])


def record(model, tokens, names, hook_fns=()):
    seen = {}

    def keep(name):
        return name, lambda tensor, hook: seen.update({name: tensor.detach()})

    return model.forward(tokens, hook_fns=[*hook_fns, *map(keep, names)]), seen


def put(name, value):
    return name, lambda tensor, hook: value


def frozen_run(model, clean, corrupted, sender, read):
    """Step 2 of Wang et al.: all z and MLP outputs held at the base run, the sender's at its clean value; read
    there.
    """
    outputs = [model.hook_name(site, layer) for site in ("z", "mlp_out") for layer in range(model.n_layers)]
    embed = model.hook_name("resid_pre", 0)
    _, base = record(model, corrupted, [embed, *outputs])
    _, source = record(model, clean, [embed, *outputs])
    held = {name: base[name].clone() for name in [embed, *outputs]}
    if sender == "embed":
        held[embed] = source[embed]
    elif isinstance(sender, str):
        name = model.hook_name("mlp_out", int(sender[1:]))
        held[name] = source[name]
    else:
        name = model.hook_name("z", sender[0])
        held[name][:, :, sender[1]] = source[name][:, :, sender[1]]
    return record(model, corrupted, read, [put(name, value) for name, value in held.items()])


@pytest.mark.parametrize("family", SUPPORTED)
def test_path_to_logits_is_a_run_with_everything_else_frozen(models, pair, family):
    model = models(family)
    senders = ["embed", (0, 1), "m0", (1, 2), "m1"]
    effect = path_patch(model, *pair, senders, ["logits"], METRIC).data["effect"]
    for i, sender in enumerate(senders):
        logits, _ = frozen_run(model, *pair, sender, [])
        expected = METRIC(logits) - METRIC(model.forward(pair[1]))
        torch.testing.assert_close(torch.tensor(effect[i, 0].values), expected, atol=2e-5, rtol=1e-4)
        assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("family", SUPPORTED)
def test_path_to_heads_and_mlps_is_the_frozen_value_set_in_a_free_run(models, pair, family):
    model = models(family)
    senders = ["embed", (0, 3), "m0"]
    for kind, hook in (
        ("q", model.hook_name("q", 1)),
        ("k", model.hook_name("k", 1)),
        ("v", model.hook_name("v", 1)),
        ("m", "blocks.1.mlp.hook_in"),
    ):
        receiver = "m1" if kind == "m" else (1, 1, kind)
        effect = path_patch(model, *pair, senders, [receiver], METRIC).data["effect"]
        for i, sender in enumerate(senders):
            _, frozen = frozen_run(model, *pair, sender, [hook])

            def edit(tensor, hook, new=frozen[hook], head=receiver[1]):
                if new.ndim == 3:
                    return new
                tensor = tensor.clone()
                tensor[:, :, head] = new[:, :, head]
                return tensor

            expected = METRIC(model.forward(pair[1], hook_fns=[(hook, edit)])) - METRIC(model.forward(pair[1]))
            torch.testing.assert_close(torch.tensor(effect[i, 0].values), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SUPPORTED)
def test_all_senders_to_all_receivers_give_the_clean_run(models, pair, family):
    model = models(family)
    clean, corrupted = METRIC(model.forward(pair[0])), METRIC(model.forward(pair[1]))
    graph = Graph.of(model, pair[0])
    result = path_patch(
        model, *pair, [list(graph.writers)], [list(graph.readers), "logits", list(graph.readers[:-1])], METRIC
    )
    effect = torch.tensor(result.data["effect"].values)[0]
    torch.testing.assert_close(effect[0], clean - corrupted, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(
        effect[1], clean - corrupted, atol=3e-5, rtol=1e-4
    )  # the logits hear all writers directly
    assert (
        float((effect[2] - effect[1]).abs().max()) > 1e-2
    )  # and are needed: the direct path from the embedding is theirs alone
    np.testing.assert_allclose(result.data["clean"], clean, atol=1e-6)
    np.testing.assert_allclose(result.data["corrupted"], corrupted, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_folded_weights_have_the_same_paths(tiny_models, pair, family):
    raw, folded = (
        path_patch(
            load(str(tiny_models[family]), processing=how),
            *pair,
            ["embed", (0, 1), "m0"],
            ["logits", (1, 2, "q"), "m1"],
            METRIC,
        )
        for how in ("raw", "folded")
    )
    np.testing.assert_allclose(raw.data["effect"], folded.data["effect"], atol=1e-5)


def test_equal_inputs_carry_nothing_and_say_so(models, pair):
    result = path_patch(models("gpt2"), pair[1], pair[1], ["embed", (0, 0)], ["logits", "m1"], METRIC)
    assert not result.data["effect"].any() and any("nothing to explain" in w for w in result.warnings)


@pytest.mark.parametrize(("family", "kinds"), [("gpt2", "qkv"), ("neox", "qkv"), ("llama", "q"), ("mixtral", "q")])
def test_head_to_head_equals_transformer_lens(models, pair, family, kinds):
    model = models(family)
    caches = [model.live.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")[1] for tokens in pair]
    caches = [
        cache if "blocks.0.attn.hook_z" in cache else {"blocks.0.attn.hook_z": next(iter(cache.values()))}
        for cache in caches
    ]
    base = METRIC(model.forward(pair[1])).mean()
    for kind in kinds:
        theirs = patching.get_act_patch_direct_path(
            model.live, pair[1], *caches, lambda logits: METRIC(logits).mean(), 0, 2, kind, verbose=False
        )
        ours = (
            path_patch(model, *pair, [(0, 2)], [(1, h, kind) for h in range(4)], METRIC)
            .data["effect"]
            .mean("example")[0]
        )
        np.testing.assert_allclose(ours, (theirs[1] - base).cpu(), atol=2e-6)


def test_receivers_of_a_set_do_not_hear_of_each_other(models, pair):
    """Setting a layer-0 MLP and a layer-1 query together pins the query to its frozen value."""
    model = models("gpt2")
    hooks = ["blocks.0.mlp.hook_in", model.hook_name("q", 1)]
    _, frozen = frozen_run(model, *pair, "embed", hooks)
    together = path_patch(model, *pair, ["embed"], [["m0", *(f"a1.h{h}<q>" for h in range(4))]], METRIC).data["effect"][
        0, 0
    ]
    expected = METRIC(model.forward(pair[1], hook_fns=[put(name, frozen[name]) for name in hooks])) - METRIC(
        model.forward(pair[1])
    )
    np.testing.assert_allclose(together, expected, atol=2e-5)


def test_plan_counts_the_forwards_and_cells_without_a_path_are_nan(models, pair, monkeypatch):
    model = models("neox")
    senders, receivers = ["embed", (0, 0), "m1"], [(0, 0, "q"), "m0", "m1", ["m0", "logits"]]
    calls = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    result = path_patch(model, *pair, senders, receivers, METRIC)
    plan = plan_path_patch(Graph.of(model, pair[0]), senders, receivers)
    assert plan.n_forwards == len(calls) - 1 == result.data.attrs["n_forwards"]  # -1: the graph made for the plan
    found = ~np.isnan(result.data["effect"].values).any(-1)
    # Parallel residual: a head does not feed the MLP of its own layer.
    assert found.tolist() == [[True] * 4, [False, False, True, True], [False, False, False, True]]
    assert {(i, j) for i, j in plan.cells} == set(zip(*np.nonzero(found), strict=True))


def test_grouped_query_receivers_are_key_value_heads(models, pair):
    graph = Graph.of(models("llama"), pair[0])
    assert graph.reader((1, 1, "k")) == graph.reader("a1.kv1<k>") and graph.reader((1, 3, "q")) == graph.reader(
        "a1.h3<q>"
    )
    with pytest.raises(UnknownName, match="no reader called"):
        graph.reader((1, 3, "k"))


def test_cancelled_runs_keep_their_cells(models, pair, tmp_path):
    progress = Progress()
    progress.show = lambda: progress.cancel() if progress.done == 2 else None
    result = path_patch(models("gpt2"), *pair, ["embed", "m0"], ["logits", "m1"], METRIC, progress=progress)
    assert result.partial and int((~np.isnan(result.data["effect"].values).any(-1)).sum()) == 3  # the third notices
    result.save(tmp_path / "r")
    assert Result.load(tmp_path / "r").data.equals(result.data)


def test_refusals_name_what_is_wrong(models, pair, tiny_models):
    with pytest.raises(UnsupportedModel, match=r"heads' outputs do not add up .* layer 0"):
        path_patch(models("gemma2"), *pair, ["embed"], ["logits"], METRIC)
    with pytest.raises(UnsupportedModel, match="needs a causal-lm"):
        path_patch(load(str(tiny_models["bert"])), *pair, ["embed"], ["logits"], METRIC)
    model = models("gpt2")
    with pytest.raises(UnknownName, match=r"no writer called 'a7\.h0'"):
        path_patch(model, *pair, [(7, 0)], ["logits"], METRIC)
    with pytest.raises(BadData, match="one shape"):
        path_patch(model, pair[0], pair[1][:, :-1], ["embed"], ["logits"], METRIC)


def test_hooks_are_gone_after_an_exception(models, pair):
    model = models("gpt2")
    before = model.forward(pair[0])

    def boom(logits, example):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        path_patch(model, *pair, ["embed"], ["logits"], type(METRIC)("boom", "logits", boom))
    assert torch.equal(model.forward(pair[0]), before)
    assert not any(point.fwd_hooks for point in model.live.hook_dict.values())
