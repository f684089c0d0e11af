"""The attribution panel in a real JupyterLab: Run splits the logit, another token changes the picture, a click on a
head opens its attention.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORDS = "apple beach bread brick cabin candle chair cloud"
OPEN = f"""
import workbench as wb
from workbench import panels
model = wb.load("organism:induction")
panel = panels.Attribution(model, "{WORDS} apple beach bread")
panel
"""
STATE = (
    "print(panel.state.layer, panel.state.head, panel.opened and (panel.opened.state.layer, panel.opened.state.head),"
    " repr(panel.state.error))"
)
GRID = ".workbench-heatmap canvas"


def start(nb) -> None:
    nb.run(0)
    nb.press("Run")
    nb.drawn(GRID)
    nb.tab.wait_for_selector(".js-plotly-plot", timeout=30_000)


def test_split_change_and_descend_to_attention(lab):
    lab.write("attribution", [OPEN, STATE])
    with notebook(lab, "attribution") as nb:
        start(nb)
        tab = nb.tab
        tab.wait_for_selector("text=/logit of 'brick' after the last token is/", timeout=20_000)
        nb.until(1, "-1 -1 None ''")
        old = nb.drawn(GRID)
        minus = tab.locator(".workbench-panel input[type=text]:visible").nth(2)
        minus.fill("chair")
        minus.press("Tab")
        nb.press("Run")
        tab.wait_for_selector("text=/logit of 'brick' minus that of 'chair' after the last token is/", timeout=30_000)
        nb.drawn(GRID, old)
        tab.wait_for_timeout(1500)
        nb.picture("attribution-light", 0)

        tab.locator(GRID).first.click(position={"x": 90, "y": 20})
        nb.drawn(".workbench-headgrid canvas", height=100)
        nb.until(1, "0 0 (0, 0) ''")
        nb.keys(".workbench-heatmap", "ArrowRight", "ArrowRight", "ArrowDown", "Enter")
        nb.until(1, "1 1 (1, 1) ''")
        tab.wait_for_timeout(1500)
        nb.picture("attribution-opened-light", 0)
        nb.save_with_picture()
        nb.quiet()


def test_an_existing_attention_panel_follows_and_errors_are_a_sentence(lab):
    cells = [
        OPEN,
        STATE,
        (
            "attention = panels.Attention(model)\npanel = panels.Attribution(model, panel.state.prompt,"
            " attention=attention)\npanel"
        ),
        "attention",
    ]
    lab.write("linked", cells)
    with notebook(lab, "linked", dark=True) as nb:
        start(nb)
        nb.picture("attribution-dark", 0)
        nb.run(2)
        nb.run(3)
        tab = nb.tab
        nb.press("Run", 1)
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.workbench-heatmap canvas')].filter(c => c.height > 60).length >= 2",
            timeout=30_000,
        )
        tab.locator(".jp-CodeCell").nth(2).locator(GRID).first.click(position={"x": 90, "y": 20})
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.workbench-headgrid canvas')].some(c => c.height > 100)",
            timeout=60_000,
        )
        assert tab.locator(".jp-CodeCell").nth(2).locator(".workbench-headgrid").count() == 0
        answer = tab.locator(".jp-CodeCell").nth(2).locator("input[type=text]:visible").nth(1)
        answer.fill("apple beach")
        answer.press("Tab")
        nb.press("Run", 1)
        tab.wait_for_selector("text=/is 2 tokens/", timeout=20_000)
        nb.quiet()
