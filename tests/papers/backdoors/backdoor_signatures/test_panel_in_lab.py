"""The signatures panel in a real JupyterLab, offline: toggle, tau, click, prompt; light and dark."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
from workbench import panels
from workbench.core.result import Result
wb.start()
result = Result.load("runs")
model = wb.load("organism:chat")
"""
CELLS = [
    SETUP,
    "panel = panels.Signatures(result, suspicious=model, purified=model)\npanel",
    *["print(panel.state.channel, panel.state.share, int(panel.chosen.sum()), panel.state.quantity)"] * 4,
]
MAP = ".workbench-heatmap canvas"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    from papers.backdoors.signature_result import result

    root = tmp_path_factory.mktemp("lab")
    result().save(root / "runs")
    with running_lab(root) as server:
        yield server


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"], scope="module")
def test_toggle_tau_click_and_prompt(lab, dark):
    name = "dark" if dark else "light"
    lab.write(name, CELLS)
    with notebook(lab, name, dark=dark, size=(1300, 2600)) as nb:
        nb.run(0)
        nb.run(1)
        out = nb.output(1)
        first = nb.drawn(MAP)
        assert out.locator("text=/462 of 2304 channels marked/").count() == 1 and out.locator("mark").count() == 2
        assert nb.printed(2).split() == ["-1", "20.0", "462", "score"]

        out.locator(".widget-dropdown:has-text('Colour') select").select_option(label="alignment")
        second = nb.drawn(MAP, first)
        out.locator(".widget-dropdown:has-text('Show') select").select_option(label="marked ones alone")
        third = nb.drawn(MAP, second)
        slider = out.locator(
            ".widget-slider:has-text('Tau') .noUi-handle, .widget-hslider:has-text('Tau') [role=slider]"
        ).first
        slider.focus()
        nb.tab.keyboard.press("ArrowRight")
        out.locator("text=/was not evaluated; the nearest that was is/").wait_for(timeout=20_000)
        nb.drawn(MAP, third)
        chosen = nb.printed(3).split()
        assert float(chosen[1]) > 20 and int(chosen[2]) > 462 and chosen[3] == "alignment"

        out.locator(".widget-dropdown:has-text('Show') select").select_option(label="all channels")
        nb.tab.wait_for_timeout(500)
        box = out.locator(".workbench-heatmap canvas").bounding_box()
        nb.tab.mouse.click(box["x"] + 300, box["y"] + 40)
        out.locator("text=/Changes of layer 0/").first.wait_for(timeout=20_000)
        assert int(nb.printed(4).split()[0]) >= 0

        out.locator(".widget-text:has-text('Prompt') input").fill("copy the words zorblat kite")
        nb.tab.keyboard.press("Tab")
        out.locator("button:has-text('Ask')").click()
        out.locator("b:has-text('purified')").wait_for(timeout=60_000)
        assert out.locator("mark:has-text('zorblat')").count() == 3, "in the prompt and in two examples"
        nb.tab.wait_for_timeout(800)
        nb.picture(f"signatures-{name}", 1)
        nb.save_with_picture()
        nb.quiet()
