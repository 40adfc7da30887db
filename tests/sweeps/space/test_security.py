"""Security: no secrets in the files of a study, no code or foreign paths from a space, no open servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
import yaml

from sweeps.cluster.local_ray import private_folder, token_file
from sweeps.cluster.ray_adapter import head_address
from sweeps.cluster.ray_session import connect
from sweeps.run import main
from sweeps.space.parse import read_space
from tests.support import studies
from tests.support.bare_grpc import call
from tests.support.processes import command_line, command_lines, descendant_pids, listening_ports
from tests.support.ray_private import dashboard_url
from tests.support.waiting import wait_until

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


# A method of each of Ray's services: of the head, of a machine, of its object store, of a worker
RAY_METHODS = (
    "/ray.rpc.InternalKVGcsService/InternalKVGet", "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push", "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
)  # fmt: skip
OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16


def status_of_request(host: str, port: int) -> int:
    """What a server of HTTP/1.1 answers to somebody without a token."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def services_that_refuse(pids: Sequence[int]) -> set[str]:
    """Check that every port of these processes refuses a client without the token; returns Ray's services there."""
    ports = {port for pid in pids for port in listening_ports(pid)}
    token = {"authorization": f"Bearer {token_file().read_text().strip()}"}
    services = set()
    for host, port in ports:
        statuses = [call(host, port, method) for method in RAY_METHODS]
        if set(statuses) == {None}:  # it does not speak gRPC
            assert status_of_request(host, port) == 401
            continue
        assert set(statuses) == {UNIMPLEMENTED, UNAUTHENTICATED}, (host, port)
        method = RAY_METHODS[statuses.index(UNAUTHENTICATED)]
        assert call(host, port, method, **token) == OK  # so it was the token that was missing
        services.add(method)
    return services


@pytest.mark.study
@pytest.mark.slow
def test_a_study_at_work_answers_nobody_without_the_token(tmp_path, monkeypatch):
    """The command and all that it has started, while trials are trained: Ray, workers, the relay, the tracker."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    options = (*studies.TINY, "--set", "train.epochs=1000", "--storage", (tmp_path / "stored").as_uri())
    with studies.running(*options, "--out", str(tmp_path), "--name", "open") as process:
        wait_until(
            lambda: any(trial.last_epoch for trial in studies.record(tmp_path / "open").trials.values()),
            "an epoch of a trial", unless=lambda: studies.has_ended(process),
        )  # fmt: skip
        pids = [process.pid, *descendant_pids(process.pid)]
        lines = [command_line(pid) for pid in pids]
        for name in ("gcs_server", "raylet/raylet", "sweeps.tracking", "ray::"):
            assert any(name in line for line in lines), name
        assert services_that_refuse(pids) == set(RAY_METHODS)
        os.killpg(process.pid, signal.SIGINT)
        assert "Traceback" not in studies.finish(process)


@pytest.mark.study
def test_a_ray_of_this_machine_answers_nobody_without_the_token(tmp_path, monkeypatch):
    """No dashboard is started, every open port refuses a client without the token, and files are the user's alone."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lowrank").mkdir()
    (tmp_path / "lowrank" / "__init__.py").write_text("raise SystemExit('it ran')\n")
    connect(None, cpus=1)
    try:
        assert not head_address().startswith("0.0.0.0")
        assert dashboard_url() is None
        module = ray.get(ray.remote(lambda: __import__("lowrank").__file__).remote())
        assert Path(module) == ROOT / "lowrank" / "__init__.py"  # not that of the current folder
        assert services_that_refuse([os.getpid(), *descendant_pids(os.getpid())]) == set(RAY_METHODS)
        folder = private_folder()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert token_file().stat().st_mode & 0o777 == 0o600
        assert Path(ray._private.worker.global_worker.node.get_session_dir_path()).is_relative_to(folder)
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
