"""How notebooks run as tests (nbval, lax): offline and small; a raised cell skips the rest; `timeout=N` tags; html
not compared.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WORKBENCH_SCALE", "tiny")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

import pytest

NOT_COMPARED = ("text/html", "image/svg+xml", "application/javascript", "application/vnd.plotly.v1+json")
_raised: set[str] = set()


def _is_cell(item) -> bool:
    return type(item).__name__ == "IPyNbCell"


def pytest_collectstart(collector):
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += NOT_COMPARED


def pytest_runtest_setup(item):
    if not _is_cell(item):
        return
    if item.parent.nodeid in _raised:
        pytest.skip("an earlier cell of this notebook raised; mend that one first")
    item.output_timeout = 60  # nbval waits 5 s for each output message otherwise (its issue 231)
    option = item.config.option
    default = getattr(item.config, "_workbench_cell_timeout", option.nbval_cell_timeout)
    item.config._workbench_cell_timeout = default
    own = [
        float(tag.removeprefix("timeout=")) for tag in item.cell.metadata.get("tags", []) if tag.startswith("timeout=")
    ]
    option.nbval_cell_timeout = own[0] if own else default


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if _is_cell(item) and report.when == "call" and report.failed and "exception" in str(call.excinfo.value):
        _raised.add(item.parent.nodeid)
    return report
