"""The two-checkpoints panel without a browser: map, cell, table, figures and file are one Result; refusals and
cancels leave it working.
"""

import threading
from functools import partial

import numpy as np
import pytest
from redraw import assert_quick, settings
from transformers import AutoModelForCausalLM

from workbench.core.errors import WorkbenchError
from workbench.core.places import organism_folder
from workbench.datasets.bigram_backcopy import VOCABULARY, BigramBackcopy
from workbench.models import load
from workbench.organisms.tokenizer import word_tokenizer
from workbench.panels import TwoCheckpoints
from workbench.panels.two_checkpoints import TwoCheckpointsState
from workbench.primitives.replace.module_changes import module_changes
from workbench.primitives.replace.sweeps import Zero
from workbench.primitives.replace.two_checkpoints import sweep_effects_both
from workbench.primitives.score.metrics import sequence_loss
from workbench.training.language_model import PretrainSpec, pretrain
from workbench.views import two_checkpoints as views


def tuned(seed: int, tokenizer):
    """The organism after a few steps on the same words with another chain."""
    module = AutoModelForCausalLM.from_pretrained(organism_folder("attention-sink"))
    pretrain(
        module,
        BigramBackcopy(chain_seed=5).sample,
        PretrainSpec(steps=4, lr=1e-3, warmup_steps=1, batch_size=8, length=24, seed=seed),
    )
    return load(module, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def models(organism):
    return organism, tuned(1, organism.tokenizer), tuned(2, organism.tokenizer)


@pytest.fixture(scope="module")
def weights(models):
    return module_changes(*models, k=4)


@pytest.fixture(scope="module")
def prompts(organism):
    return [
        " ".join(organism.to_strings(row[1:]))
        for row in BigramBackcopy().sample(20, 8, np.random.default_rng(0)).tolist()
    ]


@pytest.fixture(scope="module")
def sweep(models, prompts):
    rows = models[0].to_rows(prompts)
    return sweep_effects_both(*models[:2], rows, Zero(), sequence_loss(rows), site="z", axes=("unit",))


def refused(*_, **__):
    pytest.fail("computed")


@pytest.fixture
def panel(models, weights, sweep, prompts):
    """Both comparisons handed out from Results made once."""
    return (
        TwoCheckpoints(*models, prompts=prompts, compute=lambda *_, **__: weights, compute_sweep=lambda *_, **__: sweep)
        .run()
        .wait(60)
    )


def cells(panel) -> np.ndarray:
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


def test_made_it_shows_controls_and_computes_nothing(models):
    panel = TwoCheckpoints(*models, compute=refused, compute_sweep=refused)
    assert (
        panel.shown is None
        and panel.table().empty
        and panel.figures() == {}
        and panel.grid.shape == [0, 0]
        and not panel.state.running
    )
    with pytest.raises(WorkbenchError, match="nothing to save"):
        panel.save("x.html")
    assert "<b>C</b>" in panel.children[5].value and panel._of_sweep.layout.display == "none"


def test_every_control_has_a_label_and_a_tooltip(models):
    panel = TwoCheckpoints(*models)
    controls = (
        panel.look,
        panel.k,
        panel.quantity,
        panel.side,
        panel.prompts,
        panel.corrupted,
        panel.answers,
        panel.part,
        panel.source,
        panel.start,
        panel.stop,
    )
    assert all(control.description and control.tooltip for control in controls)


def test_run_calls_the_plain_function_with_models_and_k(models, weights):
    seen = {}
    panel = TwoCheckpoints(
        *models,
        compute=lambda *given, **options: (
            seen.update(given=given, k=options["k"], thread=threading.current_thread()),
            weights,
        )[1],
    )
    panel.k.value = 7
    panel.start.click()
    panel.wait(60)
    assert seen["given"] == models and seen["k"] == 7 and seen["thread"] is not threading.main_thread()


def test_map_table_and_figure_are_the_same_numbers(panel, weights):
    assert np.allclose(cells(panel), weights.data["relative"]) and np.allclose(
        panel.figures()["weight_change"].data[0].z, cells(panel)
    )
    table = panel.table()
    blocks = table[table.layer >= 0].pivot(index="layer", columns="module", values="relative")[panel.grid.col_labels]
    assert np.allclose(blocks, cells(panel)) and not panel.grid.signed and panel.grid.unit == "share of |A|"
    outside = table[table.layer < 0].set_index("parameter").relative
    assert f"lm_head {outside['lm_head.weight']:.3g}" in panel.beside.value


def test_the_fine_tune_moved_every_module_and_more_than_chance_along_the_weights(panel, weights):
    """What the picture says of this pair: training moves everything, and its first directions are not random ones."""
    assert (cells(panel) > 0).all()
    measured, high = (
        weights.data[name].sel(side="right").where(weights.data["rank"].notnull())
        for name in ("overlap", "chance_overlap_high")
    )
    assert float((measured.sel(against="other change") > high).sum() / high.notnull().sum()) > 0.9


def test_colour_and_side_redraw_without_a_new_run(panel, weights):
    panel._compute = refused
    panel.quantity.value = "cosine_changes"
    assert (
        panel.grid.signed
        and (panel.grid.low, panel.grid.high) == (-1, 1)
        and np.allclose(cells(panel), weights.data["cosine_changes"], equal_nan=True)
    )
    panel.quantity.value = "weights"
    right = cells(panel).copy()
    assert (
        len(panel.grid.col_labels) == 6
        and panel.grid.marked == [list(c) for c in views.within_chance(weights, "weights")]
        and "Crossed" in panel.beside.value
    )
    panel.side.value = "left"
    assert not np.allclose(right, cells(panel)) and np.allclose(cells(panel), views.cells(weights, "weights", "left"))
    assert np.allclose(panel.figures()["weight_change"].data[0].z, cells(panel))


def test_a_click_opens_the_spectrum_and_the_angles_of_that_module(panel, weights):
    panel.grid.click(1, panel.grid.col_labels.index("attention.o"))
    assert panel.state.place == [1, "attention.o"]
    figure, table = panel.figures()["cell"], panel.table()
    drawn = {trace.name: trace for trace in figure.data}
    assert np.allclose(drawn["change B - A"].y, table["change"]) and np.allclose(
        drawn["change to weights"].y, table["angle to weights"].dropna()
    )
    own = weights.tables["spectrum"].query("layer == 1 and module == 'attention.o'")
    assert (
        np.allclose(table["change"], own["change"])
        and panel.area.outputs[0]["data"]["text/plain"] == figure.layout.meta["alt"]
    )
    shown = panel.area.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]
    assert [t["name"] for t in shown] == [t.name for t in figure.data]


def test_a_click_on_a_map_of_matrices_alone_opens_the_right_one(panel):
    panel.quantity.value = "weights"
    panel.grid.click(2, 3)
    assert panel.state.place == [2, "attention.o"]


def test_a_vector_has_no_spectrum_and_says_so(panel):
    panel.grid.click(0, panel.grid.col_labels.index("input_layernorm"))
    assert (
        "input_layernorm has no spectrum" in panel.beside.value
        and list(panel.figures()) == ["weight_change"]
        and panel.area.outputs == ()
    )


def test_the_colour_stays_when_it_is_computed_again_and_the_cell_is_forgotten(panel):
    panel.grid.click(0, 4)
    panel.quantity.value = "other change"
    panel.run().wait(60)
    assert (
        panel.quantity.value == panel.state.quantity == "other change"
        and panel.state.place == []
        and panel.area.outputs == ()
    )


def test_the_same_sweep_shows_effects_intervals_and_every_prompt(panel, sweep):
    panel.look.value = "sweep"
    assert panel.shown is None and panel.grid.layout.display == "none" and panel._of_weights.layout.display == "none"
    panel.run().wait(60)
    assert (
        np.allclose(cells(panel), sweep.data["mean"])
        and np.allclose(panel.figures()["difference"].data[0].z, cells(panel))
        and panel.grid.signed
    )
    assert panel.grid.marked == [list(c) for c in views.not_told_apart(sweep)] and panel.grid.row_labels == [
        "0",
        "1",
        "2",
    ]
    assert np.allclose(panel.table()["mean"], cells(panel).ravel()) and {"low", "high", "mean_a", "mean_b"} <= set(
        panel.table()
    )
    assert f"the loss of B is that of A {float(sweep.data['base_difference'].mean()):+.3g} nats" in panel.beside.value
    panel.grid.click(0, 5)
    assert np.allclose(panel.table()["difference"], sweep.data["difference"].isel(layer=0, head=5)) and np.allclose(
        panel.figures()["cell"].data[0].y, panel.table()["difference"]
    )
    panel.look.value = "weights"
    assert panel.grid.unit == "share of |A|" and panel.state.result is panel.state.weights


def test_the_sweep_runs_what_the_controls_say(models, prompts, sweep):
    calls = []
    panel = TwoCheckpoints(
        *models[:2],
        prompts=prompts[:2],
        compute_sweep=lambda *given, **options: (calls.append((given, options)), sweep)[1],
    )
    panel.look.value = "sweep"
    panel.run().wait(60)
    (a, b, base, source, metric), options = calls.pop()
    assert (
        (a, b) == models[:2]
        and base == a.to_rows(prompts[:2])
        and isinstance(source, Zero)
        and metric.positions is None
        and metric.unit == "nats"
        and (options["site"], options["axes"]) == ("z", ("unit",))
    )
    panel.state.part, panel.state.source, panel.state.answers, panel.state.corrupted = (
        "mlp_out",
        "corrupted",
        "river",
        "\n".join(prompts[2:4]),
    )
    assert panel.corrupted.layout.display == "flex"
    panel.run().wait(60)
    (_, _, _, source, metric), options = calls.pop()
    assert (
        source.tokens == a.to_rows(prompts[2:4])
        and metric.n_examples == 2
        and metric.positions == (-1,)
        and (options["site"], options["axes"]) == ("mlp_out", ("pos",))
    )


def test_a_real_sweep_through_the_panel_equals_the_plain_function(models, prompts, sweep):
    panel = TwoCheckpoints(*models[:2], prompts=prompts, state=None)
    panel.state.look = "sweep"
    panel.run().wait(120)
    assert panel.state.error == "" and np.allclose(cells(panel), sweep.data["mean"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ""}, "needs prompts: give at least one"),
        ({"source": "corrupted"}, "needs corrupted prompts"),
        ({"answers": "river stone"}, r"'river stone' is 2 tokens"),
        ({"answers": "river\nstone"}, "one answer for each prompt"),
        ({"source": "resample", "prompts": "river lake"}, "takes another example"),
    ],
    ids=["no prompt", "no corrupted", "two tokens", "too few answers", "nothing to resample"],
)
def test_what_cannot_be_swept_is_one_sentence(models, prompts, change, said):
    import re

    panel = TwoCheckpoints(*models[:2], prompts=prompts)
    panel.state.look = "sweep"
    panel.state.set_trait("prompts", change.get("prompts", panel.state.prompts))
    for name, value in change.items():
        setattr(panel.state, name, value)
    panel.run().wait(60)
    assert re.search(said, panel.state.error) and "\n" not in panel.state.error and not panel.state.running


def test_models_that_do_not_correspond_are_refused_saying_where(organism):
    other = load("organism:induction")
    panel = TwoCheckpoints(organism, other).run().wait(60)
    assert "n_layers is 3 and 2" in panel.state.error and panel.shown is None
    words = [*VOCABULARY[:9], VOCABULARY[10], VOCABULARY[9], *VOCABULARY[11:]]
    swapped = load(
        AutoModelForCausalLM.from_pretrained(organism_folder("attention-sink")),
        tokenizer=word_tokenizer(words, add_bos=True),
    )
    panel = TwoCheckpoints(organism, swapped, prompts=["river lake"]).run().wait(60)
    assert f"part at token 9 of row 0: {VOCABULARY[9]!r} (id 9)" in panel.state.error
    panel.state.look, panel.state.prompts = "sweep", f"river {VOCABULARY[9]}"
    panel.run().wait(60)
    assert "part at token 2 of text 0" in panel.state.error


def test_warnings_and_a_zero_difference_are_notices(organism):
    panel = TwoCheckpoints(organism, organism, prompts=["river lake stone"]).run().wait(60)
    assert "no parameter differs" in panel.state.notice and not cells(panel).any()
    panel.state.look = "sweep"
    panel.run().wait(60)
    assert "1 example: intervals" in panel.state.notice and len(panel.grid.marked) == 24


def test_cancel_keeps_the_norms_and_says_so(models):
    panel = TwoCheckpoints(*models[:2])

    class Stops:
        def __init__(self, progress):
            self.progress = progress

        def __getattr__(self, name):
            return getattr(self.progress, name)

        def update(self, done, total, text=""):
            if done == 3:
                panel.stop.click()
            self.progress.update(done, total, text)

    panel._compute = lambda *given, progress, **options: module_changes(*given, progress=Stops(progress), **options)
    panel.run().wait(60)
    assert panel.state.weights.partial and "cancelled" in panel.state.notice and np.isfinite(cells(panel)).all()
    assert panel.state.weights.data["rank"].notnull().sum() == 3
    panel.quantity.value = "weights"
    assert len(panel.grid.col_labels) == 3
    panel._compute = module_changes
    assert not panel.run().wait(60).state.weights.partial


def test_an_error_leaves_it_usable_and_no_hook_behind(models, sweep, prompts):
    def broken(a, b, base, source, metric, **options):
        def fail(tensor, hook):
            raise RuntimeError("in the middle of a forward")

        import torch

        a.forward(torch.tensor(base[:1]), hook_fns=[("blocks.1.hook_resid_pre", fail)])

    panel = TwoCheckpoints(*models[:2], prompts=prompts, compute_sweep=broken)
    panel.state.look = "sweep"
    panel.run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle of a forward" and not panel.state.running
    assert not any(point.fwd_hooks for point in models[0].live.hook_dict.values())
    panel._compute_sweep = lambda *_, **__: sweep
    assert panel.run().wait(60).state.error == "" and panel.grid.shape == [3, 8]


def test_saved_it_opens_as_one_page_with_its_numbers(panel, tmp_path):
    panel.grid.click(1, 4)
    text = panel.save(tmp_path / "two.html").read_text(encoding="utf-8")
    first = panel.table().iloc[0]
    assert (
        f"{first['change']:.5g}" in text
        and "Two checkpoints" in text
        and "minus organism:attention-sink" in text
        and "attention.q" in text
    )


def test_state_given_beforehand_is_kept(models):
    panel = TwoCheckpoints(*models, state=TwoCheckpointsState(k=9, look="sweep", prompts="river"))
    assert (
        panel.k.value == 9
        and panel.look.value == "sweep"
        and panel.prompts.value == "river"
        and panel._of_weights.layout.display == "none"
    )


def test_a_redraw_of_computed_data_takes_less_than_a_tenth_of_a_second_of_work(panel):
    panel.quantity.value = "weights"
    assert_quick(*settings(panel.quantity, "value", "relative", "weights", "relative", "weights"))
    assert_quick(*(partial(panel.grid.click, 1, col) for col in range(4)), limit=0.15)
