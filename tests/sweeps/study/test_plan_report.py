"""What a plan says of the data, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowrank.data import DataSettings, ImageData, clear_cache, load_data, steps_per_epoch
from lowrank.utils import processes
from sweeps.run import main
from sweeps.space.parse import parse_space
from sweeps.study.plan_report import (
    _augmentation_words,
    _class_line,
    _few_steps_line,
    _local_slots,
    _resizing_words,
)
from sweeps.trials.resolver import Resolver


def write_set(root: Path, counts: dict[str, int], side: int = 12) -> ImageData:
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([number, count]).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    clear_cache()
    return load_data(DataSettings(name=f"folder:{root}"))


def test_classes_and_their_sizes(tmp_path: Path, digits: ImageData):
    data = write_set(tmp_path / "few", {"cat": 40, "dog": 10})
    assert _class_line(data) == (
        "classes: 2; training images of class cat: 26, dog: 6; uneven: see the balanced error, and "
        "train.class_weights or train.sampler: balanced"
    )
    assert _class_line(digits).startswith("classes: 10; training images of class 1: 117, 3: 117, 5: 117, 4: 116")
    many = write_set(tmp_path / "many", {f"c{number:02}": 6 + number % 2 for number in range(12)})
    assert _class_line(many).startswith("classes: 12, with 4 (c10) to 5 (c09) training images")
    even = write_set(tmp_path / "even", {f"c{number:02}": 5 for number in range(11)})
    assert _class_line(even) == "classes: 11, with 3 training images each"


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({}, "shifted by up to 1 pixel (4 of 32 at every size; train.shift sets another), mirrored left to right "
             "(train.flip: false for letters, digits or signs), a square of 3 pixels cut out"),
        ({"flip": False, "shift": 0}, "a square of 3 pixels cut out"),
        ({"flip": False, "shift": 6, "cutout": {"choice": [0, 4]}},
         "shifted by up to 6 pixels, train.cutout is searched"),
        ({"flip": False, "shift": 0, "cutout": 0}, "none"),
        ({"recipe": "fast_wrn", "flip": False, "cutout": 2},
         "shifted by up to 4 pixels (the recipe's, at every size; train.shift sets another), "
         "a square of 2 pixels cut out"),
        ({"recipe": "fast_wrn", "flip": False, "shift": 1, "cutout": 4},
         "shifted by up to 1 pixel, a square of 4 pixels cut out"),
    ],
)  # fmt: skip
def test_augmentation_in_words(tmp_path: Path, content: dict, train: dict, words: str):
    data = write_set(tmp_path, {"a": 6, "b": 6})
    space = parse_space(
        "small", {**content, "data": data.settings.model_dump(), "train": {**content["train"], **train}}
    )
    assert _augmentation_words(space, Resolver(space, data)) == words


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"batch_size": 512, "lr": 0.2},
         ["  few steps an epoch for so few images: with --set train.batch_size=8 --set train.lr=0.0031 an epoch "
          "has 8"]),
        ({"batch_size": 512, "lr": {"choice": [0.1, 0.2]}},
         ["  few steps an epoch for so few images: with --set train.batch_size=8 an epoch has 8"]),
        ({"batch_size": 8}, []),
        ({"batch_size": {"choice": [256, 512]}}, []),
    ],
)  # fmt: skip
def test_few_steps_an_epoch_are_said_with_what_gives_more(tmp_path: Path, content: dict, train: dict, line: list[str]):
    data = write_set(tmp_path, {"a": 50, "b": 50})
    assert len(data.train) == 64
    space = parse_space(
        "small", {**content, "data": data.settings.model_dump(), "train": {**content["train"], **train}}
    )
    assert _few_steps_line(space, data, steps_per_epoch(data, space.recipe({}).batch_size)) == line


def test_enough_steps_are_not_worth_a_line(content: dict, digits: ImageData):
    assert _few_steps_line(parse_space("small", content), digits, 10) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"image_size": 8}, ", resized (the middle square of each)"),
        ({"image_size": 8, "resize": "squash"}, ", resized (squashed to a square)"),
        ({"image_size": 8, "resize": "pad"}, ", resized (padded with black bars)"),
    ],
)
def test_how_images_are_resized_is_said(tmp_path: Path, changes: dict, words: str):
    data = write_set(tmp_path, {"a": 6, "b": 6})
    assert _resizing_words(load_data(data.settings.model_copy(update=changes))) == words


def test_trials_at_a_time_go_by_the_cores_that_may_be_used(content: dict, monkeypatch: pytest.MonkeyPatch):
    space = parse_space("small", content)
    for cores in (1, 3):
        monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert _local_slots(space) == cores


def test_a_network_that_cannot_be_trained_ends_the_plan_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("stops_training.py").write_text(
        "from torch import nn\n"
        "class Stops(nn.Sequential):\n"
        "    def forward(self, images):\n"
        "        if self.training and images.shape[0] > 2: raise KeyError('no such feature')\n"
        "        return super().forward(images)\n"
        "def build(classes):\n"
        "    convolutions = nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)\n"
        "    return Stops(*convolutions, nn.Flatten(), nn.Linear(1024, classes))\n"
    )
    assert (
        main(["--space", "tt_dims", "--network", "stops_training.py:build", "--plan", "--set", "budget.params=0.8"])
        == 2
    )
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: a training step of ")
    assert message.endswith("stops_training.py:build, which --plan times, raised KeyError: 'no such feature'")
