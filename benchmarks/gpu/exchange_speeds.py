"""One card and two cards, which exchange over NCCL, in turns: ratios that no drift of a card changes.

    python -m benchmarks.gpu.exchange_speeds --out DIR [--seconds 170] [--rounds 8] [--network NAME ...] [--tiny]

First all code is compiled, side by side, and its processes end. Then each network has a process for one card and one on
each of two cards, which share the batch of one. They start one after another, so that nothing else runs while libraries
choose kernels by timing, and train rounds in turns. The losses of the first steps are compared. Profiles of the first
network come last. `--tiny` shows on a CPU, with two processes that talk through gloo, that the script works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.several_cards import (
    SAME_TOTAL_BATCH,
    Job,
    kill,
    log_path,
    print_ends,
    read_answers,
    start_workers,
)
from benchmarks.measurement import WIDTH, Goal, Measurement, Table, environment, header, load, show
from lowrank.utils import OneLineParser

POLL_SECONDS = 0.005
ROUND_SECONDS = 30.0  # in which a round must end
PROFILE_SECONDS = 40.0
COMPILE_SECONDS = 110.0  # for all networks, side by side
GOALS = {"wrn_28_10": SAME_TOTAL_BATCH, "resnet9": 1.0}
ONE, TWO = "one card", "two cards"


class Server:
    """The processes of a job, which wait for commands.

    Args:
        job: of the kind "serve".
        out: where its logs are.
    """

    def __init__(self, job: Job, out: Path):
        self.name = f"{job.network} on {job.processes}"
        self._out, self._processes = out, start_workers(out, self.name, job, 0)
        self._answers = 0
        self._failed = False

    def ask(self, command: str, until: float) -> dict[str, Any] | None:
        """Send a command to all processes.

        Returns:
            The first one's answer. None, and the processes are ended, where it does not come in time or one ends.
        """
        for process in self._processes if not self._failed else []:
            with suppress(BrokenPipeError):  # it has ended, which is seen below
                assert process.stdin is not None
                process.stdin.write(f"{command}\n")
                process.stdin.flush()
        while not self._failed:
            answers = read_answers(log_path(self._out, self.name, 0))
            if len(answers) > self._answers:
                self._answers += 1
                return answers[self._answers - 1]
            ended = [code for code in (process.poll() for process in self._processes) if code is not None]
            if ended or time.monotonic() > until:
                reason = f"a process has ended with {ended}" if ended else "no answer in time"
                print(f"{self.name}, {command}: {reason}", flush=True)
                self.end()
                print_ends(self._out, self.name, len(self._processes))
            time.sleep(POLL_SECONDS)
        return None

    def end(self) -> None:
        """End the processes."""
        self._failed = True
        for process in self._processes:
            kill(process)


@dataclass
class Run:
    """What is compared: a network on one card or on two.

    Attributes:
        cards: how it is called in tables: `ONE` or `TWO`.
        ready: the answer after the first steps.
        rounds: milliseconds a step of each round.
        profile: of a step.
    """

    network: str
    server: Server
    cards: str
    ready: dict[str, Any] | None = None
    rounds: list[float | None] = field(default_factory=list)
    profile: dict[str, Any] | None = None

    def start(self, until: float) -> None:
        """Let it take its first steps."""
        self.ready = self.server.ask("start", until)
        shown = {key: value for key, value in (self.ready or {"failed": True}).items() if key != "losses"}
        print(f"{self.server.name}: {json.dumps(shown)}", flush=True)

    def train_round(self, until: float) -> None:
        """Train a round, if it has started."""
        answer = None
        if self.ready is not None:
            answer = self.server.ask("round", min(until, time.monotonic() + ROUND_SECONDS))
        self.rounds.append(None if answer is None else answer["ms a step"])


def compile_all(jobs: Sequence[Job], out: Path, until: float) -> None:
    """Compile what some jobs need, side by side, into the compiler's cache on disk, as far as there is time."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # imports the compiler

    from lowrank.training.engine.compiled_forward import COMPILED_FOLDER

    begun, folder = time.monotonic(), Path(cache_dir()) / COMPILED_FOLDER
    processes = [
        process for job in jobs
        for process in start_workers(out, f"compile {job.network} on {job.processes}", replace(job, kind="compile"), 0)
    ]  # fmt: skip
    done: list[Path] = []
    while len(done) < len(jobs) and time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.2)
        done = [path for path in folder.glob("*") if path.suffix != ".lock"]
    for process in processes:
        kill(process)
    for path in Path(cache_dir()).rglob("*.best_config"):  # chosen by timing while other work ran
        path.unlink(missing_ok=True)
    print(f"compiled {len(done)} of {len(jobs)} in {time.monotonic() - begun:.0f} s", flush=True)


def measure(runs: Sequence[Run], rounds: int, until: float) -> None:
    """Let each of some runs train rounds in turns, each time beginning with another one."""
    for number in range(rounds):
        first = number % len(runs)
        for run in [*runs[first:], *runs[:first]]:
            run.train_round(until)
        if time.monotonic() > until:
            return


def speed_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run of a network: milliseconds a step, and how many times one card's speed, round by round."""
    alone = next(run for run in runs if run.cards == ONE)
    rows = []
    for run in runs:
        times = [one for one in run.rounds if one is not None]
        ratios = sorted(
            one / other for one, other in zip(alone.rounds, run.rounds, strict=False)
            if one is not None and other is not None
        )  # fmt: skip
        ready = run.ready or {}
        rows.append({
            "network": run.network, "cards": run.cards, "recorded": ready.get("recorded"),
            "compiled": ready.get("compiled"), "rounds": len(times),
            "ms a step": statistics.median(times) if times else None,
            "times one card": statistics.median(ratios) if ratios else None,
            "least": ratios[0] if ratios else None, "most": ratios[-1] if ratios else None,
        })  # fmt: skip
    return rows


def loss_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How far the first losses of each run are from those of the others of its network, in millionths."""
    rows = []
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if run.ready is None or other.ready is None:
                continue
            pairs = list(zip(run.ready["losses"], other.ready["losses"], strict=True))
            differences = [abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
            rows.append({
                "network": run.network, "losses of": run.cards, "beside": other.cards,
                "equal": sum(ours == theirs for ours, theirs in pairs), "of": len(pairs),
                "largest ppm": 1e6 * max(differences), "mean ppm": 1e6 * statistics.mean(differences),
                "last": pairs[-1][0],
            })  # fmt: skip
    return rows


def profile_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each profile."""
    return [
        {"network": run.network, "cards": run.cards}
        | {key: value for key, value in run.profile.items() if key != "longest"}
        for run in runs if run.profile is not None
    ]  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.exchange_speeds", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text, JSON and logs")
    parser.add_argument("--seconds", type=float, default=170.0, help="after which nothing goes on (170)")
    parser.add_argument("--rounds", type=int, default=8, help="of each run (8)")
    parser.add_argument("--network", nargs="+", choices=tuple(GOALS), default=list(GOALS), help="in this order (both)")
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU, two processes")
    return parser


def base_job(network: str, tiny: bool) -> Job:
    """One card with a network."""
    batch = {"wrn_28_10": 256, "resnet9": 512}[network]
    job = Job("serve", network=network, batch=batch, engine="compiled", images=51_200)
    if not tiny:
        return job
    small = replace(job, device="cpu", share=0.7, images=1_280, batch=16, engine="captured")
    return replace(small, network="wrn_10_1") if network == "wrn_28_10" else replace(small, width=0.0625)


def main(arguments: list[str] | None = None) -> int:
    """Compile, let all runs of each network train in turns, then print the tables; 1 where no ratio was measured."""
    args = make_parser().parse_args(arguments)
    until, out = time.monotonic() + args.seconds, args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    around = environment()
    alone = [base_job(network, args.tiny) for network in args.network]
    if not args.tiny:
        both = [replace(job, processes=count) for job in alone for count in (1, 2)]
        compile_all(both, out, min(until, time.monotonic() + COMPILE_SECONDS))
    servers: list[Server] = []
    groups: list[list[Run]] = []
    try:
        for job in alone:
            one, two = (Server(replace(job, processes=count), out) for count in (1, 2))
            servers += [one, two]
            groups.append([Run(job.network, one, ONE), Run(job.network, two, TWO)])
            for run in groups[-1]:
                run.start(until)
            measure(groups[-1], args.rounds, until)
            for row in speed_rows(groups[-1]):
                print(json.dumps(row), flush=True)
        for run in groups[0] if not args.tiny else []:
            if run.ready is not None and time.monotonic() < until:
                run.profile = run.server.ask("profile", min(until, time.monotonic() + PROFILE_SECONDS))
    finally:
        for server in servers:
            server.end()
    return conclude(args, around, groups)


def conclude(args: argparse.Namespace, around: dict[str, Any], groups: Sequence[Sequence[Run]]) -> int:
    """Print the tables and keep them."""
    runs = [run for group in groups for run in group]
    speeds = [row for group in groups for row in speed_rows(group)]
    tables = {
        "Speeds at the same batch in all": speeds,
        "Differences of the losses of the first steps": [row for group in groups for row in loss_rows(group)],
        "A step on the first card": profile_rows(runs),
    }
    goals = [
        Goal(what=f"{row['network']}, {row['cards']}, {GOALS[row['network']]:g} times as fast as one card:",
             limit=1 / GOALS[row["network"]], found=1 / row["times one card"], unit="of its time")
        for row in speeds if row["cards"] != ONE and row["network"] in GOALS and row["times one card"] is not None
    ]  # fmt: skip
    record = Measurement(
        name="exchange_speeds", settings={"device": "cpu" if args.tiny else "cuda", "tiny": args.tiny},
        tables=[Table(title=title, columns=tuple(rows[0]), rows=rows) for title, rows in tables.items() if rows],
        goals=goals, notes=longest_notes(runs),
    )  # fmt: skip
    after = load()
    answers = {
        f"{run.network}, {run.cards}": {"ready": run.ready, "rounds": run.rounds, "profile": run.profile}
        for run in runs
    }  # fmt: skip
    content: Mapping[str, Any] = {**record.to_json(), "environment": {**around, "load_after": after}, "runs": answers}
    (args.out / "exchange_speeds.json").write_text(json.dumps(content, indent=1) + "\n")
    line = header(around, record.settings, after)
    with (args.out / "exchange_speeds.txt").open("w") as file:
        show(record, line, Console(file=file, width=WIDTH))
    show(record, line)
    return 0 if any(row["times one card"] is not None and row["cards"] != ONE for row in speeds) else 1


def longest_notes(runs: Sequence[Run]) -> list[str]:
    """The longest kernels of each profile, in a line."""
    return [
        f"{run.network}, {run.cards}, longest kernels: "
        + "; ".join(f"{name} {count:.0f} x, {ms:.3f} ms" for name, (count, ms) in run.profile["longest"].items())
        for run in runs if run.profile is not None
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
