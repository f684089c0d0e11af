"""Tokens per second of greedy generation beside transformers' own, on the same left-padded batch (random weights).

Alternating rounds, so that a busy machine slows both; "eager" is the arithmetic of attention that hooks need, "sdpa"
what transformers takes by default. One row is the case of a chat, 16 that of an evaluation.
"""

import statistics
import time

import pytest
import torch
from benchmarks.shapes import SHAPES, model_of

from workbench.models.generate import generate
from workbench.models.inputs import pad

N_NEW = 24


def prompt_rows(n_rows: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(24, 49, (n_rows,), generator=generator).tolist()
    return [torch.randint(100, 30000, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("n_rows", [1, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_per_second(benchmark, shape, n_rows):
    model, rows = model_of(shape), prompt_rows(n_rows)
    torch.manual_seed(0)
    bare = SHAPES[shape]().eval().to(model.device)
    batch = pad(rows, 0, "left").to(model.device)
    greedy = {"do_sample": False, "min_new_tokens": N_NEW, "max_new_tokens": N_NEW, "pad_token_id": 0}
    seconds: dict[str, list[float]] = {"ours": [], "eager": [], "sdpa": []}

    def timed(name, run):
        started = time.perf_counter()
        found = run()
        seconds[name].append(time.perf_counter() - started)
        return found

    def once():
        ours = timed("ours", lambda: generate(model, rows, max_new_tokens=N_NEW, stop_ids=[]))
        for attention in ("eager", "sdpa"):
            bare.set_attn_implementation(attention)
            timed(attention, lambda: bare.generate(batch.tokens, attention_mask=batch.mask.long(), **greedy))
        return ours

    benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    rates = {name: round(n_rows * N_NEW / statistics.median(times[1:])) for name, times in seconds.items()}
    shares = {
        f"share_of_{name}": round(
            statistics.median(t / o for t, o in zip(seconds[name][1:], seconds["ours"][1:], strict=True)), 2
        )
        for name in ("eager", "sdpa")
    }
    benchmark.extra_info.update(rates | shares | {"device": model.device})
    print(f"\n{shape}, {n_rows} rows, tokens per second: {rates | shares}")
