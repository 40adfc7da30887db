"""A recipe that names what the network does not have is refused before anything is launched."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lowrank.errors import InputError
from sweeps.space.parse import parse_space
from sweeps.study.plan_report import make_plan, plan_lines
from sweeps.trials import resolver as recipe_check
from sweeps.trials.resolver import Resolver
from tests.support.own_networks import boxed


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"freeze": ["stage7"]}, "unknown module in `freeze` 'stage7'; choose from: classifier, pool, stage1"),
        ({"freeze": ["*"]}, r"`freeze` leaves nothing to train: \*"),
        ({"drop_path": 0.2}, "`drop_path` needs a network with paths to drop; ResNet9 has none"),
        ({"drop_path": {"choice": [0.0, 0.2]}}, "`drop_path` needs a network with paths to drop"),
        ({"shift": 5}, "`train.shift` must be at most 4 pixels for images of 8x8, but got 5"),
        ({"cutout": {"choice": [0, 8]}}, "`train.cutout` must be at most 7 pixels for images of 8x8, but got 8"),
        ({"recipe": "study_darts"}, "`train.cutout` must be at most 7 pixels for images of 8x8, but got 16"),
        ({"recipe": "study_darts", "cutout": 4}, "`drop_path` needs a network with paths to drop"),
        ({"auxiliary_weight": 0.4}, "`auxiliary_weight` needs an auxiliary head; this ResNet9 has none"),
    ],
)
def test_a_recipe_that_names_a_missing_part_is_refused(content: dict[str, Any], digits, train, message):
    space = parse_space("small", {**content, "train": train, "network": {"name": "resnet9", "width": 0.25}})
    with pytest.raises(InputError, match=message):
        Resolver(space, digits)


@pytest.mark.parametrize(
    ("train", "got"),
    [
        ({"batch_size": 1}, "1 in 1 part;"),
        ({"batch_size": 32, "accumulate": 32}, "32 in 32 parts;"),
        ({"batch_size": {"choice": [16, 64]}, "accumulate": 16}, "16 in 16 parts;"),
    ],
)
@pytest.mark.parametrize("network", ["resnet9", "wrn_10_1"])
def test_a_part_of_a_batch_has_two_images_where_there_is_a_batch_norm(content, digits, network, train, got):
    section = {"epochs": 2, **train}
    space = parse_space("small", {**content, "train": section, "network": {"name": network, "width": 0.25}})
    with pytest.raises(InputError, match=f"batch norms of {network} need at least 2 images .* but got {got}"):
        Resolver(space, digits)


@pytest.mark.parametrize(
    ("network", "train", "start", "words"),
    [
        ("encoder", {"epochs": 2}, {"how": "dense", "weights": "network"}, "layer norms and no batch norms: SGD"),
        ("encoder", {"epochs": 0}, {"how": "dense", "weights": "network"}, ""),
        ("encoder", {"epochs": 2, "optimizer": "adamw", "lr": 0.001}, {"how": "dense", "weights": "network"}, ""),
        ("encoder", {"epochs": 2}, {}, ""),
        ("boxed", {"epochs": 2}, {"how": "dense", "weights": "network"}, "boxed has no batch norms: SGD may undo"),
    ],
)
def test_sgd_on_trained_weights_without_batch_norms_is_named(content, digits, capsys, network, train, start, words):
    section = {"name": f"tests.support.own_networks:{network}"}
    space = parse_space("small", {**content, "train": train, "network": section, "start": start})
    recipe_check.check_recipes(space, digits)
    printed = capsys.readouterr().err
    assert words in printed
    assert ("train.optimizer=adamw" in printed) == bool(words)


def test_without_batch_norms_a_part_of_one_image_is_accepted(content, digits):
    network = {"name": "tests.support.own_networks:boxed"}
    space = parse_space("small", {**content, "train": {"epochs": 2, "batch_size": 1}, "network": network})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in boxed(10).modules())
    Resolver(space, digits)


def test_a_recipe_that_names_existing_parts_is_accepted(content, digits):
    train = {"freeze": ["stem", "stage1.*.pointwise"], "head_lr": 10}
    Resolver(parse_space("small", {**content, "train": train, "network": {"name": "resnet9", "width": 0.25}}), digits)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("trained", "scratch", "all others draw all weights anew (`start: dense` would begin with trained ones)"),
        ("trained", "dense", "all others start from the trained dense network"),
        (
            "trained",
            {"choice": ["scratch", "dense"]},
            "of the others, those with `start: dense` start from the",
        ),
        ("boxed", "scratch", None),
    ],
)
def test_a_plan_says_which_trials_begin_with_trained_weights(content, digits, name, start, message):
    network = {"name": f"tests.support.own_networks:{name}"}
    plain = {key: value for key, value in content.items() if key != "budget"}
    method = {"name": "separable"}
    space = parse_space(
        "small", {**plain, "network": network, "method": method, "start": start, "references": ["dense"]}
    )  # fmt: skip
    resolver = Resolver(space, digits)
    lines = plan_lines(make_plan(space, resolver, 1), space, resolver)
    begin = f"weights: the dense network begins with those that {network['name']} gives; "
    found = [line for line in lines if line.startswith("weights: ")]
    if message is None:
        assert found == []
    else:
        assert found[0].startswith(begin + message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_many_outputs", "must give one output for each of 10 classes, but gives 1000"),
        ("segmenter", "must be a classifier"),
        ("two_inputs", "missing 1 required positional argument"),
        ("loss_in_training", "in training mode it returned a dict"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_anything_starts(content, digits, name, message):
    space = parse_space("small", {**content, "network": {"name": f"tests.support.own_networks:{name}"}})
    with pytest.raises(InputError, match=message):
        Resolver(space, digits)


def test_a_plain_recipe_builds_no_network(content, digits, monkeypatch):
    monkeypatch.setattr(recipe_check, "build_sized_student", None)
    Resolver(parse_space("small", content), digits)
