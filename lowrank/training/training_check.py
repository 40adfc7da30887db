"""Whether a network of the user's can be trained: one step on two images, before anything starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import InputError, LowrankError
from lowrank.networks import copy_network
from lowrank.training.objective import split_output
from lowrank.utils import first_line


def check_training_step(network: nn.Module, name: str, image_shape: tuple[int, int, int], classes: int) -> None:
    """Check that a network of the user's can be trained, by one step on two images.

    Args:
        network: as its function returns it, on the CPU; its gradients and statistics change.
        name: of the network, for messages.
        image_shape: (C, H, W).
        classes: number of classes.

    Raises:
        InputError: it cannot be copied, raises an error, returns no logits, or no parameter gets a gradient.
    """
    copy_network(network)
    images = torch.zeros(2, *image_shape)
    shape = (2, classes)
    try:
        for is_training in (False, True):
            logits, _ = split_output(network.train(is_training)(images))
            if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
                received = f"a {type(logits).__name__}"
                if isinstance(logits, Tensor):
                    received = f"a tensor of {tuple(logits.shape)}"
                mode = "training" if is_training else "evaluation"
                raise InputError(
                    f"{name} must return logits {shape} for two images, alone or first in a tuple, but in {mode} mode "
                    f"it returned {received}"
                )
        functional.cross_entropy(logits, torch.zeros(2, dtype=torch.int64)).backward()
    except LowrankError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{name} cannot be trained: a step on two images raises {reason}") from error
    if all(parameter.grad is None for parameter in network.parameters()):
        raise InputError(f"{name} cannot be trained: no parameter of it gets a gradient")
