"""Figure bundles: a figure in every format a review needs, the numbers it draws, and where they came from.

    <out>/<name>/figure.png .svg .pdf .html, data.csv, data.parquet, provenance.json

The numbers are read back from the figure (views/drawn_data), so they are the drawn ones. `reproduce` runs the analysis
again from provenance.json and says whether the numbers are the same, or by how much they differ.
Cost: about half a second a figure after the browser's first two seconds; without a browser everything but the pictures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core import files
from workbench.core.errors import BrokenResult, WorkbenchError
from workbench.core.progress import SILENT, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views.drawn_data import drawn_data

from .images import pictures
from .page import write_figure

FORMATS = ("png", "svg", "pdf")
RESULT_FILES = ("data.csv", "data.parquet", "figure.html", "provenance.json")


def write_bundles(figures: dict[str, go.Figure], result: Result, folder: Path | str) -> tuple[list[Path], str]:
    """One bundle per figure.

    Args:
        figures: {name: Figure}, drawn from `result`. folder: bundles become its sub-folders.

    Returns:
        The bundles, and a sentence saying which pictures are missing and why, empty if none.
    """
    folder, problems, written = Path(folder), [], []
    drawn, problem = pictures(figures, FORMATS)
    if problem:
        problems.append(problem)
    for name, figure in figures.items():
        with files.new_folder(folder / name, ("provenance.json", "data.*", "figure.*")) as new:
            data = drawn_data(figure)
            data.to_csv(new / "data.csv", index=False)
            _plain_columns(data).to_parquet(new / "data.parquet", index=False)
            write_figure(new / "figure.html", name, figure)
            for form in FORMATS:
                if (name, form) in drawn:
                    (new / f"figure.{form}").write_bytes(drawn[name, form])
            about = {
                "figure": name,
                "command": f"workbench reproduce {name}",
                "caption": result.provenance.short(),
                "partial": result.partial,
            }
            about |= {"sha256": files.sha256(new / "data.csv"), "provenance": result.provenance.to_dict()}
            files.write_text(new / "provenance.json", json.dumps(about, indent=1))
        written.append(folder / name)
    return written, "; ".join(problems)


def _plain_columns(data: pd.DataFrame) -> pd.DataFrame:
    """Columns that mix numbers and words as words: parquet has one type a column."""
    return data.assign(
        **{str(c): data[c].map(lambda v: v if v is None else str(v)) for c in data.columns if data[c].dtype == object}
    )


@dataclass(frozen=True)
class Reproduction:
    """What came out of running a bundle's analysis again.

    largest: the largest |difference| between drawn numbers, nan if the shapes differ. moved: rows that differ at all.
    notes: what else is not as it was: other versions, weights, commit.
    """

    figure: str
    n_rows: int
    largest: float
    moved: int
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        return self.largest == 0 and self.moved == 0

    def __str__(self) -> str:
        if self.same:
            verdict = f"same: all {self.n_rows} drawn rows are equal to the last bit"
        elif np.isnan(self.largest):
            verdict = "different: other traces, places or words are drawn than before"
        else:
            verdict = f"differs: {self.moved} of {self.n_rows} drawn rows, by at most {self.largest:.3g}"
        return "\n".join([f"{self.figure}: {verdict}", *(f"  {note}" for note in self.notes)])


def reproduce(
    bundle: Path | str,
    run: Callable[[str, dict[str, Any], Progress], tuple[Result, dict[str, go.Figure]]],
    progress: Progress = SILENT,
) -> Reproduction:
    """Run the analysis of a bundle again and compare what its figure draws.

    Args:
        run: (stem, spec as JSON, progress) -> the Result and its figures.

    Raises:
        BrokenResult: if the folder is no bundle, or its numbers are not those that were written. WorkbenchError: if the
            analysis no longer draws a figure of that name.
    """
    about, before = _read(Path(bundle))
    old = Provenance.from_dict(about["provenance"])
    result, figures = run(old.stem, old.spec, progress)
    if about["figure"] not in figures:
        raise WorkbenchError(f"{old.stem} draws no figure {about['figure']!r} any more; it draws {', '.join(figures)}")
    now = pd.read_csv(_as_csv(drawn_data(figures[about["figure"]])))
    largest, moved = _difference(before, now)
    new = result.provenance
    notes = [
        f"{name} was {was}, is {new.versions.get(name)}"
        for name, was in old.versions.items()
        if new.versions.get(name) != was
    ]
    if old.model.get("weights") != new.model.get("weights"):
        notes.append(
            f"the model's weights were {str(old.model.get('weights'))[:12]}, are {str(new.model.get('weights'))[:12]}"
        )
    if old.git.get("commit") != new.git.get("commit") or old.git.get("dirty"):
        notes.append(
            "written at commit"
            f" {str(old.git.get('commit') or 'unknown')[:8]}{' with changes' if old.git.get('dirty') else ''}, run at"
            f" {str(new.git.get('commit') or 'unknown')[:8]}"
        )
    return Reproduction(about["figure"], len(before), largest, moved, tuple(notes))


def _read(bundle: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        about = json.loads((bundle / "provenance.json").read_text(encoding="utf-8"))
        wanted = {"figure", "provenance", "sha256"} - set(about)
    except (OSError, ValueError, TypeError):
        raise BrokenResult(
            f"{bundle.name} holds no readable provenance.json; a figure bundle is a folder with"
            f" {', '.join(RESULT_FILES)}"
        ) from None
    if wanted or not (bundle / "data.csv").is_file():
        raise BrokenResult(f"{bundle.name} lacks {', '.join(sorted(wanted)) or 'data.csv'}; write the bundle again")
    if files.sha256(bundle / "data.csv") != about["sha256"]:
        raise BrokenResult(
            f"data.csv in {bundle.name} is not what was written (checksum differs); write the bundle again"
        )
    return about, pd.read_csv(bundle / "data.csv")


def _as_csv(data: pd.DataFrame) -> Any:
    import io

    return io.StringIO(
        data.to_csv(index=False)
    )  # both sides go through the same file format, or rounding would look like a difference


def _difference(before: pd.DataFrame, now: pd.DataFrame) -> tuple[float, int]:
    """Largest difference of numbers and how many rows differ; nan where rows, columns or words do not correspond."""
    if len(before) != len(now) or list(before.columns) != list(now.columns):
        return float("nan"), max(len(before), len(now))
    moved, largest = np.zeros(len(before), bool), 0.0
    for column in before.columns:
        a, b = before[column], now[column]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            gap = (a.astype(float) - b.astype(float)).abs().to_numpy()
            gap = np.where(a.isna() & b.isna(), 0.0, gap)
            if np.isnan(gap).any():
                return float("nan"), int(np.isnan(gap).sum())
            moved |= gap > 0
            largest = max(largest, float(gap.max(initial=0.0)))
        elif (other := ~((a == b) | (a.isna() & b.isna()))).any():
            return float("nan"), int(other.sum())
    return largest, int(moved.sum())
