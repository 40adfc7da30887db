"""Kernels for what a GPU's libraries are slow at."""

from __future__ import annotations

import os
import shutil

import torch

LARGEST = 2**31 - 1  # entries of a tensor, which the kernels of the step count in 32 bits


def why_not(device: torch.device) -> str | None:
    """What this machine lacks for code that is compiled for `device` while it runs; None: nothing."""
    from torch.utils._triton import has_triton  # only paid for where something is compiled

    if device.type == "cuda" and not has_triton():
        return "Triton is not installed, or does not know this card"
    if shutil.which(os.environ.get("CC", "")) is None and not any(map(shutil.which, ("gcc", "cc", "clang"))):
        return "there is no C compiler"
    return None
