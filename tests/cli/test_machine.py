"""The commands on this machine: what doctor finds; who gets into the server of lab, and what ends with it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from cli_runner import workbench


def test_doctor_sees_this_machine():
    code, text, _ = workbench("doctor")
    assert code == 0 and "all within the pins" in text and "offline by HF_HUB_OFFLINE" in text


def test_root_and_a_port_in_use_are_one_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, _, said = workbench("lab", "--no-browser")
    assert code == 2 and "this is the root user" in said and "--allow-root" in said
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, said = workbench("lab", "--no-browser", "--port", str(port))
    assert code == 2 and f"port {port} is in use" in said


def answer(url: str, token: str = "", data: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of one request; status 0 where nobody listens yet."""
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as refused:
        return refused.code, b""
    except urllib.error.URLError:
        return 0, b""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_lab_keeps_its_token_whatever_the_settings_say_and_takes_its_kernels_with_it(tmp_path):
    """A user's configuration switches the token off and the environment gives one: neither opens this server."""
    (tmp_path / "jupyter_server_config.py").write_text("c.IdentityProvider.token = ''\nc.ServerApp.ip = '0.0.0.0'\n")
    about = {"JUPYTER_TOKEN": "known", "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "r")}
    command = [sys.executable, "-m", "workbench.cli", "lab", "--no-browser", "--allow-root"]
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=os.environ | about, stdout=out, stderr=out)
    try:
        until, found = time.monotonic() + 90, None
        while found is None and time.monotonic() < until and server.poll() is None:
            time.sleep(0.5)
            found = re.search(r"(http://127\.0\.0\.1:\d+/)lab\?token=([0-9a-f]{48})", log.read_text())
        assert found, log.read_text()[-2000:]
        url, token = found[1], found[2]
        while answer(url)[0] == 0 and time.monotonic() < until:
            time.sleep(0.5)
        assert answer(f"{url}api/contents")[0] == 403 and answer(f"{url}api/contents", "known")[0] == 403
        assert answer(f"{url}api/contents", token)[0] == 200
        assert token not in " ".join(psutil.Process(server.pid).cmdline())
        kinds = {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN}
        assert kinds <= {"127.0.0.1", "::1"}
        status, body = answer(f"{url}api/kernels", token, json.dumps({"name": "python3"}).encode())
        assert status == 201, body
        kernels = psutil.Process(server.pid).children(recursive=True)
        assert kernels
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        _, alive = psutil.wait_procs(kernels, timeout=30)
        assert not alive
    finally:
        if server.poll() is None:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.kill()
            server.kill()
