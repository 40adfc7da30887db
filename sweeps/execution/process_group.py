"""A trial trained by several processes of one machine, one a card, as if it were one trainer.

The trial's own process trains nothing: it starts the ranks, tells them what to do, and watches them. A rank that is
lost, or fails while the others wait for it, ends all of them at once, and none outlives the trial's process. They stay
from trial to trial.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank.errors import InputError
from lowrank.training.divergence import DivergedError
from sweeps.execution.worker_errors import WorkerLostError

PROJECT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 2.0  # in which the loss of one rank shows after another has complained of it


class ProcessGroup:
    """`count` ranks; the methods are those of Trainer."""

    def __init__(self, count: int, device: str, threads: int):
        """Start the processes: `device` cpu or cuda, `threads` of torch in each."""
        self.count, self.device, self.threads, self.epoch = count, device, threads, 0
        self._folder = tempfile.TemporaryDirectory(prefix="process-group-")
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for index in range(count):
            self._start(index)

    def _start(self, index: int) -> None:
        ours, theirs = Pipe()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        store = str(Path(self._folder.name) / "store")
        told = (index, self.count, self.device, self.threads, theirs.fileno(), os.getpid(), store)
        self._processes.append(subprocess.Popen(
            [sys.executable, "-m", "sweeps.execution.group_worker", *map(str, told)], pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
        ))  # fmt: skip
        theirs.close()
        self._pipes.append(ours)

    @property
    def pids(self) -> list[int]:
        """Of the processes, by rank."""
        return [process.pid for process in self._processes]

    @property
    def alive(self) -> bool:
        """Whether the group may be given another trial."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def build(
        self, specification: Mapping[str, Any], data_dir: str | None, cache: Mapping[str, Any],
        report: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Take up a trial, at its first epoch; `report` is told what there is to tell."""
        self._report, self.epoch = report, 0
        self._all("build", dict(specification), data_dir, dict(cache))

    def train_epoch(self) -> dict[str, float]:
        """See Trainer; raises also WorkerLostError when a rank is lost."""
        metrics: dict[str, float]
        self.epoch, metrics, told = self._all("train_epoch")[0]
        for text in told:
            self._report(text)
        return metrics

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Trainer."""
        self.epoch = self._all("load_state", state)[0]

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights instead of those that were drawn."""
        self._all("start_from", weights)

    def state(self) -> dict[str, Tensor]:
        """See Trainer, on the CPU."""
        return dict(self._ask(self._pipes[:1], "state")[0])

    def weights(self) -> dict[str, Tensor]:
        """See Trainer, on the CPU."""
        return dict(self._ask(self._pipes[:1], "weights")[0])

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        self._folder.cleanup()

    def _all(self, name: str, *arguments: Any) -> list[Any]:
        return self._ask(self._pipes, name, *arguments)

    def _ask(self, pipes: list[Connection], name: str, *arguments: Any) -> list[Any]:
        """What each rank answers, in their order; the first that fails ends all."""
        message = pickle.dumps((name, arguments))
        answers: dict[Connection, Any] = {}
        try:
            for pipe in pipes:
                pipe.send_bytes(message)
            while len(answers) < len(pipes):
                ready = wait([pipe for pipe in pipes if pipe not in answers])
                for pipe in (pipe for pipe in pipes if pipe in ready):
                    done, answer = pickle.loads(pipe.recv_bytes())
                    if not done:
                        raise self._error(answer)
                    answers[pipe] = answer
        except (EOFError, OSError) as error:
            raise self._lost() from error
        except BaseException:  # an interrupt too: the ranks would go on with what nobody waits for
            self.close()
            raise
        return [answers[pipe] for pipe in pipes]

    def _error(self, told: dict[str, Any]) -> Exception:
        kind, text = told["kind"], told["text"]
        if kind == "diverged":
            return DivergedError(text, epoch=told["epoch"], step=told["step"], layer=told["layer"])
        if kind == "memory":
            return torch.OutOfMemoryError(text)
        if kind == "input":
            return InputError(text)
        lost = self._lost() if kind == "other" and self._one_ended() else None  # what the others then complain of
        return lost or WorkerLostError(text)

    def _one_ended(self) -> bool:
        for process in self._processes:
            try:
                process.wait(GRACE_SECONDS / self.count)
                return True
            except subprocess.TimeoutExpired:
                continue
        return False

    def _lost(self) -> WorkerLostError:
        """Says which rank ended and how; ends the others."""
        self._one_ended()
        ended = [(index, process.poll()) for index, process in enumerate(self._processes)]
        said = [f"process {index} of {self.count} (exit code {code})" for index, code in ended if code is not None]
        self.close()
        return WorkerLostError(f"the trial lost {', '.join(said) or 'a process'}; it goes on in new ones")
