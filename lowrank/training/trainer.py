"""The training loop of students and teachers; it knows nothing of Ray, Optuna or MLflow.

An epoch depends on the state before it alone: the order of images, every augmentation and every random choice inside
the network follow from (seed, epoch, index). So on a CPU, a run that is resumed from a checkpoint gives bit for bit the
same results as one that was never interrupted.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lowrank.compression import VariationalSettings
from lowrank.data import (
    UNSHARDED,
    AugmentationSettings,
    Batch,
    DecoderPool,
    ImageData,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from lowrank.distillation import Teacher
from lowrank.errors import InputError
from lowrank.layers import checkpoint_rebuild, variational_layers
from lowrank.training.divergence import CHECK_EVERY, DivergedError, DivergenceMonitor, NonFiniteLocator
from lowrank.training.ema import ExponentialMovingAverage
from lowrank.training.engine.captured_evaluation import CapturedEvaluation
from lowrank.training.engine.cuda_graph import make_captured_epoch
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.engine.host_state import seeded
from lowrank.training.engine.precision import LossScaler, use_channels_last, working_dtype
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import EvalMeter, TrainMeter, machine_metrics, reset_peak_memory
from lowrank.training.objective import Objective
from lowrank.training.optimizer import LR_MULTIPLIER, check_network, freeze, make_optimizer
from lowrank.training.recipe import Recipe
from lowrank.training.timers import EVALUATION, PhaseTimers
from lowrank.training.variational import SGD_NOTICE, VariationalTraining
from lowrank.utils import ensure_compiler_cache

MIN_EVAL_BATCH = 256  # images: evaluation keeps no gradients, so a larger batch than the recipe's fits
PREFIXED_METRICS = (
    "loss",
    "error",
    "balanced_error",
    "error_top5",
)  # recorded as val_NAME; other metrics of evaluation keep their name
EPOCH_SEED_STRIDE = 1_000_003  # a prime: epochs of neighbouring seeds do not draw the same numbers


def recorded_names(measured: Mapping[str, float]) -> dict[str, float]:
    """Give the metrics of the validation split the names that the records use.

    Args:
        measured: from `Trainer.evaluate`.

    Returns:
        The same values; errors and losses have the prefix `val_`.
    """
    return {f"val_{name}" if name in PREFIXED_METRICS else name: value for name, value in measured.items()}


class Trainer:
    """Trains one network on one data set, one epoch for each call.

    Attributes:
        decoders: processes that decode the images of a streamed set.
        step: takes the training steps, and has all the state that a checkpoint holds.
        steps_per_epoch: how many batches an epoch has.
        step_losses: (steps_per_epoch,), the loss of each step of the last epoch, on the device.
        steps_taken: in the present epoch; None outside of its steps.
        variational: the random numbers and the divergence of variational layers; None for a network without them.
        captured_epoch: replays the step as a CUDA graph; None where the recipe's engine records none. Set it to None to
            run the steps without the graph.
        captured_evaluation: replays the batches of validation, where the steps are replayed; None elsewhere.
        wrong_images: uint8 (images,) by split, 1 where the network was wrong when the split was last evaluated; on the
            device, in the order of the split.
    """

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, *, augmentation: AugmentationSettings,
        order_seed: int, decay_ratio: float = 1.0, device: torch.device | str = "cpu", teacher: Teacher | None = None,
        taps: Sequence[str] = (), cache_epochs: int | None = None, group: DataParallelGroup | None = None,
        notify: Callable[[str], None] = warnings.warn, variational: VariationalSettings | None = None,
        decoders: DecoderPool | None = None,
    ):  # fmt: skip
        """Move `network` to `device` and prepare its training.

        Args:
            network: gives logits (B, classes), or in training mode (logits, auxiliary logits). It is trained in place.
            data: the training split gives the batches, the validation split is evaluated after each epoch.
            recipe: how to train.
            augmentation: how each training image is changed.
            order_seed: seed of the order of the images and of random choices inside the network.
            decay_ratio: K / N, parameters over those of the dense network (lowrank.training.weight_decay).
            device: where to train.
            teacher: gives logits and attention maps for every batch; needed if the recipe gives them a weight.
            taps: names of the modules whose attention maps are compared with the teacher's, in the order of the
                teacher's; empty for the ends of the network's stages.
            cache_epochs: after so many epochs the augmentations repeat, because a teacher cache holds so many; None:
                they never repeat.
            group: the processes that train the network together. Each must call the same methods in the same order.
            notify: called with each warning for the user.
            variational: what a network with variational layers was made from; None for any other.
            decoders: decode the images of a streamed set, and end with the last epoch; None for some of its own.

        Raises:
            InputError: the network or the teacher lacks what the recipe needs.
        """
        line = ensure_compiler_cache()
        if line is not None:
            notify(line)
        self.device = torch.device(device)
        self.network = use_channels_last(network.to(self.device))  # twice as fast on CPUs too
        self.data, self.recipe, self.augmentation, self.order_seed = data, recipe, augmentation, order_seed
        self.group = group
        self._shard = UNSHARDED if group is None else group.shard(recipe.accumulate)
        self.decoders = DecoderPool() if decoders is None else decoders
        head = check_network(network, recipe, len(data.classes), data.image_shape)
        if group is not None:
            group.use_global_batch(network)
        self.steps_per_epoch = steps_per_epoch(data, recipe.batch_size)
        if variational is None and any(True for _ in variational_layers(network)):
            raise InputError("a network with variational layers needs `variational`, from which it was made")
        self.variational = None if variational is None else VariationalTraining(
            network, variational, seed=order_seed, examples=len(data.train), steps_per_epoch=self.steps_per_epoch,
            image_shape=data.image_shape, classes=len(data.classes),
        )  # fmt: skip
        if self.variational is not None and recipe.optimizer == "sgd":
            notify(SGD_NOTICE)
        objective = Objective(network, recipe, teacher, taps, data.class_counts("train"), self.variational)
        scaler = LossScaler(self.device) if working_dtype(recipe, self.device) is torch.float16 else None
        self._frozen_norms = freeze(network, recipe.freeze)
        optimizer = make_optimizer(network, recipe, decay_ratio, head, may_skip_steps=scaler is not None)
        checkpoint_rebuild(network, recipe.rebuild_checkpoint)
        if group is not None:
            group.share_initial_state(network)
        self._set_drop_path: Callable[[float], None] | None = getattr(network, "set_drop_path", None)
        ema = ExponentialMovingAverage(network, recipe.ema_decay) if recipe.ema_decay > 0 else None
        self._eval_batch = max(recipe.batch_size, MIN_EVAL_BATCH)
        self.step_losses: Tensor = torch.zeros(0)
        self.steps_taken: int | None = None
        self.wrong_images: dict[str, Tensor] = {}
        self.step = TrainStep(
            self.network, objective, optimizer, scaler, ema, steps_per_epoch=self.steps_per_epoch, device=self.device,
            cache_epochs=cache_epochs, group=group,
        )  # fmt: skip
        self._monitor = DivergenceMonitor(self.step, self.batches, self.load_state, len(data.classes))
        self.timers = PhaseTimers(self.device)
        self.captured_epoch = make_captured_epoch(self.step, self.timers, notify)
        self.captured_evaluation = None if self.captured_epoch is None else CapturedEvaluation(
            self.step, self.timers, len(data.classes), notify
        )  # fmt: skip

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return self.step.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        """Set the number of epochs done."""
        self.step.epoch = epoch

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch and evaluate once on the validation split.

        Returns:
            Metrics under the names that the records use (lowrank.training.metrics): errors in percent, losses as means
            over samples, `images_per_second` of training without evaluation, `lr` that of the first parameter group in
            the last step. A metric that does not apply is absent.

        Raises:
            DivergedError: a loss or a weight is not finite, or the loss explodes.
        """
        start = time.perf_counter()
        reset_peak_memory(self.device)
        meter = self.train_steps()
        trained = meter.read()  # waits until the device has finished the epoch; only then is the clock read
        seconds, rate = time.perf_counter() - start, self.step.learning_rate(self.steps_per_epoch - 1)
        metrics = trained | self.step.gradient_meter.read() | machine_metrics(self.device)
        self.step.epoch += 1
        with self.timers.timed(EVALUATION):
            val = self.evaluate("val")
        if not math.isfinite(val["loss"]):
            raise self._diverged_in_evaluation(val["loss"])
        if self.epoch >= self.recipe.epochs:  # none follows
            self.decoders.close()
        if self.variational is not None:
            metrics |= self.variational.metrics()
        metrics |= {"lr": rate * self.step.optimizer.param_groups[0][LR_MULTIPLIER]} | self._loss_scale_metrics()
        metrics |= self.timers.read()
        metrics |= {"images_per_second": meter.images / seconds, "epoch_seconds": time.perf_counter() - start}
        return metrics | recorded_names(val)

    def train_steps(self, limit: int | None = None) -> TrainMeter:
        """Train the steps of an epoch. It is not evaluated, and `epoch` is not counted up.

        Args:
            limit: the most steps to take; None: the whole epoch.

        Returns:
            Losses and errors of the steps, still on the device.

        Raises:
            DivergedError: a loss or a weight is not finite, or the loss explodes.
        """
        steps = min(self.steps_per_epoch, limit or self.steps_per_epoch)
        self.network.train()
        for norm in self._frozen_norms:
            norm.eval()
        if self._set_drop_path is not None:
            self._set_drop_path(self.recipe.drop_path * self.epoch / max(1, self.recipe.epochs - 1))
            if self.captured_epoch is not None:
                self.captured_epoch.begin_epoch()
        meter = self._new_meter(self.steps_per_epoch)
        self.step_losses = meter.losses
        with self._seeded(), self._kernel_search():
            self._monitor.begin()
            self.timers.begin()
            self.steps_taken = checked = 0
            for step, batch in enumerate(itertools.islice(self.timers.input(self.batches()), steps)):
                self._take_step(step, batch, meter)
                self.steps_taken = step + 1
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                    if self.group is not None:
                        meter.sum_over_processes(range(checked, step + 1), self.group)
                    self._monitor.check(meter, step + 1)
                    checked = step + 1
            self.steps_taken = None
        return meter

    def _seeded(self) -> AbstractContextManager[None]:
        """Let random choices inside the network follow from the seed and the number of epochs done, inside `with`."""
        return seeded(self.order_seed * EPOCH_SEED_STRIDE + self.epoch, self.device)

    @contextmanager
    def _kernel_search(self) -> Iterator[None]:
        """Let cuDNN try its kernels inside `with`, since all batches have the same shape; on a CPU nothing is set."""
        if self.device.type != "cuda":
            yield
            return
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def _new_meter(self, steps: int) -> TrainMeter:
        return TrainMeter(steps, self.step.objective.names, self.device)

    def _take_step(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        if self.captured_epoch is not None:
            self.captured_epoch.step(step, batch, meter)
            return
        self.step.compute_gradients(step, batch, meter)
        self.step.update(step)

    def batches(self) -> Iterator[Batch]:
        """Make the batches of the present epoch, from its first.

        Returns:
            The batches; every call in the same epoch gives the same.
        """
        return train_batches(
            self.data, self.device, self.recipe.batch_size, augmentation=self.augmentation,
            order_seed=self.order_seed, epoch=self.epoch, cache_epoch=self.step.cache_epoch, shard=self._shard,
            balanced=self.recipe.sampler == "balanced", decoders=self.decoders,
        )  # fmt: skip

    def endless_steps(self, *, wait: bool = True) -> Iterator[None]:
        """Take the steps of the present epoch over and over, for measurements.

        The weights change but the epoch is never counted up, so the trainer must not be used for training afterwards.

        Args:
            wait: whether to wait for the device after each step.

        Yields:
            None, after each step.
        """
        self.network.train()
        while True:
            meter = self._new_meter(self.steps_per_epoch)
            self._monitor.begin()
            for step, batch in enumerate(self.batches()):
                with self._kernel_search():
                    self._take_step(step, batch, meter)
                if wait:
                    meter.losses[step].item()
                yield

    def try_batch(self, batch: Batch) -> None:
        """Take one step on a batch of any size, without CUDA graph, for measurements.

        It waits for the device. The weights change, so the trainer must not be used for training afterwards.

        Args:
            batch: images, labels and indices.
        """
        self.network.train()
        self._monitor.begin()
        meter = self._new_meter(1)
        self.step.compute_gradients(0, batch, meter)
        self.step.update(0)
        meter.losses[0].item()

    def _loss_scale_metrics(self) -> dict[str, float]:
        """Read float16's loss scale and the number of steps skipped since the last call; empty for other types."""
        scaler = self.step.scaler
        if scaler is None:
            return {}
        metrics = {"loss_scale": scaler.scale.item(), "skipped_steps": scaler.skipped.item()}
        scaler.skipped.zero_()
        return metrics

    def _diverged_in_evaluation(self, loss: float) -> DivergedError:
        """Evaluate again with hooks, to name the first layer whose output is not finite."""
        self.captured_evaluation = None  # a replay calls no hooks
        with NonFiniteLocator(self.network) as locator:
            self.evaluate("val")
        layer, where = locator.first
        return DivergedError(f"validation loss {loss} after epoch {self.epoch}; {where}", epoch=self.epoch, layer=layer)

    @torch.no_grad()
    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Evaluate a split, with the moving average of the weights if there is one.

        Where a batch does not fit into the device's memory, this and later evaluations take half as many images.

        Args:
            split: "train", "val" or "test".

        Returns:
            Mean cross-entropy over samples ("loss"), top-1 error in percent ("error") and more: see EvalMeter.read.
        """
        while True:
            try:
                with self._seeded(), self._kernel_search():  # some networks draw in evaluation too
                    return self._evaluate(split)
            except torch.OutOfMemoryError:
                if self._eval_batch == 1:
                    raise
                self._eval_batch = -(-self._eval_batch // 2)
            torch.cuda.empty_cache()

    def _evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        self.network.eval()
        count = len(self.data.split(split))
        meter = EvalMeter(len(self.data.classes), self.device, count, self._shard.of_range(count).start)
        with ExitStack() as stack:
            if self.step.ema is not None:
                stack.enter_context(self.step.ema.swapped_in())
            batches = eval_batches(
                self.data, split, self.device, self._eval_batch, shard=self._shard, decoders=self.decoders
            )
            first = next(batches, None)
            if first is not None:  # None: fewer images than processes
                batches = itertools.chain([first], batches)
                captured = self._recorded_evaluation(first, count) if split == "val" else None
                run = self._run_plain if captured is None else captured.run
                run(batches, meter)
        if self.group is not None:
            meter.sum_over_processes(self.group)
        self.wrong_images[split] = meter.wrong_images
        return meter.read()

    def _run_plain(self, batches: Iterator[Batch], meter: EvalMeter) -> None:
        with ExitStack() as stack:
            with self.step.autocast():
                stack.enter_context(self.step.objective.rebuilt_weights())  # from factors, once for all batches
            for images, labels, *_ in batches:
                with self.step.autocast():
                    logits = self.network(images)
                meter.add(logits.float(), labels)

    def _recorded_evaluation(self, batch: Batch, images: int) -> CapturedEvaluation | None:
        """Give what replays the batches of validation; None where they run as they are.

        Args:
            batch: the first one.
            images: of the split.
        """
        if self.captured_epoch is None or self.captured_evaluation is None:
            return None
        batches = -(-len(self._shard.of_range(images)) // self._eval_batch)
        remaining = max(0, self.recipe.epochs - self.epoch) * batches
        is_ready = self.captured_evaluation.prepare(self.captured_epoch, batch, remaining)
        return self.captured_evaluation if is_ready else None

    def weights(self) -> dict[str, Tensor]:
        """Collect what is kept of a finished run.

        Returns:
            The weights that `evaluate` uses (the moving average if there is one) under `network.NAME`, and the number
            of epochs done under `epoch`.
        """
        average = {} if self.step.ema is None else self.step.ema.tensors
        state = {f"network.{name}": average.get(name, value) for name, value in self.network.state_dict().items()}
        return state | {"epoch": torch.tensor(self.epoch)}

    def state(self) -> dict[str, Tensor]:
        """Collect all that the next epoch depends on: see TrainStep.state.

        Returns:
            Tensors by the checkpoint's keys. They are not copied: training changes them.
        """
        return self.step.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint: see TrainStep.load_state.

        Args:
            state: what `state` or `weights` returned, of a trainer of the same network.

        Raises:
            RuntimeError: the weights are of another network.
            InputError: the moving average is of another network.
        """
        self.step.load_state(state)
        if self.captured_epoch is not None:
            self.captured_epoch.forget()  # the graph was recorded on tensors that are replaced now
        if self.captured_evaluation is not None:
            self.captured_evaluation.forget()

    def restart_average(self) -> None:
        """Start the moving average from the present weights.

        Call it after the weights of `network` were set by other code: the average still has those of before.
        """
        if self.step.ema is not None:
            self.step.ema.restart()
