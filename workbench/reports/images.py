"""Figures as PNG through kaleido, which drives a Chromium that must be installed (none is bundled).

One browser draws all figures of a call (the first costs about 3 s). Without a browser, or when it hangs, the caller
gets a sentence to show and everything else goes on.
"""

import atexit
import io
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path

import plotly.graph_objects as go

from workbench.core import files

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


MAX_BYTES = 44_000  # of a picture in a notebook; 60 kB once it is written as base64
SCALES = (1.0, 0.8, 0.65, 0.5, 0.4)
NO_BROWSER = (
    "no PNG was drawn: kaleido needs Chromium or Chrome (Debian: apt-get install chromium; elsewhere:"
    " kaleido_get_chrome)"
)


def find_browser() -> str | None:
    """Path of the browser that would draw, or None; BROWSER_PATH goes first, as kaleido has it."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if Path(named).is_file() else None
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


_pool: ThreadPoolExecutor | None = None


def pictures(
    figures: dict[str, go.Figure], forms: Sequence[str] = ("png",), *, scale: float = 2.0, timeout: float = 60.0
) -> tuple[dict[tuple[str, str], bytes], str]:
    """Figures as pictures, from a browser that stays open for the next call (2 s for the first picture, 0.2 s after).

    Args:
        figures: {name: Figure}. forms: of png, jpg, webp, svg, pdf. scale: pixels per layout unit, for pixel formats.
        timeout: seconds for each picture.

    Returns:
        {(name, form): file contents}, and a sentence saying what went wrong, empty if nothing did; what was drawn
        before is kept.
    """
    global _pool
    drawn: dict[tuple[str, str], bytes] = {}
    if find_browser() is None:
        return drawn, NO_BROWSER
    if _pool is None:
        _pool = ThreadPoolExecutor(1)  # kaleido's server takes one caller at a time
        atexit.register(_close)
    for name, figure in figures.items():
        for form in forms:
            waiting = _pool.submit(_draw, figure, form, scale if form in ("png", "jpg", "webp") else 1.0)
            try:
                drawn[name, form] = waiting.result(timeout)
            except TooLate:
                _pool = None  # its thread hangs; the next call gets another
                return drawn, f"drawing {name}.{form} took longer than {timeout:.0f} s and was left"
            except Exception as found:  # kaleido and its browser fail in many ways, none of which may cost the analysis
                return (
                    drawn,
                    (
                        f"drawing {name}.{form} failed: {type(found).__name__}:"
                        f" {str(found).splitlines()[0] if str(found) else ''}"
                    ),
                )
    return drawn, ""


def small_picture(figure: go.Figure) -> tuple[bytes, str]:
    """PNG of at most MAX_BYTES, as large as that allows, for notebooks; and a sentence saying what went wrong, one
    of the two empty.
    """
    content = b""
    for scale in SCALES:
        drawn, problem = pictures({"figure": figure}, scale=scale)
        if problem:
            return b"", problem
        content = in_palette(drawn["figure", "png"])
        if len(content) <= MAX_BYTES:
            return content, ""
    return (
        b"",
        (
            f"a figure is larger than {MAX_BYTES // 1000} kB even at {SCALES[-1]:g} of its size ({len(content) // 1000}"
            " kB), so no picture of it is kept"
        ),
    )


def in_palette(png: bytes) -> bytes:
    """The same picture in at most 256 colours: a figure keeps its look and takes a third to a quarter of the bytes."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def write_pngs(
    figures: dict[str, go.Figure], folder: Path | str, *, scale: float = 2.0, timeout: float = 60.0
) -> tuple[list[Path], str]:
    """Write NAME.png for every figure. Returns the files written, and a sentence saying what went wrong, empty if
    nothing did.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not figures:
        return [], ""
    drawn, problem = pictures(figures, scale=scale, timeout=timeout)
    return [files.write_bytes(folder / f"{name}.png", content) for (name, _), content in drawn.items()], problem


def _draw(figure: go.Figure, form: str, scale: float) -> bytes:
    import kaleido

    kaleido.start_sync_server(n=1, silence_warnings=True, mathjax=False)  # which it would fetch from the network
    size = {"width": figure.layout.width or 960, "height": figure.layout.height or 560}
    return kaleido.calc_fig_sync(figure.to_dict(), opts={"format": form, "scale": scale, **size})


def _close() -> None:
    import kaleido

    kaleido.stop_sync_server(silence_warnings=True)
