"""HTML that others wrote - outputs of cells, Markdown - brought to what can stand in a page: no scripts, no frames, no
addresses that are loaded, and pictures from the notebook's own folder alone.

bleach parses as browsers do and keeps what is listed here; other tags are shown as the text they are.
"""

import base64
import html
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import bleach
from bleach.css_sanitizer import CSSSanitizer
from bleach.html5lib_shim import Filter
from markupsafe import Markup

TAGS = frozenset(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6"
    " hr i img ins kbd li mark ol p pre q s samp section small span strong sub summary sup table tbody td tfoot th"
    " thead tr u ul var".split()
)
ATTRIBUTES = frozenset(
    "alt border cite class colspan dir height href id lang open reversed role rowspan scope span src start title"
    " valign width".split()
)
PROPERTIES = frozenset(  # of style attributes; none that loads a file or lifts a thing over the rest of the page
    "background-color border border-bottom border-collapse border-color border-left border-radius border-right"
    " border-top color display font-family font-size font-style font-variant font-weight height line-height margin"
    " margin-bottom margin-left margin-right margin-top max-height max-width min-width opacity overflow overflow-x"
    " overflow-y padding padding-bottom padding-left padding-right padding-top text-align text-decoration"
    " vertical-align white-space width".split()
)
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
_PICTURE_DATA = re.compile(rf"data:(?:{'|'.join(map(re.escape, PICTURES.values()))});base64,[A-Za-z0-9+/=\s]*")
_LINK = re.compile(r"(?:https?:|mailto:|#).*|[^:]*", re.DOTALL | re.IGNORECASE)
_UNREAD = re.compile(r"<(script|style|template|noscript)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_DRAWING = re.compile(r"<svg\b.*?</svg\s*>", re.DOTALL | re.IGNORECASE)


def clean_html(text: str, folder: Path | None = None) -> str:
    """HTML without anything that runs or loads.

    Args:
        text: HTML of any kind. folder: whose pictures are put into the page; none are where it is None.

    Drawings in SVG become pictures, in which browsers run and load nothing.
    """
    text = _DRAWING.sub(lambda found: picture_html(_alone(found[0]).encode(), "image/svg+xml", "drawing"), text)
    cleaner = bleach.Cleaner(
        tags=TAGS,
        attributes=_is_kept,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES),
        filters=[partial(_Pictures, folder=folder)],
    )
    return cleaner.clean(_UNREAD.sub("", text))


def picture_html(content: bytes, mime: str, alt: str) -> str:
    """A picture as an element that holds it."""
    return Markup('<img alt="{}" src="{}">').format(alt, _data(content, mime))


def _data(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _alone(drawing: str) -> str:
    """An SVG of a page as a file of its own, which has to name its language."""
    opening = drawing[: drawing.index(">")] if ">" in drawing else drawing
    return drawing if "xmlns=" in opening else drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def _is_kept(tag: str, name: str, value: str) -> bool:
    if name == "href":
        return tag == "a" and _LINK.fullmatch(value.strip()) is not None
    if name == "src":
        return tag == "img"  # _Pictures looks at it
    return name in ATTRIBUTES or name.startswith("aria-") or name == "style"


class _Pictures(Filter):
    """Pictures as data: those that are, and files of the notebook's folder; others are named, so that the gap is
    seen.
    """

    def __init__(self, source: Any, folder: Path | None):
        super().__init__(source)
        self._folder = folder

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for token in super().__iter__():
            if token.get("name") != "img" or token["type"] not in ("StartTag", "EmptyTag"):
                yield token
                continue
            name = str(token["data"].get((None, "src"), ""))
            found = name if _PICTURE_DATA.fullmatch(name) else _read(name, self._folder)
            if found:
                token["data"][(None, "src")] = found
                yield token
            else:
                shown = name if len(name) <= 80 else f"{name[:79]}…"
                yield {"type": "Characters", "data": f"[no picture {shown!r} in the notebook's folder]"}


def _read(name: str, folder: Path | None) -> str:
    """A picture of the folder as data; empty where there is none. Links out of the folder are not followed."""
    mime = PICTURES.get(Path(name).suffix.lower())
    if folder is None or mime is None:
        return ""
    try:
        path = (folder / unquote(html.unescape(name))).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return ""
        return _data(path.read_bytes(), mime)
    except (OSError, ValueError):  # a name that no file can have, or a file that may not be read
        return ""
