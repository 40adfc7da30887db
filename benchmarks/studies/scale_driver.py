"""One study of replayed trials through the real command, measured from within its driver.

Started by benchmarks.studies.scale:

python -m benchmarks.studies.scale_driver FOLDER TRIALS GPUS RESULT.json
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.studies.replayed_trial import Replayed
from lowrank.utils import OneLineParser
from sweeps import run
from sweeps.cluster.ray_adapter import ENVIRONMENT
from sweeps.execution import tuner
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.search.optuna_proposer import OptunaProposer
from sweeps.search.search import Search
from sweeps.tracking.process import TrackingProcess, read_progress

NAME = "scale"


def resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_bytes(pid: int) -> int:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Notes what the driver has used whenever a certain number of trials has ended."""

    def __init__(self, marks: list[int], folder: Path, result: Path):
        """`result` is written at every note, so that a study that is killed leaves what was seen of it."""
        self.marks, self.folder, self.result = marks, folder, result
        self.begun = time.monotonic()
        self.ended = 0
        self.proposal_seconds: list[float] = []
        self.events = 0
        self.tracking: TrackingProcess | None = None
        self.workers: dict[int, int] = {}  # process -> the most bytes of its own that were seen
        self.rows: list[dict[str, Any]] = []

    def note(self) -> None:
        """What has been used so far."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
                self.workers[pid] = max(self.workers[pid], own_bytes(pid))
        journal = self.folder / JOURNAL_FILE
        tracker = self.tracking.process.pid if self.tracking else os.getpid()
        self.rows.append({
            "trials": self.ended, "wall": time.monotonic(), "cpu": time.process_time(),
            "rss": resident_bytes(os.getpid()), "events": self.events, "journal_bytes": journal.stat().st_size,
            "optuna_bytes": (self.folder / "optuna.journal").stat().st_size,
            "carried_bytes": read_progress(self.folder).get("offset", 0),
            "tracker_cpu": cpu_seconds(tracker), "tracker_rss": resident_bytes(tracker),
            "proposals": len(self.proposal_seconds), "proposal_seconds": sum(self.proposal_seconds),
        })  # fmt: skip

        self.write(None)

    def write(self, code: int | None) -> None:
        """What has been seen so far; `code` is the command's, None while it runs."""
        now = time.monotonic()
        self.result.write_text(json.dumps({
            "code": code, "rows": self.rows, "workers": len(self.workers),
            "worker_mb": max(self.workers.values(), default=0) / 1e6, "seconds": now - self.begun,
            "end_seconds": now - self.rows[-1]["wall"] if self.rows else None,
        }))  # fmt: skip

    def attach(self) -> None:
        """Look over the shoulder of the search, the sampler, the journal and the tracker."""
        finish, ask, append, start = Search.finish, OptunaProposer.ask, Journal.append, TrackingProcess.start

        def finished(search: Search, *arguments: Any, **named: Any) -> None:
            finish(search, *arguments, **named)
            self.ended += 1
            if self.ended in self.marks:
                self.note()

        def asked(proposer: OptunaProposer, *arguments: Any, **named: Any) -> Any:
            begun = time.thread_time()
            try:
                return ask(proposer, *arguments, **named)
            finally:
                self.proposal_seconds.append(time.thread_time() - begun)

        def appended(journal: Journal, *arguments: Any, **named: Any) -> Any:
            self.events += 1
            return append(journal, *arguments, **named)

        def started(*arguments: Any) -> TrackingProcess:
            self.tracking = start(*arguments)
            return self.tracking

        def attempted(search: Search, trial_id: str, about: Any) -> None:
            if "pid" in about:  # not of an attempt whose process was lost before it said so
                self.workers.setdefault(about["pid"], 0)
            attempt(search, trial_id, about)

        attempt, Search.write_attempt = Search.write_attempt, attempted  # type: ignore[method-assign]
        Search.finish, OptunaProposer.ask, Journal.append = finished, asked, appended  # type: ignore[method-assign]
        TrackingProcess.start = started  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    """Run the study; writes the notes, and what the workers took."""
    parser = OneLineParser()
    for name, kind in (("folder", Path), ("trials", int), ("gpus", int), ("result", Path)):
        parser.add_argument(name, type=kind)
    args = parser.parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    ray.init(
        address="local", num_cpus=args.gpus, num_gpus=args.gpus, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR", object_store_memory=200 * 2**20,
    )  # fmt: skip
    tuner.TrialTrainable = Replayed  # type: ignore[assignment, misc]
    marks = sorted({mark for mark in (20, 100, 250, 500, 750, 1000) if mark < args.trials} | {args.trials})
    watch = Watch(marks, args.folder / NAME, args.result)
    watch.attach()
    command = [
        "--space", "tt_dims", "--set", "train.epochs=30", "--set", "references=[]",
        "--set", f"search.trials={args.trials}", "--gpus-per-trial", "1", "--out", str(args.folder), "--name", NAME,
    ]  # fmt: skip
    with (args.folder / "said.txt").open("w") as output, contextlib.redirect_stdout(output):
        watch.write(run.main(command))


if __name__ == "__main__":
    main(sys.argv[1:])
