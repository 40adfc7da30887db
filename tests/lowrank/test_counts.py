"""Counts against the printed figures of the study: every row that a rule explains, with the setting for it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lowrank.layers import ConvShape
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import NetworkPlan, network_plan

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "published.csv"

# What the study counted beside convolutions and linear maps on WRN-28-10: the inputs of its 25 ReLU calls and the
# classifier's bias (RULES, "Also counted by the study").
STUDY_EXTRAS = 2_310_144 + 10

HASHED_FULL = {"name": "hashed_full", "bias": True}
DECIMATE = {"name": "hashed", "scale": 0.1, "share_of": "kernel", "bias": True}

# Row of published.csv (WRN-28-10), the setting that explains it, exact parameters, and both figures as printed.
ROWS: tuple[tuple[str, dict[str, Any], int, str, str], ...] = (
    ("Conv", {"name": "dense"}, 36479194, "3.64792E+07", "5.24564E+09"),
    ("HashedDecimate", {**HASHED_FULL, "scale": 0.1}, 3911898, "3.91190E+06", "5.24564E+09"),
    ("SepHashedDecimate (half-hashed separable)", DECIMATE, 3911898, "3.91190E+06", ""),
    ("Hashed_0.01", {**HASHED_FULL, "scale": 0.01}, 654272, "6.54272E+05", "5.24564E+09"),
    ("SepHashedDecimate (both parts hashed)", {"name": "hashed_both"}, 710327, "7.10327E+05", "6.29697E+08"),
    ("ACDC", {"name": "acdc", "layers": 11}, 555498, "5.55498E+05", ""),
    ("Shuffle_4", {"name": "shuffle", "groups": 4}, 823674, "8.23674E+05", "1.17201E+08"),
    ("Shuffle_8", {"name": "shuffle", "groups": 8}, 563594, "5.63594E+05", "7.69784E+07"),
    ("Shuffle_16", {"name": "shuffle", "groups": 16}, 437354, "4.37354E+05", "6.07583E+07"),
    ("Shuffle_32", {"name": "shuffle", "groups": 32}, 378314, "3.78314E+05", "5.12965E+07"),
    ("TensorTrain_0.8 (4-D)", {"name": "tensor_train", "dims": 4, "rank_scale": 0.8}, 671050, "6.71050E+05", ""),
    ("Tucker_0.4 (4-D)", {"name": "tucker", "dims": 4, "rank_scale": 0.4}, 685723, "6.85723E+05", ""),
    ("Tucker_0.25 (3-D)", {"name": "tucker", "dims": 3, "rank_scale": 0.25}, 681248, "6.81248E+05", ""),
    ("TensorTrain_0.26 (3-D)", {"name": "tensor_train", "dims": 3, "rank_scale": 0.26}, 664226, "6.64226E+05", ""),
    # December's 2-D rank rule is that of the bottleneck: floor(x * max(I, O)), the matrix not reshaped.
    ('TensorTrain_0.1 (2-D, December rank rule)', {"name": "bottleneck", "rank_scale": 0.1}, 1190634, "1.19e6", ""),
    ('CP_0.1 (2-D, December rank rule)', {"name": "bottleneck", "rank_scale": 0.1}, 1190634, "1.19e6", ""),
)  # fmt: skip

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
    return network_plan(NetworkSettings(name="wrn_28_10"), (3, 32, 32), 10)


@pytest.mark.parametrize(("row", "settings", "params", "shown", "shown_mult_adds"), ROWS, ids=[row[0] for row in ROWS])
def test_published_figures(
    wrn: NetworkPlan, row: str, settings: dict[str, Any], params: int, shown: str, shown_mult_adds: str
) -> None:
    method = make_method(settings)
    assert wrn.infeasible(method) is None
    assert wrn.params(method) == params
    assert as_printed(params, shown) == shown
    if shown_mult_adds:
        assert as_printed(wrn.mult_adds(method) + STUDY_EXTRAS, shown_mult_adds) == shown_mult_adds


def as_printed(count: int, like: str) -> str:
    """`count` in scientific notation with as many digits as `like`: 3.64792E+07, or 1.19e6."""
    mantissa, exponent = f"{count:.{len(like.partition('.')[2].upper().partition('E')[0])}E}".split("E")
    return f"{mantissa}E{exponent}" if "E" in like else f"{mantissa}e{int(exponent)}"


def test_final_acdc_cost(wrn: NetworkPlan) -> None:
    """The row prints an older rule's cost; its note gives that of the final one."""
    cost = wrn.mult_adds(make_method({"name": "acdc", "layers": 11})) + STUDY_EXTRAS
    assert as_printed(cost, "1.33879E+09") == "1.33879E+09"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"{PUBLISHED} is not here; the table above holds its figures")
@pytest.mark.parametrize(("row", "shown", "shown_mult_adds"), [(row[0], *row[3:]) for row in ROWS])
def test_the_table_is_that_of_the_file(row: str, shown: str, shown_mult_adds: str) -> None:
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = [entry for entry in csv.DictReader(file) if entry["network"] == "WRN-28-10"]
    printed = {(entry["params"], entry["mult_adds"]) for entry in rows if entry["conv_setting"] == row}
    assert any(params == shown and shown_mult_adds in ("", mult_adds) for params, mult_adds in printed)


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
