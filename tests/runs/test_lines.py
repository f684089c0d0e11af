"""Claims are measured once, on the stored runs where there are any; a control that holds takes its claim with it."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.claims import FAILS, HOLDS, NOT_SHOWN, UNDECIDED, UNTESTED, check
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.runs.lines import claim, control, gap, lines, ours, repeats, shown, twins
from workbench.runs.seeds import Seeds, seeds, share_of
from workbench.runs.stored import HERE, STORED

TABLE = pd.DataFrame(
    [
        ("a", 0, STORED, 10.0),
        ("a", 1, STORED, 12.0),
        ("b", 0, STORED, 1.0),
        ("b", 1, STORED, 2.0),
        ("a", 0, HERE, 90.0),
        ("b", 0, HERE, 50.0),
    ],
    columns=["arm", "seed", "origin", "score"],
)


def result(table=TABLE, **arrays):
    return Result(Provenance("x", {}, 0), xr.Dataset(**arrays), {"t": table})


def verdict(measure, relation, threshold, on=None, **more):
    return check(on or result(), [claim("x", measure, relation, threshold, "pilot", where="section 1", **more)]).lines[
        0
    ]


def test_a_claim_is_measured_on_the_stored_runs_where_there_are_any():
    mean = lambda r: seeds(r, "t", "score", arm="a")  # noqa: E731
    assert verdict(mean, ">", 9).measured == 11.0
    assert verdict(mean, ">", 9, result(TABLE[TABLE["origin"] == HERE])).measured == 90.0
    assert set(shown(result()).tables["t"]["origin"]) == {STORED}


def test_a_gap_pairs_by_seed_and_knows_its_interval():
    found = verdict(gap("t", "score", {"arm": "a"}, {"arm": "b"}), ">=", 5.0)
    assert found.measured == 9.5 and found.verdict == UNDECIDED  # differences 9 and 10: 9.5 -+ 12.7 x 0.5
    assert found.low == pytest.approx(9.5 - 12.706 * 0.5, abs=1e-2)
    assert verdict(gap("t", "score", {"arm": "a"}, {"arm": "b"}), ">=", 3.0).verdict == HOLDS
    assert verdict(gap("t", "score", {"arm": "a"}, {"arm": "b"}), ">=", 17.0).verdict == FAILS


@pytest.mark.parametrize(
    "measure",
    [
        lambda r: seeds(r, "no", "score"),
        lambda r: seeds(r, "t", "no"),
        lambda r: seeds(r, "t", "score", no=1),
        lambda r: seeds(r, "t", "score", arm="c"),
        lambda r: None,
    ],
)
def test_what_was_not_run_is_untested(measure):
    assert verdict(measure, ">", 0).verdict == UNTESTED


def test_a_share_is_the_ratio_of_means_and_not_the_mean_of_ratios():
    part, whole = Seeds(pd.Series({0: 1.0, 1: 1.0})), Seeds(pd.Series({0: 1.0, 1: 3.0}))
    assert share_of(part, whole) == 0.5  # the mean of ratios would be 2 / 3
    assert np.isnan(share_of(part, whole * 0)) and np.isnan(share_of(part, Seeds(pd.Series(dtype=float))))


def test_seeds_without_a_partner_fall_away():
    a, b = Seeds(pd.Series({0: 1.0, 1: 5.0})), Seeds(pd.Series({1: 2.0, 2: 9.0}))
    assert (
        (a - b).values.to_dict() == {1: 3.0}
        and (-a).mean == -3.0
        and (10 - a).mean == 7.0
        and (2 * a).mean == 6.0
        and len(a) == 2
    )
    assert np.isnan((a - b).interval).all(), "one seed has no interval"


def test_lines_put_controls_after_claims_and_refuse_an_idle_one_and_a_double():
    held = control("held", lambda r: 1.0, ">", 0, "card", where="card")
    first = claim("first", lambda r: 1.0, ">", 0, "card", where="section 1", controls=[held])
    second = ours("second", lambda r: 1.0, ">", 0, "an identity")
    found = lines(first, second)
    assert [each.kind for each in found] == ["claim", "ours", "control"] and found[1].source == "this project"
    assert [each.verdict for each in check(result(), found).lines] == [NOT_SHOWN, HOLDS, HOLDS]
    with pytest.raises(ValueError, match="guards no claim"):
        lines(second, held)
    with pytest.raises(ValueError, match="two lines say 'second'"):
        lines(second, ours("second", lambda r: 0.0, ">", 0, "an identity"))


def runs(*rows):
    origin, arm, seed, label = zip(*rows, strict=True)
    return result(
        data_vars={"label": ("run", list(label))},
        coords={"origin": ("run", list(origin)), "arm": ("run", list(arm)), "seed": ("run", list(seed))},
    )


def test_repeats_compares_each_run_with_its_stored_twin_and_reports_the_least():
    equal = lambda a, b: float(a["label"].item() == b["label"].item())  # noqa: E731
    line = repeats("equal", equal, 1.0, "an identity", axes=["arm"])
    three = runs((STORED, "a", 0, 1), (STORED, "a", 1, 2), (STORED, "b", 0, 3), (HERE, "a", 0, 1), (HERE, "b", 0, 4))
    assert check(three, [line]).lines[0].measured == 0.0
    assert check(runs((STORED, "a", 0, 1), (HERE, "a", 0, 1)), [line]).lines[0].verdict == HOLDS
    assert check(runs((STORED, "a", 0, 1), (HERE, "a", 1, 1)), [line]).lines[0].verdict == UNTESTED
    assert check(result(), [line]).lines[0].verdict == UNTESTED and len(list(twins(three, "arm"))) == 2
