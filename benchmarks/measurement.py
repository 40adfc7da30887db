"""What every benchmark shares: its options, the record that it returns, the header, the printing and the timing."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from lowrank.utils.processes import usable_cores

PROJECT = Path(__file__).resolve().parents[1]
JPEG_IMAGES = PROJECT.parent / "shared" / "data" / "cifar10-jpeg"
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow")
WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line may change. `repeats` and `threads` None: what each benchmark finds fit."""

    quick: bool = False
    device: str = "cpu"
    seed: int = 0
    repeats: int | None = None
    threads: int | None = None
    images: Path | None = None  # a folder of Parquet images; JPEG_IMAGES when that is there
    networks: tuple[str, ...] = ()  # these alone, as the next two: all when empty; for `engine`
    ways: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()
    seconds: float | None = None  # after which all must be over

    def repeated(self, usual: int) -> int:
        """How often to measure: as asked, once when `quick`, else `usual`."""
        return self.repeats or (1 if self.quick else usual)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under fixed columns; the last word of a column's name is its unit where it has one."""

    title: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A limit that the project set itself, and what was found."""

    what: str
    limit: float
    found: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether what was found keeps the limit."""
        return self.found <= self.limit

    def __str__(self) -> str:
        verdict = "met" if self.met else "NOT met"
        return f"goal {verdict}: {self.what} {self.found:.3g} {self.unit} (at most {self.limit:g} {self.unit})"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a benchmark returns: tables, goals, remarks, and the settings under which it was taken."""

    name: str
    settings: dict[str, Any]
    tables: list[Table]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        return {**asdict(self), "goals": goals}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str:
    for name in (package, f"{package}-skinny"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "absent"


@cache
def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpus() -> list[str]:
    """Names of the graphics cards."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def command() -> str:
    """The command that was given, as one could type it again."""
    program = Path(sys.argv[0])
    if program.suffix != ".py" or not program.is_relative_to(PROJECT / "benchmarks"):
        return " ".join(sys.argv)
    parts = program.relative_to(PROJECT).with_suffix("").parts
    return " ".join(["python -m", ".".join(part for part in parts if part != "__main__"), *sys.argv[1:]])


def environment() -> dict[str, Any]:
    """Date, machine, versions, load and command, taken now."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "host": platform.node(), "cpu": processor(),
        "cores": usable_cores(), "gpus": gpus(), "versions": versions(), "load": load(), "command": command(),
    }  # fmt: skip


def header(around: Mapping[str, Any], settings: Mapping[str, Any], load_after: Sequence[float]) -> str:
    """The line above a table."""
    cards = ", ".join(around["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    chosen = ", ".join(f"{key} {value}" for key, value in settings.items())
    return (
        f"{around['date']}, {around['cpu']} ({around['cores']} cores), {cards}; {packages}; {chosen}; "
        f"load {around['load'][0]:.2f} before, {load_after[0]:.2f} after; {around['command']}"
    )


def show(measurement: Measurement, line: str, console: Console | None = None) -> None:
    """Print the header line, the tables, the goals and the notes."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(line, highlight=False, markup=False)
    for table in measurement.tables:
        console.print(_drawn(table))
    for text in (*map(str, measurement.goals), *measurement.notes):
        console.print(text, highlight=False, markup=False)
    console.print()


def write(measurement: Measurement, around: Mapping[str, Any], folder: Path) -> None:
    """Write a measurement that was taken in the environment `around` to `folder`, as JSON and as text."""
    after = load()
    content = {**measurement.to_json(), "environment": {**around, "load_after": after}}
    (folder / f"{measurement.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / f"{measurement.name}.txt").open("w") as file:
        show(measurement, header(around, measurement.settings, after), Console(file=file, width=WIDTH))


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns:
        number = any(isinstance(row.get(column), int | float) for row in table.rows)
        drawn.add_column(column, justify="right" if number else "left", no_wrap=column != "settings")
    for row in table.rows:
        drawn.add_row(*(shown(row.get(column)) for column in table.columns))
    return drawn


def shown(value: Any) -> str:
    """A value as a table shows it: counts with commas, other numbers to three digits or so, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def synchronise(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def interleaved(
    contestants: Mapping[str, Callable[[], object]], device: str, repeats: int, *, calls: int = 1, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of one call of each contestant, `repeats` times in turn, so that a change of load meets all alike.

    Each time is the mean over `calls` calls that the device was given at once; `warm_ups` turns are not kept.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_ups + repeats):
        for name, call in contestants.items():
            synchronise(device)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            synchronise(device)
            if turn >= warm_ups:
                times[name].append((time.perf_counter() - start) / calls)
    return times


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)
