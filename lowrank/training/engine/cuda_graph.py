"""Training steps on a GPU as replays of one recorded step (a CUDA graph): no return to Python between kernels.

A recipe names one of three engines:

* `plain`: the step of lowrank.training.engine.step, run as it is.
* `captured`: the same step, recorded once and replayed for every batch.
* `compiled`: likewise, with the forward pass, the loss and their backward pass compiled
  (lowrank.training.engine.compiled_forward). The rebuild of weights and the optimizer stay as they are.

The eager step of a small student is bound by kernel launches, not by the GPU's arithmetic. A recorded step reads its
batch, the teacher's signals and the learning rates from buffers that stay at one address; they are copied there before
each replay. Losses and errors are read from such buffers afterwards.

Of several processes that train together each records its own step, with all that they exchange inside. They compile one
after another, each alone, so that the first one's code on disk serves the others, and go on without graph or compiled
code where one of them cannot have it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from lowrank.data import Batch
from lowrank.distillation import Signals
from lowrank.kernels import kernel_errors, suspended_exchange
from lowrank.training.engine.compiled_forward import CompiledObjective, NotCompilableError, compile_once
from lowrank.training.engine.compiler_watch import watch_compiler
from lowrank.training.engine.precision import keep_float32_products
from lowrank.training.engine.rng import random_state, set_random_state
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import TrainMeter
from lowrank.training.objective import Forward
from lowrank.training.optimizer import LR_MULTIPLIER
from lowrank.training.recipe import Engine, Recipe
from lowrank.training.timers import COMPILE, PhaseTimers
from lowrank.utils import first_line

# A trial of this many steps is worth compiling: ResNet-9 is compiled once for each machine, and three such trials of a
# study, or one of 13,000 steps, save as much time as that takes
LONG_TRIAL_STEPS = 5000
WARM_UP_STEPS = 3  # before recording: buffers are made at the first step, and cuDNN tries its kernels


# The compiler's cache on disk may be full or not writable: OSError
_NOT_COMPILED = (NotCompilableError, TorchDynamoException, FailOnRecompileLimitHit, OSError)
_WARNED: set[str] = set()  # reasons that this process has given


def choose_engine(recipe: Recipe, steps_per_epoch: int, on_gpu: bool) -> Engine:
    """Choose the engine of a trial.

    Args:
        recipe: its engine is taken, unless that is "auto".
        steps_per_epoch: decides, with the recipe's epochs, whether `auto` compiles.
        on_gpu: elsewhere `auto` is "plain".

    Returns:
        "compiled", "captured" or "plain".
    """
    if recipe.engine != "auto":
        return recipe.engine
    if not on_gpu:
        return "plain"
    return "compiled" if recipe.epochs * steps_per_epoch >= LONG_TRIAL_STEPS else "captured"


def make_captured_epoch(
    train_step: TrainStep, timers: PhaseTimers, notify: Callable[[str], None]
) -> CapturedEpoch | None:
    """Make the engine that the recipe of a step asks for.

    Args:
        train_step: what is recorded.
        timers: count the time of compiling and recording.
        notify: is called with a warning if the step cannot be compiled.

    Returns:
        None for the plain engine. It is also taken for float16, whose skipped steps cannot be recorded, and for
        variational layers, whose noise follows the batch's indices. A loss with class weights is recorded, but not
        compiled.
    """
    on_gpu = train_step.device.type == "cuda"
    engine = choose_engine(train_step.recipe, train_step.steps_per_epoch, on_gpu)
    if engine == "plain" or train_step.scaler is not None:
        return None
    if train_step.objective.variational is not None:
        return None
    compiled = engine == "compiled" and train_step.recipe.class_weights == "none"
    return CapturedEpoch(train_step, timers, record=on_gpu, compiled=compiled, notify=notify)


class CapturedEpoch:
    """Takes the steps of an epoch by replaying one recorded step.

    It is recorded at the first batch, when the shape of the batches changes, and after `forget`.

    Attributes:
        compiled: whether the forward pass and the loss are compiled, or will be at the first batch.
    """

    def __init__(
        self, train_step: TrainStep, timers: PhaseTimers, *, record: bool = True, compiled: bool = False,
        notify: Callable[[str], None] = warnings.warn,
    ):  # fmt: skip
        """Prepare; nothing is recorded before the first step.

        Args:
            train_step: what is recorded.
            timers: count the time of compiling and recording.
            record: False runs the same step without a graph, so that a CPU can test it.
            compiled: compile the forward pass and the loss, if that is possible.
            notify: is called with a warning if it is not.
        """
        self._train_step, self._timers, self._record, self._notify = train_step, timers, record, notify
        self.compiled = compiled
        self._forward: Forward = train_step.objective
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = torch.empty(0)
        self._signals: Signals | None = None
        self._rates: list[Tensor] = []
        self._norms = torch.empty(0)
        self._meter = TrainMeter(1, train_step.objective.names, train_step.device)

    def forget(self) -> None:
        """Free the recorded step.

        To be called when tensors of the training were replaced by others.
        """
        self._graph = None
        self._images = torch.empty(0)

    def step(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Train on one batch.

        Args:
            step: counts from 0 within the epoch.
            batch: images, labels and indices.
            meter: takes in losses and errors as those of `step`.
        """
        images, labels, indices = batch
        signals = self._train_step.ask_teacher(images, indices)
        if self._images.shape != images.shape:
            with self._timers.timed(COMPILE):
                self._prepare(images, labels, signals)
        self._fill(images, labels, signals)
        self._set_learning_rates(step)
        if self._graph is None:
            self._run_step()
        else:
            self._graph.replay()
        meter.copy_step(step, self._meter)
        self._train_step.gradient_meter.add_norms(step, self._norms)
        self._train_step.after_update(step)

    def _fill(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        self._images.copy_(images)
        self._labels.copy_(labels)
        if signals is not None and self._signals is not None:
            torch._foreach_copy_(self._signals.tensors, signals.tensors)

    def _set_learning_rates(self, step: int) -> None:
        rate = self._train_step.learning_rate(step)
        for group, tensor in zip(self._train_step.optimizer.param_groups, self._rates, strict=True):
            tensor.fill_(rate * group[LR_MULTIPLIER])

    def _prepare(self, images: Tensor, labels: Tensor, signals: Signals | None) -> None:
        """Allocate the buffers for batches like this one, compile and record; the state of the training stays."""
        self.forget()
        self._images, self._labels = torch.empty_like(images), labels.clone()
        self._signals = None if signals is None else signals.empty_like()
        self._fill(images, labels, signals)
        groups = self._train_step.optimizer.param_groups
        self._rates = [torch.zeros((), device=images.device) for _ in groups]
        for group, tensor in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
        self._make_momentum()
        if self.compiled:
            self._compile()
        if self._record:
            with self._undone():
                self._record_together()

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo what steps inside `with` do to weights, momentum and the random generators."""
        device = self._train_step.device
        copies = [(tensor, tensor.clone()) for tensor in self._train_step.live_tensors()]
        random = random_state(device)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in copies:
                    tensor.copy_(before)
            set_random_state(random, device)

    def _compile(self) -> None:
        """Compile the forward pass and the loss; if that is not possible, warn and go on without."""
        train_step = self._train_step
        dtype = None if train_step.dtype is None else (train_step.device.type, train_step.dtype)
        objective = train_step.objective
        try:
            taps = () if objective.taps is None else objective.taps.names
            processes = 1 if train_step.group is None else train_step.group.count
            forward = CompiledObjective(train_step.network, objective.loss, taps, dtype, processes)
            self._forward = forward
            digest = forward.compiled.digest(self._images)
            # While one process compiles the others wait for the lock, so it must not wait for them
            alone, undone = suspended_exchange(), self._undone()
            with compile_once(digest, self._notify), watch_compiler(), alone, undone, keep_float32_products():
                self._run_step()
        except (*_NOT_COMPILED, *kernel_errors()) as error:  # type: ignore[misc]  # all of them are exceptions
            self.compiled = False
            cause = getattr(error, "inner_exception", error)
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            self._warn_once(f"training is not compiled, and so is slower: {reason}", reason)
        if train_step.group is not None and not train_step.group.all_agree(self.compiled, train_step.device):
            # Graphs that differ would exchange in different orders
            if self.compiled:
                self._warn_once("training is not compiled, and so is slower: another process cannot compile it")
            self.compiled = False
        if not self.compiled:
            self._forward = objective

    def _warn_once(self, message: str, key: str | None = None) -> None:
        """Give a warning that this process has not given yet."""
        if (key or message) not in _WARNED:
            _WARNED.add(key or message)
            self._notify(message)

    def _make_momentum(self) -> None:
        """Start the momentum of SGD from zeros; AdamW has its slots from the start.

        This gives the same numbers as torch's own start from the first gradient, and a recorded step cannot tell the
        first step from later ones.
        """
        optimizer = self._train_step.optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("momentum", 0) > 0 else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    optimizer.state[parameter]["momentum_buffer"] = buffer

    def _record_together(self) -> None:
        """Record the step; where several processes train and one cannot record it, none does."""
        group = self._train_step.group
        if group is None:
            self._record_step()
            return
        try:
            self._record_step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a backend that cannot be recorded
            self._graph = None
            self._warn_once(f"training steps are not recorded, and so are slower: {first_line(error)}")
        if not group.all_agree(self._graph is not None, self._train_step.device):
            self._graph, self._record = None, False

    def _record_step(self) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._run_step()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # NCCL has threads that ask the device about earlier exchanges meanwhile
        mode = "global" if self._train_step.group is None else "thread_local"
        with torch.cuda.graph(graph, capture_error_mode=mode):
            self._run_step()
        self._graph = graph

    def _run_step(self) -> None:
        """Run one step on what is in the buffers; the meter then holds this step alone."""
        train_step = self._train_step
        self._meter.clear()
        train_step.backward(0, self._images, self._labels, self._signals, self._meter, self._forward)
        self._norms = train_step.gradient_meter.norms()
        train_step.apply_gradients()
