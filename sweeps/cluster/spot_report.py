"""What spot offers, quotas and a study's cost look like in print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.utils import format_counted
from sweeps.cluster.aws_prices import (
    ACCELERATORS,
    HOURS,
    OLDEST_CAPABILITY,
    Accelerator,
    Client,
    Offer,
    Region,
    placement_score,
)
from sweeps.utils import format_duration

TABLE_ROWS = 8  # offers in the table
UNLIKELY_SCORE = 3  # a placement score up to which AWS calls a request unlikely to be met
# Mult-adds a second of one H200 over a whole study, starts and evaluations included: 380 epochs of 40,000 images at
# 45.5 million mult-adds, times 3 for forward and backward, in 286 s (docs/results/h200_tt_dims_cifar10.md).
H200_RATE = 380 * 40_000 * 45.5e6 * 3 / 286


@dataclass(frozen=True)
class Cost:
    """What a whole study costs: seconds, and dollars for the workers."""

    seconds: float
    dollars: float


def estimate_cost(work: float, price: float, gpus: int, rate: float) -> Cost:
    """Estimate what a study costs if all GPUs are busy all the time.

    Args:
        work: mult-adds of all training.
        price: US dollars for one GPU and hour.
        gpus: GPUs in all.
        rate: mult-adds a second of one GPU.

    Returns:
        Seconds and dollars.
    """
    seconds = work / rate / gpus
    return Cost(seconds, seconds / 3600 * gpus * price)


def cost_lines(work: float, price: float, gpus: int, rate: float | None, accelerator: Accelerator) -> list[str]:
    """Write the estimate and what it rests on.

    Args:
        work: mult-adds of all training.
        price: US dollars for one GPU and hour.
        gpus: GPUs in all.
        rate: mult-adds a second of one GPU that the user measured; None for one scaled from an H200.
        accelerator: the card.

    Returns:
        Two lines.
    """
    bandwidth_ratio = accelerator.bandwidth / ACCELERATORS["H200"].bandwidth
    cost = estimate_cost(work, price, gpus, H200_RATE * bandwidth_ratio if rate is None else rate)
    source = (
        "with your --rate" if rate is not None else
        "from one study measured on an H200, scaled by memory bandwidth; for a card of which you know more, give --rate"
    )  # fmt: skip
    return [
        f"the whole plan: {work:.2g} mult-adds, at most {format_duration(cost.seconds)} and ${cost.dollars:.2f} "
        "for the workers, without early stopping",
        f"  ({source}; a spot machine that is lost repeats at most 30 s or an epoch; the head costs extra)",
    ]


def offer_table(offers: Sequence[Offer], regions: dict[str, Region], card: str) -> list[str]:
    """Write the cheapest offers, a line each.

    Args:
        offers: the offers, cheapest first.
        regions: region by name, for its quota.
        card: the accelerator's name.

    Returns:
        A heading, the names of the columns and at most `TABLE_ROWS` offers.
    """
    lines = [f"{card} on spot machines, the medians of the last {HOURS} hours, cheapest first:"]
    lines.append(f"{'zone':18} {'type':15} {'GPUs':>4} {'$ a GPU hour':>13}  quota allows")
    for offer in offers[:TABLE_ROWS]:
        allowed = regions[offer.region].allowed(offer)
        quota = "not known" if allowed is None else format_counted(allowed, "GPU")
        lines.append(
            f"{offer.zone:18} {offer.machine_type.name:15} {offer.machine_type.gpus:4} {offer.price:13.4f}  {quota}"
        )
    if len(offers) > TABLE_ROWS:
        lines.append(f"and {len(offers) - TABLE_ROWS} more")
    return lines


def quota_message(region: Region, accelerator: Accelerator, gpus: int) -> str:
    """Say which quota is too small and how to ask AWS for more.

    Args:
        region: the region of the cheapest offer.
        accelerator: the card.
        gpus: GPUs in all.

    Returns:
        One line with the command to type.
    """
    offer = region.offers[0]
    needed = -(-gpus // offer.machine_type.gpus) * offer.machine_type.cpus
    return (
        f"no quota: nowhere may this account run {gpus} such GPUs on spot machines; the cheapest region, "
        f"{region.name}, allows {region.quota or 0:g} virtual CPUs of the {needed} that it takes. Ask for more: "
        f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {accelerator.quota} "
        f"--desired-value {needed} --region {region.name}"
    )


def machine_line(offer: Offer, gpus: int) -> str:
    """Say how many machines of an offer are needed and what they cost an hour.

    Args:
        offer: the chosen offer.
        gpus: GPUs in all.

    Returns:
        One line.
    """
    machines = -(-gpus // offer.machine_type.gpus)
    cards = machines * offer.machine_type.gpus
    name, gpus_text = f"{format_counted(machines, 'machine')} {offer.machine_type.name}", format_counted(cards, "GPU")
    return f"{name} in {offer.zone}: {gpus_text}, ${offer.price * cards:.2f} an hour"


def torch_warning(card: str, accelerator: Accelerator) -> list[str]:
    """Warn of a card that the pinned torch has no code for.

    Args:
        card: the accelerator's name.
        accelerator: the card.

    Returns:
        One line, or none where torch supports the card.
    """
    if accelerator.capability >= OLDEST_CAPABILITY:
        return []
    return [
        f"careful: the torch of requirements.txt has no code for a {card} (compute "
        f"capability {accelerator.capability}, it begins at {OLDEST_CAPABILITY}), "
        "nor has the file's image a driver for it; install torch's cu126 build in an image of your own"
    ]


def capacity_message(client: Client, region: Region, gpus: int) -> str:
    """Say whether AWS is likely to have the machines now.

    Args:
        client: makes boto3 clients.
        region: the region to ask about.
        gpus: GPUs in all.

    Returns:
        One line.
    """
    score, reason = placement_score(client, region, gpus)
    if score is None:
        return f"whether there is capacity in {region.name} is not known ({reason})"
    likely = "unlikely: wait, or take another card" if score <= UNLIKELY_SCORE else "likely"
    return f"capacity in {region.name} is {likely} (AWS's placement score: {score} of 10)"
