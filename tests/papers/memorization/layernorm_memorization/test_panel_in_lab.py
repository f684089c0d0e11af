"""The noisy-labels panel in a real JupyterLab on the runs that ship: arm and epoch change the pictures, a click
opens a sample.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RESULT = """
import workbench as wb
from workbench import panels
result = wb.method("layernorm_memorization").load_stored()
"""
OPEN = "panel = panels.NoisyLabels(result)\npanel"
STATE = "print(panel.state.arm, panel.state.epoch, panel.state.sample, repr(panel.state.error))"
MAP = ".workbench-heatmap canvas"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_arm_epoch_and_sample(lab, dark):
    name = f"noisy_{'dark' if dark else 'light'}"
    lab.write(name, [RESULT, OPEN, STATE])
    with notebook(lab, name, dark=dark) as nb:
        tab = nb.tab
        nb.run(0)
        nb.run(1)
        tab.wait_for_selector(".js-plotly-plot", timeout=60_000)
        old = nb.drawn(MAP)
        tab.locator(".workbench-panel select:visible").nth(3).select_option(label="all layers, the whole norm")
        nb.drawn(MAP, old)
        tab.locator(MAP).first.click(position={"x": 200, "y": 60})
        tab.wait_for_selector("text=/true label/", timeout=30_000)
        tab.wait_for_timeout(1500)
        arm, epoch, sample, error = nb.printed(2).split()
        assert arm == "whole" and int(epoch) >= 0 and int(sample) >= 0 and error == "''"
        nb.picture(name)
        nb.quiet()
        nb.save_with_picture()
