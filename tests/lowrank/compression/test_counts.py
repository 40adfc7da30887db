"""Counts against the printed figures of the study: every row that a rule explains, with the setting for it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt, log2
from pathlib import Path
from typing import Any

import pytest

from lowrank.compression.budget import Budget, solve
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.trace import network_plan, network_to_count, trace_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import ConvShape
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings

PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "published.csv"
IMAGE, CLASSES = (3, 32, 32), 10
NETWORKS = {"WRN-28-10": "wrn_28_10", "DARTS": "darts"}


def no_more(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """The rules of RULES alone explain the figure."""
    return 0, 0


def wide_dilation(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """Until February 2019 the output of a dilated depthwise convolution was counted two pixels too wide and high."""
    shapes = [site.shape for site in plan.substituted if site.shape.dilation == (2, 2)]
    return 0, sum(s.depthwise_params * ((isqrt(s.out_area) + 2) ** 2 - s.out_area) for s in shapes)


def pointwise_cost(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """As above; and a depthwise 1 x 1 stood, for three days of December, in front of every 1 x 1."""
    shapes = [site.shape for site in plan.substituted if site.shape.kernel_area == 1]
    return 0, wide_dilation(plan, method)[1] + sum(s.in_channels * s.out_area for s in shapes)


def pointwise_params_and_cost(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """The same where the method's own count does not hold that depthwise 1 x 1."""
    shapes = [site.shape for site in plan.substituted if site.shape.kernel_area == 1]
    return sum(s.in_channels for s in shapes), pointwise_cost(plan, method)[1]


def capped_acdc(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """Until 6 February 2019 the cost of all ACDC layers together was capped, at each position, at N * N."""
    difference = 0.0
    for site in plan.substituted:
        width = max(site.shape.in_channels, site.shape.out_channels)
        layers = method.layers * (4 * width + 5 * width * log2(width))
        difference += (min(layers, width**2) - layers) * site.shape.in_area
    return 0, difference


def square_core(plan: NetworkPlan, method: Any) -> tuple[int, float]:
    """December's Tucker: beside both factors an r x r core, kept as a train of two r x r pieces."""
    ranks = [method.rank(site.shape.in_channels, site.shape.out_channels) for site in plan.substituted]
    return sum(2 * rank**2 for rank in ranks), 0


@dataclass(frozen=True)
class Row:
    """A setting, its exact parameters, and the figures of published.csv that it explains: line -> as printed.

    `rule` adds what the code of that date counted differently: parameters, mult-adds.
    """

    method: dict[str, Any]
    params: int
    figures: dict[int, tuple[str, str]]
    network: str = "WRN-28-10"
    rule: Callable[[NetworkPlan, Any], tuple[int, float]] = no_more
    only_kernels: bool = False  # 1 x 1 convolutions are not substituted
    cut: tuple[int, ...] = field(default=())  # lines whose mult-adds are printed cut, not rounded

    def __str__(self) -> str:
        return f"{self.network}-{'-'.join(map(str, self.method.values()))}-lines-{'-'.join(map(str, self.figures))}"


HASHED_FULL = {"name": "hashed_full", "bias": True}
DECIMATE = {"name": "hashed", "scale": 0.1, "share_of": "kernel", "bias": True}
SHUFFLE, TRAIN, TUCKER = {"name": "shuffle"}, {"name": "tensor_train"}, {"name": "tucker"}
THIN = {"name": "bottleneck", "rank_scale": 0.1}  # December's 2-D rank rule: floor(x * max(I, O)), no reshaping
CONV, SEP = ("3.64792E+07", "5.24564E+09"), ("3.34934E+06", "5.38201E+08")

ROWS = (
    Row({"name": "dense"}, 36479194, {5: CONV, 12: (CONV[0], ""), 37: CONV}),
    Row({**HASHED_FULL, "scale": 0.0333333333333334}, 1498842, {6: ("1.49884E+06", CONV[1])}),  # I*O*K/10 of K*K*I*O
    Row({**HASHED_FULL, "scale": 0.1}, 3911898, {7: ("3.91190E+06", CONV[1])}),
    Row(DECIMATE, 3911898, dict.fromkeys((13, 42), ("3.91190E+06", ""))),
    Row({**HASHED_FULL, "scale": 0.01}, 654272, {30: ("6.54272E+05", CONV[1])}),
    Row({"name": "acdc", "layers": 11}, 555498, {38: ("5.55498E+05", "7.99262E+08")}, rule=capped_acdc),
    Row({"name": "hashed_both"}, 710327, {39: ("7.10327E+05", "6.29697E+08")}),
    Row(THIN, 1190634, {51: ("1.19e6", ""), 53: ("1.19e6", "")}),
    Row(THIN, 1276650, {52: ("1.28e6", "")}, rule=square_core),
    Row({**SHUFFLE, "groups": 4}, 823674, {54: ("8.23674E+05", "1.17201E+08"), 58: ("8.24e5", "1.17e8")}),
    Row({**SHUFFLE, "groups": 8}, 563594, {55: ("5.63594E+05", "7.69784E+07"), 59: ("5.64e5", "7.7e7")}),
    Row({**SHUFFLE, "groups": 16}, 437354, {56: ("4.37354E+05", "6.07583E+07"), 60: ("4.37e5", "6.07e7")}, cut=(60,)),
    Row({**SHUFFLE, "groups": 32}, 378314, {57: ("3.78314E+05", "5.12965E+07"), 61: ("3.78e5", "5.13e7")}),
    Row({**TRAIN, "dims": 4, "rank_scale": 0.8}, 671050, {62: ("6.71050E+05", "")}),
    Row({**TUCKER, "dims": 4, "rank_scale": 0.4}, 685723, {63: ("6.85723E+05", "")}),
    Row({**TUCKER, "dims": 3, "rank_scale": 0.25}, 681248, {68: ("6.81248E+05", "")}),
    Row({**TRAIN, "dims": 3, "rank_scale": 0.26}, 664226, {69: ("6.64226E+05", "")}),
    Row({"name": "separable"}, 3349342, dict.fromkeys((23, 36, 76, 77), SEP), "DARTS", wide_dilation),
    Row(DECIMATE, 3036568, {24: ("3.03657E+06", SEP[1])}, "DARTS", wide_dilation, only_kernels=True),
    Row(
        {"name": "hashed_both"}, 428400, dict.fromkeys((27, 43), ("4.28400E+05", "5.41629E+08")), "DARTS",
        pointwise_cost,
    ),
    Row({"name": "separable"}, 3362194, {35: ("3.36219E+06", "5.41629E+08")}, "DARTS", pointwise_params_and_cost),
)  # fmt: skip

UNMET = {  # line of published.csv -> why no setting gives its figure
    31: "a budget that was assumed, not met: what is never substituted already has 283,354 parameters",
}
# What the notes of the file, and RULES, say of the final code.
FINAL = (
    ("WRN-28-10", {"name": "acdc", "layers": 11}, "1.33879E+09"),
    ("DARTS", {"name": "separable"}, "5.37400E+08"),
)

# Parameters of WRN-28-10 in thousands as FACTS prints them ("Sizes to expect").
SIZES = (
    ("tensor_train", {"dims": 3}, "rank_scale", {0.23: 598, 0.27: 690, 0.41: 1075, 0.59: 1840, 0.7: 2413}),
    ("tucker", {"dims": 3}, "rank_scale", {0.21: 593, 0.37: 1033, 0.54: 1704, 0.67: 2381}),
    ("hashed", {"bias": True}, "scale", {0.05: 568, 0.2: 1172, 0.5: 2378}),
    ("bottleneck", {}, "rank_scale", {0.03: 601, 0.06: 851, 0.1: 1191, 0.24: 2345}),
    ("shuffle", {}, "groups", {5: 720, 2: 1344, 1: 2384}),
    ("acdc", {}, "layers", {14: 609}),
)


@pytest.fixture(scope="module")
def wrn() -> NetworkPlan:
    """WRN-28-10 on CIFAR-10."""
    return network_plan(NetworkSettings(name="wrn_28_10"), IMAGE, CLASSES)


def study_plan(network: str, only_kernels: bool = False) -> NetworkPlan:
    """A network of the file as the study counted it."""
    settings = NetworkSettings(name=NETWORKS[network])
    plan = network_plan(settings, IMAGE, CLASSES)
    if only_kernels:
        pointwise = [site.name for site in plan.substituted if site.shape.kernel_area == 1]
        plan = trace_plan(network_to_count(settings, IMAGE, CLASSES), IMAGE, pointwise)
    return plan.with_convention("study")


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_published_figures(row: Row) -> None:
    plan, method = study_plan(row.network, row.only_kernels), make_method(row.method)
    assert plan.infeasible(method) is None
    more_params, more_mult_adds = row.rule(plan, method)
    assert plan.params(method) + more_params == row.params
    mult_adds = round(plan.mult_adds(method) + more_mult_adds)
    for line, (params_shown, mult_adds_shown) in row.figures.items():
        assert as_printed(row.params, params_shown) == params_shown
        if mult_adds_shown:
            assert as_printed(mult_adds, mult_adds_shown, cut=line in row.cut) == mult_adds_shown


def as_printed(count: int, like: str, cut: bool = False) -> str:
    """`count` in scientific notation with as many digits as `like`: 3.64792E+07, or 1.19e6."""
    digits = len(like.partition(".")[2].upper().partition("E")[0])
    if cut:
        step = 10 ** (len(str(count)) - 1 - digits)
        count -= count % step
    mantissa, exponent = f"{count:.{digits}E}".split("E")
    return f"{mantissa}E{exponent}" if "E" in like else f"{mantissa}e{int(exponent)}"


@pytest.mark.parametrize(("network", "settings", "shown"), FINAL, ids=[entry[0] for entry in FINAL])
def test_mult_adds_of_the_final_code(network: str, settings: dict[str, Any], shown: str) -> None:
    """Rows whose printed cost follows an older rule; their notes give that of the final one."""
    assert as_printed(study_plan(network).mult_adds(make_method(settings)), shown) == shown


def test_the_row_that_cannot_be_met_cannot_be_met(wrn: NetworkPlan) -> None:
    with pytest.raises(InfeasibleError, match=r"283,354 parameters and .* are never substituted"):
        solve(wrn, make_method(HASHED_FULL), Budget(params=100_000))


@pytest.fixture(scope="module")
def published() -> dict[int, dict[str, str]]:
    """The rows of published.csv that print a count, by line."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = dict(enumerate(csv.DictReader(file), start=2))
    return {line: row for line, row in rows.items() if row["params"] or row["mult_adds"]}


def test_every_count_of_the_file_is_met_or_listed(published: dict[int, dict[str, str]]) -> None:
    met = [line for row in ROWS for line in row.figures]
    assert sorted([*met, *UNMET]) == sorted(published)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_figures_are_those_of_the_file(row: Row, published: dict[int, dict[str, str]]) -> None:
    for line, figures in row.figures.items():
        assert (published[line]["params"], published[line]["mult_adds"]) == figures
        assert published[line]["network"] == row.network


@pytest.mark.parametrize(("name", "common", "scale", "sizes"), SIZES, ids=[entry[0] for entry in SIZES])
def test_sizes_of_the_paper(
    wrn: NetworkPlan, name: str, common: dict[str, Any], scale: str, sizes: dict[float, int]
) -> None:
    for value, thousands in sizes.items():
        assert round(wrn.params(make_method({"name": name, **common, scale: value})) / 1000) == thousands


def test_resnet9_sizes() -> None:
    plan = network_plan(NetworkSettings(name="resnet9"), (3, 32, 32), 10)
    assert plan.params(make_method({"name": "dense"})) == 6_573_120
    assert plan.params(make_method({"name": "separable"})) == 755_968


def test_resnet18_with_the_small_stem_has_its_usual_size() -> None:
    plan = network_plan(NetworkSettings(name="resnet18", stem="small"), (3, 32, 32), 10)
    assert plan.params(make_method({"name": "dense"})) == 11_173_962


@pytest.mark.parametrize(
    ("settings", "features"),
    [({}, 192), ({"width": 0.5, "depth": 2}, 96), ({"patch": 8, "heads": 4, "width": 0.25}, 48)],
)
def test_sizes_of_vit(settings: dict[str, Any], features: int) -> None:
    plan = network_plan(NetworkSettings(name="vit", **settings), (3, 32, 32), 10)
    patch, depth = settings.get("patch", 4), settings.get("depth", 6)
    patches = (32 // patch) ** 2
    embedding, classifier = 3 * patch**2 * features, 10 * features
    block, biases_and_norms = 12 * features**2, 13 * features
    dense = make_method({"name": "dense"})
    assert plan.params(dense) == (
        embedding + features + patches * features + depth * (block + biases_and_norms) + 2 * features + classifier + 10
    )
    products = depth * (block * patches + 2 * patches**2 * features)
    assert plan.mult_adds(dense) == embedding * patches + products + classifier


def test_the_tensor_train_sweep_has_121_different_networks() -> None:
    plan = network_plan(NetworkSettings(name="resnet9"), (3, 32, 32), 10)
    trains = [
        {"name": "tensor_train", "dims": dims, "rank_scale": step / 20} for dims in (2, 3, 4) for step in range(1, 20)
    ]
    tuckers = [
        {"name": "tucker", "dims": dims, "rank_scale": step / 10} for dims in range(2, 10) for step in range(1, 10)
    ]
    assert (len(trains), len(tuckers)) == (57, 72)
    assert len({plan.signature(make_method(settings)) for settings in trains + tuckers}) == 121


@pytest.mark.parametrize(
    ("settings", "channels", "kernel", "params"),
    [  # single layers by hand, in the letters of RULES
        ({"name": "cp", "dims": 3, "rank_scale": 0.5}, (160, 320), 1, 16 * (40 + 40 + 32)),
        ({"name": "cp", "dims": 2, "rank_scale": 0.5}, (7, 13), 3, 9 * 7 + 4 * 20),  # round(3.5) is 4
        ({"name": "tied_bottleneck", "rank_scale": 0.3}, (8, 16), 3, 72 + 4 * 16),
        ({"name": "acdc", "layers": 3}, (7, 13), 3, 63 + 2 * 13 * 3),
        ({"name": "acdc", "layers": 3}, (24, 8), 1, 2 * 24 * 3),
        ({"name": "shuffle", "groups": 4}, (24, 48), 3, 24 * 12 // 4 + 9 * 12 + 12 * 48 // 4),
        ({"name": "shuffle", "groups": 5}, (24, 48), 1, 24 * 12 // 4 + 12 + 12 * 48 // 4),
        ({"name": "shuffle", "groups": 8}, (7, 13), 3, 7 * 3 + 27 + 3 * 13),
        ({"name": "hashed", "scale": 0.1, "share_of": "kernel"}, (16, 32), 3, 460),
        ({"name": "hashed", "scale": 0.1}, (16, 32), 3, 144 + 51),
        ({"name": "hashed_both"}, (16, 32), 3, 65 * 144 // 656 + 16 + 65 * 512 // 656 + 32),
        ({"name": "hashed_both"}, (16, 32), 1, 51 * 16 // 528 + 16 + 51 * 512 // 528 + 32),
        ({"name": "monarch", "rank_scale": 0.25}, (16, 64), 1, 1 * (8 * 16 + 4 * 64)),
        ({"name": "monarch", "blocks": 1, "rank_scale": 0.5}, (7, 13), 1, 4 * (7 + 13)),
    ],
)
def test_single_layers(settings: dict[str, Any], channels: tuple[int, int], kernel: int, params: int) -> None:
    assert make_method(settings).params(ConvShape(*channels, (kernel, kernel))) == params


@pytest.mark.parametrize(
    ("settings", "kernel", "mult_adds"),
    [  # 16 -> 32 channels, input area 64, output area 16
        ({"name": "acdc", "layers": 2}, 3, 144 * 16 + 2 * (4 * 32 + 5 * 32 * 5) * 64),
        ({"name": "acdc", "layers": 2}, 1, 2 * (4 * 32 + 5 * 32 * 5) * 16),
        ({"name": "shuffle", "groups": 2}, 3, 16 * 8 // 2 * 64 + 72 * 16 + 8 * 32 // 2 * 16),
        ({"name": "tied_bottleneck", "rank_scale": 0.25}, 3, 144 * 16 + 2 * 8 * 32 * 16),
        ({"name": "bottleneck", "rank_scale": 0.25}, 3, 144 * 16 + 8 * 48 * 16),
        ({"name": "cp"}, 3, (144 + 512) * 16),
        ({"name": "hashed_full"}, 3, 9 * 512 * 16),
        ({"name": "hashed_both"}, 1, 512 * 16),
    ],
)
def test_mult_adds_of_single_layers(settings: dict[str, Any], kernel: int, mult_adds: int) -> None:
    shape = ConvShape(16, 32, (kernel, kernel), (2, 2), in_area=64, out_area=16)
    assert make_method(settings).mult_adds(shape) == mult_adds
