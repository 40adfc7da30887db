"""Gives a package's public names without importing its modules beforehand (PEP 562).

A package that imported all of its modules would load torch, Ray or MLflow for a command that only prints its help.
Type checkers cannot read the table, so a package imports the same names in a block `if TYPE_CHECKING:`.
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
        package: the package's `__name__`.
        names: the public names of each module, separated by spaces, by the module's name within the package, e.g.
            `{"series": "for_each_study space_from_options"}`.

    Returns:
        `__getattr__`, which imports a name's module when the name is asked for; `__dir__`; and `__all__`.
    """
    module_of = {name: f"{package}.{module}" for module, public in names.items() for name in public.split()}

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    return get_attribute, lambda: sorted(module_of), sorted(module_of)
