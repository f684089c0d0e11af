"""Ablation in a real JupyterLab: clicks choose, the threshold chooses, a set and a curve are measured, a cancelled
curve goes on, the notebook reopens readable.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

START = """
import time
import numpy as np
import workbench as wb
from workbench import panels
from workbench.datasets.repeated_words import RepeatedWords
from workbench.primitives.replace import ablation_curves
wb.start()
model = wb.load("organism:induction")
rows = RepeatedWords(shortest=6, longest=8).sample(12, 24, np.random.default_rng(1))[:, 1:]
panel = panels.Ablation(model, [" ".join(model.to_strings(row)) for row in rows.tolist()])
panel
"""
SLOW = """
def slow(*args, progress, **options):
    told = progress.update
    progress.update = lambda *a: (time.sleep(0.2), told(*a))
    return ablation_curves.ablation_curve(*args, progress=progress, **options)

slowly = panels.Ablation(model, panel.state.prompts, curve=slow)
slowly
"""
CHECK = (
    "print(panel.state.error or 'no error', len(panel.table()), 'measured',"
    " bool(slowly.state.result.data['value'].notnull().all()))"
)


def painted(canvas) -> str:
    return canvas.evaluate("c => c.toDataURL()")


def measure_and_draw(nb, out) -> None:
    """Score the heads, choose some by threshold, ablate them and draw the curve."""
    out.locator("select").nth(2).select_option(label="Accuracy over all next tokens")
    out.locator("select").nth(3).select_option(label="Change of the metric when ablated alone")
    out.get_by_role("button", name="Score", exact=True).click()
    out.locator("text=/0 of 8/").wait_for(timeout=60_000)
    slider = out.get_by_role("slider").first
    nb.tab.wait_for_function(
        "s => !s.closest('.widget-slider').querySelector('[disabled]')", arg=slider.element_handle(), timeout=60_000
    )
    slider.focus()
    for _ in range(12):
        nb.tab.keyboard.press("ArrowRight")
    out.locator("text=/[1-7] of 8/").wait_for(timeout=30_000)


def test_ablation_in_jupyterlab(lab):
    lab.write("ablation", [START, SLOW, CHECK])
    with notebook(lab, "ablation") as nb:
        nb.run(0)
        out = nb.output(0)
        canvas = out.locator("canvas").first
        canvas.wait_for(timeout=30_000)
        nb.tab.wait_for_timeout(500)
        empty = painted(canvas)
        # a cell of the empty map can be clicked
        heat = out.locator(".workbench-heatmap").first
        heat.focus()
        for key in ("ArrowRight", "ArrowRight", "Enter"):
            nb.tab.keyboard.press(key)
        out.locator("text=/1 of 8/").wait_for(timeout=20_000)
        nb.tab.wait_for_function(
            "([c, old]) => c.toDataURL() !== old", arg=[canvas.element_handle(), empty], timeout=20_000
        )
        out.get_by_role("button", name="Ablate chosen").click()
        out.locator("text=/1 of 8 heads set to zero on 12 prompts/").wait_for(timeout=60_000)
        nb.picture("ablation-clicked", 0)
        measure_and_draw(nb, out)
        nb.tab.wait_for_timeout(500)
        chosen = painted(canvas)
        assert chosen != empty
        out.get_by_role("button", name="Ablate chosen").click()
        out.locator("text=/[1-7] of 8 heads set to zero on 12 prompts: next_token_accuracy/").wait_for(timeout=60_000)
        out.get_by_role("button", name="Curve", exact=True).click()
        out.locator("text=/lowest score first/").wait_for(timeout=60_000)
        nb.picture("ablation-curve", 0)
        # a click by mouse takes one unit more
        box = canvas.bounding_box()
        before = int(out.locator("text=/[0-8] of 8/").first.inner_text()[0])
        nb.tab.mouse.click(box["x"] + 90, box["y"] + 20)
        out.locator(f"text=/{before + 1} of 8/").wait_for(timeout=20_000)
        out.locator("text=/heads set to zero on 12 prompts/").wait_for(
            state="detached", timeout=20_000
        )  # it was of another choice

        nb.run(1)
        slow = nb.output(1)
        slow.get_by_role("button", name="Curve", exact=True).click()
        slow.locator("text=/[5-9] of \\d+ /").first.wait_for(timeout=60_000)
        slow.get_by_role("button", name="Cancel").click()
        slow.locator("text=/runs are not made yet/").wait_for(timeout=30_000)
        nb.tab.wait_for_timeout(500)
        nb.picture("ablation-partial", 1)
        slow.get_by_role("button", name="Curve, go on").click()
        slow.locator("text=/runs are not made yet/").wait_for(state="detached", timeout=60_000)
        slow.get_by_role("button", name="Curve", exact=True).wait_for(timeout=60_000)
        nb.run(2)
        said = nb.tab.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").first.inner_text()
        assert "no error" in said and "measured True" in said
        nb.tab.wait_for_timeout(3500)  # static views settle
        nb.save_with_picture()
        nb.quiet()
    lab.stop_kernels()
    with notebook(lab, "ablation") as nb:
        first = nb.tab.locator(".jp-CodeCell").nth(0)
        first.locator("td:has-text('lowest score first')").first.wait_for(timeout=20_000)
        assert first.locator("img").count() == 1
        nb.picture("ablation-reopened")


def test_ablation_reads_on_dark(lab):
    lab.write("dark", [START])
    with notebook(lab, "dark", dark=True) as nb:
        nb.run(0)
        out = nb.output(0)
        measure_and_draw(nb, out)
        out.get_by_role("button", name="Ablate chosen").click()
        out.locator("text=/heads set to zero on 12 prompts/").wait_for(timeout=60_000)
        out.get_by_role("button", name="Curve", exact=True).click()
        out.locator("text=/lowest score first/").wait_for(timeout=60_000)
        nb.tab.wait_for_timeout(500)
        nb.picture("ablation-dark", 0)
        nb.quiet()
