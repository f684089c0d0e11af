"""Patching in a real JupyterLab: Run paints the map, a click descends, attribution lies beside, a cancelled run goes
on, the notebook reopens readable.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

START = """
import time
import workbench as wb
from workbench import panels
from workbench.primitives.replace import sweep_descent
wb.start()
model = wb.load("organism:induction")
words = "apple beach bread brick cabin candle chair cloud copper corn"
panel = panels.Patching(model, f"{words} cabin", f"{words} cabin".replace("cabin", "maple", 1), "candle", "bread")
panel
"""
SLOW = """
def slow(*args, progress, **options):
    told = progress.update
    progress.update = lambda *a: (time.sleep(0.3), told(*a))
    return sweep_descent.measure(*args, progress=progress, **options)

slowly = panels.Patching(model, panel.state.clean, panel.state.corrupted, "candle", "bread", compute=slow)
slowly.memory.value = 0.1
slowly
"""
CHECK = (
    "print(panel.state.path, panel.state.error or 'no error', 'measured',"
    " bool(slowly.state.result.data['value'].notnull().all()))"
)


def painted(canvas) -> str:
    return canvas.evaluate("c => c.toDataURL()")


def click_cell(nb, canvas, row: int, col: int, n_rows: int) -> None:
    """Click a cell of the heat map under the mouse, found by what its tooltip says."""
    box = canvas.bounding_box()
    tip = nb.tab.locator(".workbench-heatmap div").filter(visible=True)
    for x in range(40, int(box["width"]), 12):
        nb.tab.mouse.move(box["x"] + x, box["y"] + 12 + row * (box["height"] - 90) / max(n_rows, 1))
        if tip.count() and f" {col}" in tip.first.inner_text():
            nb.tab.mouse.down()
            nb.tab.mouse.up()
            return
    raise AssertionError(f"no cell {row}, {col} under the mouse")


def test_patching_in_jupyterlab(lab):
    lab.write("patching", [START, SLOW, CHECK])
    with notebook(lab, "patching") as nb:
        nb.run(0)
        out = nb.output(0)
        out.locator("text=/24 cells in .* forward/").wait_for(timeout=20_000)
        assert out.locator("td[title='differs']").count() == 1
        out.get_by_role("button", name="Run", exact=True).click()
        canvas = out.locator("canvas").first
        canvas.wait_for(timeout=60_000)
        out.locator("text=/Baseline: logit_diff: clean/").wait_for(timeout=20_000)
        out.locator("text=/24 cells in .* forward/").wait_for(timeout=20_000)
        nb.tab.wait_for_timeout(500)
        top = painted(canvas)
        nb.picture("patching-top", 0)
        out.get_by_role("button", name="Attribution").click()
        out.locator("text=/rank correlation/").first.wait_for(timeout=60_000)
        out.locator(".js-plotly-plot").wait_for(timeout=30_000)
        nb.picture("patching-attribution", 0)
        # a click descends: the keyboard way first, then the mouse
        heat = out.locator(".workbench-heatmap").first
        heat.focus()
        for key in ["ArrowRight", "ArrowDown", *["ArrowRight"] * 11, "Enter"]:
            nb.tab.keyboard.press(key)
        out.locator("text=/layer 1, position 11/").first.wait_for(timeout=60_000)
        nb.tab.wait_for_function(
            "([c, old]) => c.toDataURL() !== old", arg=[canvas.element_handle(), top], timeout=20_000
        )
        nb.picture("patching-parts", 0)
        click_cell(nb, canvas, 0, "h1", 1)
        out.locator("text=/› head 1/").wait_for(timeout=60_000)
        nb.tab.wait_for_timeout(500)
        nb.picture("patching-inputs", 0)
        out.get_by_role("button", name="Up").click()
        out.get_by_role("button", name="Up").click()
        out.locator("text=/resid_pre, every layer and position/").wait_for(timeout=20_000)
        nb.tab.wait_for_timeout(500)
        # a control changes the picture
        before = painted(canvas)
        out.locator("select").nth(2).select_option(label="Noise: corrupted into clean")
        out.locator("text=/still shows the earlier settings/").wait_for(timeout=20_000)
        out.get_by_role("button", name="Run", exact=True).click()
        out.locator("text=/still shows the earlier settings/").wait_for(state="detached", timeout=60_000)
        nb.tab.wait_for_timeout(500)
        assert painted(canvas) != before, "the words under the map are those of the clean run now"

        nb.run(1)
        slow = nb.output(1)
        slow.get_by_role("button", name="Run", exact=True).click()
        slow.locator("text=/[2-9] of \\d+ /").first.wait_for(timeout=60_000)
        slow.get_by_role("button", name="Cancel").click()
        slow.locator("text=/cells are not measured yet/").wait_for(timeout=30_000)
        nb.tab.wait_for_timeout(500)
        half = painted(slow.locator("canvas").first)
        nb.picture("patching-partial", 1)
        slow.get_by_role("button", name="Run on").click()
        slow.locator("text=/cells are not measured yet/").wait_for(state="detached", timeout=60_000)
        slow.get_by_role("button", name="Run", exact=True).wait_for(timeout=60_000)
        nb.tab.wait_for_timeout(500)
        assert painted(slow.locator("canvas").first) != half
        nb.run(2)
        assert (
            "[] no error measured True"
            in nb.tab.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").first.inner_text()
        )
        nb.tab.wait_for_timeout(3500)  # static views settle
        nb.save_with_picture()
        nb.quiet()
    lab.stop_kernels()
    with notebook(lab, "patching") as nb:
        first = nb.tab.locator(".jp-CodeCell").nth(0)
        first.locator("td:has-text('pos 6 candle')").first.wait_for(timeout=20_000)
        assert first.locator("img").count() == 1
        nb.picture("patching-reopened")


def test_patching_reads_on_dark(lab):
    lab.write("dark", [START])
    with notebook(lab, "dark", dark=True) as nb:
        nb.run(0)
        out = nb.output(0)
        out.get_by_role("button", name="Run", exact=True).click()
        out.locator("text=/Baseline: logit_diff: clean/").wait_for(timeout=60_000)
        out.get_by_role("button", name="Attribution").click()
        out.locator(".js-plotly-plot").wait_for(timeout=60_000)
        nb.tab.wait_for_timeout(500)
        nb.picture("patching-dark", 0)
        nb.quiet()
