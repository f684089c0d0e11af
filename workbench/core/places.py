"""Where files live: what ships with the project (`data/`), and what is built on first use (the user's cache)."""

import os
from pathlib import Path

from .errors import BadSpec, ModelNotFound, UnknownName


def data_folder() -> Path:
    """The project's `data/`; WORKBENCH_DATA overrides it (a wheel has none: install with `pip install -e .`)."""
    return Path(os.environ.get("WORKBENCH_DATA") or Path(__file__).parents[2] / "data")


def cache_folder() -> Path:
    """What is built on this machine; WORKBENCH_CACHE overrides the default under the user's cache directory.

    Raises:
        BadSpec: if neither is known, as for an account without a home.
    """
    if own := os.environ.get("WORKBENCH_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"
    except RuntimeError:
        raise BadSpec("this account has no home folder to keep files in; set WORKBENCH_CACHE to a folder") from None


def organism_folders() -> dict[str, Path]:
    """Organisms that are here, by name; one built into the cache stands in for one that does not ship."""
    found = {}
    for root in (cache_folder() / "organisms", data_folder() / "organisms"):
        if root.is_dir():
            found |= {p.name: p for p in sorted(root.iterdir()) if (p / "config.json").is_file()}
    return found


def organism_folder(name: str) -> Path:
    """The folder of an organism.

    Raises:
        UnknownName: with the closest names that are here.
        ModelNotFound: if no organism is here at all, which means the data did not come along.
    """
    have = organism_folders()
    if not have:
        raise ModelNotFound(
            f"no organisms found beside the package, so organism:{name} cannot be loaded; "
            "install from a checkout with `pip install -e .`, or point WORKBENCH_DATA at its data folder"
        )
    if name not in have:
        raise UnknownName.among(
            "organism", name, have, "`workbench organisms list` shows all, `workbench organisms build NAME` makes one."
        )
    return have[name]
