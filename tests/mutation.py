"""Mutation testing: small faults planted in a copy of the package, and whether the tests that mirror the file see them.

    python tests/mutation.py --files 'workbench/primitives/score/stat*.py' --sample 30 --seed 0

The package is copied to a temporary folder, which PYTHONPATH names; the working tree is never changed. For every mutant
only tests/<room>/test_<file>*.py run, one process at a time. A mutant is "killed" if a test fails, "timeout" if they
take much longer than without it, "survived" if all pass: then either a test is missing or the mutant changes nothing.
Results are appended to --out as JSON lines; a mutant that is there already is not run again, so a stopped run resumes.
Not collected by pytest.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
ROOMS = ("workbench/primitives", "workbench/weights")
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
PAIRS = (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("clamp_min", "clamp_max"))
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SIGNED = {"float", "int", "np.ndarray", "torch.Tensor", "xr.DataArray"}  # returned values whose sign is turned


@dataclass(frozen=True)
class Mutant:
    """One changed expression. start, end: offsets in the file as UTF-8; `after` takes the place of `before`."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str


def changed(node: ast.AST, returns: str) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(part of the tree, what to put there) for each mutant of one node. returns: annotation of its function."""
    match node:
        case ast.Compare(left, [op, *ops], comparators) if type(op) in COMPARISONS:
            yield node, ast.Compare(left, [COMPARISONS[type(op)](), *ops], comparators)
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield node, ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.AugAssign(target, op, value) if type(op) in OPERATORS:
            yield node, ast.AugAssign(target, OPERATORS[type(op)](), value)
        case ast.BoolOp(op, values):
            yield node, ast.BoolOp(OPERATORS[type(op)](), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield node, operand
        case ast.Constant(int(value)) if not isinstance(value, bool):
            yield node, ast.Constant(value + 1)
        case ast.Name(name, ast.Load()) if name in NAMES:
            yield node, ast.Name(NAMES[name])
        case ast.Attribute(value, name, ast.Load()) if name in NAMES:
            yield node, ast.Attribute(value, NAMES[name])
        case ast.Return(ast.AST() as value) if returns in SIGNED:
            yield value, ast.UnaryOp(ast.USub(), value)
    for test in [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else getattr(node, "ifs", []):
        if not isinstance(test, ast.UnaryOp):  # a `not` is dropped by itself
            yield test, ast.UnaryOp(ast.Not(), test)


def walk(node: ast.AST, returns: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node with the return annotation of its function; without annotations and what is inside f-strings."""
    yield node, returns
    if isinstance(node, ast.FunctionDef):
        returns = ast.unparse(node.returns) if node.returns else ""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child, returns)


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file, in its order. file: relative to the repository."""
    source = (ROOT / file).read_bytes()
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    found = {}
    for node, returns in walk(ast.parse(source)):
        for old, new in changed(node, returns):
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(new)
            text = f"({text})" if isinstance(new, ast.expr) and not isinstance(new, ast.Constant | ast.Name) else text
            found[start, end, text] = Mutant(file, old.lineno, start, end, source[start:end].decode(), text)
    return [found[key] for key in sorted(found)]


def mirrors(file: str) -> list[str]:
    """The test files that mirror a file of the package, or else those that mirror its folder."""
    path = Path(file).relative_to("workbench")
    for at in (path.with_suffix(""), path.parent):
        if tests := sorted((ROOT / "tests" / at.parent).glob(f"test_{at.name}*.py")):
            return [str(test.relative_to(ROOT)) for test in tests]
    return []


def environment(package: Path) -> dict[str, str]:
    """In which Python imports the package of this folder."""
    return os.environ | {
        "PYTHONPATH": str(package), "PYTHONSAFEPATH": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(package / ".hypothesis"),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same size and second would be taken for the one before it
    }  # fmt: skip


def run_tests(tests: list[str], package: Path, timeout: float) -> tuple[str, float]:
    """("killed" | "survived" | "timeout", seconds) of these tests with the package in this folder."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(package), start_new_session=True, **QUIET)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return "timeout", time.monotonic() - started
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests started
            process.wait()
    if code in (4, 5):
        raise SystemExit(f"pytest could not run {' '.join(tests)}: exit status {code}")
    return "killed" if code else "survived", time.monotonic() - started


def copy_package(folder: Path) -> None:
    """The package as a copy, all else of the repository as links: the package looks for its data beside itself."""
    shutil.copytree(ROOT / "workbench", folder / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    for entry in ROOT.iterdir():
        if entry.name not in ("workbench", "tests", ".git", ".hypothesis"):
            (folder / entry.name).symlink_to(entry)
    command = [sys.executable, "-c", "import workbench; print(workbench.__file__)"]
    found = subprocess.check_output(command, cwd=ROOT, env=environment(folder), text=True)
    if not found.startswith(str(folder)):
        raise SystemExit(f"Python imports {found.strip()} in place of the copy in {folder}, so no mutant would be seen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="", help="glob of files in workbench/primitives or workbench/weights (all)")
    parser.add_argument("--sample", type=int, default=0, help="mutants drawn over all the files (0: every one)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path, default=Path("workbench-out/mutation.jsonl"), help="where results are kept")
    options = parser.parse_args()
    patterns = [options.files] if options.files else [f"{room}/**/*.py" for room in ROOMS]
    files = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
    files = [file for file in files if file.startswith(ROOMS) and not file.endswith("__init__.py")]
    for file in (file for file in files if not mirrors(file)):
        print(f"{file}: no test mirrors it")
    chosen = [mutant for file in files if mirrors(file) for mutant in mutants(file)]
    if options.sample:
        chosen = sorted(random.Random(options.seed).sample(chosen, min(options.sample, len(chosen))), key=chosen.index)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    done = {Mutant(**{key: row[key] for key in Mutant.__annotations__}) for row in map(json.loads, lines)}
    limits: dict[str, float] = {}  # seconds per file
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder).resolve()
        copy_package(package)
        for number, mutant in enumerate(chosen, 1):
            if mutant in done:
                continue
            tests, target = mirrors(mutant.file), package / mutant.file
            if mutant.file not in limits:
                outcome, seconds = run_tests(tests, package, 3600)
                if outcome != "survived":
                    raise SystemExit(f"the tests of {mutant.file} fail without any mutant, so they can kill none")
                limits[mutant.file] = 60 + 5 * seconds
            source = target.read_bytes()
            target.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
            outcome, seconds = run_tests(tests, package, limits[mutant.file])
            target.write_bytes(source)
            with options.out.open("a", encoding="utf-8") as kept:
                kept.write(json.dumps(asdict(mutant) | {"outcome": outcome, "seconds": round(seconds, 1)}) + "\n")
            change = f"{mutant.file}:{mutant.line}: {mutant.before!r} -> {mutant.after!r}"
            print(f"{number}/{len(chosen)} {outcome:8} {change}", flush=True)


if __name__ == "__main__":
    main()
