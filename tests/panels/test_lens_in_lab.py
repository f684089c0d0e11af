"""The lens in a real JupyterLab, offline: Run, click, keyboard, colour; saved and reopened without its kernel it is
a picture and a table.
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
CELLS = [
    SETUP,
    "panel = panels.Lens(model, prompt=f'{words} {words}')\npanel",
    "print('chosen', panel.state.layer, panel.state.pos)",
    "print('chosen', panel.state.layer, panel.state.pos)",
]


MAP = ".workbench-heatmap canvas"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"], scope="module")
def test_run_click_keyboard_and_colour(lab, dark):
    name = "dark" if dark else "light"
    lab.write(name, CELLS)
    with notebook(lab, name, dark=dark, size=(1300, 1400)) as nb:
        nb.run(0)
        nb.run(1)
        out = nb.output(1)
        out.locator("button:has-text('Run')").click()
        first = nb.drawn(MAP)
        box = out.locator("canvas").bounding_box()
        nb.tab.mouse.click(box["x"] + 350, box["y"] + 25)
        out.locator("text=/Likeliest next tokens after block/").wait_for(timeout=20_000)
        by_mouse = out.locator("p:has-text('Likeliest next tokens')").inner_text()
        assert out.locator("table td").count() == 5 * 4, "five tokens with rank, text, id, probability"
        row, col = (int(n) for n in nb.printed(2).split()[1:])
        assert row == 0 and col > 0 and "block embed" in by_mouse

        nb.keys(
            ".workbench-heatmap", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "Enter"
        )  # the first arrow enters at the first cell
        nb.tab.wait_for_function(
            "before => ![...document.querySelectorAll('p')].some(p => p.innerText === before)",
            arg=by_mouse,
            timeout=20_000,
        )
        assert nb.printed(3) == "chosen 1 3"

        chosen = nb.drawn(MAP)
        out.locator("select").select_option(label="Entropy (nats)")
        assert nb.drawn(MAP, chosen) != first
        nb.picture(f"lens-{name}", 1)
        nb.quiet()


def test_saved_and_reopened_without_a_kernel_it_is_a_picture_and_a_table(lab):
    lab.write("reopened", CELLS)
    with notebook(lab, "reopened", size=(1300, 1400)) as nb:
        nb.run(0)
        nb.run(1)
        nb.output(1).locator("button:has-text('Run')").click()
        nb.drawn(MAP)
        nb.save_with_picture()
        children = nb.tab.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-child")
        assert [children.nth(i).is_visible() for i in range(children.count())] == [
            True,
            False,
            False,
        ], "the static view hides beneath the live panel"
        nb.quiet()
    lab.stop_kernels()
    with notebook(lab, "reopened", size=(1300, 1400)) as nb:
        cell = nb.tab.locator(".jp-CodeCell").nth(1)
        cell.locator("img").wait_for(timeout=20_000)
        assert cell.locator("img").evaluate("i => i.naturalWidth") >= 400 and cell.locator("img").is_visible()
        assert cell.locator("table").is_visible() and cell.locator("table tbody tr").count() == 30
        assert cell.locator("text=39 rows, the first 30 shown").is_visible(), "three layers of thirteen positions"
        lost = nb.tab.locator("text=/model not found|Error displaying widget/i")
        assert not any(lost.nth(i).is_visible() for i in range(lost.count()))
        nb.picture("lens-reopened")
        assert nb.outside == []
