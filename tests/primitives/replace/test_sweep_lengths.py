"""Sweeps over prompts of unequal length: every example gets the numbers it has alone, in order, and can be resumed."""

import numpy as np
import pytest
import torch
from models.families import DECODERS
from primitives.replace.test_sweeps import strong

from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.primitives.replace.sweep_plan import plan
from workbench.primitives.replace.sweeps import FromRun, Mean, Resample, Zero, denoise, sweep
from workbench.primitives.score import metrics

LENGTHS = (7, 4, 7, 9)  # not in order, so that joining must put examples back
ANSWERS, OTHERS = [7, 8, 9, 10], [11, 12, 13, 14]
METRIC = metrics.logit_diff(ANSWERS, OTHERS)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(5)
    clean = [rng.integers(5, 60, n).tolist() for n in LENGTHS]
    corrupted = [[*row[:2], int(rng.integers(5, 60)), *row[3:]] for row in clean]
    return clean, corrupted


@pytest.fixture(scope="module")
def model():
    return strong("gpt2")


def alone(model, pair, i, **options):
    """The sweep of one example by itself."""
    clean, corrupted = ([rows[i]] for rows in pair)
    return denoise(
        model,
        torch.tensor(clean),
        torch.tensor(corrupted),
        metrics.logit_diff(ANSWERS[i : i + 1], OTHERS[i : i + 1]),
        **options,
    )


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    ("site", "axes"), [("resid_pre", ("pos",)), ("z", ("pos", "unit"))], ids=["resid_pre", "heads"]
)
def test_each_example_has_the_numbers_it_has_alone(pair, family, site, axes):
    model = strong(family)
    together = denoise(model, *pair, METRIC, site=site, axes=axes)
    value = together.data["value"]
    assert value.sizes["pos"] == max(LENGTHS) and value.sizes["example"] == len(LENGTHS) and value.dims[-1] == "example"
    for i, n in enumerate(LENGTHS):
        own = alone(model, pair, i, site=site, axes=axes)
        np.testing.assert_allclose(
            value.sel(example=i).isel(pos=slice(n)), own.data["value"].isel(example=0), atol=1e-4
        )
        assert np.isnan(value.sel(example=i).isel(pos=slice(n, None))).all()
        np.testing.assert_allclose(together.data["base_value"].sel(example=i), own.data["base_value"][0], atol=1e-5)
        np.testing.assert_allclose(together.data["source_value"].sel(example=i), own.data["source_value"][0], atol=1e-5)
    assert together.data.attrs["engine"] == "resumed" and together.data.attrs["check_max_abs_diff"] < 1e-3


def test_padding_on_the_right_gives_the_same_numbers(model, pair):
    """The other way to run unequal prompts: pad, and read where each row ends. Causality makes it equal."""
    clean, corrupted = pair
    ours = denoise(model, clean, corrupted, METRIC, site="resid_mid").data["value"]
    longest = max(LENGTHS)
    wide = [[torch.tensor([row + [0] * (longest - len(row)) for row in rows]) for rows in pair][k] for k in (0, 1)]
    mask = torch.tensor([[p < n for p in range(longest)] for n in LENGTHS])
    ends = torch.tensor(LENGTHS) - 1
    rows = torch.arange(len(LENGTHS))
    kept = {}
    names = [model.hook_name("resid_mid", layer) for layer in range(model.n_layers)]
    model.forward(
        wide[0], mask=mask, hook_fns=[(n, lambda t, hook, n=n: kept.__setitem__(n, t.clone())) for n in names]
    )
    for layer, name in enumerate(names):
        for pos in range(longest):

            def patch(tensor, hook, name=name, pos=pos):
                tensor = tensor.clone()
                tensor[:, pos] = kept[name][:, pos]
                return tensor

            logits = model.forward(wide[1], mask=mask, hook_fns=[(name, patch)])[rows, ends]
            theirs = logits[rows, torch.tensor(ANSWERS)] - logits[rows, torch.tensor(OTHERS)]
            here = [i for i, n in enumerate(LENGTHS) if pos < n]
            np.testing.assert_allclose(ours.isel(layer=layer).sel(pos=pos).values[here], theirs[here], atol=1e-4)


def test_positions_from_the_end_line_up_at_the_ends(model, pair):
    ends = denoise(model, *pair, METRIC, site="resid_pre", positions=[-1, -2]).data["value"]
    assert ends.pos.values.tolist() == [-2, -1] and not np.isnan(ends).any()
    whole = denoise(model, *pair, METRIC, site="resid_pre").data["value"]
    for i, n in enumerate(LENGTHS):
        np.testing.assert_allclose(ends.sel(example=i), whole.sel(example=i, pos=[n - 2, n - 1]), atol=1e-5)


def test_one_length_as_rows_is_the_tensor(model, pair):
    rows = [[row[:4] for row in rows] for rows in pair]
    one, other = (
        denoise(model, *rows, METRIC, site="z", axes=("unit",)),
        denoise(model, *map(torch.tensor, rows), METRIC, site="z", axes=("unit",)),
    )
    assert one.data.equals(other.data) and one.provenance.data == other.provenance.data


@pytest.mark.parametrize("source", ["zero", "mean", "resample"])
def test_other_sources(model, pair, source):
    clean, corrupted = pair
    made = {"zero": Zero(), "mean": Mean(corrupted), "resample": Resample(3)}[source]
    if source == "resample":
        with pytest.raises(BadData, match="another example of 4 tokens"):
            sweep(model, clean, made, METRIC, site="z", axes=("unit",))
        chosen, metric = [0, 2], METRIC.of([0, 2])
        found = sweep(model, [clean[i] for i in chosen], made, metric, site="z", axes=("unit",))
        swapped = sweep(
            model,
            [clean[i] for i in chosen],
            FromRun([clean[i] for i in chosen[::-1]]),
            metric,
            site="z",
            axes=("unit",),
        )
        np.testing.assert_allclose(found.data["value"], swapped.data["value"], atol=1e-5)
        return
    found = sweep(model, clean, made, METRIC, site="z", axes=("unit",)).data["value"]
    for i, row in enumerate(clean):
        own = sweep(model, torch.tensor([row]), made, METRIC.of([i]), site="z", axes=("unit",)).data["value"]
        np.testing.assert_allclose(found.sel(example=i), own.isel(example=0), atol=1e-4)


def test_metrics_that_read_whole_rows(model, pair):
    clean, corrupted = pair
    loss, reference = metrics.sequence_loss(corrupted), [model.forward(torch.tensor([row]))[0] for row in corrupted]
    for metric in (loss, metrics.kl_div(reference)):
        found = denoise(model, clean, corrupted, metric, site="mlp_out").data
        for i, n in enumerate(LENGTHS):
            own = denoise(
                model, torch.tensor([clean[i]]), torch.tensor([corrupted[i]]), metric.of([i]), site="mlp_out"
            ).data
            np.testing.assert_allclose(
                found["value"].sel(example=i).isel(pos=slice(n)), own["value"].isel(example=0), atol=1e-4
            )
    assert (
        abs(float(denoise(model, clean, corrupted, metrics.kl_div(reference), site="z").data["base_value"].max()))
        < 1e-5
    )


def test_the_plan_is_the_sum_over_lengths(model, pair):
    whole = plan(model, pair[1], METRIC, site="resid_pre", probe=False)
    parts = [plan(model, torch.tensor([row]), METRIC, site="resid_pre", probe=False) for row in pair[1]]
    assert whole.n_cells == sum(p.n_cells for p in parts) == model.n_layers * sum(LENGTHS)
    assert whole.plain_token_blocks == sum(p.plain_token_blocks for p in parts)


class _StopsAt(Progress):
    def __init__(self, share):
        super().__init__()
        self.share, self.seen = share, []

    def show(self):
        self.seen.append(self.done / self.total)
        if self.seen[-1] >= self.share:
            self.cancel()


@pytest.mark.parametrize("positions", [None, [-1, -2, -3, -4]], ids=["all", "from the end"])
def test_a_cancelled_sweep_resumes(model, pair, positions, tmp_path):
    options = {"site": "resid_pre", "positions": positions, "budget_bytes": 600_000}
    whole = denoise(model, *pair, METRIC, **options)
    progress = _StopsAt(0.4)
    part = denoise(model, *pair, METRIC, progress=progress, **options)
    n_done = int(np.isfinite(part.data["value"]).sum())
    assert part.partial and 0 < n_done < int(np.isfinite(whole.data["value"]).sum())
    part = Result.load(part.save(tmp_path / "part"))
    seen = _StopsAt(2)
    again = denoise(model, *pair, METRIC, resume=part, progress=seen, **options)
    np.testing.assert_allclose(
        again.data["value"], whole.data["value"], atol=2e-6
    )  # batches differ in size, so the last bit may
    assert seen.seen == sorted(seen.seen) and seen.seen[-1] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c, k: {"positions": [0, -1]}, "one sign"),
        (lambda c, k: {"positions": [6]}, "prompts of 4 tokens have none"),
        (lambda c, k: {"clean": [*c[:3], c[3][:-1]]}, "example 3 has 8 tokens and its base 9"),
        (lambda c, k: {"clean": c[:3]}, "3 prompts and the base 4"),
        (lambda c, k: {"corrupted": [*k[:3], []]}, "prompt 3 is empty"),
        (lambda c, k: {"corrupted": [], "clean": []}, "no prompts"),
    ],
    ids=["mixed signs", "outside the shortest", "misaligned", "too few", "empty prompt", "none"],
)
def test_bad_sets_are_refused_in_one_sentence(model, pair, change, says):
    options = {"clean": pair[0], "corrupted": pair[1], "metric": METRIC, "site": "resid_pre"} | change(*pair)
    with pytest.raises(BadData, match=says):
        denoise(model, **options)
