"""A small space and its resolver, on the digits."""

from __future__ import annotations

import pytest

from lowrank.data import DataSettings, ImageData, load_data
from sweeps.space.model import Space
from sweeps.space.parse import parse_space
from sweeps.trials.resolver import Resolver


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(DataSettings())


@pytest.fixture
def content() -> dict:
    return {
        "question": "Which?",
        "train": {"epochs": 2, "weight_decay": {"choice": [1e-4, 5e-4]}},
        "method": {"name": {"choice": ["tensor_train", "tucker"]}, "dims": {"int": [2, 4]}},
        "budget": {"params": {"choice": [0.08, 0.2]}, "relative_to": "separable"},
        "references": ["separable"],
        "search": {"trials": 6},
    }


@pytest.fixture
def space(content: dict) -> Space:
    return parse_space("small", content)


@pytest.fixture
def resolver(space: Space, digits: ImageData) -> Resolver:
    return Resolver(space, digits)
