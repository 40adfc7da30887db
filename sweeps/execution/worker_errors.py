"""What errors of a training mean: for the worker process, which may have to be replaced, and for the trial."""

from __future__ import annotations

import torch

from lowrank.data import ImageData
from lowrank.errors import LowrankError
from lowrank.utils import is_raised_in_forward

ALLOWED_MB = 1000.0
"""Device memory, in MB (1e6 bytes), that may stay after a trial beside the images: libraries, a teacher."""


class WorkerLostError(LowrankError):
    """This process cannot train any more; its trial goes on in a new one. Its one line is recorded as the reason."""


class NetworkFailedError(LowrankError):
    """The network's own code failed in a process of a group, and would again. Its one line ends the trial."""


def comes_again(error: BaseException, device: str) -> bool:
    """Tell whether an error of a training would come again, since an epoch depends on the state before it alone.

    Args:
        error: that is neither of the device nor for want of memory.
        device: where the trial trains. On a GPU libraries raise RuntimeError for reasons of their own.

    Returns:
        True for an error of the network's own `forward`, unless it is one of a file or a connection.
    """
    if isinstance(error, OSError) or (isinstance(error, RuntimeError) and device != "cpu"):
        return False
    return is_raised_in_forward(error)


def resident_mb(data: ImageData, device: torch.device) -> float:
    """Return the size of the images that stay on a device from trial to trial.

    Args:
        data: the data set of the trials.
        device: where they train.

    Returns:
        MB (1e6 bytes); 0 if images are streamed.
    """
    if not data.resident:
        return 0.0
    splits = (split for split in (data.train, data.val, data.test) if split.is_decoded)
    return sum(tensor.numel() * tensor.element_size() for split in splits for tensor in split.on(device)) / 1e6


def check_memory_is_back(data: ImageData, allocated_mb: float, device: torch.device) -> None:
    """Check between two trials that the last one gave its device memory back.

    Args:
        data: the data set of the trials.
        allocated_mb: device memory that tensors hold now, in MB.
        device: where they train.

    Raises:
        WorkerLostError: more is held than the images and `ALLOWED_MB`.
    """
    allowed_mb = resident_mb(data, device) + ALLOWED_MB
    if allocated_mb > allowed_mb:
        raise WorkerLostError(
            f"{allocated_mb:,.0f} MB of device memory did not come back after a trial (at most {allowed_mb:,.0f} MB "
            "may stay); the worker is replaced"
        )
