"""Result: what a run returns - labelled arrays and tables with their provenance - and its folder on disk.

A folder holds `data.nc` (netCDF-4 through h5netcdf), `tables/NAME.parquet` and `result.json` with provenance, warnings
and the checksum of every other file. It is written under a temporary name and renamed, so it is whole or not there.
Each file is made in memory and then written: HDF5 ends the process where a disk fills up under it.
Cost: one copy of the arrays on disk, and another in memory while they are written or read.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from . import files
from .errors import BadData, BrokenResult, WorkbenchError
from .provenance import Provenance

FORMAT = 1
OURS = ("result.json", "data.nc", "tables")  # all that the folder of a Result holds, its index first


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
        for name in self.tables:
            _table_file(name)
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
        """Write everything into `folder`, replacing an older Result there only once all is written.

        Raises:
            WorkbenchError: if `folder` is a file or holds anything else; nothing of that is removed. OSError: if it
                cannot be written.
        """
        with files.new_folder(folder, OURS) as new:
            sums = {}
            for name, content in self._files():
                files.write_bytes(new / name, content)
                sums[name] = hashlib.sha256(content).hexdigest()
            about = {
                "format": FORMAT,
                "provenance": self.provenance.to_dict(),
                "partial": self.partial,
                "warnings": list(self.warnings),
                "tables": list(self.tables),
                "sha256": sums,
            }
            files.write_text(new / "result.json", json.dumps(about, indent=1))
        return Path(folder)

    def _files(self) -> Iterator[tuple[str, bytes | memoryview]]:
        """Name and content of each file but the index, one at a time."""
        yield "data.nc", self.data.to_netcdf(engine="h5netcdf", invalid_netcdf=False)
        for name, table in self.tables.items():
            yield _table_file(name), table.to_parquet(index=False)

    @classmethod
    def load(cls, folder: Path | str) -> "Result":
        """Read a folder written by `save`. Only files inside the folder are read, whatever it says.

        Raises:
            BrokenResult: if it is no such folder, a file is missing, cannot be read, or its bytes changed since it was
                written. BadData: if it names or links to something outside itself, which `save` never does.
        """
        folder = Path(folder)
        if not folder.exists():
            files.recover(folder, OURS)
        about = _read_about(folder)
        contents = {}
        for name in ["data.nc", *map(_table_file, about["tables"])]:
            contents[name] = _checked(folder, name, about["sha256"])
        try:
            return cls(
                provenance=Provenance.from_dict(about["provenance"]),
                data=_read_arrays(folder, contents["data.nc"]),
                tables={name: pd.read_parquet(io.BytesIO(contents[_table_file(name)])) for name in about["tables"]},
                partial=bool(about["partial"]),
                warnings=tuple(about["warnings"]),
            )
        except WorkbenchError:
            raise
        except (
            Exception
        ) as found:  # the checksums hold, so this is no accident, and may be any error of three libraries
            raise BrokenResult(
                f"{folder.name} cannot be read ({type(found).__name__}): its files are not as `save` writes them; run"
                " the analysis again"
            ) from found


def _table_file(name: object) -> str:
    """Where a table lies in the folder.

    Raises:
        BadData: if its name is no plain file name, so that it could lie outside the folder.
    """
    if not isinstance(name, str) or not name or name.startswith(".") or re.search(r"[/\\\0]", name):
        raise BadData(f"a table of a Result is called by a plain name, got {name!r}")
    return f"tables/{name}.parquet"


def _read_about(folder: Path) -> dict[str, Any]:
    """The index, with the right type behind every name."""
    try:
        about = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as found:
        raise BrokenResult(
            f"{folder.name} holds no readable result.json ({type(found).__name__}); a Result is a folder"
        ) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else "no"
        raise BrokenResult(f"{folder.name} has format {found}, this version reads format {FORMAT}")
    kinds = {"provenance": dict, "partial": bool, "warnings": list, "tables": list, "sha256": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(about.get(name), kind)]:
        raise BrokenResult(f"result.json in {folder.name} lacks {', '.join(sorted(wrong))}; run the analysis again")
    return about


def _checked(folder: Path, name: str, sums: dict[str, str]) -> bytes:
    """The bytes of a file of the folder, once they are known to be what was saved."""
    path = folder / name
    if not path.is_file():
        raise BrokenResult(f"{folder.name} lacks {name}, which its result.json lists; run the analysis again")
    if not sums.get(name):
        raise BrokenResult(
            f"result.json in {folder.name} has no checksum of {name}, so whether that is what was saved cannot be told;"
            " run the analysis again"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadData(
            f"{name} in {folder.name} is a link to somewhere else, which is not followed; copy the file there"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise BrokenResult(f"{name} in {folder.name} is not what was saved (checksum differs); run the analysis again")
    return content


def _read_arrays(folder: Path, content: bytes) -> xr.Dataset:
    """The arrays, if all of them lie in the file: HDF5 also follows links to other files and opens what they name."""
    import h5py

    with h5py.File(io.BytesIO(content)) as held:
        for name in held:
            # A link is looked at before it is followed.
            array = held[name] if isinstance(held.get(name, getlink=True), h5py.HardLink) else None
            if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
                raise BadData(f"{name!r} in data.nc of {folder.name} is no array of that file, which is not followed")
    return xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
