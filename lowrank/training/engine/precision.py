"""The number formats of training: which one a recipe means on a device, and float16's loss scale.

Nothing here waits for the device: overflow, scale and skipped steps stay tensors there until an epoch is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lowrank.training.recipe import Recipe

START_SCALE = 2.0**16
MIN_SCALE = 1.0  # a gradient that overflows without any scale is the training's fault, not the format's
GROWTH_STEPS = 2000  # steps without overflow after which the scale is doubled


def working_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """The format that networks run in under autocast; None: float32 throughout. Parameters are float32 always."""
    if recipe.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context in which a network runs in `dtype`."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class LossScaler:
    """Dynamic loss scaling: halved by an overflow, whose step is skipped, doubled after GROWTH_STEPS without one.

    Never below MIN_SCALE; a step that overflows there is `collapsed`.
    Source: Micikevicius et al. 2018, "Mixed precision training".
    """

    def __init__(self, device: torch.device):
        self.scale = torch.full((1,), START_SCALE, device=device)
        self.growth = torch.zeros((1,), dtype=torch.int32, device=device)  # steps since the last change
        self.overflow = torch.zeros((1,), device=device)  # 1 where the last step's gradients overflowed
        self.skipped = torch.zeros((1,), device=device)  # steps of this epoch

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss * self.scale[0]

    def unscale(self, gradients: Iterable[Tensor]) -> Tensor:
        """Divide gradients in place. Returns whether the training has collapsed: 1 or 0, of shape (1,)."""
        self.overflow.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), self.overflow, self.scale.reciprocal())
        self.skipped += self.overflow
        return self.overflow * (self.scale <= MIN_SCALE)

    def update(self) -> None:
        """Change the scale after a step."""
        torch._amp_update_scale_(self.scale, self.growth, self.overflow, 2.0, 0.5, GROWTH_STEPS)
        self.scale.clamp_(min=MIN_SCALE)

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {"scale": self.scale.clone(), "growth": self.growth.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        self.scale.copy_(state["scale"])
        self.growth.copy_(state["growth"])
