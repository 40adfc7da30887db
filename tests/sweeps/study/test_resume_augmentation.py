"""A resumed study augments images as it did when it began, whatever the default is by now."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lowrank.data.dataset import load_data
from lowrank.data.settings import DataSettings
from sweeps.records import (
    JOURNAL_FILE,
    Event,
    HeaderTeacher,
    Journal,
    StudyHeader,
    StudyRecord,
    identify,
    load_study,
    write_space_file,
)
from sweeps.run import main
from sweeps.space import StoredOptions, parse_space
from sweeps.study import start
from sweeps.trials.planned_teacher import with_teacher_name
from sweeps.trials.resolver import Resolver
from tests.support.specifications import change

OLD_SHIFT = 3  # a quarter of 12 pixels


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(10):
            pixels = np.random.default_rng([number, len(label)]).integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def write_old_study(root: Path, images: Path, **train: object) -> Resolver:
    """A study of one trial that was proposed when the default shift was OLD_SHIFT; returns today's resolver of it."""
    space = parse_space("small", {
        "question": "Which?", "data": {"name": f"folder:{images}"}, "network": {"name": "resnet9", "width": 0.125},
        "train": {"epochs": 1, "batch_size": 4, **train}, "method": {"name": "separable"},
        "search": {"trials": 2},
    })  # fmt: skip
    data = load_data(DataSettings(name=f"folder:{images}"))
    today = Resolver(space, data)
    trial = today.resolve({})
    old = change(trial.specification, views={"shift": OLD_SHIFT})
    folder = root / "mine"
    folder.mkdir(parents=True)
    write_space_file(folder, space.source, StoredOptions(space="small", data_dir=None, tracking_uri=None))
    with closing(Journal(folder / JOURNAL_FILE)) as journal:
        journal.append(Event.STUDY, name="mine", space=space.source, data={"name": data.name})
        journal.append(
            Event.PROPOSED, trial=identify(old, data.image_shape, 2)[0], role="search", stratum=trial.stratum,
            parameters={}, specification=old.to_json(), counts=trial.counts, proposal={}, point_id="",
        )  # fmt: skip
    return today


def resume(root: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Resume the study as far as its first proposal."""
    resolvers: list[Resolver] = []

    def run_study(space: object, resolver: Resolver, *others: object) -> int:
        resolvers.append(resolver)
        return 0

    monkeypatch.setattr(start, "run_study", run_study)
    assert main(["--resume", "mine", "--out", str(root), "--data-dir", str(images)]) == 0
    return resolvers[0]


def test_a_resumed_study_keeps_the_default_shift_and_the_ids_that_it_began_with(images, tmp_path, monkeypatch, capsys):
    today = write_old_study(tmp_path, images)
    resumed = resume(tmp_path, images, monkeypatch)
    recorded = next(iter(load_study(tmp_path / "mine").trials))
    assert today.resolve({}).specification.views.shift == 1, "an eighth of 12 pixels"
    assert resumed.resolve({}).specification.views.shift == OLD_SHIFT
    assert resumed.resolve({}).trial_id == recorded != today.resolve({}).trial_id
    assert "augmented as the study was begun, with `shift` 3; a new study has 1" in capsys.readouterr().out


def test_a_shift_that_the_space_says_is_no_default(images, tmp_path, monkeypatch, capsys):
    today = write_old_study(tmp_path, images, shift=2)
    resumed = resume(tmp_path, images, monkeypatch)
    assert resumed.resolve({}).specification.views.shift == 2
    assert resumed.resolve({}).trial_id == today.resolve({}).trial_id
    assert "augmented as the study was begun" not in capsys.readouterr().out


def test_a_trained_teacher_keeps_the_name_that_the_study_began_with(images, tmp_path, monkeypatch):
    space = parse_space("small", {
        "question": "Which?", "data": {"name": f"folder:{images}"}, "network": {"name": "resnet9", "width": 0.125},
        "teacher": {"train": {"epochs": 1}}, "train": {"epochs": 1, "kd_weight": 0.5, "batch_size": 4},
        "method": {"name": "separable"},
    })  # fmt: skip
    data, names = load_data(DataSettings(name=f"folder:{images}")), []
    monkeypatch.setattr(start, "resolve_teacher", lambda space, data, root: names.append(space.teacher.name))
    config: Any = SimpleNamespace(teachers=tmp_path)
    for header in (StudyHeader(teacher=HeaderTeacher(name="resnet9_0ld5a1f7")), StudyHeader()):
        start._resolve_same_teacher(space, data, config, StudyRecord(header))
    named_today = with_teacher_name(space, data).teacher
    assert named_today is not None
    assert names == ["resnet9_0ld5a1f7", named_today.name]
