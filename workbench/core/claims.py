"""Claims: what a paper says, as inequalities on a Result, and the controls that must fail.

A claim is a statement that should hold. A control is a statement that should NOT hold: if it does, the measurement
would have "found" the effect where there is none, and the claims that it guards read "not shown". `ours` are the
project's own lines: set-up, identities, statements against the paper. The three kinds are never counted together.
"""

import html
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from .result import Result

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable at this scale"
UNDECIDED, NOT_SHOWN = "undecided: the threshold lies inside the interval", "not shown: its control holds too"
OPEN_CONTROL = "undecided: its control is not known to fail"
CONTROL_FAILS, CONTROL_HOLDS = "fails, as it must", "CONTROL HOLDS: the claim beside it proves nothing"
KINDS = ("claim", "ours", "control")
NOT_SETTLED = {
    "not shown": (NOT_SHOWN,),
    "undecided": (UNDECIDED, OPEN_CONTROL),
    "not testable": (UNTESTED,),
    "HOLD": (CONTROL_HOLDS,),
}


@dataclass(frozen=True)
class Measured:
    """A number with its interval, in the claim's unit; an interval of nan is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Claim:
    """One line of the claims table: `measured(subject) relation threshold`.

    `measured` returns a number, or `Measured` with its interval; nan (or None) where the subject cannot answer, and the
    line then reads 'not testable at this scale'. `threshold_from` says where the number was taken from: the paper, its
    card, or a pilot and on which seeds. `controls` are the controls that guard this claim.
    """

    text: str
    source: str
    measured: Callable[[Any], Measured | float | None]
    relation: Literal["<", "<=", ">", ">="]
    threshold: float
    threshold_from: str
    kind: Literal["claim", "ours", "control"] = "claim"
    unit: str = ""
    controls: tuple["Claim", ...] = ()


@dataclass(frozen=True)
class Line:
    """A checked claim: what was measured, its interval (nan is none), and the verdict."""

    claim: Claim
    measured: float
    verdict: str
    low: float = math.nan
    high: float = math.nan

    @property
    def ok(self) -> bool | None:
        """True if as it should be, False if not, None if it could not be tested or decided."""
        if self.verdict in (UNTESTED, UNDECIDED, OPEN_CONTROL):
            return None
        return (self.verdict == HOLDS) == (self.claim.kind != "control")

    @property
    def words(self) -> str:
        """The verdict as a reader should see it; a control says whether it failed as it must."""
        if self.claim.kind == "control":
            return {FAILS: CONTROL_FAILS, HOLDS: CONTROL_HOLDS}.get(self.verdict, self.verdict)
        return self.verdict

    @property
    def expected(self) -> str:
        rule = f"{self.claim.relation} {self.claim.threshold:g}{' ' + self.claim.unit if self.claim.unit else ''}"
        return f"not {rule}" if self.claim.kind == "control" else rule

    @property
    def number(self) -> str:
        """What was measured, with its interval."""
        if math.isnan(self.measured):
            return "-"
        return f"{self.measured:.3g}" + ("" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]")


class ClaimsTable:
    """Checked claims in the order they were declared. Prints as text, shows as HTML, converts to a DataFrame or JSON
    rows.

    `note` says on what they were measured, where that needs saying.
    """

    def __init__(self, lines: Sequence[Line], note: str = ""):
        self.lines, self.note = tuple(lines), note

    @property
    def passed(self) -> bool:
        """No line is other than it should be; what could not be tested or decided does not count."""
        return all(line.ok is not False for line in self.lines)

    @property
    def n_untested(self) -> int:
        return sum(line.verdict == UNTESTED for line in self.lines)

    def rows(self) -> list[dict[str, Any]]:
        """Plain JSON rows; an unmeasured value is None, an infinite one the text "inf" or "-inf"."""
        return [
            {
                "kind": line.claim.kind,
                "text": line.claim.text,
                "source": line.claim.source,
                "measured": _plain(line.measured),
                "low": _plain(line.low),
                "high": _plain(line.high),
                "unit": line.claim.unit,
                "expected": line.expected,
                "threshold_from": line.claim.threshold_from,
                "verdict": line.words,
                "ok": line.ok,
            }
            for line in self.lines
        ]

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows())

    def summary(self) -> str:
        """The three counts: the paper's claims, controls, ours."""
        counts = said(tally([{"kind": line.claim.kind, "verdict": line.words} for line in self.lines]))
        return f"{counts}\n{self.note}" if self.note else counts

    def verdicts(self) -> str:
        """Statement and verdict only, no measured number: the same text on every machine, so a notebook can be
        compared.
        """
        lines = (f"{line.claim.kind}: {line.claim.text}\n    -> {line.words}" for line in self.lines)
        return "\n".join([*lines, self.summary()])

    def __str__(self) -> str:
        out = []
        for line in self.lines:
            mark = {True: "ok    ", False: "NOT OK", None: "  -   "}[line.ok]
            out.append(f"{mark} {line.claim.kind:7} {line.claim.text}")
            out.append(f"               measured {line.number}, expected {line.expected}: {line.words}")
        return "\n".join([*out, self.summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # a contrast of 4 or more on white and on Lab's dark ground
        colours = {True: "#12864f", False: "#d8432f", None: "#757575"}
        titles = ("", "statement", "where", "measured", "expected", "verdict")
        head = "".join(f"<th style='text-align:left'>{title}</th>" for title in titles)
        left, body = "<td style='text-align:left'>", ""
        for line in self.lines:
            body += (
                f"<tr><td>{line.claim.kind}</td>{left}{html.escape(line.claim.text)}</td>{left}{html.escape(line.claim.source)}</td><td>{line.number}</td><td>{html.escape(line.expected)}</td><td"
                f" style='text-align:left;color:{colours[line.ok]};font-weight:600'>{line.words}</td></tr>"
            )
        below = "<br>".join(html.escape(text) for text in self.summary().splitlines())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{below}</p>"


def _plain(number: float) -> float | str | None:
    return None if math.isnan(number) else number if math.isfinite(number) else str(number)


# ---- checking ----


def with_controls(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims, and after them the controls they name, each once."""
    return tuple(dict.fromkeys([*claims, *(control for claim in claims for control in claim.controls)]))


def check(subject: Any, claims: Sequence[Claim]) -> ClaimsTable:
    """Measure every claim, and every control that guards one, on `subject` (a Result, or what an organism is measured
    on).

    A partial Result tests nothing: half of a sweep can make a claim look true, so every line reads 'not testable'.
    """
    asked = with_controls(claims)
    alone = {claim: _check_one(subject, claim) for claim in asked}
    return ClaimsTable(
        [_guarded(line, [alone[c].verdict for c in line.claim.controls]) for line in alone.values()], _note(subject)
    )


def _guarded(line: Line, controls: Sequence[str]) -> Line:
    """A claim that holds, in the light of its controls: all must fail before anything is shown."""
    if line.verdict != HOLDS or all(verdict == FAILS for verdict in controls):
        return line
    return replace(line, verdict=NOT_SHOWN if HOLDS in controls else OPEN_CONTROL)


def _note(subject: Any) -> str:
    about = subject.provenance.data.get("stored") if isinstance(subject, Result) else None
    return (
        f"measured on the {about['n_runs']} stored runs; what was run here serves the line that compares the two"
        if about
        else ""
    )


def _check_one(subject: Any, claim: Claim) -> Line:
    partial = isinstance(subject, Result) and subject.partial
    found = None if partial else claim.measured(subject)
    value = found if isinstance(found, Measured) else Measured(math.nan if found is None else float(found))
    number, low, high = float(value.value), float(value.low), float(value.high)
    if math.isnan(number):
        return Line(claim, math.nan, UNTESTED)
    if low < claim.threshold < high:
        return Line(claim, number, UNDECIDED, low, high)
    return Line(claim, number, HOLDS if RELATIONS[claim.relation](number, claim.threshold) else FAILS, low, high)


# ---- verdicts as text ----


def read_verdicts(text: str) -> list[dict[str, str]]:
    """What `ClaimsTable.verdicts` wrote, as rows of kind, text and verdict; lines of anything else are passed over."""
    rows: list[dict[str, str]] = []
    for line in text.splitlines():
        kind, colon, statement = line.partition(": ")
        if colon and kind in KINDS:
            rows.append({"kind": kind, "text": statement, "verdict": ""})
        elif line.startswith("    -> ") and rows:
            rows[-1]["verdict"] = line.removeprefix("    -> ")
    return rows


def tally(verdicts: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """{kind: {verdict: how many}}, with "of" for all of that kind, from rows of kind and verdict."""
    found: dict[str, dict[str, int]] = {kind: {"of": 0} for kind in KINDS}
    for row in verdicts:
        counts = found[row["kind"]]
        counts["of"] += 1
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return found


def said(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A tally in words: the paper's claims, controls and the project's own lines, each apart."""
    parts = []
    for kind, good, words in (
        ("claim", HOLDS, "claims hold"),
        ("control", CONTROL_FAILS, "controls fail as they must"),
        ("ours", HOLDS, "of ours hold"),
    ):
        of = counts[kind]
        if of["of"]:
            rest = not_settled(of)
            parts.append(f"{of.get(good, 0)} of {of['of']} {words}" + (f" ({rest})" if rest else ""))
    return "; ".join(parts)


def not_settled(counts: Mapping[str, int]) -> str:
    """What neither holds nor fails, of one kind of a tally: "2 not shown, 1 undecided"; empty if nothing is open."""
    numbers = {word: sum(counts.get(verdict, 0) for verdict in verdicts) for word, verdicts in NOT_SETTLED.items()}
    return ", ".join(f"{n} {word}" for word, n in numbers.items() if n)
