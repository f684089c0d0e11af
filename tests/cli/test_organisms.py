"""The commands on organisms as a user meets them."""

from types import SimpleNamespace

import pytest
from cli_runner import workbench

from workbench.organisms import registry


def test_organisms_list_and_verify():
    assert "ships" in workbench("organisms", "list")[1]
    code, text, _ = workbench("organisms", "verify", "attention-sink")
    assert code == 0 and "2 of 2 claims hold" in text


@pytest.mark.parametrize("place", ["a folder with other work", "a folder that cannot be written"])
def test_build_refuses_a_place_before_it_trains(tmp_path, monkeypatch, place):
    monkeypatch.setattr(registry, "organism", lambda name: SimpleNamespace(make=lambda _: pytest.fail("it trained")))
    (tmp_path / "thesis.tex").write_text("years")
    out = tmp_path if place == "a folder with other work" else tmp_path / "thesis.tex" / "o"
    code, _, errors = workbench("organisms", "build", "attention-sink", "--out", str(out))
    assert (code, errors.count("\n")) == (2, 1) and ("holds thesis.tex" in errors or "cannot be written" in errors)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"] and (tmp_path / "thesis.tex").read_text() == "years"
