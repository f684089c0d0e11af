"""The steering panel in a real JupyterLab: Steer writes texts beside their control, Curve draws, the slider moves
along it, cancel works.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN = """
import workbench as wb
from workbench import panels
model = wb.load("organism:attention-sink")
panel = panels.Steering(model, ["apple river", "beach river", "corn river"], ["apple lamp", "beach moon", "corn pond"], ["island pond", "salt piano"])
panel
"""  # noqa: E501
STATE = "print(panel.state.coefficient, panel.coefficient_shown, panel.state.running, repr(panel.state.error))"
LONG = "panel.state.max_new_tokens, panel.state.n_random, panel.state.n_points = 50, 20, 33"


def curve(nb) -> str:
    """What the plot draws, as its numbers."""
    return nb.tab.evaluate(
        "() => { const p = document.querySelector('.js-plotly-plot'); return p ?"
        " JSON.stringify(p._fullLayout.shapes.map(s => s.x0)) + p.data.length + p.layout.title.text : ''; }"
    )


def drag(nb, steps: int) -> None:
    """Move the coefficient slider by the keyboard."""
    handle = nb.tab.locator(".workbench-panel .noUi-handle:visible").first
    handle.focus()
    for _ in range(abs(steps)):
        nb.tab.keyboard.press("ArrowLeft" if steps < 0 else "ArrowRight")


def test_texts_curve_and_slider(lab):
    lab.write("steering", [OPEN, STATE])
    with notebook(lab, "steering") as nb:
        nb.run(0)
        tab = nb.tab
        nb.until(1, "2.0 2.0 False ''")
        target = tab.locator(".workbench-panel input[placeholder='a word']")
        target.fill("silver")
        target.press("Tab")
        nb.press("Steer")
        tab.wait_for_selector("text='coefficient 0 (control)'", timeout=60_000)
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        nb.press("Curve")
        tab.wait_for_function(
            "() => { const p = document.querySelector('.js-plotly-plot'); return p && p._fullData.some(t => t.name ==="
            " 'this direction' && t.x.length === 9); }",
            timeout=120_000,
        )
        before = curve(nb)
        drag(nb, -4)
        nb.until(1, "1.0 1.0 False ''")
        tab.wait_for_function(
            "(old) => { const p = document.querySelector('.js-plotly-plot'); return"
            " JSON.stringify(p._fullLayout.shapes.map(s => s.x0)) + p.data.length + p.layout.title.text !== old; }",
            arg=before,
            timeout=20_000,
        )
        tab.wait_for_timeout(1500)
        nb.picture("steering-light", 0)
        tab.locator(".workbench-panel select:visible").last.select_option(
            label="Loss of the continuation under the unsteered model"
        )
        tab.wait_for_function(
            "() => document.querySelector('.js-plotly-plot').layout.title.text.startsWith('Loss')", timeout=20_000
        )
        nb.save_with_picture()
        nb.quiet()


def test_a_long_curve_is_cancelled_and_keeps_its_part(lab):
    lab.write("long", [OPEN, STATE, LONG])
    with notebook(lab, "long", dark=True) as nb:
        nb.run(0)
        nb.run(2)
        tab = nb.tab
        nb.press("Curve")
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.widget-label')].some(e => { const n = /^(\\d+) of \\d+"
            " direction/.exec(e.innerText); return n && +n[1] > 150; })",
            timeout=120_000,
        )
        nb.press("Cancel")
        tab.wait_for_selector("text=/cancelled: what was finished is shown/", timeout=30_000)
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        tab.wait_for_timeout(1500)
        nb.picture("steering-dark", 0)
        nb.quiet()
