"""Budgets: the largest setting of a method whose network stays within limits on parameters, mult-adds and bytes.

Every count is a step function of the method's scale that never falls. So the largest admissible scale is found by
bisection over the floating-point numbers themselves: the next one would exceed the budget. Of the settings on that
step, the one with the fewest decimals is returned. A method whose size is an integer lists its settings instead. In an
allocation, one common factor of all groups replaces the scale (lowrank.compression.size_families).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lowrank.compression.allocation import Grouping, SizedMethod
from lowrank.compression.file_size import FileSizeCalculator
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.size_families import boundary, make_family
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.errors import InfeasibleError
from lowrank.layers import Method
from lowrank.networks import NetworkSettings

QUANTITIES = ("params", "mult_adds", "bytes")
_LABELS = {"params": "parameters", "mult_adds": "mult-adds", "bytes": "bytes on disk"}
_MIN_WIDTH = 1e-9  # every layer has one channel then; widths that differ by less are taken as equal


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits for the whole network; None is no limit.

    Attributes:
        params: most parameters.
        mult_adds: most mult-adds for one image.
        bytes: most bytes of the weights as a safetensors file in float32.
        params_min: fewest parameters.
        mult_adds_min: fewest mult-adds.
        bytes_min: fewest bytes.
    """

    params: int | None = None
    mult_adds: int | None = None
    bytes: int | None = None
    params_min: int | None = None
    mult_adds_min: int | None = None
    bytes_min: int | None = None

    def exceeded(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> str | None:
        """Describe the first upper limit that a network exceeds.

        Args:
            plan: the network's sites.
            sized: what stands in them.
            disk: measures bytes.

        Returns:
            The size and the limit; None if the network keeps all upper limits.

        Raises:
            ValueError: there is a limit on bytes, but no `disk`.
        """
        for quantity in QUANTITIES:
            limit = getattr(self, quantity)
            if limit is not None and (size := measure(quantity, plan, sized, disk)) > limit:
                return f"{size:,} {_LABELS[quantity]}, over the budget of {limit:,}"
        return None

    def missed(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> str | None:
        """Describe the first lower limit that a network does not reach.

        Args:
            plan: the network's sites.
            sized: what stands in them.
            disk: measures bytes.

        Returns:
            The size and the limit; None if the network reaches all lower limits.

        Raises:
            ValueError: there is a limit on bytes, but no `disk`.
        """
        for quantity in QUANTITIES:
            minimum = getattr(self, f"{quantity}_min")
            if minimum is not None and (size := measure(quantity, plan, sized, disk)) < minimum:
                return f"{size:,} {_LABELS[quantity]}, under the budget's minimum of {minimum:,}"
        return None

    def gap(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> int | None:
        """Return what a network leaves unused of the upper limit that it fills most.

        Args:
            plan: the network's sites.
            sized: what stands in them.
            disk: measures bytes.

        Returns:
            The difference in the unit of that limit; None without upper limits.

        Raises:
            ValueError: there is a limit on bytes, but no `disk`.
        """
        limits = [(quantity, getattr(self, quantity)) for quantity in QUANTITIES if getattr(self, quantity)]
        unused = [(limit - measure(quantity, plan, sized, disk), limit) for quantity, limit in limits]
        return min(unused, key=lambda pair: pair[0] / pair[1])[0] if unused else None

    def unreachable(self, plan: NetworkPlan) -> str:
        """Name the first upper limit below what is never substituted, as the end of a sentence; "" if there is none."""
        fixed = {"params": plan.fixed_params, "mult_adds": plan.fixed_mult_adds}
        limits = {quantity: getattr(self, quantity) for quantity in fixed}
        names = [name for name, limit in limits.items() if limit is not None and limit < fixed[name]]
        return "".join(f", so {limits[name]:,} {_LABELS[name]} cannot be met" for name in names[:1])


def measure(quantity: str, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None) -> int:
    """Measure a network with a method in its sites.

    Args:
        quantity: one of QUANTITIES.
        plan: the network's sites.
        sized: what stands in them.
        disk: measures bytes.

    Returns:
        Parameters, mult-adds for one image, or bytes.

    Raises:
        ValueError: bytes are asked for without `disk`.
    """
    if quantity == "bytes":
        if disk is None:
            raise ValueError("a budget of bytes needs `disk`, which measures them")
        return disk.measure(sized).bytes
    return plan.params(sized) if quantity == "params" else plan.mult_adds(sized)


def solve(plan: NetworkPlan, method: Method, budget: Budget, disk: FileSizeCalculator | None = None) -> Method:
    """Find the largest setting of a method within a budget.

    Args:
        plan: the network's sites.
        method: the method; its own scale is ignored.
        budget: the limits.
        disk: measures bytes; needed if there is a limit on them.

    Returns:
        The method with that setting.

    Raises:
        InfeasibleError: no setting meets the budget; the message gives the nearest size, and what is never substituted
            if that alone exceeds a limit.
        ValueError: there is a limit on bytes, but no `disk`.
    """
    solution = solve_allocation(plan, method, budget, "even", {}, disk)
    assert isinstance(solution, Method)  # grouped evenly, one setting stands everywhere
    return solution


def solve_allocation(
    plan: NetworkPlan, method: Method, budget: Budget, grouping: Grouping, weights: Mapping[str, float],
    disk: FileSizeCalculator | None = None,
) -> SizedMethod:  # fmt: skip
    """Find the largest sizes of all groups within a budget.

    Sizes are in the ratios of the weights.

    Args:
        plan: the network's sites.
        method: the method; its own scale is ignored.
        budget: the limits.
        grouping: which layers have one size.
        weights: relative size by group; 1 for a group that is not named.
        disk: measures bytes; needed if there is a limit on them.

    Returns:
        The allocation whose next larger common factor would exceed the budget; a single method if grouped evenly.

    Raises:
        InfeasibleError: no size meets the budget.
        InputError: a weight is not above 0, or names no group.
        ValueError: there is a limit on bytes, but no `disk`.
    """
    family = make_family(plan, method, grouping, weights)
    by_work = budget.params is None
    solution = family.largest(
        lambda sized: budget.exceeded(plan, sized, disk) is None,
        lambda sized: budget.missed(plan, sized, disk) is None, by_work=by_work,
    )  # fmt: skip
    if solution is None:
        smallest = family.smallest(by_work=by_work)
        raise InfeasibleError(_explain_too_small(plan, smallest, budget, disk), plan.params(smallest))
    shortfall = budget.missed(plan, solution, disk)
    if shortfall is not None:
        raise InfeasibleError(
            f"{_describe(solution)} has no setting that reaches the budget in {plan.name}: the nearest has {shortfall}"
        )
    return solution


@lru_cache(maxsize=256)
def solve_width(
    network: NetworkSettings, image_shape: tuple[int, int, int], classes: int, method: Method, budget: Budget
) -> NetworkSettings:
    """Find the widest thinner network (`width` <= 1) that keeps a budget.

    It is the baseline of compression. Widths are distinguished to 1e-9, finer than any two steps of networks with up to
    ten thousand channels. Of equal networks, the width with the fewest decimals is returned.

    Args:
        network: the network; its own width is ignored.
        image_shape: (C, H, W) of its images.
        classes: number of classes.
        method: what stands in its sites, such as dense or separable.
        budget: the limits.

    Returns:
        The network with that width.

    Raises:
        InfeasibleError: even one channel in each layer exceeds the budget, or no width is that near to it.
    """

    def at(width: float) -> tuple[NetworkPlan, FileSizeCalculator | None]:
        settings = network.model_copy(update={"width": width})
        plan = network_plan(settings, image_shape, classes)
        asks_for_bytes = budget.bytes is not None or budget.bytes_min is not None
        return plan, FileSizeCalculator(
            network_to_count(settings, image_shape, classes), plan
        ) if asks_for_bytes else None

    def excess(width: float) -> str | None:
        plan, disk = at(width)
        return budget.exceeded(plan, method, disk)

    if (over := excess(_MIN_WIDTH)) is not None:
        raise InfeasibleError(
            f"{network.name} has no width within the budget: with one channel in each layer it has {over}"
        )
    widest = 1.0
    if excess(1.0) is not None:
        widest = boundary(lambda width: excess(width) is None, _MIN_WIDTH, 1.0, apart=_MIN_WIDTH)[0]
    plan, disk = at(widest)
    shortfall = budget.missed(plan, method, disk)
    if shortfall is not None:
        raise InfeasibleError(f"{network.name} has no width that reaches the budget: the nearest has {shortfall}")
    for decimals in range(1, 10):
        width = math.floor(widest * 10**decimals) / 10**decimals
        if width > 0 and at(width)[0].shapes == plan.shapes:
            return network.model_copy(update={"width": width})
    return network.model_copy(update={"width": widest})


def _explain_too_small(
    plan: NetworkPlan, smallest: SizedMethod, budget: Budget, disk: FileSizeCalculator | None
) -> str:
    excess = budget.exceeded(plan, smallest, disk)
    reason = f"{_describe(smallest)} has no setting within the budget in {plan.name}: its smallest has {excess}"
    unreachable = budget.unreachable(plan)
    if unreachable:
        fixed = f"{plan.fixed_params:,} parameters and {plan.fixed_mult_adds:,} mult-adds"
        reason += f"; {fixed} are never substituted{unreachable}"
    return reason


def _describe(sized: SizedMethod) -> str:
    method = sized if isinstance(sized, Method) else sized.main_method
    defaults = {key: field.default for key, field in type(method).model_fields.items()} | {method.scale: None}
    settings = ", ".join(
        f"{key} {value}" for key, value in method.model_dump().items()
        if key not in ("name", method.scale) and value != defaults.get(key)
    )  # fmt: skip
    return f"{method.name} ({settings})" if settings else method.name
