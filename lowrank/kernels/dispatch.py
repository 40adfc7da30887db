"""What a machine supports: compiled code, this project's Triton kernels, and modules of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from subprocess import SubprocessError
from types import ModuleType
from typing import Any

import torch

MAX_ENTRIES = 2**31 - 1  # of a tensor: the kernels of the training step count in 32 bits
MIN_COMPUTE_CAPABILITY = (8, 0)  # of the first GPUs with matrix products in bfloat16
MIN_SHARED_MEMORY = 232_448  # bytes for a program of a fused pointwise map: as much as an H100 has


def compile_obstacle(device: torch.device) -> str | None:
    """Return what this machine lacks for compiling code for a device.

    Args:
        device: on which the code will run.

    Returns:
        One clause for a message; None where nothing is missing.
    """
    from torch.utils._triton import has_triton  # importing it takes long, and only compiling needs it

    if device.type == "cuda" and not has_triton():
        return "Triton is not installed, or does not know this card"
    if shutil.which(os.environ.get("CC", "")) is None and not any(map(shutil.which, ("gcc", "cc", "clang"))):
        return "there is no C compiler"
    return None


def kernel_digest() -> str:
    """Name the text of all modules of kernels.

    It belongs to what names compiled code, which holds the kernels, but knows them by their names alone.

    Returns:
        64 hexadecimal digits.
    """
    paths = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(repr([(path.name, path.read_bytes()) for path in paths]).encode()).hexdigest()


def supports_kernels(device: torch.device) -> bool:
    """Return whether the kernels of the training step are made for this GPU; a T4, for one, is too old.

    Args:
        device: a GPU.
    """
    return torch.cuda.get_device_capability(device) >= MIN_COMPUTE_CAPABILITY


def has_enough_shared_memory(device: torch.device) -> bool:
    """Return whether a fused pointwise map and batch norm fit into this GPU's shared memory; not on an L4 or A100.

    Args:
        device: a GPU.
    """
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= MIN_SHARED_MEMORY)


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the errors that Triton raises itself, for `except`.

    It raises them where a kernel needs more memory than the GPU has, or cannot be compiled for it.

    Returns:
        Their base class; nothing where Triton is not installed.
    """
    if find_spec("triton") is None:
        return ()
    errors: tuple[type[Exception], ...] = (import_module("triton.errors").TritonError,)
    return errors


@cache
def load_kernels(module: str, device: torch.device, consequence: str) -> ModuleType | None:
    """Import a module of Triton kernels and call its `try_out`.

    Warns once for each device where they cannot be compiled.

    Args:
        module: dotted name.
        device: on which the kernels will run.
        consequence: what happens without them, for the warning.

    Returns:
        The module; None on a CPU, and where Triton is not installed or cannot compile it.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    kernels = import_module(module)
    try:
        kernels.try_out(device)
    except (RuntimeError, OSError, SubprocessError, *kernel_errors()) as error:  # type: ignore[misc]  # all exceptions
        # There is no C compiler, no header, or the GPU is too old
        warnings.warn(f"{consequence} on {device}: {error}", stacklevel=2)
        return None
    return kernels
