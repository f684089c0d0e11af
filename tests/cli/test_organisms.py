"""The commands on organisms as a user meets them."""

from cli_runner import workbench


def test_organisms_list_and_verify():
    assert "ships" in workbench("organisms", "list")[1]
    code, text, _ = workbench("organisms", "verify", "attention-sink")
    assert code == 0 and "2 of 2 claims hold" in text
