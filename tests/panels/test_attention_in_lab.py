"""The attention panel in a real JupyterLab: grid, large pattern, tokens, heads off; 12 x 12 heads at 64 tokens are
painted in time.
"""

import pytest
import torch
from lab import notebook, running_lab
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.organisms.tokenizer import word_tokenizer

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORDS = "apple beach bread brick cabin candle chair cloud"
OPEN = f"""
import workbench as wb
from workbench import panels
model = wb.load("organism:induction")
panel = panels.Attention(model, "{WORDS} {WORDS}")
panel
"""
STATE = (
    "print(panel.state.layer, panel.state.head, panel.state.score, panel.state.off, panel.state.effect is not None,"
    " panel.state.run, repr(panel.state.error))"
)
LARGE = """
import time
import workbench as wb
from workbench import panels
model = wb.load("gpt2-12x12")
panel = panels.Attention(model, " ".join(model.to_strings([6 + i % 50 for i in range(63)])))
panel
"""
SIZES = "print(panel.state.result.data.sizes['query_pos'], len(panel.grid.patterns), len(panel.grid.scores))"
PAINTED = """async () => {  // ms from the click on Run until the canvas shows another picture
    const canvas = () => document.querySelector('.workbench-headgrid canvas');
    const print = () => {
        const c = canvas();
        if (!c || c.width < 200) return '';
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let sum = 0, seen = new Set();
        for (let i = 0; i < data.length; i += 404) { sum = (sum * 31 + data[i] + 3 * data[i + 1]) % 1000000007; seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]); }
        return seen.size < 20 ? '' : String(sum);
    };
    const before = print(), run = [...document.querySelectorAll('button')].find((b) => b.innerText.trim() === 'Run' && b.offsetParent), started = performance.now();
    run.click();
    while (['', before].includes(print()) && performance.now() - started < 20000) await new Promise(requestAnimationFrame);
    return performance.now() - started;
}"""  # noqa: E501


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=48,
        n_layer=12,
        n_head=12,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.4,
    )
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2-12x12")
    word_tokenizer(VOCABULARY, add_bos=True).save_pretrained(root / "gpt2-12x12")
    with running_lab(root) as found:
        yield found


def head_place(tab, layer: int, head: int, layers: int = 2, heads: int = 4) -> dict:
    """Where a head is on the grid's canvas, from the same arithmetic as headgrid.js."""
    width = tab.evaluate("() => document.querySelector('.workbench-headgrid').clientWidth")
    size = max(8, min(110, int((max(320, width) - 132) // heads) - 3))
    return {"x": 40 + head * (size + 3) + size / 2, "y": 4 + layer * (size + (14 if size >= 26 else 4) + 4) + size / 2}


def test_grid_large_pattern_tokens_and_heads_off(lab):
    lab.write("attention", [OPEN, STATE])
    with notebook(lab, "attention") as nb:
        nb.run(0)
        tab = nb.tab
        tab.locator("button:visible", has_text="Run").first.click()
        grid, large = ".workbench-headgrid canvas", ".workbench-heatmap canvas"
        nb.drawn(grid, height=100)
        nb.until(1, "1 0 first_token [] False on ''")
        tab.wait_for_timeout(1500)
        nb.picture("attention-light", 0)

        before = nb.drawn(grid), nb.drawn(large)
        tab.locator(".workbench-panel select:visible").first.select_option(label="Attention to the previous token")
        nb.drawn(grid, before[0])
        tab.locator(grid).click(position=head_place(tab, 0, 3))
        nb.drawn(large, before[1])
        nb.until(1, "0 3 previous [] False on ''")

        # keyboard: right stays at the last head, left moves, Enter shows it, o switches it off
        tab.locator(grid).click(position=head_place(tab, 0, 1))
        for key in ("ArrowLeft", "Enter", "o"):
            tab.keyboard.press(key)
        nb.until(1, "0 0 previous [[0, 0]] False on ''")
        tab.locator(grid).click(position=head_place(tab, 0, 3), modifiers=["Shift"])
        nb.until(1, "0 0 previous [[0, 0], [0, 3]] False on ''")
        nb.picture("attention-off-light", 0)

        strip = tab.locator(".workbench-tokens button")
        plain = strip.nth(2).evaluate("b => b.style.background")
        strip.nth(9).hover()
        tab.wait_for_function(
            "(old) => document.querySelectorAll('.workbench-tokens button')[8].style.background !== old",
            arg=plain,
            timeout=10_000,
        )

        tab.locator("button:visible", has_text="Measure").first.click()
        tab.wait_for_selector("text=/2 replaced by hooks that fired in 1 layer/", timeout=60_000)
        tab.wait_for_selector(".js-plotly-plot", timeout=30_000)
        nb.until(1, "0 0 previous [[0, 0], [0, 3]] True on ''")
        old = nb.drawn(grid)
        tab.locator(".workbench-panel select:visible").nth(1).select_option(label="the run with 2 heads off")
        nb.drawn(grid, old)
        nb.tab.wait_for_timeout(1500)
        nb.picture("attention-measured-light", 0)
        nb.save_with_picture()
        nb.quiet()
    lab.stop_kernels()
    with notebook(lab, "attention") as nb:
        nb.tab.wait_for_selector("text=/Attention .static view./", timeout=30_000)
        nb.tab.wait_for_function(
            "() => [...document.querySelectorAll('.jp-OutputArea img')].some(i => i.naturalWidth > 500)", timeout=20_000
        )
        nb.tab.wait_for_timeout(500)
        nb.picture("attention-reopened")


def test_twelve_by_twelve_heads_at_64_tokens_are_painted_in_time(lab):
    """From the click on Run to the picture, with the forward and the transfer in between; the best of three, as
    others may use the machine.
    """
    lab.write(
        "large",
        [
            LARGE,
            SIZES,
            "panel.state.prompt = ' '.join(reversed(panel.state.prompt.split()))",
            "panel.state.prompt = ' '.join(sorted(panel.state.prompt.split()))",
        ],
    )
    with notebook(lab, "large") as nb:
        nb.run(0)
        nb.tab.wait_for_selector("button:has-text('Run')", timeout=60_000)
        took = [nb.tab.evaluate(PAINTED)]
        nb.run(1)
        assert nb.output(1).inner_text().split() == ["64", str(144 * 64 * 64), str(144 * 4)]
        nb.picture("attention-12x12", 0)
        for cell in (2, 3):
            nb.run(cell)
            took.append(nb.tab.evaluate(PAINTED))
        print("ms to paint after Run:", ", ".join(f"{t:.0f}" for t in took))
        assert min(took) < 1500
        nb.quiet()


def test_the_dark_theme(lab):
    lab.write("dark", [OPEN])
    with notebook(lab, "dark", dark=True) as nb:
        nb.run(0)
        nb.tab.locator("button:visible", has_text="Run").first.click()
        nb.drawn(".workbench-headgrid canvas", height=100)
        nb.tab.wait_for_timeout(1500)
        nb.picture("attention-dark", 0)
        nb.quiet()
