"""Figures of the safety-units analysis from a small Result made by hand: what is drawn is what the tables say."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.safety.safety_units import figures as views
from workbench.primitives.score.unit_importance import LABELS
from workbench.views import figures

SCORES = ("asr_first_token", "asr_phrase", "complied", "utility", "perplexity")


def result(origins=("stored", "run here")) -> Result:
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "importance": (("run", "scale", "set", "unit"), rng.random((len(origins), 2, 2, 8)) + 0.1),
            "label": (("run", "unit"), np.tile([0, 1, 2, 3, 0, 1, 2, 3], (len(origins), 1))),
            "distance": (("run", "organism", "direction", "block", "k"), rng.random((len(origins), 2, 2, 3, 2))),
        },
        coords={
            "origin": ("run", list(origins)),
            "seed": ("run", [0] * len(origins)),
            "scale": ["raw", "standard"],
            "set": ["safety", "utility"],
            "organism": ["aligned", "base"],
            "direction": ["ben", "mal"],
            "block": range(3),
            "k": [2, 4],
            "layer": ("unit", [0] * 4 + [1] * 4),
            "module": ("unit", ["mlp", "mlp", "mlp", "attention"] * 2),
            "index": ("unit", [0, 1, 2, 0] * 2),
        },
    )
    rows = []
    for origin in origins:
        places = [("pruning", m, "nothing", "untouched") for m in ("aligned", "base")] + [
            ("pruning", "aligned", g, a) for g in ("SCU", "UCU", "RU") for a in ("group", "random")
        ]
        places += [("tuning", "aligned", "", a) for a in ("full", "i")] + [("tuning", "base", "", "redundant")]
        for number, (table, model, group, arm) in enumerate(places):
            which = {"model": model, "start": ""} if table == "pruning" else {"model": "", "start": model}
            rows += [
                {
                    "table": table,
                    "origin": origin,
                    **which,
                    "group": group,
                    "arm": arm,
                    "score": s,
                    "mean": number + 10.0 * (origin == "stored"),
                    "low": number - 1.0,
                    "high": number + 20.0,
                    "n_seeds": 1,
                }
                for s in SCORES
            ]
    flow = [
        {
            "origin": o,
            "seed": 0,
            "before": a,
            "after": b,
            "n_units": 1 if a == b else 0,
            "share": 25.0 if a == b else 0.0,
        }
        for o in origins
        for a in LABELS
        for b in LABELS
    ]
    scan = [
        {"origin": o, "seed": 0, "group": g, "share": s, "utility_change": -1.0, "asr_change": 2.0, "picked": s == 0.1}
        for o in origins
        for g in ("SCU", "UCU", "RU")
        for s in (0.1, 0.2)
    ]
    return Result(
        Provenance("safety_units", {}, 0),
        data,
        {"summary": pd.DataFrame(rows), "transfer": pd.DataFrame(flow), "scan": pd.DataFrame(scan)},
    )


def test_all_figures_have_titles_axes_and_alt_text():
    found = figures(result())
    assert list(found) == ["pruning", "units", "freezing", "transfer", "budget", "probe", "sizes"]
    for name, figure in found.items():
        assert figure.layout.title.text and figure.layout.meta["alt"]
        assert "stored" in figure.layout.title.text
        if name != "transfer":
            assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def test_labels_of_views_are_those_of_the_method():
    assert views.LABELS == LABELS


def test_stored_is_drawn_unless_asked_and_said_in_the_title():
    stored, here = views.pruning_bars(result()), views.pruning_bars(result(), "run here")
    assert stored.data[0].y[0] == 10 and here.data[0].y[0] == 0 and "run here" in here.layout.title.text
    assert "run here" in views.pruning_bars(result(("run here",))).layout.title.text
    with pytest.raises(BadData, match="no run of origin"):
        views.pruning_bars(result(("run here",)), "stored")


def test_bars_are_the_summary_with_its_intervals():
    figure = views.pruning_bars(result(), "run here")
    assert list(figure.data[0].x) == [
        "nothing<br>pruned",
        "SCU",
        "SCU<br>random",
        "UCU",
        "UCU<br>random",
        "RU",
        "RU<br>random",
    ]
    assert list(figure.data[0].y) == [0, 2, 3, 4, 5, 6, 7] and list(figure.data[0].error_y.arrayminus) == [1] * 7
    assert [bar.name for bar in figure.data] == [text for text, _ in views.MEASURES.values()]


def test_freezing_shows_the_model_before():
    figure = views.freezing_bars(result(), "run here")
    assert list(figure.data[0].x)[:2] == ["before", "full fine-tuning"] and list(figure.data[0].y) == [0, 8, 9]


def test_scatter_shows_every_unit_once_in_its_label():
    figure = views.unit_scatter(result())
    assert sum(len(trace.x) for trace in figure.data) == 8
    scu = next(t for t in figure.data if t.name == views.NAMES["SCU"])
    np.testing.assert_allclose(np.asarray(scu.y), result().data["importance"].values[0, 0, 0][[2, 6]])
    assert (
        figure.layout.xaxis.type == "log"
        and views.unit_scatter(result(), scale="standard").layout.xaxis.type == "linear"
    )


def test_sankey_flows_add_up():
    link = views.transfer_sankey(result()).data[0].link
    assert (
        sum(link.value) == pytest.approx(100)
        and [t - s for s, t in zip(link.source, link.target, strict=True)] == [4] * 4
    )


def test_probe_draws_the_margin():
    made = result()
    distance = made.data["distance"].isel(run=0).sel(organism="base", block=1)
    line = [t for t in views.probe_curves(made).data if t.name == "block 1"][1]
    np.testing.assert_allclose(line.y, distance.sel(direction="mal") - distance.sel(direction="ben"))


def test_what_was_not_run_is_left_out():
    made = result()
    bare = Result(
        made.provenance,
        made.data.drop_vars("distance"),
        {"summary": made.tables["summary"].query("table == 'pruning'")},
    )
    assert list(figures(bare)) == ["pruning", "units"]
