"""Result: what a run returns - labelled arrays and tables with their provenance - and its folder on disk.

A folder holds `data.nc` (netCDF-4 through h5netcdf), `tables/NAME.parquet` and `result.json` with provenance, warnings
and the checksum of every other file. It is written under a temporary name and renamed, so it is whole or not there.
Cost: one copy of the arrays on disk; `load` reads all of it into memory.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import xarray as xr

from . import files
from .errors import BrokenResult
from .provenance import Provenance

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Result:
    """Arrays in `data` (named dims, coords, `unit` and `long_name` in attrs), ragged rows in `tables`.

    `partial` is True when the run was cancelled; `warnings` are sentences a reader of the numbers must see.
    """

    provenance: Provenance
    data: xr.Dataset = field(default_factory=xr.Dataset)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    partial: bool = False
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for where, attrs in [("data", self.data.attrs), *((str(n), v.attrs) for n, v in self.data.variables.items())]:
            for key, value in attrs.items():
                if value is None or isinstance(
                    value, (bool, dict)
                ):  # netCDF has none of these; found out here, not after a long run
                    raise TypeError(
                        f"attribute {key!r} of {where} is {value!r}: use text or a number, so that the Result can be"
                        " saved"
                    )

    @property
    def stem(self) -> str:
        return self.provenance.stem

    @property
    def spec(self) -> dict:
        """The spec as plain JSON types; `Method.Spec.from_dict` makes it a Spec again."""
        return self.provenance.spec

    def save(self, folder: Path | str) -> Path:
        """Write everything into `folder`, replacing what was there only once all is written."""
        with files.new_folder(folder) as new:
            self.data.to_netcdf(new / "data.nc", engine="h5netcdf", invalid_netcdf=False)
            for name, table in self.tables.items():
                (new / "tables").mkdir(exist_ok=True)
                table.to_parquet(new / "tables" / f"{name}.parquet", index=False)
            written = sorted(p for p in new.rglob("*") if p.is_file())
            about = {
                "format": FORMAT,
                "provenance": self.provenance.to_dict(),
                "partial": self.partial,
                "warnings": list(self.warnings),
                "tables": list(self.tables),
                "sha256": {p.relative_to(new).as_posix(): files.sha256(p) for p in written},
            }
            files.write_text(new / "result.json", json.dumps(about, indent=1))
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Result":
        """Read a folder written by `save`.

        Raises:
            BrokenResult: if it is no such folder, a file is missing or without a checksum, or its bytes changed since
                it was written.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as found:
            raise BrokenResult(
                f"{folder.name} holds no readable result.json ({type(found).__name__}); a Result is a folder"
            ) from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            found = about.get("format") if isinstance(about, dict) else "no"
            raise BrokenResult(f"{folder.name} has format {found}, this version reads format {FORMAT}")
        if missing := {"provenance", "partial", "warnings", "tables", "sha256"} - set(about):
            raise BrokenResult(
                f"result.json in {folder.name} lacks {', '.join(sorted(missing))}; run the analysis again"
            )
        listed = about["sha256"] if isinstance(about["sha256"], dict) else {}
        read = ["data.nc", *(f"tables/{name}.parquet" for name in about["tables"])]
        if unlisted := [name for name in read if not listed.get(name)]:
            raise BrokenResult(
                f"result.json in {folder.name} has no checksum of {', '.join(unlisted[:3])}, so whether that is what"
                " was saved cannot be told; run the analysis again"
            )
        for name, digest in listed.items():
            if not (folder / name).is_file():
                raise BrokenResult(f"{folder.name} lacks {name}, which its result.json lists; run the analysis again")
            if files.sha256(folder / name) != digest:
                raise BrokenResult(
                    f"{name} in {folder.name} is not what was saved (checksum differs); run the analysis again"
                )
        return cls(
            provenance=Provenance.from_dict(about["provenance"]),
            data=xr.load_dataset(folder / "data.nc", engine="h5netcdf"),
            tables={name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in about["tables"]},
            partial=about["partial"],
            warnings=tuple(about["warnings"]),
        )
