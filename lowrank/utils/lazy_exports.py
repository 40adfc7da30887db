"""Gives a package's public names without importing its modules beforehand (PEP 562).

A package that imported all of its modules would load torch, Ray or MLflow for a command that only prints its help.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: the package's own name, `__name__`.
        names: by module, relative to the package, the public names that it defines, separated by spaces.

    Returns:
        Both functions and the list of all names. A name is imported when it is first asked for.
    """
    modules = {name: f"{package}.{module}" for module, defined in names.items() for name in defined.split()}

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get_attribute, lambda: sorted(modules), sorted(modules)
