"""The weights alone: multiplied out of their factors, and the factors' gradients, ours beside other libraries'.

A reconstructed peer's layer runs the same convolution as ours with a weight of the same shape. Beside that convolution
a rebuild is a hundredth of the time, less than it varies by; here the two are compared without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.layers import one_by_one
from benchmarks.layers.other_libraries import Rebuilt
from benchmarks.measurement import Options
from lowrank.layers import Method
from lowrank.layers.base_layer import StructuredMap

TURNS = 50


def measure_weights(case: one_by_one.Case, methods: Mapping[str, Method], options: Options) -> one_by_one.Timed:
    """Time all weights of a network, for each method whose tensor another library multiplies out, and for these."""
    compared = {name: method for name, method in methods.items() if name in ("tensor_train", "tucker", "cp")}
    return one_by_one.measure(case, compared, options, make_step=make_step, turns=TURNS)


def make_step(module: nn.Module, x: Tensor, direction: Tensor) -> Callable[[], object] | None:
    """The weight and its factors' gradients; None for a layer that forms no weight."""
    form: Callable[[], Tensor]
    if isinstance(module, StructuredMap):
        form = module.weight
    elif isinstance(module, Rebuilt):
        form = module.rebuild
    else:
        return None
    factors = list(module.parameters())
    towards = torch.randn(form().shape, generator=torch.Generator().manual_seed(0))
    return lambda: torch.autograd.grad(form(), factors, towards)
