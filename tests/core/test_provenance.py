"""Provenance survives JSON, names no path in a caption, and records the commit of this project's checkout only."""

import json
import os
import re
import subprocess
import time

import pytest

from workbench.core import provenance as module
from workbench.core.provenance import PACKAGES, Provenance, git_state, versions

FULL = {
    "spec": {"model": {"name": "/home/ann/models/mine"}, "seed": 3, "layers": [0, 1]},
    "model": {
        "name": "mine",
        "weights": "0123456789abcdef",
        "dtype": "float32",
        "device": "cpu",
        "source": "/home/ann/models/mine",
    },
    "data": {"file": "/home/ann/texts.txt"},
}


def test_a_round_trip_through_json_gives_the_same():
    whole = Provenance.start("attention_sinks", FULL["spec"], 3, model=FULL["model"], data=FULL["data"]).finish(
        time.monotonic()
    )
    assert Provenance.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_short_names_what_made_the_number_and_no_path():
    started = "2026-01-02T03:04:05+00:00"
    short = Provenance(
        "attention_sinks",
        seed=3,
        git={"commit": "f" * 40, "dirty": True},
        started=started,
        machine={"system": "Linux"},
        **FULL,
    ).short()
    assert short == "attention_sinks · mine · 01234567 · float32 · cpu · seed 3 · ffffffff+changes · 2026-01-02"
    assert "/" not in short and "ann" not in short


@pytest.mark.parametrize("model", [{}, {"weights": None}])
def test_short_of_a_bare_provenance_says_what_is_missing(model):
    assert Provenance("x", {}, 0, model=model).short() == "x · no model · seed 0 · no git"


def test_finish_adds_the_seconds_and_late_fields_to_a_copy():
    begun = Provenance.start("x", {}, 0)
    done = begun.finish(time.monotonic() - 5, model={"name": "m"})
    assert 5 <= done.seconds < 60 and done.model == {"name": "m"}
    assert begun.seconds == 0 and begun.model == {} and done.started == begun.started


def test_start_records_versions_machine_and_utc_time():
    begun = Provenance.start("x", {}, 0)
    assert set(begun.versions) == set(PACKAGES) and begun.versions["circuit-workbench"] != "not installed"
    assert set(begun.machine) == {"python", "system", "processor"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", begun.started)


def test_a_package_that_is_not_there_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package-here"))
    assert (
        versions() == {"numpy": versions()["numpy"], "no-such-package-here": "not installed"}
        and versions()["numpy"][0].isdigit()
    )


@pytest.mark.parametrize(("porcelain", "dirty"), [("", False), (" M README.md\n", True)])
def test_git_state_is_commit_and_dirty_flag(monkeypatch, porcelain, dirty):
    here = str(module.Path(module.__file__).parents[2])

    def run(command, **kwargs):
        answers = {"HEAD": "a" * 40 + "\n", "--porcelain": porcelain, "--show-toplevel": here + "\n"}
        return subprocess.CompletedProcess(command, 0, answers.get(command[-1], ""), "")

    monkeypatch.setattr(module.subprocess, "run", run)
    assert git_state.__wrapped__() == {"commit": "a" * 40, "dirty": dirty}


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git"), subprocess.TimeoutExpired("git", 10)],
    ids=["no git", "no checkout", "too slow"],
)
def test_git_state_is_empty_where_git_cannot_answer(monkeypatch, error):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(module.subprocess, "run", run)
    assert git_state.__wrapped__() == {}


def test_an_install_inside_somebody_elses_checkout_takes_no_commit_from_it(tmp_path, monkeypatch):
    for name in [
        n for n in os.environ if n.startswith("GIT_")
    ]:  # a commit hook sets some, and git below must not write to its repository
        monkeypatch.delenv(name)

    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    installed = tmp_path / ".venv" / "site-packages" / "workbench" / "core" / "provenance.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(module, "__file__", str(installed))
    assert git_state.__wrapped__() == {}
