"""What documents of every kind share: the first page over several analyses, and the script that draws their live figures."""

import html
from collections.abc import Sequence

from workbench.core.catalogue import PAPERS
from workbench.core.provenance import versions

from .sections import Section, tally

DRAW = """
function draw(within){for(const s of within.querySelectorAll('script.plotly')){const at=s.previousElementSibling;
if(!at.dataset.drawn){at.dataset.drawn=1;const f=JSON.parse(s.textContent);Plotly.newPlot(at,f.data,f.layout,{displaylogo:false,responsive:false});}}}
"""


def front(sections: Sequence[Section]) -> str:
    """Families, claims and controls in numbers, models and versions."""
    rows = []
    for i, s in enumerate(sections):
        n = tally(s.verdicts)
        family = PAPERS[s.stem].family if s.stem in PAPERS else "-"
        claims = f"{n['hold']} of {n['claims']}" if n["claims"] else "-"
        controls = n["controls fail as they must"]
        said = (f"{controls} of {n['controls']}" + (f"; {n['controls hold']} hold" if n["controls hold"] else "")) if n["controls"] else "-"
        shade = "bad" if n["controls hold"] else "ok" if controls else ""
        failed = f"<span class=bad>{s.n_failed} failed</span>" if s.n_failed else "all ran"
        rows.append(
            f"<tr><td>{family}</td><td><a href='#part-{i}'>{html.escape(s.title)}</a></td><td>{claims}</td><td>{n['do not hold']}</td><td>{n['not testable']}</td>"
            f"<td class={shade}>{said}</td><td>{failed}</td></tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in ("family", "analysis", "claims that hold", "do not hold", "not testable", "controls that fail, as they must", "cells"))
    origins = "".join(f"<tr><td>{html.escape(s.stem)}</td><td>{'<br>'.join(html.escape(o) for o in s.origins) or '-'}</td></tr>" for s in sections)
    environment = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""<h1>{len(sections)} analyses</h1><h2>Claims and controls</h2><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>
<h2>Models</h2><table><thead><tr><th>analysis</th><th>model, weights, precision, device, seed, commit, date</th></tr></thead><tbody>{origins}</tbody></table>
<p class=soft>{html.escape(environment)}</p>"""
