"""The memory of a device between two trainings in one process."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def free_memory(device: torch.device | str) -> None:
    """Give back the memory that nothing in this process uses any more.

    On a GPU cuBLAS keeps a work space for each stream that a training has made, also after its end.

    Args:
        device: whose memory; no recorded step may still be replayed.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        if not torch.cuda.is_initialized():  # such as in the process of a trial that others train
            return
        torch._C._cuda_clearCublasWorkspaces()  # torch has no public function for it
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone
        if trim is not None:
            trim(0)
