"""Exact residual patching, every (layer, position), beside transformer_lens.patching: pytest tests/benchmarks
--benchmark-only

TransformerLens's time is measured on 24 cells drawn at random and scaled to all of them (it runs one forward a cell, so
cells cost the same). `extra_info` holds the ratio, and the distance to the causal bound: the multiplications that
causality makes necessary, at the rate of a large matrix product measured in the same run.
"""

import statistics
import time

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.shapes import SHAPES, model_of, prompts
from transformer_lens import patching

from workbench.primitives.replace import sweeps
from workbench.primitives.score import metrics

CASES = [("gpt2", 24), ("gpt2", 64), ("llama", 24), ("llama", 64)]


def timed(run, rounds: int = 5) -> float:
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def matrix_rate(device: str) -> float:
    """Multiplications and additions a second of a product [1024, 1024] x [1024, 4096] in fp32."""
    left, right = torch.randn(1024, 1024, device=device), torch.randn(1024, 4096, device=device)
    return 2 * left.numel() * right.shape[1] / timed(lambda: left @ right, rounds=20)


def causal_flop(shape: str, n_pos: int) -> float:
    """Multiplications and additions of matrix products that patching every (layer, pos) needs: positions >= the
    patched one, blocks >= the patched one, one position into the unembedding.
    """
    with torch.device("meta"):
        module = SHAPES[shape]()
    n_layers = module.config.num_hidden_layers
    block = (
        sum(w.numel() for name, w in module.named_parameters() if w.ndim == 2 and (".h." in name or ".layers." in name))
        / n_layers
    )
    block_tokens = sum((n_layers - layer) * (n_pos - pos) for layer in range(n_layers) for pos in range(n_pos))
    return 2 * (block * block_tokens + module.get_output_embeddings().weight.numel() * n_layers * n_pos)


@pytest.mark.parametrize(("shape", "n_pos"), CASES, ids=[f"{s}-{n}" for s, n in CASES])
def test_resid_pre_sweep(benchmark, shape, n_pos):
    model, (clean, corrupted) = model_of(shape), prompts(1, n_pos)
    metric = metrics.logit_diff([7], [8])
    n_cells = model.n_layers * n_pos
    rng = np.random.default_rng(0)
    chosen = rng.choice(n_cells, 24, replace=False)
    rows = pd.DataFrame({"layer": chosen // n_pos, "pos": chosen % n_pos})
    names = [model.hook_name("resid_pre", layer) for layer in range(model.n_layers)]
    tokens, base = clean.to(model.device), corrupted.to(model.device)
    with torch.no_grad():
        cache = model.live.run_with_cache(tokens, names_filter=lambda n: n in names or n.endswith("hook_resid_pre"))[1]
        theirs = []

        def run_theirs():
            theirs[:] = [
                patching.generic_activation_patch(
                    model.live,
                    base,
                    cache,
                    lambda logits: metric(logits)[0],
                    patching.layer_pos_patch_setter,
                    "resid_pre",
                    index_df=rows,
                )
            ]

        their_seconds = timed(run_theirs) * n_cells / len(rows)
    result = benchmark.pedantic(
        lambda: sweeps.denoise(model, clean, corrupted, metric, site="resid_pre"), rounds=5, warmup_rounds=1
    )
    ours = result.data["value"].isel(example=0).values[rows["layer"], rows["pos"]]
    difference = float(np.abs(ours - theirs[0].cpu().numpy()).max())
    assert difference < 1e-3
    seconds = benchmark.stats.stats.median
    bound = causal_flop(shape, n_pos) / matrix_rate(model.device)
    benchmark.extra_info.update(
        device=model.device,
        theirs_s=round(their_seconds, 2),
        ours_s=round(seconds, 2),
        ratio=round(their_seconds / seconds, 1),
        over_causal_bound=round(seconds / bound, 2),
        max_difference=difference,
    )
    print(f"\n{shape} {n_pos} tokens: {benchmark.extra_info}")


@pytest.mark.parametrize(("shape", "n_pos"), CASES, ids=[f"{s}-{n}" for s, n in CASES])
def test_resid_pre_sweep_beside_nnsight(benchmark, shape, n_pos):
    """The same cells with nnsight on the bare Hugging Face module, where it is installed (pip install nnsight).

    Three ways to write it: one trace a cell; one trace a layer with its positions as the batch; that trace told to keep
    the logits of the last position only (`logits_to_keep`), which is the best that could be found for it.
    """
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed: pip install nnsight compares with it")
    model, (clean, corrupted) = model_of(shape), prompts(1, n_pos)
    metric = metrics.logit_diff([7], [8])
    torch.manual_seed(0)
    theirs = nnsight.NNsight(SHAPES[shape]().eval().to(model.device))  # the weights of model_of: same seed
    blocks = theirs.transformer.h if shape == "gpt2" else theirs.model.layers
    clean_resid = []
    with torch.no_grad(), theirs.trace(clean.to(model.device)):
        for block in blocks:
            clean_resid.append(block.input.save())
    rng = np.random.default_rng(0)
    cells = rng.choice(model.n_layers * n_pos, 24, replace=False)
    layers = rng.choice(model.n_layers, 3, replace=False)
    every, base, whole = torch.arange(n_pos), corrupted.to(model.device), corrupted.to(model.device).expand(n_pos, -1)
    by_cell, by_layer = np.zeros(len(cells)), {}

    def run_cells():
        for i, cell in enumerate(cells):
            layer, pos = int(cell) // n_pos, int(cell) % n_pos
            with torch.no_grad(), theirs.trace(base):
                blocks[layer].input[:, pos] = clean_resid[layer][:, pos]
                logits = theirs.lm_head.output.save()
            by_cell[i] = float(metric(logits)[0])

    def run_layers(**keep):
        for layer in layers.tolist():
            with torch.no_grad(), theirs.trace(whole, **keep):
                blocks[layer].input[every, every] = clean_resid[layer][0]
                logits = theirs.lm_head.output[:, -1].save()
            by_layer[layer] = (logits[:, 7] - logits[:, 8]).cpu().numpy()

    n_cells, share = model.n_layers * n_pos, model.n_layers / len(layers)
    seconds = {
        "a cell": timed(run_cells) * n_cells / len(cells),
        "a layer": timed(run_layers) * share,
        "a layer, last logits": timed(lambda: run_layers(logits_to_keep=1)) * share,
    }
    result = benchmark.pedantic(
        lambda: sweeps.denoise(model, clean, corrupted, metric, site="resid_pre"), rounds=5, warmup_rounds=1
    )
    ours = result.data["value"].isel(example=0).values
    difference = max(
        float(np.abs(ours[cells // n_pos, cells % n_pos] - by_cell).max()),
        *(float(np.abs(ours[layer] - found).max()) for layer, found in by_layer.items()),
    )
    assert difference < 1e-3
    took = benchmark.stats.stats.median
    benchmark.extra_info.update(
        device=model.device,
        nnsight_s={way: round(s, 2) for way, s in seconds.items()},
        ours_s=round(took, 2),
        ratio={way: round(s / took, 1) for way, s in seconds.items()},
        max_difference=difference,
    )
    print(f"\n{shape} {n_pos} tokens: {benchmark.extra_info}")


@pytest.mark.parametrize(
    ("site", "axes"),
    [("z", ("unit",)), ("z", ("pos", "unit")), ("mlp_out", ("pos",))],
    ids=["heads", "heads by position", "mlp_out"],
)
def test_other_sweeps(benchmark, site, axes):
    model, (clean, corrupted) = model_of("gpt2"), prompts(1, 24)
    metric = metrics.logit_diff([7], [8])
    bare = timed(lambda: model.forward(corrupted))
    result = benchmark.pedantic(
        lambda: sweeps.denoise(model, clean, corrupted, metric, site=site, axes=axes), rounds=3, warmup_rounds=1
    )
    n_cells = result.data["value"].size
    benchmark.extra_info.update(
        cells=n_cells,
        one_forward_a_cell_s=round(bare * n_cells, 1),
        ratio=round(bare * n_cells / benchmark.stats.stats.median, 1),
    )
    print(f"\n{site} {axes}: {benchmark.extra_info}")
