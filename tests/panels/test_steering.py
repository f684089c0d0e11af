"""The steering panel without a browser: texts, curve, table and file are the sweep's numbers; 0 is the control;
nothing shown is out of date unsaid.
"""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from redraw import assert_quick, settings

from workbench.core.errors import WorkbenchError
from workbench.datasets.bigram_backcopy import VOCABULARY, BigramBackcopy
from workbench.models import load
from workbench.panels import Steering
from workbench.panels.steering import SteeringState
from workbench.primitives.steer.directions import given, mean_difference, principal_component, probe_direction
from workbench.primitives.steer.steering import generate, sweep_coefficients
from workbench.views import steering as views

FRONT, BACK = ["apple", "beach", "corn", "door"], ["lamp", "moon", "pond", "rain"]
POSITIVE, NEGATIVE = [f"{w} river" for w in FRONT], [f"{w} {v}" for w, v in zip(FRONT, BACK, strict=True)]
PROMPTS = ["island pond", "salt piano"]
AFTER_RIVER = VOCABULARY[int(BigramBackcopy().transitions[VOCABULARY.index("river")].argmax())]
SETTINGS = {
    "positive": "\n".join(POSITIVE),
    "negative": "\n".join(NEGATIVE),
    "prompts": "\n".join(PROMPTS),
    "layer": 1,
    "max_new_tokens": 5,
    "n_random": 2,
    "reach": 2.0,
    "n_points": 5,
}


@pytest.fixture(scope="module")
def sweeps(organism):
    """The curve and a single steered Result, computed once by the plain function."""
    direction = mean_difference(organism, organism.to_rows(POSITIVE), organism.to_rows(NEGATIVE), layer=1)
    return {
        tuple(cs): sweep_coefficients(organism, organism.to_rows(PROMPTS), direction, cs, max_new_tokens=5, n_random=2)
        for cs in ([0.0, 2.0], [0.0, 1.5], [0.0, -1.0, 1.0, -2.0, 2.0])
    }


@pytest.fixture
def panel(organism, sweeps):
    """Steered at 2, with a compute that hands out Results made once."""
    made = Steering(
        organism,
        state=SteeringState(**SETTINGS),
        compute=lambda model, rows, direction, coefficients, **_: sweeps[tuple(coefficients)],
    )
    return made.run().wait(60)


def refused(*_, **__):
    pytest.fail("computed")


def drawn(panel):
    return {t["name"]: t for t in panel.area.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]}


def numbers(values):
    """y of a drawn trace: plotly packs arrays."""
    if isinstance(values, dict):
        import base64

        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.array(values, float)


def test_made_it_shows_controls_and_computes_nothing(organism):
    panel = Steering(organism, POSITIVE, NEGATIVE, PROMPTS, compute=refused)
    assert panel.prompts.value == "island pond\nsalt piano" and panel.state.layer == 1 and panel.layer.max == 2
    assert panel.table().empty and panel.figures() == {} and panel.texts.value == "" and not panel.state.running
    with pytest.raises(WorkbenchError, match="nothing to save"):
        panel.save("x.html")


def test_every_control_has_a_label_and_a_tooltip_and_the_slider_waits_until_it_is_let_go(organism):
    panel = Steering(organism)
    names = (
        "coefficient source site layer pooling positive negative prompts positions normalise max_new_tokens temperature"
        " n_random seed target against reach n_points measure"
    ).split()
    assert (
        all(getattr(panel, n).description and getattr(panel, n).tooltip for n in names)
        and panel.steer.tooltip
        and panel.trace.tooltip
    )
    assert panel.coefficient.continuous_update is False and "given" not in [v for _, v in panel.source.options]
    assert {"resid_pre", "resid_post", "attn_out", "mlp_out"} <= set(panel.site.options) and not {
        "z",
        "pattern",
        "logits",
    } & set(panel.site.options)


def test_moving_the_slider_computes_nothing(organism):
    panel = Steering(organism, state=SteeringState(**SETTINGS), compute=refused)
    panel.coefficient.value = 1.5
    assert panel.state.coefficient == 1.5 and panel.state.error == "" and panel.state.steered is None


def test_the_plain_function_gets_rows_direction_coefficients_and_all_settings(organism, sweeps):
    seen = {}

    def compute(model, rows, direction, coefficients, **options):
        seen.update(
            rows=rows, direction=direction, coefficients=coefficients, thread=threading.current_thread(), **options
        )
        return sweeps[0.0, 2.0]

    state = SteeringState(
        **SETTINGS
        | {
            "normalise": "stream",
            "positions": "prompt",
            "seed": 3,
            "temperature": 0.5,
            "target": "silver",
            "against": "road",
        }
    )
    panel = Steering(organism, state=state, compute=compute)
    panel.steer.click()
    panel.wait(60)
    assert (
        panel.state.error == ""
        and seen["rows"] == organism.to_rows(PROMPTS)
        and seen["coefficients"] == [0.0, 2.0]
        and seen["thread"] is not threading.main_thread()
    )
    assert {n: seen[n] for n in ("normalise", "positions", "seed", "temperature", "max_new_tokens", "n_random")} == {
        "normalise": "stream", "positions": "prompt", "seed": 3, "temperature": 0.5, "max_new_tokens": 5, "n_random": 2,
    }  # fmt: skip
    assert (
        seen["metric"].name == "logit_diff"
        and seen["metric"].n_examples == 2
        and (seen["direction"].site, seen["direction"].layer) == ("resid_post", 1)
    )
    panel.state.against = ""
    panel.trace.click()
    panel.wait(60)
    assert seen["coefficients"] == [0.0, -1.0, 1.0, -2.0, 2.0] and seen["metric"].name == "probability"


@pytest.mark.parametrize("source", ["mean difference", "probe", "principal component"])
def test_directions_are_those_of_the_primitives(organism, source):
    panel = Steering(
        organism, state=SteeringState(**SETTINGS | {"source": source, "pooling": "mean", "site": "mlp_out", "layer": 2})
    )
    positive, negative = organism.to_rows(POSITIVE), organism.to_rows(NEGATIVE)
    where = {"site": "mlp_out", "layer": 2, "pos": "mean"}
    made = {
        "mean difference": lambda: mean_difference(organism, positive, negative, **where),
        "probe": lambda: probe_direction(organism, positive, negative, **where),
        "principal component": lambda: principal_component(organism, [*positive, *negative], **where),
    }[source]()
    assert torch.equal(panel.direction().vector, made.vector) and panel.direction().source == made.source


def test_a_given_vector_is_added_as_it_is_where_the_controls_say(organism):
    vector = given(torch.arange(64.0), "resid_pre", 2, "ours")
    panel = Steering(organism, prompts=PROMPTS, direction=vector)
    assert (panel.source.value, panel.site.value, panel.layer.value) == ("given", "resid_pre", 2)
    panel.layer.value = 0
    assert torch.equal(panel.direction().vector, vector.vector) and (
        panel.direction().layer,
        panel.direction().source,
    ) == (0, "ours")
    panel.site.value = "embed"
    assert panel.direction().layer is None


def test_texts_table_and_figure_are_the_same_numbers(panel, sweeps):
    result = sweeps[0.0, 2.0]
    table = panel.table()
    assert len(table) == 2 * 2 * 3 and table.iloc[0].coefficient in (0, 2)
    for text in views.side_by_side(result, 2.0)[["at_0", "steered", "random"]].to_numpy().ravel():
        assert text in panel.texts.value and text in set(table.text)
    figure = panel.figures()["steering_curve"]
    curve = table[table.arm == "direction"].groupby("coefficient")["continuation_loss"].mean()
    own = next(t for t in figure.data if t.name == "this direction")
    assert np.allclose(own.y, curve) and np.allclose(numbers(drawn(panel)["this direction"]["y"]), curve)
    random = (
        table[table.arm != "direction"]
        .groupby(["arm", "coefficient"])["continuation_loss"]
        .mean()
        .groupby("coefficient")
    )
    band = numbers(drawn(panel)["2 random directions of that norm: range"]["y"])
    assert np.allclose(band, [*random.max(), *random.min()[::-1]])


def test_coefficient_0_is_the_untouched_model_by_the_same_decoder(panel, organism):
    control = views.side_by_side(panel.state.steered, 2.0)["at_0"]
    plain = generate(organism, organism.to_rows(PROMPTS), max_new_tokens=5)
    assert control.tolist() == [organism.tokenizer.decode(ids) for ids in plain]


def test_steering_towards_a_word_says_what_follows_it_and_a_random_direction_does_not(organism):
    """The organism's most likely word after "river" becomes likely after any word; its norm alone does not do that."""
    panel = (
        Steering(organism, state=SteeringState(**SETTINGS | {"target": AFTER_RIVER, "max_new_tokens": 1}))
        .run_curve()
        .wait(60)
    )
    assert panel.state.error == "" and panel.state.measure == "metric" and "norm" in panel.about.value
    table = views.curve_table(panel.state.curve, "metric").set_index("coefficient")
    assert table.direction[2.0] > 10 * table.random_high[2.0] and table.direction[2.0] > 10 * table.direction[0.0]


def test_a_coefficient_that_was_computed_is_shown_at_once_and_another_says_what_is_shown(panel, sweeps):
    panel.run_curve().wait(60)
    panel._compute = refused
    panel.coefficient.value = -1.0
    assert "coefficient -1<" in panel.texts.value and "Steer computes" not in panel.state.notice
    assert any(
        shape["x0"] == -1.0
        for shape in panel.area.outputs[0]["data"]["application/vnd.plotly.v1+json"]["layout"]["shapes"]
    )
    panel.coefficient.value = 1.75
    assert (
        panel.coefficient_shown == 2.0
        and "coefficient 2<" in panel.texts.value
        and "shown is coefficient 2; Steer computes 1.75" in panel.state.notice
    )
    assert {-1.0, 0.0, 2.0} <= set(panel.table().coefficient) and set(panel.table().coefficient[:4]) == {0.0, 2.0}


def test_changed_settings_are_said_and_never_mixed_on_one_screen(panel):
    panel.run_curve().wait(60)
    assert panel.state.steered is not None and panel.state.curve is not None
    panel.layer.value = 2
    assert "settings changed since" in panel.state.notice
    panel.run().wait(60)
    assert panel.state.curve is None and "settings changed" not in panel.state.notice
    panel.layer.value = 1
    assert "settings changed since" in panel.state.notice


def test_the_measure_stays_when_it_is_computed_again(panel):
    panel.measure.value = "effect"
    panel.run_curve().wait(60)
    assert (
        panel.measure.value == panel.state.measure == "effect"
        and "logits" in panel.figures()["steering_curve"].layout.yaxis.title.text
    )


def test_the_slider_ends_where_the_curve_does_and_stops_at_its_points(organism):
    panel = Steering(organism, state=SteeringState(coefficient=3.0, reach=4.0))
    panel.reach.value, panel.n_points.value = 2.0, 5
    assert (panel.coefficient.min, panel.coefficient.max, panel.coefficient.value, panel.state.coefficient) == (
        -2,
        2,
        2,
        2,
    ) and panel.coefficient.step == 0.25


def test_a_broken_control_and_an_effect_of_nothing_are_notices(organism, sweeps):
    panel = (
        Steering(organism, state=SteeringState(**SETTINGS | {"prompts": "corn", "max_new_tokens": 10, "n_random": 0}))
        .run()
        .wait(60)
    )
    control = views.table(panel.state.steered).query("coefficient == 0").is_degenerate.iloc[0]
    assert control == 1 and "already at coefficient 0, 1 of 1 continuations are degenerate" in panel.state.notice
    warned = dataclasses.replace(sweeps[0.0, 2.0], warnings=("9 positions were steered and the output did not move",))
    unread = Steering(organism, state=SteeringState(**SETTINGS), compute=lambda *_, **__: warned).run().wait(60)
    assert "the output did not move" in unread.state.notice
    zero = Steering(organism, state=SteeringState(**SETTINGS | {"coefficient": 0.0})).run().wait(60)
    assert zero.state.error == "" and "coefficient 0 is the control itself" in zero.state.notice


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": " \n"}, "nothing to continue: give at least one prompt"),
        ({"negative": ""}, "at least one line in A and one in B"),
        ({"source": "principal component", "positive": "river", "negative": ""}, "1 rows have no variance"),
        ({"target": "river stone"}, "'river stone' is 2 tokens"),
        ({"positions": "generated", "target": "river"}, "leaves as they are"),
        ({"max_new_tokens": 80}, "more than the context"),
        ({"positive": "river", "negative": "river"}, "finite, non-zero vector"),
        ({"source": "given"}, "no vector was given"),
    ],
    ids=[
        "no prompt",
        "one side",
        "no variance",
        "two tokens",
        "metric unread",
        "too long",
        "no difference",
        "not given",
    ],
)
def test_what_cannot_be_done_is_one_sentence(organism, change, said):
    panel = Steering(organism, state=SteeringState(**SETTINGS | {k: v for k, v in change.items() if k != "source"}))
    if change.get("source") == "given":
        panel.source.options = [*panel.source.options, ("the vector given", "given")]
    panel.state.source = change.get("source", "mean difference")
    panel.run().wait(60)
    assert said in panel.state.error and "\n" not in panel.state.error and not panel.state.running


def test_a_model_that_is_no_language_model_is_one_sentence(tiny_models):
    panel = Steering(load(str(tiny_models["bert"])), ["lamp"], ["road"], ["lamp"]).run().wait(60)
    assert "needs a causal-lm" in panel.state.error


def test_cancel_keeps_what_was_finished(organism):
    panel = Steering(organism, state=SteeringState(**SETTINGS | {"max_new_tokens": 8}))

    class Stops:
        def __init__(self, progress):
            self.progress = progress

        def __getattr__(self, name):
            return getattr(self.progress, name)

        def update(self, done, total, text=""):
            if done > total / 3:
                panel.stop.click()
            self.progress.update(done, total, text)

    panel._compute = lambda *given, progress, **options: sweep_coefficients(*given, progress=Stops(progress), **options)
    panel.run_curve().wait(60)
    assert panel.state.curve.partial and "cancelled" in panel.state.notice and panel.state.error == ""
    assert 0 < len(panel.table()) < 5 * 3 * 2 and panel.figures()["steering_curve"].data
    assert views.ran(panel.state.curve)[0] <= 0 <= views.ran(panel.state.curve)[-1], (
        "what lies nearest to the control is run first"
    )
    assert panel.coefficient_shown in views.ran(panel.state.curve) and "not run" in panel.texts.value


def test_an_error_leaves_it_usable_and_no_hook_behind(organism, sweeps):
    def broken(model, rows, *_, **__):
        def fail(tensor, hook):
            raise RuntimeError("in the middle of a forward")

        model.forward(torch.tensor(rows[:1]), hook_fns=[("blocks.1.hook_resid_post", fail)])

    panel = Steering(organism, state=SteeringState(**SETTINGS), compute=broken).run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle of a forward" and not panel.state.running
    assert not any(point.fwd_hooks for point in organism.live.hook_dict.values())
    panel._compute = lambda *_, **__: sweeps[0.0, 2.0]
    assert panel.run().wait(60).state.error == "" and panel.texts.value


def test_saved_it_opens_as_one_page_with_its_numbers(panel, tmp_path):
    text = panel.save(tmp_path / "steering.html").read_text(encoding="utf-8")
    first = panel.table().iloc[0]
    assert (
        first.text in text
        and f"{first.continuation_loss:.5g}" in text
        and "organism:attention-sink" in text
        and "Steering" in text
    )


def test_a_redraw_of_computed_data_takes_less_than_a_tenth_of_a_second_of_work(panel):
    panel.run_curve().wait(60)
    assert_quick(*settings(panel.coefficient, "value", -1.0, 1.0, -2.0, 2.0))
