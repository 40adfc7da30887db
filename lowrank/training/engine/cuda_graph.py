"""Training steps on a GPU as replays of one recorded step (a CUDA graph): no return to Python between kernels.

A recipe names one of three engines:

* `plain`: the step of lowrank.training.engine.step, run as it is.
* `captured`: the same step, recorded once and replayed for every batch.
* `compiled`: likewise, with the forward pass, the loss and their backward pass compiled
  (lowrank.training.engine.compiled_forward). The rebuild of weights and the optimizer stay as they are.

The eager step of a small student is bound by kernel launches, not by the GPU's arithmetic. A recorded step reads its
batch, the teacher's signals and the learning rates from buffers that stay at one address; they are copied there before
each replay. For variational layers so are the images' indices, the keys of the epoch's random numbers and the weight of
the divergence. Losses and errors are read from such buffers afterwards.

A step is recorded only where `lowrank.training.engine.recording` finds nothing that would be frozen; networks of this
project need not be watched for that. Then the step is taken some times from the same weights and random numbers,
recorded, and replayed once; where losses or gradients differ by more than rounding, the steps run as they are. All of
this is undone before training begins.

Of several processes that train together each records its own step, with all that they exchange inside. They compile one
after another, each alone, so that the first one's code on disk serves the others, and go on without graph or compiled
code where one of them cannot have it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank.data import Batch
from lowrank.distillation import BatchSignals
from lowrank.kernels import compile_side_by_side, suspended_exchange
from lowrank.training.engine.compiled_forward import CompiledObjective, compile_once
from lowrank.training.engine.compiler_import import begin_compiler_import
from lowrank.training.engine.compiler_watch import watch_compiler
from lowrank.training.engine.host_state import attribute_tensors, undone_attributes
from lowrank.training.engine.notices import warn_once
from lowrank.training.engine.precision import keep_float32_products
from lowrank.training.engine.recording import (
    CudaGraphRecorder,
    HostState,
    Recorder,
    Run,
    attributes,
    changed_attribute,
    consists_of_known_code,
    recording_obstacle,
)
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import TrainMeter
from lowrank.training.objective import Forward
from lowrank.training.optimizer import LR_MULTIPLIER
from lowrank.training.recipe import Engine, Recipe
from lowrank.training.timers import COMPILE, PhaseTimers
from lowrank.utils import first_line, keep_modes

# A trial of this many steps is worth compiling: ResNet-9 is compiled once for each machine, and four such trials of a
# study save as much time as that takes (docs/background/engine.md: 67 s, and 5.65 - 1.94 ms for each step)
LONG_TRIAL_STEPS = 5000
PROBE_IMAGES = 8  # on which a network is watched before its step is recorded
WARM_UP_STEPS = 3  # before recording: buffers are made at the first step, and cuDNN tries its kernels
LOSS_TOLERANCE = 0.02  # of the loss; sums of bfloat16 may be taken in another order
GRADIENT_TOLERANCE = 0.1  # of the length of a parameter's gradient; that of a path that is dropped is zero
LEAST_GRADIENT = 0.05  # of the root mean square of all gradients: a bias before a norm has rounding alone


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
        None for the plain engine. It is also taken for float16, whose skipped steps cannot be recorded. A loss with
        class weights and variational layers are recorded, but not compiled.
    """
    on_gpu = train_step.device.type == "cuda"
    engine = choose_engine(train_step.recipe, train_step.steps_per_epoch, on_gpu)
    if engine == "plain" or train_step.scaler is not None:
        return None
    can_compile = train_step.recipe.class_weights == "none" and train_step.objective.variational is None
    compiled = engine == "compiled" and can_compile
    if compiled:
        begin_compiler_import()
    recorder = CudaGraphRecorder(train_step.device, shared=train_step.group is not None) if on_gpu else None
    return CapturedEpoch(train_step, timers, recorder=recorder, compiled=compiled, notify=notify)


class CapturedEpoch:
    """Takes the steps of an epoch by replaying one recorded step.

    It is recorded at the first batch, when the shape of the batches changes, and after `forget`.

    Attributes:
        compiled: whether the forward pass and the loss are compiled, or will be at the first batch.
        recorder: records the step; None where it runs without, or cannot be recorded.
        replay: repeats the recorded step; None where none is recorded.
    """

    def __init__(
        self, train_step: TrainStep, timers: PhaseTimers, *, recorder: Recorder | None, compiled: bool = False,
        notify: Callable[[str], None] = warnings.warn,
    ):  # fmt: skip
        """Prepare; nothing is recorded before the first step.

        Args:
            train_step: what is recorded.
            timers: count the time of compiling and recording.
            recorder: records the step; None runs the same step without, as on a CPU.
            compiled: compile the forward pass and the loss, if that is possible.
            notify: is called with a warning if it is not, or if the step cannot be recorded.
        """
        self._train_step, self._timers, self.recorder, self._notify = train_step, timers, recorder, notify
        self.compiled = compiled
        self.replay: Run | None = None
        self._forward: Forward = train_step.objective
        self._attributes: HostState = {}
        self._held: list[Tensor] = []  # that Python may give up, but a replay reads
        self._images = self._labels = self._indices = torch.empty(0)
        self._signals: BatchSignals | None = None
        self._rates: list[Tensor] = []
        self._norms = torch.empty(0)
        self._meter = TrainMeter(1, train_step.objective.names, train_step.device)

    def forget(self) -> None:
        """Free the recorded step.

        To be called when tensors of the training were replaced by others.
        """
        self.replay, self._held = None, []
        self._images = torch.empty(0)

    def begin_epoch(self) -> None:
        """Give the recorded step up where the network's Python code has changed attributes since it was recorded.

        To be called after code of the network has run between two epochs, such as its `set_drop_path`.
        """
        if self.replay is None:
            return
        change = changed_attribute(self._attributes, attributes(self._train_step.network))
        if change is not None:
            self.compiled, self._forward = False, self._train_step.objective
            self._give_up_recording(f"the network {change} between epochs")

    def step(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Train on one batch.

        Args:
            step: counts from 0 within the epoch.
            batch: images, labels and indices.
            meter: takes in losses and errors as those of `step`.
        """
        signals = self._train_step.ask_teacher(batch[0], batch[2])
        if self._images.shape != batch[0].shape or not self._takes(signals):
            with self._timers.timed(COMPILE):
                self._prepare(step, batch, signals)
        self._fill(step, batch, signals)
        self._set_learning_rates(step)
        if self.replay is None:
            self._run_step()
        else:
            self.replay()
        meter.copy_step(step, self._meter)
        self._train_step.gradient_meter.add_norms(step, self._norms)
        self._train_step.after_update(step)

    def _takes(self, signals: BatchSignals | None) -> bool:
        """Return whether the buffers take these signals; not after a cache that cannot be read any more, for one."""
        return self._signals.accepts(signals) if self._signals is not None and signals is not None else True

    def _fill(self, step: int, batch: Batch, signals: BatchSignals | None) -> None:
        images, labels, indices = batch
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._train_step.objective.variational is not None:
            self._indices.copy_(indices)
            self._train_step.begin_noise(step, self._indices)
        if signals is not None and self._signals is not None:
            self._signals.copy_(signals)

    def _set_learning_rates(self, step: int) -> None:
        rate = self._train_step.learning_rate(step)
        for group, tensor in zip(self._train_step.optimizer.param_groups, self._rates, strict=True):
            tensor.fill_(rate * group[LR_MULTIPLIER])

    def _prepare(self, step: int, batch: Batch, signals: BatchSignals | None) -> None:
        """Allocate the buffers for batches like this one, compile and record; the state of the training stays."""
        self.forget()
        images, labels, indices = batch
        self._images, self._labels = torch.empty_like(images), labels.clone()
        self._indices = torch.empty_like(indices, device=images.device)
        self._signals = None if signals is None else signals.empty_like()
        self._fill(step, batch, signals)
        groups = self._train_step.optimizer.param_groups
        self._rates = [torch.zeros((), device=images.device) for _ in groups]
        for group, tensor in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
        is_known = consists_of_known_code(self._train_step.network)
        if not is_known and (self.recorder is not None or self.compiled):
            with undone_attributes(self._train_step.network):
                self._watch(images, labels, signals)
        with undone_attributes(self._train_step.network) as undo:
            self._make_momentum()
            if self.compiled:
                if not is_known:
                    with self._train_step.undone(), usual_kernels():
                        self._run_step()  # what the network makes at its first pass is there before it is copied
                self._compile(is_known=is_known)
            if self.recorder is not None:
                self._record(self.recorder)
            if self.replay is not None:  # it reads what the network has made at the first pass, and so do evaluations
                undo.keep_made, self._held = True, attribute_tensors(self._train_step.network)
        self._attributes = attributes(self._train_step.network)

    def _watch(self, images: Tensor, labels: Tensor, signals: BatchSignals | None) -> None:
        """Look for what a recorded step would freeze; where there is something, neither record nor compile.

        Compiled code runs a copy of the network, so attributes that Python changes would change there.
        """
        train_step = self._train_step
        parts = -(-len(images) // PROBE_IMAGES)
        few = None if signals is None else signals.cut(parts)[0].gather()

        def run() -> None:
            some = slice(len(labels.tensor_split(parts)[0]))
            if train_step.objective.variational is not None:
                train_step.objective.variational.noise.select(self._indices[some])
            _, loss, _ = train_step.objective(images[some], labels[some], few, train_step.autocast)
            loss.backward()
            train_step.optimizer.zero_grad(set_to_none=True)

        def evaluate() -> None:
            with keep_modes(train_step.network), torch.no_grad(), train_step.autocast():
                train_step.network.eval()(images[: len(labels.tensor_split(parts)[0])])

        obstacle: str | None = None
        with self._train_step.undone(), suspended_exchange(), usual_kernels():
            try:
                obstacle = recording_obstacle(train_step.network, run, self.recorder, evaluate)
            except RuntimeError as error:
                if must_end(error):
                    raise
                # So few images do not suit this network; what is wrong with all of them the step itself will raise
        group = train_step.group
        if group is not None and not group.all_agree(obstacle is None, train_step.device):
            obstacle = obstacle or "another process cannot record them"
        if obstacle is not None:
            self.recorder, self.compiled = None, False
            warn_once(self._notify, f"training steps run one by one, and so are slower: {obstacle}")

    def _compile(self, *, is_known: bool) -> None:
        """Compile the forward pass and the loss; if that is not possible, warn and go on without.

        Args:
            is_known: whether the network consists of known code, so that no result of a kernel is an index.
        """
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
            alone, undone = suspended_exchange(), self._train_step.undone()
            with (
                compile_once(digest, self._notify) as on_disk, watch_compiler(), alone, undone,
                keep_float32_products(),
            ):  # fmt: skip
                if not on_disk and is_known and train_step.device.type == "cuda":
                    with self._train_step.undone():
                        compile_side_by_side(self._run_step)
                self._run_step()
            self._forward = self._guarded(forward)
        except Exception as error:  # compilers raise anything; an error of the network comes again without them
            if must_end(error):
                raise
            self._give_up_compiling(error)
        if train_step.group is not None and not train_step.group.all_agree(self.compiled, train_step.device):
            # Graphs that differ would exchange in different orders
            if self.compiled:
                warn_once(self._notify, "training is not compiled, and so is slower: another process cannot compile it")
            self.compiled = False
        if not self.compiled:
            self._forward = objective

    def _guarded(self, compiled: CompiledObjective) -> Forward:
        """Wrap a compiled forward pass: where a later call would have to compile again and cannot, go on without."""
        # Importing the compiler takes as long as torch itself, and only what is compiled needs it
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        def forward(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            try:
                return compiled(*arguments, **options)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                if self._train_step.group is not None:
                    raise  # none of several processes may go on alone
                self._give_up_compiling(error)
                self._forward = self._train_step.objective
                return self._forward(*arguments, **options)

        return forward

    def _give_up_compiling(self, error: Exception) -> None:
        self.compiled = False
        reason = compiler_reason(error)
        warn_once(self._notify, f"training is not compiled, and so is slower: {reason}", reason)

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

    def _record(self, recorder: Recorder) -> None:
        """Record the step and compare a replay with the plain step; the state of the training stays.

        Where it cannot be recorded, plain steps from the same state differ, or a replay from them, the step runs as it
        is. Several processes agree after each part: none may exchange with others that do not.
        """
        outcomes: list[_Outcome] = []  # the first one alone; each needs as much memory as the gradients
        differences: list[str] = []

        def run_plain() -> None:
            for _ in range(WARM_UP_STEPS):
                with self._train_step.undone():
                    self._run_step()
                    self._compare(outcomes, differences)

        recorder.warm_up(run_plain)
        if not self._agree(None if not differences else f"the same step run twice differs: {differences[0]}"):
            return
        replay, reason = None, None
        with self._train_step.undone():
            try:
                replay = recorder.record(self._run_step)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = first_line(error)
        if not self._agree(reason) or replay is None:
            return
        with self._train_step.undone():
            replay()
            self._compare(outcomes, differences)
        different = f"a replayed step differs from the same step run plain: {differences[0]}" if differences else None
        if self._agree(different):
            self.replay = replay

    def _agree(self, obstacle: str | None) -> bool:
        """Give up recording where this process or another one has an obstacle; returns whether none has."""
        group = self._train_step.group
        fine = obstacle is None if group is None else group.all_agree(obstacle is None, self._train_step.device)
        if not fine:
            self._give_up_recording(obstacle or "another process cannot record them")
        return fine

    def _compare(self, outcomes: list[_Outcome], differences: list[str]) -> None:
        """Keep the outcome of the last step if it is the first; else note how it differs from that."""
        outcome = _Outcome(self._meter.losses, [parameter.grad for parameter in self._train_step.network.parameters()])
        if not outcomes:
            outcomes.append(outcome.copy())
        elif (difference := outcomes[0].difference(outcome)) is not None:
            differences.append(difference)

    def _give_up_recording(self, reason: str) -> None:
        self.replay = self.recorder = None
        warn_once(self._notify, f"training steps are not recorded, and so are slower: {reason}", reason)

    def _run_step(self) -> None:
        """Run one step on what is in the buffers; the meter then holds this step alone."""
        train_step = self._train_step
        self._meter.clear()
        train_step.backward(0, self._images, self._labels, self._signals, self._meter, self._forward)
        self._norms = train_step.gradient_meter.norms()
        train_step.apply_gradients()


def compiler_reason(error: Exception) -> str:
    """Name why something is not compiled.

    Args:
        error: that the compiler raised.

    Returns:
        The first line of its cause.
    """
    return first_line(getattr(error, "inner_exception", error))


def must_end(error: Exception) -> bool:
    """Say whether training cannot go on after an error.

    Args:
        error: of a recording or a compiler.

    Returns:
        Whether memory ran out, or the device is lost.
    """
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)


@contextmanager
def usual_kernels() -> Iterator[None]:
    """Let cuDNN try no kernels inside `with`: batches of this size do not come again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class _Outcome:
    """What a step leaves: its loss (1,), and the gradient of each parameter, None for one that takes no part."""

    loss: Tensor
    gradients: list[Tensor | None]

    def copy(self) -> _Outcome:
        """Return the same in memory of its own."""
        return _Outcome(self.loss.clone(), [None if one is None else one.clone() for one in self.gradients])

    def difference(self, other: _Outcome) -> str | None:
        """Compare with another step from the same state; waits for the device.

        Args:
            other: the other step.

        Returns:
            One clause for a message; None where they differ by no more than rounding, or neither loss is finite.
        """
        if [one is None for one in self.gradients] != [one is None for one in other.gradients]:
            return "other parameters have gradients"
        pairs = [
            (a, b) for a, b in zip(self.gradients, other.gradients, strict=True) if a is not None and b is not None
        ]
        lengths = [torch.linalg.vector_norm(a.float()) for a, _ in pairs]
        distances = [torch.linalg.vector_norm(a.float() - b.float()) for a, b in pairs]
        numbers = torch.stack([self.loss[0], other.loss[0], *lengths, *distances]).cpu()
        first, second = numbers[:2].tolist()
        if not math.isfinite(first) and not math.isfinite(second):
            return None
        if not abs(first - second) <= LOSS_TOLERANCE * abs(first):
            return f"the loss is {first:.6g} and {second:.6g}"
        length, distance = numbers[2:].chunk(2)
        counts = torch.tensor([float(a.numel()) for a, _ in pairs], device="cpu")
        rounding = LEAST_GRADIENT * (length.square().sum() / counts.sum()).sqrt() * counts.sqrt()
        return "gradients" if bool((distance > GRADIENT_TOLERANCE * length + rounding).any()) else None
