"""The two-checkpoints panel in a real JupyterLab: Run fills the map, the colour changes it, clicks open a module and a head, cancel keeps the norms."""

import pytest
from lab import notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODELS = """
import numpy as np
import workbench as wb
from transformers import AutoModelForCausalLM
from workbench import panels
from workbench.core.places import organism_folder
from workbench.datasets.bigram_backcopy import BigramBackcopy
from workbench.training.language_model import TrainSpec, train
base = wb.load("organism:attention-sink")
def tuned(seed):
    module = AutoModelForCausalLM.from_pretrained(organism_folder("attention-sink"))
    train(module, BigramBackcopy(chain_seed=5).sample, TrainSpec(steps=12, lr=1e-3, warmup_steps=2, batch_size=8, length=32, seed=seed))
    return wb.load(module, tokenizer=base.tokenizer)
b, c = tuned(1), tuned(2)
prompts = [" ".join(base.to_strings(row[1:])) for row in BigramBackcopy().sample(20, 12, np.random.default_rng(0)).tolist()]
"""
OPEN = "panel = panels.TwoCheckpoints(base, b, c, prompts=prompts)\npanel"
STATE = "print(panel.state.place, panel.state.cell, panel.state.running, repr(panel.state.error))"
SLOW = """
import time
from workbench.core.progress import Progress
from workbench.primitives.module_changes import module_changes
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
FINGERPRINT = """(selector) => { const c = document.querySelector(selector), data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


def until(nb, cell: int, expected: str) -> None:
    """Run the cell that prints the kernel's state until it says what it should."""
    for _ in range(40):
        nb.run(cell)
        found = nb.output(cell).inner_text().strip()
        if expected in found:
            return
        nb.tab.wait_for_timeout(250)
    raise AssertionError(f"{found!r} does not hold {expected!r}")


def press(nb, words: str) -> None:
    nb.tab.locator(".workbench-panel button:visible", has_text=words).first.click()


def drawn(nb) -> None:
    nb.tab.wait_for_function(f"() => (document.querySelector('{GRID}') || {{}}).height > 60", timeout=60_000)


def changed(nb, old: int) -> None:
    nb.tab.wait_for_function(f"(old) => ({FINGERPRINT})('{GRID}') !== old", arg=old, timeout=30_000)


def test_weights_then_the_same_sweep(lab):
    lab.write("two", [MODELS, OPEN, STATE])
    with notebook(lab, "two") as nb:
        nb.run(0)
        nb.run(1)
        tab = nb.tab
        press(nb, "Run")
        drawn(nb)
        tab.wait_for_selector("text=/Relative change outside the blocks/", timeout=30_000)
        old = tab.evaluate(FINGERPRINT, GRID)
        tab.locator(".workbench-panel select:visible").first.select_option(label="Overlap of the change with the weights it changed")
        changed(nb, old)
        tab.locator(GRID).first.click(position={"x": 75, "y": 20})
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        until(nb, 2, "[0, 'attention.q'] [] False ''")
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-light", 1)

        press(nb, "Same sweep on both")
        tab.wait_for_selector("textarea:visible", timeout=20_000)
        press(nb, "Run")
        tab.wait_for_selector("text=/Untouched, the .* of B is that of A/", timeout=120_000)
        tab.locator(".workbench-heatmap").first.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
            tab.keyboard.press(key)
        until(nb, 2, "[0, 'attention.q'] [1, 1] False ''")
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-sweep-light", 1)
        nb.save()
        nb.quiet()
    saved = (lab.root / "two.ipynb").read_text()
    assert len(saved) < 1_000_000 and "(static view)" in saved and "image/png" in saved


def test_cancel_keeps_the_norms_and_dark_is_readable(lab):
    lab.write("slow", [MODELS, SLOW, STATE])
    with notebook(lab, "slow", dark=True) as nb:
        nb.run(0)
        nb.run(1)
        tab = nb.tab
        press(nb, "Run")
        tab.wait_for_selector("text=/of 18 layer/", timeout=30_000)
        press(nb, "Cancel")
        tab.wait_for_selector("text=/cancelled: cells without a colour/", timeout=30_000)
        drawn(nb)
        until(nb, 2, "[] [] False ''")
        tab.locator(".workbench-panel select:visible").first.select_option(label="Overlap of the change with the weights it changed")
        tab.locator(GRID).first.click(position={"x": 75, "y": 20})
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        tab.wait_for_timeout(1500)
        nb.picture("two-checkpoints-dark", 1)
        nb.quiet()
