"""Training steps on a GPU as replays of one recorded graph: no return to Python between kernels.

Three engines: `plain` is the loop as it stands in lowrank.training.trainer; `captured` replays it; `compiled` does
the same
with the forward pass, the loss and their backward pass compiled (lowrank.training.engine.compiled_forward), around
which the rebuild of weights and the optimizer stay as they are.

A small student's eager step is bound by the launches of its kernels, not by the card. Here forward, backward and
optimizer of one step are recorded once (a CUDA graph) on memory that stays, and replayed for every batch. What the
step reads (images, labels, what a teacher says, the rate) is copied there first; what it says (losses, predictions) is
read from there afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from lowrank.data import Batch
from lowrank.distillation.teacher import Signals
from lowrank.kernels.dispatch import kernel_errors
from lowrank.training.engine.compiled_forward import CompiledObjective, NotCompilableError, compile_once
from lowrank.training.engine.rng import random_state, set_random_state
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import TrainMeter
from lowrank.training.objective import Forward
from lowrank.training.optimizer import LR_MULTIPLIER
from lowrank.training.recipe import Engine, Recipe
from lowrank.training.timers import COMPILE, PhaseTimers

# Steps of a trial from which on compilation is worth it: ResNet-9's, once a network and machine, is paid back by three
# such trials, as a study has them, or by one of 13,000 steps
LONG_TRIAL_STEPS = 5000
WARM_UP_STEPS = 3  # steps before recording: lazily made buffers and the search for the fastest kernels must be over


_NOT_COMPILED = (NotCompilableError, TorchDynamoException, FailOnRecompileLimitHit)
_WARNED: set[str] = set()  # by this process


def choose_engine(recipe: Recipe, steps: int, on_gpu: bool) -> Engine:
    """How a trial of so many steps an epoch is stepped: what its recipe asks for, and what its `auto` means here."""
    if recipe.engine != "auto":
        return recipe.engine
    if not on_gpu:
        return "plain"
    return "compiled" if recipe.epochs * steps >= LONG_TRIAL_STEPS else "captured"


def make_captured_epoch(
    train_step: TrainStep, timers: PhaseTimers, notify: Callable[[str], None]
) -> CapturedEpoch | None:
    """The steps of the engine that the trainer's recipe asks for; None for the plain loop.

    On a CPU nothing is recorded. float16 skips steps, which no recorded step can; nor is recorded what several
    processes do together.
    """
    on_gpu = train_step.device.type == "cuda"
    engine = choose_engine(train_step.recipe, train_step.steps_per_epoch, on_gpu)
    if engine == "plain" or train_step.scaler is not None or train_step.group is not None:
        return None
    return CapturedEpoch(train_step, timers, record=on_gpu, compiled=engine == "compiled", notify=notify)


class CapturedEpoch:
    """One trainer's step; recorded at the first batch, and anew after `forget`.

    `record` False runs the very same step without a graph, which shows on a CPU that the two are one.
    """

    def __init__(
        self, train_step: TrainStep, timers: PhaseTimers, *, record: bool = True, compiled: bool = False,
        notify: Callable[[str], None] = warnings.warn,
    ):  # fmt: skip
        self._train_step, self._timers, self._record, self._notify = train_step, timers, record, notify
        self._compiled = compiled
        self._reloads = train_step.reloads
        self._forward: Forward = train_step.objective
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = torch.empty(0)
        self._signals: Signals | None = None
        self._rates: list[Tensor] = []
        self._norms = torch.empty(0)
        self._meter = TrainMeter(1, train_step.objective.names, train_step.device)

    def forget(self) -> None:
        """The next step is recorded anew: tensors of the trainer were replaced."""
        self._graph = None
        self._images = torch.empty(0)

    def step(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Train on `batch`; losses and errors go into `meter` as those of this epoch's `step`."""
        images, labels, indices = batch
        signals = self._train_step.ask_teacher(images, indices)
        if self._images.shape != images.shape or self._reloads != self._train_step.reloads:
            with self._timers.timed(COMPILE):
                self._prepare(images, labels, signals)
        self._fill(images, labels, signals)
        self._set_rate(step)
        if self._graph is None:
            self._body()
        else:
            self._graph.replay()
        meter.take(step, self._meter)
        self._train_step.gradient_meter.take(step, self._norms)
        self._train_step.after_update(step)

    def _fill(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        self._images.copy_(images)
        self._labels.copy_(labels)
        if signals is not None and self._signals is not None:
            torch._foreach_copy_(self._signals.tensors, signals.tensors)

    def _set_rate(self, step: int) -> None:
        rate = self._train_step.rate(step)
        for group, tensor in zip(self._train_step.optimizer.param_groups, self._rates, strict=True):
            tensor.fill_(rate * group[LR_MULTIPLIER])

    def _prepare(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        """Lay out the memory for batches like this one and record the step; the trainer's state stays as it is."""
        self.forget()
        self._reloads = self._train_step.reloads
        self._images, self._labels = torch.empty_like(images), labels.clone()
        self._signals = None if signals is None else signals.empty_like()
        self._fill(images, labels, signals)
        groups = self._train_step.optimizer.param_groups
        self._rates = [torch.zeros((), device=images.device) for _ in groups]
        for group, tensor in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
        self._make_momentum()
        if self._compiled:
            self._compile()
        if self._record:
            with self._undone():
                self._record_step()

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """What steps within do to the trainer is taken back."""
        device = self._train_step.device
        kept = [(tensor, tensor.clone()) for tensor in self._train_step.live_tensors()]
        random = random_state(device)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
            set_random_state(random, device)

    def _compile(self) -> None:
        """Have the compiled forward pass ready; where there can be none, say why and go on with the plain one."""
        train_step = self._train_step
        dtype = None if train_step.dtype is None else (train_step.device.type, train_step.dtype)
        objective = train_step.objective
        try:
            taps = () if objective.taps is None else objective.taps.names
            forward = CompiledObjective(train_step.network, objective.loss, taps, dtype)
            self._forward = forward
            with compile_once(forward.trunk.digest(self._images)), self._undone():
                self._body()
        except (*_NOT_COMPILED, *kernel_errors()) as error:  # type: ignore[misc]  # all of them are exceptions
            self._compiled, self._forward = False, objective
            cause = getattr(error, "inner_exception", error)
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            if reason not in _WARNED:
                _WARNED.add(reason)
                self._notify(f"training is not compiled, and so is slower: {reason}")

    def _make_momentum(self) -> None:
        """Momentum from zeros is momentum from the first gradient; a recorded step cannot tell first from later."""
        optimizer = self._train_step.optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] > 0 else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    optimizer.state[parameter]["momentum_buffer"] = buffer

    def _record_step(self) -> None:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._body()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._body()
        self._graph = graph

    def _body(self) -> None:
        """One step from what lies in memory; the meter is of this step alone."""
        train_step = self._train_step
        self._meter.clear()
        train_step.backward(0, self._images, self._labels, self._signals, self._meter, self._forward)
        self._norms = train_step.gradient_meter.norms()
        train_step.apply_gradients()
