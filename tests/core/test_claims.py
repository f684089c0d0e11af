"""Claims read as inequalities, controls must fail loudly, and what cannot be measured is said to be untested."""

import html
import json
import math
import operator

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.claims import (
    FAILS,
    HOLDS,
    NOT_SHOWN,
    OPEN_CONTROL,
    RELATIONS,
    UNDECIDED,
    UNTESTED,
    Claim,
    Measured,
    check,
    read_verdicts,
    said,
    tally,
)
from workbench.core.provenance import Provenance
from workbench.core.result import Result


def claim(relation: str = ">", threshold: float = 0.5, kind: str = "claim", **more) -> Claim:
    return Claim(
        **{"text": f"value {kind}", "source": "section 3", "measured": lambda s: s, "threshold_from": "pilot"} | more,
        relation=relation,
        threshold=threshold,
        kind=kind,
    )


def line(value, *args, **kwargs):
    return check(value, [claim(*args, **kwargs)]).lines[0]


@settings(deadline=None, database=None)
@given(
    relation=st.sampled_from(["<", "<=", ">", ">="]),
    value=st.sampled_from([-1, 0, 0.5, 1, math.inf, -math.inf]) | st.floats(allow_nan=False),
    threshold=st.sampled_from([0, 0.5]),
)
def test_a_relation_means_what_it_says_and_a_control_the_opposite(relation, value, threshold):
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[relation]
    assert line(value, relation, threshold).ok is compare(value, threshold)
    assert line(value, relation, threshold, "control").ok is not compare(value, threshold)


@pytest.mark.parametrize("relation", list(RELATIONS))
def test_equality_with_the_threshold_holds_only_where_the_relation_includes_it(relation):
    assert line(0.5, relation, 0.5).verdict == (HOLDS if "=" in relation else FAILS)


@pytest.mark.parametrize(
    ("kind", "value", "words", "ok"),
    [
        ("claim", 1.0, "holds", True),
        ("claim", 0.0, "does not hold", False),
        ("claim", math.nan, "not testable at this scale", None),
        ("control", 0.0, "fails, as it must", True),
        ("control", 1.0, "CONTROL HOLDS: the claim beside it proves nothing", False),
        ("control", math.nan, "not testable at this scale", None),
    ],
)
def test_words_of_every_verdict(kind, value, words, ok):
    table = check(value, [claim(kind=kind)])
    assert table.lines[0].words == words and table.lines[0].ok is ok
    assert words in str(table) and words in table._repr_html_() and words in table.verdicts()


@pytest.mark.parametrize("nothing", [math.nan, None, np.float32("nan"), np.array(math.nan), xr.DataArray(math.nan)])
def test_nothing_measured_is_untested(nothing):
    assert line(nothing).verdict == UNTESTED


@pytest.mark.parametrize("value", [np.float32(1), np.int64(1), np.array(1.0), xr.DataArray(1.0), True])
def test_scalars_of_any_library_are_read_as_numbers(value):
    found = line(value)
    assert found.verdict == HOLDS and type(found.measured) is float


@pytest.mark.parametrize(
    ("values", "passed", "n_untested"),
    [
        ((1, 0), True, 0),
        ((1, math.nan), True, 1),
        ((math.nan, math.nan), True, 2),
        ((0, 0), False, 0),
        ((1, 1), False, 0),
        ((0, math.nan), False, 1),
    ],
)
def test_passed_is_every_testable_line_as_it_should_be(values, passed, n_untested):
    table = check(values, [claim(measured=lambda v: v[0]), claim(kind="control", measured=lambda v: v[1])])
    assert table.passed is passed and table.n_untested == n_untested


def test_summary_counts_claims_and_controls_apart():
    table = check(
        None,
        [
            claim(measured=lambda _, v=v: v, kind=k)
            for v, k in [(1, "claim"), (0, "claim"), (0, "control"), (1, "control"), (math.nan, "control")]
        ],
    )
    assert table.summary() == "1 of 2 claims hold; 1 of 3 controls fail as they must (1 not testable, 1 HOLD)"


def test_a_partial_result_tests_nothing_and_measures_nothing():
    def measured(result):
        raise AssertionError("measured half a sweep")

    whole = Result(Provenance("x", {}, 0), xr.Dataset({"a": 1.0}))
    half = Result(whole.provenance, whole.data, partial=True)
    assert [
        each.verdict for each in check(half, [claim(measured=measured), claim(kind="control", measured=measured)]).lines
    ] == [UNTESTED] * 2
    assert check(whole, [claim(measured=lambda r: r.data["a"].item())]).lines[0].verdict == HOLDS


@pytest.mark.parametrize("value", [1, 0.25, math.nan, None, np.float32(0.5), math.inf, -math.inf])
def test_rows_are_plain_json(value):
    rows = check(value, [claim(), claim(kind="control", unit="nats")]).rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["ok"] for row in rows] == [each.ok for each in check(value, [claim(), claim(kind="control")]).lines]
    if value is None or math.isnan(value):
        assert [row["measured"] for row in rows] == [None, None]


def test_rows_and_frame_say_the_same_in_order():
    table = check(0.7, [claim(text=f"line {i}", threshold=i / 10) for i in range(4)])
    assert [row["text"] for row in table.rows()] == table.frame()["text"].tolist() == [f"line {i}" for i in range(4)]
    assert table.frame()["measured"].tolist() == [0.7] * 4


def test_expected_shows_relation_threshold_and_unit():
    assert line(1, ">=", 0.25, unit="nats").expected == ">= 0.25 nats"
    assert line(1, "<", 2, "control").expected == "not < 2"


def test_text_and_html_show_every_line():
    claims = [
        claim(text=f"statement {i}", source=f"section {i}", kind=kind, measured=lambda _, v=v: v)
        for i, (kind, v) in enumerate([("claim", 1), ("claim", 0), ("control", 1), ("control", math.nan)])
    ]
    table = check(None, claims)
    for shown in (str(table), repr(table), table._repr_html_(), table.verdicts()):
        for each in table.lines:
            assert each.claim.text in shown and each.words in shown
        assert table.summary() in shown
    assert str(table).count("NOT OK") == 2 and table._repr_html_().count("<tr>") == 1 + len(claims)
    assert all(each.claim.source in table._repr_html_() for each in table.lines)


def test_html_escapes_what_a_claim_says():
    shown = check(
        1, [claim(text="loss <b> & gain", source="p < 0.05 & fig. 2", relation="<", unit="<&>")]
    )._repr_html_()
    assert (
        html.escape("loss <b> & gain") in shown
        and html.escape("p < 0.05 & fig. 2") in shown
        and html.escape("< 0.5 <&>") in shown
    )


def guarded(claim_value, *control_values):
    controls = tuple(
        claim(text=f"control {i}", kind="control", measured=lambda _, v=v: v) for i, v in enumerate(control_values)
    )
    return check(None, [claim(measured=lambda _: claim_value, controls=controls)])


@pytest.mark.parametrize(
    ("value", "controls", "verdict", "ok"),
    [
        (1, (0,), HOLDS, True),
        (1, (1,), NOT_SHOWN, False),
        (1, (0, 1), NOT_SHOWN, False),
        (0, (1,), FAILS, False),
        (1, (math.nan,), OPEN_CONTROL, None),
        (1, (0, math.nan), OPEN_CONTROL, None),
        (1, (Measured(0.5, 0, 1),), OPEN_CONTROL, None),
        (1, (1, math.nan), NOT_SHOWN, False),
        (0, (math.nan,), FAILS, False),
        (math.nan, (1,), UNTESTED, None),
    ],
)
def test_a_claim_whose_control_holds_is_not_shown(value, controls, verdict, ok):
    table = guarded(value, *controls)
    assert table.lines[0].verdict == verdict and table.lines[0].ok is ok
    assert [each.claim.kind for each in table.lines] == ["claim", *["control"] * len(controls)]
    assert verdict in str(table) and verdict in table.verdicts() and verdict in table._repr_html_()


def test_a_control_of_another_claim_does_not_matter_and_a_shared_one_is_measured_once():
    measured = []
    shared = claim(kind="control", measured=lambda _: measured.append(1) or 1)
    first, second = (claim(text=t, measured=lambda _: 1, controls=(shared,)) for t in ("a", "b"))
    table = check(None, [first, second, claim(text="c", measured=lambda _: 1)])
    assert [each.verdict for each in table.lines] == [NOT_SHOWN, NOT_SHOWN, HOLDS, HOLDS] and len(measured) == 1


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.4, 0.6, UNDECIDED), (0.5, 0.7, HOLDS), (0.51, 0.7, HOLDS), (0.3, 0.5, HOLDS), (math.nan, math.nan, HOLDS)],
)
def test_a_threshold_inside_the_interval_is_undecided(low, high, verdict):
    assert line(Measured(0.55, low, high)).verdict == verdict
    assert line(Measured(0.45, low, high)).verdict == (FAILS if verdict == HOLDS else verdict)
    table = check(Measured(0.55, low, high), [claim(kind="control")])
    assert table.lines[0].ok is (None if verdict == UNDECIDED else False)


def test_an_interval_is_shown_beside_its_number():
    found = line(Measured(2.0, 1.5, 2.5))
    assert found.number == "2 [1.5, 2.5]" and line(2.0).number == "2" and line(math.nan).number == "-"


def test_the_three_kinds_are_counted_apart_and_read_back():
    kinds = [("claim", 1), ("claim", 0), ("control", 0), ("ours", 1), ("ours", Measured(0.5, 0, 1)), ("ours", math.nan)]
    table = check(None, [claim(text=f"{k} {i}", kind=k, measured=lambda _, v=v: v) for i, (k, v) in enumerate(kinds)])
    assert (
        table.summary()
        == "1 of 2 claims hold; 1 of 1 controls fail as they must; 1 of 3 of ours hold (1 undecided, 1 not testable)"
    )
    rows = read_verdicts("noise\n" + table.verdicts())
    assert [row["kind"] for row in rows] == [k for k, _ in kinds] and said(tally(rows)) == table.summary()
