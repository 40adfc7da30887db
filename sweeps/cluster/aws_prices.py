"""What spot GPUs cost now: machine types, median prices, quotas and capacity in every region of the account.

All prices are US dollars an hour for one GPU. A region whose look-up fails gets a remark, so that no gap goes unseen.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from lowrank.errors import InputError, unknown

FIRST_REGION = "us-east-1"  # asked for the list of regions that the account may use
HOURS = 24  # of price history behind a median
P_QUOTA, G_QUOTA, P5_QUOTA = "L-7212CCBC", "L-3819A6DF", "L-C4BD4855"  # EC2's spot quotas, in virtual CPUs
NO_PERMISSION = ("AuthFailure", "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "OptInRequired")
BAD_KEYS = ("InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "ExpiredToken")
Client = Callable[[str, str], Any]  # makes a boto3 client from service and region


@dataclass(frozen=True)
class Accelerator:
    """A card and the machines that have it.

    `families` are AWS's families of machines, `quota` the code of their spot quota, `bandwidth` that of the card's
    memory in GB/s, `capability` CUDA's compute capability.
    """

    families: tuple[str, ...]
    quota: str
    bandwidth: float
    capability: float


# Bandwidths from NVIDIA's data sheets; of several variants of a card the slowest.
ACCELERATORS = {
    "T4": Accelerator(("g4dn",), G_QUOTA, 320, 7.5),
    "A10G": Accelerator(("g5",), G_QUOTA, 600, 8.6),
    "L4": Accelerator(("g6", "gr6"), G_QUOTA, 300, 8.9),
    "L40S": Accelerator(("g6e",), G_QUOTA, 864, 8.9),
    "V100": Accelerator(("p3", "p3dn"), P_QUOTA, 900, 7.0),
    "A100": Accelerator(("p4d", "p4de"), P_QUOTA, 1555, 8.0),
    "H100": Accelerator(("p5",), P5_QUOTA, 3350, 9.0),
    "H200": Accelerator(("p5e", "p5en"), P5_QUOTA, 4800, 9.0),
}
OLDEST_CAPABILITY = 7.5  # of the pinned torch (https://github.com/pytorch/pytorch/issues/172352)


@dataclass(frozen=True)
class MachineType:
    """A type of machine: AWS's name, GPUs and virtual CPUs."""

    name: str
    gpus: int
    cpus: int


@dataclass(frozen=True)
class Offer:
    """A machine type in a zone, at the median of its last prices per GPU and hour."""

    region: str
    zone: str
    machine_type: MachineType
    price: float


@dataclass(frozen=True)
class Region:
    """The offers of a region, cheapest first, and the account's quota there.

    `quota` is in virtual CPUs of spot machines, None if unknown. `remark` says what could not be looked up.
    """

    name: str
    offers: tuple[Offer, ...]
    quota: float | None
    remark: str = ""

    def allowed(self, offer: Offer) -> int | None:
        """Return how many GPUs of an offer the quota allows; None if it is unknown."""
        if self.quota is None:
            return None
        return int(self.quota // offer.machine_type.cpus) * offer.machine_type.gpus

    def suffices(self, offer: Offer, gpus: int) -> bool:
        """Return whether the quota allows so many GPUs; an unknown quota does."""
        allowed = self.allowed(offer)
        return allowed is None or allowed >= gpus


def find_accelerator(name: str) -> Accelerator:
    """Return the card of a name.

    Args:
        name: e.g. `L4`, in upper or lower case.

    Returns:
        The card.

    Raises:
        InputError: there is no such card; the message lists those there are.
    """
    if name.upper() not in ACCELERATORS:
        raise unknown("accelerator", name, ACCELERATORS)
    return ACCELERATORS[name.upper()]


def find_offers(client: Client, accelerator: Accelerator, gpus: int, regions: list[str] | None = None) -> list[Region]:
    """Look up the offers and quotas of all regions at once.

    Args:
        client: makes boto3 clients.
        accelerator: the card.
        gpus: GPUs in all; machines with more are left out.
        regions: look only there; None for all that the account may use.

    Returns:
        The regions, those with the cheapest offer first; a region without offers may have a remark.

    Raises:
        InputError: there are no credentials, AWS refuses them or does not answer.
    """
    names = regions or sorted(_region_names(client))
    with ThreadPoolExecutor(8) as pool:
        looked_up = list(pool.map(lambda name: _region(client, accelerator, gpus, name), names))
    return sorted(looked_up, key=lambda region: region.offers[0].price if region.offers else math.inf)


def explain(error: Exception) -> str:
    """Return an error of AWS in one line.

    Args:
        error: an error of boto3 or botocore.

    Returns:
        AWS's code and message, or the first line of the error.
    """
    if isinstance(error, ClientError):
        return f"{error.response['Error']['Code']}: {error.response['Error'].get('Message', '')}".strip(": ")
    return str(error).splitlines()[0]


def _region_names(client: Client) -> list[str]:
    try:
        regions = client("ec2", FIRST_REGION).describe_regions()["Regions"]
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            "no AWS credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws "
            f"(AWS_PROFILE chooses one); boto3 says: {explain(error)}"
        ) from error
    except ClientError as error:
        if error.response["Error"]["Code"] in (*NO_PERMISSION, *BAD_KEYS):
            raise InputError(f"AWS refuses these credentials: {explain(error)}") from error
        raise InputError(f"AWS does not list its regions: {explain(error)}") from error
    except BotoCoreError as error:
        raise InputError(f"AWS does not answer: {explain(error)}") from error
    return [region["RegionName"] for region in regions]


def _region(client: Client, accelerator: Accelerator, gpus: int, name: str) -> Region:
    try:
        ec2 = client("ec2", name)
        machine_types = {
            machine.name: machine for machine in _machine_types(ec2, accelerator) if machine.gpus <= max(gpus, 1)
        }
        offers = sorted(_offers(ec2, name, machine_types), key=lambda offer: offer.price) if machine_types else []
    except (ClientError, BotoCoreError) as error:
        return Region(name, (), None, f"{name} was not seen ({explain(error)})")
    quota, remark = _quota(client, accelerator, name) if offers else (None, "")
    return Region(name, tuple(offers), quota, remark)


def _machine_types(ec2: Any, accelerator: Accelerator) -> Iterator[MachineType]:
    patterns = [f"{family}.*" for family in accelerator.families]
    pages = ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": patterns}]
    )
    for page in pages:
        for machine in page["InstanceTypes"]:
            gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
            if gpus and "metal" not in machine["InstanceType"]:
                yield MachineType(machine["InstanceType"], gpus, machine["VCpuInfo"]["DefaultVCpus"])


def _offers(ec2: Any, region: str, machine_types: dict[str, MachineType]) -> Iterator[Offer]:
    prices: dict[tuple[str, str], list[float]] = defaultdict(list)
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=sorted(machine_types), ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC) - timedelta(hours=HOURS),
    )  # fmt: skip
    for page in pages:
        for entry in page["SpotPriceHistory"]:
            prices[entry["AvailabilityZone"], entry["InstanceType"]].append(float(entry["SpotPrice"]))
    for (zone, name), history in prices.items():
        machine = machine_types[name]
        yield Offer(region, zone, machine, statistics.median(history) / machine.gpus)


def _quota(client: Client, accelerator: Accelerator, region: str) -> tuple[float | None, str]:
    try:
        answer = client("service-quotas", region).get_service_quota(ServiceCode="ec2", QuotaCode=accelerator.quota)
    except (ClientError, BotoCoreError) as error:
        return None, f"the quota of {region} is not known ({explain(error)})"
    return float(answer["Quota"]["Value"]), ""


def placement_score(client: Client, region: Region, gpus: int) -> tuple[int | None, str]:
    """Ask AWS how likely it finds so many GPUs in a region now.

    Args:
        client: makes boto3 clients.
        region: the region, with offers.
        gpus: GPUs in all.

    Returns:
        AWS's placement score from 1 to 10, or None; and why there is none.
    """
    machine_types = {offer.machine_type for offer in region.offers}
    machines = max(1, math.ceil(gpus / min(machine.gpus for machine in machine_types)))
    try:
        scores = client("ec2", region.name).get_spot_placement_scores(
            InstanceTypes=sorted(machine.name for machine in machine_types), TargetCapacity=machines,
            RegionNames=[region.name],
        )["SpotPlacementScores"]  # fmt: skip
    except (ClientError, BotoCoreError) as error:
        return None, explain(error)
    return max((score["Score"] for score in scores), default=None), "AWS gives no score"
