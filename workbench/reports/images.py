"""Figures as PNG through kaleido, which drives a Chromium that must be installed (none is bundled).

One browser draws all figures of a call (the first costs about 3 s). Without a browser, or when it hangs, the caller
gets a sentence to show and everything else goes on.
"""

import atexit
import base64
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


NO_BROWSER = "no PNG was drawn: kaleido needs Chromium or Chrome (Debian: apt-get install chromium; elsewhere: kaleido_get_chrome)"


def find_browser() -> str | None:
    """Path of the browser that would draw, or None; BROWSER_PATH goes first, as kaleido has it."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if Path(named).is_file() else None
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def write_pngs(figures: dict[str, go.Figure], folder: Path | str, *, scale: float = 2.0, timeout: float = 120.0) -> tuple[list[Path], str]:
    """Write NAME.png for every figure.

    Args:
        figures: {name: Figure}.
        scale: pixels per layout unit.
        timeout: seconds for all of them together.

    Returns:
        The files written, and a sentence saying what went wrong, empty if nothing did.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not figures:
        return [], ""
    if find_browser() is None:
        return [], NO_BROWSER
    wanted = [folder / f"{name}.png" for name in figures]
    sizes = {"width": [f.layout.width for f in figures.values()], "height": [f.layout.height for f in figures.values()]}
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(plotly.io.write_images, fig=list(figures.values()), file=[str(p) for p in wanted], scale=scale, **sizes).result(timeout)
    except TooLate:
        return [p for p in wanted if p.is_file()], f"drawing PNG took longer than {timeout:.0f} s and was left"
    except Exception as found:  # kaleido and its browser fail in many ways, none of which may cost the analysis
        return [p for p in wanted if p.is_file()], f"drawing PNG failed: {type(found).__name__}: {str(found).splitlines()[0] if str(found) else ''}"
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return wanted, ""


_pool: ThreadPoolExecutor | None = None


def picture(figure: go.Figure, *, scale: float = 1.0, timeout: float = 30.0) -> tuple[str, str]:
    """One figure as PNG, base64, from a browser that stays open for the next call (2 s for the first, 0.2 s after).

    Returns:
        The picture, and a sentence saying what went wrong; one of the two is empty.
    """
    global _pool
    if find_browser() is None:
        return "", NO_BROWSER
    if _pool is None:
        _pool = ThreadPoolExecutor(1)  # kaleido's server takes one caller at a time
        atexit.register(_close)
    waiting = _pool.submit(_draw, figure, scale)
    try:
        return base64.b64encode(waiting.result(timeout)).decode(), ""
    except TooLate:
        waiting.cancel()
        return "", f"drawing PNG took longer than {timeout:.0f} s and was left"
    except Exception as found:
        return "", f"drawing PNG failed: {type(found).__name__}: {str(found).splitlines()[0] if str(found) else ''}"


def _draw(figure: go.Figure, scale: float) -> bytes:
    import kaleido

    kaleido.start_sync_server(n=1, silence_warnings=True)
    size = {"width": figure.layout.width or 960, "height": figure.layout.height or 560}
    return kaleido.calc_fig_sync(figure.to_dict(), opts={"format": "png", "scale": scale, **size})


def _close() -> None:
    import kaleido

    kaleido.stop_sync_server(silence_warnings=True)
