"""Small teachers, made in a moment: an untrained network is as good a source of signals as any."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from lowrank.data import DataSettings, ImageData, load_data
from lowrank.distillation.teacher_files import RECORD_FILE, WEIGHTS_FILE, TeacherRecord
from lowrank.io.model_file import save_model
from lowrank.layers import Dense
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.utils.atomic_files import file_hash

SMALL = NetworkSettings(name="wrn_10_1", width=0.5)


def small_data(images: int = 200) -> ImageData:
    return load_data(DataSettings(train_images=images))


def small_network(seed: int = 0, settings: NetworkSettings = SMALL) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network(settings, (1, 8, 8), 10)


def write_teacher(
    root: Path, name: str, data: ImageData, *, seed: int = 0, settings: NetworkSettings = SMALL, record: bool = True
) -> Path:
    """A teacher's folder, as the registry leaves it."""
    folder = root / name
    folder.mkdir(parents=True)
    network = small_network(seed, settings)
    weights = folder / WEIGHTS_FILE
    save_model(
        weights, network, network=settings, method=Dense(), image_shape=data.image_shape, classes=10, checksum=False
    )  # as `sweeps/teacher.py` does
    if record:
        about = TeacherRecord(
            name=name, network=settings.model_dump(), method={"name": "dense"}, params=1, classes=10,
            image_shape=data.image_shape, data={"name": data.name, "fingerprint": data.fingerprint}, train={},
            views={}, seed=seed, specification_id="0" * 12, val_error=5.0, val_loss=0.2, test_error=6.0,
            sha256=file_hash(weights), seconds=1.0, registered_at="2026-01-01", command="", commit="", versions={},
            hardware={},
        )  # fmt: skip
        (folder / RECORD_FILE).write_text(json.dumps(about.model_dump(mode="json")))
    return folder
