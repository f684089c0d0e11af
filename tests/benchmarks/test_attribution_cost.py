"""Attribution of every edge: seconds and memory against the number of edges, TransformerLens's beside.

GPT-2's width and heads, 3 to 12 layers, random weights, one row of 24 tokens; EAP (steps 1), EAP-IG over inputs and
over activations (steps 5). Memory is what torch holds at its peak above that of a plain forward. TransformerLens
attributes edges by EAP, one row at a time.
"""

import pytest
import torch
import transformers as tf
from benchmarks.shapes import prompts
from benchmarks.test_sweep_speed import timed
from memory import peak_bytes
from transformer_lens.tools.analysis import attribution_patching as theirs

from workbench.models import load
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.residual_graph import Graph
from workbench.primitives.score.metrics import logit_diff


@pytest.mark.parametrize("n_layers", [3, 6, 12])
def test_all_edges(benchmark, n_layers):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, (clean, corrupted) = (
        load(tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=n_layers)), tokenizer=False, device="auto"),
        prompts(1, 24),
    )
    clean, corrupted, metric = clean.to(model.device), corrupted.to(model.device), logit_diff([7], [8])
    n_edges = int(Graph.of(model, clean).exists().sum())

    def plain():
        model.forward(corrupted)

    def ours(steps=1, mode="inputs"):
        return attribute_edges(model, clean, corrupted, metric, steps=steps, mode=mode)

    def lens():
        return theirs.attribution_patch(
            model.live,
            clean,
            corrupted,
            lambda logits: metric(logits).sum(),
            theirs.EdgeAttributionConfig(granularity="edge"),
        )

    stepped = benchmark.pedantic(lambda: ours(5), rounds=5, warmup_rounds=1)
    found = {
        "edges": n_edges,
        "forward_s": round(timed(plain), 2),
        "eap_s": round(timed(ours), 2),
        "eap_ig_5_s": round(benchmark.stats.stats.median, 2),
        "eap_ig_5_activations_s": round(timed(lambda: ours(5, "activations"), rounds=1), 2),
        "lens_eap_s": round(timed(lens, rounds=3), 2),
    }
    if model.device == "cpu":
        base = peak_bytes(plain)
        found |= {
            f"{name}_mb": round((peak_bytes(run) - base) / 1e6)
            for name, run in (("eap", ours), ("eap_ig_5", lambda: ours(5)), ("lens_eap", lens))
        }
    benchmark.extra_info.update(found | {"device": model.device})
    assert len(stepped.tables["edges"]) == n_edges
    print(f"\n{n_layers} layers: {benchmark.extra_info}")
