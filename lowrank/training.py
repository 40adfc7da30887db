"""The one training loop, for students and teachers; it knows nothing of Ray, Optuna or MLflow.

An epoch is a pure function of the state before it: the order of images and every view follow from (seed, epoch,
index), so that a run resumed from a checkpoint repeats the undisturbed one bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.data import Batch, ImageData, ViewSettings, eval_batches, steps_per_epoch, train_batches
from lowrank.decay import add_frobenius_gradient, parameter_groups, penalised_maps
from lowrank.distill import Teacher
from lowrank.errors import LowrankError
from lowrank.objective import Objective, means
from lowrank.rebuild import checkpoint_rebuild
from lowrank.recipes import Recipe, lr_share

CHECK_EVERY = 50  # steps between looks at the loss; a look waits for the device


class DivergedError(LowrankError):
    """The loss left the finite numbers; says in which epoch and step."""


class Trainer:
    """Trains one network on one data set, an epoch a call."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, *, views: ViewSettings, order_seed: int,
        decay_ratio: float = 1.0, device: torch.device | str = "cpu", teacher: Teacher | None = None,
        taps: Sequence[str] = (), view_slots: int | None = None,
    ):  # fmt: skip
        """`network` is moved to `device` and trained in place.

        Args:
            network: gives logits (B, classes).
            data: its training split is trained on.
            recipe: how.
            views: what is drawn of each image.
            order_seed: of the order of the images.
            decay_ratio: K / N, see lowrank.decay.
            device: where.
            teacher: asked about every batch where the recipe gives it a weight.
            taps: modules whose attention is compared with the teacher's, in its order; the ends of the stages.
            view_slots: views repeat after so many epochs (the views that a cache holds); None: never.

        Raises InputError when recipe, network and teacher do not fit.
        """
        self.objective = Objective(network, recipe, teacher, taps)
        self.view_slots = view_slots
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on CPUs too
        self.data, self.recipe, self.views, self.order_seed = data, recipe, views, order_seed
        self.optimizer = torch.optim.SGD(
            parameter_groups(network, recipe, decay_ratio), lr=recipe.lr, momentum=recipe.momentum,
            nesterov=recipe.nesterov, fused=True,
        )  # fmt: skip
        self.penalised = penalised_maps(network, recipe)
        checkpoint_rebuild(network, recipe.rebuild_checkpoint)
        torch.backends.cudnn.benchmark = self.device.type == "cuda"  # every batch has the same shape
        self.epoch = 0  # epochs done
        self.steps = steps_per_epoch(data, recipe.batch_size)

    def train_epoch(self) -> dict[str, float]:
        """One epoch of training and one evaluation; returns metrics named as in the records.

        Errors in percent, losses as means over samples, images_per_second of training alone. Raises DivergedError.
        """
        start = time.perf_counter()
        train = self._train()
        seconds = time.perf_counter() - start
        self.epoch += 1
        val = self.evaluate("val")
        if not math.isfinite(val["loss"]):
            raise DivergedError(f"validation loss {val['loss']} after epoch {self.epoch}")
        return {
            **train["losses"], "train_error": train["error"], "val_loss": val["loss"], "val_error": val["error"],
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": train["images"] / seconds, "epoch_seconds": time.perf_counter() - start,
        }  # fmt: skip

    def _train(self) -> dict[str, Any]:
        self.network.train()
        losses = torch.zeros(self.steps, device=self.device)
        parts = torch.zeros(self.steps, len(self.objective.names), device=self.device)
        sizes = torch.zeros(self.steps, dtype=torch.float64)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for step, (images, labels, indices) in enumerate(self._batches()):
            logits, losses[step], found = self._step(step, images, labels, indices)
            parts[step] = torch.stack(found) if len(found) > 1 else found[0]
            wrong += (logits.argmax(1) != labels).sum()
            sizes[step] = len(labels)
            if (step + 1) % CHECK_EVERY == 0:
                self._check_finite(losses)
        self._check_finite(losses)
        images_seen = int(sizes.sum())
        found_means = means(losses, parts, sizes.to(self.device), self.objective.names)
        return {"losses": found_means, "error": 100 * wrong.item() / images_seen, "images": images_seen}

    @property
    def slot(self) -> int:
        """The number that this epoch's views are drawn with."""
        return self.epoch if self.view_slots is None else self.epoch % self.view_slots

    def _batches(self) -> Iterator[Batch]:
        return train_batches(
            self.data, self.device, self.recipe.batch_size, self.views, self.order_seed, self.epoch, slot=self.slot
        )

    def _step(
        self, step: int, images: Tensor, labels: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        progress = (self.epoch * self.steps + step) / (self.recipe.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_share(self.recipe, progress)
        logits, loss, parts = self.objective(images, labels, indices, self.slot, self._autocast)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        # As every decay: beside the loss, and never clipped
        add_frobenius_gradient(self.penalised, self.recipe.weight_decay * self.recipe.decay_multiplier)
        self.optimizer.step()
        return logits.detach(), loss.detach(), tuple(part.detach() for part in parts)

    def _check_finite(self, losses: Tensor) -> None:
        finite = torch.isfinite(losses)
        if not bool(finite.all()):
            step = int((~finite).nonzero()[0]) + 1
            raise DivergedError(f"training loss {losses[step - 1].item()} in epoch {self.epoch + 1}, step {step}")

    def _autocast(self) -> AbstractContextManager[Any]:
        on_gpu = self.device.type == "cuda"
        if self.recipe.precision == "bfloat16" or (self.recipe.precision == "auto" and on_gpu):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Mean cross-entropy over samples ("loss") and top-1 error in percent ("error") on train, val or test."""
        self.network.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        count = 0
        for images, labels, *_ in eval_batches(self.data, split, self.device, max(self.recipe.batch_size, 256)):
            with self._autocast():
                logits = self.network(images)
            loss += functional.cross_entropy(logits.float(), labels, reduction="sum")
            wrong += (logits.argmax(1) != labels).sum()
            count += len(labels)
        return {"loss": loss.item() / count, "error": 100 * wrong.item() / count}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, as named tensors: weights, momentum, epochs done."""
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, slots in self.optimizer.state.items():
            if slots.get("momentum_buffer") is not None:
                state[f"momentum.{names[id(parameter)]}"] = slots["momentum_buffer"]
        state["epoch"] = torch.tensor(self.epoch)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the run where `state` was taken; raises RuntimeError when it is another network's."""
        weights = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
        self.network.load_state_dict(weights)
        for name, parameter in self.network.named_parameters():
            if f"momentum.{name}" in state:
                # The optimizer steps in the parameter's own memory order
                buffer = torch.empty_like(parameter, requires_grad=False)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(state[f"momentum.{name}"])
        self.epoch = int(state["epoch"])
