"""Security: no secrets in the files of a study, no code or foreign paths from a space, no open servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from sweeps.cluster.ray_adapter import head_address
from sweeps.cluster.ray_session import connect
from sweeps.run import main
from sweeps.space.parse import read_space
from tests.support import studies
from tests.support.processes import command_lines
from tests.support.ray_private import dashboard_url

ROOT = Path(__file__).resolve().parents[3]
SECRET = "hunter2-top-secret"


def written(tmp_path, **sections):
    """A space file like tt_dims, with other sections."""
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({**read_space("tt_dims").source, **sections}))
    return str(path)


def test_a_space_may_not_name_code_without_allow_code(tmp_path, monkeypatch, capsys):
    """Not even to plan; nothing of it is imported."""
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for network in ("theirs:network", {"name": {"choice": ["resnet9", "theirs:network"]}}):
        space = written(tmp_path, network=network, budget={"params": 50_000})
        for arguments in (["--plan"], ["--out", str(tmp_path / "studies")]):
            assert main(["--space", space, *arguments]) == 2
            said = capsys.readouterr().err
            assert "the space names code to run, the network 'theirs:network'; --allow-code allows it" in said
            assert said.count("\n") == 1
    assert not (tmp_path / "studies").exists()
    assert "theirs" not in sys.modules


def test_allowed_code_is_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "ours.py").write_text(
        "from lowrank.networks.resnet9 import ResNet9\n\n\n"
        "def small(image_shape, classes):\n    return ResNet9(image_shape[0], classes, width=0.125)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    space = written(tmp_path, network="ours:small", budget={"params": 0.7, "relative_to": "separable"})
    assert main(["--space", space, "--plan", "--allow-code"]) == 0
    assert "network: ours:small, " in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["/etc", "data/../../elsewhere", "~/private"])
def test_a_space_may_not_read_outside_the_data_folder(tmp_path, folder, capsys):
    space = written(tmp_path, data=f"parquet:{folder}")
    assert main(["--space", space, "--plan"]) == 2
    said = capsys.readouterr().err
    assert "which is outside the data folder" in said
    assert "name the data yourself: --data parquet:" in said
    assert main(["--space", space, "--plan", "--data", f"parquet:{tmp_path}/none"]) == 2
    assert "outside the data folder" not in capsys.readouterr().err
    (tmp_path / "sets" / "one").mkdir(parents=True)
    inside = written(tmp_path, data=f"parquet:{tmp_path}/sets/one")
    assert main(["--space", inside, "--plan", "--data-dir", str(tmp_path / "sets")]) == 2
    assert "outside the data folder" not in capsys.readouterr().err


@pytest.fixture
def listening():
    """A port that answers as a database would at first: something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.study
@pytest.mark.slow
def test_no_file_of_a_study_holds_a_password(tmp_path, listening):
    """Neither its files nor its output nor the process list hold it; the database does not answer, so the tracker's
    complaint is among what is looked at."""
    uri = f"postgresql://user:{SECRET}@127.0.0.1:{listening}/runs"
    process = studies.start(
        *studies.TINY, "--trials", "1", "--tracking-uri", uri, "--out", str(tmp_path), "--name", "quiet"
    )
    try:
        studies.wait_until_ended(tmp_path / "quiet", 1, process)
        seen = _commands()
        said = studies.finish(process, 200)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert SECRET not in said
    assert any("sweeps.tracking" in line and str(tmp_path) in line for line in seen)
    assert not [line for line in seen if SECRET in line]
    files = [path for path in (tmp_path / "quiet").rglob("*") if path.is_file()]
    assert {"journal.jsonl", "space.yaml", "tracking.log"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def _commands() -> list[str]:
    # A user who types the address shows it; what this project starts must not repeat it
    return [line for line in command_lines().values() if "sweeps/run.py" not in line]


@pytest.mark.study
def test_ray_starts_without_a_dashboard(tmp_path):
    """No dashboard is started on one's own machine; `--address` uses a cluster as it is."""
    connect(None, cpus=1)
    try:
        assert not head_address().startswith("0.0.0.0")
        assert dashboard_url() is None
    finally:
        ray.shutdown()


def test_a_running_cluster_is_not_joined_without_address(monkeypatch):
    asked = []
    monkeypatch.setattr(ray, "init", lambda address, **more: asked.append(address))
    connect(None)
    connect("auto")
    assert asked == ["local", "auto"]


def test_no_server_listens_on_all_interfaces():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {
        name: (ROOT / name).read_text(errors="ignore") for name in tracked if name.endswith((".py", ".yaml", ".sh"))
    }
    open_to_all = [name for name, text in texts.items() if "host 0.0.0.0" in text or "host=0.0.0.0" in text]
    assert [name for name in open_to_all if not name.startswith("tests" + os.sep)] == []
