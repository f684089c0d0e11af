"""A JupyterLab in an empty folder, for the tests of one file."""

import pytest
from lab import running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found
