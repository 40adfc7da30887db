"""A trial trained by several processes of one machine, one on each card, as if it were one trainer.

The trial's own process trains nothing: it starts the group's processes, commands them and watches them. If one is lost
or hangs, or fails while the others wait for it, all of them are ended; they also end with the trial's process. The next
trial of the same worker uses them again, or those that have taken their place.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lowrank.errors import InputError
from lowrank.training import DivergedError
from lowrank.utils import ProcessorWatch, module_command, module_environment
from sweeps.execution.group_worker import ErrorDescription
from sweeps.execution.heartbeat import HANG_SECONDS, HeartbeatWatch, heartbeat_path
from sweeps.execution.worker_errors import NetworkFailedError, WorkerLostError
from sweeps.records import TrialSpec
from sweeps.teachers import CacheOptions

IDLE_SECONDS = 600.0  # in which the processes of a group hardly use processor time, after which it is given up
POLL_SECONDS = 2.0  # between two looks at it, at most
# Without a sign of life of a process, after which others are started: they import and connect while it is waited for
SUSPICION_SECONDS = 10.0
VISIBLE_CARDS = "CUDA_VISIBLE_DEVICES"
END_SECONDS = 10.0  # for a killed process to end
GRACE_SECONDS = 2.0  # in which the end of one process shows after another has reported an error that it caused


class ProcessGroup:
    """Several processes that train a trial together; a trainer for whoever uses it (see `Trainer`)."""

    _next: ProcessGroup | None = None  # started since one of the processes gives no sign of life

    def __init__(self, count: int, device: str, threads: int):
        """Start the processes.

        Args:
            count: of processes.
            device: cpu or cuda; on cuda each process has one of the cards that this one sees, and sees no other.
            threads: of torch in each process.
        """
        self.count, self.device, self.threads, self.epoch = count, device, threads, 0
        self._folder = tempfile.TemporaryDirectory(prefix="process-group-")
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for index in range(count):
                self._start(index)
        except BaseException:
            self._end_processes()
            raise

    def _start(self, index: int) -> None:
        our_end, worker_end = Pipe()
        store = str(Path(self._folder.name) / "store")
        arguments = (index, self.count, self.device, self.threads, worker_end.fileno(), os.getpid(), store)
        self._processes.append(subprocess.Popen(
            module_command("sweeps.execution.group_worker", *arguments),
            pass_fds=[worker_end.fileno()], env=module_environment() | self._card(index), stdin=subprocess.DEVNULL,
        ))  # fmt: skip
        worker_end.close()
        self._pipes.append(our_end)

    def _card(self, index: int) -> dict[str, str]:
        """Return the environment by which a process sees its own card alone."""
        if self.device != "cuda":
            return {}
        visible = os.environ.get(VISIBLE_CARDS)
        cards = visible.split(",") if visible else [str(card) for card in range(self.count)]
        if len(cards) < self.count:
            raise InputError(f"{self.count} processes need as many cards, but {VISIBLE_CARDS} is {visible}")
        return {VISIBLE_CARDS: cards[index]}

    @property
    def alive(self) -> bool:
        """Whether all processes run, so that the group can train another trial."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def successor(self) -> ProcessGroup:
        """Return the group that takes the place of this one, whose processes have ended: started already, or now."""
        following, self._next = self._next, None
        if following is not None and following.alive:
            return following
        if following is not None:  # such as where a card has no memory for both
            following.close()
        return ProcessGroup(self.count, self.device, self.threads)

    def build(
        self, specification: TrialSpec, data_dir: str | None, cache: CacheOptions,
        notify: Callable[[str], None], decoding_cores: int | None = None,
    ) -> None:  # fmt: skip
        """Begin a trial at its first epoch.

        Args:
            specification: of the trial.
            data_dir: folder of data sets.
            cache: where caches of the teacher lie.
            notify: takes notices for the user.
            decoding_cores: on which each process decodes a streamed set by default.
        """
        self._notify, self.epoch = notify, 0
        self.call_all("build", specification, data_dir, cache, decoding_cores)

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch; see `Trainer.train_epoch`.

        Returns:
            The metrics.

        Raises:
            DivergedError: a loss or a weight is not finite, or the loss explodes.
            WorkerLostError: a process ended.
        """
        metrics: dict[str, float]
        self.epoch, metrics, notices = self.call_all("train_epoch")[0]
        self._pass_on(notices)
        return metrics

    def _pass_on(self, notices: list[str]) -> None:
        for text in notices:
            self._notify(text)

    @property
    def wrong_images(self) -> dict[str, Tensor]:
        """Which images were wrong (see `Trainer.wrong_images`), on the CPU."""
        return dict(self._call(self._pipes[:1], "wrong_images")[0])

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Evaluate a split; see `Trainer.evaluate`.

        Args:
            split: "train", "val" or "test".

        Returns:
            The metrics.
        """
        return dict(self.call_all("evaluate", split)[0])

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint; see `Trainer.load_state`."""
        self.epoch = self.call_all("load_state", state)[0]

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights that were drawn.

        Args:
            weights: of the whole network.
        """
        self.call_all("start_from", weights)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds (see `Trainer.state`), on the CPU."""
        return dict(self._call(self._pipes[:1], "state")[0])

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to evaluate (see `Trainer.weights`), on the CPU."""
        return dict(self._call(self._pipes[:1], "weights")[0])

    def close(self) -> None:
        """End the processes, and those that were to take their place."""
        self._drop_next()
        self._end_processes()

    def _start_next(self) -> None:
        """Start the processes that take the place of these, if the machine has what they need."""
        with suppress(OSError):  # these are not lost by that: they may only be slow, and `successor` tries again
            self._next = ProcessGroup(self.count, self.device, self.threads)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):  # it waits for a device that does not answer
                process.wait(END_SECONDS)
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        self._folder.cleanup()

    def call_all(self, command: str, *arguments: Any) -> list[Any]:
        """Run a command in all processes; the first that fails ends them all.

        Args:
            command: a method of `GroupWorker`.
            *arguments: of the method.

        Returns:
            The answers in the order of the processes.

        Raises:
            DivergedError: the training diverged.
            InputError: data or weights cannot be used.
            NetworkFailedError: the network's own code failed, and would again.
            OutOfMemoryError: torch's, if memory ran out.
            WorkerLostError: a process ended or hangs, or failed in any other way.
        """
        return self._call(self._pipes, command, *arguments)

    def _call(self, pipes: list[Connection], command: str, *arguments: Any) -> list[Any]:
        message = pickle.dumps((command, arguments))
        answers: dict[Connection, Any] = {}
        try:
            for pipe in pipes:
                pipe.send_bytes(message)
            # They wait for each other, so one that hangs stops all
            watch = ProcessorWatch(IDLE_SECONDS, [process.pid for process in self._processes])
            heartbeats = HeartbeatWatch(
                [heartbeat_path(Path(self._folder.name), index) for index in range(self.count)], HANG_SECONDS
            )
            while len(answers) < len(pipes):
                seconds = min(POLL_SECONDS, watch.poll_seconds * POLL_SECONDS, HANG_SECONDS / 4)
                readable = wait([pipe for pipe in pipes if pipe not in answers], seconds)
                if not readable and (silent := heartbeats.silent()) is not None:
                    raise self._close_after_silence(silent, command)
                if not readable and self._next is None and heartbeats.silent(SUSPICION_SECONDS) is not None:
                    self._start_next()
                if not readable and watch.is_idle():
                    raise self._close_after_hang(command)
                for pipe in (pipe for pipe in pipes if pipe in readable):
                    succeeded, answer = pickle.loads(pipe.recv_bytes())
                    if not succeeded:
                        if pipe is self._pipes[0]:  # the others have the same notices
                            self._pass_on(answer["notices"])
                        raise self._make_error(answer)
                    answers[pipe] = answer
        except (EOFError, OSError) as error:
            raise self._close_after_loss() from error
        except BaseException:  # an interrupt too: the processes would go on with a command that nobody waits for
            self._end_processes()
            raise
        self._drop_next()  # the silent process was only slow
        return [answers[pipe] for pipe in pipes]

    def _close_after_hang(self, command: str) -> WorkerLostError:
        """End all processes; returns the error that says what was waited for."""
        self._end_processes()
        return WorkerLostError(
            f"the {self.count} processes of the trial did nothing for {IDLE_SECONDS:.0f} s while they were to "
            f"{command}; it goes on in new ones"
        )

    def _close_after_silence(self, index: int, command: str) -> WorkerLostError:
        """End all processes; returns the error that says which one hangs."""
        self._end_processes()
        return WorkerLostError(
            f"process {index} of {self.count} of the trial hangs: no step or sign of life for {HANG_SECONDS:.0f} s "
            f"while it was to {command}; the trial goes on in new ones"
        )

    def _make_error(self, description: ErrorDescription) -> Exception:
        """Return the exception that `error_description` described."""
        kind, text = description["kind"], description["text"]
        if kind == "diverged":
            return DivergedError(
                text, epoch=description["epoch"], step=description["step"], layer=description["layer"]
            )  # fmt: skip
        if kind == "memory":
            return torch.OutOfMemoryError(text)
        if kind == "input":
            return InputError(text)
        if kind == "network":
            return NetworkFailedError(text)
        if kind == "other" and self._has_lost_one():  # the others then fail because they cannot reach it
            return self._close_after_loss()
        return WorkerLostError(text)

    def _has_lost_one(self) -> bool:
        for process in self._processes:
            try:
                process.wait(GRACE_SECONDS / self.count)
                return True
            except subprocess.TimeoutExpired:
                continue
        return False

    def _close_after_loss(self) -> WorkerLostError:
        """End all processes; returns the error that says which had ended, and how."""
        self._has_lost_one()
        exit_codes = [(index, process.poll()) for index, process in enumerate(self._processes)]
        losses = [
            f"process {index} of {self.count} (exit code {code})" for index, code in exit_codes if code is not None
        ]
        self._end_processes()
        return WorkerLostError(f"the trial lost {', '.join(losses) or 'a process'}; it goes on in new ones")
