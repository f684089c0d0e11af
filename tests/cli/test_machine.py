"""The commands on this machine: what doctor finds, how lab starts JupyterLab."""

import os

from cli_runner import workbench


def test_doctor_sees_this_machine():
    code, text, _ = workbench("doctor")
    assert code == 0 and "all within the pins" in text and "offline by HF_HUB_OFFLINE" in text


def test_lab_listens_on_loopback_with_a_token(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda program, command: called.append(command))
    assert workbench("lab", "--no-browser")[0] == 0
    assert "--ip=127.0.0.1" in called[0] and not any("token" in part and part.endswith("=") for part in called[0])
