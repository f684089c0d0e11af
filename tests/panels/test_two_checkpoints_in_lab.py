"""The two-checkpoints panel in a real JupyterLab: Run fills the map, the colour changes it, clicks open a module and
a head, cancel keeps the norms.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODELS = """
import numpy as np
import workbench as wb
from transformers import AutoModelForCausalLM
from workbench import panels
from workbench.core.places import organism_folder
from workbench.datasets.bigram_backcopy import BigramBackcopy
from workbench.training.language_model import PretrainSpec, pretrain
base = wb.load("organism:attention-sink")
def tuned(seed):
    module = AutoModelForCausalLM.from_pretrained(organism_folder("attention-sink"))
    pretrain(module, BigramBackcopy(chain_seed=5).sample, PretrainSpec(steps=12, lr=1e-3, warmup_steps=2, batch_size=8, length=32, seed=seed))
    return wb.load(module, tokenizer=base.tokenizer)
b, c = tuned(1), tuned(2)
prompts = [" ".join(base.to_strings(row[1:])) for row in BigramBackcopy().sample(20, 12, np.random.default_rng(0)).tolist()]
"""  # noqa: E501
OPEN = "panel = panels.TwoCheckpoints(base, b, c, prompts=prompts)\npanel"
STATE = "print(panel.state.place, panel.state.cell, panel.state.running, repr(panel.state.error))"
SLOW = """
import time
from workbench.core.progress import Progress
from workbench.primitives.replace.module_changes import module_changes
def slowly(*models, progress, **options):
    class Slow:
        def __getattr__(self, name):
            return getattr(progress, name)
        def update(self, done, total, text=""):
            progress.update(done, total, text)
            time.sleep(0.4)
    return module_changes(*models, progress=Slow(), **options)
panel = panels.TwoCheckpoints(base, b, compute=slowly)
panel
"""
GRID = ".workbench-heatmap canvas"


def test_weights_then_the_same_sweep(lab):
    lab.write("two", [MODELS, OPEN, STATE])
    with notebook(lab, "two") as nb:
        nb.run(0)
        nb.run(1)
        tab = nb.tab
        nb.press("Run")
        tab.wait_for_selector("text=/Relative change outside the blocks/", timeout=90_000)
        old = nb.drawn(GRID)
        tab.locator(".workbench-panel select:visible").first.select_option(
            label="Overlap of the change with the weights it changed"
        )
        nb.drawn(GRID, old)
        tab.locator(GRID).first.click(position={"x": 75, "y": 20})
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        nb.until(2, "[0, 'attention.q'] [] False ''")
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-light", 1)

        nb.press("Same sweep on both")
        tab.wait_for_selector("textarea:visible", timeout=20_000)
        nb.press("Run")
        tab.wait_for_selector("text=/Untouched, the .* of B is that of A/", timeout=120_000)
        nb.keys(".workbench-heatmap", "ArrowRight", "ArrowRight", "ArrowDown", "Enter")
        nb.until(2, "[0, 'attention.q'] [1, 1] False ''")
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-sweep-light", 1)
        nb.save_with_picture()
        nb.quiet()


def test_cancel_keeps_the_norms_and_dark_is_readable(lab):
    lab.write("slow", [MODELS, SLOW, STATE])
    with notebook(lab, "slow", dark=True) as nb:
        nb.run(0)
        nb.run(1)
        tab = nb.tab
        nb.press("Run")
        tab.wait_for_selector("text=/of 18 layer/", timeout=30_000)
        nb.press("Cancel")
        tab.wait_for_selector("text=/cancelled: cells without a colour/", timeout=30_000)
        nb.drawn(GRID)
        nb.until(2, "[] [] False ''")
        tab.locator(".workbench-panel select:visible").first.select_option(
            label="Overlap of the change with the weights it changed"
        )
        tab.locator(GRID).first.click(position={"x": 75, "y": 20})
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-dark", 1)
        nb.quiet()
