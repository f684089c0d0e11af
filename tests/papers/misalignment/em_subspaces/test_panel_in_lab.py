"""The subspaces panel in a real JupyterLab: Compare draws, k and the condition redraw live, a click opens a cell, t
is answered, cancel keeps what was compared.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN = "from workbench import panels\npanel = panels.Subspaces()\npanel"
STATE = (
    "print(panel.state.place, panel.state.k, panel.state.t, panel.state.asked is not None and len(panel.state.asked),"
    " panel.state.running, repr(panel.state.error))"
)
SLOW = """
import time
from workbench import panels
from workbench.core.progress import Progress
from workbench.papers.misalignment.em_subspaces import method as em
from workbench.papers.misalignment.em_subspaces import maps
def slowly(*given, progress, **options):
    class Slow(Progress):
        def update(self, done, total, text=""):
            progress.update(done, total, text)
            time.sleep(0.3)
    return maps.pair_map(*given, progress=Slow(), **options)
panel = panels.Subspaces(compute=slowly)
panel
"""
GRID = ".workbench-heatmap canvas"


def compared(nb) -> int:
    nb.tab.wait_for_selector("text=/cells are above their chance/", timeout=120_000)
    return nb.drawn(GRID, height=100)


def test_compare_open_and_ask(lab):
    lab.write("subspaces", [OPEN, STATE])
    with notebook(lab, "subspaces", size=(1400, 3400)) as nb:
        nb.run(0)
        tab = nb.tab
        nb.press("Compare")
        old = compared(nb)
        nb.set_slider(0, "2")
        old = nb.drawn(GRID, old)
        tab.locator(".workbench-panel select:visible").first.select_option(label="bad, different seeds")
        tab.wait_for_selector("text=/they started apart/", timeout=90_000)
        old = nb.drawn(GRID, old)
        tab.locator(GRID).first.click(position={"x": 165, "y": 20})
        nb.until(1, "[0, 'k_proj'] 2 0.5 False False ''")
        tab.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length >= 2", timeout=90_000)
        nb.press("Ask")
        tab.wait_for_selector("text=/deltas, t = 0.50/", timeout=120_000)
        nb.set_slider(1, "0.8")
        tab.wait_for_selector("text=/deltas, t = 0.80/", timeout=120_000)
        nb.until(1, "[0, 'k_proj'] 2 0.8 5 False ''")
        tab.wait_for_timeout(1500)
        nb.picture("subspaces-light", 0)
        nb.save_with_picture()
        nb.quiet()


def test_cancel_keeps_what_was_compared_and_dark_is_readable(lab):
    lab.write("slow", [SLOW, STATE])
    with notebook(lab, "slow", dark=True, size=(1400, 3400)) as nb:
        nb.run(0)
        tab = nb.tab
        nb.press("Compare")
        tab.wait_for_selector("text=/of 28 comparing updates/", timeout=90_000)
        nb.press("Cancel")
        tab.wait_for_selector("text=/cancelled: cells without a colour/", timeout=90_000)
        compared(nb)
        nb.until(1, "[] 4 0.5 False False ''")
        tab.locator(GRID).first.click(position={"x": 70, "y": 20})
        nb.press("Ask")
        tab.wait_for_selector("text=/factors, t = 0.50/", timeout=120_000)
        tab.wait_for_timeout(1500)
        nb.picture("subspaces-dark", 0)
        nb.quiet()
