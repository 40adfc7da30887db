"""Our training steps beside torch.compile around a plain loop of the same network, in turns on one GPU.

    python -m benchmarks.gpu.against_torch --out DIR [--seconds 260] [--network NAME ...] [--tiny]

Each network is trained in four ways. `compiled` is our trainer, which shifts, flips and cuts each image.
`compiled, no views` is our trainer with images as they are, which is what the loops do. `torch_compile` is a plain loop
around a network that torch.compile has compiled, and `best` the same with CUDA graphs (`reduce-overhead`); both
channels last, in bfloat16, with a fused SGD.

A process for each network and way compiles, all side by side on the cores but FREE_CORES, and stays. A network whose
processes have code is timed in rounds. In a round each way trains alone for a turn of TURN_SECONDS; every second round
has the reverse order. A change of the machine's speed so meets all ways alike, and ratios are taken within a round.
There are ROUNDS of them or more, fewer where the time is short. Then the network's processes end, and their memory is
free.

Timing begins when nothing compiles any more, or earlier where the time would not suffice otherwise. `beside` is how
many processes compiled during a round. They use the device for their first two steps, nothing else does. A way that has
no code when its network must be timed is left out and named, like one that fails. All is over after `--seconds`.

DIR/against_torch.json and .txt are written after every network. `--tiny` shows on a CPU that the script works, with
a small network and steps that nothing compiles.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine_table import table_cases
from benchmarks.measurement import Measurement, Table, environment, header, load, median, show, write
from benchmarks.training.engine_processes import Case, Processes
from lowrank.utils import OneLineParser
from lowrank.utils.processes import usable_cores
from lowrank.utils.text import first_line

COMPILED, NO_VIEWS, TORCH_COMPILE, BEST = "compiled", "compiled, no views", "torch_compile", "best"
OURS, LOOPS = (COMPILED, NO_VIEWS), (TORCH_COMPILE, BEST)
STEPS = {COMPILED: "compiled", NO_VIEWS: "compiled", TORCH_COMPILE: "torch_compile", BEST: "best"}  # a case's way
TINY_STEPS = {COMPILED: "captured", NO_VIEWS: "captured", TORCH_COMPILE: "torch", BEST: "torch"}
SECONDS, TINY_SECONDS = 260.0, 50.0  # when all must be over
COMPILED_LAST = NO_VIEWS  # its code is that of `compiled`, which it reads from the compiler's cache
TURN_SECONDS = 1.3  # and up to an epoch more
ROUNDS = 5
FEWEST_ROUNDS = 3  # for which a network waits for its last ways
MOST_ROUNDS = 9
WARM_UP_SECONDS = 0.01  # one epoch, which is not counted: CUDA graphs are recorded, caches filled
ESTIMATED_TURN = 1.15  # of a turn's seconds: its last epoch begins before they are over
ESTIMATED_WARM_UP = 0.7  # seconds
ANSWER_SECONDS = 20.0  # for a turn, before its way is left out
END_SECONDS = 6.0  # to end processes and print
FREE_CORES = 2  # for the process that is timed and for this one
MIN_PROCESSES = 3  # that compile at once, however few cores there are
POLL_SECONDS, ANSWER_POLL_SECONDS = 0.1, 0.01
SPEED_COLUMNS = ("network", "batch", "way", "images/s", "least", "largest", "rounds", "beside", "first s")
RATIO_COLUMNS = ("network", "way", "against", "median", "least", "largest", "rounds")
ROUND_COLUMNS = ("network", "round", "beside", *STEPS)


def compared_cases(tiny: bool) -> list[Case]:
    """The networks, those that compile longest first; a small one on a CPU when `tiny`."""
    table = table_cases(tiny)
    if tiny:
        return [replace(table["vit"], network="resnet9", width=0.25, seconds=0.2)]
    resnet18 = replace(table["torchvision:resnet18"], seconds=TURN_SECONDS)
    large = replace(resnet18, batch=64, images=1_024)
    return [
        replace(large, network="torchvision:vit_b_16"), replace(large, network="torchvision:convnext_tiny"),
        replace(resnet18, network="torchvision:mobilenet_v3_small"), resnet18,
        replace(table["vit"], seconds=TURN_SECONDS),
    ]  # fmt: skip


class State(Enum):
    """How far a way of training has come."""

    WAITING = "waiting"  # for a core
    COMPILING = "compiling"
    WITH_CODE = "with code"
    ENDED = "ended"  # timed or left out


@dataclass(eq=False)
class Way:
    """One way of training one network.

    Attributes:
        first: seconds from nothing to its second step; None before that.
        begun: when its process began to compile.
    """

    name: str
    case: Case
    state: State = State.WAITING
    processes: Processes | None = None
    begun: float = 0.0
    first: float | None = None

    @property
    def full_name(self) -> str:
        """Network and way, in words."""
        return f"{self.case.network}, {self.name}"


@dataclass(frozen=True)
class Round:
    """One turn of each way: images a second by way, and how many processes compiled meanwhile."""

    beside: int
    speeds: dict[str, float]


@dataclass(eq=False)
class Network:
    """A network with its ways, and the rounds in which they were timed."""

    name: str
    ways: list[Way]
    rounds: list[Round] = field(default_factory=list)

    def ways_in(self, *states: State) -> list[Way]:
        """Its ways that are in one of these states."""
        return [way for way in self.ways if way.state in states]

    @property
    def with_code(self) -> list[Way]:
        """Its ways that can be timed."""
        return self.ways_in(State.WITH_CODE)

    @property
    def compiles(self) -> bool:
        """Whether one of its ways has no code yet."""
        return bool(self.ways_in(State.WAITING, State.COMPILING))

    def seconds_of(self, rounds: int) -> float:
        """The time that so many rounds are estimated to take, with what comes before them."""
        ways = [way for way in self.ways if way.state is not State.ENDED]
        return sum(ESTIMATED_WARM_UP + rounds * ESTIMATED_TURN * way.case.seconds for way in ways)

    def speeds(self, way: str) -> list[float]:
        """Images a second of a way in each round that has it."""
        return [one.speeds[way] for one in self.rounds if way in one.speeds]

    def ratios(self, way: str, loop: str) -> list[float]:
        """The speed of a way of ours over that of a loop, in each round that has both."""
        return [one.speeds[way] / one.speeds[loop] for one in self.rounds if {way, loop} <= one.speeds.keys()]


def networks_to_measure(args: argparse.Namespace) -> list[Network]:
    """The networks that the command line names, or all."""
    steps = TINY_STEPS if args.tiny else STEPS
    return [
        Network(case.network, [Way(name, replace(case, way=steps[name], views=name != NO_VIEWS)) for name in STEPS])
        for case in compared_cases(args.tiny)
        if not args.network or {case.network, case.network.removeprefix("torchvision:")} & set(args.network)
    ]


class Comparison:
    """One run: networks are timed as they have code, and the record is written each time.

    Args:
        args: of the command line.
        make_processes: called as Processes is.
    """

    def __init__(self, args: argparse.Namespace, make_processes: Callable[..., Processes] = Processes):
        self.args, self._make_processes = args, make_processes
        usual = TINY_SECONDS if args.tiny else SECONDS
        self._seconds = usual if args.seconds is None else args.seconds
        self.until = time.monotonic() + self._seconds
        self.around = environment()
        self.networks = networks_to_measure(args)
        self.notes: list[str] = []
        self._slots = max(MIN_PROCESSES, usable_cores() - FREE_CORES)

    @property
    def left(self) -> float:
        """Seconds in which something can be measured."""
        return self.until - END_SECONDS - time.monotonic()

    @property
    def _untimed(self) -> list[Network]:
        """Networks that have or may have code and are still to be timed."""
        return [network for network in self.networks if network.compiles or network.with_code]

    def _ways_in(self, *states: State) -> list[Way]:
        return [way for network in self.networks for way in network.ways_in(*states)]

    def measure(self) -> None:
        """Compile and time until nothing remains or the time is up."""
        write(self.record(), self.around, self.args.out)
        try:
            while self._untimed and self.left > 0:
                self._begin_to_compile()
                self._collect()
                network = self._network_to_time()
                if network is None:
                    time.sleep(POLL_SECONDS)
                else:
                    self._time(network)
            for way in self._ways_in(State.WAITING, State.COMPILING, State.WITH_CODE):
                self._leave_out(way, self._lack(way))
        finally:
            self._end(self._ways_in(*State))

    def _begin_to_compile(self) -> None:
        """Start a process for each way that waits, while there are cores."""
        waiting = sorted(self._ways_in(State.WAITING), key=lambda way: way.name == COMPILED_LAST)
        for way in waiting[: max(0, self._slots - len(self._ways_in(State.COMPILING)))]:
            variables = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
            way.processes = self._make_processes(way.case.device, 1, self.until, variables)
            way.processes.ask(0, "compile", way.case)
            way.state, way.begun = State.COMPILING, time.monotonic()

    def _collect(self) -> None:
        """Take the answers of processes that have code."""
        for way in self._ways_in(State.COMPILING):
            assert way.processes is not None
            answer = way.processes.answer_of(0)
            if isinstance(answer, Exception):
                self._leave_out(way, first_line(answer))
            elif answer is not None:
                way.first, notices = answer
                way.state = State.WITH_CODE
                self._print(f"{way.full_name}: second step after {way.first:.1f} s")
                for notice in notices:
                    self._say(f"{way.full_name}: {notice}")

    def _network_to_time(self) -> Network | None:
        """The network that is timed now; None where it is better to wait."""
        untimed = self._untimed
        complete = [network for network in untimed if not network.compiles]
        nothing_compiles = len(complete) == len(untimed)
        if complete and (nothing_compiles or self.left <= sum(network.seconds_of(ROUNDS) for network in untimed)):
            return max(complete, key=lambda network: len(network.with_code))
        started = [network for network in untimed if network.with_code]
        if started and self.left <= sum(network.seconds_of(FEWEST_ROUNDS) for network in started):
            return max(started, key=lambda network: len(network.with_code))
        return None

    def _time(self, network: Network) -> None:
        """Let the ways of a network train in turns, for its share of the time that is left; end its processes.

        One that waited for its last ways as long as it could shares with none that has no code at all.
        """
        sharing = [other for other in self._untimed if other.with_code or not network.compiles]
        until = time.monotonic() + self.left / len(sharing)
        for way in network.ways_in(State.WAITING, State.COMPILING):
            self._leave_out(way, self._lack(way))
        for way in network.with_code:
            self._train(way, WARM_UP_SECONDS)
        seconds = ESTIMATED_TURN * sum(way.case.seconds for way in network.with_code)
        while network.with_code and len(network.rounds) < MOST_ROUNDS and time.monotonic() + seconds <= until:
            begun, ways = time.monotonic(), network.with_code
            self._time_round(network)
            if network.with_code == ways:  # a round in which one failed says nothing of the next
                seconds = max(seconds, time.monotonic() - begun)
            self._begin_to_compile()
            self._collect()
        if not network.rounds:
            for way in network.with_code:
                self._leave_out(way, "no time for a round")
        self._end(network.ways)
        self._print(summary(network))
        write(self.record(), self.around, self.args.out)

    def _time_round(self, network: Network) -> None:
        """Let each way train for a turn."""
        beside, speeds = len(self._ways_in(State.COMPILING)), {}
        for way in network.with_code[:: -1 if len(network.rounds) % 2 else 1]:
            speed = self._train(way, way.case.seconds)
            if speed is not None:
                speeds[way.name] = speed
        network.rounds.append(Round(beside, speeds))

    def _train(self, way: Way, seconds: float) -> float | None:
        """Let one way train; returns images a second, or None where it fails and is left out."""
        assert way.processes is not None
        limit = min(ANSWER_SECONDS, self.left)
        until = time.monotonic() + limit
        way.processes.ask(0, "train", replace(way.case, seconds=seconds))
        while (answer := way.processes.answer_of(0)) is None and time.monotonic() < until:
            time.sleep(ANSWER_POLL_SECONDS)
        if answer is None or isinstance(answer, Exception):
            self._leave_out(way, f"no answer after {limit:.0f} s" if answer is None else first_line(answer))
            return None
        speed, _ = answer
        return float(speed)

    @staticmethod
    def _lack(way: Way) -> str:
        """What a way lacks that was not timed."""
        if way.state is State.WAITING:
            return "never began to compile"
        return "no time" if way.state is State.WITH_CODE else f"no code after {time.monotonic() - way.begun:.0f} s"

    def _leave_out(self, way: Way, reason: str) -> None:
        self._say(f"left out: {way.full_name}: {reason}")
        self._end([way])

    @staticmethod
    def _end(ways: Iterable[Way]) -> None:
        """End the processes of these ways, all at once: one that holds memory of a device takes a while."""
        running = [way for way in ways if way.processes is not None]
        for wait in (False, True):
            for way in running:
                assert way.processes is not None
                way.processes.kill(wait=wait)
        for way in ways:
            way.state, way.processes = State.ENDED, None

    def _say(self, note: str) -> None:
        """Print a remark and keep it."""
        self.notes.append(note)
        self._print(note)

    def _print(self, text: str) -> None:
        print(f"{self._seconds - END_SECONDS - self.left:5.0f} s  {text}", flush=True)

    def record(self) -> Measurement:
        """Make the record of what there is."""
        timed = [network for network in self.networks if network.rounds]
        settings = {"device": self.networks[0].ways[0].case.device, "seed": 0, "seconds a turn": TURN_SECONDS}
        if self.args.tiny:
            settings |= {"seconds a turn": self.networks[0].ways[0].case.seconds, "steps": "not compiled"}
        ratios = [row for network in timed for row in ratio_rows(network)]
        return Measurement(
            name="against_torch", settings=settings, notes=[verdict(ratios), *self.notes],
            tables=[
                Table(title="Training alone, ways in turns: medians", columns=SPEED_COLUMNS,
                      rows=[row for network in timed for row in speed_rows(network)]),
                Table(title="Images a second over those of a loop, round by round", columns=RATIO_COLUMNS, rows=ratios),
                Table(title="Images a second in each round", columns=ROUND_COLUMNS,
                      rows=[row for network in timed for row in round_rows(network)]),
            ],
        )  # fmt: skip


def speed_rows(network: Network) -> list[dict[str, Any]]:
    """A row for each way that was timed."""
    return [
        {
            "network": network.name, "batch": way.case.batch, "way": way.name, **spread(speeds, "images/s"),
            "rounds": len(speeds), "beside": max(one.beside for one in network.rounds), "first s": way.first,
        }
        for way in network.ways if (speeds := network.speeds(way.name))
    ]  # fmt: skip


def ratio_rows(network: Network) -> list[dict[str, Any]]:
    """A row for each way of ours and each loop."""
    return [
        {"network": network.name, "way": way, "against": loop, **spread(ratios, "median"), "rounds": len(ratios)}
        for way in OURS for loop in LOOPS if (ratios := network.ratios(way, loop))
    ]  # fmt: skip


def round_rows(network: Network) -> list[dict[str, Any]]:
    """A row for each round; None for a way that it lacks."""
    return [
        {"network": network.name, "round": number, "beside": one.beside, **{way: one.speeds.get(way) for way in STEPS}}
        for number, one in enumerate(network.rounds, 1)
    ]


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """The median under `name`, the least and the largest value."""
    return {name: median(values), "least": min(values), "largest": max(values)}


def summary(network: Network) -> str:
    """What was measured of a network, in a line."""
    if not network.rounds:
        return f"{network.name}: not timed"
    ratios = ratio_rows(network)
    parts = []
    for row in speed_rows(network):
        words = [f"{row['way']} {row['images/s']:,.0f} images/s"]
        words += [
            f"{one['median']:.3f} of {one['against']} ({one['least']:.3f} to {one['largest']:.3f})"
            for one in ratios if one["way"] == row["way"]
        ]  # fmt: skip
        parts.append(", ".join(words))
    beside = [one.beside for one in network.rounds]
    parts.append(f"{len(network.rounds)} rounds, beside {min(beside)} to {max(beside)}")
    return f"{network.name}: {'; '.join(parts)}"


def verdict(ratios: Sequence[dict[str, Any]]) -> str:
    """Which of our ways is slower than torch.compile, by the median of its rounds."""
    compared = [row for row in ratios if row["against"] == TORCH_COMPILE]
    if not compared:
        return f"nothing was compared with {TORCH_COMPILE}"
    slower = [f"{row['network']}, {row['way']} ({row['median']:.3f})" for row in compared if row["median"] < 1]
    return f"slower than {TORCH_COMPILE}, of {len(compared)} compared: {'; '.join(slower) or 'none'}"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.against_torch", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text and JSON")
    parser.add_argument(
        "--seconds", type=float, metavar="N",
        help=f"when all must be over (default {SECONDS:.0f}, {TINY_SECONDS:.0f} with --tiny)",
    )  # fmt: skip
    parser.add_argument("--network", action="append", default=[], metavar="NAME", help="these alone (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write.

    Args:
        arguments: of the command line; None takes sys.argv.

    Returns:
        1 if nothing was timed, else 0.
    """
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not networks_to_measure(args):
        parser.error(f"--network must be of {', '.join(case.network for case in compared_cases(args.tiny))}")
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the processes end too
    comparison = Comparison(args)
    try:
        comparison.measure()
    finally:
        record = comparison.record()
        write(record, comparison.around, args.out)
        show(record, header(comparison.around, record.settings, load()))
    return 0 if any(network.rounds for network in comparison.networks) else 1


if __name__ == "__main__":
    sys.exit(main())
