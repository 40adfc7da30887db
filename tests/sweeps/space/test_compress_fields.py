"""A space that begins with a trained network: what it needs is checked when it is read, in one line each."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lowrank.errors import InputError
from sweeps.space.model import Space
from sweeps.space.parse import parse_space, read_space

CONTENT: dict[str, Any] = {
    "question": "How small?", "data": {"name": "digits"}, "network": {"name": "resnet9", "width": 0.125},
    "start": {"how": "in_order", "weights": "/nowhere/w.safetensors"}, "train": {"epochs": 2},
    "method": {"name": "tucker2"}, "budget": {"params": 0.5, "relative_to": "dense", "allocation": "energy"},
    "references": ["unchanged", "dense", "separable", "thin_dense"],
}  # fmt: skip


def space(**sections: Any) -> Space:
    content = {**copy.deepcopy(CONTENT), **sections}
    return parse_space("small", {key: value for key, value in content.items() if value is not None})


def test_the_space_compress_is_read_without_its_file_of_weights():
    shipped = read_space("compress")
    assert shipped.starts_trained
    assert shipped.budget.allocation == "sensitivity"
    assert shipped.reference_recipe().kd_weight == 0
    assert shipped.scratch_recipe().epochs > shipped.epochs


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"start": None}, "`budget.allocation: energy` asks what ranks cost a trained network"),
        ({"start": {"how": "in_order"}, "budget": {"params": 0.5, "relative_to": "dense"}, "references": []},
         "`start: in_order` needs trained weights: give them by `--weights FILE`"),
        ({"start": None, "budget": {"params": 0.5, "relative_to": "dense"}},
         "the reference unchanged is a trained network"),
        ({"method": {"name": "tensor_train"}}, "needs a method that factorises whole kernels; choose from: svd"),
        ({"method": {"name": "tensor_train"}, "budget": {"params": 0.5, "relative_to": "dense"}},
         "`start: in_order` needs a method that factorises whole kernels"),
        ({"start": None, "budget": {"params": 0.5, "relative_to": "dense"}, "references": [], "train": {"epochs": 0}},
         "`train.epochs`: must be greater than or equal to 1, but got 0"),
        ({"start": {**CONTENT["start"], "scratch_train": {"epoch": 3}}}, "unknown field `start.scratch_train.epoch`"),
        ({"start": {**CONTENT["start"], "scratch_train": {"epochs": 0}}}, "`start.scratch_train.epochs`"),
        ({"start": {**CONTENT["start"], "calibration": 1}}, "`start.calibration`: must be greater than or equal to 2"),
        ({"start": {**CONTENT["start"], "calibration": {"choice": [64, 128]}}},
         "`start.calibration` must be one value"),
        ({"teacher": {"weights": "start"}, "train": {"epochs": 2, "kd_weight": 0.5}, "start": None,
          "budget": {"params": 0.5, "relative_to": "dense"}, "references": []},
         "`teacher.weights: start` is the network that trials start from"),
        ({"teacher": {"weights": "w.pth", "name": "t"}}, "leave `teacher.name` out"),
        ({"references": ["tensor_trian"]}, "unknown reference 'tensor_trian'"),
        ({"budget": None, "references": ["tensor_train"]}, "the reference tensor_train needs a size"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(sections, message):
    with pytest.raises(InputError) as caught:
        space(**sections)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_epochs_are_allowed_where_every_trial_starts_trained():
    assert space(train={"epochs": {"choice": [0, 2]}}).epochs == 2


def test_references_take_the_middle_of_a_range_that_their_default_is_not_in():
    recipe = space(train={"epochs": {"choice": [1, 3]}, "lr": {"log_uniform": [0.001, 0.1]}}).reference_recipe()
    assert recipe.epochs == 3
    assert recipe.lr == pytest.approx(0.01)


def test_shares_of_error_are_drawn_only_where_they_are_asked_for():
    assert "budget.shares" not in space().domains
    by_layer = {"params": 0.5, "relative_to": "dense", "allocation": {"choice": ["layer", "energy"]}}
    assert "budget.shares" in space(budget=by_layer).domains
