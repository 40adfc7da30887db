"""Runs `ray up`, worker launches and `ray down` against moto's server, where nothing can reach a network.

Start it as `unshare --map-root-user --net python -m tests.support.moto_cloud FOLDER`: moto invents public
addresses for its machines, and nothing may ever be sent to one, so ssh and rsync are stand-ins that only note what
they were asked, and the namespace has no way out. FOLDER gets cloud.json: what was launched, opened and left.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
STAND_IN = """#!/bin/sh
echo "$0 $*" >> {log}
for word in "$@"; do
  case "$word" in *ray-bootstrap-*) cp "$word" {folder}/bootstrap.yaml;; esac
done
exit 0
"""
UP = 0x1 | 0x40  # IFF_UP | IFF_RUNNING


def raise_loopback() -> None:
    """Switch the namespace's loopback on."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", UP))  # SIOCSIFFLAGS


def check_no_way_out() -> None:
    """Raises RuntimeError where there is any interface besides loopback."""
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        raise RuntimeError(f"not in an empty network namespace: {names}")


def prepare(folder: Path, port: int) -> None:
    """Stand-ins for ssh and rsync, a home of its own, credentials that open nothing; all children inherit them."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    for name in ("ssh", "rsync", "scp"):
        path = tools / name
        path.write_text(STAND_IN.format(log=folder / "asked.log", folder=folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    os.environ.update(
        PATH=f"{tools}:{os.environ['PATH']}", HOME=str(folder), AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_EC2_METADATA_DISABLED="true",
        MOTO_IAM_LOAD_MANAGED_POLICIES="true", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled",
        TMPDIR=str(folder),
    )  # fmt: skip


def serve() -> int:
    """Moto's server in a thread; returns its port."""
    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"  # read when moto is imported
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def ray(*arguments: str) -> str:
    """Run a command of `ray`; returns what it printed, raises RuntimeError with it when it fails."""
    done = subprocess.run(
        [RAY, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=scaled(240),
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ray {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def launch_workers(bootstrap: Path) -> None:
    """One machine of each type, as the head's autoscaler would: its launcher, on the file that the head was given."""
    import yaml
    from ray.autoscaler._private.event_summarizer import EventSummarizer
    from ray.autoscaler._private.node_launcher import BaseNodeLauncher
    from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import ConcurrentCounter

    config = yaml.safe_load(bootstrap.read_text())
    Path(config["auth"]["ssh_private_key"]).expanduser().touch()  # where the head would keep its key to the workers
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    pending = ConcurrentCounter()
    launcher = BaseNodeLauncher(provider, pending, EventSummarizer(), NodeProviderAvailabilityTracker(), "test")
    for kind in config["available_node_types"]:
        if kind != config["head_node_type"]:
            pending.inc(kind, 1)
            launcher.launch_node(config, 1, kind)


def machines(region: str) -> list[dict[str, Any]]:
    """What runs, as EC2 describes it."""
    import boto3

    ec2 = boto3.client("ec2", region)
    found = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
    return [
        {
            "kind": tags["ray-node-type"], "type": each["InstanceType"], "state": each["State"]["Name"],
            "zone": each["Placement"]["AvailabilityZone"], "spot": each.get("InstanceLifecycle") == "spot",
            "role": each.get("IamInstanceProfile", {}).get("Arn"), "image": each["ImageId"], "key": each.get("KeyName"),
            "groups": [group["GroupName"] for group in each["SecurityGroups"]],
        }
        for each in found
        if (tags := {tag["Key"]: tag["Value"] for tag in each["Tags"]})
    ]  # fmt: skip


def rules(region: str, group: str) -> list[dict[str, Any]]:
    """The inbound rules of the cluster's security group."""
    import boto3

    ec2 = boto3.client("ec2", region)
    (found,) = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [group]}])["SecurityGroups"]
    return [
        {
            "protocol": each["IpProtocol"], "ports": [each.get("FromPort"), each.get("ToPort")],
            "from": [span["CidrIp"] for span in each["IpRanges"]],
            "within": [pair["GroupId"] == found["GroupId"] for pair in each["UserIdGroupPairs"]],
        }
        for each in found["IpPermissions"]
    ]  # fmt: skip


def main(folder: Path, cluster: Path) -> None:
    """Up, workers, down; writes what was seen after each."""
    raise_loopback()
    check_no_way_out()
    prepare(folder, serve())
    from yaml import safe_load

    provider = safe_load(cluster.read_text())["provider"]
    region = provider["region"]
    seen: dict[str, Any] = {"up": ray("up", "--yes", "--no-config-cache", str(cluster))}
    seen["after_up"] = machines(region)
    launch_workers(folder / "bootstrap.yaml")
    seen["with_workers"] = machines(region)
    seen["rules"] = rules(region, provider["security_group"]["GroupName"])
    seen["asked"] = (folder / "asked.log").read_text()
    seen["down"] = ray("down", "--yes", str(cluster))
    seen["after_down"] = machines(region)
    (folder / "cloud.json").write_text(json.dumps(seen, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
