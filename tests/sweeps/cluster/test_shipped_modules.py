"""On a cluster, the workers get the modules of a network of the user's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from lowrank.errors import InputError
from lowrank.networks import NetworkSettings, make_network
from sweeps.cluster import ray_session
from tests.support.clusters import machines
from tests.support.studies import record, run

OWN = "from torch import nn\nfrom shipped_beside import CHANNELS\ndef make(): return nn.Conv2d(3, CHANNELS, 1)\n"


def test_modules_are_shipped_and_what_is_shipped_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(ray_session, "_SHIPPED", set())
    (tmp_path / "shipped_own.py").write_text(OWN)
    (tmp_path / "shipped_beside.py").write_text("CHANNELS = 8\n")
    name = f"{tmp_path}/shipped_own.py:make"
    contents: dict[str, str] = {}

    def init(runtime_env: dict[str, Any], **_: Any) -> None:
        contents.update({path: Path(path).read_text() for path in runtime_env["py_modules"]})

    monkeypatch.setattr(ray, "init", init)
    ray_session.connect("auto", own_networks=[name])
    assert sorted(contents.values()) == sorted([OWN, "CHANNELS = 8\n"])
    assert "shipped to the machines of the cluster: shipped_own.py, shipped_beside.py (1 kB)" in capsys.readouterr().out

    # On another machine, where the file is not, the shipped module stands for it
    shipped = tmp_path / "on_a_worker"
    shipped.mkdir()
    for path, text in contents.items():
        (shipped / Path(path).name).write_text(text)
        sys.modules.pop(Path(path).stem)
    (tmp_path / "shipped_own.py").unlink()
    sys.path.insert(0, str(shipped))
    assert make_network(NetworkSettings(name=name), (3, 8, 8), 10).out_channels == 8

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(InputError, match=r"the modules of other\.py:make are not on the cluster"):
        ray_session.connect("auto", own_networks=["other.py:make"])


ON_CLUSTER = """
import os
from pathlib import Path

import torch
from beside_on_cluster import block
from torch import nn

(Path({seen!r}) / str(os.getpid())).write_text(__file__)


def make(num_classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        layers = [nn.Conv2d(1, 8, 3), block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
        return nn.Sequential(*layers)
"""


@pytest.mark.study
@pytest.mark.slow
def test_trials_on_a_cluster_import_the_modules_that_were_shipped(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    file = tmp_path / "on_cluster.py"
    file.write_text(ON_CLUSTER.format(seen=str(seen)))
    (tmp_path / "beside_on_cluster.py").write_text("from torch import nn\ndef block(): return nn.Conv2d(8, 8, 3)\n")
    (tmp_path / "small.yaml").write_text(json.dumps({
        "question": "any", "data": "digits", "train": {"epochs": 1},
        "method": {"name": "svd", "rank_scale": {"choice": [0.25, 0.5]}},
        "start": {"how": "dense", "weights": "network"}, "search": {"sampler": "grid", "stop": "none"},
    }))  # fmt: skip
    with machines() as cluster:
        done = run(
            "--space", str(tmp_path / "small.yaml"), "--network", f"{file}:make", "--address", cluster.address,
            "--out", str(tmp_path / "studies"), "--name", "mine",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shipped to the machines of the cluster: on_cluster.py, beside_on_cluster.py" in done.stdout
    trials = record(tmp_path / "studies" / "mine").trials.values()
    assert sorted(str(trial.status) for trial in trials) == ["completed", "completed"]
    imported = {path.read_text() for path in seen.iterdir()}
    assert str(file) in imported  # by the driver
    assert len(imported) > 1  # by the workers, from what Ray has unpacked
