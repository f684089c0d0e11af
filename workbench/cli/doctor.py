"""`workbench doctor`: what this machine has and what is missing, one line each, with what to do about it."""

import os
import platform
import re
import socket
import sys
from importlib import metadata

from packaging.requirements import Requirement

DISTRIBUTION = "circuit-workbench"


def report() -> tuple[list[str], bool]:
    """Lines to print, and whether all that embedded analyses need is there (a GPU, browser or hub is not needed)."""
    python_ok = sys.version_info >= (3, 11)
    python = f"python      {platform.python_version()}{'' if python_ok else '  NEEDS 3.11'}"
    pins, pins_ok = _pins()
    return [python, *_torch(), _memory(), _browser(), _hub(), *pins], python_ok and pins_ok


def _torch() -> list[str]:
    try:
        import torch
    except ImportError:
        return ["torch       MISSING: pip install -e ."]
    found = [f"torch       {torch.__version__}, {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        return [*found, "gpu         none: embedded analyses run on the CPU, paper-scale ones want CUDA"]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        found.append(f"gpu         {torch.cuda.get_device_name(i)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return found


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"memory      {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"


def _browser() -> str:
    from workbench.reports.images import find_browser

    return "browser     " + ("found (PNG export works)" if find_browser() else "none: no PNG export; install chromium")


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "hub         offline by HF_HUB_OFFLINE; local directories and organisms work"
    try:
        socket.create_connection(("huggingface.co", 443), timeout=2).close()
        return "hub         reachable"
    except OSError:
        return "hub         not reachable; local directories and organisms work"


def _pins() -> tuple[list[str], bool]:
    """Each requirement of the package against what is installed."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [f"package     {DISTRIBUTION} is not installed: pip install -e ."], False
    lines, ok = [], True
    for requirement in map(Requirement, (w for w in wanted if not re.search(r"extra\s*==", w))):
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            have = ""
        if not have or not requirement.specifier.contains(have, prereleases=True):
            ok = False
            found = f"{requirement.name} {have or 'missing'}"
            lines.append(f"package     {found}, wanted {requirement.specifier}: pip install -e .")
    return lines or ["packages    all within the pins"], ok
