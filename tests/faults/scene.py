"""A running study that faults are injected into, and its surroundings: cluster, server, disk."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeps.records.events import Status
from sweeps.records.model import TrialRecord
from sweeps.records.names import MLFLOW_FILE
from tests.support import studies
from tests.support.clusters import Machines
from tests.support.waiting import scaled, wait_until

NAME = "hit"
EPOCHS = 20
SECONDS = 900  # within which everything that is waited for must happen
_SMALL = (
    "--space", "tt_dims", "--set", "network.width=0.125", "--set", "data.train_images=200",
    "--set", "references=[separable]", "--set", "budget.params=0.6", "--set", "resources.checkpoint_seconds=1",
    "--set", "resources.max_concurrent=2",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A study: its options, how many trials it has, and how many epochs a trial."""

    name: str
    options: tuple[str, ...]
    trials: int
    epochs: int = EPOCHS

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*self.options, "--set", f"train.epochs={self.epochs}")


GRID = Question("grid", (
    *_SMALL, "--set", "method.dims={choice: [2, 3]}", "--set", "train.weight_decay=1.0e-3",
    "--set", "train.scaled_decay=true", "--set", "search.sampler=grid", "--set", "search.stop=none",
), 5)  # fmt: skip
SEARCH = Question("search", (*_SMALL, "--trials", "6"), 7)
QUICK = Question("quick search", (*_SMALL, "--trials", "3"), 4)
STREAMED = Question("streamed grid", (
    *GRID.options, "--set", "data.resident_mb=0", "--set", "data.loader_seconds=5", "--set", "method.dims=2",
), 3, 10)  # fmt: skip
GROUPED = Question("grid in groups", (
    *GRID.options, "--set", "method.dims=2", "--set", "resources.processes_per_trial=2",
    "--set", "resources.max_concurrent=1",
), 3, 10)  # fmt: skip
SHORT = Question("short grid", (*GRID.options, "--set", "method.dims=2"), 3, 10)
COMPILED = replace(SHORT, name="compiled grid", options=(*SHORT.options, "--set", "train.engine=compiled"))
DISTILLED = Question("taught grid", (
    "--space", "distill", "--set", "network={name: wrn_10_1, width: 0.5}", "--set", "data.train_images=200",
    "--set", "method.name={choice: [bottleneck, tensor_train]}", "--set", "budget.params=0.8",
    "--set", "teacher.name=good", "--set", "search.sampler=grid", "--set", "resources.checkpoint_seconds=1",
    "--set", "train.attention_weight={choice: [30.0, 60.0]}",
), 4, 12)  # fmt: skip


class Study:
    """A running study, started and resumed through the command."""

    def __init__(self, question: Question, out: Path, *location: str):
        """`location`: options that say where it runs and is recorded."""
        self.question, self.out, self.location = question, out, location
        self.folder = out / NAME
        self.database = self.folder / MLFLOW_FILE
        self.process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        self.process = studies.start(*self.question.arguments, "--out", str(self.out), "--name", NAME, *self.location)

    def resume(self, *location: str) -> None:
        self.process = studies.start("--resume", NAME, "--out", str(self.out), *location)

    def epochs(self) -> int:
        """Return how many epochs are on record, over all trials."""
        return sum(trial.last_epoch for trial in studies.record(self.folder).trials.values())

    def over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait(self, holds: Callable[[], object], event: str) -> bool:
        """Wait until something holds; False when the study ends before that."""
        happened: object = False

        def happens() -> object:
            nonlocal happened
            happened = holds()
            return happened or self.over()

        wait_until(happens, event, seconds=SECONDS, poll_seconds=0.02)
        return bool(happened)

    def running(self) -> list[TrialRecord]:
        """Return the trials that processes of this machine train now, as far as is on record."""
        trials = studies.record(self.folder).trials.values()
        at_work = [trial for trial in trials if trial.status is Status.RUNNING and trial.last_epoch]
        # An attempt that ended before its first epoch has no process on record
        begun = [trial for trial in at_work if "pid" in trial.attempts[-1]]
        return [trial for trial in begun if Path(f"/proc/{trial.attempts[-1]['pid']}").exists()]

    def one(self, rng: random.Random) -> TrialRecord | None:
        """A trial that is being trained; None when the study ends before there is one."""
        if not self.wait(self.running, "a trial that is trained"):
            return None
        running = self.running()
        return rng.choice(running) if running else None

    def kill(self) -> None:
        """SIGKILL for the driver."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def end(self, code: int = 0) -> str:
        """Wait for the command's end; returns what it has printed."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=scaled(SECONDS))
        assert self.process.returncode == code, output[-3000:]
        assert "Traceback" not in output, output[-3000:]
        return output

    def close(self) -> None:
        if self.process is not None:
            self.kill()


@dataclass
class Scene:
    """The surroundings of a study: cluster, server, disk."""

    folder: Path
    stack: ExitStack
    cluster: Machines | None = None
    location: tuple[str, ...] = ()
    out: Path = field(init=False)
    injections: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = self.folder / "out"
