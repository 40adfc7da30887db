"""The one training loop, for students and teachers; it knows nothing of Ray, Optuna or MLflow.

An epoch is a pure function of the state before it: the order of images, every view and every random choice inside the
network follow from (seed, epoch, index), so that a run resumed from a checkpoint repeats the undisturbed one bit for
bit on a CPU.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.compression.substitution import AUXILIARY
from lowrank.data import WHOLE, Batch, ImageData, ViewSettings, eval_batches, steps_per_epoch, train_batches
from lowrank.distillation.teacher import Signals, Teacher
from lowrank.layers.batched_rebuild import checkpoint_rebuild
from lowrank.training.divergence import LOOK_EVERY, DivergedError, Guard, Watch
from lowrank.training.ema import Average
from lowrank.training.engine.cuda_graph import make_captured
from lowrank.training.engine.data_parallel import Ranks, unsynchronised
from lowrank.training.engine.precision import LossScale, autocast, working_dtype
from lowrank.training.metrics import EvalMeter, GradientMeter, TrainMeter, begin_memory, machine
from lowrank.training.objective import Forward, Objective
from lowrank.training.optimizer import SHARE, check_network, freeze, make_optimizer, set_rate
from lowrank.training.recipe import Recipe, lr_share
from lowrank.training.timers import EVALUATION, Phases
from lowrank.training.weight_decay import add_frobenius_gradient, penalised_maps

__all__ = ["DivergedError", "Trainer"]


class Trainer:
    """Trains one network on one data set, an epoch a call."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, *, views: ViewSettings, order_seed: int,
        decay_ratio: float = 1.0, device: torch.device | str = "cpu", teacher: Teacher | None = None,
        taps: Sequence[str] = (), view_slots: int | None = None, ranks: Ranks | None = None,
        say: Callable[[str], None] = warnings.warn,
    ):  # fmt: skip
        """`network` is moved to `device` and trained in place.

        Args:
            network: gives logits (B, classes), or in training (logits, auxiliary logits).
            data: its training split is trained on.
            recipe: how.
            views: what is drawn of each image.
            order_seed: of the order of the images and of random choices inside the network.
            decay_ratio: K / N, see lowrank.training.weight_decay.
            device: where.
            teacher: asked about every batch where the recipe gives it a weight.
            taps: modules whose attention is compared with the teacher's, in its order; the ends of the stages.
            view_slots: views repeat after so many epochs (the views that a cache holds); None: never.
            ranks: this process's place among those that train the network together; every one of them must call the
                same methods in the same order.
            say: is told what the user should know.

        Raises InputError when recipe, network and teacher do not fit.
        """
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on CPUs too
        self.data, self.recipe, self.views, self.order_seed = data, recipe, views, order_seed
        self.view_slots, self.ranks = view_slots, ranks
        self._part = WHOLE if ranks is None else ranks.slice(recipe.accumulate)
        check_network(network, recipe, len(data.classes))
        if ranks is not None:
            ranks.join(network)
        self.objective = Objective(network, recipe, teacher, taps)
        self.dtype = working_dtype(recipe, self.device)
        self.scale = LossScale(self.device) if self.dtype is torch.float16 else None
        self._frozen_norms = freeze(network, recipe.freeze)
        self.optimizer = make_optimizer(
            network, recipe, decay_ratio, len(data.classes), skips=self.scale is not None
        )  # fmt: skip
        self.penalised = penalised_maps(network, recipe)
        checkpoint_rebuild(network, recipe.rebuild_checkpoint)
        if ranks is not None:
            silent = recipe.auxiliary_weight == 0 and getattr(network, AUXILIARY, None) is not None
            self.objective.network = ranks.wrap(network, unused=silent)
        self._set_drop_path: Callable[[float], None] | None = getattr(network, "set_drop_path", None)
        self.average = Average(network, recipe.ema_decay) if recipe.ema_decay > 0 else None
        torch.backends.cudnn.benchmark = self.device.type == "cuda"  # every batch has the same shape
        self.epoch = 0  # epochs done
        self.steps = steps_per_epoch(data, recipe.batch_size)
        self.step_losses: Tensor = torch.zeros(0)  # of the last epoch's steps
        self.gradient_meter = GradientMeter(network, self.steps)
        self._guard = Guard(self)
        self.phases = Phases(self.device)
        self.captured = make_captured(self, say)

    def train_epoch(self) -> dict[str, float]:
        """One epoch of training and one evaluation; returns metrics named as in the records (lowrank.training.metrics).

        Errors in percent, losses as means over samples, images_per_second of training alone; what does not apply is
        absent. Raises DivergedError.
        """
        start = time.perf_counter()
        begin_memory(self.device)
        meter = self.train_steps()
        trained = meter.read()  # which waits until the device has done the epoch
        seconds, rate = time.perf_counter() - start, self.rate(self.steps - 1)
        found = trained | self.gradient_meter.read() | machine(self.device)
        self.epoch += 1
        with self.phases.timed(EVALUATION):
            val = self.evaluate("val")
        if not math.isfinite(val["loss"]):
            raise self._diverged_in_evaluation(val["loss"])
        found |= {"lr": rate * self.optimizer.param_groups[0][SHARE]} | self._scale_metrics()
        found |= self.phases.read()
        found |= {"images_per_second": meter.images / seconds, "epoch_seconds": time.perf_counter() - start}
        return found | {f"val_{name}" if name in _VAL else name: value for name, value in val.items()}

    def train_steps(self, most: int | None = None) -> TrainMeter:
        """The epoch's steps, `most` of them where that is given, without evaluation; raises DivergedError."""
        steps = min(self.steps, most or self.steps)
        self.network.train()
        for norm in self._frozen_norms:
            norm.eval()
        if self._set_drop_path is not None:
            self._set_drop_path(self.recipe.drop_path * self.epoch / max(1, self.recipe.epochs - 1))
        meter = TrainMeter(self.steps, self.objective.names, self.device)
        self.step_losses = meter.losses
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.order_seed * 1_000_003 + self.epoch) % 2**63)
            self._guard.begin()
            self.phases.begin()
            for step, batch in enumerate(itertools.islice(self.phases.input(self.batches()), steps)):
                self._take(step, batch, meter)
                if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
                    self._guard.look(meter, step + 1)
        return meter

    def _take(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        if self.captured is not None:
            self.captured.step(step, batch, meter)
            return
        self.gradients(step, batch, meter)
        self.update(step)

    @property
    def slot(self) -> int:
        """The number that this epoch's views are drawn with."""
        return self.epoch if self.view_slots is None else self.epoch % self.view_slots

    def batches(self) -> Iterator[Batch]:
        """The batches of this epoch, from its first; the same at every call."""
        return train_batches(
            self.data, self.device, self.recipe.batch_size, self.views, self.order_seed, self.epoch, slot=self.slot,
            part=self._part,
        )  # fmt: skip

    def probe(self, *, wait: bool = True) -> Iterator[None]:
        """Take one training step after the other, as training takes them, epoch after epoch, for measurements.

        `wait` waits for the device at each step. The trainer is of no use for training afterwards.
        """
        self.network.train()
        while True:
            meter = TrainMeter(self.steps, self.objective.names, self.device)
            self._guard.begin()
            for step, batch in enumerate(self.batches()):
                self._take(step, batch, meter)
                if wait:
                    meter.losses[step].item()
                yield

    def try_batch(self, batch: Batch) -> None:
        """One plain step on a batch of any size, for measurements; waits for the device.

        The trainer is of no use for training afterwards.
        """
        self.network.train()
        self._guard.begin()
        meter = TrainMeter(1, self.objective.names, self.device)
        self.gradients(0, batch, meter)
        self.update(0)
        meter.losses[0].item()

    def gradients(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Forward and backward of one batch, in as many parts as the recipe says; counted in `meter`."""
        images, labels, indices = batch
        self.backward(step, images, labels, self.objective.ask(images, indices, self.slot), meter)

    def backward(
        self, step: int, images: Tensor, labels: Tensor, signals: Signals | None, meter: TrainMeter,
        forward: Forward | None = None,
    ) -> None:  # fmt: skip
        """Likewise, of a batch about which the teacher has been asked; `forward` is another form of the objective."""
        forward = forward or self.objective
        self.optimizer.zero_grad(set_to_none=True)
        count = len(labels)
        parts = min(self.recipe.accumulate, count)
        said = [None] * parts if signals is None else signals.cut(parts)
        cut = zip(images.tensor_split(parts), labels.tensor_split(parts), said, strict=True)
        for done, (images_part, labels_part, signals_part) in enumerate(cut, start=1):
            share = len(labels_part) / count
            with unsynchronised(self.objective.network, done < parts):
                logits, loss, losses = forward(images_part, labels_part, signals_part, self._autocast)
                whole = loss if parts == 1 else loss * share
                (whole if self.scale is None else self.scale.scaled(whole)).backward()
            meter.add(step, share, logits.detach(), labels_part, loss.detach(), [part.detach() for part in losses])
        if self.ranks is not None:
            meter.add_up(step, self.ranks)

    def update(self, step: int) -> None:
        """Change the weights by the gradients of this epoch's `step`."""
        set_rate(self.optimizer, self.rate(step))
        if self.scale is not None:
            gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
            self._guard.collapsed[step] = self.scale.unscale(gradients)[0]
            self.optimizer.found_inf = self.scale.overflow  # type: ignore[attr-defined]  # the fused step skips itself
        self.gradient_meter.add(step)
        self.apply_gradients()
        if self.scale is not None:
            self.scale.update()
        self.after_update(step)

    def rate(self, step: int) -> float:
        """The learning rate of this epoch's `step`, before any part's multiplier."""
        done = self.epoch * self.steps + step
        return self.recipe.lr * lr_share(self.recipe, done / (self.recipe.epochs * self.steps))

    def apply_gradients(self) -> None:
        """Clip, decay, step: one change of the weights at the rate that is set."""
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        # As every decay: beside the loss, and never clipped
        add_frobenius_gradient(self.penalised, self.recipe.weight_decay * self.recipe.decay_multiplier)
        self.optimizer.step()

    def after_update(self, step: int) -> None:
        """What follows the weights after each step: their moving average."""
        if self.average is not None:
            self.average.update(self.epoch * self.steps + step)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.dtype)

    def _scale_metrics(self) -> dict[str, float]:
        """float16's loss scale after the epoch, and how many of its steps were skipped."""
        if self.scale is None:
            return {}
        found = {"loss_scale": self.scale.scale.item(), "skipped_steps": self.scale.skipped.item()}
        self.scale.skipped.zero_()
        return found

    def _diverged_in_evaluation(self, loss: float) -> DivergedError:
        with Watch(self.network) as watch:
            self.evaluate("val")
        layer, where = watch.first
        return DivergedError(f"validation loss {loss} after epoch {self.epoch}; {where}", epoch=self.epoch, layer=layer)

    @torch.no_grad()
    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Mean cross-entropy over samples ("loss"), top-1 error in percent ("error") and more: see EvalMeter.read.

        Of the moving average of the weights, where the recipe keeps one.
        """
        self.network.eval()
        meter = EvalMeter(len(self.data.classes), self.device)
        with ExitStack() as kept:
            if self.average is not None:
                kept.enter_context(self.average.in_place())
            with self._autocast():
                kept.enter_context(self.objective.rebuilt())  # once, not for every batch
            size, part = max(self.recipe.batch_size, 256), self._part
            for images, labels, *_ in eval_batches(self.data, split, self.device, size, part=part):
                with self._autocast():
                    logits = self.network(images)
                meter.add(logits.float(), labels)
        if self.ranks is not None:
            meter.add_up(self.ranks)
        return meter.read()

    def weights(self) -> dict[str, Tensor]:
        """What a finished run is kept for: the weights that are evaluated, as `network.NAME`, and the epochs done."""
        average = {} if self.average is None else self.average.tensors
        state = {f"network.{name}": average.get(name, own) for name, own in self.network.state_dict().items()}
        return state | {"epoch": torch.tensor(self.epoch)}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, as named tensors: weights, momentum, epochs done ..."""
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, slots in self.optimizer.state.items():
            if slots.get("momentum_buffer") is not None:
                state[f"momentum.{names[id(parameter)]}"] = slots["momentum_buffer"]
        if self.average is not None:
            state |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        if self.scale is not None:
            state |= {f"scale.{name}": tensor for name, tensor in self.scale.state().items()}
        state["epoch"] = torch.tensor(self.epoch)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the run where `state` was taken, or the mere `weights()` of one.

        Raises RuntimeError or InputError when it is another network's.
        """
        self.network.load_state_dict(_under(state, "network"))
        momenta = _under(state, "momentum")
        for name, parameter in self.network.named_parameters():
            self.optimizer.state.pop(parameter, None)
            if name in momenta:
                # The optimizer steps in the parameter's own memory order
                buffer = torch.empty_like(parameter, requires_grad=False)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momenta[name])
        if self.average is not None:
            self.average.load(_under(state, "average"))
        if self.scale is not None and "scale.scale" in state:
            self.scale.load(_under(state, "scale"))
        self.epoch = int(state["epoch"])
        if self.captured is not None:
            self.captured.forget()

    def live_tensors(self) -> list[Tensor]:
        """All that a step changes in place: weights, statistics, momentum."""
        slots = [slot for slots in self.optimizer.state.values() for slot in slots.values()]
        return [*self.network.state_dict().values(), *(slot for slot in slots if isinstance(slot, Tensor))]


_VAL = ("loss", "error", "error_top5")


def _under(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
