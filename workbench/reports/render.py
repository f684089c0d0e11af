"""HTML from the templates beside this file: jinja2 escapes every text that is put into them, and a policy in each page
keeps it to itself.

Only what is `Markup` stands as it is: what another template wrote, what `cleaning.py` let through, and what a text
formats with `Markup(...).format(...)`, which escapes as the templates do.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from workbench.views import theme


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("workbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def own(name: str) -> Markup:
    """A stylesheet or script of ours, by the name of its file in templates/, as it stands."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])


def fragment(template: str, **words: Any) -> Markup:
    """A piece of a page from a template; every word is escaped that is no `Markup`."""
    return Markup(_environment().get_template(template).render(words))


def page(
    template: str,
    title: str,
    *,
    styles: Sequence[Markup],
    scripts: Sequence[Markup] = (),
    draws: bool = True,
    **words: Any,
) -> str:
    """A whole page, which asks for nothing and runs no script but these.

    Args:
        template: its file. title: of the page. styles: in the order to apply.
        scripts: run at the end of the page, in this order. draws: plotly and the script that draws figures come too.
        words: what else the template names.
    """
    first = [Markup(get_plotlyjs()), own("draw.js")] if draws else []
    # a browser reads a carriage return as a line end, and would find another text than the one that was hashed
    first, last = ([Markup(s.replace("\r\n", "\n").replace("\r", "\n")) for s in part] for part in (first, scripts))
    words |= {"title": title, "styles": styles, "first_scripts": first, "last_scripts": last}
    return fragment(template, policy=_policy([*first, *last]), **words)


def _policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: nothing is loaded, sent or framed, and only scripts with these very texts are run."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def figure_html(figure: dict[str, Any]) -> Markup:
    """A plotly figure as a div, and its data in the script after it; the page's script draws it.

    Args:
        figure: data and layout, as plotly's JSON has them.
    """
    layout = figure.get("layout") or {}
    meta = layout.get("meta")
    data = to_json_plotly({"data": figure.get("data", []), "layout": layout})
    return fragment(
        "figure.html",
        alt=meta.get("alt", "figure") if isinstance(meta, dict) else "figure",
        width=_pixels(layout.get("width"), theme.WIDTH),
        height=_pixels(layout.get("height"), theme.HEIGHT),
        # the data end where the script does, whatever a label says: no tag is left in them
        data=Markup(data.replace("<", "\\u003c").replace(">", "\\u003e")),
    )


def _pixels(asked: Any, usual: int) -> float:
    return asked if isinstance(asked, (int, float)) and 0 < asked < float("inf") else usual
