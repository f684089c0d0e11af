"""The tokens panel in a real JupyterLab, offline: Run colours the tokens, a click lists what follows, controls
redraw, two models stand side by side.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
from workbench import panels
wb.start()
model = wb.load("organism:induction")
words = "apple beach bread brick cabin candle"
"""
ONE = [
    SETUP,
    "panel = panels.Tokens(model, f'{words} {words}')\npanel",
    "print(panel.state.pos, panel.choices().token[0])",
]
TWO = [
    SETUP,
    "panel = panels.Tokens(model, f'{words} {words}', other_model=wb.load('organism:attention-sink'))\npanel",
    "print(panel.state.pos, panel.state.other_pos, panel.strips[1].selected)",
    "pair = panels.Tokens(model, f'{words} apple beach', other_prompt=f'{words} bread')\npair",
]


def strip(nb, cell: int, side: int = 0):
    return nb.output(cell).locator(".workbench-tokens").nth(side).locator("button")


def backgrounds(nb, cell: int, side: int = 0) -> list[str]:
    return strip(nb, cell, side).evaluate_all("all => all.map(b => getComputedStyle(b).backgroundColor)")


def wait_until(nb, what, timeout: float = 20) -> None:
    for _ in range(int(timeout * 10)):
        if what():
            return
        nb.tab.wait_for_timeout(100)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"], scope="module")
def test_run_click_and_controls(lab, dark):
    name = "dark" if dark else "light"
    lab.write(name, ONE)
    with notebook(lab, name, dark=dark, size=(1300, 1700)) as nb:
        nb.run(0)
        nb.run(1)
        out = nb.output(1)
        assert strip(nb, 1).count() == 0, "nothing is computed before Run"
        out.locator("button:has-text('Run')").click()
        strip(nb, 1).nth(12).wait_for(timeout=30_000)
        assert strip(nb, 1).all_inner_texts()[:3] == ["<bos>", "apple", "beach"]
        by_loss = backgrounds(nb, 1)
        assert by_loss[0] == "rgba(0, 0, 0, 0)" and by_loss[2] != by_loss[8], (
            "the first token has no loss; a repeated one costs less than a new one"
        )

        out.locator(".js-plotly-plot").wait_for(timeout=20_000)
        strip(nb, 1).nth(7).click()
        out.locator("text=/after position 7/").first.wait_for(timeout=20_000)
        assert out.locator("tr:has-text('←')").inner_text().split()[:2] == [
            "0",
            "beach",
        ], "after the second apple it foresees beach, and beach it is"
        assert nb.printed(2) == "7 beach"

        rows = out.locator("table").first.locator("tbody tr")
        assert rows.count() == 10
        out.locator(".slider-container .noUi-handle, .widget-slider [role=slider]").first.focus()
        nb.tab.keyboard.press("ArrowLeft")
        wait_until(nb, lambda: rows.count() == 9)

        out.locator("select").select_option(label="Entropy of the prediction")
        wait_until(nb, lambda: backgrounds(nb, 1) != by_loss)
        out.locator("summary").first.click()
        assert out.locator("table").nth(1).is_visible()
        nb.tab.mouse.move(5, 5)
        nb.tab.wait_for_timeout(500)
        nb.picture(f"tokens-{name}", 1)
        nb.quiet()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"], scope="module")
def test_two_models_and_two_prompts_side_by_side(lab, dark):
    name = "two-dark" if dark else "two-light"
    lab.write(name, TWO)
    with notebook(lab, name, dark=dark, size=(1300, 2600)) as nb:
        nb.run(0)
        nb.run(1)
        out = nb.output(1)
        out.locator("button:has-text('Run')").click()
        strip(nb, 1, 1).nth(12).wait_for(timeout=30_000)
        for _ in range(50):  # a line above one of them may still be on its way
            boxes = [out.locator(".workbench-tokens").nth(side).bounding_box() for side in (0, 1)]
            if abs(boxes[0]["y"] - boxes[1]["y"]) < 2:
                break
            nb.tab.wait_for_timeout(100)
        assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2 and boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 5
        strip(nb, 1, 0).nth(4).click()
        out.locator("text=/after position 4/").nth(1).wait_for(timeout=20_000)
        assert nb.printed(2) == "4 4 4"
        before = backgrounds(nb, 1, 1)
        out.locator("select").select_option(label="Loss, second minus first")
        wait_until(nb, lambda: backgrounds(nb, 1, 1) != before)
        assert backgrounds(nb, 1, 0) == backgrounds(nb, 1, 1), "one difference, on both sides"
        nb.tab.mouse.move(5, 5)
        nb.tab.wait_for_timeout(500)
        nb.picture(f"tokens-{name}", 1)

        nb.run(3)
        pair = nb.output(3)
        pair.locator("button:has-text('Run')").click()
        pair.locator("text=/the two token lists differ in 1 place/").wait_for(timeout=30_000)
        nb.tab.wait_for_timeout(1500)
        nb.picture(f"tokens-prompts-{name}", 3)
        nb.quiet()


def test_the_saved_notebook_is_small_and_reads_without_a_kernel(lab):
    lab.write("reopened", ONE)
    with notebook(lab, "reopened", size=(1300, 1700)) as nb:
        nb.run(0)
        nb.run(1)
        nb.output(1).locator("button:has-text('Run')").click()
        strip(nb, 1).nth(12).wait_for(timeout=30_000)
        nb.save_with_picture()
        nb.quiet()
    lab.stop_kernels()
    with notebook(lab, "reopened", size=(1300, 1700)) as nb:
        cell = nb.tab.locator(".jp-CodeCell").nth(1)
        cell.locator("img").wait_for(timeout=20_000)
        assert cell.locator("td:has-text('candle')").count() >= 2 and "bos" in cell.locator("table").inner_text()
        lost = nb.tab.locator("text=/model not found|Error displaying widget/i")
        assert not any(lost.nth(i).is_visible() for i in range(lost.count()))
        nb.picture("tokens-reopened")
