"""A real Chromium for tests: found, or the test skips with a reason - except where WORKBENCH_REQUIRE_BROWSER says it
must not.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from workbench.reports.images import find_browser


def require_browser() -> str:
    """Path of the browser; skips the test where there is none, fails it in CI."""
    found = find_browser()
    if found is None and os.environ.get("WORKBENCH_REQUIRE_BROWSER"):
        pytest.fail("WORKBENCH_REQUIRE_BROWSER is set and no Chromium was found")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium would run this")
    return found


@contextlib.contextmanager
def page(**context: object) -> Iterator[object]:
    """A Playwright page in that browser; keyword arguments go to the browser context (offline=True,
    color_scheme=...).
    """
    from playwright.sync_api import sync_playwright

    path = require_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        try:
            yield browser.new_context(viewport={"width": 1200, "height": 1000}, **context).new_page()
        finally:
            browser.close()
