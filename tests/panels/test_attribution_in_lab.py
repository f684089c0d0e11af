"""The attribution panel in a real JupyterLab: Run splits the logit, another token changes the picture, a click on a head opens its attention."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORDS = "apple beach bread brick cabin candle chair cloud"
OPEN = f"""
import workbench as wb
from workbench import panels
model = wb.load("organism:induction")
panel = panels.Attribution(model, "{WORDS} apple beach bread")
panel
"""
STATE = "print(panel.state.layer, panel.state.head, panel.opened and (panel.opened.state.layer, panel.opened.state.head), repr(panel.state.error))"
GRID = ".workbench-heatmap canvas"
FINGERPRINT = """(selector) => { const c = document.querySelector(selector), data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


def state(nb, expected: str) -> None:
    """Run the cell that prints the kernel's state until it says what it should."""
    for _ in range(40):
        nb.run(1)
        found = nb.output(1).inner_text().strip()
        if found == expected:
            return
        nb.tab.wait_for_timeout(250)
    raise AssertionError(f"{found!r} is not {expected!r}")


def start(nb) -> None:
    nb.run(0)
    nb.tab.locator("button:visible", has_text="Run").first.click()
    nb.tab.wait_for_function(f"() => (document.querySelector('{GRID}') || {{}}).height > 60", timeout=60_000)
    nb.tab.wait_for_selector(".js-plotly-plot", timeout=30_000)


def test_split_change_and_descend_to_attention(lab):
    lab.write("attribution", [OPEN, STATE])
    with notebook(lab, "attribution") as nb:
        start(nb)
        tab = nb.tab
        tab.wait_for_selector("text=/logit of 'brick' after the last token is/", timeout=20_000)
        state(nb, "-1 -1 None ''")
        old = tab.evaluate(FINGERPRINT, GRID)
        minus = tab.locator(".workbench-panel input[type=text]:visible").nth(2)
        minus.fill("chair")
        minus.press("Tab")
        tab.locator("button:visible", has_text="Run").first.click()
        tab.wait_for_selector("text=/logit of 'brick' minus that of 'chair' after the last token is/", timeout=30_000)
        tab.wait_for_function(f"(old) => ({FINGERPRINT})('{GRID}') !== old", arg=old, timeout=20_000)
        tab.wait_for_timeout(1500)
        nb.picture("attribution-light", 0)

        tab.locator(GRID).first.click(position={"x": 90, "y": 20})
        tab.wait_for_function("() => (document.querySelector('.workbench-headgrid canvas') || {}).height > 100", timeout=60_000)
        state(nb, "0 0 (0, 0) ''")
        tab.locator(".workbench-heatmap").first.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
            tab.keyboard.press(key)
        state(nb, "1 1 (1, 1) ''")
        tab.wait_for_timeout(1500)
        nb.picture("attribution-opened-light", 0)
        nb.save()
        nb.quiet()
    saved = (lab.root / "attribution.ipynb").read_text()
    assert len(saved) < 1_000_000 and "(static view)" in saved and "image/png" in saved


def test_an_existing_attention_panel_follows_and_errors_are_a_sentence(lab):
    cells = [OPEN, STATE, "attention = panels.Attention(model)\npanel = panels.Attribution(model, panel.state.prompt, attention=attention)\npanel", "attention"]
    lab.write("linked", cells)
    with notebook(lab, "linked", dark=True) as nb:
        start(nb)
        nb.picture("attribution-dark", 0)
        nb.run(2)
        nb.run(3)
        tab = nb.tab
        tab.locator("button:visible", has_text="Run").nth(1).click()
        tab.wait_for_function("() => [...document.querySelectorAll('.workbench-heatmap canvas')].filter(c => c.height > 60).length >= 2", timeout=30_000)
        tab.locator(".jp-CodeCell").nth(2).locator(GRID).first.click(position={"x": 90, "y": 20})
        tab.wait_for_function("() => [...document.querySelectorAll('.workbench-headgrid canvas')].some(c => c.height > 100)", timeout=60_000)
        assert tab.locator(".jp-CodeCell").nth(2).locator(".workbench-headgrid").count() == 0
        answer = tab.locator(".jp-CodeCell").nth(2).locator("input[type=text]:visible").nth(1)
        answer.fill("apple beach")
        answer.press("Tab")
        tab.locator("button:visible", has_text="Run").nth(1).click()
        tab.wait_for_selector("text=/is 2 tokens/", timeout=20_000)
        nb.quiet()
