"""Runs that ship with the project: loaded with their provenance, always called stored, never shown as if just computed.

A method whose full size takes too long for a notebook keeps its Result in `data/<stem>/runs`; `Spec.tiny()` puts it
beside what is run at once. Cost: reading the files.
"""

from typing import Any

from workbench.core.errors import BadData, ModelNotFound
from workbench.core.places import data_folder
from workbench.core.result import Result

HERE, STORED = "run here", "stored"  # the two values of the column and coordinate `origin`


def load_runs(stem: str, *, weights: str | None = None) -> Result:
    """The Result that ships for a paper, every run and row of it marked as stored.

    Args:
        stem: of the paper. weights: hash of the weights that the runs must be of; not asked if not given.

    Raises:
        ModelNotFound: if it is not here. BrokenResult: if a file changed. BadData: if it is of other weights.
    """
    folder = data_folder() / stem / "runs"
    if not folder.is_dir():
        raise ModelNotFound(
            "the stored runs are not beside the package; install from a checkout with `pip install -e .`, or run with"
            " stored=False"
        )
    kept = Result.load(folder)
    if weights is not None and kept.provenance.model.get("weights") != weights:
        raise BadData(
            f"the stored runs are of other weights than this model's, of {kept.provenance.model.get('name')}; run with"
            " stored=False"
        )
    data = kept.data
    if "run" in data.dims:
        data = data.assign_coords(origin=("run", [STORED] * data.sizes["run"]))
    tables = {name: table.assign(origin=STORED) if "origin" in table else table for name, table in kept.tables.items()}
    return Result(kept.provenance, data, tables, kept.partial, kept.warnings)


def told(stored: Result) -> dict[str, Any]:
    """Summary of the stored runs, kept in the provenance of the new Result."""
    p = stored.provenance
    about = {name: getattr(p, name) for name in ("started", "git", "versions", "machine", "seconds", "spec")}
    return about | {"n_runs": stored.data.sizes["run"]}


def sentence(about: dict[str, Any], n_runs: int) -> str:
    """The warning that a Result with stored runs carries. about: of `told`. n_runs: all runs of the Result."""
    commit = (about["git"].get("commit") or "no commit")[:8]
    made = f"made {about['started'][:10]} at {commit}, {about['seconds'] / 60:.0f} minutes"
    return f"{about['n_runs']} of {n_runs} runs are stored: {made}; claims are measured on them"
