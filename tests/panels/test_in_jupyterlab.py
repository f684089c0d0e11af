"""One real JupyterLab in a real browser, offline: the panels appear, a click runs the method, a slider redraws."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import page, require_browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELL = """
import workbench as wb
wb.start()
from workbench.panels.run import RunPanel
from workbench.panels.heads import HeadsPanel
sinks = wb.method("attention_sinks")
spec = sinks.Spec.tiny().replace(n_inputs=10, scores=("awft", "ahon_ln"), n_random=1, controls=False, length=48)
panel = RunPanel(sinks, spec=spec, only=("n_inputs", "seed", "task"))
panel
"""
SECOND = "HeadsPanel(panel.wait(120))"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on loopback with a token, in an empty folder with one notebook."""
    require_browser()
    root = tmp_path_factory.mktemp("lab")
    cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": s.strip()} for i, s in enumerate((CELL, SECOND))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "panels.ipynb").write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--notebook-dir={root}", "--IdentityProvider.token=test-token", "--allow-root"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JUPYTER_CONFIG_DIR": str(root / "config"), "JUPYTER_DATA_DIR": str(root / "data")}
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/api?token=test-token", server, root / "server.log")
            yield f"http://127.0.0.1:{port}/lab/tree/panels.ipynb?token=test-token"
        finally:
            server.terminate()
            server.wait(20)


def _wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(log.read_text()[-2000:])


def test_panels_work_in_jupyterlab(lab, tmp_path):
    pictures = Path(os.environ.get("WORKBENCH_PICTURES") or tmp_path)
    with page() as tab:
        tab.set_viewport_size({"width": 1400, "height": 1800})
        tab.goto(lab)
        tab.wait_for_selector("text=/\\| Idle/", timeout=120_000)
        tab.locator(".jp-CodeCell").first.click()
        tab.keyboard.press("Shift+Enter")
        run = tab.locator("button:has-text('Run')").locator("visible=true").filter(has_text=re.compile("^Run$"))
        run.wait_for(timeout=120_000)
        run.click()
        tab.wait_for_selector("text=claims hold", timeout=120_000)
        assert tab.locator(".js-plotly-plot").count() >= 1
        tab.locator(".jp-CodeCell").nth(1).click()
        tab.keyboard.press("Shift+Enter")
        says = tab.locator("text=/heads are off/")
        says.wait_for(timeout=60_000)
        before = says.inner_text()
        tab.locator("select").filter(has_text="First-token weight").last.select_option(label="First-token weight")
        tab.wait_for_function("before => ![...document.querySelectorAll('p')].some(p => p.innerText === before)", arg=before, timeout=30_000)
        tab.screenshot(path=str(pictures / "panels.png"))
        assert tab.locator("text=/Traceback|Error displaying widget/").count() == 0
