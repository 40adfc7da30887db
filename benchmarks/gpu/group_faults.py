"""One process of a trial on two cards is killed, hangs or runs out of memory: when the trial trains again.

    python -m benchmarks.gpu.group_faults --out DIR [--data parquet:DIR] [--seconds 200] [--device cpu] [--one-trial]
        [--fault NAME ...]

A real study of three trials, each on two cards, and each hit once, by another fault, as soon as it has a checkpoint.
`--one-trial` hits one trial three times, each time after it has trained again, which saves the end of two trials.
`--fault` hits with the named ones alone. The memory of a card runs out since another process takes all but a part of
it while the trial's processes begin anew. `--device cpu` does the same to two processes on a CPU, whose memory is
limited by the system. On cards the study is ended once the last trial trains again.

The columns: seconds until the next attempt has trained an epoch, and the same since memory ran out; how much of these
the attempt's start was; epochs on record before, and those that are trained once more; processes of the old attempt
that still run then (`left`); the least memory in use on each card meanwhile, in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measurement import PROJECT, WIDTH, Goal, Measurement, Table, environment, header, load, show
from lowrank.utils import OneLineParser
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, TRIALS_FOLDER
from tests.support.processes import group_worker_pids, is_running

NAME = "group_faults"
FAULTS = ("killed", "hung", "out of memory")
KILLED = "exit code -9"  # in the notice of an attempt of which a process was killed
GOAL_SECONDS = 60.0
ALLOWED_MIB = 16.0  # by which a card's memory may differ between two looks at an idle one
KEPT_FREE = 0.4  # of what the trial uses of a card: what the other process leaves of it
LEAST_FREE = 2.5 * 2**30  # bytes, so that a process can begin there and fails where it trains
FILLER = """
import sys, time, torch
blocks = [torch.empty(1, device="cuda")]
free, full = float(sys.stdin.readline()), False
while True:
    more = torch.cuda.mem_get_info()[0] - free
    if more > 2**26:
        try:
            blocks.append(torch.empty(int(more), dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            pass
    elif not full:
        full = True
        print("full", flush=True)
    time.sleep(0.01)
"""


@dataclass
class Strike:
    """A fault of one trial, and what came of it."""

    fault: str
    trial: str = ""
    struck: float = 0.0
    again: float | None = None  # seconds until the next attempt had trained an epoch
    since_memory: float | None = None  # the same since memory ran out
    start: float | None = None  # seconds of the next attempt's start
    reached: int = 0  # epochs before it
    from_epoch: int | None = None
    survivors: int = 0  # processes of the old group that still ran then
    free: list[int] = field(default_factory=list)  # MiB used on each card while no process of the trial used it


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.group_faults", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the study and the table")
    parser.add_argument("--data", default="digits", metavar="SET", help="as of a study (digits)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch-size", type=int, help="of both cards together (4096; 50 on a CPU)")
    parser.add_argument("--one-trial", action="store_true", help="hit one trial with each fault")
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=FAULTS, dest="faults", help="which ones (all)")
    parser.add_argument("--epochs", type=int, help="of each trial (25; 40 on a CPU; 2000 of one trial)")
    parser.add_argument("--engine", choices=("plain", "captured"), default="plain", help="of each trial (plain)")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which all ends (200)")
    return parser


def study_command(args: argparse.Namespace) -> list[str]:
    """The command of the study."""
    on_cpu = args.device == "cpu"
    fields = {
        "train.batch_size": args.batch_size or (50 if on_cpu else 4096), "train.epochs": args.epochs,
        "train.weight_decay": "1.0e-3", "train.scaled_decay": "true", "train.engine": args.engine, "method.dims": 2,
        "references": "[separable]", "budget.params": 0.6, "search.sampler": "grid", "search.stop": "none",
        "resources.checkpoint_seconds": 0, "resources.max_concurrent": 1,
    }  # fmt: skip
    fields |= {"network.width": 0.125, "data.train_images": 200} if on_cpu else {"train.lr": 0.05}
    fields |= {"references": "[]", "method.name": "tensor_train"} if args.one_trial else {}
    where = ["--processes-per-trial", "2"] if on_cpu else ["--gpus-per-trial", "2"]
    settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    return [
        sys.executable, str(PROJECT / "sweeps" / "run.py"), "--space", "tt_dims", "--data", args.data, *settings,
        *where, "--cpus-per-trial", "2", "--out", str(args.out), "--name", NAME,
    ]  # fmt: skip


def used_memory() -> list[int]:
    """MiB in use on each card, of all processes; none without cards."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return []
    return [int(line) for line in done.stdout.split() if line.isdigit()]


def start_filler() -> subprocess.Popen[str]:
    """Start a process that will take the memory of the second card."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    return subprocess.Popen(
        [sys.executable, "-c", FILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": visible[1]},
    )  # fmt: skip


def fill(filler: subprocess.Popen[str]) -> None:
    """Have it take the second card's free memory but a part of what the trial uses, also what comes free later."""
    free = max(LEAST_FREE, KEPT_FREE * used_memory()[1] * 2**20)
    print(f"another process takes all but {free / 2**30:.1f} GiB of the second card", flush=True)
    assert filler.stdin is not None
    assert filler.stdout is not None
    filler.stdin.write(f"{free}\n")
    filler.stdin.flush()
    filler.stdout.readline()


def goal(strike: Strike) -> Goal:
    """The goal of one fault; not met where its trial has not trained again."""
    seconds = strike.since_memory or strike.again or float("inf")
    return Goal(what=f"{strike.fault}: trained again after", limit=GOAL_SECONDS, found=seconds, unit="s")


def describe(strike: Strike) -> list[str]:
    """What came of a fault, in two lines."""
    if strike.again is None:
        return [f"{strike.fault}: the trial {strike.trial} has not trained again in time", str(goal(strike))]
    return [
        f"{strike.fault}: the trial {strike.trial} had trained {strike.reached} epochs and trained one again after "
        f"{strike.again:.1f} s, from epoch {strike.from_epoch}; its start took {strike.start:.1f} s; of the processes "
        f"before, {strike.survivors} still ran; least MiB in use {strike.free}",
        str(goal(strike)),
    ]


class Faults:
    """Watches a study through its journal and hits its trials.

    Args:
        args: the command line.
        process: the study's.
    """

    def __init__(self, args: argparse.Namespace, process: subprocess.Popen[bytes]):
        self.args, self.process = args, process
        self.until = time.monotonic() + args.seconds
        self.strikes: list[Strike] = []

    def record(self) -> StudyRecord:
        """The study as far as it is recorded."""
        path = self.args.out / NAME / JOURNAL_FILE
        return fold_journal(path) if path.exists() else StudyRecord()

    def wait(self, holds: Callable[[], Any], poll_seconds: float = 0.05) -> Any:
        """Wait until something holds, and return it; None where the study ends or the time is up before."""
        while not (value := holds()):
            if self.process.poll() is not None or time.monotonic() > self.until:
                return None
            time.sleep(poll_seconds)
        return value

    def run(self) -> None:
        """Hit a trial with each fault, one after the other."""
        hit: set[str] = set()
        for fault in self.args.faults:
            filler = start_filler() if fault == "out of memory" and self.args.device == "cuda" else None
            try:
                trial = self.wait(lambda: self._running(hit))
                if trial is None:
                    print(f"{fault}: there was no trial to hit", flush=True)
                    return
                if not self.args.one_trial:
                    hit.add(trial.trial_id)
                strike = self._strike(fault, trial, filler)
            finally:
                if filler is not None:
                    filler.kill()
                    filler.wait()
            self.strikes.append(strike)
            print(*describe(strike), sep="\n", flush=True)

    def _running(self, hit: set[str]) -> TrialRecord | None:
        for trial in self.record().trials.values():
            checkpoint = self.args.out / NAME / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE
            begun = begun_attempts(trial)
            trains = not trial.ended and bool(begun) and begun[-1] is trial.attempts[-1]
            if trial.trial_id not in hit and trains and checkpoint.exists():
                return trial
        return None

    def _strike(self, fault: str, trial: TrialRecord, filler: subprocess.Popen[str] | None) -> Strike:
        pids = group_worker_pids(trial.attempts[-1]["pid"])
        if len(pids) < 2:
            raise SystemExit(f"the trial is trained by {len(pids)} processes of a group, not 2; see study.log")
        strike = Strike(fault, trial.trial_id)
        if filler is not None:
            fill(filler)
        strike.reached = self.record().trials[trial.trial_id].last_epoch
        strike.struck = time.monotonic()
        if fault == "out of memory":
            self._exhaust(strike, pids[1], filler)
        else:
            os.kill(pids[1], signal.SIGSTOP if fault == "hung" else signal.SIGKILL)
        self._watch_return(strike, pids)
        return strike

    def _attempts(self, strike: Strike) -> list[Any]:
        return begun_attempts(self.record().trials[strike.trial])

    def _watch_return(self, strike: Strike, pids: list[int]) -> None:
        """Wait for an attempt that has trained an epoch, and look at the cards meanwhile."""
        before = len(self._attempts(strike))
        start = time.monotonic()
        lowest: list[int] = []

        def returned() -> bool:
            nonlocal lowest
            used = used_memory()
            lowest = [min(pair) for pair in zip(lowest or used, used, strict=True)]
            trial = self.record().trials[strike.trial]
            if len(begun_attempts(trial)) > before:
                return True
            strike.reached = trial.last_epoch
            return False

        if self.wait(returned):
            now = time.monotonic()
            attempt = self._attempts(strike)[-1]
            strike.again, strike.start = now - strike.struck, attempt["start_seconds"]
            strike.from_epoch = attempt["from_epoch"]
            if strike.fault == "out of memory":
                strike.since_memory = now - start
        strike.survivors, strike.free = sum(is_running(pid) for pid in pids), lowest

    def _exhaust(self, strike: Strike, pid: int, filler: subprocess.Popen[str] | None) -> None:
        """Let memory run out in a process of the trial; returns once the trial has said so."""
        if filler is not None:
            os.kill(pid, signal.SIGKILL)  # the trial does not ask for more memory as long as it trains
        else:
            used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))

        def has_failed_again() -> bool:
            """Whether another attempt has failed than the one that was killed; its reason is among the notices."""
            notices = self.record().trials[strike.trial].notices
            return any("is repeated" in text and KILLED not in text for text in notices)

        self.wait(has_failed_again)
        if filler is not None:
            filler.kill()
            filler.wait()


def begun_attempts(trial: TrialRecord) -> list[Any]:
    """The attempts of a trial but those that were lost before their first epoch, which have a reason on record."""
    return [attempt for attempt in trial.attempts if "reason" not in attempt]


def rows(faults: Faults) -> list[dict[str, Any]]:
    """A row for each fault."""
    record = faults.record()
    table = []
    for strike in faults.strikes:
        trial = record.trials[strike.trial]
        repeated = None if strike.from_epoch is None else strike.reached - strike.from_epoch
        table.append({
            "fault": strike.fault, "epoch s": strike.again, "memory s": strike.since_memory,
            "start s": strike.start,
            "attempts": len(trial.attempts), "before": strike.reached, "repeated": repeated,
            "left": strike.survivors, "MiB": str(strike.free), "end": str(trial.status),
        })  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the study, hit its trials, print the table; returns 1 where a goal is not met."""
    args = make_parser().parse_args(arguments)
    args.epochs = args.epochs or (2000 if args.one_trial else 40 if args.device == "cpu" else 25)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    around, before = environment(), used_memory()
    command = study_command(args)
    print(" ".join(command), flush=True)
    with (args.out / "study.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    faults = Faults(args, process)
    try:
        faults.run()
        if args.device == "cpu" and not args.one_trial:
            faults.wait(lambda: process.poll() is not None, 0.2)
    finally:
        if process.poll() is None:
            print("the study is ended", flush=True)
            process.terminate()
            process.wait(60)
    time.sleep(3)  # in which the driver of the cards frees what the last process held
    after = used_memory()
    table = rows(faults)
    record = faults.record()
    notes = [f"exit code {process.returncode}; trials: {', '.join(str(t.status) for t in record.trials.values())}",
             f"MiB used on each card before the study {before}, after it {after}"]  # fmt: skip
    notes += [f"notice: {text}" for trial in record.trials.values() for text in trial.notices]
    goals = [goal(strike) for strike in faults.strikes]
    goals += [Goal(what=f"memory left on card {card}", limit=ALLOWED_MIB, found=now - then, unit="MiB")
              for card, (then, now) in enumerate(zip(before, after, strict=True))]  # fmt: skip
    settings = {"device": args.device, "data": args.data, "epochs": args.epochs, "engine": args.engine}
    tables = [Table(title="One process of a trial of two is hit", columns=tuple(table[0]), rows=table)] if table else []
    measured = Measurement(
        name=NAME,
        settings=settings,
        goals=goals,
        notes=notes,
        tables=tables,
    )  # fmt: skip
    content = {**measured.to_json(), "environment": {**around, "load_after": load()}}
    (args.out / f"{NAME}.json").write_text(json.dumps(content, indent=1) + "\n")
    line = header(around, settings, load())
    with (args.out / f"{NAME}.txt").open("w") as file:
        show(measured, line, Console(file=file, width=WIDTH))
    show(measured, line)
    good = len(table) == len(args.faults) and all(goal.met for goal in goals)
    return 0 if good and not any(row["left"] for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
