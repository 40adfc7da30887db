"""`python sweeps/spot.py --accelerator L4 --gpus 8`: where a GPU hour is cheapest now, and what a study would cost."""

from __future__ import annotations

import argparse
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

# `python sweeps/spot.py` puts sweeps/ first on the module path; the project is imported as packages only.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from lowrank.errors import InputError
from lowrank.utils.cli import OneLineParser
from lowrank.utils.endings import exit_code
from sweeps.cluster.aws_prices import (
    ACCELERATORS,
    HOURS,
    OLDEST_CAPABILITY,
    Accelerator,
    Client,
    Offer,
    Region,
    find_accelerator,
    look_around,
    placement_score,
)
from sweeps.study.progress_view import clock

CLUSTER_FILE = Path(__file__).resolve().parent.parent / "ray-cluster.yaml"
NOTHING_TO_BE_HAD = 1
BEGIN, END = "  # spot.py: workers begin\n", "  # spot.py: workers end\n"
SHOWN = 8  # offers in the table
MOST_KINDS = 4  # types of machines in a cluster file
UNLIKELY = 3  # a placement score up to which AWS calls a request unlikely to be met
_MAKING = threading.Lock()  # clients may be used in threads, but not made in them
# Mult-adds a second of one H200 over a whole study, starts and evaluations included: 380 epochs of 40,000 images at
# 45.5 million mult-adds, times 3 for forward and backward, in 286 s (docs/results/h200_tt_dims_cifar10.md).
H200_RATE = 380 * 40_000 * 45.5e6 * 3 / 286


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python sweeps/spot.py",
        description="Where spot GPUs are cheapest now, whether the account may have them, and what a study would cost.",
        epilog="Exit codes: 0 done, 1 nothing is to be had (no offer, no quota), 2 bad input or no credentials.",
    )
    parser.add_argument("--accelerator", required=True, metavar="CARD", help=", ".join(ACCELERATORS))
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many cards in all (1)")
    parser.add_argument("--regions", nargs="+", metavar="REGION", help="look only there (all that the account may use)")
    plan = parser.add_argument_group("what a study would cost")
    plan.add_argument("--plan", metavar="SPACE", help="a space by name, or a YAML file")
    plan.add_argument("--data", metavar="SET", help="the study's data set, as for sweeps/run.py")
    plan.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    plan.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field of the space")
    plan.add_argument("--rate", type=float, metavar="R", help="mult-adds a second of one card, where you measured them")
    file = parser.add_argument_group("the cluster file")
    file.add_argument("--write", action="store_true", help="put region, zones and types into the cluster file")
    file.add_argument("--cluster", type=Path, default=CLUSTER_FILE, metavar="FILE", help="which (ray-cluster.yaml)")
    return parser


def main(arguments: list[str] | None = None, client: Client | None = None) -> int:
    """Run the command line; returns the exit code. `client` makes boto3 clients, by default boto3's own."""
    options = make_parser().parse_args(arguments)
    return exit_code(lambda: _run(options, client or _client))


def _client(service: str, region: str):  # type: ignore[no-untyped-def]  # boto3 makes its classes as it goes
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    with _MAKING:
        return boto3.client(service, region, config=config)


def _run(options: argparse.Namespace, client: Client) -> int:
    accelerator = find_accelerator(options.accelerator)
    if options.gpus < 1:
        raise InputError(f"--gpus must be at least 1, but got {options.gpus}")
    if options.write:
        read_cluster_file(options.cluster)  # a mistake is said before AWS is asked
    work = _work(options) if options.plan else None
    name = options.accelerator.upper()
    regions = look_around(client, accelerator, options.gpus, options.regions)
    for region in regions:
        if region.remark:
            print(region.remark)
    offers = sorted((offer for region in regions for offer in region.offers), key=lambda offer: offer.price)
    if not offers:
        print(f"no capacity: no zone offers spot machines with at most {options.gpus} {name}")
        return NOTHING_TO_BE_HAD
    by_name = {region.name: region for region in regions}
    print("\n".join(table(offers, by_name, name)))
    best = next((region for region in regions if region.offers and _usable(region, options.gpus)), None)
    if best is None:
        print(no_quota(by_name[offers[0].region], accelerator, options.gpus))
        return NOTHING_TO_BE_HAD
    offer = _usable(best, options.gpus)[0]
    _conclude(options, client, best, offer, work, accelerator)
    return 0


def _usable(region: Region, gpus: int) -> list[Offer]:
    """The offers of a region that the quota has room for, cheapest first."""
    return [offer for offer in region.offers if region.suffices(offer, gpus)]


def table(offers: list[Offer], regions: dict[str, Region], name: str) -> list[str]:
    """The cheapest offers, a line each."""
    lines = [f"{name} on spot machines, the medians of the last {HOURS} hours, cheapest first:"]
    lines.append(f"{'zone':18} {'type':15} {'GPUs':>4} {'$ a GPU hour':>13}  quota allows")
    for offer in offers[:SHOWN]:
        allowed = regions[offer.region].allowed(offer)
        room = "not known" if allowed is None else f"{allowed} GPUs"
        lines.append(f"{offer.zone:18} {offer.kind.name:15} {offer.kind.gpus:4} {offer.price:13.4f}  {room}")
    if len(offers) > SHOWN:
        lines.append(f"and {len(offers) - SHOWN} more")
    return lines


def no_quota(region: Region, accelerator: Accelerator, gpus: int) -> str:
    """What to ask AWS for, in words."""
    offer = region.offers[0]
    needed = -(-gpus // offer.kind.gpus) * offer.kind.cpus
    return (
        f"no quota: nowhere may this account run {gpus} such GPUs on spot machines; the cheapest region, "
        f"{region.name}, allows {region.quota or 0:g} virtual CPUs of the {needed} that it takes. Ask for more: "
        f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {accelerator.quota} "
        f"--desired-value {needed} --region {region.name}"
    )


def _conclude(
    options: argparse.Namespace, client: Client, region: Region, offer: Offer, work: float | None,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    machines = -(-options.gpus // offer.kind.gpus)
    cards = machines * offer.kind.gpus
    each = f"{machines} machine{'s' * (machines > 1)}"
    print(f"\n{each} {offer.kind.name} in {offer.zone}: {cards} GPUs, ${offer.price * cards:.2f} an hour")
    print(capacity(client, region, options.gpus))
    if accelerator.capability < OLDEST_CAPABILITY:
        print(
            f"careful: the torch of requirements.txt has no code for a {options.accelerator.upper()} (compute "
            f"capability {accelerator.capability}, it begins at {OLDEST_CAPABILITY}), "
            "nor has the file's image a driver for it; install torch's cu126 build in an image of your own"
        )
    if work is not None:
        print("\n".join(cost_lines(work, offer.price, cards, options.rate, accelerator)))
    if options.write:
        write_cluster_file(options.cluster, region, options.gpus)
        print(f"written into {options.cluster.name}: region {region.name}, zones, types, at most {machines} workers")


def capacity(client: Client, region: Region, gpus: int) -> str:
    """Whether AWS is likely to find the machines now, in words."""
    score, why = placement_score(client, region, gpus)
    if score is None:
        return f"whether there is capacity in {region.name} is not known ({why})"
    likely = "unlikely: wait, or take another card" if score <= UNLIKELY else "likely"
    return f"capacity in {region.name} is {likely} (AWS's placement score: {score} of 10)"


@dataclass(frozen=True)
class Cost:
    """Of a whole study: seconds, and dollars for the workers."""

    seconds: float
    dollars: float


def estimate(work: float, price: float, gpus: int, rate: float) -> Cost:
    """`work` in mult-adds on so many GPUs of `rate` mult-adds a second, at `price` dollars a GPU hour."""
    seconds = work / rate / gpus
    return Cost(seconds, seconds / 3600 * gpus * price)


def cost_lines(work: float, price: float, gpus: int, rate: float | None, accelerator: Accelerator) -> list[str]:
    """The estimate and what it rests on."""
    found = estimate(work, price, gpus, rate or H200_RATE * accelerator.bandwidth / ACCELERATORS["H200"].bandwidth)
    source = (
        "with your --rate" if rate else
        "from one study measured on an H200, scaled by memory bandwidth; for a card of which you know more, give --rate"
    )  # fmt: skip
    return [
        f"the whole plan: {work:.2g} mult-adds, at most {clock(found.seconds)} and ${found.dollars:.2f} "
        "for the workers, without early stopping",
        f"  ({source}; a spot machine that is lost repeats at most 30 s or an epoch; the head costs extra)",
    ]


def _work(options: argparse.Namespace) -> float:
    """Mult-adds of all training of a plan."""
    from lowrank.data import load_data
    from sweeps.records.specification import Resolver
    from sweeps.space.parse import read_space
    from sweeps.space.trust import check_trust
    from sweeps.study.plan_report import make_plan

    space = read_space(options.plan, options.set, data__name=options.data)
    asked = bool(options.data) or any(override.startswith("data") for override in options.set)
    check_trust(space, allow_code=False, data_dir=options.data_dir, data_asked=asked)
    return make_plan(space, Resolver(space, load_data(space.data, options.data_dir)), 1).most_work


# The cluster file, edited in place: comments and everything else stay as they are


def read_cluster_file(path: Path) -> str:
    """The text of a cluster file that `write_cluster_file` can edit; raises InputError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"the cluster file {path} cannot be read: {error.strerror}") from error
    marks = [text.count(mark) for mark in (BEGIN, END)]
    keys = [len(re.findall(rf"^{key}:", text, re.M)) for key in ("max_workers", "  region", "  availability_zone")]
    if marks != [1, 1] or keys != [1, 1, 1] or text.index(BEGIN) > text.index(END):
        raise InputError(
            f"{path} has not the lines that --write edits: max_workers, provider.region, provider.availability_zone, "
            f"and `{BEGIN.strip()}` before `{END.strip()}`; start from the repository's ray-cluster.yaml"
        )
    return text


def write_cluster_file(path: Path, region: Region, gpus: int) -> None:
    """Put a region, its zones and its types, cheapest first, into a cluster file, whole or not at all."""
    text = read_cluster_file(path)
    offers = _usable(region, gpus)
    zones = list(dict.fromkeys(offer.zone for offer in offers))
    kinds = list(dict.fromkeys(offer.kind for offer in offers))[:MOST_KINDS]
    workers = {kind: -(-gpus // kind.gpus) for kind in kinds}
    for key, value in (
        ("max_workers", max(workers.values())), ("  region", region.name), ("  availability_zone", ",".join(zones)),
    ):  # fmt: skip
        text = re.sub(rf"^{key}:.*$", f"{key}: {value}", text, flags=re.M)
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    blocks = "".join(
        f"  {kind.name}:\n    min_workers: 0\n    max_workers: {most}\n"
        f"    resources: {{CPU: {kind.cpus}, GPU: {kind.gpus}}}\n"
        f"    node_config:\n      <<: *machine\n      InstanceType: {kind.name}\n"
        "      InstanceMarketOptions: {MarketType: spot, SpotOptions: {SpotInstanceType: one-time}}\n"
        for kind, most in workers.items()
    )
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(before + BEGIN + blocks + END + after)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
