"""The units panel in a real JupyterLab: a slider recolours, a click and the boxes open units, Prune runs and can be
cancelled, light and dark.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN = """
import workbench as wb
from workbench import panels
from workbench.runs.stored import load_runs
panel = panels.Units(load_runs("safety_units"), wb.load("organism:chat"))
panel
"""
STATE = (
    "print(panel.state.unit >= 0, panel.state.top is not None, panel.state.pruned is not None and"
    " len(panel.state.pruned.tables['pruning']), round(panel.state.safety, 1), panel.state.running,"
    " repr(panel.state.error))"
)
CANVAS = ".workbench-scatter canvas"


def opened(nb) -> int:
    nb.run(0)
    nb.tab.wait_for_selector(".js-plotly-plot", timeout=120_000)
    return nb.drawn(CANVAS, height=200)


def test_relabel_open_and_prune(lab):
    lab.write("units", [OPEN, STATE])
    with notebook(lab, "units", size=(1400, 3000)) as nb:
        old, tab = opened(nb), nb.tab
        nb.set_slider(0, "12")
        old = nb.drawn(CANVAS, old)
        tab.wait_for_selector("text=/110 of 1568 units have another label/", timeout=90_000)
        tab.locator(CANVAS).click(position={"x": 500, "y": 190})
        tab.wait_for_selector(".workbench-panel mark", timeout=120_000)
        nb.drawn(CANVAS, old)
        nb.keys(".workbench-scatter", "ArrowRight", "ArrowRight", "ArrowRight", "Enter")
        nb.until(1, "True True False 12.0 False ''")
        nb.press("Prune at these shares")
        nb.until(1, "True True 13 12.0 False ''")
        tab.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length >= 2", timeout=90_000)
        tab.wait_for_timeout(1500)
        nb.picture("units-light", 0)
        nb.save_with_picture()
        nb.quiet()


def test_cancel_and_dark(lab):
    lab.write("dark", [OPEN, STATE])
    with notebook(lab, "dark", dark=True, size=(1400, 3000)) as nb:
        opened(nb)
        tab = nb.tab
        nb.press("Open unit")
        tab.wait_for_selector(".workbench-panel mark", timeout=120_000)
        nb.press("Prune at these shares")
        tab.wait_for_selector("text=/of 12 pruning/", timeout=90_000)
        nb.press("Cancel")
        tab.wait_for_selector("text=/cancelled: prunings finished: \\d+/", timeout=120_000)
        tab.wait_for_timeout(1500)
        nb.picture("units-dark", 0)
        nb.quiet()
