"""The subspaces panel in a real JupyterLab: Compare draws, k and the condition redraw live, a click opens a cell, t is answered, cancel keeps what was compared."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN = "from workbench import panels\npanel = panels.Subspaces()\npanel"
STATE = "print(panel.state.place, panel.state.k, panel.state.t, panel.state.asked is not None and len(panel.state.asked), panel.state.running, repr(panel.state.error))"
SLOW = """
import time
from workbench import panels
from workbench.core.progress import Progress
from workbench.methods.misalignment import em_subspaces as em
def slowly(*given, progress, **options):
    class Slow(Progress):
        def update(self, done, total, text=""):
            progress.update(done, total, text)
            time.sleep(0.3)
    return em.pair_map(*given, progress=Slow(), **options)
panel = panels.Subspaces(compute=slowly)
panel
"""
GRID = ".workbench-heatmap canvas"
FINGERPRINT = """(selector) => { const c = document.querySelector(selector), data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


def until(nb, cell: int, expected: str) -> None:
    """Run the cell that prints the kernel's state until it says what it should."""
    for _ in range(80):
        nb.run(cell)
        found = nb.output(cell).inner_text().strip()
        if expected in found:
            return
        nb.tab.wait_for_timeout(400)
    raise AssertionError(f"{found!r} does not hold {expected!r}")


def press(nb, words: str) -> None:
    nb.tab.locator(".workbench-panel button:visible", has_text=words).first.click()


def drawn(nb) -> int:
    nb.tab.wait_for_function(f"() => (document.querySelector('{GRID}') || {{}}).height > 100", timeout=120_000)
    nb.tab.wait_for_selector("text=/cells are above their chance/", timeout=90_000)
    return nb.tab.evaluate(FINGERPRINT, GRID)


def changed(nb, old: int) -> int:
    nb.tab.wait_for_function(f"(old) => ({FINGERPRINT})('{GRID}') !== old", arg=old, timeout=90_000)
    return nb.tab.evaluate(FINGERPRINT, GRID)


def set_slider(nb, number: int, value: str) -> None:
    nb.tab.locator(".workbench-panel .widget-slider:visible .widget-readout").nth(number).click()
    nb.tab.keyboard.press("Control+a")
    nb.tab.keyboard.type(value)
    nb.tab.keyboard.press("Enter")


def test_compare_open_and_ask(lab):
    lab.write("subspaces", [OPEN, STATE])
    with notebook(lab, "subspaces", size=(1400, 3400)) as nb:
        nb.run(0)
        tab = nb.tab
        press(nb, "Compare")
        old = drawn(nb)
        set_slider(nb, 0, "2")
        old = changed(nb, old)
        tab.locator(".workbench-panel select:visible").first.select_option(label="bad, different seeds")
        tab.wait_for_selector("text=/they started apart/", timeout=90_000)
        old = changed(nb, old)
        tab.locator(GRID).first.click(position={"x": 165, "y": 20})
        until(nb, 1, "[0, 'k_proj'] 2 0.5 False False ''")
        tab.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length >= 2", timeout=90_000)
        press(nb, "Ask")
        tab.wait_for_selector("text=/deltas, t = 0.50/", timeout=120_000)
        set_slider(nb, 1, "0.8")
        tab.wait_for_selector("text=/deltas, t = 0.80/", timeout=120_000)
        until(nb, 1, "[0, 'k_proj'] 2 0.8 5 False ''")
        tab.wait_for_timeout(1500)
        nb.picture("subspaces-light", 0)
        tab.wait_for_selector(".jp-RenderedImage img", state="attached", timeout=90_000)  # the static picture, hidden beneath the live panel
        nb.save()
        nb.quiet()
    saved = (lab.root / "subspaces.ipynb").read_text()
    assert len(saved) < 1_000_000 and "(static view)" in saved and "image/png" in saved


def test_cancel_keeps_what_was_compared_and_dark_is_readable(lab):
    lab.write("slow", [SLOW, STATE])
    with notebook(lab, "slow", dark=True, size=(1400, 3400)) as nb:
        nb.run(0)
        tab = nb.tab
        press(nb, "Compare")
        tab.wait_for_selector("text=/of 28 comparing updates/", timeout=90_000)
        press(nb, "Cancel")
        tab.wait_for_selector("text=/cancelled: cells without a colour/", timeout=90_000)
        drawn(nb)
        until(nb, 1, "[] 4 0.5 False False ''")
        tab.locator(GRID).first.click(position={"x": 70, "y": 20})
        press(nb, "Ask")
        tab.wait_for_selector("text=/factors, t = 0.50/", timeout=120_000)
        tab.wait_for_timeout(1500)
        nb.picture("subspaces-dark", 0)
        nb.quiet()
