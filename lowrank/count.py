"""Count a network: `python -m lowrank.count --network wrn_28_10 --method tensor_train --dims 3 --rank-scale 0.26`.

Prints exact parameters and mult-adds for one image. Imports that need torch stand within functions: `--help` and a
wrong name must not wait for it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from lowrank.compression import CONVENTIONS
from lowrank.errors import InputError, show_value
from lowrank.layers import METHODS, VARIATIONAL_METHODS, make_method, method_class
from lowrank.networks import (
    ImageShape,
    NetworkSettings,
    add_network_options,
    default_images,
    is_own_code,
    network_from_options,
)
from lowrank.utils import OneLineParser, print_result, results_alone, run_command

if TYPE_CHECKING:
    from lowrank.compression import NetworkCount
    from lowrank.layers import Method

MAX_CLASSES = 1_000_000
METHOD_FIELDS = ("dims", "rank_scale", "groups", "layers", "blocks", "share_of", "bias")  # each has an option
SIZE_OPTIONS = ("rank_scale", "scale", "groups", "layers")  # what a budget solves


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser; its `--help` needs no torch.
    """
    parser = OneLineParser(
        prog="python -m lowrank.count",
        description="Parameters, mult-adds for one image, real costs and size on disk of a substituted network.",
        epilog="Exit codes: 0 done, 2 bad input.",
    )  # fmt: skip
    network = parser.add_argument_group("the network")
    add_network_options(network)
    network.add_argument(
        "--inputs", type=int, metavar="N", help="of mlp whose groups were removed: pixels that it reads"
    )
    network.add_argument(
        "--channels", type=int, nargs="+", metavar="N",
        help="of resnet9 and vgg16 whose groups were removed: outputs of each convolution",
    )  # fmt: skip
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
    method.add_argument("--bias", action=argparse.BooleanOptionalAction, help="add a bias to the hashed layers")
    method.add_argument("--budget", type=float, metavar="N", help="parameters at most; solves the scale, or the width")
    output = parser.add_argument_group("the output")
    output.add_argument("--convention", default="standard", choices=CONVENTIONS, help="what counts as mult-adds")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _print_count(options))


def _print_count(options: argparse.Namespace) -> int:
    with results_alone(alone=options.json):
        count = run(options)
    if options.json:
        print_result(json.dumps(count.to_json(), indent=2))
    else:
        from lowrank.compression import format_count

        print("\n".join(format_count(count)))
    return 0


def run(options: argparse.Namespace) -> NetworkCount:
    """Count what the command line asks for.

    Args:
        options: the parsed command line.

    Returns:
        All counts.

    Raises:
        InputError: an option is wrong, or no size of the method meets the budget.
        UncountableError: a layer of the network has no counting rule.
    """
    image, classes = default_images(options.network)
    if options.image is not None:
        image = parse_image(options.image)
    if options.classes is not None:
        if not 1 <= options.classes <= MAX_CLASSES:
            raise InputError(f"`--classes` must be from 1 to {MAX_CLASSES:,}, but got {show_value(options.classes)}")
        classes = options.classes
    only = tuple(options.only) if options.only else None
    network = network_from_options(
        options.network, {"linear": options.linear, "keep": tuple(options.keep), "only": only}, vars(options)
    )
    method = _parse_method(options)
    if options.budget is not None:
        network, method = _solve_budget(options, network, method, image, classes)

    from lowrank.compression import count_network

    try:
        return count_network(network, method, image, classes, options.convention)
    except InputError as error:
        if options.image is None and is_own_code(options.network):  # whose images nobody has published
            shape = "x".join(map(str, image))
            raise InputError(f"{error} (images of {shape} were assumed; --image CxHxW says which it takes)") from error
        raise


def parse_image(text: str) -> ImageShape:
    """Parse the shape of an image.

    Args:
        text: CxHxW, such as 3x32x32.

    Returns:
        (C, H, W).

    Raises:
        InputError: the text has another form, or a number is 0.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise InputError(f"`--image` must be channels, height and width such as 3x32x32, but got {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


def _parse_method(options: argparse.Namespace) -> Method:
    """Make the method that the options describe; an option that it does not have is an error."""
    method = method_class(options.method)
    if options.method in VARIATIONAL_METHODS:
        raise InputError(
            f"{options.method} has no size before its training; count what is left after it as a dense network, with "
            "`--hidden` and `--inputs` of mlp, or `--channels` of resnet9 and vgg16"
        )
    settings = {name: getattr(options, name) for name in METHOD_FIELDS if getattr(options, name) is not None}
    if options.scale is not None:
        if method.scale is None:
            raise _unknown_option(method, "scale")
        if method.scale in settings:
            raise InputError("give one of `--scale` and `--rank-scale`; they are the same setting")
        settings[method.scale] = options.scale
    for name in settings:
        if name not in method.model_fields:
            raise _unknown_option(method, name)
    return make_method({"name": options.method, **settings})


def _unknown_option(method: type[Method], name: str) -> InputError:
    flags = ["--scale"] if method.scale else []
    flags += [_flag(field) for field in method.model_fields if field in METHOD_FIELDS and field != "bank_scale"]
    method_name = method.model_fields["name"].default
    return InputError(f"{method_name} has no setting `{_flag(name)}`; it has: {', '.join(flags) or 'none'}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _solve_budget(
    options: argparse.Namespace, network: NetworkSettings, method: Method, image: ImageShape, classes: int
) -> tuple[NetworkSettings, Method]:
    """Solve the largest size within `--budget`: of the method, or of the network if the method has one size only."""
    from lowrank.compression import Budget, network_plan, solve, solve_width
    from lowrank.layers import Dense, Separable

    if not (math.isfinite(options.budget) and options.budget >= 1):
        raise InputError(f"`--budget` must be a number of parameters of at least 1, but got {options.budget:g}")
    size_option = next((name for name in SIZE_OPTIONS if getattr(options, name) is not None), None)
    if size_option is not None:
        raise InputError(f"`--budget` solves the size; leave out `{_flag(size_option)}`")
    budget = Budget(params=int(options.budget))
    if isinstance(method, Dense | Separable):
        if options.width is not None:
            raise InputError(f"`--budget` solves the width of a network with {method.name} layers; leave out `--width`")
        return solve_width(network, image, classes, method, budget), method
    return network, solve(network_plan(network, image, classes), method, budget)


def entry_point() -> NoReturn:
    """Run the command, and end the process."""
    gc.disable()  # collecting garbage while torch is imported takes a quarter of a second, and nothing here lives long
    code = main()
    gc.freeze()  # nor should the interpreter search all of torch for garbage when it ends
    sys.exit(code)


if __name__ == "__main__":
    entry_point()
