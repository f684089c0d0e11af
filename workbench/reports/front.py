"""What documents of every kind share: the first page over several analyses."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from workbench.core.catalogue import PAPERS
from workbench.core.claims import CONTROL_FAILS, CONTROL_HOLDS, FAILS, HOLDS, not_settled, tally
from workbench.core.provenance import versions

from .render import fragment
from .sections import Section

TITLES = (
    "family",
    "analysis",
    "claims that hold",
    "do not hold",
    "not shown, undecided, not testable",
    "controls that fail, as they must",
    "our own lines that hold",
    "cells",
)


def front(sections: Sequence[Section]) -> Markup:
    """Families, claims and controls in numbers, models and versions."""
    environment = ", ".join(f"{name} {version}" for name, version in versions().items())
    return fragment("front.html", titles=TITLES, rows=[_row(s) for s in sections], environment=environment)


def _row(section: Section) -> dict[str, Any]:
    n = tally(section.verdicts)
    claims, controls, ours = (n[kind] for kind in ("claim", "control", "ours"))
    failing, holding = controls.get(CONTROL_FAILS, 0), controls.get(CONTROL_HOLDS, 0)
    text = f"{failing} of {controls['of']}" + (f"; {holding} hold" if holding else "") if controls["of"] else "-"
    held, of_ours = (f"{of.get(HOLDS, 0)} of {of['of']}" if of["of"] else "-" for of in (claims, ours))
    return {
        "section": section,
        "family": PAPERS[section.stem].family if section.stem in PAPERS else "-",
        "held": held,
        "failing": claims.get(FAILS, 0),
        "open": not_settled(claims) or "-",
        "controls": text,
        "shade": "bad" if holding else "ok" if failing else "",
        "ours": of_ours,
    }
