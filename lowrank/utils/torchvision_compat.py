"""Imports torchvision, also where its compiled operators cannot be loaded. The only module that imports it.

On a torch without CUDA the torchvision wheel cannot load its compiled operators. Its Python part then fails to import,
because it registers shape functions for two of them. Declaring their schemas is enough: nothing here calls them.

`from lowrank.utils import torchvision` imports it. Code of others, which imports it by itself, is imported after
`prepare_torchvision`.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import torchvision  # noqa: F401 - `__getattr__` gives it

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_LIBRARIES: list[torch.library.Library] = []  # kept alive: the schemas go when one is collected


def prepare_torchvision() -> None:
    """Make `import torchvision` work from here on, without importing it.

    Nothing happens where it is missing.
    """
    spec = None if _LIBRARIES or "torchvision" in sys.modules else find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    extension = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_C{suffix}").is_file()), None)
    try:
        if extension is not None:
            torch.ops.load_library(str(extension))
            return
    except OSError:
        pass  # built for another torch
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _LIBRARIES.append(library)


def __getattr__(name: str) -> Any:
    """Import torchvision when this module is first asked for it."""
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_torchvision()
    import torchvision

    return torchvision
