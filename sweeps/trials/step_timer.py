"""Measure the time of a training step, for budgets that limit it, on the driver's machine.

A measured time holds for this machine alone, does not grow steadily with size, and differs from one measurement to the
next. So each network is measured once in the life of a study (a file beside the journal keeps the times for a resume),
and a budget of time refuses networks instead of solving their size.

On a GPU another process measures: an error of CUDA there must not end the driver, nor does the driver hold a context on
a card of its trials.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from lowrank.compression import NetworkPlan, SizedMethod, build_student
from lowrank.networks import ImageShape, NetworkSettings
from lowrank.training import use_channels_last
from lowrank.utils import exit_with_parent, write_text
from sweeps.records import STEP_TIMES_FILE, read_step_times

WARMUP_STEPS, TIMED_STEPS = 2, 5  # the fastest of the timed steps counts
LONG_SECONDS = 1.0  # three steps that take this long together are enough: long steps differ little


class StepTimer:
    """Measures steps (forward, backward, update) on a batch of random numbers.

    It uses the GPU, or one thread of the CPU where there is none.

    Args:
        image_shape: channels, height and width.
        classes: of the data set.
        batch: images of a batch.
    """

    def __init__(self, image_shape: ImageShape, classes: int, batch: int):
        self.image_shape, self.classes, self.batch = image_shape, classes, batch
        self._times: dict[str, float] = {}
        self._path: Path | None = None
        self._process: ProcessPoolExecutor | None = None

    @cached_property
    def device(self) -> str:
        """Where steps are measured; a study without a budget of time never looks for a GPU."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def use_folder(self, folder: Path) -> None:
        """Keep the measured times in a study's folder, and take over those that it has.

        Args:
            folder: of the study; it may be missing yet.
        """
        self._path = folder / STEP_TIMES_FILE
        if self._path.exists():
            self._times = {**self._times, **read_step_times(self._path)}
        self._write()

    def milliseconds(self, network: NetworkSettings, plan: NetworkPlan, sized: SizedMethod) -> float:
        """Measure the step of a network, once for all settings that build the same one.

        Args:
            network: the network.
            plan: of the network.
            sized: what it is built with.

        Returns:
            Milliseconds of the fastest step.
        """
        built = json.dumps([network.model_dump(mode="json"), plan.signature(sized), self.batch, self.device])
        key = hashlib.sha256(built.encode()).hexdigest()[:16]
        if key not in self._times:
            self._times[key] = self.measure(network, plan, sized)
            self._write()
        return self._times[key]

    def _write(self) -> None:
        if self._path is not None and self._path.parent.is_dir() and self._times:
            write_text(self._path, json.dumps(self._times, indent=1))

    def measure(self, network: NetworkSettings, plan: NetworkPlan, sized: SizedMethod) -> float:
        """Measure the step of a network, whether or not it was measured before.

        Args:
            network: the network.
            plan: of the network.
            sized: what it is built with.

        Returns:
            Milliseconds of the fastest step.

        Raises:
            RuntimeError: the step fails, e.g. for want of memory; BrokenProcessPool if it ends its process.
            MemoryError: the memory of the machine is not enough.
        """
        task = (network, plan, sized, self.image_shape, self.classes, self.batch, self.device)
        return measure_step_time(*task) if self.device == "cpu" else self._measure_apart(*task)

    def _measure_apart(self, *task: Any) -> float:
        """Measure in another process, which is used again as long as no step fails in it."""
        try:
            return self._submit(task)
        except BrokenProcessPool:  # it also ends with the thread that has started it
            return self._submit(task)

    def _submit(self, task: tuple[Any, ...]) -> float:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._process = ProcessPoolExecutor(1, context, exit_with_parent, (os.getpid(),))
        try:
            return self._process.submit(measure_step_time, *task).result()
        except Exception:  # after an error of CUDA the process is of no use
            self._process.shutdown(wait=False)
            self._process = None
            raise


def measure_step_time(
    network: NetworkSettings, plan: NetworkPlan, sized: SizedMethod, image_shape: ImageShape, classes: int, batch: int,
    device: str,
) -> float:  # fmt: skip
    """Measure the step of a network in this process, by one thread where it is measured on a CPU.

    Args:
        network: the network.
        plan: of the network.
        sized: what it is built with.
        image_shape: channels, height and width.
        classes: of the data set.
        batch: images of a batch.
        device: cpu or cuda.

    Returns:
        Milliseconds of the fastest step.
    """
    student = build_student(network, plan, sized, image_shape, classes, seed=0).to(device)
    use_channels_last(student)
    images = torch.randn(batch, *image_shape, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, fused=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: list[float] = []
        while len(times) < WARMUP_STEPS + TIMED_STEPS and (len(times) < 3 or sum(times) < LONG_SECONDS):
            times.append(_step(student, optimizer, images, labels))
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(times[min(WARMUP_STEPS, len(times) - 1) :])


def _step(
    student: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> float:
    start = time.perf_counter()
    functional.cross_entropy(student(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
