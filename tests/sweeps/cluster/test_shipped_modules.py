"""On a cluster, the workers get the modules of a network of the user's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from lowrank.errors import InputError
from lowrank.networks import NetworkSettings, make_network
from sweeps.cluster import ray_session

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
