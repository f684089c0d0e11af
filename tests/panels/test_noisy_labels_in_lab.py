"""The noisy-labels panel in a real JupyterLab on the runs that ship: arm and epoch change the pictures, a click opens a sample."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RESULT = """
import workbench as wb
from workbench import panels
result = wb.method("layernorm_memorization").load_stored()
"""
OPEN = "panel = panels.NoisyLabels(result)\npanel"
STATE = "print(panel.state.arm, panel.state.epoch, panel.state.sample, repr(panel.state.error))"
MAP = ".workbench-heatmap canvas"
FINGERPRINT = """(selector) => { const c = document.querySelector(selector), data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_arm_epoch_and_sample(lab, dark):
    name = f"noisy_{'dark' if dark else 'light'}"
    lab.write(name, [RESULT, OPEN, STATE])
    with notebook(lab, name, dark=dark) as nb:
        tab = nb.tab
        nb.run(0)
        nb.run(1)
        tab.wait_for_function(f"() => (document.querySelector('{MAP}') || {{}}).height > 60", timeout=60_000)
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        old = tab.evaluate(FINGERPRINT, MAP)
        tab.locator(".workbench-panel select:visible").nth(3).select_option(label="all layers, the whole norm")
        tab.wait_for_function(f"(old) => ({FINGERPRINT})('{MAP}') !== old", arg=old, timeout=30_000)
        tab.locator(MAP).first.click(position={"x": 200, "y": 60})
        tab.wait_for_selector("text=/true label/", timeout=30_000)
        tab.wait_for_timeout(1500)
        nb.run(2)
        arm, epoch, sample, error = nb.output(2).inner_text().split()
        assert arm == "whole" and int(epoch) >= 0 and int(sample) >= 0 and error == "''"
        nb.picture(name)
        nb.quiet()
        nb.save()
        assert (lab.root / f"{name}.ipynb").stat().st_size < 1e6
