"""The house rules hold: imports go one way, stems agree, pins agree, importing is light, files are short, clean and
documented.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from workbench.core.catalogue import FAMILIES, PAPERS
from workbench.papers import method

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workbench"
MODULES = sorted(PACKAGE.rglob("*.py"))

# ---- imports go one way ----

BASE = {"core"}
FIRST = {"models", "datasets", "views", "scale"}
SECOND = {
    "organisms",
    "training",
    "primitives",
    "weights",
}  # in this tier organisms may use training, training primitives, primitives weights
MAY_IMPORT = (
    {"core": set()}
    | dict.fromkeys(FIRST, BASE)
    | {"runs": BASE | {"scale"}, "weights": BASE | FIRST, "primitives": BASE | FIRST | {"weights"}}
    | {
        "training": BASE | FIRST | {"weights", "primitives"},
        "organisms": BASE | FIRST | {"weights", "primitives", "training"},
    }
    | {"papers": BASE | FIRST | SECOND | {"runs"}}
    | {
        "reports": BASE | FIRST | SECOND | {"runs", "papers"},
        "panels": BASE | FIRST | SECOND | {"runs", "papers", "reports"},
    }
    | {"cli": BASE | FIRST | SECOND | {"runs", "papers", "reports", "panels", "the top"}}
)
FOR_THE_TOP = {"the top", *MAY_IMPORT} - {"cli"}  # nobody imports the command


def room_of(module: str) -> str:
    """The room of a dotted module name; 'the top' for the package itself and what lies in no room. A paper's panel
    is a panel.
    """
    parts = module.split(".")
    if parts[1:2] == ["papers"] and parts[4:] == ["panel"]:
        return "panels"
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "the top"


def imported(source: str, module: str, is_package: bool = False) -> list[tuple[str, int]]:
    """(dotted name, line) of every import of ours in a module's source, wherever it stands; relative ones made
    absolute.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            target = ".".join(p for p in (base, node.module) if p)
            found += (
                [(f"{target}.{alias.name}", node.lineno) for alias in node.names]
                if target == "workbench"
                else [(target, node.lineno)]
            )
    return [(name, line) for name, line in found if name.split(".")[0] == "workbench"]


def bad_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    """Every import that this module's room may not make."""
    room = room_of(module)
    allowed = MAY_IMPORT.get(room, FOR_THE_TOP) | {room}
    found = imported(source, module, is_package)
    bad = [
        f"{module}, line {line}: {room} may not import {name} ({room_of(name)})"
        for name, line in found
        if room_of(name) not in allowed
    ]
    return bad + [
        f"{module}, line {line}: no paper imports another: {name}"
        for name, line in found
        if paper_of(module) and paper_of(name) not in ("", paper_of(module))
    ]


def paper_of(module: str) -> str:
    """The paper in whose folder a module lies; "" for all others."""
    parts = module.split(".")
    return parts[3] if parts[1:2] == ["papers"] and len(parts) > 3 else ""


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
        ("workbench.core.spec", "def f():\n    import workbench.papers.attention.attention_sinks.method as m", True),
        ("workbench.views.theme", "from workbench import primitives", True),
        ("workbench.weights.x", "from workbench.primitives.read.capture import capture", True),
        ("workbench.primitives.score.x", "from workbench.weights.subspaces import overlap", False),
        ("workbench.runs.study", "from workbench.primitives.score.statistics import last_crossing", True),
        ("workbench.runs.study", "from workbench.core.result import Result", False),
        ("workbench.scale.dask", "from workbench.models import load", True),
        ("workbench.models.loading", "from workbench.datasets import tasks", True),
        ("workbench.primitives.read.capture", "from workbench.training import language_model", True),
        ("workbench.training.lora", "from workbench.primitives.read.capture import capture", False),
        ("workbench.training.lora", "from workbench.organisms import build", True),
        ("workbench.organisms.registry", "from workbench.training.language_model import pretrain", False),
        ("workbench.papers.safety.x", "if TYPE_CHECKING:\n    from workbench.panels.run import RunPanel", True),
        ("workbench.papers.safety.x", "import workbench as wb", True),
        ("workbench.papers.safety.x.method", "from workbench.papers.safety.y.method import Spec", True),
        ("workbench.papers.safety.x.claims", "from .runs import HERE", False),
        ("workbench.papers.safety.x.figures", "from workbench.panels.panel import Panel", True),
        ("workbench.papers.safety.x.panel", "from workbench.panels.panel import Panel", False),
        ("workbench.papers.safety.x.panel", "from workbench.papers.safety.y.figures import bars", True),
        ("workbench.panels.run", "from workbench.views import figures", False),
        ("workbench.panels.run", "from workbench.reports.page import write_page", False),
        ("workbench.reports.page", "from ..views import figures", False),
        ("workbench.reports.page", "from workbench.panels.run import RunPanel", True),
        ("workbench.panels.run", "from workbench.cli import main", True),
        ("workbench.notebook", "from workbench.cli import main", True),
        ("workbench.notebook", "from workbench.panels.panel import Panel", False),
        ("workbench.cli.reports", "from workbench.reports.page import write_page", False),
        ("workbench.cli.papers", "from workbench.notebook import quiet", False),
        ("workbench.core.spec", "import workbenchmarks, json", False),
    ],
)
def test_the_import_check_sees_a_planted_arrow(module, source, is_bad):
    assert bool(bad_arrows(source, module)) is is_bad


def test_a_relative_import_in_a_package_counts_from_the_package():
    assert not bad_arrows("from .spec import ModelSpec", "workbench.models", is_package=True)
    assert bad_arrows("from ..papers import method", "workbench.models", is_package=True)


def test_every_room_is_on_the_plan():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert rooms <= set(MAY_IMPORT), f"rooms without a place in architecture.md: {rooms - set(MAY_IMPORT)}"
    assert {p.stem for p in PACKAGE.glob("*.py")} == {"__init__", "notebook"}


# ---- one stem, three places ----


def stems(folder: str, pattern: str, prefix: str = "") -> set[tuple[str, str]]:
    """(family, stem) of the files or folders one folder deep."""
    paths = [
        p
        for p in (ROOT / folder).glob(f"*/{pattern}")
        if p.parent.name != "guides" and not p.name.startswith(("_", "conftest"))
    ]
    return {(p.parent.name, p.stem.removeprefix(prefix)) for p in paths}


# what git ignores may lie there too: results, caches, build folders
TOP_LEVEL = {
    "notebooks",
    "workbench",
    "data",
    "tests",
    "reviews",
    "workbench-out",
    "build",
    "dist",
    "circuit_workbench.egg-info",
}
PAPERS_THERE = {(p.parents[1].name, p.parent.name) for p in PACKAGE.glob("papers/*/*/method.py")}


def test_papers_are_in_the_catalogue_and_have_their_four_files():
    assert PAPERS_THERE and {(p.family, p.stem) for p in PAPERS.values()} >= PAPERS_THERE
    for family, stem in PAPERS_THERE:
        files = {p.name for p in (PACKAGE / "papers" / family / stem).glob("*.py")}
        assert {"__init__.py", "method.py", "claims.py", "figures.py"} <= files, stem
        assert not [f for f in files if f.startswith("_") and f != "__init__.py"], stem


def test_every_paper_has_its_notebook_and_its_test_and_none_is_alone():
    assert stems("notebooks", "*.ipynb") == PAPERS_THERE
    assert stems("tests/papers", "test_*.py", "test_") == PAPERS_THERE
    assert {(p.parents[1].name, p.parent.name) for p in ROOT.glob("tests/papers/*/*/test_*.py")} <= PAPERS_THERE
    assert {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))} <= TOP_LEVEL


@pytest.mark.parametrize("stem", sorted(stem for _, stem in PAPERS_THERE))
def test_a_paper_offers_what_all_papers_offer(stem):
    paper = method(stem)
    assert len(paper.__doc__) > 300, "the docstring says paper, claim, departures and cost"
    assert {"Spec", "run", "CLAIMS", "figures"} <= set(dir(paper))
    assert all(getattr(paper, name) is not None for name in dir(paper))


def test_primitives_lie_in_their_sub_rooms():
    assert {p.name for p in (PACKAGE / "primitives").iterdir() if p.name != "__pycache__"} == {
        "__init__.py",
        "read",
        "replace",
        "explain",
        "steer",
        "score",
    }


def test_families_are_the_folders_of_papers():
    assert {p.name for p in (PACKAGE / "papers").iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(FAMILIES)


LIGHT = {
    "claims": {"core", "runs", "primitives.score"},
    "figures": {"core", "runs", "views"},
    "panel_figures": {"core", "runs", "views"},
}


def heavy_imports(source: str, module: str) -> list[str]:
    """What a paper's claims or figures import beyond their rooms and their own folder."""
    package, name = module.rsplit(".", 1)
    allowed = (package, *(f"workbench.{room}" for room in LIGHT[name]))
    ours = [n for n, _ in imported(source, module) if not n.startswith(allowed)]
    return ours + re.findall(r"^\s*(?:import|from) (torch|transformers)\b", source, re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    [p for name in LIGHT for p in sorted(PACKAGE.glob(f"papers/*/*/{name}.py"))],
    ids=lambda p: p.relative_to(PACKAGE).as_posix(),
)
def test_claims_and_figures_see_no_model(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert heavy_imports(path.read_text(encoding="utf-8"), module) == []


def test_claims_and_figures_load_no_torch():
    scores = (  # reads the table of head scores, which are computed with torch
        "workbench.papers.attention.attention_sinks.claims"
    )
    found = (
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for name in LIGHT
        for p in sorted(PACKAGE.glob(f"papers/*/*/{name}.py"))
    )
    code = "import sys\n" + "".join(
        f"import {m}\nassert 'torch' not in sys.modules, {m!r}\n" for m in found if m != scores
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "source", "is_heavy"),
    [
        ("claims", "import torch", True),
        ("claims", "from workbench.models import load", True),
        ("claims", "from workbench.runs import lines", False),
        ("figures", "from .claims import CLAIMS", False),
        ("figures", "from workbench.primitives.score import head_scores", True),
    ],
)
def test_the_check_of_claims_and_figures_sees_a_planted_import(name, source, is_heavy):
    assert bool(heavy_imports(source, f"workbench.papers.safety.x.{name}")) is is_heavy


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
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    )
    assert module in loaded
    assert not {"torch", "transformers", "transformer_lens", "pandas", "plotly", "xarray"} & set(loaded)


# ---- files are short and clean ----

TEXTS = sorted(
    path
    for path in [
        *(p for folder in ("workbench", "data", "notebooks") for p in (ROOT / folder).rglob("*")),
        ROOT / "README.md",
    ]
    if path.suffix in (".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ".json", ".jsonl")
    and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
)
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|tmp|work|Users)/")


def risky(source: str) -> list[str]:
    """What a module does that could run a stranger's code: pickles, in any of their dresses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        found += [
            f"line {node.lineno}: import {n}"
            for n in names
            if n.split(".")[0] in ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
        ]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "torch.load",
            "pd.read_pickle",
            "pandas.read_pickle",
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}(")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_is_short_finished_and_reads_no_pickle(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 600, "above 600 lines: split it"
    assert not re.search(r"\bTODO\b|\bFIXME\b|_description_|\b_(?:summary|type)_\b", source)
    assert not risky(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "pd.read_pickle('x')",
    ],
)
def test_the_pickle_check_sees_a_planted_one(source):
    assert risky(source) and not risky("torch.save; np.load('x', allow_pickle=False); 'pickle'")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_text_names_a_path_of_the_machine_it_was_made_on(path):
    hits = [
        f"line {n}: {line.strip()[:120]}"
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ('"/home/ann/x"', True),
        ("see /tmp/x", True),
        ("(/root/.cache)", True),
        ("https://host/home/x", False),
        ("a/work/b", False),
        ("~/work/x", False),
    ],
)
def test_the_path_check_knows_a_path_from_an_address(text, is_path):
    assert bool(MACHINE_PATH.search(text)) is is_path


# ---- docstrings ----


def undocumented(source: str) -> list[str]:
    """Public top-level functions and classes without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        n.name
        for n in ast.parse(source).body
        if isinstance(n, kinds) and not n.name.startswith("_") and not ast.get_docstring(n)
    ]


@pytest.mark.parametrize(
    "path",
    [p for room in ("core", "primitives", "weights", "runs") for p in sorted((PACKAGE / room).rglob("*.py"))],
    ids=lambda p: p.relative_to(PACKAGE).as_posix(),
)
def test_everything_public_in_core_and_primitives_is_documented(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "the module itself has no docstring"
    assert undocumented(source) == []


def test_the_docstring_check_sees_a_planted_gap():
    assert undocumented('def a(): pass\nclass B: pass\ndef c():\n    "said"\ndef _d(): pass') == ["a", "B"]
