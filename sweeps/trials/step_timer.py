"""The measured time of a training step, for budgets of it: on the driver's own machine, once for each network.

A measured time is no arithmetic: it says what this machine does, it is not monotone in size, and two measurements
differ. So a network is measured once in the life of a study (the record lies beside the journal, and a resumed study
believes it), and a budget of time refuses networks instead of solving them.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch
from torch.nn import functional

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import build_student
from lowrank.networks.images import ImageShape
from lowrank.networks.registry import NetworkSettings
from lowrank.utils.atomic_write import write_text

STEP_TIMES_FILE = "step_times.json"
WARM, TIMED = 2, 5  # steps that are not counted, and those of which the fastest is taken


class StepTimer:
    """Measures steps (forward, backward, update) on one batch of random numbers, on one thread or the GPU."""

    def __init__(self, image_shape: ImageShape, classes: int, batch: int):
        self.image_shape, self.classes, self.batch = image_shape, classes, batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._known: dict[str, float] = {}
        self._path: Path | None = None

    def use_folder(self, folder: Path) -> None:
        """Remember measurements in the study's folder, beginning with those that are there."""
        self._path = folder / STEP_TIMES_FILE
        if self._path.exists():
            self._known = {**self._known, **json.loads(self._path.read_text())}
        self._write()

    def milliseconds(self, network: NetworkSettings, plan: NetworkPlan, sized: SizedMethod) -> float:
        """The fastest of some steps, in milliseconds, measured once for networks that are built alike."""
        built = json.dumps([network.model_dump(mode="json"), plan.signature(sized), self.batch, self.device])
        key = hashlib.sha256(built.encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self._measure(network, plan, sized)
            self._write()
        return self._known[key]

    def _write(self) -> None:
        if self._path is not None and self._path.parent.is_dir() and self._known:
            write_text(self._path, json.dumps(self._known, indent=1))

    def _measure(self, network: NetworkSettings, plan: NetworkPlan, sized: SizedMethod) -> float:
        student = build_student(network, plan, sized, self.image_shape, self.classes, seed=0).to(self.device)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(self.batch, *self.image_shape, device=self.device)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, fused=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            times = [_step(student, optimizer, images, labels) for _ in range(WARM + TIMED)]
        finally:
            torch.set_num_threads(threads)
        return 1000 * min(times[WARM:])


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
