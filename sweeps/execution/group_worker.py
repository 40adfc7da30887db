"""One of the processes that train a trial together; sweeps.execution.process_group starts and commands it by a pipe.

`python -m sweeps.execution.group_worker INDEX COUNT DEVICE THREADS PIPE PARENT STORE`: its place, cpu or cuda,
threads of torch, the
descriptor of the pipe, the pid of the process that must outlive it, and the file by which the ranks find each other.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lowrank.data import ImageData
from lowrank.distillation.teacher import Teacher
from lowrank.errors import LowrankError
from lowrank.training.divergence import DivergedError
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.trainer import Trainer
from lowrank.utils.parent_death import exit_with_parent
from lowrank.utils.text import first_line
from sweeps.cluster.devices import out_of_memory
from sweeps.execution.worker_errors import check_memory_is_back, device_lost
from sweeps.teachers.worker import CacheOptions, make_teacher
from sweeps.trials.build import load_trial_data, make_trainer

DIVERGED, MEMORY, DEVICE, INPUT, OTHER = "diverged", "memory", "device", "input", "other"  # kinds of errors


class GroupWorker:
    """A trainer in this process; each method is one command, given to all ranks (what a state is, to the first)."""

    def __init__(self, ranks: DataParallelGroup, device: str):
        self.ranks = ranks
        self.device = f"{device}:{ranks.index}" if device == "cuda" else device
        self.notices: list[str] = []
        self.data: ImageData | None = None
        self._trainer: Trainer | None = None

    def build(self, specification: dict[str, Any], data_dir: str | None, cache: dict[str, Any]) -> None:
        """Take up a trial, at its first epoch; the one before it is let go."""
        self._let_go()
        data = self.data = load_trial_data(specification, data_dir)

        def teach(student: nn.Module) -> Teacher | None:
            options = CacheOptions(**cache)
            return make_teacher(specification, data, student, self.device, options, self.notices.append)

        self._trainer = make_trainer(specification, data, self.device, teach, self.ranks)

    def _let_go(self) -> None:
        self._trainer = None
        gc.collect()
        if self.device != "cpu" and self.data is not None:
            torch.cuda.empty_cache()
            check_memory_is_back(self.data, torch.cuda.memory_allocated() / 1e6, torch.device(self.device))

    @property
    def trainer(self) -> Trainer:
        """The trial's; there is one from `build` on."""
        assert self._trainer is not None
        return self._trainer

    def train_epoch(self) -> tuple[int, dict[str, float], list[str]]:
        """Epochs done after it, its metrics, and what there is to tell."""
        metrics = self.trainer.train_epoch()
        told, self.notices = self.notices, []
        return self.trainer.epoch, metrics, told

    def load_state(self, state: dict[str, Tensor]) -> int:
        """Go on from a checkpoint; returns the epochs done."""
        self.trainer.load_state(state)
        return self.trainer.epoch

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights instead of those that were drawn."""
        self.trainer.network.load_state_dict(weights)
        self.trainer.restart_average()

    def state(self) -> dict[str, Tensor]:
        """See Trainer, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.trainer.state().items()}

    def weights(self) -> dict[str, Tensor]:
        """See Trainer, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.trainer.weights().items()}


def told(error: Exception) -> dict[str, Any]:
    """An error as the other process makes one of it again."""
    if isinstance(error, DivergedError):
        where = {"epoch": error.epoch, "step": error.step, "layer": error.layer}
        return {"kind": DIVERGED, "text": str(error), **where}
    if out_of_memory(error):
        return {"kind": MEMORY, "text": first_line(error)}
    if device_lost(error):
        return {"kind": DEVICE, "text": first_line(error)}
    if isinstance(error, LowrankError):
        return {"kind": INPUT, "text": str(error)}
    traceback.print_exc()
    return {"kind": OTHER, "text": f"{type(error).__name__}: {first_line(error)}"}


def serve(rank: GroupWorker, pipe: Connection) -> None:
    """Do what comes through the pipe until it is closed."""
    while True:
        try:
            name, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, getattr(rank, name)(*arguments)
        except Exception as error:  # it belongs to the trial, whose process is told
            answer = False, told(error)
        # Plain pickles hold their tensors, where a pipe's own would leave them in this process
        pipe.send_bytes(pickle.dumps(answer))


def main(arguments: list[str]) -> None:
    """Join the others, then serve."""
    index, count, device, threads, pipe, parent, store = arguments
    exit_with_parent(int(parent))
    torch.set_num_threads(int(threads))
    ranks = DataParallelGroup(int(index), int(count))
    if device == "cuda":
        torch.cuda.set_device(ranks.index)
    if sys.platform == "linux":  # all ranks are on this machine: nothing listens elsewhere
        os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=distributed.FileStore(store, ranks.count), rank=ranks.index,
        world_size=ranks.count,
    )  # fmt: skip
    serve(GroupWorker(ranks, device), Connection(int(pipe)))


if __name__ == "__main__":
    main(sys.argv[1:])
