"""Counts parameters, mult-adds and bytes of a network whose layers a method replaces, as JSON and as a table.

Nothing is trained: the network runs once on torch's meta device, without memory for its weights. Formulas give the
rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lowrank.compression.contraction_cost import RealCost, real_cost
from lowrank.compression.counting_conventions import Convention
from lowrank.compression.file_size import FileSize, measure_file_size
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.errors import InfeasibleError
from lowrank.layers import Dense, Method, Separable
from lowrank.networks import ImageShape, NetworkSettings


@dataclass(frozen=True)
class NetworkCount:
    """Sizes and costs of a network in which a method replaces layers.

    A site is a convolution or linear map of the network. It is substituted where the method replaces it.

    Attributes:
        network: settings of the dense network.
        method: the method that replaces the substituted sites.
        image: shape (C, H, W) of the image that mult-adds are counted for.
        classes: number of classes.
        plan: the sites, under the convention that mult-adds are counted by.
        file_size: size of the weights on disk.
        real_costs: mult-adds as the layer is executed, one entry for each substituted site, see
            lowrank.compression.contraction_cost; None for a method that is no tensor decomposition.
    """

    network: NetworkSettings
    method: Method
    image: ImageShape
    classes: int
    plan: NetworkPlan
    file_size: FileSize
    real_costs: tuple[RealCost | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all counts as plain data.

        Returns:
            Parameters, bytes, and mult-adds for one image. The mult-adds under keys that end in `_once` are executed
            once per training step, whatever the batch size. `layers` has a row for each site.
        """
        plan, method = self.plan, self.method
        costs = iter(self.real_costs)
        return {
            "network": self.network.model_dump(), "image": list(self.image), "classes": self.classes,
            "method": method.model_dump(), "convention": plan.convention, "params": plan.params(method),
            "mult_adds": plan.mult_adds(method), "dense_params": plan.params(Dense()),
            "dense_mult_adds": plan.mult_adds(Dense()), "separable_params": plan.params(Separable()),
            "separable_mult_adds": plan.mult_adds(Separable()), "fixed_params": plan.fixed_params,
            "substituted": len(plan.substituted), "factor_params": self.file_size.factor_params,
            "factor_share": self.file_size.factor_params / plan.params(method), "bytes": self.file_size.bytes,
            **self._real_totals(), "other_params": plan.other_params, "other_mult_adds": plan.other_mult_adds,
            "study_extras": asdict(plan.extras),
            "layers": [
                {**asdict(layer), **({} if layer.kept or (cost := next(costs)) is None else asdict(cost))}
                for layer in self.layers()
            ],
        }  # fmt: skip

    def layers(self) -> list[_LayerCount]:
        """Count each site."""
        return [_count_layer(self.plan, site, self.method) for site in self.plan.sites]

    def _real_totals(self) -> dict[str, int]:
        """Sum the costs of both ways of execution over the network; empty if the method is no tensor decomposition."""
        costs = [cost for cost in self.real_costs if cost is not None]
        if not costs:
            return {}
        fixed = self.plan.fixed_mult_adds
        return {
            "rebuilt_once": sum(cost.rebuilt_once for cost in costs),
            "rebuilt_mult_adds": fixed + sum(cost.rebuilt_image for cost in costs),
            "contracted_once": sum(cost.contracted_once for cost in costs),
            "contracted_mult_adds": fixed + sum(cost.contracted_image for cost in costs),
        }


def count_network(
    network: NetworkSettings, method: Method, image: ImageShape, classes: int, convention: Convention = "standard"
) -> NetworkCount:
    """Count a network in which a method replaces layers.

    Args:
        network: settings of the dense network.
        method: the method that replaces the substituted sites.
        image: shape (C, H, W) of its images.
        classes: number of classes.
        convention: what counts as a mult-add: "standard" or "study" (as the published study counted).

    Returns:
        All counts.

    Raises:
        InfeasibleError: the method cannot replace one of the sites.
        InputError: there is no such network, or it does not take such images.
        UncountableError: a layer has no counting rule.
    """
    plan = network_plan(network, image, classes).with_convention(convention)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    file_size = measure_file_size(network_to_count(network, image, classes), plan, method)
    real_costs = tuple(real_cost(method, site.shape) for site in plan.substituted)
    return NetworkCount(network, method, image, classes, plan, file_size, real_costs)


@dataclass(frozen=True)
class _LayerCount:
    """One site; `kept` is the reason why it is not substituted, or empty."""

    name: str
    linear: bool
    in_channels: int
    out_channels: int
    kernel: list[int]
    stride: list[int]
    in_area: int
    out_area: int
    kept: str
    params: int
    mult_adds: int
    dense_params: int
    dense_mult_adds: int


def _count_layer(plan: NetworkPlan, site: Site, method: Method) -> _LayerCount:
    shape, dense, keep = site.shape, Dense(), bool(site.keep_reason)
    return _LayerCount(
        name=site.name, linear=site.linear, in_channels=shape.in_channels, out_channels=shape.out_channels,
        kernel=list(shape.kernel), stride=list(shape.stride), in_area=shape.in_area, out_area=shape.out_area,
        kept=site.keep_reason, params=site.params if keep else method.params(shape),
        mult_adds=site.mult_adds if keep else plan.layer_mult_adds(method, shape),
        dense_params=site.params if keep else dense.params(shape),
        dense_mult_adds=site.mult_adds if keep else dense.mult_adds(shape),
    )  # fmt: skip


def format_count(count: NetworkCount) -> list[str]:
    """Format all counts for a terminal.

    Args:
        count: what was counted.

    Returns:
        Lines: a heading, the totals, a table with a row for each site, and remarks.
    """
    values = count.to_json()
    settings = ", ".join(f"{key} {value}" for key, value in values["method"].items() if key != "name")
    width = "" if count.network.width == 1.0 else f" at width {count.network.width:g}"
    size = "x".join(map(str, count.image))
    return [
        f"{count.network.name}{width} with {count.method.name}{f' ({settings})' if settings else ''}; "
        f"images {size}, {count.classes} classes; {count.plan.convention} convention",
        "",
        *_totals(values), "", *_table(count.layers()), *_remarks(count.plan),
    ]  # fmt: skip


def _totals(values: Mapping[str, Any]) -> list[str]:
    share = values["params"] / values["dense_params"]
    lines = [
        f"parameters     {values['params']:>16,}   {share:.2%} of dense {values['dense_params']:,}; "
        f"separable {values['separable_params']:,}",
        f"mult-adds      {values['mult_adds']:>16,}   an image; dense {values['dense_mult_adds']:,}; "
        f"separable {values['separable_mult_adds']:,}",
        f"factors        {values['factor_params']:>16,}   {values['factor_share']:.2%} of the parameters",
        f"on disk        {values['bytes']:>16,}   bytes of safetensors",
    ]
    executions = (("rebuilt", "weights rebuilt from factors"), ("contracted", "cores contracted in the cheapest order"))
    for execution, meaning in executions:
        if f"{execution}_once" in values:
            lines.append(
                f"{execution:14} {values[f'{execution}_mult_adds']:>16,}   mult-adds executed for an image, plus "
                f"{values[f'{execution}_once']:,} once a step: {meaning}"
            )
    return lines


def _table(layers: Iterable[_LayerCount]) -> list[str]:
    headers = ("layer", "shape", "positions", "parameters", "mult-adds", "dense parameters", "not replaced because")
    rows = [headers, *(_cells(layer) for layer in layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headers))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(layer: _LayerCount) -> tuple[str, ...]:
    kernel = "linear" if layer.linear else "{}x{}".format(*layer.kernel)
    return (
        layer.name, f"{kernel} {layer.in_channels}-{layer.out_channels}", f"{layer.out_area:,}", f"{layer.params:,}",
        f"{layer.mult_adds:,}", f"{layer.dense_params:,}", layer.kept,
    )  # fmt: skip


def _remarks(plan: NetworkPlan) -> list[str]:
    lines = [f"outside these layers: {plan.other_params:,} parameters (norms and the like)"]
    lines += _other_modules(plan)
    lines += [plan.nothing_replaced] if plan.nothing_replaced else []
    if plan.other_mult_adds:
        lines.append(f"products of activations: {plan.other_mult_adds:,} mult-adds")
    if plan.convention == "study":
        extras = plan.extras
        lines.append(
            f"the published study also counted: {extras.relu_inputs:,} inputs of ReLU, {extras.pooling:,} for pooling, "
            f"{extras.linear_biases:,} biases of linear maps"
        )
    return lines


def _other_modules(plan: NetworkPlan) -> list[str]:
    """Name the modules with products that are no sites, in a line for each reason why they stay."""
    names: dict[str, list[str]] = {}
    for name, reason in plan.other_modules:
        names.setdefault(reason, []).append(name)
    return [
        f"not replaced: {modules[0]}{f' and {len(modules) - 1} more' if modules[1:] else ''}, {reason}"
        for reason, modules in names.items()
    ]
