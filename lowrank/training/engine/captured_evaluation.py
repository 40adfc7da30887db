"""Evaluations on a GPU as replays of one recorded batch (a CUDA graph).

An evaluation runs the same forward pass for every batch of a split, with weights that do not change meanwhile. So three
parts are recorded once and replayed: the rebuild of all weights from their factors, once for an evaluation; the forward
pass; and the sums of losses and errors, both once for a batch. The last batch, with fewer images, is run in the
buffers of a full one, and only its own logits are counted. Nothing waits for the device before all batches are done.

A network's evaluation is recorded only where its training steps are, and compiled only where they are. Before the
first evaluation, a network of others is watched as in training (lowrank.training.engine.recording). Then evaluation is
recorded, and a replay is compared with the plain network. Where they differ by more than rounding, evaluations run as
they are, after one notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lowrank.data import Batch
from lowrank.layers import BatchedRebuild
from lowrank.training.engine.compiled_forward import CompiledNetwork, compile_once
from lowrank.training.engine.compiler_watch import watch_compiler
from lowrank.training.engine.cuda_graph import (
    PROBE_IMAGES,
    CapturedEpoch,
    compiler_reason,
    must_end,
    usual_kernels,
)
from lowrank.training.engine.host_state import attribute_tensors, undone_attributes
from lowrank.training.engine.notices import warn_once
from lowrank.training.engine.precision import keep_float32_products
from lowrank.training.engine.recording import Recorder, Run, consists_of_known_code, recording_obstacle
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import EvalMeter
from lowrank.training.timers import EVALUATION_SET_UP, PhaseTimers
from lowrank.utils import LockedError, first_line, keep_modes

# A trial that evaluates so many batches is worth compiling its evaluation, which takes some seconds even where the code
# lies on disk; a compiled batch saves some milliseconds
LONG_EVALUATION_BATCHES = 1000
WARM_UP_BATCHES = 2  # before recording: cuDNN tries its kernels
LOGIT_TOLERANCE = 0.05  # of the deviation of the logits between images; sums may be taken in another order
ROUNDING = {torch.float32: 0.002, torch.bfloat16: 0.02}  # of the length of the logits; float32 may be TF32 in products


class CapturedEvaluation:
    """Evaluates a network by replaying one recorded batch.

    It is recorded at the first evaluation that others follow, when the shape of the batches changes, and after
    `forget`.

    Attributes:
        compiled: whether the recorded forward pass is compiled.
        pads: whether an incomplete batch is run in the buffers of a full one; not where the images of a batch have an
            influence on each other.
        replay: repeats the recorded forward pass; None where none is recorded.
    """

    def __init__(
        self, train_step: TrainStep, timers: PhaseTimers, classes: int, notify: Callable[[str], None]
    ):  # fmt: skip
        """Prepare; nothing is recorded before the first evaluation.

        Args:
            train_step: of the network that is evaluated.
            timers: count the time of compiling and recording.
            classes: K, number of classes.
            notify: is called with a warning if an evaluation cannot be compiled or recorded.
        """
        self._train_step, self._timers, self._notify = train_step, timers, notify
        self._classes = classes
        self.compiled, self.pads = False, False
        self.replay: Run | None = None
        self._rebuild_weights: Run | None = None
        self._count: Run | None = None
        self._may_record = self._may_compile = True
        self._network: CompiledNetwork | None = None
        self._rebuild: BatchedRebuild | None = None
        self._weights: list[Tensor] = []
        self._held: list[Tensor] = []  # that Python may give up, but a replay reads
        self._images = self._labels = self._logits = torch.empty(0)
        self._meter = EvalMeter(classes, train_step.device, 0)

    def forget(self) -> None:
        """Free what is recorded."""
        self.replay = self._rebuild_weights = self._count = None
        self.compiled, self._network, self._rebuild, self._weights, self._held = False, None, None, [], []
        self._images = self._labels = self._logits = torch.empty(0)

    def prepare(self, epoch: CapturedEpoch, batch: Batch, remaining: int) -> bool:
        """Record evaluations with batches like this one, unless that has been done.

        Args:
            epoch: takes the training steps. Its recorder records; where it replays no step, nothing is recorded.
            batch: the first one of an evaluation.
            remaining: batches of later evaluations; for none nothing is recorded, and for few nothing is compiled.

        Returns:
            Whether `run` may be called. Where it may not, the network is evaluated as it is.
        """
        if epoch.recorder is None or epoch.replay is None:
            self.forget()
            return False
        is_recorded = self.replay is not None and self._images.shape == batch[0].shape
        if not is_recorded and self._may_record and remaining > 0:
            attributes = undone_attributes(self._train_step.network)
            with self._timers.timed(EVALUATION_SET_UP), self._train_step.undone(), attributes as undo:
                self._record(epoch.recorder, batch, compiled=epoch.compiled and remaining >= LONG_EVALUATION_BATCHES)
                if self.replay is not None:
                    undo.keep_made, self._held = True, attribute_tensors(self._train_step.network)
        return self.replay is not None and self._images.shape == batch[0].shape

    def run(self, batches: Iterable[Batch], meter: EvalMeter) -> None:
        """Evaluate batches; `prepare` has returned True for the first of them.

        Args:
            batches: none with more images than those that were recorded; one with fewer is run by itself.
            meter: takes in the losses and errors.
        """
        assert self.replay is not None
        assert self._count is not None
        self._meter.clear()
        if self._rebuild_weights is not None:
            self._rebuild_weights()
        for images, labels, *_ in batches:
            if len(labels) < len(self._labels):
                meter.add(self._few_logits(images), labels)
                continue
            self._images.copy_(images)
            self._labels.copy_(labels)
            self.replay()
            self._count()
            meter.note_wrong(self._meter.wrong_images)
        meter.take(self._meter)

    def _few_logits(self, images: Tensor) -> Tensor:
        """Run fewer images than a full batch has; returns their logits, float32 (B, K)."""
        if self.pads and self.replay is not None:
            self._images[: len(images)].copy_(images)
            self.replay()
            return self._logits[: len(images)]
        with usual_kernels():  # to try cuDNN's kernels for one batch costs more than a slower one
            return self._plain_logits(images)

    def _record(self, recorder: Recorder, batch: Batch, *, compiled: bool) -> None:
        """Allocate the buffers for batches like this one, compile (`compiled`) and record."""
        self.forget()
        images, labels, *_ = batch
        try:
            few = self._watch(recorder, images)
            expected = self._plain_logits(images)
            self.pads = few is None or _difference(expected[: len(few)], few, self._train_step.dtype) is None
            self._images, self._labels = images.clone(), labels.clone()
            self._logits = torch.empty_like(expected)
            self._meter = EvalMeter(self._classes, labels.device, len(labels))
            self.compiled = compiled and self._may_compile and self._compile()
            if not self.compiled:
                self._take_weights(self._train_step.objective.rebuild)
            recorder.warm_up(self._run_all)
            rebuild_weights = recorder.record(self._fill_weights) if self._weights else None
            replay, count = recorder.record(self._run_forward), recorder.record(self._add)
            if rebuild_weights is not None:
                rebuild_weights()
            self._logits.zero_()
            replay()
            difference = _difference(expected, self._logits, self._train_step.dtype)
            if difference is not None:
                raise _NotRecordableError(f"a replay differs from the plain network: {difference}")
            self._rebuild_weights, self.replay, self._count = rebuild_weights, replay, count
        except LockedError:  # the plain network serves until another process has compiled it
            self.forget()
        except Exception as error:  # compiled code that would be compiled again raises anything
            self.forget()
            if must_end(error):
                raise
            self._may_record = False
            reason = first_line(error)
            warn_once(self._notify, f"validation is not recorded, and so is slower: {reason}", f"validation: {reason}")

    def _watch(self, recorder: Recorder, images: Tensor) -> Tensor | None:
        """Run some images as they are; raises _NotRecordableError where a recording would freeze something."""
        few, network = images[:PROBE_IMAGES], self._train_step.network
        logits: list[Tensor] = []

        def run() -> None:
            logits.append(self._plain_logits(few))

        obstacle = None
        with usual_kernels():
            if consists_of_known_code(network):
                run()
            else:
                obstacle = recording_obstacle(network, run, recorder)
                if obstacle is None and _gives_up_tensors(network):
                    obstacle = "the network makes a tensor in evaluation that it gives up in training"
        if obstacle is not None:
            raise _NotRecordableError(obstacle)
        return logits[-1] if len(few) < len(images) else None

    def _compile(self) -> bool:
        """Compile the forward pass; if that is not possible, warn. Returns whether it is compiled.

        Raises:
            LockedError: another process compiles it.
        """
        train_step = self._train_step
        dtype = None if train_step.dtype is None else (train_step.device.type, train_step.dtype)
        try:
            network = CompiledNetwork(train_step.network, dtype)
            self._take_weights(network.rebuild)
            self._fill_weights()
            digest = network.compiled.digest(self._images)
            with compile_once(digest, wait=False), watch_compiler(), keep_float32_products():
                network(self._weights, self._images)
        except LockedError:
            raise
        except Exception as error:  # compilers raise anything; an error of the network comes again without them
            if must_end(error):
                raise
            self._may_compile = False
            reason = compiler_reason(error)
            warn_once(self._notify, f"validation is not compiled, and so is slower: {reason}", f"validation: {reason}")
            return False
        self._network = network
        return True

    def _take_weights(self, rebuild: BatchedRebuild | None) -> None:
        """Make buffers for the weights that are rebuilt once for all batches, as convolutions read them best."""
        self._rebuild, self._weights = rebuild, []
        if rebuild is None:
            return
        with self._train_step.autocast():
            weights = rebuild.weights()
        self._weights = [
            torch.empty_like(
                weight, memory_format=torch.channels_last if weight.dim() == 4 else torch.contiguous_format
            )
            for weight in weights
        ]

    def _run_all(self) -> None:
        for _ in range(WARM_UP_BATCHES):
            self._fill_weights()
            self._run_forward()
            self._add()

    def _fill_weights(self) -> None:
        if self._rebuild is not None and self._weights:
            with self._train_step.autocast():
                torch._foreach_copy_(self._weights, self._rebuild.weights())

    def _run_forward(self) -> None:
        if self._network is not None:
            logits = self._network(self._weights, self._images)
        else:
            weights = self._rebuild.use_weights(self._weights) if self._rebuild is not None else nullcontext()
            with weights, self._train_step.autocast():
                logits = self._train_step.network(self._images)
        self._logits.copy_(logits)

    def _add(self) -> None:
        """Count the batch in the meter, whose images are always the same rows."""
        self._meter.rewind()
        self._meter.add(self._logits, self._labels)

    def _plain_logits(self, images: Tensor) -> Tensor:
        """Run images through the network as it is, with weights rebuilt for them; float32 (B, K)."""
        train_step = self._train_step
        with train_step.autocast(), train_step.objective.rebuilt_weights():
            logits: Tensor = train_step.network(images)
        return logits.float()


def _gives_up_tensors(network: nn.Module) -> bool:
    """Say whether a change to training and back takes tensors from attributes: they follow from the weights of then."""
    before = attribute_tensors(network)
    with keep_modes(network):
        network.train()
        network.eval()
    after = {id(tensor) for tensor in attribute_tensors(network)}
    return any(id(tensor) not in after for tensor in before)


class _NotRecordableError(Exception):
    """An evaluation must not be recorded; the message says why."""


def _difference(expected: Tensor, logits: Tensor, dtype: torch.dtype | None) -> str | None:
    """Compare logits (B, K) with those of the plain network; waits for the device.

    Args:
        expected: of the plain network.
        logits: the others.
        dtype: in which the network runs; None for float32.

    Returns:
        One clause for a message; None where they differ by no more than rounding, or are not finite in both.
    """
    deviation = expected - expected.mean(0)
    norms = torch.stack([deviation.norm(), expected.norm(), (logits - expected).norm(), logits.norm()]).tolist()
    deviated, length, distance, other = norms
    if not math.isfinite(length) and not math.isfinite(other):
        return None
    if distance <= LOGIT_TOLERANCE * deviated + ROUNDING[dtype or torch.float32] * length:
        return None
    return f"its logits are off by {distance:.3g}, their length is {length:.3g}"
