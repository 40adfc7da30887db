"""`python -m lowrank.count --network wrn_28_10 --method tensor_train --dims 3 --rank-scale 0.26`: sizes, to the last
parameter.

Nothing is trained: a network is run once without memory, and all else is arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

from lowrank.compression.budget import Budget, solve, solve_width
from lowrank.compression.contraction_cost import RealCost, real_cost
from lowrank.compression.counting_conventions import CONVENTIONS, Convention
from lowrank.compression.file_size import FileSize, measure_file_size
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Dense, Method, Separable
from lowrank.layers.registry import METHODS, make_method, method_class
from lowrank.networks.images import ImageShape
from lowrank.networks.registry import NETWORK_NAMES, NetworkSettings, default_images
from lowrank.utils.cli import OneLineParser, run_command
from lowrank.utils.validation import validate_model

SETTINGS = ("dims", "rank_scale", "groups", "layers", "blocks", "share_of", "bias")  # fields with an option each
SIZES = ("rank_scale", "scale", "groups", "layers")  # what a budget solves


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m lowrank.count", allow_abbrev=False,
        description="Parameters, mult-adds for one image, real costs and size on disk of a substituted network.",
        epilog="Exit codes: 0 done, 2 bad input.",
    )  # fmt: skip
    network = parser.add_argument_group("the network")
    network.add_argument("--network", required=True, metavar="NAME", help="; ".join(NETWORK_NAMES))
    network.add_argument("--width", type=float, metavar="SHARE", help="inner channels relative to the published ones")
    network.add_argument("--linear", action="store_true", help="substitute linear maps too")
    network.add_argument("--image", metavar="CxHxW", help="e.g. 3x224x224 (default: what it was published for)")
    network.add_argument("--classes", type=int, metavar="N", help="default: as published")
    method = parser.add_argument_group("the method")
    method.add_argument("--method", default="dense", metavar="NAME", help=", ".join(METHODS))
    method.add_argument("--dims", type=int, metavar="D", help="dimensions of tensor_train, tucker, cp")
    method.add_argument("--rank-scale", type=float, metavar="X", help="rank relative to the sizes")
    method.add_argument("--scale", type=float, metavar="X", help="the same by another name; size of a hashed bank")
    method.add_argument("--groups", type=int, metavar="G", help="of shuffle")
    method.add_argument("--layers", type=int, metavar="L", help="real layers of acdc")
    method.add_argument("--blocks", type=int, metavar="N", help="of monarch")
    method.add_argument("--share-of", metavar="PART", help="pointwise or kernel: what `hashed` takes its scale of")
    method.add_argument("--bias", action=argparse.BooleanOptionalAction, help="a bias of the hashed layers' own")
    method.add_argument("--budget", type=float, metavar="N", help="parameters at most; solves the scale, or the width")
    output = parser.add_argument_group("the output")
    output.add_argument("--convention", default="standard", choices=CONVENTIONS, help="what counts as mult-adds")
    output.add_argument("--json", action="store_true")
    return parser


@dataclass(frozen=True)
class Counted:
    """A network with a method: everything that the command prints."""

    network: NetworkSettings
    method: Method
    image: ImageShape
    classes: int
    plan: NetworkPlan
    on_disk: FileSize
    real: tuple[RealCost | None, ...]  # by substituted site

    def to_json(self) -> dict[str, Any]:
        """Plain data; mult-adds are for one image, `*_once` what is paid once a step beside."""
        plan, method = self.plan, self.method
        costs = iter(self.real)
        return {
            "network": self.network.model_dump(), "image": list(self.image), "classes": self.classes,
            "method": method.model_dump(), "convention": plan.convention, "params": plan.params(method),
            "mult_adds": plan.mult_adds(method), "dense_params": plan.params(Dense()),
            "dense_mult_adds": plan.mult_adds(Dense()), "separable_params": plan.params(Separable()),
            "separable_mult_adds": plan.mult_adds(Separable()), "fixed_params": plan.fixed_params,
            "substituted": len(plan.substituted), "factor_params": self.on_disk.factor_params,
            "factor_share": self.on_disk.factor_params / plan.params(method), "bytes": self.on_disk.bytes,
            **self._real_totals(), "other_params": plan.other_params, "other_mult_adds": plan.other_mult_adds,
            "study_extras": asdict(plan.extras),
            "layers": [
                _layer(site, method, None if site.keep_reason else next(costs)) for site in plan.sites
            ],
        }  # fmt: skip

    def _real_totals(self) -> dict[str, int]:
        """Both real costs of the whole network; nothing for a method that is no decomposition."""
        found = [cost for cost in self.real if cost is not None]
        if not found:
            return {}
        fixed = self.plan.fixed_mult_adds
        return {
            "rebuilt_once": sum(cost.rebuilt_once for cost in found),
            "rebuilt_mult_adds": fixed + sum(cost.rebuilt_image for cost in found),
            "contracted_once": sum(cost.contracted_once for cost in found),
            "contracted_mult_adds": fixed + sum(cost.contracted_image for cost in found),
        }


def _layer(site: Site, method: Method, cost: RealCost | None) -> dict[str, Any]:
    """One row of the table; `keep_reason` says why a layer is not substituted."""
    shape, dense = site.shape, Dense()
    row: dict[str, Any] = {
        "name": site.name, "linear": site.linear, "in_channels": shape.in_channels,
        "out_channels": shape.out_channels, "kernel": list(shape.kernel), "stride": list(shape.stride),
        "in_area": shape.in_area, "out_area": shape.out_area, "kept": site.keep_reason,
        "params": site.params if site.keep_reason else method.params(shape),
        "mult_adds": site.mult_adds if site.keep_reason else method.mult_adds(shape),
        "dense_params": site.params if site.keep_reason else dense.params(shape),
        "dense_mult_adds": site.mult_adds if site.keep_reason else dense.mult_adds(shape),
    }  # fmt: skip
    return row if cost is None else {**row, **asdict(cost)}


def count(
    network: NetworkSettings, method: Method, image: ImageShape, classes: int, convention: Convention = "standard"
) -> Counted:
    """Count a named network with `method`; raises InputError, InfeasibleError among them, and UncountableError."""
    plan = network_plan(network, image, classes).under(convention)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    on_disk = measure_file_size(network_to_count(network, image, classes), plan, method)
    real = tuple(real_cost(method, site.shape) for site in plan.substituted)
    return Counted(network, method, image, classes, plan, on_disk, real)


def parse_image(text: str) -> ImageShape:
    """(C, H, W) from CxHxW; raises InputError."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise InputError(f"`--image` must be channels, height and width such as 3x32x32, but got {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


def _method(options: argparse.Namespace) -> Method:
    """The method that the options describe; an option that it does not have is an error."""
    kind = method_class(options.method)
    settings = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    if options.scale is not None:
        if kind.scale is None:
            raise _no_setting(kind, "scale")
        if kind.scale in settings:
            raise InputError("give one of `--scale` and `--rank-scale`; they are the same setting")
        settings[kind.scale] = options.scale
    for name in settings:
        if name not in kind.model_fields:
            raise _no_setting(kind, name)
    return make_method({"name": options.method, **settings})


def _no_setting(kind: type[Method], name: str) -> InputError:
    own = ["--scale"] if kind.scale else []
    own += [_option(field) for field in kind.model_fields if field in SETTINGS and field != "bank_scale"]
    method = kind.model_fields["name"].default
    return InputError(f"{method} has no setting `{_option(name)}`; it has: {', '.join(own) or 'none'}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _solved(
    options: argparse.Namespace, network: NetworkSettings, method: Method, image: ImageShape, classes: int
) -> tuple[NetworkSettings, Method]:
    """The largest size within `--budget`: of the method, or of the network where the method has but one."""
    if not (math.isfinite(options.budget) and options.budget >= 1):
        raise InputError(f"`--budget` must be a number of parameters of at least 1, but got {options.budget:g}")
    given = next((name for name in SIZES if getattr(options, name) is not None), None)
    if given is not None:
        raise InputError(f"`--budget` solves the size; leave out `{_option(given)}`")
    budget = Budget(params=int(options.budget))
    if isinstance(method, Dense | Separable):
        if options.width is not None:
            raise InputError(f"`--budget` solves the width of a network with {method.name} layers; leave out `--width`")
        return solve_width(network, image, classes, method, budget), method
    return network, solve(network_plan(network, image, classes), method, budget)


def run(options: argparse.Namespace) -> Counted:
    """Count what the parsed options ask for."""
    image, classes = default_images(options.network)
    if options.image is not None:
        image = parse_image(options.image)
    if options.classes is not None:
        if options.classes < 1:
            raise InputError(f"`--classes` must be at least 1, but got {options.classes}")
        classes = options.classes
    width = 1.0 if options.width is None else options.width
    network = validate_model(
        NetworkSettings, {"name": options.network, "width": width, "linear": options.linear}, "network"
    )
    method = _method(options)
    if options.budget is not None:
        network, method = _solved(options, network, method, image, classes)
    return count(network, method, image, classes, options.convention)


def lines(counted: Counted) -> list[str]:
    """What the command prints without `--json`."""
    found = counted.to_json()
    settings = ", ".join(f"{key} {value}" for key, value in found["method"].items() if key != "name")
    width = "" if counted.network.width == 1.0 else f" at width {counted.network.width:g}"
    size = "x".join(map(str, counted.image))
    return [
        f"{counted.network.name}{width} with {counted.method.name}{f' ({settings})' if settings else ''}; "
        f"images {size}, {counted.classes} classes; {counted.plan.convention} convention",
        "",
        *_totals(found), "", *_table(found["layers"]), *_remarks(counted),
    ]  # fmt: skip


def _totals(found: dict[str, Any]) -> list[str]:
    share = found["params"] / found["dense_params"]
    rows = [
        f"parameters     {found['params']:>16,}   {share:.2%} of dense {found['dense_params']:,}; "
        f"separable {found['separable_params']:,}",
        f"mult-adds      {found['mult_adds']:>16,}   an image; dense {found['dense_mult_adds']:,}; "
        f"separable {found['separable_mult_adds']:,}",
        f"factors        {found['factor_params']:>16,}   {found['factor_share']:.2%} of the parameters",
        f"on disk        {found['bytes']:>16,}   bytes of safetensors",
    ]
    for kind, what in (("rebuilt", "weights rebuilt from factors"), ("contracted", "cores in the best order")):
        if f"{kind}_once" in found:
            rows.append(
                f"{kind:14} {found[f'{kind}_mult_adds']:>16,}   really, an image, and {found[f'{kind}_once']:,} "
                f"once a step: {what}"
            )
    return rows


def _table(layers: list[dict[str, Any]]) -> list[str]:
    heads = ("layer", "shape", "positions", "parameters", "mult-adds", "dense parameters", "left because")
    rows = [heads, *(_row(layer) for layer in layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    kernel = "linear" if layer["linear"] else "{}x{}".format(*layer["kernel"])
    return (
        layer["name"], f"{kernel} {layer['in_channels']}-{layer['out_channels']}", f"{layer['out_area']:,}",
        f"{layer['params']:,}", f"{layer['mult_adds']:,}", f"{layer['dense_params']:,}", layer["kept"],
    )  # fmt: skip


def _remarks(counted: Counted) -> list[str]:
    plan = counted.plan
    rows = [f"beside these layers: {plan.other_params:,} parameters (norms and the like)"]
    if plan.other_mult_adds:
        rows.append(f"products of activations: {plan.other_mult_adds:,} mult-adds")
    if plan.convention == "study":
        extras = plan.extras
        rows.append(
            f"counted by the study too: {extras.relu_inputs:,} inputs of ReLU, {extras.pooling:,} for pooling, "
            f"{extras.linear_biases:,} biases of linear maps"
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _count(options))


def _count(options: argparse.Namespace) -> int:
    counted = run(options)
    print(json.dumps(counted.to_json(), indent=2) if options.json else "\n".join(lines(counted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
