"""`--probe-memory`: one training step of every distinct configuration, on the device that its trials will use.

What does not fit is named before anything is trained; what fits, with its memory, speed and largest batch, is a record
that placement can use.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import RayActorError, RayError
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowrank.data import load_data
from lowrank.data.reading.synthetic import DataOutline, synthetic_data
from lowrank.training.engine.memory_probe import measure_step, probe_memory
from lowrank.utils.atomic_write import atomic_write
from lowrank.utils.text import first_line
from sweeps.cluster.devices import given_device, limit_memory, out_of_memory
from sweeps.cluster.ray_session import connect
from sweeps.records.probe_schema import FAILED, FIT_FOLDER, FIT_SCHEMA, FITS, OUT_OF_MEMORY
from sweeps.records.specification import Trial
from sweeps.records.study_folders import studies_root
from sweeps.resources.configurations import configuration, device_name, distinct, trainer_maker
from sweeps.resources.shares import Share, read_cluster, share_of
from sweeps.space.model import Space
from sweeps.space.teacher_settings import SECTION
from sweeps.trials.build import load_trial_data
from sweeps.trials.planned_teacher import planned_teaching
from sweeps.trials.resolver import Resolver

QUIET_SECONDS = 15.0  # between lines where standard output is no terminal


def fit(space: Space, options: argparse.Namespace) -> int:
    """Probe the space's configurations, print and keep what was found; returns 1 when none fits."""
    root = studies_root(options.storage, options.out)
    data = load_data(space.data, options.data_dir)
    resolver = Resolver(space, data, planned_teaching(space, data, (options.teachers or Path("teachers")).resolve()))
    trials = distinct(space, resolver)
    connect(options.address)
    share = share_of(space.resources, read_cluster(), space.search.trials, bool(options.gpus_per_trial))
    outline = DataOutline.of(data) if data.resident else None  # what is streamed is measured with its loader
    rows = probe_all(trials, share, options.data_dir, outline, quiet=options.json)
    path = keep(rows, root / FIT_FOLDER / f"{options.name or space.name}.parquet")
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, share)
        print(f"written into {path}")
    return 0 if any(row["status"] == FITS for row in rows) else 1


def probe_all(
    trials: Sequence[Trial],
    share: Share,
    data_dir: Path | None,
    outline: DataOutline | None = None,
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Rows of FIT_SCHEMA, one a trial, measured one after the other in a worker that holds a trial's share.

    With an `outline` on noise like the data, which then need not be decoded once more; else on the data themselves.
    """
    rows: list[dict[str, Any]] = []
    prober: Any = None
    start = ray.remote(_Prober).options(num_cpus=share.cpus, num_gpus=share.gpus).remote
    for trial in _announced(trials, Console(stderr=quiet)):
        prober = prober or start()
        config = {
            "specification": trial.specification, "data_dir": str(data_dir.resolve()) if data_dir else None,
            "share": share.gpus, "outline": outline,
        }  # fmt: skip
        try:
            found = ray.get(prober.probe.remote(config))
        except RayActorError as error:  # killed, by the system's own memory guard as a rule: a new one goes on
            prober, found = None, {"status": OUT_OF_MEMORY, "reason": f"the worker was killed: {first_line(error)}"}
        except RayError as error:
            found = {"status": FAILED, "reason": str(error).strip().splitlines()[-1]}
        rows.append(_row(trial, share, found))
    return rows


def _announced(trials: Sequence[Trial], console: Console) -> Iterator[Trial]:
    """The trials one by one, with a bar, or with a line now and then where nobody would see a bar."""
    begun = said = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
        for done, trial in enumerate(shown.track(trials, description="probing")):
            if not console.is_terminal and time.monotonic() - said >= QUIET_SECONDS:
                said = time.monotonic()
                console.print(f"probed {done} of {len(trials)} configurations; {said - begun:.0f} s gone")
            yield trial


def _row(trial: Trial, share: Share, found: dict[str, Any]) -> dict[str, Any]:
    specification = trial.specification
    known = {
        "trial_id": trial.trial_id, "stratum": trial.stratum, "network": specification["network"]["name"],
        "method": specification["method"]["name"], "params": trial.counts["params"],
        "parameters": json.dumps(trial.point, sort_keys=True), "configuration": configuration(specification),
        "teacher": specification.get(SECTION, {}).get("name"), "share": share.gpus,
        "precision": specification["train"]["precision"], "batch_size": specification["train"]["batch_size"],
        "measured_at": time.time(),
    }  # fmt: skip
    return dict.fromkeys(FIT_SCHEMA.names) | known | found


def keep(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write the rows as one Parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, FIT_SCHEMA), file)
    return path


def show(rows: Sequence[dict[str, Any]], share: Share) -> None:
    """Print the rows, then what does not fit and why."""
    console = Console()
    devices = ", ".join(sorted({row["device"] for row in rows if row["device"]})) or "no device"
    title = f"One step each, on {devices}; {share.cpus:g} CPU and {share.gpus:g} GPU a trial"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in ("method", "teacher", "params", "batch", "peak MB", "ms", "images/s", "largest"):
        table.add_column(column, justify="left" if column in ("method", "teacher") else "right", no_wrap=True)
    for row in rows:
        if row["status"] == FITS:
            table.add_row(*_cells(row))
    console.print(table)
    print("peak: of device memory, or on a CPU of the process beyond its start; largest: batch that fits (+: or more)")
    for row in rows:
        if row["status"] != FITS:
            largest = f"; the largest batch that fits is {row['largest_batch']}" if row["largest_batch"] else ""
            why = f"{row['status'].replace('_', ' ')}: {row['reason']}"
            what = f"{row['method']} of {row['params']:,} parameters, batch {row['batch_size']}"
            print(f"does not fit: {what} ({why}){largest}")


def _cells(row: dict[str, Any]) -> list[str]:
    """A row of what fits, as the table shows it."""
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
    speed = [f"{1000 * row['step_seconds']:.1f}", f"{row['images_per_second']:,.0f}"]
    largest = f"{row['largest_batch']:,}{'' if row['limited'] else '+'}"
    taught = "yes" if row["teacher"] else ""
    return [row["method"], taught, f"{row['params']:,}", str(row["batch_size"]), peak, *speed, largest]


class _Prober:
    """Probes configurations in a process of its own, so that one that ends it ends no study."""

    def __init__(self) -> None:
        self._warm = False

    def probe(self, config: dict[str, Any]) -> dict[str, Any]:
        """What of a row of FIT_SCHEMA is measured; the first step is taken twice: libraries take memory once."""
        found = probe(config, warm_up=not self._warm)
        self._warm = True
        return found


def probe(config: dict[str, Any], *, warm_up: bool = False) -> dict[str, Any]:
    """Measure one specification in this process; `config` is as `probe_all` makes it."""
    specification, share = config["specification"], config["share"]
    device = torch.device(given_device(share))
    if device.type == "cuda":
        limit_memory(share)
    outline: DataOutline | None = config["outline"]
    data = load_trial_data(specification, config["data_dir"]) if outline is None else synthetic_data(outline)
    make = trainer_maker(specification, data, device)
    batch_size = int(specification["train"]["batch_size"])
    if warm_up:
        with suppress_out_of_memory():
            measure_step(make, batch_size, device)
    found = probe_memory(make, batch_size, device, out_of_memory)
    about: dict[str, Any] = {
        "host": platform.node(), "device": device_name(device), "status": FITS if found.step else OUT_OF_MEMORY,
        "reason": found.reason, "largest_batch": found.largest_batch, "limited": found.limited,
    }  # fmt: skip
    if step := found.step:
        about |= {
            "peak_mb": step.peak_mb, "step_seconds": step.seconds, "images_per_second": step.images_per_second
        }  # fmt: skip
    return about


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Within, memory that runs out ends the block and is no error; it is met again where it is reported."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
