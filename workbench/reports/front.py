"""What documents of every kind share: the first page over several analyses, and the script that draws their live
figures.
"""

import html
from collections.abc import Sequence

from workbench.core.catalogue import PAPERS
from workbench.core.claims import CONTROL_FAILS, CONTROL_HOLDS, FAILS, HOLDS, NOT_SHOWN, UNDECIDED, UNTESTED, tally
from workbench.core.provenance import versions

from .sections import Section

OPEN = {NOT_SHOWN: "not shown", UNDECIDED: "undecided", UNTESTED: "not testable"}
DRAW = """
function draw(within){for(const s of within.querySelectorAll('script.plotly')){const at=s.previousElementSibling;
if(!at.dataset.drawn){at.dataset.drawn=1;const f=JSON.parse(s.textContent);Plotly.newPlot(at,f.data,f.layout,{displaylogo:false,responsive:false});}}}
"""


def front(sections: Sequence[Section]) -> str:
    """Families, claims and controls in numbers, models and versions."""
    rows = []
    for i, s in enumerate(sections):
        n, family = tally(s.verdicts), PAPERS[s.stem].family if s.stem in PAPERS else "-"
        claims, controls, ours = (n[kind] for kind in ("claim", "control", "ours"))
        failing, holding = controls.get(CONTROL_FAILS, 0), controls.get(CONTROL_HOLDS, 0)
        text = f"{failing} of {controls['of']}" + (f"; {holding} hold" if holding else "") if controls["of"] else "-"
        shade = "bad" if holding else "ok" if failing else ""
        open_ = ", ".join(f"{claims[v]} {word}" for v, word in OPEN.items() if claims.get(v)) or "-"
        cells = (f"{of.get(HOLDS, 0)} of {of['of']}" if of["of"] else "-" for of in (claims, ours))
        failed = f"<span class=bad>{s.n_failed} failed</span>" if s.n_failed else "all ran"
        held, of_ours = cells
        rows.append(
            f"<tr><td>{family}</td><td><a"
            f" href='#part-{i}'>{html.escape(s.title)}</a></td><td>{held}</td><td>{claims.get(FAILS, 0)}</td><td>{open_}</td><td"
            f" class={shade}>{text}</td><td>{of_ours}</td><td>{failed}</td></tr>"
        )
    titles = (
        "family",
        "analysis",
        "claims that hold",
        "do not hold",
        "not shown, undecided, not testable",
        "controls that fail, as they must",
        "our own lines that hold",
        "cells",
    )
    head = "".join(f"<th>{h}</th>" for h in titles)
    origins = "".join(
        f"<tr><td>{html.escape(s.stem)}</td><td>{'<br>'.join(html.escape(o) for o in s.origins) or '-'}</td></tr>"
        for s in sections
    )
    environment = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""<h1>{len(sections)} analyses</h1><h2>Claims and controls</h2><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>
<h2>Models</h2><table><thead><tr><th>analysis</th><th>model, weights, precision, device, seed, commit, date</th></tr></thead><tbody>{origins}</tbody></table>
<p class=soft>{html.escape(environment)}</p>"""
