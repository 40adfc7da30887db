"""The spaces that ask the study's questions: the settings are those of 2018-19, to the last parameter."""

from __future__ import annotations

import argparse

import pytest

from lowrank.data import DataSettings, ImageData, load_data
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan
from sweeps.series import read_series
from sweeps.space import available_spaces, find_space, method_at, read_space, read_yaml
from sweeps.specification import Resolver

OPTIONS = argparse.Namespace(
    set=[],
    data=None,
    seed=None,
    trials=None,
    gpus_per_trial=None,
    processes_per_trial=None,
    cpus_per_trial=None,
    max_concurrent=None,
    allow_code=False,
    data_dir=None,
)
NINE = (
    "methods", "weight_decay", "init", "allocation", "worth_it", "wrn_schedule", "darts_schedule", "imagenet_schedule",
)  # fmt: skip


def spaces_of(name: str, **options) -> list:
    path = find_space(name)
    content = read_yaml(path)
    if "studies" not in content:
        return [read_space(name, data__name=options.get("data"))]
    return [
        member.space for member in read_series(content, path.stem, argparse.Namespace(**{**vars(OPTIONS), **options}))
    ]


def params_of(name: str, network: str) -> set[int]:
    """Parameters of every setting of a grid on the network in earnest."""
    space = read_space(name, data__name="cifar10")
    assert space.network.name == network
    plan = network_plan(NetworkSettings(name=network), (3, 32, 32), 10)
    sizes = set()
    for literals, domains in space.alternatives:
        for point in _values(domains):
            sizes.add(plan.params(method_at((literals, {}), point)))
    return sizes


def _values(domains) -> list[dict]:
    if not domains:
        return [{}]
    ((key, domain),) = domains.items()
    return [{key: value} for value in domain.grid()]


def test_the_wide_resnets_settings_have_the_published_sizes():
    sizes = params_of("wrn_schedule", "wrn_28_10")
    assert len(sizes) == 31
    published = {654272, 555498, 710327, 823674, 563594, 437354, 378314, 671050, 685723, 681248, 664226}
    assert published <= sizes
    assert min(sizes) == 378314
    assert 2_410_000 < max(sizes) < 2_414_000


def test_the_darts_settings_have_the_published_size():
    assert 428400 in params_of("darts_schedule", "darts")


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "lr", "decay"),
    [
        ("wrn_schedule", 200, 128, 0.1, 5e-4), ("darts_schedule", 600, 96, 0.025, 3e-4),
        ("imagenet_schedule", 90, 256, 0.1, 1e-4),
    ],
)  # fmt: skip
def test_recipes_in_earnest_are_the_studys(name, epochs, batch, lr, decay):
    recipe = read_space(name, data__name="cifar10").recipe({})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (epochs, batch, lr, decay)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataSettings())


@pytest.mark.parametrize("name", NINE)
def test_every_question_has_many_feasible_points_on_the_digits(name, digits):
    for space in spaces_of(name):
        resolver = Resolver(space, digits)
        assert space.network.width < 1 or space.network.name != "resnet9"  # minutes, not hours
        assert resolver.strata
        if space.search.sampler == "grid":
            points = resolver.points.grid()
            assert 5 <= len(points) <= 60


@pytest.mark.parametrize("name", ["methods", "weight_decay", "worth_it", "init", "allocation"])
def test_in_earnest_the_network_is_whole_and_the_recipe_the_data_sets(name):
    for space in spaces_of(name, data="cifar10"):
        assert space.network.width == 1.0
        assert space.epochs == 128


def test_every_space_is_asked_for():
    assert set(NINE) <= set(available_spaces())
