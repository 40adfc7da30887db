"""Solve a budget after training: the largest threshold on the groups' scores whose network is within it.

The sizes of the network never fall as the threshold rises, so that a bisection over the scores finds it. Each threshold
costs no training: one trained network gives a front of sizes. A budget far below what a posterior was trained for would
leave single channels in some layers, through which nothing can be learned any more. So each layer keeps a part of the
groups that it would keep if all layers lost equally many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from lowrank.compression.bayesian.channels import find_structure
from lowrank.compression.bayesian.removal import Remover
from lowrank.compression.budget import Budget
from lowrank.compression.file_size import safetensors_size
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Dense
from lowrank.networks import ImageShape, NetworkSettings

KEEP_ALL = math.inf  # the threshold at which no group is removed
SHARE_STEPS = 256  # of the share of groups that all layers can keep alike


class RemovedSizes:
    """Counts the network that is left at a threshold.

    Args:
        remover: of the trained network.
        image_shape: (C, H, W).
        classes: number of classes.
    """

    def __init__(self, remover: Remover, image_shape: ImageShape, classes: int):
        self._remover, self._image_shape, self._classes = remover, image_shape, classes

    def counts(self, threshold: float) -> dict[str, int]:
        """Count parameters and mult-adds for one image.

        Where groups are only masked, the parameters are those that are not masked, and the mult-adds those of the whole
        network, which still runs.
        """
        settings = self._remover.settings_at(threshold)
        plan = network_plan(settings, self._image_shape, self._classes)
        params = plan.params(Dense())
        if self._remover.is_masked:
            params -= self._remover.masked_parameters(threshold)
        return {"params": params, "mult_adds": plan.mult_adds(Dense())}

    def bytes(self, threshold: float) -> int:
        """Measure the weights as a safetensors file in float32."""
        return file_bytes(self._remover.settings_at(threshold), self._image_shape, self._classes)

    def fits(self, threshold: float, budget: Budget) -> bool:
        """Tell whether the network is within all upper limits of a budget."""
        counts = self.counts(threshold)
        within = all(
            limit is None or counts[name] <= limit
            for name, limit in (("params", budget.params), ("mult_adds", budget.mult_adds))
        )
        return within and (budget.bytes is None or self.bytes(threshold) <= budget.bytes)


def file_bytes(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> int:
    """Measure a plain network as a safetensors file in float32.

    Args:
        settings: of the network.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        Bytes.
    """
    network = network_to_count(settings, image_shape, classes)
    return safetensors_size({name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()})


def solve_threshold(remover: Remover, sizes: RemovedSizes, budget: Budget) -> float:
    """Find the largest threshold whose network is within a budget.

    Args:
        remover: of the trained network.
        sizes: counts what is left at a threshold.
        budget: upper limits; lower limits are not looked at.

    Returns:
        The threshold: a group's score, or KEEP_ALL.

    Raises:
        InfeasibleError: even one group in each layer exceeds the budget.
        InputError: the budget limits mult-adds or bytes of a network whose groups are only masked.
    """
    if remover.is_masked and (budget.mult_adds is not None or budget.bytes is not None):
        raise InputError(
            f"groups of {remover.network_name} are only masked, which changes neither its mult-adds nor its bytes; "
            "give `budget.params`"
        )
    if sizes.fits(KEEP_ALL, budget):
        return KEEP_ALL
    scores = torch.cat(list(remover.scores.values())).unique().tolist()  # ascending
    candidates = [scores[0] - 1, *scores]  # below all scores one group of each layer stays, also where scores are equal
    if not sizes.fits(candidates[0], budget):
        counts = sizes.counts(candidates[0])
        raise InfeasibleError(
            f"bayesian cannot be that small in {remover.network_name}: with one group in each layer it has "
            f"{counts['params']:,} parameters and {counts['mult_adds']:,} mult-adds"
        )
    return _bisect(candidates, lambda threshold: sizes.fits(threshold, budget))


def even_share(
    network: nn.Module, settings: NetworkSettings, image_shape: ImageShape, classes: int, budget: Budget
) -> float:
    """Find the largest share of groups that all layers can keep within a budget.

    Args:
        network: has variational layers; it is not changed.
        settings: of the dense network.
        image_shape: (C, H, W).
        classes: number of classes.
        budget: upper limits; lower limits are not looked at.

    Returns:
        From 0 to 1, a multiple of 1 / SHARE_STEPS. 0 stands for one group in each layer.
    """

    def fits(share: float) -> bool:
        sizes = RemovedSizes(Remover(network, settings, min_share=share), image_shape, classes)
        return sizes.fits(-math.inf, budget)

    return _bisect([step / SHARE_STEPS for step in range(SHARE_STEPS + 1)], fits)


def _bisect(candidates: list[float], fits: Callable[[float], bool]) -> float:
    """Return the last of ascending candidates that fits; the first one does."""
    low, high = 0, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            low = middle
        else:
            high = middle
    return candidates[low]


@lru_cache(maxsize=256)
def smallest_sizes(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> dict[str, int] | None:
    """Count the smallest network that removal can leave: one channel in each layer.

    Args:
        settings: of the dense network.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        Parameters and mult-adds; None for a network whose groups are only masked.
    """
    structure = find_structure(network_to_count(settings, image_shape, classes), settings)
    if structure is None:
        return None
    smallest = settings.model_copy(update=structure.fields([1] * len(structure.channels)))
    plan = network_plan(smallest, image_shape, classes)
    return {"params": plan.params(Dense()), "mult_adds": plan.mult_adds(Dense())}
