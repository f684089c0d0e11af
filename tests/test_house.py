"""The house rules hold: imports go one way, stems agree, pins agree, importing is light, files are short, clean and documented."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from workbench.core.catalogue import FAMILIES, PAPERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workbench"
MODULES = sorted(PACKAGE.rglob("*.py"))

# ---- imports go one way ----

BASE = {"core"}
FIRST = {"models", "datasets", "views", "scale"}
SECOND = {"organisms", "training", "primitives", "weights"}  # in this tier organisms may use training, training primitives, primitives weights
MAY_IMPORT = (
    {"core": set()}
    | dict.fromkeys(FIRST, BASE)
    | {"weights": BASE | FIRST, "primitives": BASE | FIRST | {"weights"}}
    | {"training": BASE | FIRST | {"weights", "primitives"}, "organisms": BASE | FIRST | {"weights", "primitives", "training"}}
    | {"methods": BASE | FIRST | SECOND}
    | {"reports": BASE | FIRST | SECOND | {"methods"}, "panels": BASE | FIRST | SECOND | {"methods", "reports"}}
)


def room_of(module: str) -> str:
    """The room of a dotted module name; 'the top' for the package itself, its command and what lies beside it."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "the top"


def imported(source: str, module: str, is_package: bool = False) -> list[tuple[str, int]]:
    """(dotted name, line) of every import of ours in a module's source, wherever it stands; relative ones made absolute."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            target = ".".join(p for p in (base, node.module) if p)
            found += [(f"{target}.{alias.name}", node.lineno) for alias in node.names] if target == "workbench" else [(target, node.lineno)]
    return [(name, line) for name, line in found if name.split(".")[0] == "workbench"]


def bad_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    """Every import that this module's room may not make."""
    room = room_of(module)
    allowed = MAY_IMPORT.get(room, set(MAY_IMPORT) | {"the top"}) | {room}
    return [f"{module}, line {line}: {room} may not import {name} ({room_of(name)})" for name, line in imported(source, module, is_package) if room_of(name) not in allowed]


def test_imports_go_one_way():
    bad = []
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        bad += bad_arrows(path.read_text(encoding="utf-8"), ".".join(parts[:-1] if is_package else parts), is_package)
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("module", "source", "is_bad"),
    [
        ("workbench.core.spec", "from workbench.models import load", True),
        ("workbench.core.spec", "from .errors import BadSpec", False),
        ("workbench.core.spec", "from ..models.spec import ModelSpec", True),
        ("workbench.core.spec", "from .. import models", True),
        ("workbench.core.spec", "def f():\n    import workbench.methods.attention.attention_sinks as m", True),
        ("workbench.views.theme", "from workbench import primitives", True),
        ("workbench.weights.x", "from workbench.primitives.read.capture import capture", True),
        ("workbench.primitives.score.x", "from workbench.weights.subspaces import overlap", False),
        ("workbench.scale.dask", "from workbench.models import load", True),
        ("workbench.models.loading", "from workbench.datasets import tasks", True),
        ("workbench.primitives.read.capture", "from workbench.training import language_model", True),
        ("workbench.training.lora", "from workbench.primitives.read.capture import capture", False),
        ("workbench.training.lora", "from workbench.organisms import build", True),
        ("workbench.organisms.registry", "from workbench.training.language_model import train", False),
        ("workbench.methods.safety.x", "if TYPE_CHECKING:\n    from workbench.panels.run import RunPanel", True),
        ("workbench.methods.safety.x", "import workbench as wb", True),
        ("workbench.panels.run", "from workbench.views import figures_of", False),
        ("workbench.panels.run", "from workbench.reports.page import write_page", False),
        ("workbench.reports.page", "from ..views import figures_of", False),
        ("workbench.reports.page", "from workbench.panels.run import RunPanel", True),
        ("workbench.cli", "from workbench.reports.page import write_page", False),
        ("workbench.core.spec", "import workbenchmarks, json", False),
    ],
)
def test_the_import_check_sees_a_planted_arrow(module, source, is_bad):
    assert bool(bad_arrows(source, module)) is is_bad


def test_a_relative_import_in_a_package_counts_from_the_package():
    assert not bad_arrows("from .spec import ModelSpec", "workbench.models", is_package=True)
    assert bad_arrows("from ..methods import method", "workbench.models", is_package=True)


def test_every_room_is_on_the_plan():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert rooms <= set(MAY_IMPORT), f"rooms without a place in architecture.md: {rooms - set(MAY_IMPORT)}"
    assert {p.stem for p in PACKAGE.glob("*.py")} == {"__init__", "cli", "cli_reports", "doctor", "notebook"}


# ---- one stem, three places ----


def stems(folder: str, pattern: str, prefix: str = "") -> set[tuple[str, str]]:
    """(family, stem) of the files one folder deep."""
    paths = [p for p in (ROOT / folder).glob(f"*/{pattern}") if p.parent.name != "guides" and not p.name.startswith(("_", "conftest"))]
    return {(p.parent.name, p.stem.removeprefix(prefix)) for p in paths}


def test_methods_are_of_papers_in_the_catalogue():
    methods = stems("workbench/methods", "*.py")
    assert methods and methods <= {(p.family, p.stem) for p in PAPERS.values()}


@pytest.mark.parametrize(("folder", "pattern", "prefix"), [("notebooks", "*.ipynb", ""), ("tests/methods", "test_*.py", "test_")], ids=["notebooks", "tests"])
def test_every_method_has_its_notebook_and_its_test_and_none_is_alone(folder, pattern, prefix):
    assert stems(folder, pattern, prefix) == stems("workbench/methods", "*.py")


def test_primitives_lie_in_their_sub_rooms():
    assert {p.name for p in (PACKAGE / "primitives").iterdir() if p.name != "__pycache__"} == {"__init__.py", "read", "replace", "explain", "steer", "score"}


def test_families_are_the_folders_of_methods():
    assert {p.name for p in (PACKAGE / "methods").iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(FAMILIES)


# ---- pins ----


def pip_lines(text: str) -> list[str]:
    """The entries under `- pip:` of an environment file."""
    found, depth = [], None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() == "- pip:":
            depth = indent
        elif depth is not None and line.strip() and not line.lstrip().startswith("#"):
            if indent <= depth:
                break
            found.append(line.strip().removeprefix("- ").split(" #")[0].strip())
    return found


def test_environment_yml_mirrors_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert pip_lines(environment) == [*project["dependencies"], "-e ."]
    assert f"- python={project['requires-python'].removeprefix('>=')}" in environment


# ---- importing is light ----


@pytest.mark.parametrize("module", ["workbench", "workbench.cli", "workbench.core.catalogue"])
def test_importing_is_light(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout)
    assert module in loaded
    assert not {"torch", "transformers", "transformer_lens", "pandas", "plotly", "xarray"} & set(loaded)


# ---- files are short and clean ----

TEXTS = sorted(
    path
    for path in [*(p for folder in ("workbench", "data", "notebooks") for p in (ROOT / folder).rglob("*")), ROOT / "README.md"]
    if path.suffix in (".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ".json", ".jsonl") and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
)
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|tmp|work|Users)/")


def risky(source: str) -> list[str]:
    """What a module does that could run a stranger's code: pickles, in any of their dresses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: import {n}" for n in names if n.split(".")[0] in ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pd.read_pickle", "pandas.read_pickle"):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}(")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and node.value.value is False):
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_is_short_finished_and_reads_no_pickle(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 600, "above 600 lines: split it"
    assert not re.search(r"\bTODO\b|\bFIXME\b|_description_|\b_(?:summary|type)_\b", source)
    assert not risky(source)


@pytest.mark.parametrize("source", ["import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "np.load('x', allow_pickle=True)", "pd.read_pickle('x')"])
def test_the_pickle_check_sees_a_planted_one(source):
    assert risky(source) and not risky("torch.save; np.load('x', allow_pickle=False); 'pickle'")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_text_names_a_path_of_the_machine_it_was_made_on(path):
    hits = [f"line {n}: {line.strip()[:120]}" for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(("text", "is_path"), [('"/home/ann/x"', True), ("see /tmp/x", True), ("(/root/.cache)", True), ("https://host/home/x", False), ("a/work/b", False), ("~/work/x", False)])
def test_the_path_check_knows_a_path_from_an_address(text, is_path):
    assert bool(MACHINE_PATH.search(text)) is is_path


# ---- docstrings ----


def undocumented(source: str) -> list[str]:
    """Public top-level functions and classes without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n.name for n in ast.parse(source).body if isinstance(n, kinds) and not n.name.startswith("_") and not ast.get_docstring(n)]


@pytest.mark.parametrize("path", [p for room in ("core", "primitives", "weights") for p in sorted((PACKAGE / room).rglob("*.py"))], ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_everything_public_in_core_and_primitives_is_documented(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "the module itself has no docstring"
    assert undocumented(source) == []


def test_the_docstring_check_sees_a_planted_gap():
    assert undocumented('def a(): pass\nclass B: pass\ndef c():\n    "said"\ndef _d(): pass') == ["a", "B"]
