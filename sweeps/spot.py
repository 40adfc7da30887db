"""`python sweeps/spot.py --accelerator L4 --gpus 8`: where a GPU hour is cheapest now, and what a study would cost."""

from __future__ import annotations

import argparse
import math
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from lowrank.errors import InputError
from lowrank.utils import OneLineParser, run_command
from sweeps.cluster import (
    ACCELERATORS,
    CLUSTER_FILE,
    Client,
    Region,
    affordable_offers,
    capacity_message,
    cost_lines,
    find_accelerator,
    find_offers,
    machine_line,
    offer_table,
    quota_message,
    read_cluster_file,
    torch_warning,
    write_cluster_file,
)

NOTHING_AVAILABLE = 1
_CLIENT_LOCK = threading.Lock()  # boto3's clients are thread-safe, but making them is not


@dataclass(frozen=True, kw_only=True)
class SpotConfig:
    """The command line of `sweeps/spot.py`, checked."""

    accelerator: str
    gpus: int
    regions: list[str] | None
    plan: str | None
    data: str | None
    data_dir: Path | None
    set: list[str]
    rate: float | None
    write: bool
    cluster: Path

    def __post_init__(self) -> None:
        """Check what can be checked without a call to AWS.

        Raises:
            InputError: an option is out of range, or the cluster file cannot be used.
        """
        find_accelerator(self.accelerator)
        if self.gpus < 1:
            raise InputError(f"--gpus must be at least 1, but got {self.gpus}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise InputError(f"--rate must be a positive number, but got {self.rate:g}")
        for name in ("data", "data_dir", "set", "rate"):
            if self.plan is None and getattr(self, name) not in (None, []):
                raise InputError(f"--{name.replace('_', '-')} cannot be used without --plan; leave it out")
        if not self.write and self.cluster != CLUSTER_FILE:
            raise InputError("--cluster cannot be used without --write; leave it out")
        if self.write:
            read_cluster_file(self.cluster)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser.
    """
    parser = OneLineParser(
        prog="python sweeps/spot.py",
        description="Where spot GPUs are cheapest now, whether the account may have them, and what a study would cost.",
        epilog="Exit codes: 0 done, 1 no machine is available (no offer, no quota), 2 bad input or no credentials.",
    )
    parser.add_argument("--accelerator", required=True, metavar="CARD", help=", ".join(ACCELERATORS))
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="number of cards in all (default: 1)")
    parser.add_argument(
        "--regions", nargs="+", metavar="REGION", help="regions to search (default: all of the account)"
    )
    plan = parser.add_argument_group("what a study would cost")
    plan.add_argument("--plan", metavar="SPACE", help="a space by name, or a YAML file")
    plan.add_argument("--data", metavar="SET", help="the study's data set, as for sweeps/run.py")
    plan.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    plan.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field of the space")
    plan.add_argument("--rate", type=float, metavar="R", help="mult-adds a second of one card, if measured")
    file = parser.add_argument_group("the cluster file")
    file.add_argument("--write", action="store_true", help="put region, zones and types into the cluster file")
    file.add_argument(
        "--cluster", type=Path, default=CLUSTER_FILE, metavar="FILE", help="path of the file (ray-cluster.yaml)"
    )
    return parser


def main(arguments: list[str] | None = None, client: Client | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None for that of the process.
        client: makes boto3 clients; None for `make_client`.

    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    return run_command(lambda: run(SpotConfig(**vars(options)), client or make_client))


def make_client(service: str, region: str):  # type: ignore[no-untyped-def]  # boto3 makes its classes at run time
    """Make a boto3 client with short time-outs.

    Args:
        service: AWS's name of the service, e.g. `ec2`.
        region: AWS's name of the region.

    Returns:
        The client.
    """
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    with _CLIENT_LOCK:
        return boto3.client(service, region, config=config)


def run(config: SpotConfig, client: Client) -> int:
    """Print the offers, the cheapest within the quota, and what a study would cost.

    With `--write`, put that offer into the cluster file.

    Args:
        config: the command line.
        client: makes boto3 clients.

    Returns:
        The exit code: 0, or 1 where nothing is available.

    Raises:
        InputError: the credentials or the space after `--plan` cannot be used.
    """
    accelerator, card = find_accelerator(config.accelerator), config.accelerator.upper()
    mult_adds = _training_mult_adds(config) if config.plan else None
    regions = find_offers(client, accelerator, config.gpus, config.regions)
    print("".join(f"{region.remark}\n" for region in regions if region.remark), end="")
    offers = sorted((offer for region in regions for offer in region.offers), key=lambda offer: offer.price)
    if not offers:
        print(f"no capacity: no zone offers spot machines with at most {config.gpus} {card}")
        return NOTHING_AVAILABLE
    by_name = {region.name: region for region in regions}
    print("\n".join(offer_table(offers, by_name, card)))
    best = next((region for region in regions if region.offers and affordable_offers(region, config.gpus)), None)
    if best is None:
        print(quota_message(by_name[offers[0].region], accelerator, config.gpus))
        return NOTHING_AVAILABLE
    _print_choice(config, client, best, mult_adds)
    return 0


def _print_choice(config: SpotConfig, client: Client, region: Region, mult_adds: float | None) -> None:
    """Print the cheapest offer of a region and the cost of `mult_adds`; with `--write`, write the cluster file."""
    accelerator, offer = find_accelerator(config.accelerator), affordable_offers(region, config.gpus)[0]
    machines = math.ceil(config.gpus / offer.machine_type.gpus)
    lines = [f"\n{machine_line(offer, config.gpus)}", capacity_message(client, region, config.gpus)]
    lines += torch_warning(config.accelerator.upper(), accelerator)
    if mult_adds is not None:
        lines += cost_lines(mult_adds, offer.price, machines * offer.machine_type.gpus, config.rate, accelerator)
    print("\n".join(lines))
    if config.write:
        write_cluster_file(config.cluster, region, config.gpus)
        print(f"written into {config.cluster.name}: region {region.name}, zones, types, at most {machines} workers")


def _training_mult_adds(config: SpotConfig) -> float:
    """Return the mult-adds of all training that the space after `--plan` asks for, without early stopping."""
    from lowrank.data import load_data
    from sweeps.space import check_trust, names_data, names_typed, read_space
    from sweeps.study import make_plan
    from sweeps.trials import Resolver

    assert config.plan is not None
    space = read_space(config.plan, config.set, data__name=config.data)
    check_trust(
        space, allow_code=False, data_dir=config.data_dir, data_named=names_data(config.data, config.set),
        typed_names=names_typed(None, config.set),
    )  # fmt: skip
    return make_plan(space, Resolver(space, load_data(space.data, config.data_dir)), 1).most_work


if __name__ == "__main__":
    sys.exit(main())
