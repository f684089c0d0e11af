"""A real JupyterLab for tests: started on loopback with a token, driven by Chromium, with everything it asks for
written down.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from browser import page, require_browser

TOKEN = "test-token"
PICTURES = os.environ.get("WORKBENCH_PICTURES")  # a folder: screenshots are kept there
PATIENCE = 90_000  # ms to wait for what a person would wait for: the machine may be busy
FINGERPRINT = """([selector, height]) => {  // a number that another picture would not have; 0 while there is none
    const c = document.querySelector(selector);
    if (!c || c.height <= height || c.width < 2) return 0;
    const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007;
    return 1 + sum;
}"""  # noqa: E501


@dataclass
class Lab:
    """A running server. root: its folder of notebooks."""

    port: int
    root: Path

    def write(self, name: str, cells: Sequence[str]) -> None:
        """A notebook of code cells without outputs."""
        listed = [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": s.strip(),
            }
            for i, s in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (self.root / f"{name}.ipynb").write_text(
            json.dumps({"cells": listed, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
        )

    def stop_kernels(self) -> None:
        """End every session, so that a notebook opened next finds a kernel that knows none of its widgets."""
        for session in json.load(self._ask("api/sessions")):
            self._ask(f"api/sessions/{session['id']}", "DELETE")

    def _ask(self, path: str, method: str = "GET") -> object:
        return urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}?token={TOKEN}", method=method), timeout=20
        )

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}.ipynb?token={TOKEN}&reset"


@contextlib.contextmanager
def running_lab(root: Path) -> Iterator[Lab]:
    """JupyterLab in `root`; it and its kernels end with the block."""
    require_browser()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--notebook-dir={root}",
        f"--IdentityProvider.token={TOKEN}",
        "--allow-root",
    ]
    command += ["--LabApp.expose_app_in_browser=True"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(root / ".config"),
        "JUPYTER_DATA_DIR": str(root / ".data"),
        "WORKBENCH_CACHE": str(root / ".cache"),
    }
    quiet = (
        root
        / ".config"
        / "lab"
        / "user-settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = root / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            for _ in range(480):
                assert server.poll() is None, log.read_text()[-2000:]
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=2)
                    break
                time.sleep(0.25)
            else:
                raise AssertionError(log.read_text()[-2000:])
            yield Lab(port, root)
        finally:
            server.terminate()
            server.wait(20)


@dataclass
class Notebook:
    """A notebook open in the browser, its cells, and what went wrong. errors: console errors. outside: requests that
    left this machine.
    """

    tab: object
    file: Path
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def run(self, cell: int, timeout: float = 120) -> None:
        """Run one cell (numbered from 0) and wait until it has finished; an error output fails the test."""
        self.tab.locator(".jp-CodeCell").nth(cell).locator(".cm-content").click()
        self.tab.keyboard.press("Shift+Enter")
        prompt = self.tab.locator(".jp-CodeCell").nth(cell).locator(".jp-InputPrompt")
        deadline = time.monotonic() + timeout
        while not prompt.inner_text().strip(" []:").isdigit():
            assert time.monotonic() < deadline, f"cell {cell} did not finish in {timeout} s"
            self.tab.wait_for_timeout(100)
        failed = (
            self.tab.locator(".jp-CodeCell")
            .nth(cell)
            .locator(
                ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'],"
                " .jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
            )
        )
        assert failed.count() == 0, failed.first.inner_text()[-1500:]

    def output(self, cell: int) -> object:
        """Locator of a cell's outputs."""
        return self.tab.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-child").first

    def printed(self, cell: int) -> str:
        """Run a cell that prints, and read it."""
        self.run(cell)
        return self.tab.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output").first.inner_text().strip()

    def until(self, cell: int, expected: str) -> None:
        """Run the cell that prints the kernel's state until it says what it should."""
        for _ in range(80):
            found = self.printed(cell)
            if found == expected:
                return
            self.tab.wait_for_timeout(400)
        raise AssertionError(f"{found!r} is not {expected!r}")

    def press(self, words: str, number: int = 0) -> None:
        """Press a button of a panel, the `number`-th that shows these words."""
        self.tab.locator(".workbench-panel button:visible", has_text=words).nth(number).click()

    def set_slider(self, number: int, value: str) -> None:
        """Type a value into the readout of a panel's slider."""
        self.tab.locator(".workbench-panel .widget-slider:visible .widget-readout").nth(number).click()
        self.tab.keyboard.press("Control+a")
        self.tab.keyboard.type(value)
        self.tab.keyboard.press("Enter")

    def keys(self, selector: str, *names: str) -> None:
        """Press keys on the first element that matches."""
        self.tab.locator(selector).first.focus()
        for name in names:
            self.tab.keyboard.press(name)

    def drawn(self, canvas: str, old: int = 0, height: int = 60) -> int:
        """The fingerprint of a canvas (a CSS selector) once it is drawn, higher than `height`, and other than `old`."""
        self.tab.wait_for_function(
            f"([c, h, old]) => ![0, old].includes(({FINGERPRINT})([c, h]))", arg=[canvas, height, old], timeout=PATIENCE
        )
        return self.tab.evaluate(FINGERPRINT, [canvas, height])

    def theme(self, dark: bool) -> None:
        self.tab.evaluate(
            "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab"
            f" {'Dark' if dark else 'Light'}'}})"
        )
        self.tab.wait_for_selector(
            f"body[data-jp-theme-light='{'false' if dark else 'true'}']", state="attached", timeout=60_000
        )

    def save(self) -> None:
        self.tab.keyboard.press("Escape")
        self.tab.keyboard.press("Control+s")
        self.tab.wait_for_timeout(1500)
        assert self.file.stat().st_size < 1_000_000, "panels must leave a notebook small"

    def save_with_picture(self) -> None:
        """Save until the static view of a panel is in the file: it is drawn once nothing has changed for a moment,
        by a browser of its own.
        """
        for _ in range(40):
            self.save()
            saved = self.file.read_text()
            if "image/png" in saved and "(static view)" in saved:
                return
        raise AssertionError(f"{self.file.name} was saved without the picture of its panel")

    def picture(self, name: str, cell: int | None = None) -> None:
        """A screenshot of the page or of one cell's live output, kept only where WORKBENCH_PICTURES names a folder."""
        if PICTURES:
            target = self.tab if cell is None else self.output(cell)
            target.screenshot(path=str(Path(PICTURES) / f"{name}.png"))

    def quiet(self) -> None:
        """Fails if the console showed an error, a request left the machine, or a widget could not be shown."""
        assert self.errors == []
        assert self.outside == []
        assert self.tab.locator("text=/Error displaying widget|Error creating widget|Traceback/").count() == 0


@contextlib.contextmanager
def notebook(lab: Lab, name: str, *, dark: bool = False, size: tuple[int, int] = (1400, 1800)) -> Iterator[Notebook]:
    """Open a notebook of the lab in a real browser, kernel idle."""
    with page(color_scheme="dark" if dark else "light") as tab:
        found = Notebook(tab, lab.root / f"{name}.ipynb")
        tab.on(
            "console", lambda m: found.errors.append(m.text) if m.type == "error" and not _harmless(m.text) else None
        )
        tab.on("pageerror", lambda e: found.errors.append(str(e)))
        tab.on(
            "request",
            lambda r: (
                found.outside.append(r.url)
                if not r.url.startswith(
                    (f"http://127.0.0.1:{lab.port}", f"ws://127.0.0.1:{lab.port}", "data:", "blob:")
                )
                else None
            ),
        )
        tab.set_viewport_size({"width": size[0], "height": size[1]})
        tab.goto(lab.url(name))
        tab.wait_for_selector("text=/\\| Idle/", timeout=120_000)
        # The lab keeps its theme from one notebook to the next, so it is set for the light ones too.
        found.theme(dark)
        yield found


def _harmless(text: str) -> bool:
    """What a plain JupyterLab says in an empty folder, with no panel in sight."""
    return any(known in text for known in ("404 (Not Found)", "favicon", "workspaces", "ResizeObserver loop"))
