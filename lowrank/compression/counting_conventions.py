"""What is counted as mult-adds: the project's own convention and the study's (RULES, "Also counted by the study").

`standard` counts the multiplications of convolutions and linear maps, and of products that torch's own counter knows
beside them; `study` adds what the study's script added: the inputs of each ReLU call, the kernel area for each output
of a pooling module, and the biases of linear maps. It counted nothing for batch norm, ReLU6, shuffles, concatenation,
additions, and functional or adaptive pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lowrank.compression.meta_weights import call_with_meta_weights

Convention = Literal["standard", "study"]
CONVENTIONS: tuple[Convention, ...] = ("standard", "study")

_RELU = (torch.ops.aten.relu, torch.ops.aten.relu_)


@dataclass(frozen=True)
class StudyExtras:
    """What the study counted beside convolutions and linear maps, for one image."""

    relu_inputs: int = 0
    pooling: int = 0
    linear_biases: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.relu_inputs + self.pooling + self.linear_biases


class OperationCounter(TorchDispatchMode):
    """Counts what really runs: mult-adds by torch's own formulas, and the inputs of ReLU calls, module or function."""

    def __init__(self) -> None:
        super().__init__()
        self.mult_adds = self.relu_inputs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: torch would import its compiler, which takes longer than `import torch`, to disable it in here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts it."""
        kwargs = kwargs or {}
        operation = func.overloadpacket
        out = call_with_meta_weights(func, args, kwargs)
        if operation in flop_registry:
            self.mult_adds += flop_registry[operation](*args, **kwargs, out_val=out) // 2
        elif operation in _RELU:
            self.relu_inputs += args[0].numel()
        return out


def pooling_cost(module: nn.Module, output: Tensor) -> int:
    """The kernel area for each output of a max or average pooling of two dimensions."""
    assert isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    kernel = module.kernel_size
    return (kernel**2 if isinstance(kernel, int) else math.prod(kernel)) * output.numel()
