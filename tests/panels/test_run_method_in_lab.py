"""The run panel and the heads panel in a real JupyterLab: a click runs the method, cancel works, figures change, a
review is written.
"""

import re

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
from workbench import panels
from workbench.papers.attention.attention_sinks.panel import Heads
wb.start()
sinks = wb.method("attention_sinks")
spec = sinks.Spec.tiny().replace(n_inputs=10, scores=("awft", "ahon_ln"), n_random=1, controls=False, length=48)
"""
RUN = """
panel = panels.run(sinks, spec=spec, only=("n_inputs", "seed", "task"))
panel
"""
HEADS = "Heads(panel.state.result)"


def _press(nb, cell, label):
    nb.output(cell).get_by_role("button", name=re.compile(f"^{label}$")).click()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_run_and_heads(lab, dark):
    look = "dark" if dark else "light"
    lab.write(f"run-{look}", [SETUP, RUN, HEADS])
    with notebook(lab, f"run-{look}", dark=dark) as nb:
        nb.run(0)
        nb.run(1)
        run = nb.output(1)

        # A long run is cancelled, and says so; then it goes on and ends.
        inputs = run.get_by_label("n_inputs (inputs)")
        inputs.fill("300")
        inputs.press("Enter")
        _press(nb, 1, "Run")
        run.locator("text=/^[1-9]\\d* of \\d+ /").first.wait_for(timeout=60_000)
        _press(nb, 1, "Cancel")
        run.locator("text=/cancelled: what was finished is kept/").wait_for(timeout=60_000)
        inputs.fill("10")
        inputs.press("Enter")
        _press(nb, 1, "Run")
        run.locator("text=/cancelled/").wait_for(state="detached", timeout=60_000)
        run.locator("text=/[1-9] of 9 claims hold/").wait_for(timeout=60_000)

        # Another figure is another picture.
        plot = run.locator(".js-plotly-plot")
        title = plot.locator(".gtitle").text_content()
        run.get_by_label("Figure").select_option(label="overlap")
        nb.tab.wait_for_function(
            "([e, before]) => e.querySelector('.gtitle') && e.querySelector('.gtitle').textContent !== before",
            arg=[run.element_handle(), title],
            timeout=20_000,
        )
        nb.picture(f"run-{look}", 1)

        _press(nb, 1, "Save to review folder")
        run.locator("text=/saved in reviews/").wait_for(timeout=120_000)
        reviews = sorted((lab.root / "reviews").iterdir())
        assert len(reviews) == 1 + dark, "a second review goes beside the first"
        assert all(
            {p.name for p in review.iterdir()} == {"report.html", "figures", "claims.json", "provenance.json", "result"}
            for review in reviews
        )
        assert len(list((reviews[-1] / "figures").glob("*.png"))) == 5

        # Heads: a control changes the picture, a click descends.
        nb.run(2)
        heads = nb.output(2)
        canvas = heads.locator("canvas")
        before = canvas.evaluate("c => c.toDataURL()")
        heads.get_by_label("Score").select_option(label="First-token weight")
        nb.tab.wait_for_function(
            "([c, before]) => c.toDataURL() !== before", arg=[canvas.element_handle(), before], timeout=20_000
        )
        box = canvas.bounding_box()
        nb.tab.mouse.click(box["x"] + 80, box["y"] + 20)
        heads.locator("text=/Layer 0, head \\d+: .* inputs/").wait_for(timeout=20_000)
        nb.picture(f"heads-{look}", 2)
        nb.tab.wait_for_timeout(3000)
        nb.quiet()
        nb.save()
