"""Sweeps of a list of cells: equal to TransformerLens's index_df and to the same cells of a whole sweep, resumed,
drawn, refused.
"""

# ruff: noqa: F401, F811 - fixtures of another file

import numpy as np
import pandas as pd
import pytest
import torch
from models.families import DECODERS
from primitives.replace.test_sweeps import METRIC, N_POS, models, pair
from transformer_lens import patching

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.primitives.replace.sweep_plan import plan
from workbench.primitives.replace.sweeps import Zero, denoise, sweep
from workbench.views import figures
from workbench.views.sweep import cells_table

HEADS = [(1, 8, 2), (0, 3, 1), (1, 3, 1), (0, 5, 0)]  # in no order


@pytest.mark.parametrize("family", DECODERS)
def test_equal_to_transformer_lens_with_the_same_index(models, pair, family):
    model, (clean, corrupted) = models[family], pair
    cache = model.live.run_with_cache(clean)[1]
    index = pd.DataFrame(HEADS, columns=["layer", "pos", "head"])
    theirs = patching.generic_activation_patch(
        model.live,
        corrupted,
        cache,
        lambda logits: METRIC(logits).mean(),
        patching.layer_pos_head_vector_patch_setter,
        "z",
        index_df=index,
    )
    ours = denoise(model, clean, corrupted, METRIC, site="z", axes=("pos", "unit"), cells=HEADS)
    np.testing.assert_allclose(ours.data["value"].mean("example"), theirs.detach(), atol=1e-4)
    assert [
        tuple(int(v) for v in row) for row in zip(ours.data["layer"], ours.data["pos"], ours.data["head"], strict=True)
    ] == HEADS
    assert ours.data.attrs["engine"] == "resumed" and ours.data["value"].dims == ("cell", "example")


@pytest.mark.parametrize(
    ("site", "axes", "cells"),
    [
        ("resid_pre", ("pos",), [(1, 8), (0, 0), (0, -1), (1, 4)]),
        ("mlp_post", ("unit",), [(0, 63), (1, 2)]),
        ("pattern", ("pos", "unit"), HEADS),
    ],
    ids=["residual", "neurons", "patterns"],
)
def test_the_same_numbers_as_in_the_whole_sweep(models, pair, site, axes, cells):
    model = models["llama"]
    whole = denoise(model, *pair, METRIC, site=site, axes=axes).data["value"]
    ours = denoise(model, *pair, METRIC, site=site, axes=axes, cells=cells).data["value"]
    for i, cell in enumerate(cells):
        np.testing.assert_allclose(ours.isel(cell=i), whole.isel(dict(zip(whole.dims, cell, strict=False))), atol=1e-5)


def test_prompts_of_several_lengths_count_from_the_end(models):
    rows = [[9, 8, 7, 6, 5, 4, 3], [11, 12, 13, 14, 15], [9, 8, 7, 6, 5, 14, 3]]
    cells = [(1, -1), (0, -3)]
    together = sweep(models["gpt2"], rows, Zero(), METRIC, site="resid_pre", cells=cells).data["value"]
    for i, row in enumerate(rows):
        own = sweep(models["gpt2"], torch.tensor([row]), Zero(), METRIC.of([i]), site="resid_pre").data["value"]
        for n, (layer, pos) in enumerate(cells):
            np.testing.assert_allclose(
                together.isel(cell=n, example=i), own.isel(layer=layer, pos=pos, example=0), atol=1e-5
            )
    with pytest.raises(WorkbenchError, match="position 5 is outside prompts of 5 tokens"):
        sweep(models["gpt2"], rows, Zero(), METRIC, site="resid_pre", cells=[(0, 5)])


def test_the_work_is_that_of_the_cells_asked_for(models, pair):
    assert (
        plan(models["gpt2"], pair[1], METRIC, site="resid_pre", cells=np.array([[1, 2], [0, 3]]), probe=False).n_cells
        == 6
    )
    one = plan(models["gpt2"], pair[1], METRIC, site="resid_pre", cells=[(1, N_POS - 2)], probe=False)
    assert one.n_cells == 3 and one.token_blocks == 3 * 2 * 1, "three examples, two positions, one block"


def test_cancelled_and_resumed_and_saved(models, pair, tmp_path):
    cells = [(0, 0), (1, 8), (0, 4), (1, 2)]
    options = {"site": "resid_pre", "cells": cells, "budget_bytes": 4e4}

    class Stop(Progress):
        def update(self, done, total, text=""):
            if done == 1:
                self.cancel()
            super().update(done, total, text)

    part = denoise(models["gpt2"], *pair, METRIC, progress=Stop(), **options)
    n_missing = int(np.isnan(part.data["value"]).sum())
    assert part.partial and 0 < n_missing < part.data["value"].size
    part.save(tmp_path / "part")
    again = denoise(models["gpt2"], *pair, METRIC, resume=Result.load(tmp_path / "part"), **options)
    np.testing.assert_allclose(
        again.data["value"], denoise(models["gpt2"], *pair, METRIC, **options).data["value"], atol=1e-6
    )
    with pytest.raises(BadData, match="of another sweep"):
        denoise(models["gpt2"], *pair, METRIC, resume=part, site="resid_pre", cells=cells[:2])


def test_a_list_is_drawn_and_tabled(models, pair):
    result = denoise(models["gpt2"], *pair, METRIC, site="z", axes=("pos", "unit"), cells=HEADS)
    bars = figures(result)["cells"]
    moved = result.data["value"] - result.data["base_value"]
    gap = float((result.data["source_value"] - result.data["base_value"]).mean())
    assert (
        list(bars.data[0].x) == ["1.8.2", "0.3.1", "1.3.1", "0.5.0"]
        and bars.layout.xaxis.title.text == "Cell (layer.position.head)"
    )
    np.testing.assert_allclose(bars.data[0].y, moved.mean("example") / gap, atol=1e-6)
    np.testing.assert_allclose(
        bars.data[0].error_y.array, moved.std("example", ddof=1) / np.sqrt(3) / abs(gap), rtol=1e-5
    )
    table = cells_table(result)
    assert set(table["cell"]) == {"1.8.2", "0.3.1", "1.3.1", "0.5.0"} and {
        "layer",
        "pos",
        "head",
        "value",
        "change",
        "shown",
    } <= set(table)
    assert table["change"].abs().is_monotonic_decreasing


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cells": [(0, 1, 2)]}, r"a cell is \(layer, pos\), got \[0, 1, 2\]"),
        ({"cells": []}, "got no cells"),
        ({"cells": [(0, 1), (0, 1)]}, r"cell \(0, 1\) is asked for twice"),
        ({"cells": [(0, 1)], "layers": [0]}, "give either the list or those"),
        ({"cells": [(0, 99)]}, f"position 99 is outside prompts of {N_POS} tokens"),
        ({"cells": [(7, 1)]}, "layer"),
    ],
    ids=["form", "none", "twice", "both", "position", "layer"],
)
def test_a_bad_list_is_refused_in_a_sentence(models, pair, options, says):
    with pytest.raises(WorkbenchError, match=says):
        denoise(models["gpt2"], *pair, METRIC, site="resid_pre", **options)
