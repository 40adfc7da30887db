"""`--probe-memory`: one training step of every distinct configuration, on the device that its trials will use.

What does not fit is named before anything is trained. Memory, speed and the largest batch of what fits are recorded,
and the choice of how many trials share a card uses the record.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import RayActorError, RayError
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowrank.data import DataOutline, load_data, synthetic_data
from lowrank.training import measure_step, probe_memory
from lowrank.utils import atomic_write, first_line, last_line, print_result, relative_path
from sweeps.cluster import assigned_device, connect, limit_memory, out_of_memory
from sweeps.records import FAILED, FIT_FOLDER, FIT_SCHEMA, FITS, OUT_OF_MEMORY, Trial, TrialSpec, studies_root
from sweeps.resources.configurations import configuration, device_name, distinct_trials, trainer_maker
from sweeps.resources.shares import Share, read_cluster, share_for
from sweeps.space import RunOptions, Space, own_networks
from sweeps.trials import Resolver, describe_teacher, load_trial_data


class FitRow(TypedDict, total=False):
    """A row of `FIT_SCHEMA`, or those of its columns that were measured; None where nothing was."""

    trial_id: str
    stratum: str
    network: str
    method: str
    params: int
    parameters: str
    configuration: str
    teacher: str | None
    host: str | None
    device: str | None
    share: float
    precision: str
    batch_size: int
    status: str
    reason: str
    peak_mb: float | None
    step_seconds: float
    images_per_second: float
    largest_batch: int
    limited: bool
    measured_at: float


LINE_SECONDS = 15.0  # between lines of progress where standard output is no terminal


def probe_space(space: Space, options: RunOptions) -> int:
    """Probe a space's configurations, print what was measured and record it.

    Args:
        space: the space to probe.
        options: the command line of `sweeps/run.py`.

    Returns:
        The exit code: 0, or 1 if no configuration fits.

    Raises:
        InputError: data, teacher, cluster or resources cannot be had.
    """
    root = studies_root(options.storage, options.out)
    data = load_data(space.data, options.data_dir)
    resolver = Resolver(space, data, describe_teacher(space, data, (options.teachers or Path("teachers")).resolve()))
    trials = distinct_trials(space, resolver)
    connect(
        options.address, own_networks=own_networks(space), allow_open_ports=options.allow_open_ports,
        workers=1,  # one after the other measures all configurations
    )  # fmt: skip
    share = share_for(
        space.resources, read_cluster(autoscaled=options.address is not None), space.search.trials,
        bool(options.gpus_per_trial),
    )  # fmt: skip
    outline = DataOutline.of(data) if data.resident else None  # streamed data is measured with its loader
    rows = probe_trials(trials, share, options.data_dir, outline, quiet=options.json)
    path = write_rows(rows, root / FIT_FOLDER / f"{options.name or space.name}.parquet")
    if options.json:
        print_result(json.dumps(rows, indent=2))
    else:
        print_rows(rows, share)
        print(f"written into {relative_path(path)}")
    return 0 if any(row["status"] == FITS for row in rows) else 1


def probe_trials(
    trials: Sequence[Trial],
    share: Share,
    data_dir: Path | None,
    outline: DataOutline | None = None,
    *,
    quiet: bool = False,
) -> list[FitRow]:
    """Measure trials one after the other in a worker that holds a trial's share.

    Args:
        trials: one of each configuration.
        share: what each trial holds.
        data_dir: folder of data sets.
        outline: of the data, to measure on noise of that shape, which need not be decoded; None for the data itself.
        quiet: whether standard output must stay free of progress.

    Returns:
        Rows of `FIT_SCHEMA`, one a trial.
    """
    rows: list[FitRow] = []
    prober: Any = None
    start = ray.remote(_Prober).options(num_cpus=share.cpus, num_gpus=share.gpus).remote
    for trial in _with_progress(trials, Console(stderr=quiet)):
        prober = prober or start(share.cpus)
        task = ProbeTask(trial.specification, data_dir.resolve() if data_dir else None, share.gpus, outline)
        try:
            measured = ray.get(prober.probe.remote(task))
        except RayActorError as error:  # the operating system kills what takes too much memory; a new worker goes on
            reason = f"the worker was killed: {first_line(error)}"
            prober, measured = None, {"status": OUT_OF_MEMORY, "reason": reason}
        except RayError as error:
            measured = {"status": FAILED, "reason": last_line(error)}
        rows.append(make_row(trial, share, measured))
    return rows


def _with_progress(trials: Sequence[Trial], console: Console) -> Iterator[Trial]:
    """Yield the trials under a bar or, where nobody would see a bar, with a line now and then."""
    started = last_line_at = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for done, trial in enumerate(progress.track(trials, description="probing")):
            if not console.is_terminal and time.monotonic() - last_line_at >= LINE_SECONDS:
                last_line_at = time.monotonic()
                console.print(f"probed {done} of {len(trials)} configurations; {last_line_at - started:.0f} s gone")
            yield trial


def make_row(trial: Trial, share: Share, measured: FitRow) -> FitRow:
    """Join what is known of a trial and what `probe` has measured.

    Args:
        trial: the trial.
        share: what it holds.
        measured: fields of `FIT_SCHEMA`.

    Returns:
        A row of `FIT_SCHEMA`; None where nothing was measured.
    """
    specification = trial.specification
    described = {
        "trial_id": trial.trial_id, "stratum": trial.stratum, "network": specification.network.name,
        "method": specification.method.name, "params": trial.counts["params"],
        "parameters": json.dumps(trial.point, sort_keys=True), "configuration": configuration(specification),
        "teacher": specification.teacher.name if specification.teacher else None, "share": share.gpus,
        "precision": specification.train.precision, "batch_size": specification.train.batch_size,
        "measured_at": time.time(),
    }  # fmt: skip
    return cast(FitRow, dict.fromkeys(FIT_SCHEMA.names) | described | dict(measured))


def write_rows(rows: list[FitRow], path: Path) -> Path:
    """Write rows as one Parquet file.

    Args:
        rows: of `FIT_SCHEMA`.
        path: the file; missing folders are made.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, FIT_SCHEMA), file)
    return path


def print_rows(rows: Sequence[FitRow], share: Share) -> None:
    """Print a table of what fits, then a line for each configuration that does not.

    Args:
        rows: of `FIT_SCHEMA`.
        share: what each trial holds.
    """
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
            reason = f"{row['status'].replace('_', ' ')}: {row['reason']}"
            model = f"{row['method']} of {row['params']:,} parameters, batch {row['batch_size']}"
            print(f"does not fit: {model} ({reason}){largest}")


def _cells(row: FitRow) -> list[str]:
    """Return the table's cells for a row of what fits."""
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
    speed = [f"{1000 * row['step_seconds']:.1f}", f"{row['images_per_second']:,.0f}"]
    largest = f"{row['largest_batch']:,}{'' if row['limited'] else '+'}"
    teacher = "yes" if row["teacher"] else ""
    return [row["method"], teacher, f"{row['params']:,}", str(row["batch_size"]), peak, *speed, largest]


class _Prober:
    """Probes configurations in a process of its own: one that ends the process ends no study."""

    def __init__(self, cpus: float) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self._warm = False

    def probe(self, task: ProbeTask) -> FitRow:
        """See the function `probe`; the first configuration warms up, for libraries take some memory only once."""
        measured = probe(task, warm_up=not self._warm)
        self._warm = True
        return measured


@dataclass(frozen=True)
class ProbeTask:
    """What is measured.

    Attributes:
        specification: of a trial.
        data_dir: folder of data sets; None for the default.
        share: of a card that the trial holds.
        outline: of the data, to measure on noise of that shape; None for the data itself.
    """

    specification: TrialSpec
    data_dir: Path | None
    share: float
    outline: DataOutline | None = None


def probe(task: ProbeTask, *, warm_up: bool = False) -> FitRow:
    """Measure one specification in this process.

    Args:
        task: what is measured.
        warm_up: whether to take one more step first.

    Returns:
        Those fields of `FIT_SCHEMA` that are measured.
    """
    specification, share, outline = task.specification, task.share, task.outline
    device = torch.device(assigned_device(share))
    if device.type == "cuda":
        limit_memory(share)
    data = load_trial_data(specification, task.data_dir) if outline is None else synthetic_data(outline)
    make = trainer_maker(specification, data, device)
    batch_size = specification.train.batch_size
    if warm_up:
        with suppress_out_of_memory():
            measure_step(make, batch_size, device)
    probed = probe_memory(make, batch_size, device, out_of_memory)
    measured: FitRow = {
        "host": platform.node(), "device": device_name(device), "status": FITS if probed.step else OUT_OF_MEMORY,
        "reason": probed.reason, "largest_batch": probed.largest_batch, "limited": probed.limited,
    }  # fmt: skip
    if step := probed.step:
        measured |= {
            "peak_mb": step.peak_mb, "step_seconds": step.seconds, "images_per_second": step.images_per_second
        }  # fmt: skip
    return measured


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Leave the block without an error if memory runs out; the step that is measured meets it again and reports it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
