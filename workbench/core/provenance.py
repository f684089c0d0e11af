"""Provenance: what a number came from, so that a reviewer can trace it and a colleague can make it again.

Versions are read from package metadata without importing the packages; the git state is that of the project's checkout.
"""

import dataclasses
import functools
import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

PACKAGES = ("circuit-workbench", "torch", "transformer-lens", "transformers", "numpy", "xarray", "pandas", "plotly")


@dataclass(frozen=True)
class Provenance:
    """Where a Result came from. `model` and `data` are plain dicts made by whoever loaded them."""

    stem: str
    spec: dict[str, Any]
    seed: int
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0

    @classmethod
    def start(cls, stem: str, spec: dict[str, Any], seed: int, **known: Any) -> "Provenance":
        """Record everything known before the run; `finish` adds the time taken."""
        machine = {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(stem, spec, seed, versions=versions(), machine=machine, git=git_state(), started=now, **known)

    def finish(self, since: float, **more: Any) -> "Provenance":
        """A copy with `seconds` since `since` (a time.monotonic() reading) and any late fields."""
        return dataclasses.replace(self, seconds=round(time.monotonic() - since, 3), **more)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data)

    def short(self) -> str:
        """One line for a figure's caption, a long model name cut so that it fits; no path of this machine in it."""
        model = self.model
        name = model.get("name", "no model")
        commit = (self.git.get("commit") or "no git")[:8] + ("+changes" if self.git.get("dirty") else "")
        parts = [
            self.stem,
            name if len(name) <= 60 else f"{name[:57]}...",
            (model.get("weights") or "")[:8],
            model.get("dtype", ""),
        ]
        return " · ".join(
            p for p in [*parts, model.get("device", ""), f"seed {self.seed}", commit, self.started[:10]] if p
        )


def versions() -> dict[str, str]:
    """{package: installed version} of PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout this package runs from; empty when this file is not tracked (an installed
    copy inside somebody else's checkout says nothing about us) or git is missing."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}
