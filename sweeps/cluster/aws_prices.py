"""What spot GPUs cost now: types, median prices, quotas and likely capacity in every region that the account may use.

All money is US dollars an hour for one GPU. A failed look-up of one region is a remark, never a silent gap.
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

FIRST_REGION = "us-east-1"  # the one that is asked which others the account may use
HOURS = 24  # of price history behind a median
P_QUOTA, G_QUOTA, P5_QUOTA = "L-7212CCBC", "L-3819A6DF", "L-C4BD4855"  # EC2's spot quotas, in virtual CPUs
REFUSALS = ("AuthFailure", "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "OptInRequired")
BAD_KEYS = ("InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "ExpiredToken")
Client = Callable[[str, str], Any]  # service, region -> boto3 client


@dataclass(frozen=True)
class Accelerator:
    """A card: the families of machines that have it, their spot quota, memory bandwidth (GB/s), compute capability."""

    families: tuple[str, ...]
    quota: str
    bandwidth: float
    capability: float


# Bandwidths are NVIDIA's data sheets', of the variant that these machines have (the smallest where there are several).
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
OLDEST_CAPABILITY = 7.5  # that the pinned torch has code for (https://github.com/pytorch/pytorch/issues/172352)


@dataclass(frozen=True)
class Kind:
    """A type of machine."""

    name: str
    gpus: int
    cpus: int


@dataclass(frozen=True)
class Offer:
    """A type of machine in a zone at the median of its last prices, per GPU and hour."""

    region: str
    zone: str
    kind: Kind
    price: float


@dataclass(frozen=True)
class Region:
    """A region's offers, cheapest first, and the account's spot quota there in virtual CPUs (None: not known)."""

    name: str
    offers: tuple[Offer, ...]
    quota: float | None
    remark: str = ""

    def allowed(self, offer: Offer) -> int | None:
        """How many GPUs of such machines the quota allows; None where it is not known."""
        return None if self.quota is None else int(self.quota // offer.kind.cpus) * offer.kind.gpus

    def suffices(self, offer: Offer, gpus: int) -> bool:
        """Whether the quota allows so many GPUs, as far as is known."""
        allowed = self.allowed(offer)
        return allowed is None or allowed >= gpus


def find_accelerator(name: str) -> Accelerator:
    """The card of that name; raises InputError with those there are."""
    if name.upper() not in ACCELERATORS:
        raise unknown("accelerator", name, ACCELERATORS)
    return ACCELERATORS[name.upper()]


def look_around(client: Client, accelerator: Accelerator, gpus: int, regions: list[str] | None = None) -> list[Region]:
    """Every region with offers or a remark, the cheapest first; raises InputError without usable credentials."""
    names = regions or sorted(_regions(client))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: _region(client, accelerator, gpus, name), names))
    return sorted(found, key=lambda region: region.offers[0].price if region.offers else math.inf)


def explain(error: Exception) -> str:
    """A failure of AWS in one line."""
    if isinstance(error, ClientError):
        return f"{error.response['Error']['Code']}: {error.response['Error'].get('Message', '')}".strip(": ")
    return str(error).splitlines()[0]


def _regions(client: Client) -> list[str]:
    try:
        found = client("ec2", FIRST_REGION).describe_regions()["Regions"]
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            "no AWS credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws "
            f"(AWS_PROFILE chooses one); boto3 says: {explain(error)}"
        ) from error
    except ClientError as error:
        if error.response["Error"]["Code"] in (*REFUSALS, *BAD_KEYS):
            raise InputError(f"AWS refuses these credentials: {explain(error)}") from error
        raise
    except BotoCoreError as error:
        raise InputError(f"AWS does not answer: {explain(error)}") from error
    return [region["RegionName"] for region in found]


def _region(client: Client, accelerator: Accelerator, gpus: int, name: str) -> Region:
    try:
        ec2 = client("ec2", name)
        kinds = {kind.name: kind for kind in _kinds(ec2, accelerator) if kind.gpus <= max(gpus, 1)}
        offers = tuple(sorted(_offers(ec2, name, kinds), key=lambda offer: offer.price)) if kinds else ()
    except (ClientError, BotoCoreError) as error:
        return Region(name, (), None, f"{name} was not seen ({explain(error)})")
    quota, remark = _quota(client, accelerator, name) if offers else (None, "")
    return Region(name, offers, quota, remark)


def _kinds(ec2: Any, accelerator: Accelerator) -> Iterator[Kind]:
    patterns = [f"{family}.*" for family in accelerator.families]
    pages = ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": patterns}]
    )
    for page in pages:
        for each in page["InstanceTypes"]:
            gpus = sum(gpu["Count"] for gpu in each.get("GpuInfo", {}).get("Gpus", []))
            if gpus and "metal" not in each["InstanceType"]:
                yield Kind(each["InstanceType"], gpus, each["VCpuInfo"]["DefaultVCpus"])


def _offers(ec2: Any, region: str, kinds: dict[str, Kind]) -> Iterator[Offer]:
    prices: dict[tuple[str, str], list[float]] = defaultdict(list)
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=sorted(kinds), ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC) - timedelta(hours=HOURS),
    )  # fmt: skip
    for page in pages:
        for each in page["SpotPriceHistory"]:
            prices[each["AvailabilityZone"], each["InstanceType"]].append(float(each["SpotPrice"]))
    for (zone, name), seen in prices.items():
        yield Offer(region, zone, kinds[name], statistics.median(seen) / kinds[name].gpus)


def _quota(client: Client, accelerator: Accelerator, region: str) -> tuple[float | None, str]:
    try:
        found = client("service-quotas", region).get_service_quota(ServiceCode="ec2", QuotaCode=accelerator.quota)
    except (ClientError, BotoCoreError) as error:
        return None, f"the quota of {region} is not known ({explain(error)})"
    return float(found["Quota"]["Value"]), ""


def placement_score(client: Client, region: Region, gpus: int) -> tuple[int | None, str]:
    """How likely AWS finds so many GPUs in the region now, from 1 to 10; or None and why it is not known."""
    kinds = {offer.kind for offer in region.offers}
    machines = max(1, math.ceil(gpus / min(kind.gpus for kind in kinds)))
    try:
        found = client("ec2", region.name).get_spot_placement_scores(
            InstanceTypes=sorted(kind.name for kind in kinds), TargetCapacity=machines, RegionNames=[region.name]
        )["SpotPlacementScores"]
    except (ClientError, BotoCoreError) as error:
        return None, explain(error)
    return max((each["Score"] for each in found), default=None), "AWS gives no score"
