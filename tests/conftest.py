"""Shared by all tests: offline, one thread a worker, quiet, and small random models of several families on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """{family: directory} of random two-layer models saved with save_pretrained, some with the organisms' tokenizer."""
    from models.families import save_all

    return save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def organism():
    """The attention-sink organism, loaded once."""
    from workbench.models import load

    return load("organism:attention-sink")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab in an empty folder, for the tests of one file."""
    from lab import running_lab

    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found
