"""PEFT directories and local checkpoints, read one module at a time: what the geometry of real adapters needs.

Cost: memory of one module's factors of every adapter, and of one weight where the base is compared too.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import torch
from safetensors import safe_open

from workbench.core.errors import BadData, ModelNotFound
from workbench.core.places import organism_folder
from workbench.papers.misalignment.em_subspaces.geometry import Pair
from workbench.training.lora import ADAPTER_FILE, stream_factors
from workbench.weights.factors import Factors

GIVEN = "given adapters"


def names_of(folders: Sequence[str]) -> list[str]:
    """Last parts of the paths, or the whole paths where these repeat."""
    last = [Path(f).name for f in folders]
    return last if len(set(last)) == len(last) else [str(f) for f in folders]


def folder_pairs(folders: Sequence[str]) -> list[Pair]:
    """All pairs of directories. Whether they share a start is not known: their `row_space` overlap tells."""
    return [Pair(a, b, GIVEN, f"{a} {b}") for a, b in combinations(names_of(folders), 2)]


def folder_stream(folders: Sequence[str]) -> tuple[list[str], Iterator[tuple[str, dict[str, Factors]]]]:
    """(module names, stream of (module, {adapter: factors})), one module in memory at a time.

    Raises:
        ModelNotFound, UnsupportedModel: if a directory is no plain LoRA adapter. BadData: if the adapters move
            different modules, or weights of different shapes.
    """
    listed = [_modules(f) for f in folders]
    if any(names != listed[0] for names in listed):
        odd = next(i for i, names in enumerate(listed) if names != listed[0])
        differing = sorted(set(listed[0]) ^ set(listed[odd]))
        raise BadData(
            f"{Path(folders[0]).name!r} and {Path(folders[odd]).name!r} adapt different modules"
            f" ({', '.join(differing[:3])}); compare adapters of one base and one list of targets"
        )
    return listed[0], _together(folders)


def _together(folders: Sequence[str]) -> Iterator[tuple[str, dict[str, Factors]]]:
    names = names_of(folders)
    for parts in zip(*(stream_factors(f) for f in folders), strict=True):
        module, shapes = parts[0][0], {(f.B.shape[0], f.A.shape[1]) for _, f in parts}
        if len(shapes) > 1:
            raise BadData(
                f"{module} is {' and '.join(f'{out} x {into}' for out, into in sorted(shapes))} in these adapters, so"
                " they are not of one base"
            )
        yield module, dict(zip(names, (f for _, f in parts), strict=True))


def _modules(folder: str) -> list[str]:
    """Names of the adapted modules, from the header of the file alone."""
    path = Path(folder) / ADAPTER_FILE
    if not path.is_file():
        raise ModelNotFound(
            f"{Path(folder).name!r} is no directory with an {ADAPTER_FILE}; fetch it once with `hf download NAME"
            " --local-dir DIR` and give DIR"
        )
    with safe_open(str(path), framework="pt") as handle:
        keys = list(handle.keys())
    return sorted(
        k.removesuffix(".lora_A.weight").removeprefix("base_model.model.") for k in keys if k.endswith(".lora_A.weight")
    )


def weight_reader(source: str) -> Callable[[str], torch.Tensor]:
    """Weight of a module by its name, from the safetensors of a local directory or an organism, one tensor at a time.

    Raises:
        ModelNotFound: if there are no safetensors. BadData: at a module that the checkpoint has not.
    """
    folder = organism_folder(source.removeprefix("organism:")) if source.startswith("organism:") else Path(source)
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelNotFound(
            f"{source!r} holds no *.safetensors; give the local directory of the base, or base_overlap=false to do"
            " without it"
        )
    where = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}

    def read(module: str) -> torch.Tensor:
        name = f"{module}.weight"
        with safe_open(str(folder / where.get(name, files[0].name)), framework="pt") as handle:
            if name not in handle.keys():
                raise BadData(
                    f"the base {folder.name!r} has no {name}, so these adapters are of another model; give their base,"
                    " or base_overlap=false"
                )
            return handle.get_tensor(name).float()

    return read
