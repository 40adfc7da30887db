"""What a training step must move through a device's memory, and how fast that memory is: the limit by traffic.

Counted for each image, X being a layer's input and Y its output, in values:
  a convolution, structured maps included    X + Y forward; X, Y's gradient, X's gradient backward (none for the images)
  a batch norm, its ReLU, residual and pool  statistics Y, result Y + Z forward; sums Y + Z, gradient 2Y + Z backward, Z
                                             being what the pool leaves
  a linear map                               as a convolution
  a layer norm                               X + Y forward; X, Y's gradient, X's gradient backward
  a tap's attention map                      Y forward; backward its gradient can be added where the next layer reads Y
and nothing else: no weights, no optimizer, no images, no rebuild, no addition of its own, no attention of transformers,
no answers of a teacher (less than a thousandth). So a step whose layers are kernels of their own cannot be faster than
bytes over bandwidth; one that fuses a norm into its convolutions might.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.layers.base_layer import StructuredMap

COPIED = 2**30  # bytes; far more than any cache holds
COPIES = 20
LINEAR = (StructuredMap, nn.Conv2d, nn.Linear)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def step_bytes(network: nn.Module, image_shape: tuple[int, ...], width: int, taps: Sequence[str] = ()) -> int:
    """Bytes that a step moves for each image, activations being of `width` bytes a value.

    `taps` are names of modules whose attention maps the loss compares with a teacher's.
    """
    values, first = [0], [True]

    def count_tap(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        values[0] += output.numel()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y = inputs[0].numel(), output.numel()
        if isinstance(module, LINEAR):
            values[0] += (2 if first[0] else 3) * x + 2 * y
            first[0] = False
        elif isinstance(module, nn.BatchNorm2d):
            values[0] += 8 * y
        elif isinstance(module, nn.LayerNorm):
            values[0] += 3 * x + 2 * y
        elif isinstance(module, _POOLS):
            values[0] -= 3 * (x - y)  # the norm before it writes and reads what the pool leaves

    kinds = (*LINEAR, nn.BatchNorm2d, nn.LayerNorm, *_POOLS)
    handles = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    handles += [network.get_submodule(name).register_forward_hook(count_tap) for name in taps]
    was = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
    network.train(was)
    for handle in handles:
        handle.remove()
    return values[0] * width


def copy_bandwidth(device: str, size: int = COPIED) -> float:
    """Bytes read and written in a second by the fastest of COPIES copies on the device."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(COPIES):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size / best
