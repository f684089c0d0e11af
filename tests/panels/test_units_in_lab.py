"""The units panel in a real JupyterLab: a slider recolours, a click and the boxes open units, Prune runs and can be cancelled, light and dark."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN = """
import workbench as wb
from workbench import panels
from workbench.methods.safety import safety_units
panel = panels.Units(safety_units.load_stored(), wb.load("organism:chat"))
panel
"""
STATE = "print(panel.state.unit, panel.state.top is not None, panel.state.pruned is not None and len(panel.state.pruned.tables['pruning']), round(panel.state.safety, 1), panel.state.running, repr(panel.state.error))"
CANVAS = ".workbench-scatter canvas"
FINGERPRINT = """(selector) => { const c = document.querySelector(selector), data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


def until(nb, cell: int, expected: str, tries: int = 80) -> None:
    """Run the cell that prints the kernel's state until it says what it should."""
    for _ in range(tries):
        nb.run(cell)
        found = nb.output(cell).inner_text().strip()
        if expected in found:
            return
        nb.tab.wait_for_timeout(400)
    raise AssertionError(f"{found!r} does not hold {expected!r}")


def press(nb, words: str) -> None:
    nb.tab.locator(".workbench-panel button:visible", has_text=words).first.click()


def changed(nb, old: int) -> int:
    nb.tab.wait_for_function(f"(old) => ({FINGERPRINT})('{CANVAS}') !== old", arg=old, timeout=90_000)
    return nb.tab.evaluate(FINGERPRINT, CANVAS)


def opened(nb) -> int:
    nb.run(0)
    nb.tab.wait_for_function(f"() => (document.querySelector('{CANVAS}') || {{}}).height > 200", timeout=120_000)
    nb.tab.wait_for_selector(".js-plotly-plot", timeout=120_000)
    return nb.tab.evaluate(FINGERPRINT, CANVAS)


def test_relabel_open_and_prune(lab):
    lab.write("units", [OPEN, STATE])
    with notebook(lab, "units", size=(1400, 3000)) as nb:
        old, tab = opened(nb), nb.tab
        box = tab.locator(".workbench-panel .widget-slider .widget-readout").first
        box.click()
        tab.keyboard.press("Control+a")
        tab.keyboard.type("12")
        tab.keyboard.press("Enter")
        old = changed(nb, old)
        tab.wait_for_selector("text=/110 of 1568 units have another label/", timeout=90_000)
        tab.locator(CANVAS).click(position={"x": 500, "y": 190})
        tab.wait_for_selector(".workbench-panel mark", timeout=120_000)
        changed(nb, old)
        tab.locator(".workbench-scatter").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
            tab.keyboard.press(key)
        until(nb, 1, "True False 12.0 False ''")
        press(nb, "Prune at these shares")
        until(nb, 1, "True 13 12.0 False ''")
        tab.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length >= 2", timeout=90_000)
        tab.wait_for_timeout(1500)
        nb.picture("units-light", 0)
        tab.wait_for_selector(".jp-RenderedImage img", state="attached", timeout=90_000)  # the static picture, hidden beneath the live panel
        nb.save()
        nb.quiet()
    saved = (lab.root / "units.ipynb").read_text()
    assert len(saved) < 1_000_000 and "(static view)" in saved and "image/png" in saved


def test_cancel_and_dark(lab):
    lab.write("dark", [OPEN, STATE])
    with notebook(lab, "dark", dark=True, size=(1400, 3000)) as nb:
        opened(nb)
        tab = nb.tab
        press(nb, "Open unit")
        tab.wait_for_selector(".workbench-panel mark", timeout=120_000)
        press(nb, "Prune at these shares")
        tab.wait_for_selector("text=/of 12 pruning/", timeout=90_000)
        press(nb, "Cancel")
        tab.wait_for_selector("text=/cancelled: prunings finished: \\d+/", timeout=120_000)
        tab.wait_for_timeout(1500)
        nb.picture("units-dark", 0)
        nb.quiet()
