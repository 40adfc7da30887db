"""Kernels for what a GPU's libraries are slow at."""

from __future__ import annotations

import os
import shutil
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from subprocess import SubprocessError
from types import ModuleType
from typing import Any

import torch

MAX_ENTRIES = 2**31 - 1  # entries of a tensor, which the kernels of the step count in 32 bits
MIN_COMPUTE_CAPABILITY = (8, 0)  # compute capability of the first cards with products in bfloat16
MIN_SHARED_MEMORY = 232_448  # bytes that a program of a joined pointwise map may want, as much as an H100 has


def compile_obstacle(device: torch.device) -> str | None:
    """What this machine lacks for code that is compiled for `device` while it runs; None: nothing."""
    from torch.utils._triton import has_triton  # only paid for where something is compiled

    if device.type == "cuda" and not has_triton():
        return "Triton is not installed, or does not know this card"
    if shutil.which(os.environ.get("CC", "")) is None and not any(map(shutil.which, ("gcc", "cc", "clang"))):
        return "there is no C compiler"
    return None


def supports_kernels(device: torch.device) -> bool:
    """Whether the kernels of the step are made for this card; not, and a library's are used: a T4's."""
    return torch.cuda.get_device_capability(device) >= MIN_COMPUTE_CAPABILITY


def has_enough_shared_memory(device: torch.device) -> bool:
    """Whether a pointwise map joined with its norm finds its shared memory: on an L4 or A100 it does not."""
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= MIN_SHARED_MEMORY)


def kernel_errors() -> tuple[type[Exception], ...]:
    """What Triton raises where a kernel finds no room on a card or cannot be made for it; none without Triton."""
    if find_spec("triton") is None:
        return ()
    errors: tuple[type[Exception], ...] = (import_module("triton.errors").TritonError,)
    return errors


@cache
def load_kernels(module: str, device: torch.device, otherwise: str) -> ModuleType | None:
    """A module of Triton kernels after its `try_out`; None on a CPU, and where Triton is not there or cannot compile.

    Of the last it warns once a device, saying in the words `otherwise` what goes without them.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    found = import_module(module)
    try:
        found.try_out(device)
    except (RuntimeError, OSError, SubprocessError) as error:  # no C compiler, no headers, too old a card
        warnings.warn(f"{otherwise} on {device}: {error}", stacklevel=2)
        return None
    return found
