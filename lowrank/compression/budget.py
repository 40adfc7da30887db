"""Budgets: the largest setting of a method whose network stays within limits on parameters, mult-adds and bytes.

Every count is a step function of the method's scale that never falls, so the largest admissible scale is found by
bisection over the floating-point numbers themselves: the very next one would exceed the budget. Of the settings on
that step, the one with the fewest decimals is returned. A method whose size is an integer lists its settings instead.
Where the budget is shared unevenly, one common factor of all groups takes the place of the scale
(lowrank.compression.size_families).
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
from lowrank.layers.base_method import Method
from lowrank.networks.registry import NetworkSettings

MEASURES = ("params", "mult_adds", "bytes")
_SHOWN = {"params": "parameters", "mult_adds": "mult-adds", "bytes": "bytes on disk"}
_THINNEST = 1e-9  # a width at which every layer has one channel; also how finely widths are told apart


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits for the whole network, upper and lower; None is no limit.

    Mult-adds are for one image; bytes are those of the weights as a safetensors file (float32).
    """

    params: int | None = None
    mult_adds: int | None = None
    bytes: int | None = None
    params_min: int | None = None
    mult_adds_min: int | None = None
    bytes_min: int | None = None

    def exceeded(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> str | None:
        """Which upper limit the network breaks and by how much; None if it keeps all.

        `disk` measures bytes; raises ValueError when there is a limit on them and no `disk`.
        """
        for what in MEASURES:
            limit = getattr(self, what)
            if limit is not None and (found := measure(what, plan, sized, disk)) > limit:
                return f"{found:,} {_SHOWN[what]}, over the budget of {limit:,}"
        return None

    def missed(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> str | None:
        """Which lower limit the network stays under and by how much; None if it reaches all."""
        for what in MEASURES:
            least = getattr(self, f"{what}_min")
            if least is not None and (found := measure(what, plan, sized, disk)) < least:
                return f"{found:,} {_SHOWN[what]}, under the {least:,} that the budget asks for at least"
        return None

    def gap(self, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None = None) -> int | None:
        """What is left unused of the upper limit that binds (the one filled most), in its own unit; None without."""
        limits = [(what, getattr(self, what)) for what in MEASURES if getattr(self, what)]
        unused = [(limit - measure(what, plan, sized, disk), limit) for what, limit in limits]
        return min(unused, key=lambda pair: pair[0] / pair[1])[0] if unused else None

    def unreachable(self, plan: NetworkPlan) -> str:
        """The upper limits that no method can meet, since more is never substituted; "" if there is none."""
        fixed = {"params": plan.fixed_params, "mult_adds": plan.fixed_mult_adds}
        short = [what for what in fixed if (limit := getattr(self, what)) is not None and limit < fixed[what]]
        return "".join(f", so {getattr(self, what):,} {_SHOWN[what]} cannot be met" for what in short[:1])


def measure(what: str, plan: NetworkPlan, sized: SizedMethod, disk: FileSizeCalculator | None) -> int:
    """One of MEASURES of the network with `sized` in its sites."""
    if what == "bytes":
        if disk is None:
            raise ValueError("a budget of bytes needs `disk`, which measures them")
        return disk.measure(sized).bytes
    return plan.params(sized) if what == "params" else plan.mult_adds(sized)


def solve(plan: NetworkPlan, method: Method, budget: Budget, disk: FileSizeCalculator | None = None) -> Method:
    """The largest setting of `method` (its own scale is ignored) within `budget`; raises InfeasibleError.

    The error names the nearest possible value and, where that is the cause, what is never substituted.
    """
    found = solve_allocation(plan, method, budget, "even", {}, disk)
    assert isinstance(found, Method)  # an even share is one setting for all
    return found


def solve_allocation(
    plan: NetworkPlan, method: Method, budget: Budget, grouping: Grouping, weights: Mapping[str, float],
    disk: FileSizeCalculator | None = None,
) -> SizedMethod:  # fmt: skip
    """As `solve`, the budget shared by stage or by layer: the next larger common factor would exceed it.

    `weights` (by group; 1 where a group is not named) say how large the groups are beside each other. Raises
    InfeasibleError, and InputError for a weight that is not above 0 or names no group.
    """
    family = make_family(plan, method, grouping, weights)
    by_work = budget.params is None
    found = family.largest(
        lambda sized: budget.exceeded(plan, sized, disk) is None,
        lambda sized: budget.missed(plan, sized, disk) is None, by_work=by_work,
    )  # fmt: skip
    if found is None:
        raise InfeasibleError(_impossible(plan, family.smallest(by_work=by_work), budget, disk))
    short = budget.missed(plan, found, disk)
    if short is not None:
        raise InfeasibleError(f"{_described(found)} cannot be that near to the budget in {plan.name}: it has {short}")
    return found


@lru_cache(maxsize=256)
def solve_width(
    network: NetworkSettings, image_shape: tuple[int, int, int], classes: int, method: Method, budget: Budget
) -> NetworkSettings:
    """The widest of the thinner networks (`width` <= 1) that keeps `budget` with `method` in it: the baseline.

    Widths are told apart to 1e-9, finer than any two steps of networks with up to ten thousand channels; the one with
    the fewest decimals is returned. Raises InfeasibleError, naming the thinnest network's size.
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

    if (over := excess(_THINNEST)) is not None:
        raise InfeasibleError(f"{network.name} cannot be that thin: with one channel in each layer it has {over}")
    widest = 1.0
    if excess(1.0) is not None:
        widest = boundary(lambda width: excess(width) is None, _THINNEST, 1.0, apart=_THINNEST)[0]
    plan, disk = at(widest)
    short = budget.missed(plan, method, disk)
    if short is not None:
        raise InfeasibleError(f"a thinner {network.name} cannot be that near to the budget: it has {short}")
    for decimals in range(1, 10):
        width = math.floor(widest * 10**decimals) / 10**decimals
        if width > 0 and at(width)[0].shapes == plan.shapes:
            return network.model_copy(update={"width": width})
    return network.model_copy(update={"width": widest})


def _impossible(plan: NetworkPlan, smallest: SizedMethod, budget: Budget, disk: FileSizeCalculator | None) -> str:
    exceeded = budget.exceeded(plan, smallest, disk)
    return f"{_described(smallest)} cannot be that small in {plan.name}: its smallest setting has {exceeded}" + (
        f"; {plan.fixed_params:,} parameters and {plan.fixed_mult_adds:,} mult-adds are never substituted{beyond}"
        if (beyond := budget.unreachable(plan)) else ""
    )  # fmt: skip


def _described(sized: SizedMethod) -> str:
    method = sized if isinstance(sized, Method) else sized.methods[0]
    usual = {key: field.default for key, field in type(method).model_fields.items()} | {method.scale: None}
    settings = ", ".join(
        f"{key} {value}" for key, value in method.model_dump().items()
        if key not in ("name", method.scale) and value != usual.get(key)
    )  # fmt: skip
    return f"{method.name} ({settings})" if settings else method.name
