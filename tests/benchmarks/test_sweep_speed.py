"""Exact residual patching, every (layer, position), beside transformer_lens.patching: pytest tests/benchmarks --benchmark-only

TransformerLens's time is measured on 24 cells drawn at random and scaled to all of them (it runs one forward a cell, so
cells cost the same). `extra_info` holds the ratio, and the distance to the causal bound: the time a forward of the base
takes, scaled to the tokens x blocks that causality makes necessary.
"""

import statistics
import time

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.shapes import SHAPES, model_of, prompts
from transformer_lens import patching

from workbench.primitives import metrics, sweeps

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
                    model.live, base, cache, lambda logits: metric(logits)[0], patching.layer_pos_patch_setter, "resid_pre", index_df=rows
                )
            ]

        their_seconds = timed(run_theirs) * n_cells / len(rows)
        bare = timed(lambda: model.forward(base))
    result = benchmark.pedantic(lambda: sweeps.denoise(model, clean, corrupted, metric, site="resid_pre"), rounds=5, warmup_rounds=1)
    ours = result.data["value"].isel(example=0).values[rows["layer"], rows["pos"]]
    difference = float(np.abs(ours - theirs[0].cpu().numpy()).max())
    assert difference < 1e-3
    seconds = benchmark.stats.stats.median
    necessary = sum((model.n_layers - layer) * (n_pos - pos) for layer in range(model.n_layers) for pos in range(n_pos))
    bound = bare * necessary / (model.n_layers * n_pos)
    benchmark.extra_info.update(
        device=model.device, theirs_s=round(their_seconds, 2), ours_s=round(seconds, 2), ratio=round(their_seconds / seconds, 1),
        over_causal_bound=round(seconds / bound, 2), max_difference=difference,
    )  # fmt: skip
    print(f"\n{shape} {n_pos} tokens: {benchmark.extra_info}")


@pytest.mark.parametrize(("shape", "n_pos"), CASES, ids=[f"{s}-{n}" for s, n in CASES])
def test_resid_pre_sweep_beside_nnsight(benchmark, shape, n_pos):
    """The same cells with nnsight, where it is installed (pip install nnsight): one trace a cell on the bare Hugging Face module."""
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
    chosen = rng.choice(model.n_layers * n_pos, 24, replace=False)
    found = np.zeros(len(chosen))

    def run_theirs():
        for i, cell in enumerate(chosen):
            layer, pos = int(cell) // n_pos, int(cell) % n_pos
            with torch.no_grad(), theirs.trace(corrupted.to(model.device)):
                blocks[layer].input[:, pos] = clean_resid[layer][:, pos]
                logits = theirs.lm_head.output.save()
            found[i] = float(metric(logits)[0])

    their_seconds = timed(run_theirs) * model.n_layers * n_pos / len(chosen)
    result = benchmark.pedantic(lambda: sweeps.denoise(model, clean, corrupted, metric, site="resid_pre"), rounds=5, warmup_rounds=1)
    ours = result.data["value"].isel(example=0).values[chosen // n_pos, chosen % n_pos]
    difference = float(np.abs(ours - found).max())
    assert difference < 1e-3
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(device=model.device, nnsight_s=round(their_seconds, 2), ours_s=round(seconds, 2), ratio=round(their_seconds / seconds, 1), max_difference=difference)
    print(f"\n{shape} {n_pos} tokens: {benchmark.extra_info}")


@pytest.mark.parametrize(("site", "axes"), [("z", ("unit",)), ("z", ("pos", "unit")), ("mlp_out", ("pos",))], ids=["heads", "heads by position", "mlp_out"])
def test_other_sweeps(benchmark, site, axes):
    model, (clean, corrupted) = model_of("gpt2"), prompts(1, 24)
    metric = metrics.logit_diff([7], [8])
    bare = timed(lambda: model.forward(corrupted))
    result = benchmark.pedantic(lambda: sweeps.denoise(model, clean, corrupted, metric, site=site, axes=axes), rounds=3, warmup_rounds=1)
    n_cells = result.data["value"].size
    benchmark.extra_info.update(cells=n_cells, one_forward_a_cell_s=round(bare * n_cells, 1), ratio=round(bare * n_cells / benchmark.stats.stats.median, 1))
    print(f"\n{site} {axes}: {benchmark.extra_info}")
