"""The table that the contract suite runs over: a new method is one line in METHOD_CONTRACTS.

Letters: I in-channels, O out-channels, K kernel size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.registry import make_method


@dataclass(frozen=True)
class MethodContract:
    """How the suite tests a method.

    `settings` are tried at every shape that admits them. `exact` is a setting at which every dense weight of a
    pointwise map can be met, None for a structure that has none. `growing` are settings from small to large, of which
    a larger one must not fit a trained weight worse. `refused` is a setting that no check of the fields lets pass.
    """

    settings: tuple[dict[str, Any], ...] = ({},)
    exact: dict[str, Any] | None = None
    growing: tuple[dict[str, Any], ...] = ()
    refused: dict[str, Any] = field(default_factory=lambda: {"colour": "red"})


def _scales(*values: float, **common: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"rank_scale": value, **common} for value in values)


METHOD_CONTRACTS: dict[str, MethodContract] = {
    "dense": MethodContract(exact={}),
    "separable": MethodContract(exact={}),
    "bottleneck": MethodContract(_scales(0.3, 1.0), {"rank_scale": 1.0}, _scales(0.1, 0.4, 0.8), {"rank_scale": 1.5}),
    "tensor_train": MethodContract(
        (*_scales(0.3, 1.0, dims=2), *_scales(0.26, 1.0, dims=3), {"dims": 4, "rank_scale": 0.5}),
        {"dims": 2, "rank_scale": 1.0},
        _scales(0.1, 0.3, 0.6, 1.0, dims=3),
        {"dims": 12},
    ),
    "tucker": MethodContract(
        (*_scales(0.3, 1.0, dims=2), *_scales(0.25, 1.0, dims=3), {"dims": 5, "rank_scale": 0.5}),
        {"dims": 3, "rank_scale": 1.0},
        _scales(0.1, 0.3, 0.6, 1.0, dims=3),
        {"rank_scale": 0.0},
    ),
    "cp": MethodContract(
        (*_scales(0.3, 1.0, dims=2), *_scales(0.3, 1.0, dims=3), {"dims": 4, "rank_scale": 0.5}),
        {"dims": 2, "rank_scale": 1.0},
        _scales(0.1, 0.3, 0.6, 1.0, dims=3),
        {"dims": 1},
    ),
    "hashed_full": MethodContract(
        ({"scale": 0.1}, {"scale": 0.7, "bias": True}),
        {"scale": 1.0},
        ({"scale": 0.1}, {"scale": 0.5}, {"scale": 1.0}),
        {"bank_scale": 0},
    ),
    "hashed": MethodContract(
        ({"scale": 0.3}, {"scale": 1.0, "bias": True}, {"scale": 0.2, "share_of": "kernel"}),
        {"scale": 1.0},
        ({"scale": 0.1}, {"scale": 0.5}, {"scale": 1.0}),
        {"share_of": "everything"},
    ),
    "hashed_both": MethodContract(
        ({"scale": 0.1}, {"scale": 0.5, "bias": False}),
        None,
        ({"scale": 0.1}, {"scale": 0.5}, {"scale": 1.0}),
        {"bank_scale": 1.1},
    ),
    "acdc": MethodContract(
        ({"layers": 1}, {"layers": 2}, {"layers": 11}),
        None,
        ({"layers": 1}, {"layers": 3}, {"layers": 8}),
        {"layers": 0},
    ),
    "shuffle": MethodContract(
        ({"groups": 1}, {"groups": 3}, {"groups": 4}),
        None,
        ({"groups": 4}, {"groups": 2}, {"groups": 1}),
        {"groups": 0},
    ),
    "tied_bottleneck": MethodContract(_scales(0.3, 1.0), None, _scales(0.1, 0.4, 0.8), {"rank_scale": 2}),
    "monarch": MethodContract(
        (*_scales(0.05, 0.5, 1.0), {"blocks": 2, "rank_scale": 0.3}),
        {"rank_scale": 1.0},
        _scales(0.1, 0.4, 1.0),
        {"blocks": 0},
    ),
    "svd": MethodContract(_scales(0.3, 1.0), {"rank_scale": 1.0}, _scales(0.1, 0.4, 0.8), {"rank_scale": 0}),
    "spatial_svd": MethodContract(
        (*_scales(0.3, 1.0), {"ranks": (3,)}), {"rank_scale": 1.0}, _scales(0.1, 0.4, 0.8), {"rank_scale": 2}
    ),
    "tucker2": MethodContract(
        (*_scales(0.3, 1.0), {"ranks": (3, 2)}), {"rank_scale": 1.0}, _scales(0.1, 0.4, 0.8), {"ranks": "many"}
    ),
    "cp_kernel": MethodContract(_scales(0.1, 1.0), {"rank_scale": 1.0}, _scales(0.05, 0.2, 1.0), {"rank_scale": -1}),
    "tensor_train_kernel": MethodContract(
        (*_scales(0.3, 1.0), {"ranks": (2, 3, 2), "bias": True}),
        {"rank_scale": 1.0},
        _scales(0.1, 0.4, 0.8),
        {"rank_scale": 1.5},
    ),
}

# Stride, padding, dilation, bias; one channel; primes; I < O, I > O, I = O; kernels of 1, 3 and 5 x 1.
SHAPES = (
    ConvShape(16, 16, (3, 3), (1, 1), (1, 1)),
    ConvShape(8, 16, (3, 3), (2, 2), (1, 1), bias=True),
    ConvShape(16, 8, (3, 3), (1, 1), (2, 2), (2, 2), bias=True),
    ConvShape(8, 24, (1, 1), (2, 2), bias=True),
    ConvShape(24, 8, (1, 1), padding=(1, 1)),
    ConvShape(12, 18, (3, 3), (2, 1), "valid", (1, 2)),
    ConvShape(7, 13, (3, 3), padding="same"),
    ConvShape(13, 5, (1, 1), bias=True),
    ConvShape(11, 11, (5, 1), (1, 2), (2, 0), bias=True),
    ConvShape(1, 16, (3, 3), padding=(1, 1)),
    ConvShape(16, 1, (1, 1)),
    ConvShape(1, 1, (3, 3), padding=(1, 1), bias=True),
    ConvShape(1, 1, (1, 1)),
)


@dataclass(frozen=True)
class Case:
    """One setting of a method at one shape."""

    method: Method
    shape: ConvShape

    def __str__(self) -> str:
        settings = "-".join(str(value) for key, value in self.method.model_dump().items() if key != "name")
        i, o, (height, width) = self.shape.in_channels, self.shape.out_channels, self.shape.kernel
        return f"{self.method.name}-{settings}-{i}x{o}-k{height}x{width}"

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the layer from a seed."""
        torch.manual_seed(seed)
        return self.method.build(self.shape).to(dtype)

    def image(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Make a batch (2, I, 7, 6) for the layer."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(2, self.shape.in_channels, 7, 6, dtype=torch.float64, generator=generator).to(dtype)


def method(name: str, settings: dict[str, Any]) -> Method:
    """Make a method of the table with these settings."""
    return make_method({"name": name, **settings})


def all_settings() -> Iterator[Method]:
    """Return every setting of every method in the table."""
    for name, contract in METHOD_CONTRACTS.items():
        for settings in contract.settings:
            yield method(name, settings)


def cases(*, feasible: bool = True) -> list[Case]:
    """Return every setting at every shape where it is feasible, or where it is not."""
    found = [Case(setting, shape) for setting in all_settings() for shape in SHAPES]
    return [case for case in found if (case.method.infeasible(case.shape) is None) == feasible]


def varied_cases() -> list[Case]:
    """Return each method's first feasible setting at every shape, and every setting at the first shape it takes."""
    chosen: dict[tuple[str, ConvShape] | Method, Case] = {}
    for case in cases():
        chosen.setdefault((case.method.name, case.shape), case)
        chosen.setdefault(case.method, case)
    return list(dict.fromkeys(chosen.values()))


def one_case_each_setting() -> list[Case]:
    """Return every setting at the first shape that it takes, for tests that do not depend on shapes."""
    first: dict[Method, Case] = {}
    for case in cases():
        first.setdefault(case.method, case)
    return list(first.values())


def one_case_each(shape: ConvShape) -> list[Case]:
    """Return each method's first feasible setting at a shape, for tests that do not depend on settings."""
    first: dict[str, Case] = {}
    for setting in all_settings():
        if setting.infeasible(shape) is None:
            first.setdefault(setting.name, Case(setting, shape))
    return list(first.values())


def over_cases(cases: Iterable[Case]) -> Callable[[Callable[[Case], None]], Callable]:
    """Parametrise a test of one `case` by settings, each of which is tested with all its shapes.

    A test for each shape would spend more time in pytest than in the layers. A failure names its case.
    """
    by_setting: dict[Method, list[Case]] = {}
    for case in cases:
        by_setting.setdefault(case.method, []).append(case)

    def decorate(test: Callable[[Case], None]) -> Callable:
        def test_all(setting: Method) -> None:
            for case in by_setting[setting]:
                try:
                    test(case)
                except Exception as error:
                    error.add_note(f"case: {case}")
                    raise

        test_all.__name__, test_all.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("setting", by_setting, ids=repr)(test_all)

    return decorate
