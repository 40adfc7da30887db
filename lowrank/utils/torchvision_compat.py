"""Imports torchvision, also where its compiled operators cannot be loaded. The only module that imports it.

On a torch without CUDA the torchvision wheel cannot load its compiled operators. Its Python part then fails to import,
because it registers shape functions for two of them. Declaring their schemas is enough: nothing here calls them.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _declare_missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    _LIBRARY = _declare_missing_operators()  # kept alive: the schemas go when it is collected
    import torchvision

__all__ = ["torchvision"]
