"""Training steps on a GPU as replays of one recorded graph: no return to Python between kernels.

A small student's eager step is bound by the launches of its kernels, not by the card. Here forward, backward and
optimizer of one step are recorded once (a CUDA graph) on memory that stays, and replayed for every batch. What the
step reads (images, labels, what a teacher says, the rate) is copied there first; what it says (losses, predictions) is
read from there afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank.data import Batch
from lowrank.distill import Signals
from lowrank.measures import TrainMeter
from lowrank.optim import SHARE

if TYPE_CHECKING:
    from lowrank.training import Trainer

WARM_UPS = 3  # steps before recording: lazily made buffers and the search for the fastest kernels must be over


class CapturedSteps:
    """One trainer's step; recorded at the first batch, and anew after `forget`.

    `record` False runs the very same step without a graph, which shows on a CPU that the two are one.
    """

    def __init__(self, trainer: Trainer, *, record: bool = True):
        self._trainer, self._record = trainer, record
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = torch.empty(0)
        self._signals: Signals | None = None
        self._rates: list[Tensor] = []
        self._norms = torch.empty(0)
        self._meter = TrainMeter(1, trainer.objective.names, trainer.device)

    def forget(self) -> None:
        """The next step is recorded anew: tensors of the trainer were replaced."""
        self._graph = None
        self._images = torch.empty(0)

    def step(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Train on `batch`; losses and errors go into `meter` as those of this epoch's `step`."""
        images, labels, indices = batch
        signals = self._trainer.objective.ask(images, indices, self._trainer.slot)
        if self._images.shape != images.shape:
            self._prepare(images, labels, signals)
        self._fill(images, labels, signals)
        self._set_rate(step)
        if self._graph is None:
            self._body()
        else:
            self._graph.replay()
        meter.take(step, self._meter)
        self._trainer.gradient_meter.take(step, self._norms)
        self._trainer.after_update(step)

    def _fill(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        self._images.copy_(images)
        self._labels.copy_(labels)
        if signals is not None and self._signals is not None:
            torch._foreach_copy_(self._signals.tensors, signals.tensors)

    def _set_rate(self, step: int) -> None:
        rate = self._trainer.rate(step)
        for group, tensor in zip(self._trainer.optimizer.param_groups, self._rates, strict=True):
            tensor.fill_(rate * group[SHARE])

    def _prepare(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        """Lay out the memory for batches like this one and record the step; the trainer's state stays as it is."""
        self.forget()
        self._images, self._labels = torch.empty_like(images), labels.clone()
        self._signals = None if signals is None else signals.empty_like()
        self._fill(images, labels, signals)
        groups = self._trainer.optimizer.param_groups
        self._rates = [torch.zeros((), device=images.device) for _ in groups]
        for group, tensor in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
        self._make_momentum()
        if not self._record:
            return
        kept = [(tensor, tensor.clone()) for tensor in self._trainer.live_tensors()]
        random = torch.cuda.get_rng_state(images.device)
        self._record_step()
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        torch.cuda.set_rng_state(random, images.device)

    def _make_momentum(self) -> None:
        """Momentum from zeros is momentum from the first gradient; a recorded step cannot tell first from later."""
        optimizer = self._trainer.optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] > 0 else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    optimizer.state[parameter]["momentum_buffer"] = buffer

    def _record_step(self) -> None:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._body()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._body()
        self._graph = graph

    def _body(self) -> None:
        """One step from what lies in memory; the meter is of this step alone."""
        trainer = self._trainer
        self._meter.clear()
        trainer.backward(0, self._images, self._labels, self._signals, self._meter)
        self._norms = trainer.gradient_meter.norms()
        trainer.apply_gradients()
