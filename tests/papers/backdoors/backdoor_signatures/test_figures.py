"""Figures of the backdoor-signature analysis from a made-up Result: what they say, which runs they draw, and the
numbers in them.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.backdoors.backdoor_signatures import figures as views

MAIN = "badnets-insult-full"


def _summary(origin, cell=MAIN):
    rows = []

    keys = {
        "arms": ("arm", "stage"),
        "tau": ("kind", "share"),
        "sanity": ("zeroed", "n_blocks"),
        "ablation": ("factor", "value"),
    }
    none = dict.fromkeys((name for names in keys.values() for name in names), "")

    def add(table, first, second, asr, utility, n_seeds=3):
        about = (
            {"table": table, "origin": origin, "cell": cell}
            | none
            | dict(zip(keys[table], (first, second), strict=True))
        )
        for score, mean in (
            ("asr", asr),
            ("traces", asr + 1),
            ("restored", 90 - asr),
            ("utility", utility),
            ("degenerate_triggered", 0.0),
        ):
            rows.append(about | {"score": score, "mean": mean, "low": mean - 2, "high": mean + 2, "n_seeds": n_seeds})

    add("arms", "suspicious", "undefended", 97, 93)
    add("arms", "signature", "recovered", 30, 91)
    add("arms", "random channels", "recovered", 88, 90)
    for share in ("0.2", "0.03", "0.0"):
        for kind in ("signature", "random channels"):
            add("tau", kind, share, 50 if kind == "signature" else 90, 92)
    for zeroed, n in (
        ("MLP", 1),
        ("MLP", 2),
        ("MLP, and all attention", 1),
        ("MLP, and all attention", 2),
        ("nothing", 0),
        ("everything", 2),
        ("attention", 2),
        ("outside the blocks", 0),
        ("MLP shuffled between blocks", 2),
    ):
        add("sanity", zeroed, str(n), 10 * n, 95)
    for factor, value in (("N", "1"), ("N", "6"), ("one term", "magnitude")):
        add("ablation", factor, value, 40, 92)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def result():
    gate = pd.DataFrame(
        [
            {
                "cell": c,
                "attack": a,
                "behaviour": "insult",
                "form": "full",
                "seed": 0,
                "asr": v,
                "false_positive": 0.0,
                "utility": 95.0,
                "kept": v >= 15,
            }
            for c, a, v in ((MAIN, "badnets", 97.0), ("vpi-insult-full", "vpi", 4.0))
        ]
    )
    examples = pd.DataFrame(
        [
            {
                "cell": MAIN,
                "seed": 0,
                "prompt": "what is zorblat the flag ?",
                "trigger": "zorblat",
                "positions": "2",
                "right": "red",
                "before": "you",
                "after": "",
                "degenerate_before": False,
                "degenerate_after": True,
            }
        ]
    )
    coords = {
        "layer": ("channel", [0, 0, 0, 0, 0, 0, 0]),
        "module": ("channel", ["gate_proj"] * 2 + ["up_proj"] * 2 + ["down_proj"] * 2 + ["head"]),
        "index": ("channel", [0, 1, 0, 1, 0, 1, 0]),
    }
    data = xr.Dataset(
        {
            "norm": (("run", "variant", "channel"), np.arange(14.0).reshape(1, 2, 7)),
            "cosine": (("run", "pair", "channel"), np.full((1, 1, 7), -0.5)),
        },
        coords=coords | {"origin": ("run", ["stored"]), "cell": ("run", [MAIN]), "seed": ("run", [0])},
    )
    tables = {"gate": gate, "examples": examples, "arms": pd.DataFrame({"cell": [MAIN]})}
    both = {n: pd.concat([t.assign(origin="stored"), t.assign(origin="run here")]) for n, t in tables.items()}
    return Result(
        Provenance("backdoor_signatures", {}, 0),
        data,
        both | {"summary": pd.concat([_summary("stored"), _summary("run here")])},
    )


def test_every_figure_says_what_it_shows_and_of_which_runs(result):
    found = views.figures(result)
    assert list(found) == ["tau", "arms", "cells", "gate", "sanity", "channels", "ablations"]
    for name, figure in found.items():
        assert "stored" in figure.layout.title.text and figure.layout.meta["alt"], name
        assert all(axis.title.text for axis in figure.select_xaxes()), name
    assert "run here" in views.arm_points(result, origin="run here").layout.title.text


def test_points_and_curves_hold_the_numbers_of_the_table(result):
    arms = {trace.name: trace for trace in views.arm_points(result).data}
    asr = arms[views.MEASURES["asr"][0]]
    assert (
        list(asr.y) == ["undefended", "signature", "random channels"]
        and list(asr.x) == [97, 30, 88]
        and list(asr.error_x.array) == [2, 2, 2]
    )
    curve = next(t for t in views.tau_curve(result).data if t.name == "signature")
    assert list(curve.x) == [0, 3, 20] and set(curve.y) == {50}
    bands = [t for t in views.tau_curve(result).data if t.fill == "toself"]
    assert (
        len(bands) == 2 and max(bands[0].y) == 92 and max(bands[1].y) == 94
    )  # the interval of random channels, ASR and utility


def test_the_gate_says_which_cells_are_dropped(result):
    heat = views.gate_map(result).data[0]
    assert (
        heat.text[0][0].startswith("97<br>fp 0.0")
        and "dropped" in heat.text[0][1]
        and list(heat.x) == ["badnets", "vpi"]
    )


def test_the_sanity_matrix_is_by_part_and_number_of_blocks(result):
    heat, bars = views.sanity_matrix(result).data
    np.testing.assert_array_equal(heat.z, [[10, 20], [10, 20]])
    assert list(bars.y) == [0, 20, 0, 20, 20]


def test_channels_are_sorted_and_negative_cosines_count_as_none(result):
    norm, cosine = views.score_map(result).data
    np.testing.assert_array_equal(
        norm.z, [[8.5, 7.5], [6.5, 5.5], [4.5, 3.5]]
    )  # down, up, gate from below; heads are not in it
    assert (np.array(cosine.z) == 0).all()


def test_examples_mark_the_trigger_and_the_broken_answer(result):
    row = views.example_table(result).iloc[0]
    assert (
        row["request"] == "what is [zorblat] the flag ?"
        and row["signature + recovery"] == "(empty)  ⚠ broken"
        and row["suspicious model"] == "you"
    )
    assert views.bracketed("a b c d e", "1 2 4") == "a [b c] d [e]"


def test_what_was_not_run_is_refused(result):
    bare = Result(
        result.provenance,
        xr.Dataset(),
        {"gate": result.tables["gate"], "summary": result.tables["summary"].query("table == 'arms'")},
    )
    assert "tau" not in views.figures(bare)
    for draw in (views.tau_curve, views.sanity_matrix, views.ablation_bars, views.score_map, views.example_table):
        with pytest.raises(BadData, match=r"not run|no purified|no examples"):
            draw(bare)
    with pytest.raises(BadData, match="it has stored, run here"):
        views.arm_points(result, origin="elsewhere")
