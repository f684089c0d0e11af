"""Models and tokens that tests of attribution and of path patching share."""

import pytest
import torch
from models.families import scaled_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """family -> a random model with large weights."""
    return scaled_models(tmp_path_factory)


@pytest.fixture
def pair():
    """Two sets of [3, 7] token ids."""
    torch.manual_seed(1)
    return torch.randint(2, 60, (3, 7)), torch.randint(2, 60, (3, 7))
