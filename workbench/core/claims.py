"""Claims: what a paper says, as inequalities on a Result, and the controls that must fail.

A claim is a statement that should hold. A control is a statement that should NOT hold: if it does, the measurement
would have "found" the effect where there is none, and that is reported as loudly as a failed claim.
"""

import html
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from .result import Result

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not testable at this scale"


@dataclass(frozen=True)
class Claim:
    """One line of the claims table: `measured(subject) relation threshold`.

    `measured` returns nan (or None) where the subject cannot answer; the line then reads 'not testable at this scale'.
    `threshold_from` says where the number was taken from: the paper, its card, or a pilot and on which seeds.
    """

    text: str
    source: str
    measured: Callable[[Any], float | None]
    relation: Literal["<", "<=", ">", ">="]
    threshold: float
    threshold_from: str
    kind: Literal["claim", "control"] = "claim"
    unit: str = ""


@dataclass(frozen=True)
class Line:
    """A checked claim."""

    claim: Claim
    measured: float
    verdict: str

    @property
    def ok(self) -> bool | None:
        """True if as it should be, False if not, None if it could not be tested."""
        if self.verdict == UNTESTED:
            return None
        return (self.verdict == HOLDS) == (self.claim.kind == "claim")

    @property
    def words(self) -> str:
        """The verdict as a reader should see it; a control says whether it failed as it must."""
        if self.claim.kind == "claim" or self.verdict == UNTESTED:
            return self.verdict
        return "fails, as it must" if self.verdict == FAILS else "CONTROL HOLDS: the claim beside it proves nothing"

    @property
    def expected(self) -> str:
        rule = f"{self.claim.relation} {self.claim.threshold:g}{' ' + self.claim.unit if self.claim.unit else ''}"
        return rule if self.claim.kind == "claim" else f"not {rule}"


class ClaimsTable:
    """Checked claims in the order they were declared. Prints as text, shows as HTML, converts to a DataFrame or JSON rows."""

    def __init__(self, lines: Sequence[Line]):
        self.lines = tuple(lines)

    @property
    def passed(self) -> bool:
        """Every testable claim holds and every testable control fails."""
        return all(line.ok is not False for line in self.lines)

    @property
    def n_untested(self) -> int:
        return sum(line.ok is None for line in self.lines)

    def rows(self) -> list[dict[str, Any]]:
        """Plain JSON rows; an unmeasured value is None, an infinite one the text "inf" or "-inf"."""
        return [
            {
                "kind": line.claim.kind,
                "text": line.claim.text,
                "source": line.claim.source,
                "measured": _plain(line.measured),
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
        claims = [line for line in self.lines if line.claim.kind == "claim"]
        controls = [line for line in self.lines if line.claim.kind == "control"]
        text = f"{sum(c.ok is True for c in claims)} of {len(claims)} claims hold; {sum(c.ok is True for c in controls)} of {len(controls)} controls fail as they must"
        text += f", {held} HOLD{'S' * (held == 1)}" if (held := sum(c.ok is False for c in controls)) else ""
        return text + (f"; {self.n_untested} not testable at this scale" if self.n_untested else "")

    def verdicts(self) -> str:
        """Statement and verdict only, no measured number: the same text on every machine, so a notebook can be compared."""
        return "\n".join([*(f"{line.claim.kind}: {line.claim.text}\n    -> {line.words}" for line in self.lines), self.summary()])

    def __str__(self) -> str:
        def number(line: Line) -> str:
            return "-" if math.isnan(line.measured) else f"{line.measured:.3g}"

        out = []
        for line in self.lines:
            mark = {True: "ok    ", False: "NOT OK", None: "  -   "}[line.ok]
            out.append(f"{mark} {line.claim.kind:7} {line.claim.text}\n               measured {number(line)}, expected {line.expected}: {line.words}")
        return "\n".join([*out, self.summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colours = {True: "#12864f", False: "#d8432f", None: "#757575"}  # a contrast of 4 or more on white and on Lab's dark ground
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("", "statement", "where", "measured", "expected", "verdict"))
        body = "".join(
            f"<tr><td>{line.claim.kind}</td><td style='text-align:left'>{html.escape(line.claim.text)}</td><td style='text-align:left'>{html.escape(line.claim.source)}</td>"
            f"<td>{'-' if math.isnan(line.measured) else f'{line.measured:.3g}'}</td><td>{html.escape(line.expected)}</td>"
            f"<td style='text-align:left;color:{colours[line.ok]};font-weight:600'>{line.words}</td></tr>"
            for line in self.lines
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{self.summary()}</p>"


def _plain(number: float) -> float | str | None:
    return None if math.isnan(number) else number if math.isfinite(number) else str(number)


def check(subject: Any, claims: Sequence[Claim]) -> ClaimsTable:
    """Measure every claim on `subject` (a Result, or what an organism's declared behaviour is measured on).

    A partial Result tests nothing: half of a sweep can make a claim look true, so every line reads 'not testable'.
    """
    return ClaimsTable([_check_one(subject, claim) for claim in claims])


def _check_one(subject: Any, claim: Claim) -> Line:
    partial = isinstance(subject, Result) and subject.partial
    value = None if partial else claim.measured(subject)
    number = math.nan if value is None else float(value)
    if math.isnan(number):
        return Line(claim, math.nan, UNTESTED)
    return Line(claim, number, HOLDS if RELATIONS[claim.relation](number, claim.threshold) else FAILS)


def read_verdicts(text: str) -> list[dict[str, str]]:
    """What `ClaimsTable.verdicts` wrote, as rows of kind, text and verdict; lines of anything else are passed over."""
    rows: list[dict[str, str]] = []
    for line in text.splitlines():
        kind, colon, statement = line.partition(": ")
        if colon and kind in ("claim", "control"):
            rows.append({"kind": kind, "text": statement, "verdict": ""})
        elif line.startswith("    -> ") and rows:
            rows[-1]["verdict"] = line.removeprefix("    -> ")
    return rows
