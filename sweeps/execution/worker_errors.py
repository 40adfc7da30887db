"""Errors after which a worker process is replaced: a lost device, device memory that does not come back."""

from __future__ import annotations

import torch

from lowrank.data import ImageData
from lowrank.errors import LowrankError
from sweeps.cluster.devices import out_of_memory

LEFT_MB = 1000.0
"""Device memory, in MB (1e6 bytes), that a finished trial may leave behind beside the images: libraries, a teacher."""
_DEVICE_ERRORS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")


class WorkerLostError(LowrankError):
    """This process is of no more use; its trial goes on in a new one. One line, which is recorded as the reason."""


def device_lost(error: BaseException) -> bool:
    """Whether the device gave an error after which nothing that this process does there can be trusted."""
    if out_of_memory(error):
        return False
    accelerator = isinstance(error, torch.AcceleratorError)
    return accelerator or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in _DEVICE_ERRORS))


def resident_mb(data: ImageData, device: torch.device) -> float:
    """MB of the images that stay on a device from trial to trial."""
    if not data.resident:
        return 0.0
    splits = (split for split in (data.train, data.val, data.test) if split.is_decoded)
    return sum(tensor.numel() * tensor.element_size() for split in splits for tensor in split.on(device)) / 1e6


def check_memory_is_back(data: ImageData, allocated_mb: float, device: torch.device) -> None:
    """Raises WorkerLostError when, between two trials, more lies on the device than images and LEFT_MB."""
    expected = resident_mb(data, device) + LEFT_MB
    if allocated_mb > expected:
        raise WorkerLostError(
            f"{allocated_mb:,.0f} MB of device memory did not come back after a trial (at most {expected:,.0f} MB may "
            "stay); the worker is replaced"
        )
