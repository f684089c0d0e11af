"""Descent: joined cells are the single sweeps; estimates equal TransformerLens's where it knows the node, and exact
patches where the rest is linear.
"""

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Progress
from workbench.models import load
from workbench.primitives.explain.attribution import attribute_nodes
from workbench.primitives.replace import sweep_descent as descent
from workbench.primitives.replace.sweeps import FromRun, sweep
from workbench.primitives.score.metrics import Metric, logit_diff, rank

SITES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
    "attn_scores",
    "mlp_pre",
    "mlp_post",
)


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(8, 40, (2, 9), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.tensor([50, 51])
    return clean, corrupted, logit_diff([10, 11], [12, 13])


# ---- exact ----


def test_the_parts_of_a_block_are_its_head_and_mlp_sweeps(model, pair):
    clean, corrupted, metric = pair
    found = descent.measure(model, corrupted, clean, metric, descent.part_cells(model, 1, 8)).data
    heads = sweep(
        model, corrupted, FromRun(clean), metric, site="z", axes=("pos", "unit"), layers=[1], positions=[8]
    ).data
    mlp = sweep(model, corrupted, FromRun(clean), metric, site="mlp_out", layers=[1], positions=[8]).data
    assert list(found.part.values) == ["h0", "h1", "h2", "h3", "mlp"] and found["value"].dims == (
        "layer",
        "pos",
        "part",
        "example",
    )
    np.testing.assert_allclose(found["value"].values[0, 0, :4], heads["value"].values[0, 0], atol=1e-5)
    np.testing.assert_allclose(found["value"].values[0, 0, 4], mlp["value"].values[0, 0], atol=1e-5)
    np.testing.assert_allclose(found["source_value"], heads["source_value"], atol=1e-5)
    assert found.attrs["check_max_abs_diff"] < 1e-3


def test_the_inputs_of_a_head_are_its_own(model, pair):
    clean, corrupted, metric = pair
    found = descent.measure(model, corrupted, clean, metric, descent.head_input_cells(model, 1, 2)).data
    for site in "qkv":
        alone = sweep(
            model, corrupted, FromRun(clean), metric, site=site, axes=("pos", "unit"), layers=[1], units=[2]
        ).data
        np.testing.assert_allclose(found["value"].sel(part=site).values[0], alone["value"].values[0, :, 0], atol=1e-5)


def test_under_grouped_query_attention_key_and_value_are_the_groups(tiny_models):
    llama = load(str(tiny_models["llama"]))
    assert (llama.n_heads, llama.n_kv_heads) == (4, 2)
    asks = {ask.site: ask.units for ask in descent.head_input_cells(llama, 0, 3).asks}
    assert asks == {"q": (3,), "k": (1,), "v": (1,)}
    assert "several heads share" in descent.head_input_cells(llama, 0, 3).what


def test_the_plan_counts_the_cells_that_are_measured(model, pair):
    clean, corrupted, metric = pair
    for cells in (
        descent.site_cells("resid_pre"),
        descent.part_cells(model, 0, 4),
        descent.head_input_cells(model, 1, 0),
        descent.unit_cells("mlp_post", 0, 4),
    ):
        cost = descent.plan(model, corrupted, metric, cells, probe=False)
        assert cost.n_cells == descent.measure(model, corrupted, clean, metric, cells).data["value"].size
        assert cost.seconds != cost.seconds and cost.peak_bytes > 0


class StopAfter(Progress):
    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def show(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.cancel()


def test_a_cancelled_site_keeps_its_cells_and_goes_on(model, pair):
    clean, corrupted, metric = pair
    small = {"budget_bytes": 150_000}
    whole = descent.measure(model, corrupted, clean, metric, descent.site_cells("resid_pre"), **small)
    part = descent.measure(
        model, corrupted, clean, metric, descent.site_cells("resid_pre"), progress=StopAfter(2), **small
    )
    missing = part.data["value"].isnull()
    assert part.partial and 0 < int(missing.sum()) < missing.size
    again = descent.measure(model, corrupted, clean, metric, descent.site_cells("resid_pre"), resume=part, **small)
    np.testing.assert_allclose(again.data["value"], whole.data["value"], atol=1e-4)
    assert not again.partial


def test_a_cancelled_join_is_partial(model, pair):
    clean, corrupted, metric = pair
    part = descent.measure(model, corrupted, clean, metric, descent.part_cells(model, 0, 4), progress=StopAfter(1))
    assert part.partial and bool(part.data["value"].isnull().any())


# ---- estimated ----


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_estimates_are_those_of_node_attribution(model, pair, direction):
    clean, corrupted, metric = pair
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    nodes = attribute_nodes(model, source, base, metric).data["score"]
    heads = descent.attribute(
        model, base, source, metric, descent.Cells("z", (descent.Ask("z", ("pos", "unit")),))
    ).data["score"]
    mlps = descent.attribute(model, base, source, metric, descent.site_cells("mlp_out")).data["score"]
    embed = descent.attribute(model, base, source, metric, descent.site_cells("resid_pre")).data["score"].sel(layer=0)
    for layer in range(2):
        for head in range(4):
            np.testing.assert_allclose(
                heads.sel(layer=layer, head=head).T, nodes.sel(node=f"a{layer}.h{head}"), atol=1e-4
            )
        np.testing.assert_allclose(mlps.sel(layer=layer).T, nodes.sel(node=f"m{layer}"), atol=1e-4)
    np.testing.assert_allclose(embed.T, nodes.sel(node="embed"), atol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_estimates_have_the_cells_of_the_sweep(model, pair, site):
    clean, corrupted, metric = pair
    exact = descent.measure(model, corrupted, clean, metric, descent.site_cells(site)).data["value"]
    score = descent.attribute(model, corrupted, clean, metric, descent.site_cells(site)).data["score"]
    assert score.dims == exact.dims and all((score[d] == exact[d]).all() for d in exact.dims)


@pytest.mark.parametrize("site", SITES)
def test_a_small_step_is_estimated_exactly(model, pair, site):
    """The gradient of a nearly linear piece: the source lies a thousandth of the way, so estimate and patch must
    agree.
    """
    clean, corrupted, metric = pair
    cells, step = descent.site_cells(site), 1e-3
    score = descent.attribute(model, corrupted, clean, metric, cells).data["score"]
    layer, pos = 0, 3
    name = model.hook_name(site, layer)
    seen = {}
    model.forward(clean, hook_fns=[(name, lambda tensor, hook: seen.__setitem__("there", tensor.clone()))])

    def nudge(sign):
        def move(tensor, hook):
            new = tensor.clone()
            where = (slice(None), slice(None), pos) if site in ("pattern", "attn_scores") else (slice(None), pos)
            new[where] += sign * step * (seen["there"][where] - tensor[where])
            return new

        return metric(model.forward(corrupted, hook_fns=[(name, move)]))

    slope = ((nudge(1.0) - nudge(-1.0)) / (2 * step)).numpy()
    np.testing.assert_allclose(score.sel(layer=layer, pos=pos), slope, atol=2e-2 + 2e-2 * np.abs(slope).max())


def test_the_units_of_a_site_sum_to_the_site(model, pair):
    clean, corrupted, metric = pair
    parts = descent.attribute(model, corrupted, clean, metric, descent.unit_cells("mlp_post", 1, 8)).data["score"]
    whole = (
        descent.attribute(model, corrupted, clean, metric, descent.site_cells("mlp_post"))
        .data["score"]
        .sel(layer=1, pos=8)
    )
    np.testing.assert_allclose(parts.sum("neuron").values[0, 0], whole, atol=1e-5)


def test_equal_runs_are_worth_nothing(model, pair):
    clean, _, metric = pair
    assert (
        float(abs(descent.attribute(model, clean, clean, metric, descent.site_cells("resid_pre")).data["score"]).max())
        == 0
    )


def test_bad_questions_are_refused_and_leave_no_hook(model, pair):
    clean, corrupted, _ = pair
    before = model.forward(clean)
    with pytest.raises(WorkbenchError, match="has no gradient"):
        descent.attribute(
            model, corrupted, clean, Metric("top", "tokens", rank([10, 11]).compute, (-1,), 2), descent.site_cells("z")
        )
    with pytest.raises(BadData, match="needs aligned tokens"):
        descent.attribute(model, corrupted, clean[:, :5], logit_diff([1, 2], [3, 4]), descent.site_cells("z"))
    assert torch.equal(model.forward(clean), before)
