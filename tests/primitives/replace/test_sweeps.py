"""Exact sweeps: equal to transformer_lens.patching on every family, identities, counted work, cancel, resume,
fallback.
"""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from models.families import DECODERS, FAMILIES
from transformer_lens import patching

from workbench.core.errors import BadData, NoRoom, NoTokenizer, UnknownSite, UnsupportedModel, WorkbenchError
from workbench.core.progress import Progress
from workbench.models import load
from workbench.models.resumed import BaseRun
from workbench.primitives.replace import sweep_plan, sweep_sources
from workbench.primitives.replace.sweep_plan import plan
from workbench.primitives.replace.sweeps import FromRun, Mean, Resample, Zero, denoise, noise, sweep
from workbench.primitives.score import metrics

N_POS, ANSWERS, OTHERS = 9, [7, 8, 9], [10, 11, 12]


def strong(family, seed=0):
    """A random model whose weights are large enough for patches to matter."""
    torch.manual_seed(seed)
    module = FAMILIES[family]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return load(module, tokenizer=False)


@pytest.fixture(scope="module")
def models():
    return {family: strong(family) for family in DECODERS}


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(5, 60, (3, N_POS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.randint(5, 60, (3,), generator=generator)
    return clean, corrupted


METRIC = metrics.logit_diff(ANSWERS, OTHERS)


# ---- equality with TransformerLens ----

THEIRS = {
    ("resid_pre", ("pos",)): patching.get_act_patch_resid_pre,
    ("resid_mid", ("pos",)): patching.get_act_patch_resid_mid,
    ("attn_out", ("pos",)): patching.get_act_patch_attn_out,
    ("mlp_out", ("pos",)): patching.get_act_patch_mlp_out,
    ("z", ("unit",)): patching.get_act_patch_attn_head_out_all_pos,
    ("z", ("pos", "unit")): patching.get_act_patch_attn_head_out_by_pos,
    ("q", ("unit",)): patching.get_act_patch_attn_head_q_all_pos,
    ("q", ("pos", "unit")): patching.get_act_patch_attn_head_q_by_pos,
    ("pattern", ("unit",)): patching.get_act_patch_attn_head_pattern_all_pos,
}


REFUSED = {("neox", "resid_mid"), ("opt", "pattern")}  # test_what_cannot_be_swept holds that these are refused
EQUAL = [(family, *key) for family in DECODERS for key in THEIRS if (family, key[0]) not in REFUSED]


@pytest.mark.parametrize(("family", "site", "axes"), EQUAL, ids=["-".join([f, s, *a]) for f, s, a in EQUAL])
def test_equal_to_transformer_lens(models, pair, family, site, axes):
    model, (clean, corrupted) = models[family], pair
    ours = denoise(model, clean, corrupted, METRIC, site=site, axes=axes)
    assert ours.data.attrs["engine"] == "resumed"
    names = [model.hook_name(site, layer) for layer in range(model.n_layers)]
    with torch.no_grad():
        cache = model.live.run_with_cache(clean, names_filter=lambda name: name in names or "hook_" in name)[1]
        for example in range(3):
            alone = {name: value[example : example + 1] for name, value in cache.items() if torch.is_tensor(value)}
            metric = lambda logits, example=example: METRIC(logits, torch.tensor([example]))[0]  # noqa: E731
            theirs = THEIRS[site, axes](model.live, corrupted[example : example + 1], alone, metric)
            np.testing.assert_allclose(ours.data["value"].sel(example=example).values, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("site", ["k", "v"])
def test_key_value_heads_are_indexed_as_the_model_has_them(models, pair, site):
    """Under grouped queries TransformerLens's sweep runs over query heads; ours over the key/value heads there are."""
    model, (clean, corrupted) = models["llama"], pair
    ours = denoise(model, clean, corrupted, METRIC, site=site, axes=("unit",))
    assert ours.data["value"].sizes["kv_head"] == model.n_kv_heads == 2
    taken = {}
    model.forward(clean, hook_fns=[(model.hook_name(site, 1), lambda t, hook: taken.__setitem__(0, t.clone()))])
    for head in range(2):

        def edit(tensor, hook, head=head):
            tensor = tensor.clone()
            tensor[:, :, head] = taken[0][:, :, head]
            return tensor

        expected = METRIC(model.forward(corrupted, hook_fns=[(model.hook_name(site, 1), edit)]))
        np.testing.assert_allclose(ours.data["value"].sel(layer=1, kv_head=head), expected, atol=1e-5)


def test_neurons_one_by_one(models, pair):
    model, (clean, corrupted) = models["gpt2"], pair
    ours = denoise(model, clean, corrupted, METRIC, site="mlp_post", axes=("unit",), units=[0, 17, 127], layers=[1])
    name, taken = model.hook_name("mlp_post", 1), {}
    model.forward(clean, hook_fns=[(name, lambda t, hook: taken.__setitem__(0, t.clone()))])
    for neuron in (0, 17, 127):

        def edit(tensor, hook, neuron=neuron):
            tensor = tensor.clone()
            tensor[:, :, neuron] = taken[0][:, :, neuron]
            return tensor

        np.testing.assert_allclose(
            ours.data["value"].sel(layer=1, neuron=neuron),
            METRIC(model.forward(corrupted, hook_fns=[(name, edit)])),
            atol=1e-5,
        )


# ---- identities ----


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("family", DECODERS)
def test_clean_into_clean_changes_nothing(models, pair, family, site):
    result = denoise(models[family], pair[0], pair[0], METRIC, site=site)
    np.testing.assert_allclose(
        result.data["value"], np.broadcast_to(result.data["base_value"], result.data["value"].shape), atol=1e-5
    )
    assert (
        "moved the metric in no cell" in " ".join(result.warnings)
        or float(abs(result.data["value"] - result.data["base_value"]).max()) > 0
    )


@pytest.mark.parametrize("family", DECODERS)
def test_the_changed_position_at_layer_0_restores_the_clean_run(models, pair, family):
    """Only position 3 differs, so its residual entering layer 0 is all there is to restore; later layers need more."""
    result = denoise(models[family], *pair, METRIC, site="resid_pre")
    np.testing.assert_allclose(result.data["value"].sel(layer=0, pos=3), result.data["source_value"], atol=1e-4)
    before = result.data["value"].sel(layer=0, pos=[0, 1, 2])
    np.testing.assert_allclose(before, np.broadcast_to(result.data["base_value"], before.shape), atol=1e-5)


def test_noising_mirrors_denoising_where_one_place_carries_all(models, pair):
    there, back = (
        denoise(models["gpt2"], *pair, METRIC, site="resid_pre"),
        noise(models["gpt2"], *pair, METRIC, site="resid_pre"),
    )
    np.testing.assert_allclose(there.data["base_value"], back.data["source_value"], atol=1e-5)
    np.testing.assert_allclose(back.data["value"].sel(layer=0, pos=3), there.data["base_value"], atol=1e-4)


def test_patching_before_what_the_metric_reads_only(models, pair):
    """A metric at position 2 cannot see a patch at position 3 or later; one at two positions sees each from its own
    on.
    """
    metric = metrics.logit_diff(ANSWERS, OTHERS, pos=2)
    result = sweep(models["llama"], pair[1], Zero(), metric, site="resid_pre")
    late = result.data["value"].sel(pos=slice(3, None))
    np.testing.assert_array_equal(late, np.broadcast_to(result.data["base_value"], late.shape))
    assert float(abs(result.data["value"].sel(pos=[0, 1, 2]) - result.data["base_value"]).max()) > 0


@pytest.mark.parametrize("source", [Zero(), Resample(3), "mean"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_other_sources_equal_a_plain_hook(models, pair, family, source):
    model, base = models[family], pair[1]
    source = Mean(pair[0]) if source == "mean" else source
    result = sweep(
        model, base, source, METRIC, site="z", axes=("pos", "unit"), layers=[1], positions=[2, -1], units=[1]
    )
    values = sweep_sources.source_values(model, base, source, "z", [1])[0][1]
    if isinstance(source, Mean):
        torch.testing.assert_close(values[0, 0], sweep_plan.read_site(model, pair[0], "z", [1])[0][1].mean((0, 1)))
    for pos in (2, N_POS - 1):

        def edit(tensor, hook, pos=pos):
            tensor = tensor.clone()
            tensor[:, pos, 1] = values[:, pos, 1]
            return tensor

        expected = METRIC(model.forward(base, hook_fns=[(model.hook_name("z", 1), edit)]))
        np.testing.assert_allclose(result.data["value"].sel(layer=1, pos=pos, head=1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "metric",
    [
        lambda m, c: metrics.probability(ANSWERS),
        lambda m, c: metrics.answer_loss(ANSWERS),
        lambda m, c: metrics.rank(ANSWERS),
        lambda m, c: metrics.kl_div(m.forward(c)),
        lambda m, c: metrics.sequence_loss(c),
        lambda m, c: metrics.Metric("spread", "logits", lambda logits, example: logits.std(-1).mean(-1), (2, -1, 5)),
    ],
    ids=["probability", "loss", "rank", "kl_div", "sequence_loss", "three positions out of order"],
)
def test_every_metric_is_that_of_whole_logits(models, pair, metric):
    model, (clean, corrupted) = models["neox"], pair
    metric = metric(model, clean)
    result = denoise(model, clean, corrupted, metric, site="resid_pre", layers=[1])
    resid = sweep_plan.read_site(model, clean, "resid_pre", [1])[0][1]
    for pos in range(N_POS):

        def edit(tensor, hook, pos=pos):
            tensor = tensor.clone()
            tensor[:, pos] = resid[:, pos]
            return tensor

        whole = model.forward(corrupted, hook_fns=[(model.hook_name("resid_pre", 1), edit)])
        np.testing.assert_allclose(result.data["value"].sel(layer=1, pos=pos), metric(whole), atol=1e-4)


def test_half_precision_agrees_within_its_rounding(pair):
    model = strong("llama")
    exact = denoise(model, *pair, METRIC, site="resid_pre")
    torch.manual_seed(0)
    half = load(_rounded("llama"), dtype="bfloat16", tokenizer=False)
    rough = denoise(half, *pair, METRIC, site="resid_pre")
    assert rough.data.attrs["check_max_abs_diff"] < 0.1
    scale = float(abs(exact.data["value"]).mean())
    assert float(abs(exact.data["value"] - rough.data["value"]).mean()) < 0.1 * scale + 0.05


def _rounded(family):
    torch.manual_seed(0)
    module = FAMILIES[family]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return module


# ---- work, memory, plan ----


def test_counted_work_is_what_causality_needs(models, pair, monkeypatch):
    """Tokens x blocks really executed: no more than the plan says, and far less than a forward a cell."""
    model, (clean, corrupted) = models["gpt2"], pair
    seen = 0
    blocks = BaseRun(model, corrupted).blocks

    def count(module, args, output):
        nonlocal seen
        seen += output.shape[0] * output.shape[1]

    handles = [block.register_forward_hook(count) for block in blocks]
    try:
        cost = plan(model, corrupted, METRIC, site="resid_pre", probe=False)
        seen = 0
        denoise(model, clean, corrupted, METRIC, site="resid_pre", n_check=0)
    finally:
        [handle.remove() for handle in handles]
    overhead = (
        4 * corrupted.numel() * model.n_layers + 40 * N_POS * model.n_layers
    )  # base, source, activations, timing probes
    assert seen <= cost.token_blocks * 1.6 + overhead
    assert (
        cost.token_blocks <= 0.75 * cost.plain_token_blocks
    )  # two layers: half of the blocks at layer 1, all of them at layer 0


def test_without_fixed_costs_the_plan_is_the_causal_minimum():
    """Every cell from its own layer and position on, and nothing more."""
    job = sweep_plan.Job("resid_pre", ("pos",), (0, 1, 2), tuple(range(N_POS)), (), 2, N_POS)
    groups = sweep_plan.group_cells(job, 3, sweep_plan.Cost(1.0, 0.0, 0.0), max_rows=1000)
    work = sum(int((3 - g.layer).sum()) * (N_POS - g.start) for g in groups)
    assert work == 2 * sum((3 - layer) * (N_POS - pos) for layer in range(3) for pos in range(N_POS))


def test_only_needed_positions_reach_the_unembedding(models, pair):
    model = models["llama"]
    widths = []
    handle = model.live.original_model.lm_head.register_forward_hook(lambda m, a, out: widths.append(out.shape[1]))
    try:
        run = BaseRun(model, pair[0])
        widths.clear()
        run.run(1, 4, torch.tensor([0, 1]), read=(N_POS - 1,))
    finally:
        handle.remove()
    assert widths == [1]


def test_earlier_blocks_do_not_run(models, pair):
    model = models["gemma2"]
    run = BaseRun(model, pair[0])
    fired = []
    hooks = [
        (
            model.hook_name("resid_pre", layer),
            partial(lambda layer, t, hook: fired.append((layer, tuple(t.shape[:2]))), layer),
        )
        for layer in range(model.n_layers)
    ]
    run.run(1, 5, torch.tensor([0, 2, 2]), hook_fns=hooks)
    assert fired == [(1, (3, N_POS - 5))]
    assert all(type(block).__name__ != "_PassThrough" for block in run.blocks)


def test_best_cuts_beat_every_other_way_of_cutting():
    suffix, per_pos, fixed = [9, 8, 7, 6, 5, 4, 3, 2, 1], 2, 11.0

    def cost(cuts):
        return sum((b - a) * per_pos * suffix[a] + fixed for a, b in cuts)

    from itertools import combinations, pairwise

    every = [[0, *middle, 9] for n in range(9) for middle in combinations(range(1, 9), n)]
    assert cost(sweep_plan.best_cuts(suffix, [per_pos] * 9, fixed)) == min(cost(list(pairwise(e))) for e in every)


def test_plan_predicts_and_says_so(models, pair):
    cost = plan(models["gpt2"], pair[1], METRIC, site="z", axes=("pos", "unit"))
    assert cost.n_cells == 2 * N_POS * 4 * 3 and cost.seconds > 0 and cost.peak_bytes > 0
    assert "less work than one forward a cell" in str(cost)


def test_a_small_budget_makes_smaller_batches_with_the_same_answer(models, pair):
    model = models["gpt2"]
    row = sweep_plan.row_bytes(model, N_POS, 1)
    small = denoise(model, *pair, METRIC, site="z", axes=("unit",), budget_bytes=2.5 * row)
    assert plan(model, pair[1], METRIC, site="z", axes=("unit",), budget_bytes=2.5 * row).n_forwards == 2 * 6
    np.testing.assert_allclose(
        small.data["value"], denoise(model, *pair, METRIC, site="z", axes=("unit",)).data["value"], atol=1e-5
    )
    with pytest.raises(NoRoom, match="one row of 9 tokens needs"):
        plan(model, pair[1], METRIC, site="z", axes=("unit",), budget_bytes=row / 2)


def test_out_of_memory_halves_the_rows(models, pair, monkeypatch):
    model, real, shapes = models["gpt2"], BaseRun.run, []

    def tight(self, layer, start, example, **kw):
        shapes.append(len(example))
        if len(example) > 4:
            raise torch.OutOfMemoryError("no room")
        return real(self, layer, start, example, **kw)

    expected = denoise(model, *pair, METRIC, site="z", axes=("unit",), n_check=0)
    monkeypatch.setattr(sweep_plan, "timed", lambda run, job: sweep_plan.Cost(1e-6, 10.0, 10.0))
    monkeypatch.setattr(BaseRun, "run", tight)
    found = denoise(model, *pair, METRIC, site="z", axes=("unit",), n_check=0)
    np.testing.assert_allclose(found.data["value"], expected.data["value"], atol=1e-5)
    assert max(shapes) > 4 and min(shapes) <= 3
    monkeypatch.setattr(BaseRun, "run", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(NoRoom, match="single row"):
        denoise(model, *pair, METRIC, site="z", axes=("unit",), n_check=0)


# ---- the check and the plain way ----


def test_a_wrong_short_way_is_found_out_and_not_used(models, pair, monkeypatch):
    model, real = models["gpt2"], BaseRun.run
    right = denoise(model, *pair, METRIC, site="attn_out").data["value"]
    monkeypatch.setattr(BaseRun, "run", lambda *a, **k: real(*a, **k) + torch.linspace(0, 1, 64))
    result = denoise(model, *pair, METRIC, site="attn_out")
    assert result.data.attrs["engine"] == "plain" and "the short way differed" in " ".join(result.warnings)
    np.testing.assert_allclose(result.data["value"], right, atol=1e-5)


def test_a_short_way_that_breaks_is_left_with_a_warning(models, pair, monkeypatch):
    monkeypatch.setattr(sweep_plan, "timed", lambda run, job: sweep_plan.Cost(1e-6, 10.0, 10.0))
    monkeypatch.setattr(BaseRun, "run", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("shapes disagree")))
    result = denoise(models["gpt2"], *pair, METRIC, site="attn_out")
    assert result.data.attrs["engine"] == "plain" and "shapes disagree" in " ".join(result.warnings)


def test_a_sliding_window_shorter_than_the_prompt_is_run_the_plain_way(pair):
    import transformers as tf
    from models.families import GQA, NO_SPECIAL

    torch.manual_seed(0)
    model = load(
        tf.Gemma2ForCausalLM(tf.Gemma2Config(**GQA | NO_SPECIAL | {"head_dim": 8, "sliding_window": 4})),
        tokenizer=False,
    )
    result = denoise(model, *pair, METRIC, site="resid_pre")
    assert result.data.attrs["engine"] == "plain" and "sliding window" in result.warnings[0]
    np.testing.assert_allclose(result.data["value"].sel(layer=0, pos=3), result.data["source_value"], atol=1e-4)


def test_what_a_metric_cannot_read_is_said_in_a_sentence(models, pair):
    with pytest.raises(BadData, match="1 answers and 2 others"):
        metrics.logit_diff([3], [4, 5])
    for metric in (
        metrics.logit_diff(ANSWERS, [4, 5, 999]),
        metrics.probability([4, 5, 999]),
        metrics.answer_loss([4, 5, -3]),
        metrics.rank([4, 999, 5]),
    ):
        with pytest.raises(BadData, match=r"an answer has id (999|-3), and the model knows tokens 0 to 63"):
            denoise(models["gpt2"], *pair, metric, site="resid_pre")
    with pytest.raises(NoTokenizer, match="came without a tokenizer"):
        denoise(models["gpt2"], ["apple"], ["beach"], METRIC, site="resid_pre")


# ---- cancel, resume, hooks, threads ----


class StopAfter(Progress):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def update(self, done, total, text=""):
        if done == self.n:
            self.cancel()
        super().update(done, total, text)


def test_cancelled_sweep_resumes_to_the_same_numbers(models, pair):
    whole = denoise(models["gpt2"], *pair, METRIC, site="resid_pre")
    tight = 8.5 * sweep_plan.row_bytes(
        models["gpt2"], N_POS, 1
    )  # several forwards, so that there is a middle to stop in
    part = denoise(models["gpt2"], *pair, METRIC, site="resid_pre", progress=StopAfter(1), budget_bytes=tight)
    assert part.partial and bool(part.data["value"].isnull().any()) and bool(part.data["value"].notnull().any())
    again = denoise(models["gpt2"], *pair, METRIC, site="resid_pre", resume=part)
    np.testing.assert_allclose(again.data["value"], whole.data["value"], atol=1e-5)
    with pytest.raises(BadData, match="another sweep"):
        denoise(models["gpt2"], *pair, METRIC, site="attn_out", resume=part)


def test_cancel_from_another_thread(models, pair):
    progress = Progress()
    threading.Timer(0.05, progress.cancel).start()
    result = sweep(
        models["gpt2"],
        pair[1].repeat(1, 5),
        Zero(),
        metrics.logit_diff(ANSWERS, OTHERS),
        site="mlp_post",
        axes=("pos", "unit"),
        progress=progress,
    )
    assert result.partial and bool(result.data["value"].isnull().any())


def test_nothing_is_left_behind_after_an_error(models, pair):
    model = models["neox"]
    clean = model.forward(pair[0])
    run = BaseRun(model, pair[0])

    def broken(tensor, hook):
        raise RuntimeError("inside a hook")

    with pytest.raises(RuntimeError, match="inside a hook"):
        run.run(1, 3, torch.tensor([0]), hook_fns=[(model.hook_name("z", 1), broken)])
    assert torch.equal(model.forward(pair[0]), clean)
    assert not any(point.fwd_hooks for point in model.live.hook_dict.values())


def test_two_sweeps_at_once_equal_one_after_the_other(models, pair):
    model, found = models["llama"], {}
    alone = {site: denoise(model, *pair, METRIC, site=site).data["value"].values for site in ("attn_out", "mlp_out")}

    def work(site):
        found[site] = denoise(model, *pair, METRIC, site=site).data["value"].values

    threads = [threading.Thread(target=work, args=(site,)) for site in alone]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for site, values in alone.items():
        np.testing.assert_allclose(found[site], values, atol=1e-5)


# ---- what cannot be swept ----


@pytest.mark.parametrize(
    ("family", "options", "error", "says"),
    [
        ("neox", {"site": "resid_mid"}, UnknownSite, "parallel residual"),
        ("opt", {"site": "pattern", "axes": ("unit",)}, UnsupportedModel, "after the fact"),
        ("mixtral", {"site": "mlp_post", "axes": ("unit",)}, UnknownSite, "fused operation"),
        ("gpt2", {"site": "resid_pr"}, UnknownSite, "Closest: resid_pre"),
        ("gpt2", {"site": "logits"}, UnknownSite, "site to sweep"),
        ("gpt2", {"site": "resid_pre", "axes": ("unit",)}, WorkbenchError, "has no heads or neurons"),
        ("gpt2", {"site": "resid_pre", "axes": ("head",)}, WorkbenchError, "axes must be"),
        ("gpt2", {"site": "resid_pre", "layers": [5]}, UnknownSite, "layers 0 to 1"),
        ("gpt2", {"site": "resid_pre", "positions": [9]}, WorkbenchError, "position 9 is outside prompts of 9 tokens"),
        ("gpt2", {"site": "z", "axes": ("unit",), "units": [4]}, WorkbenchError, "units 0 to 3"),
    ],
)
def test_what_cannot_be_swept(models, pair, family, options, error, says):
    with pytest.raises(error, match=says):
        denoise(models[family], *pair, METRIC, **options)


def test_misaligned_tokens_and_too_few_examples(models, pair):
    with pytest.raises(BadData, match="aligned"):
        sweep(models["gpt2"], pair[0], FromRun(pair[1][:, :-1]), METRIC, site="z")
    with pytest.raises(BadData, match="only one"):
        sweep(models["gpt2"], pair[0][:1], Resample(), METRIC, site="z")
    with pytest.raises(BadData, match="made for 3 examples"):
        sweep(models["gpt2"], pair[0].repeat(2, 1), Zero(), METRIC, site="z")
    with pytest.raises(BadData, match="mixes queries"):
        sweep(models["gpt2"], pair[0], Mean(pair[1]), METRIC, site="pattern", axes=("unit",))


def test_result_labels_itself_and_survives_a_file(models, pair, tmp_path):
    from workbench.core.result import Result

    result = denoise(
        models["gpt2"], pair[0][:1], pair[1][:1], metrics.logit_diff([7], [8]), site="z", axes=("pos", "unit")
    )
    assert (
        result.data["value"].dims == ("layer", "pos", "head", "example")
        and result.data["value"].attrs["unit"] == "logits"
    )
    assert list(result.data["token"].values) == [str(int(t)) for t in pair[1][0]]
    again = Result.load(result.save(tmp_path / "r"))
    assert again.data.identical(result.data)


# ---- recovered share ----


def test_recovered_share():
    clean, corrupted = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(metrics.recovered(corrupted, clean, corrupted), torch.zeros(2))
    assert torch.equal(metrics.recovered(clean, clean, corrupted), torch.ones(2))
    from workbench.core.errors import DegenerateBaseline

    with pytest.raises(DegenerateBaseline, match="on 1 of 2 examples"):
        metrics.recovered(clean, torch.tensor([0.0, 3.0]), corrupted)
