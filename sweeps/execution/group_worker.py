"""One of the processes that train a trial together; sweeps.execution.process_group starts and commands it by a pipe.

`python -m sweeps.execution.group_worker INDEX COUNT DEVICE THREADS PIPE PARENT STORE`: the number of the process and
how many there are, cpu or cuda, threads of torch, the descriptor of the pipe, the id of the process with which it ends,
and the file by which the processes find each other. On cuda a process sees its own card alone, so that what one process
compiles is what the others need.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Required, TypedDict

import torch
from torch import Tensor, distributed

from lowrank.data import ImageData
from lowrank.distillation import Teacher
from lowrank.errors import HungError, LowrankError
from lowrank.training import DataParallelGroup, DivergedError, Trainer, free_memory
from lowrank.utils import describe_error, exit_with_parent, first_line
from sweeps.cluster import device_lost, out_of_memory
from sweeps.execution.heartbeat import HANG_SECONDS, StepWatch, heartbeat_path, start_heartbeat
from sweeps.execution.worker_errors import check_memory_is_back, comes_again
from sweeps.records import TrialSpec
from sweeps.teachers import CacheOptions, make_teacher
from sweeps.trials import load_trial_data, make_trainer

MEASURED_STEPS, MEASURED_ROUNDS = 50, 3  # of a trial whose speed is asked for
# For another process, which may compile for minutes before the step in which this one waits for it
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# Kinds of errors
DIVERGED, MEMORY, DEVICE, HUNG, INPUT = "diverged", "memory", "device", "hung", "input"
NETWORK, OTHER = "network", "other"


class GroupWorker:
    """A trainer in this process. Each method is one command of the process group, most of them for all processes."""

    def __init__(self, group: DataParallelGroup, device: str):
        """Prepare for the first trial.

        Args:
            group: this process's place among those that train together.
            device: cpu or cuda.
        """
        self.group = group
        self.device = device  # its card is the only one that this process sees
        self.notices: list[str] = []
        self.data: ImageData | None = None
        self._trainer: Trainer | None = None
        self._watch: StepWatch | None = None

    def build(
        self, specification: TrialSpec, data_dir: str | None, cache: CacheOptions, decoding_cores: int | None = None
    ) -> None:
        """Begin a trial at its first epoch; the trainer of the last one is freed."""
        self.free_trainer()
        data = self.data = load_trial_data(specification, data_dir)

        def find_teacher() -> Teacher:
            return make_teacher(specification, data, self.device, cache, self.notices.append)

        group = self.group if self.group.count > 1 else None
        self._trainer = make_trainer(
            specification, data, self.device, find_teacher, group, self.notices.append, decoding_cores
        )
        loader_seconds = 0.0 if data.resident else data.settings.loader_seconds  # within which a loader may come back
        self._watch = StepWatch(max(HANG_SECONDS, loader_seconds))

    def measure(self, specification: TrialSpec, data_dir: str | None) -> float:
        """Train some steps of a trial, whose teacher answers at once; returns images per second of all processes."""
        from sweeps.resources import LEARNING_RATE, WARM_UP_STEPS, trainer_maker  # training needs no Optuna

        self.free_trainer()
        specification = specification.with_train(lr=LEARNING_RATE)
        data = self.data = load_trial_data(specification, data_dir)
        group = self.group if self.group.count > 1 else None
        trainer = trainer_maker(specification, data, torch.device(self.device), group)(specification.train.batch_size)
        trainer.train_steps(limit=WARM_UP_STEPS)
        steps, seconds = min(MEASURED_STEPS, trainer.steps_per_epoch), []
        for _ in range(MEASURED_ROUNDS):
            began = time.perf_counter()
            trainer.train_steps(limit=steps)  # ends with a read that waits for the device
            seconds.append(time.perf_counter() - began)
        return steps * min(trainer.recipe.batch_size, len(data.train)) / min(seconds)

    def goes_on(self) -> bool:
        """Say whether the training goes on; called by another thread."""
        trainer, watch = self._trainer, self._watch
        return trainer is None or watch is None or watch.goes_on(trainer.steps_taken)

    def free_trainer(self) -> None:
        """Free the trainer and its device memory; raises WorkerLostError if that does not come back."""
        self._trainer = None
        free_memory(self.device)
        if self.device != "cpu" and self.data is not None:
            check_memory_is_back(self.data, torch.cuda.memory_allocated() / 1e6, torch.device(self.device))

    @property
    def trainer(self) -> Trainer:
        """The trainer of the trial; there is one after `build`."""
        assert self._trainer is not None
        return self._trainer

    def train_epoch(self) -> tuple[int, dict[str, float], list[str]]:
        """Train one epoch; returns the number of epochs done, the metrics and the notices for the user."""
        metrics = self.trainer.train_epoch()
        return self.trainer.epoch, metrics, self.take_notices()

    def take_notices(self) -> list[str]:
        """Return the notices that nobody has had yet."""
        notices, self.notices = self.notices, []
        return notices

    def wrong_images(self) -> dict[str, Tensor]:
        """Return which images were wrong (see `Trainer.wrong_images`), on the CPU."""
        return {split: wrong.cpu() for split, wrong in self.trainer.wrong_images.items()}

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Evaluate a split; returns the metrics over all processes."""
        return self.trainer.evaluate(split)

    def load_state(self, state: dict[str, Tensor]) -> int:
        """Continue from a checkpoint; returns the number of epochs done."""
        self.trainer.load_state(state)
        return self.trainer.epoch

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights that were drawn."""
        self.trainer.network.load_state_dict(weights)
        self.trainer.restart_average()

    def state(self) -> dict[str, Tensor]:
        """Return the state of the trainer (see `Trainer.state`), on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.trainer.state().items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to evaluate (see `Trainer.weights`), on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.trainer.weights().items()}


class ErrorDescription(TypedDict, total=False):
    """An error as plain data: its `kind` and text; of a divergence also where it happened."""

    kind: Required[str]
    text: Required[str]
    epoch: int
    step: int | None
    layer: str | None


def error_description(error: Exception) -> ErrorDescription:
    """Return an error as plain data, of which `ProcessGroup` makes an exception again.

    Args:
        error: what a command raised, with its traceback.

    Returns:
        `kind` and `text`; of a divergence also epoch, step and layer.
    """
    if isinstance(error, DivergedError):
        return {
            "kind": DIVERGED, "text": str(error), "epoch": error.epoch, "step": error.step, "layer": error.layer
        }  # fmt: skip
    if out_of_memory(error):
        return {"kind": MEMORY, "text": first_line(error)}
    if device_lost(error):
        return {"kind": DEVICE, "text": first_line(error)}
    if isinstance(error, HungError):  # this process may never read again
        return {"kind": HUNG, "text": str(error)}
    if isinstance(error, LowrankError):
        return {"kind": INPUT, "text": str(error)}
    traceback.print_exc()
    if not isinstance(error, RuntimeError) and comes_again(error, "cpu"):
        return {"kind": NETWORK, "text": describe_error(error)}  # a RuntimeError may come of a lost connection
    return {"kind": OTHER, "text": f"{type(error).__name__}: {first_line(error)}"}


def serve(worker: GroupWorker, pipe: Connection) -> None:
    """Run the commands that come through a pipe until it is closed.

    Args:
        worker: whose methods the commands are.
        pipe: brings (name, arguments) and takes (True, answer) or (False, error), pickled.
    """
    while True:
        try:
            name, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, getattr(worker, name)(*arguments)
        except Exception as error:  # it belongs to the trial, and the trial's process reports it
            answer = False, {**error_description(error), "notices": worker.take_notices()}
        # A plain pickle holds its tensors; the pipe's own would leave them in the memory of this process
        pipe.send_bytes(pickle.dumps(answer))


def main(arguments: list[str]) -> None:
    """Join the process group, then serve.

    Args:
        arguments: of the command line, see above.
    """
    index, count, device, threads, pipe, parent, store = arguments
    exit_with_parent(int(parent))
    torch.set_num_threads(int(threads))
    group = DataParallelGroup(int(index), int(count))
    if sys.platform == "linux":  # all processes are on this machine: nothing must listen on a network
        os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=distributed.FileStore(store, group.count), rank=group.index,
        world_size=group.count, timeout=COLLECTIVE_TIMEOUT,
        device_id=torch.device("cuda", 0) if device == "cuda" else None,  # connects now, not in a recorded step
    )  # fmt: skip
    worker = GroupWorker(group, device)
    start_heartbeat(heartbeat_path(Path(store).parent, group.index), worker.goes_on)
    serve(worker, Connection(int(pipe)))


if __name__ == "__main__":
    main(sys.argv[1:])
