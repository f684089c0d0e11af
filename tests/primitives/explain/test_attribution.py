"""Attribution against exact patching, TransformerLens's own scores, the completeness of integrated gradients, and
bytes.
"""

import numpy as np
import pytest
import torch
import transformers as tf
from memory import peak_bytes
from models.families import GQA, NO_SPECIAL, load_scaled, network
from transformer_lens.tools.analysis import attribution_patching as theirs

from workbench.core.errors import BadData, DegenerateBaseline, NoTokenizer, UnsupportedModel, WorkbenchError
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models import load
from workbench.primitives.explain.attribution import attribute_edges, attribute_nodes
from workbench.primitives.explain.circuits import calibrate, faithfulness, patch_edges
from workbench.primitives.explain.path_patching import path_patch
from workbench.primitives.explain.residual_graph import Graph, read_run
from workbench.primitives.score.metrics import Metric, logit_diff, rank

SUPPORTED = ("gpt2", "neox", "llama", "mixtral", "opt", "qwen2", "gptj")
METRIC = logit_diff([3, 4, 5], [6, 7, 8])


def difference(model, clean, corrupted):
    return float((METRIC(model.forward(clean)) - METRIC(model.forward(corrupted))).mean())


# ---- sign and size ----


@pytest.mark.parametrize("family", SUPPORTED)
def test_scores_are_the_exact_effects_where_the_change_is_small(family, tmp_path):
    """Tokens 32.. have nearly the embeddings of tokens 0.., so that gradients must give the effects of patching
    them.
    """
    torch.manual_seed(0)
    made = network(family)
    with torch.no_grad():
        embeddings = made.get_input_embeddings().weight
        embeddings[32:] = embeddings[:32] + 0.01 * embeddings[:32].std() * torch.randn(32, embeddings.shape[1])
    model = load_scaled(made, tmp_path)
    clean = torch.randint(2, 30, (3, 6))
    corrupted = clean + 32
    graph = Graph.of(model, clean)
    exact = (
        path_patch(model, clean, corrupted, list(graph.writers), list(graph.readers), METRIC)
        .data["effect"]
        .mean("example")
        .values
    )
    score = attribute_edges(model, clean, corrupted, METRIC).data["score"].values
    assert (np.isnan(exact) == np.isnan(score)).all()
    edges = ~np.isnan(exact)
    assert np.corrcoef(exact[edges], score[edges])[0, 1] > 0.999
    assert np.linalg.norm((exact - score)[edges]) < 0.03 * np.linalg.norm(exact[edges])
    nodes = calibrate(model, clean, corrupted, METRIC, attribute_nodes(model, clean, corrupted, METRIC)).tables["nodes"]
    assert np.linalg.norm(nodes["exact"] - nodes["approx"]) < 0.03 * np.linalg.norm(nodes["exact"])


@pytest.mark.parametrize("family", SUPPORTED)
def test_edges_out_of_a_node_sum_to_the_node(models, pair, family):
    nodes = attribute_nodes(models(family), *pair, METRIC).data["score"].mean("example").sum("pos")
    edges = attribute_edges(models(family), *pair, METRIC).data["score"].sum("reader")
    assert list(nodes["node"].values) == list(edges["writer"].values)
    np.testing.assert_allclose(edges, nodes, atol=1e-5)


def their_name(node):
    place = (
        "embed"
        if node.layer is None
        else (
            "logits"
            if node.kind == "logits"
            else f"m{node.layer}"
            if node.head is None
            else f"a{node.layer}.h{node.head}"
        )
    )
    return place + (f"<{node.kind[0]}>" if node.kind.endswith("_input") else "")


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_edges_equal_transformer_lens(models, pair, family):
    model, rows = models(family), range(3)
    expected = {}
    for row in rows:
        metric = logit_diff([3 + row], [6 + row])
        config = theirs.EdgeAttributionConfig(granularity="edge")
        found = theirs.attribution_patch(
            model.live,
            pair[0][row : row + 1],
            pair[1][row : row + 1],
            lambda logits, metric=metric: metric(logits).sum(),
            config,
        )
        for (writer, reader), value in found.edge_scores.items():
            edge = their_name(writer), their_name(reader)
            expected[edge] = expected.get(edge, 0) + value / len(rows)
    table = attribute_edges(model, *pair, METRIC).tables["edges"]
    assert {(w, r) for w, r in zip(table["writer"], table["reader"], strict=True)} == set(expected)
    np.testing.assert_allclose(
        table["score"], [expected[w, r] for w, r in zip(table["writer"], table["reader"], strict=True)], atol=1e-5
    )
    assert (table["score"].abs().diff().dropna() <= 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_equal_inputs_score_zero(models, pair, family):
    assert not attribute_nodes(models(family), pair[0], pair[0], METRIC).data["score"].any()
    for mode in ("inputs", "activations"):
        assert (
            not attribute_edges(models(family), pair[0], pair[0], METRIC, steps=2, mode=mode)
            .tables["edges"]["score"]
            .any()
        )


def test_batches_and_progress_do_not_change_scores(models, pair, tmp_path):
    whole, split = (attribute_edges(models("llama"), *pair, METRIC, steps=3, batch_size=n) for n in (3, 2))
    np.testing.assert_allclose(whole.data["score"], split.data["score"], atol=1e-6)
    np.testing.assert_allclose(whole.data["sem"], split.data["sem"], atol=1e-6)
    each = [
        attribute_edges(models("llama"), pair[0][i : i + 1], pair[1][i : i + 1], logit_diff([3 + i], [6 + i]), steps=3)
        .data["score"]
        .values
        for i in range(3)
    ]
    np.testing.assert_allclose(whole.data["sem"], np.std(each, axis=0, ddof=1) / np.sqrt(3), atol=1e-6)
    progress = Progress()
    progress.show = progress.cancel
    part = attribute_edges(models("llama"), *pair, METRIC, batch_size=1, progress=progress)
    assert part.partial and part.data.attrs["n_examples"] == 2  # the second notices
    whole.save(tmp_path / "r")
    assert Result.load(tmp_path / "r").data.equals(whole.data)


# ---- integrated gradients ----


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *((f, "inputs") for f in ("gpt2", "neox", "llama", "opt", "all experts")),
        ("gpt2", "activations"),
        ("llama", "activations"),
    ],
)
def test_steps_make_the_embeddings_edges_sum_to_the_difference(models, pair, family, mode):
    gap = difference(models(family), *pair)
    error = [
        abs(
            float(
                attribute_edges(models(family), *pair, METRIC, steps=n, mode=mode)
                .data["score"]
                .sel(writer="embed")
                .sum()
            )
            - gap
        )
        for n in (1, 24)
    ]
    assert error[0] > 0.02 and error[1] < error[0] / 4


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_activation_steps_make_each_group_sum_to_its_patched_effect(models, pair, family):
    model = models(family)
    plain, stepped = (
        attribute_edges(model, *pair, METRIC, steps=n, mode="activations").data["score"].sum("reader") for n in (1, 24)
    )
    base, errors = METRIC(model.forward(pair[1])), []
    for name, writers in (("z", [f"a0.h{h}" for h in range(4)]), ("mlp_out", ["m0"]), ("mlp_out", ["m1"])):
        hook, seen = model.hook_name(name, int(writers[0][1])), {}
        model.forward(pair[0], hook_fns=[(hook, lambda tensor, hook, seen=seen: seen.update(x=tensor))])
        exact = float(
            (METRIC(model.forward(pair[1], hook_fns=[(hook, lambda tensor, hook, seen=seen: seen["x"])])) - base).mean()
        )
        errors.append([abs(float(score.sel(writer=writers).sum()) - exact) for score in (plain, stepped)])
    total = np.sum(errors, axis=0)
    assert total[0] > 0.02 and total[1] < total[0] / 4


# ---- exact runs ----


@pytest.mark.parametrize("family", SUPPORTED)
def test_all_edges_are_faithful_and_none_are_not(models, pair, family):
    scores = attribute_edges(models(family), *pair, METRIC)
    n = len(scores.tables["edges"])
    for ablate in ("corrupted", "zero", "mean"):
        found = faithfulness(models(family), *pair, METRIC, scores, [0, n // 2, n], ablate=ablate, batch_size=2).data
        np.testing.assert_allclose(found["faithfulness"][[0, 2]], [0, 1], atol=2e-4)
        np.testing.assert_allclose(found["completeness"][[0, 2]], [1, 0], atol=2e-4)
        if ablate == "corrupted":
            np.testing.assert_allclose(found["empty"], METRIC(models(family).forward(pair[1])), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_faithfulness_equals_transformer_lens(models, pair, family):
    model, clean, corrupted, metric = models(family), pair[0][:1], pair[1][:1], logit_diff([3], [6])
    scores = attribute_edges(model, clean, corrupted, metric)
    value = lambda logits: metric(logits).sum()  # noqa: E731
    every = theirs.attribution_patch(
        model.live, clean, corrupted, value, theirs.EdgeAttributionConfig(granularity="edge")
    ).edge_scores
    for k in (5, 25, 60):
        kept = {(row.writer, row.reader) for row in scores.tables["edges"].head(k).itertuples()}
        circuit = [edge for edge in every if (their_name(edge[0]), their_name(edge[1])) in kept]
        expected = theirs.faithfulness(model.live, clean, corrupted, value, circuit).recovered
        assert float(
            faithfulness(model, clean, corrupted, metric, scores, [k]).data["faithfulness"][0]
        ) == pytest.approx(expected, abs=1e-3)


def test_one_dropped_edge_is_the_path_patch_of_the_other_direction(models, pair):
    """Replacing one edge of the corrupted run by its clean value is path patching it."""
    model = models("llama")
    graph = Graph.of(model, pair[0])
    replacement = read_run(model, graph, pair[0]).writes(model, graph, range(len(graph.writers)))
    for writer, reader in (("embed", "a1.h2<q>"), ("a0.h3", "m0"), ("m0", "a1.kv1<v>"), ("a1.h0", "logits")):
        drop = np.zeros(graph.exists().shape, bool)
        drop[graph.writer(writer), graph.reader(reader)] = True
        effect = METRIC(patch_edges(model, graph, pair[1], replacement, drop)) - METRIC(model.forward(pair[1]))
        np.testing.assert_allclose(
            path_patch(model, *pair, [writer], [reader], METRIC).data["effect"][0, 0], effect, atol=1e-5
        )


def test_calibration_sets_attribution_beside_exact_effects(models, pair):
    model = models("gpt2")
    for scores in (attribute_nodes(model, *pair, METRIC), attribute_edges(model, *pair, METRIC)):
        found = calibrate(model, *pair, METRIC, scores, n_top=3, n_random=6, seed=1)
        table = found.tables["nodes"]
        assert list(table["chosen"]) == ["top"] * 3 + ["random"] * 6 and table["node"].is_unique
        assert float(found.data["spearman"].sel(over="all")) == pytest.approx(
            table["approx"].corr(table["exact"], method="spearman")
        )
        assert float(found.data["spearman"].sel(over="all")) > 0.8
        embed = table.set_index("node")["exact"].get("embed")
        assert embed is None or embed == pytest.approx(difference(model, *pair), abs=1e-6)
        assert calibrate(model, *pair, METRIC, scores, n_top=3, n_random=6, seed=1).tables["nodes"].equals(table)


def test_nodes_work_where_edges_cannot(models, pair):
    assert attribute_nodes(models("gemma2"), *pair, METRIC).data["score"].shape == (3, 11, 7)
    with pytest.raises(UnsupportedModel, match=r"heads' outputs do not add up .* layer 0"):
        attribute_edges(models("gemma2"), *pair, METRIC)


# ---- memory ----


def test_memory_follows_writers_not_edges(tmp_path):
    """More key/value heads are more readers, so more edges, from the same writers: only the table of scores may
    grow.
    """
    extra, edges, stack = {}, {}, 0
    for n_kv in (1, 16):
        torch.manual_seed(0)
        shape = (
            GQA
            | NO_SPECIAL
            | {
                "num_hidden_layers": 4,
                "num_attention_heads": 16,
                "num_key_value_heads": n_kv,
                "hidden_size": 64,
            }
        )
        model = load_scaled(tf.LlamaForCausalLM(tf.LlamaConfig(**shape)), tmp_path / str(n_kv))
        clean, corrupted = torch.randint(2, 60, (3, 40)), torch.randint(2, 60, (3, 40))
        graph = Graph.of(model, clean)
        weights = list(model.live.original_model.parameters())[:1]

        def plain(model=model, corrupted=corrupted, weights=weights):
            torch.autograd.grad(METRIC(model.forward(corrupted, grad=True)).sum(), weights)

        def edge_scores(model=model, clean=clean, corrupted=corrupted):
            attribute_edges(model, clean, corrupted, METRIC)

        edge_scores()  # whatever is made once
        extra[n_kv] = peak_bytes(edge_scores) - peak_bytes(plain)
        edges[n_kv] = int(graph.exists().sum())
        stack = 4 * clean.numel() * len(graph.writers) * model.d_model
    assert edges[16] > 2 * edges[1]
    per_edge = (extra[16] - extra[1]) / (edges[16] - edges[1])
    assert (
        per_edge < 4 * clean.numel() * model.d_model / 50
    )  # bytes: the score table's few numbers, not [batch, pos, d_model]
    assert stack < extra[16] < 3.5 * stack  # the writers of two runs, the score table, and what a layer's readers need


# ---- refusals ----


def test_refusals_name_what_is_wrong(models, pair, tiny_models):
    model = models("gpt2")
    for attribute in (attribute_nodes, attribute_edges):
        with pytest.raises(UnsupportedModel, match="needs a causal-lm"):
            attribute(load(str(tiny_models["bert"])), *pair, METRIC)
        with pytest.raises(BadData, match="one shape"):
            attribute(model, pair[0], pair[1][:, :-1], METRIC)
        with pytest.raises(WorkbenchError, match="metric rank has no gradient"):
            attribute(model, *pair, rank([3, 4, 5]))
        with pytest.raises(NoTokenizer, match="came without a tokenizer"):
            attribute(model, "apple", "beach", METRIC)
    with pytest.raises(WorkbenchError, match="steps must be at least 1"):
        attribute_edges(model, *pair, METRIC, steps=0)
    scores = attribute_edges(model, *pair, METRIC)
    with pytest.raises(WorkbenchError, match="a model of this shape"):
        faithfulness(models("llama"), *pair, METRIC, scores, [3])
    with pytest.raises(WorkbenchError, match="ablate must be"):
        faithfulness(model, *pair, METRIC, scores, [3], ablate="noise")
    with pytest.raises(DegenerateBaseline, match="agree in logit_diff"):
        faithfulness(model, pair[0], pair[0], METRIC, scores, [3])


@pytest.mark.parametrize("attribute", [attribute_nodes, attribute_edges])
def test_hooks_are_gone_after_an_exception(models, pair, attribute):
    model = models("gpt2")
    before = model.forward(pair[0])

    def boom(logits, example):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        attribute(model, *pair, Metric("boom", "logits", boom))
    attribute(model, *pair, METRIC)
    assert torch.equal(model.forward(pair[0]), before)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.live.hook_dict.values())
    assert all(weight.grad is None for weight in model.live.original_model.parameters())
