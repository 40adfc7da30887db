"""The cluster files: Ray accepts them, they open nothing but ssh, and `ray up` and `ray down` run to their ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ray_private import check_cluster_config
from tests.support.waiting import scaled

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ray-cluster.yaml", "ray-cluster-local.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name):
    check_cluster_config(read(name))


@pytest.mark.parametrize("name", FILES)
def test_what_is_mounted_is_there_in_a_fresh_checkout(name):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for local in read(name)["file_mounts"].values():
        assert any(path == local or path.startswith(f"{local}/") for path in tracked), local


@pytest.mark.parametrize("name", FILES)
def test_no_secret_and_no_open_server(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA|aws_secret|BEGIN .*PRIVATE|password|--host 0\.0\.0\.0|dashboard-host=0", text, re.I)
    starts = [command for command in read(name)["head_start_ray_commands"] if "ray start" in command]
    assert all("--dashboard-host=127.0.0.1" in command for command in starts)
    everywhere = [*read(name)["head_start_ray_commands"], *read(name)["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=disabled" in command for command in everywhere if "ray start" in command)


def test_workers_are_spot_machines_of_several_types_and_zones():
    config = read("ray-cluster.yaml")
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert len(workers) >= 2
    assert len(config["provider"]["availability_zone"].split(",")) >= 2
    for kind in workers.values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert kind["min_workers"] == 0
        assert "IamInstanceProfile" not in kind["node_config"]
    head = config["available_node_types"]["head"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory) -> dict[str, Any]:
    """What moto saw of `ray up`, a worker of each type and `ray down`, in a namespace without a network."""
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespace, and without one nothing here may run")
    folder = tmp_path_factory.mktemp("cloud")
    command = [*alone, sys.executable, "-m", "tests.support.moto_cloud", str(folder), str(ROOT / FILES[0])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(280), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "cloud.json").read_text())


@pytest.mark.slow
def test_up_launches_an_on_demand_head_with_a_role(cloud):
    (head,) = cloud["after_up"]
    assert (head["kind"], head["type"], head["spot"]) == ("head", "m7i.large", False)
    assert head["role"].endswith("instance-profile/ray-autoscaler-v1")
    assert head["zone"] == "us-east-1a"
    assert head["groups"] == ["lowrank-cluster"]
    assert "mlflow server --host 127.0.0.1" in cloud["asked"]
    assert cloud["asked"].count("ray start --head") == 1


@pytest.mark.slow
def test_workers_are_launched_on_spot_and_without_a_role(cloud):
    config = read(FILES[0])
    workers = [machine for machine in cloud["with_workers"] if machine["kind"] == "worker"]
    assert {machine["type"] for machine in workers} == set(config["available_node_types"]) - {"head"}
    for machine in workers:
        assert machine["spot"]
        assert machine["role"] is None
        assert machine["groups"] == ["lowrank-cluster"]
        assert machine["zone"] in config["provider"]["availability_zone"].split(",")
        assert machine["image"] == config["available_node_types"]["head"]["node_config"]["ImageId"]


@pytest.mark.slow
def test_from_outside_only_ssh_and_everything_within(cloud):
    within, outside = sorted(cloud["rules"], key=lambda rule: rule["protocol"])
    assert within == {"protocol": "-1", "ports": [None, None], "from": [], "within": [True]}
    assert outside == {"protocol": "tcp", "ports": [22, 22], "from": ["0.0.0.0/0"], "within": []}


@pytest.mark.slow
def test_down_leaves_nothing(cloud):
    assert len(cloud["after_down"]) == 4
    assert {machine["state"] for machine in cloud["after_down"]} == {"terminated"}
    assert "No nodes remaining" in cloud["down"]
