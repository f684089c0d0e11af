"""Names of a package that are imported when first used, so that importing the package stays light."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

        __getattr__, __dir__ = lazy(__name__, {"method": "Spec run", "claims": "CLAIMS", "figures": ""})

    Args:
        package: its `__name__`.
        homes: {module of the package, or full dotted name: the names it offers, separated by spaces}; `patch=denoise`
            offers denoise under the name patch. A module of the package is a name itself.
    """
    inside = {f"{package}.{home}" if "." not in home else home: names.split() for home, names in homes.items()}
    where = {
        name: (home, own or name)
        for home, names in inside.items()
        for name, _, own in (n.partition("=") for n in names)
    }
    modules = [home for home in homes if "." not in home]

    def getattribute(name: str) -> Any:
        if name in where:
            home, own = where[name]
            return getattr(importlib.import_module(home), own)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; it offers {', '.join(sorted([*where, *modules]))}"
        )

    def names() -> list[str]:
        return sorted([*where, *modules])

    return getattribute, names
