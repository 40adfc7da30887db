"""Images a second of training: each network, plain and taught, 1, 2 and 4 trials, beside loops that torch compiles.

    python -m benchmarks.gpu.engine_table --out DIR [--seconds 540] [--network NAME ...] [--tiny]

Ways: `compiled` (ours), `best` (a loop in torch: compiled, CUDA graphs, channels last, bfloat16, fused SGD, without
augmentation and records) and `torch_compile` (the same without CUDA graphs). A taught student reads attention maps from
a cache of random answers. The limit by traffic: benchmarks/training/step_traffic.py.

Compiling takes longest and needs the CPU alone. So each row's first process compiles beside the others, and stays; what
has no code after `COMPILING` of the time is left out. Then the device is measured with nothing else on it: first each
row's one trial, then 2 and 4, for which further processes take the code from the compiler's cache, under NVIDIA's
multi-process service where there is one. Last come the losses of 50 steps, compiled against plain.

DIR/engine_table.json is written after every row. `--tiny` shows on a CPU that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measurement import WIDTH, Measurement, Table, environment, header, load, show
from benchmarks.training.engine import difference
from benchmarks.training.engine_processes import Case, Processes, TooLargeError
from lowrank.utils import OneLineParser
from lowrank.utils.processes import usable_cores
from lowrank.utils.text import first_line
from sweeps.resources.mps import MpsService, MpsUnavailableError

OURS, BEST, TORCH_COMPILE, PLAIN = "compiled", "best", "torch_compile", "plain"
COUNTS = (1, 2, 4)
ROW_SECONDS = 2.5
COMPILING = 0.5  # of the time, after which rows without code are left out
POLL_SECONDS = 0.2
LEAST_SECONDS = 25.0  # that must be left for another count of trials, or for the losses of a row
COLUMNS = ("network", "batch", "way", "taught", "trials", "images/s", "of limit", "first s", "MB each")
TITLE = "Training alone, without evaluation, several trials on one card"


def table_cases(tiny: bool) -> list[Case]:
    """The networks of the table, each with its batch; small ones on a CPU when `tiny`."""
    if tiny:
        small = Case(network="resnet9", device="cpu", batch=32, images=64, seconds=0.5, width=0.5)
        return [small, replace(small, network="vit", method="dense")]
    resnet9 = Case(network="resnet9", device="cuda", batch=512, images=20_480, seconds=ROW_SECONDS)
    return [
        resnet9, replace(resnet9, network="wrn_28_10", batch=128, images=5_120),
        replace(resnet9, network="torchvision:resnet18", batch=128, images=2_048, side=224, method="dense"),
        replace(resnet9, network="vit", batch=512, images=10_240, method="dense"),
        replace(resnet9, network="darts", batch=96, images=1_920),
    ]  # fmt: skip


def further_cases(tiny: bool) -> list[Case]:
    """Networks that are only compared with torch.compile, one trial each."""
    if tiny:
        return []
    wide = Case(
        network="torchvision:mobilenet_v3_small", device="cuda", batch=128, images=2_048, seconds=ROW_SECONDS, side=224,
        method="dense",
    )  # fmt: skip
    names = ("torchvision:convnext_tiny", "torchvision:vit_b_16")
    return [wide, *(replace(wide, network=name, batch=64, images=1_024) for name in names)]


def rows_to_measure(args: argparse.Namespace) -> list[tuple[Case, Sequence[int]]]:
    """Each case with its numbers of trials, in the order in which they compile: what takes long or matters comes first.

    A loop of torch is measured alone, as its users run it.
    """
    counts = (1, 2) if args.tiny else COUNTS
    named, further = table_cases(args.tiny), further_cases(args.tiny)
    rows: list[tuple[Case, Sequence[int]]] = [(replace(case, way=OURS), counts) for case in named]
    rows += [(replace(case, way=BEST), (1,)) for case in named]
    rows += [(replace(case, way=OURS, taught=True), counts) for case in named]
    compared = [case for case in named if case.side == 224 or case.network == "vit"]
    rows += [(replace(case, way=OURS), (1,)) for case in further]
    rows += [(replace(case, way=way), (1,)) for case in further for way in (BEST, TORCH_COMPILE)]
    rows += [(replace(case, way=TORCH_COMPILE), (1,)) for case in compared]
    return [(case, numbers) for case, numbers in rows if not args.network or case.network in args.network]


def label(case: Case) -> str:
    """Name a row."""
    return f"{case.network}, {case.way}{', taught' if case.taught else ''}"


class TableRun:
    """One run: rows and notes as they come, written to the file each time."""

    def __init__(self, args: argparse.Namespace, environment_variables: Mapping[str, str], sharing: str):
        self.args, self.sharing, self.variables = args, sharing, environment_variables
        self.until = time.monotonic() + args.seconds
        self.around = environment()
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.limits: dict[str, float] = {}
        self.device = "cpu" if args.tiny else "cuda"

    @property
    def left(self) -> float:
        """Seconds until all must be over."""
        return self.until - time.monotonic()

    def say(self, note: str) -> None:
        """Print a remark and keep it."""
        self.notes.append(note)
        print(f"{self.args.seconds - self.left:5.0f} s  {note}", flush=True)
        self.write()

    def add(self, case: Case, count: int, speed: float, held: float, first: float) -> None:
        """Keep a row."""
        limit = self.limits.get(case.network)
        self.rows.append({
            "network": case.network, "batch": case.batch, "way": case.way, "taught": "yes" if case.taught else "no",
            "trials": count, "images/s": speed, "of limit": speed / limit if limit else None, "first s": first,
            "MB each": held if self.device == "cuda" else None,
        })  # fmt: skip
        print(f"{self.args.seconds - self.left:5.0f} s  {self.rows[-1]}", flush=True)
        self.write()

    def record(self) -> Measurement:
        """Make the record of what there is."""
        settings = {"device": self.device, "seed": 0, "seconds a row": ROW_SECONDS, "sharing": self.sharing}
        return Measurement(
            name="engine_table", settings=settings, tables=[Table(title=TITLE, columns=COLUMNS, rows=self.rows)],
            notes=self.notes,
        )  # fmt: skip

    def write(self) -> None:
        """Write the record as JSON."""
        content = {**self.record().to_json(), "environment": {**self.around, "load_after": load()}}
        (self.args.out / "engine_table.json").write_text(json.dumps(content, indent=1) + "\n")

    def measure(self) -> None:
        """Compile all, then measure all."""
        rows = rows_to_measure(self.args)
        firsts: dict[Case, tuple[Processes, float]] = {}
        further = self._processes(max(2, *(counts[-1] for _, counts in rows)) - 1)
        try:
            for case, processes, seconds in self._compiled([case for case, _ in rows]):
                firsts[case] = processes, seconds
            self._find_limits([case for case in firsts if case.way == OURS and not case.taught], further)
            for case, _ in rows:
                if case in firsts:
                    self._measure_alone(case, *firsts[case])
            for case, counts in rows:
                if case in firsts and max(counts) > 1:
                    self._measure_several(case, counts[1:], *firsts[case], further)
            for case, counts in rows:
                if case in firsts and max(counts) > 1 and self.left > LEAST_SECONDS:
                    self._compare_losses(case, firsts[case][0])
        finally:
            started = [further, *(processes for processes, _ in firsts.values())]
            for processes in started:
                processes.ask_to_end()
            for processes in started:
                processes.close()

    def _processes(self, count: int) -> Processes:
        return Processes(self.device, count, self.until, self.variables)

    def _compiled(self, cases: list[Case]) -> Iterator[tuple[Case, Processes, float]]:
        """Start a process for each case, as many at once as there are cores to spare; yields those that have code."""
        waiting, running = list(cases), dict[Case, Processes]()
        stop = time.monotonic() + COMPILING * self.left
        while (waiting or running) and time.monotonic() < stop:
            while waiting and len(running) < max(1, usable_cores() - 4):
                case = waiting.pop(0)
                running[case] = self._processes(1)
                running[case].ask(0, "prepare", case)
            for case, processes in list(running.items()):
                answer = processes.answer_of(0)
                if answer is not None:
                    del running[case]
                    if isinstance(answer, Exception):
                        self.say(f"left out: {label(case)}: {first_line(answer)}")
                        processes.close()
                        continue
                    self.say(f"{label(case)}: second step after {answer:.1f} s, beside others that compile")
                    yield case, processes, answer
            time.sleep(POLL_SECONDS)
        for case, processes in running.items():
            self.say(f"left out: {label(case)}: no code after {COMPILING:.0%} of the time")
            processes.kill()
        for case in waiting:
            self.say(f"left out: {label(case)}: never began to compile")

    def _find_limits(self, cases: Sequence[Case], processes: Processes) -> None:
        """Images a second at which the device's memory is the limit."""
        for case in cases:
            if case.network not in self.limits:
                moved, bandwidth = processes(range(1), "limit", case)[0]
                self.limits[case.network] = bandwidth / moved
                self.say(
                    f"{case.network}: limit by memory traffic {bandwidth / moved:,.0f} images/s: {moved / 1e6:.2f} MB "
                    f"an image, copies at {bandwidth / 1e12:.3g} TB/s"
                )

    def _measure_alone(self, case: Case, processes: Processes, first: float) -> None:
        with self._reported(case):
            speed, held = processes(range(1), "train", case)[0]
            self.add(case, 1, speed, held, first)

    def _measure_several(
        self, case: Case, counts: Sequence[int], processes: Processes, first: float, further: Processes
    ) -> None:
        if self.left < LEAST_SECONDS:
            self.say(f"left out for want of time: {label(case)}, more than one trial")
            return
        with self._reported(case):
            seconds = further(range(max(counts) - 1), "prepare", case)
            for count in counts:
                processes.ask(0, "train", case)
                answers = further(range(count - 1), "train", case) + processes.answers(range(1))
                speeds, held = zip(*answers, strict=True)
                self.add(case, count, sum(speeds), max(held), max(seconds[: count - 1]))

    def _compare_losses(self, case: Case, processes: Processes) -> None:
        with self._reported(case):
            plain = processes(range(1), "losses", replace(case, way=PLAIN))[0]
            self.say(difference(processes(range(1), "losses", case)[0], plain, label(case)))

    @contextmanager
    def _reported(self, case: Case) -> Iterator[None]:
        """Say why a row is missing, and go on with the next."""
        try:
            yield
        except TimeoutError as error:
            self.say(f"left out: {label(case)}: {error}")
        except (TooLargeError, RuntimeError) as error:
            self.say(f"left out: {label(case)}: {first_line(error)}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.engine_table", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text and JSON")
    parser.add_argument("--seconds", type=float, default=540.0, metavar="N", help="when all must be over (default 540)")
    parser.add_argument("--network", action="append", default=[], metavar="NAME", help="these alone (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: of the command line; None takes sys.argv.

    Returns:
        1 if there is no row, else 0.
    """
    args = make_parser().parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    # One process compiles with one core: there are as many processes as cores
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    service = None
    try:
        service = None if args.tiny else MpsService()
        run = TableRun(args, {} if service is None else service.environment, "processes" if service is None else "mps")
    except MpsUnavailableError as error:
        run = TableRun(args, {}, "processes")
        run.say(f"trials share the card in turns: {error}")
    try:
        run.measure()
    finally:
        if service is not None:
            service.close()
    record = run.record()
    line = header(run.around, record.settings, load())
    with (args.out / "engine_table.txt").open("w") as file:
        show(record, line, Console(file=file, width=WIDTH))
    show(record, line)
    return 0 if run.rows else 1


if __name__ == "__main__":
    sys.exit(main())
