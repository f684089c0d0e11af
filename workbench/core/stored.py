"""Runs that ship with the project: loaded with their provenance, always called stored, never shown as if just computed.

A method whose full size takes too long for a notebook keeps its Result in `data/<stem>/runs`; `Spec.tiny()` puts it beside what
is run at once. Cost: reading the files.
"""

from typing import Any

from .errors import ModelNotFound
from .places import data_folder
from .result import Result

STORED = "stored"  # the origin of such runs, beside the one a method gives to its own


def load_runs(stem: str) -> Result:
    """The Result that ships for a paper.

    Raises:
        ModelNotFound: if it is not here. BrokenResult: if a file changed.
    """
    folder = data_folder() / stem / "runs"
    if not folder.is_dir():
        raise ModelNotFound("the stored runs are not beside the package; install from a checkout with `pip install -e .`, or run with stored=False")
    return Result.load(folder)


def told(stored: Result) -> dict[str, Any]:
    """What the provenance of a Result says of the stored runs in it."""
    p = stored.provenance
    return {"started": p.started, "git": p.git, "versions": p.versions, "machine": p.machine, "seconds": p.seconds, "spec": p.spec, "n_runs": stored.data.sizes["run"]}


def sentence(about: dict[str, Any], n_runs: int) -> str:
    """The warning that a Result with stored runs carries. about: of `told`. n_runs: all runs of the Result."""
    commit = (about["git"].get("commit") or "no commit")[:8]
    return (
        f"{about['n_runs']} of {n_runs} runs are stored: made {about['started'][:10]} at {commit}, {about['seconds'] / 60:.0f} minutes; "
        "lines that say 'stored' are measured on them"
    )
