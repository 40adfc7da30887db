"""Edits a Ray cluster file in place: region, zones and types of machines; comments and everything else stay."""

from __future__ import annotations

import re
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import write_text
from sweeps.cluster.aws_prices import Offer, Region

CLUSTER_FILE = Path(__file__).resolve().parents[2] / "ray-cluster.yaml"
BEGIN, END = "  # spot.py: workers begin\n", "  # spot.py: workers end\n"
MAX_TYPES = 4  # types of machines in a cluster file


def read_cluster_file(path: Path) -> str:
    """Read a cluster file and check that `write_cluster_file` can edit it.

    Args:
        path: the cluster file.

    Returns:
        Its text.

    Raises:
        InputError: the file cannot be read or lacks the lines to edit.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"the cluster file {path} cannot be read: {error.strerror}") from error
    marks = [text.count(mark) for mark in (BEGIN, END)]
    keys = [len(re.findall(rf"^{key}:", text, re.M)) for key in ("max_workers", "  region", "  availability_zone")]
    if marks != [1, 1] or keys != [1, 1, 1] or text.index(BEGIN) > text.index(END):
        raise InputError(
            f"{path} lacks the lines that --write edits: max_workers, provider.region, provider.availability_zone, "
            f"and `{BEGIN.strip()}` before `{END.strip()}`; start from the repository's ray-cluster.yaml"
        )
    return text


def write_cluster_file(path: Path, region: Region, gpus: int) -> None:
    """Put a region, its zones and its cheapest machine types into a cluster file.

    Args:
        path: the cluster file.
        region: where the machines are to run; only offers within its quota are used.
        gpus: GPUs in all, which sets the number of machines.

    Raises:
        InputError: the file cannot be read or lacks the lines to edit.
        OSError: the file cannot be written; it is then as it was.
    """
    text = read_cluster_file(path)
    offers = affordable_offers(region, gpus)
    zones = list(dict.fromkeys(offer.zone for offer in offers))
    types = list(dict.fromkeys(offer.machine_type for offer in offers))[:MAX_TYPES]
    workers = {machine: -(-gpus // machine.gpus) for machine in types}
    for key, value in (
        ("max_workers", max(workers.values())), ("  region", region.name), ("  availability_zone", ",".join(zones)),
    ):  # fmt: skip
        text = re.sub(rf"^{key}:.*$", f"{key}: {value}", text, flags=re.M)
    before, _, after = text.partition(BEGIN)
    after = after.partition(END)[2]
    blocks = "".join(
        f"  {machine.name}:\n    min_workers: 0\n    max_workers: {count}\n"
        f"    resources: {{CPU: {machine.cpus}, GPU: {machine.gpus}}}\n"
        f"    node_config:\n      <<: *machine\n      InstanceType: {machine.name}\n"
        "      InstanceMarketOptions: {MarketType: spot, SpotOptions: {SpotInstanceType: one-time}}\n"
        for machine, count in workers.items()
    )
    write_text(path, before + BEGIN + blocks + END + after)


def affordable_offers(region: Region, gpus: int) -> list[Offer]:
    """Return the offers of a region that its quota allows, cheapest first.

    Args:
        region: the region with its offers and quota.
        gpus: GPUs in all.

    Returns:
        The offers; all of them where the quota is not known.
    """
    return [offer for offer in region.offers if region.suffices(offer, gpus)]
