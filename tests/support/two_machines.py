"""Two machines out of one: `ray up`, a study and `ray down` of a cluster of one's own, through real ssh and rsync.

tests/faults/test_two_machines.py starts it, as root, in network, mount and process namespaces of its own. Each machine
is an sshd on 127.0.0.1 or 127.0.0.2, of a network that is loopback alone; what its sessions write into their home and
into /tmp/ray no other machine sees, so nothing can lean on a shared disk. The folder that it is given gets seen.json,
and the study's storage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.moto_cloud import RAY, ROOT, check_no_way_out, raise_loopback
from tests.support.studies import TINY
from tests.support.waiting import scaled, wait_until

PYTHON = sys.executable
ADDRESSES = ("127.0.0.1", "127.0.0.2")
STUDY = (*TINY, "--set", "train.epochs=150", "--set", "search.stop=none")


def start_machine(folder: Path, address: str) -> None:
    """An sshd at `address`; its sessions see root's home as it is, and write into a layer of their own."""
    home = Path.home()
    layer = folder / f"home-{address}"
    layer.mkdir()
    settings = {
        "Port": 22, "ListenAddress": address, "HostKey": folder / "host", "PidFile": folder / f"{address}.pid",
        "AuthorizedKeysFile": folder / "key.pub", "StrictModes": "no", "PermitRootLogin": "prohibit-password",
        "UsePAM": "no", "PasswordAuthentication": "no",
        "SetEnv": f"PYTHONPATH={home}/sweeps OMP_NUM_THREADS=1 RAY_AUTH_MODE=disabled",
    }  # fmt: skip
    config = folder / f"{address}.conf"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    script = f"""set -e
        hostname machine-{address}
        mkdir -p /tmp/ray /run/sshd
        mount -t tmpfs tmpfs /tmp/ray
        mount -t tmpfs tmpfs {layer}
        mkdir {layer}/upper {layer}/work
        mount -t overlay overlay -o lowerdir={home},upperdir={layer}/upper,workdir={layer}/work {home}
        mkdir -p {home}/venv/bin
        for name in python pip ray; do
          printf '#!/bin/sh\nexec {Path(PYTHON).parent}/%s "$@"\n' $name > {home}/venv/bin/$name
          chmod +x {home}/venv/bin/$name
        done
        touch {home}/.bashrc
        exec /usr/sbin/sshd -f {config}"""
    subprocess.run(["unshare", "--mount", "--uts", "sh", "-c", script], check=True)


def write_cluster(folder: Path) -> Path:
    """The repository's own file with these two machines filled in."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "ray-cluster-local.yaml").read_text())
    config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": [ADDRESSES[1]]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    stamp = "~/venv/.$(sha256sum requirements.txt | cut -c1-16)"
    config["initialization_commands"] = []
    config["setup_commands"] = [f"cd ~/sweeps && touch {stamp}", *config["setup_commands"]]  # as in a ready image
    for which, address in zip(("head", "worker"), ADDRESSES, strict=True):
        key = f"{which}_start_ray_commands"
        config[key] = [f"{command} --num-cpus=1 --node-ip-address={address}" for command in config[key]]
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def ray(*arguments: str, seconds: float = 240) -> str:
    """Run a command of `ray` from the repository's root; raises RuntimeError with what it printed when it fails."""
    done = subprocess.run(
        [RAY, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=scaled(seconds), check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ray {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def living(cluster: Path) -> int:
    """How many machines the cluster counts."""
    code = "import ray; ray.init('auto', log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
    said = ray("exec", str(cluster), f'~/venv/bin/python -c "{code}"')
    return int(said.rpartition("alive ")[2].split()[0])


def raylets() -> int:
    """Raylets of this process namespace."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += b"raylet/raylet" in path.read_bytes()
        except OSError:  # it has just ended
            continue
    return found


def main(folder: Path) -> None:
    """Machines, up, study, down; writes what was seen."""
    raise_loopback()
    check_no_way_out()
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    subprocess.run("mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray", shell=True, check=True)
    for address in ADDRESSES:
        start_machine(folder, address)
    cluster = write_cluster(folder)
    seen: dict[str, Any] = {"up": ray("up", "--yes", "--no-config-cache", str(cluster))}
    wait_until(lambda: living(cluster) >= 2, "the second machine to join the cluster")
    seen["alive"] = living(cluster)
    seen["autoscaler"] = ray("exec", str(cluster), "tail -n 100 /tmp/ray/session_latest/logs/monitor*")
    study = " ".join(f"'{word}'" for word in (*STUDY, "--address", "auto", "--name", "two"))
    run = f"cd ~/sweeps && ~/venv/bin/python sweeps/run.py {study} --storage {(folder / 'stored').as_uri()}"
    seen["study"] = ray("exec", str(cluster), run, seconds=400)
    seen["raylets"] = raylets()
    seen["down"] = ray("down", "--yes", str(cluster))
    wait_until(lambda: not raylets(), "the worker's raylet to miss the head")
    seen["raylets_after"] = raylets()
    (folder / "seen.json").write_text(json.dumps(seen, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
