"""Images a second of training: each network, plain and taught, 1, 2 and 4 trials, beside a loop that torch compiles.

    python -m benchmarks.gpu.engine_table --out DIR [--seconds 460] [--network NAME ...] [--tiny]

Ways: `compiled` (ours) and `best` (a loop in torch: compiled, CUDA graphs, channels last, bfloat16, fused SGD, without
augmentation and records). A taught student reads attention maps from a cache of random answers. The limit by traffic:
benchmarks/training/step_traffic.py. Ratios to loops that torch compiles: benchmarks/gpu/against_torch.py.

Compiling takes longest, and one function is compiled by one core. So a process compiles for each row, all rows side by
side, and stays. As soon as one has its code, it is timed alone on the device; then with further processes, which take
the code from the compiler's cache, under NVIDIA's multi-process service where there is one. Other rows compile
meanwhile, on all cores but FREE_CORES. `beside` is how many processes do so while a row is timed. What that costs is
measured: rows of one trial are timed once more when less than half as many processes compile; that value counts.

While rows that compile are awaited, the losses of 50 compiled steps are compared with plain ones. A row that has no
code after its limit is left out and named. DIR/engine_table.json and .txt are written after every row. `--tiny` shows
on a CPU that the script works, with steps that nothing compiles (captured and torch).
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement, Table, environment, header, load, show, write
from benchmarks.training.engine import difference
from benchmarks.training.engine_processes import Case, Processes
from lowrank.utils import OneLineParser
from lowrank.utils.processes import usable_cores
from lowrank.utils.text import first_line
from sweeps.resources.mps import MpsService, MpsUnavailableError

OURS, BEST, PLAIN = "compiled", "best", "plain"
TINY_WAYS = {OURS: "captured", BEST: "torch"}  # instead of these on a CPU, where compiling takes minutes
COUNTS = (1, 2, 4)
ROW_SECONDS = 2.5
LONG_COMPILATIONS = {"darts": 2.0}  # times as long: its graph has 4,000 nodes before it is decomposed
LONG_THREADS = 3  # that compile kernels for such a row, which is still there when others are done
FREE_CORES = 2  # for the process that is timed and for this one
MIN_PROCESSES = 3  # that prepare at once, however few cores there are
FURTHER_SETS = 2  # of processes for 2 and 4 trials: one prepares while the other is timed
POLL_SECONDS = 0.1
LAST_SECONDS = 8.0  # that must be left to begin another measurement
COLUMNS = (
    "network", "batch", "way", "taught", "trials", "images/s", "of limit", "of plain", "beside", "first s", "MB each",
)  # fmt: skip
TITLE = "Training alone, without evaluation, several trials on one card"


def table_cases(tiny: bool) -> dict[str, Case]:
    """The networks of the table by name, each with its batch; one small one on a CPU when `tiny`."""
    if tiny:
        small = Case(network="vit", device="cpu", batch=8, images=16, seconds=0.3, method="dense")
        return {small.network: small}
    resnet9 = Case(network="resnet9", device="cuda", batch=512, images=20_480, seconds=ROW_SECONDS)
    dense = replace(resnet9, method="dense")
    cases = (
        resnet9, replace(resnet9, network="wrn_28_10", batch=128, images=5_120),
        replace(dense, network="vit", batch=512, images=10_240),
        replace(dense, network="torchvision:resnet18", batch=128, images=2_048, side=224),
        replace(resnet9, network="darts", batch=96, images=1_920),
    )  # fmt: skip
    return {case.network: case for case in cases}


@dataclass(eq=False)
class Row:
    """A case, and how far its process has come.

    Attributes:
        counts: of trials, the first is 1; the others follow for a case whose one trial was measured.
        begun: when its process began to compile.
        first: seconds from nothing to its second step; None while it compiles.
        remaining: counts of trials that are to be measured.
        beside: processes that compiled while one trial was timed; None before that.
        timed_again: whether one trial was timed a second time.
        compared: whether its losses were compared with those of plain steps.
    """

    case: Case
    counts: Sequence[int]
    processes: Processes | None = None
    begun: float = 0.0
    first: float | None = None
    remaining: list[int] = field(default_factory=list)
    beside: int | None = None
    timed_again: bool = False
    compared: bool = False

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.case.network}, {self.case.way}{', taught' if self.case.taught else ''}"

    @property
    def is_ours(self) -> bool:
        """Whether a trainer of this project takes the steps."""
        return self.case.way in (OURS, TINY_WAYS[OURS])

    @property
    def compile_factor(self) -> float:
        """How many times as long as most rows it may compile."""
        return LONG_COMPILATIONS.get(self.case.network, 1.0)


def rows_to_measure(args: argparse.Namespace) -> list[Row]:
    """All rows in the order in which they begin to compile: what matters most or takes long comes first.

    A loop of torch is measured alone, as its users run it.
    """
    counts = (1, 2) if args.tiny else COUNTS
    named = table_cases(args.tiny)
    ours = [replace(case, way=OURS) for case in named.values()]
    early = [case for case in ours if case.network != "wrn_28_10"]
    rows = [Row(case, counts) for case in ours[:1]]
    rows += [Row(replace(ours[0], taught=True), counts)]
    rows += [Row(case, counts) for case in ours[1:]]
    rows += [Row(replace(case, taught=True), counts) for case in ours if case.network == "wrn_28_10"]
    rows += [Row(replace(case, way=BEST), (1,)) for case in named.values()]
    rows += [Row(replace(case, taught=True), counts) for case in early[1:]]
    for row in rows if args.tiny else ():
        row.case = replace(row.case, way=TINY_WAYS[row.case.way])
    return [row for row in rows if not args.network or row.case.network in args.network]


class FurtherTrials:
    """Processes that train the case of one row beside its own."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self.row: Row | None = None
        self._seconds: dict[int, float] = {}

    def begin(self, row: Row) -> None:
        """Let as many prepare as the row's largest count needs."""
        self.row, self._seconds = row, {}
        for number in range(max(row.remaining) - 1):
            self.processes.ask(number, "prepare", row.case)

    @property
    def preparing(self) -> int:
        """How many processes have not answered yet."""
        return 0 if self.row is None else max(self.row.remaining) - 1 - len(self._seconds)

    def poll(self) -> bool:
        """Take answers; returns whether all have prepared the row.

        Raises:
            Exception: what one of them raised, after all have answered.
        """
        assert self.row is not None
        for number in range(max(self.row.remaining) - 1):
            if number not in self._seconds:
                answer = self.processes.answer_of(number)
                if answer is not None:
                    self._seconds[number] = answer
        if self.preparing:
            return False
        for answer in self._seconds.values():
            if isinstance(answer, Exception):
                self.row.remaining = []
                raise answer
        return True

    def first(self, count: int) -> float:
        """The longest time to a second step of those that take part."""
        return max(self._seconds[number] for number in range(count - 1))


class TableRun:
    """One run: rows and notes as they come, written to the files each time.

    Args:
        args: of the command line.
        variables: that the processes have besides this one's.
        sharing: how processes share the device, in a word.
        make_processes: called as Processes is.
    """

    def __init__(
        self, args: argparse.Namespace, variables: Mapping[str, str], sharing: str,
        make_processes: Callable[..., Processes] = Processes,
    ):  # fmt: skip
        self.args, self.sharing, self.variables, self._make_processes = args, sharing, variables, make_processes
        self.until = time.monotonic() + args.seconds
        self.around = environment()
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.limits: dict[tuple[str, bool], float] = {}
        self.device = "cpu" if args.tiny else "cuda"
        self._lock = multiprocessing.get_context("spawn").Lock()
        self._slots = max(MIN_PROCESSES, usable_cores() - FREE_CORES)
        self._waiting = rows_to_measure(args)
        self._compiling: list[Row] = []
        self._with_code: list[Row] = []
        self._sets: list[FurtherTrials] = []
        self._of_limits: Processes | None = None
        self._cases_of_limits = [row.case for row in self._waiting if row.is_ours]
        names = [row.name for row in self._waiting]
        networks = list(dict.fromkeys(row.case.network for row in self._waiting))
        self._order = {row.name: (networks.index(row.case.network), names.index(row.name)) for row in self._waiting}

    @property
    def left(self) -> float:
        """Seconds until all must be over."""
        return self.until - time.monotonic()

    def say(self, note: str) -> None:
        """Print a remark and keep it."""
        self.notes.append(note)
        self._print(note)
        self.write()

    def _print(self, text: object) -> None:
        print(f"{self.args.seconds - self.left:5.0f} s  {text}", flush=True)

    def record(self) -> Measurement:
        """Make the record of what there is."""
        settings = {"device": self.device, "seed": 0, "seconds a row": ROW_SECONDS, "sharing": self.sharing}
        ours = [row for row in self.records if row["way"] in (OURS, TINY_WAYS[OURS])]
        plain = {(row["network"], row["trials"]): row["images/s"] for row in ours if row["taught"] == "no"}
        rows = []
        for row in sorted(self.records, key=lambda one: (self._order[one["name"]], one["trials"])):
            taught, speed = row["taught"] == "yes", row["images/s"]
            limit, own_plain = self.limits.get((row["network"], taught)), plain.get((row["network"], row["trials"]))
            ratios = {"of limit": speed / limit if limit else None,
                      "of plain": speed / own_plain if taught and own_plain else None}  # fmt: skip
            rows.append({**row, **ratios})
        table = Table(title=TITLE, columns=COLUMNS, rows=rows)
        return Measurement(name="engine_table", settings=settings, tables=[table], notes=self.notes)

    def write(self) -> None:
        """Write the record as JSON and as text."""
        write(self.record(), self.around, self.args.out)

    def measure(self) -> None:
        """Compile and measure until nothing remains or the time is up."""
        try:
            while self._may_go_on():
                self._begin_to_compile()
                self._collect()
                self._collect_limits()
                self._prepare_further()
                if not any(work() for work in (self._measure_one, self._compare_one, self._time_one_again)):
                    time.sleep(POLL_SECONDS)
            self._say_what_is_missing()
        finally:
            processes = [self._of_limits, *(further.processes for further in self._sets)]
            processes += [row.processes for row in (*self._compiling, *self._with_code)]
            for one in processes:
                if one is not None:
                    one.kill()

    def _new_processes(self, count: int, threads: int = 1) -> Processes:
        variables = {**self.variables, "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
        return self._make_processes(self.device, count, self.until, variables, self._lock)

    def _may_go_on(self) -> bool:
        """Whether there is time, and something that compiles, prepares or can be measured."""
        unfinished = any(row.remaining or not row.compared for row in self._with_code) or self._to_time_again()
        return self.left > LAST_SECONDS and bool(
            self._waiting or self._compiling or self._cases_of_limits or unfinished
        )

    @property
    def _busy(self) -> int:
        """Processes that compile or prepare."""
        return len(self._compiling) + sum(further.preparing for further in self._sets)

    def _begin_to_compile(self) -> None:
        """Start a process for each row that waits, while there are cores."""
        while self._waiting and self._busy < self._slots:
            row = self._waiting.pop(0)
            threads = LONG_THREADS if row.case.network in LONG_COMPILATIONS else 1
            row.begun, row.processes = time.monotonic(), self._new_processes(1, threads)
            row.processes.ask(0, "prepare", row.case)
            self._compiling.append(row)

    def _collect(self) -> None:
        """Take the answers of processes that have code; end those that had their time."""
        for row in list(self._compiling):
            assert row.processes is not None
            answer = row.processes.answer_of(0)
            seconds = time.monotonic() - row.begun
            if answer is None and seconds < self.args.compile_seconds * row.compile_factor:
                continue
            self._compiling.remove(row)
            if answer is None or isinstance(answer, Exception):
                reason = f"no code after {seconds:.0f} s" if answer is None else first_line(answer)
                self.say(f"left out: {row.name}: {reason}")
                with self._device_alone():  # a process that holds it must not be killed
                    row.processes.kill()
                continue
            row.first, row.remaining = answer, list(row.counts)
            row.compared = not row.is_ours
            self._with_code.append(row)
            self._print(f"{row.name}: second step after {answer:.1f} s")

    def _prepare_further(self) -> None:
        """Let idle sets prepare rows of which one trial was measured."""
        in_sets = [further.row for further in self._sets]
        for row in self._with_code:
            needs = max(row.remaining, default=0) - 1
            if needs < 1 or 1 in row.remaining or row in in_sets or self._busy + needs > self._slots:
                continue
            idle = next((further for further in self._sets if further.row is None), None)
            if idle is None and len(self._sets) < FURTHER_SETS:
                most = max(max(one.counts) for one in (*self._waiting, *self._compiling, *self._with_code))
                idle = FurtherTrials(self._new_processes(most - 1))
                self._sets.append(idle)
            if idle is not None:
                idle.begin(row)
                in_sets.append(row)

    def _measure_one(self) -> bool:
        """Time one trial of a row, or several of one that is prepared; returns whether there was one."""
        for row in self._with_code:
            if 1 in row.remaining:
                row.remaining.remove(1)
                with self._reported(row):
                    row.beside = self._busy
                    self._add(row, 1, row.first or 0.0, *self._timed(row, None, 1))
                return True
        for further in self._sets:
            row_or_none = further.row
            if row_or_none is None:
                continue
            with self._reported(row_or_none):
                if not further.poll():
                    continue
                for count in list(row_or_none.remaining):
                    self._add(row_or_none, count, further.first(count), *self._timed(row_or_none, further, count))
            row_or_none.remaining, further.row = [], None
            return True
        return False

    def _timed(self, row: Row, further: FurtherTrials | None, count: int) -> tuple[float, float]:
        """Let so many trials of a row train at once, with nothing else on the device that can wait.

        Returns:
            Images a second in all, and the most MB that one of them holds on the device.
        """
        assert row.processes is not None
        with self._device_alone():
            row.processes.ask(0, "train", row.case)
            try:
                answers = [] if further is None else further.processes(range(count - 1), "train", row.case)
            finally:
                own = row.processes.answers(range(1))  # whatever the others answer: the next command has its own
        speeds, held = zip(*own, *answers, strict=True)
        return sum(speeds), max(held)

    @contextmanager
    def _device_alone(self) -> Iterator[None]:
        """Let no process use the device for what can wait; raises TimeoutError where one always does."""
        if not self._lock.acquire(timeout=max(0.1, self.left)):
            raise TimeoutError("another process has used the device all the time")
        try:
            yield
        finally:
            self._lock.release()

    def _add(self, row: Row, count: int, first: float, speed: float, held: float) -> None:
        """Keep a row of the table."""
        self.records.append({
            "name": row.name, "network": row.case.network, "batch": row.case.batch, "way": row.case.way,
            "taught": "yes" if row.case.taught else "no", "trials": count, "images/s": speed,
            "beside": self._busy, "first s": first,
            "MB each": held if self.device == "cuda" else None,
        })  # fmt: skip
        self._print(f"{row.name}, {count}: {speed:,.0f} images/s, beside {self._busy}, {held:,.0f} MB each")
        self.write()

    def _collect_limits(self) -> None:
        """Images a second at which the device's memory is the limit, one case after another in a process of its own."""
        if not self._cases_of_limits:
            return
        if self._of_limits is None:
            self._of_limits = self._new_processes(1)
            self._of_limits.ask(0, "limit", self._cases_of_limits[0])
        answer = self._of_limits.answer_of(0)
        if answer is None:
            return
        case = self._cases_of_limits.pop(0)
        if isinstance(answer, Exception):
            self.say(f"no limit of {Row(case, ()).name}: {first_line(answer)}")
        else:
            moved, bandwidth = answer
            self.limits[case.network, case.taught] = bandwidth / moved
            self.say(
                f"{Row(case, ()).name}: limit by memory traffic {bandwidth / moved:,.0f} images/s: "
                f"{moved / 1e6:.2f} MB an image, copies at {bandwidth / 1e12:.3g} TB/s"
            )
        if self._cases_of_limits:
            self._of_limits.ask(0, "limit", self._cases_of_limits[0])
        else:
            self._of_limits.kill()

    def _compare_one(self) -> bool:
        """Compare the losses of one row that is measured with plain steps; returns whether there was one.

        Not while further trials prepare, which would have to wait for it.
        """
        if any(further.preparing for further in self._sets):
            return False
        for row in self._with_code:
            if not row.compared and not row.remaining:
                row.compared = True
                with self._reported(row):
                    assert row.processes is not None
                    plain = row.processes(range(1), "losses", replace(row.case, way=PLAIN))[0]
                    ours = row.processes(range(1), "losses", row.case)[0]
                    self.say(difference(ours, plain, row.name))
                return True
        return False

    def _to_time_again(self) -> Row | None:
        """A row of which one trial was timed beside more than twice as many processes as there are now."""
        return next(
            (row for row in self._with_code if not row.timed_again and (row.beside or 0) > 2 * self._busy), None
        )

    def _time_one_again(self) -> bool:
        """Time one trial of such a row again, which is the value kept; returns whether there was one."""
        row = self._to_time_again()
        if row is None:
            return False
        row.timed_again = True
        record = next((one for one in self.records if (one["name"], one["trials"]) == (row.name, 1)), None)
        with self._reported(row):
            speed, _ = self._timed(row, None, 1)
            if record is not None:
                self.say(
                    f"{row.name}: {record['images/s']:,.0f} images/s beside {row.beside} processes that compiled or "
                    f"prepared, {speed:,.0f} (the table's) beside {self._busy}"
                )
                record["images/s"], record["beside"] = speed, self._busy
                self.write()
        return True

    def _say_what_is_missing(self) -> None:
        for row in self._waiting:
            self.say(f"left out: {row.name}: never began to compile")
        for row in self._compiling:
            self.say(f"left out: {row.name}: no code after {time.monotonic() - row.begun:.0f} s, when the time was up")
        for row in self._with_code:
            if row.remaining:
                self.say(f"left out for want of time: {row.name}, trials {', '.join(map(str, row.remaining))}")
            if not row.compared:
                self.say(f"left out for want of time: {row.name}, losses beside plain")

    @contextmanager
    def _reported(self, row: Row) -> Iterator[None]:
        """Say why a row is missing, and go on with the next."""
        try:
            yield
        except TimeoutError as error:
            self.say(f"left out: {row.name}: {error}")
        except Exception as error:  # whatever a process raised
            self.say(f"left out: {row.name}: {type(error).__name__}: {first_line(error)}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.engine_table", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text and JSON")
    parser.add_argument("--seconds", type=float, default=460.0, metavar="N", help="when all must be over (default 460)")
    parser.add_argument(
        "--compile-seconds", type=float, default=220.0, metavar="N",
        help="for a row to have its code, before it is left out; twice as long for DARTS (default 220)",
    )  # fmt: skip
    parser.add_argument("--network", action="append", default=[], metavar="NAME", help="these alone (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
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
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the processes end too
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
    show(record, header(run.around, record.settings, load()))
    return 0 if run.records else 1


if __name__ == "__main__":
    sys.exit(main())
