"""One training step and all the state that it changes.

The loop over batches and epochs is lowrank.training.trainer; lowrank.training.engine.cuda_graph replays the step as a
CUDA graph, and lowrank.training.divergence repeats steps to find where a training diverged. Both work on a `TrainStep`
and know no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.data import Batch
from lowrank.distillation import BatchSignals
from lowrank.layers import StructuredMap
from lowrank.training.ema import ExponentialMovingAverage
from lowrank.training.engine.data_parallel import DataParallelGroup, GradientBuckets
from lowrank.training.engine.host_state import random_state, set_random_state, undone_buffers
from lowrank.training.engine.precision import LossScaler, autocast, working_dtype
from lowrank.training.metrics import GradientMeter, TrainMeter
from lowrank.training.objective import Forward, Objective
from lowrank.training.optimizer import set_lr
from lowrank.training.recipe import Recipe, lr_factor
from lowrank.training.weight_decay import add_frobenius_gradient, penalised_maps


class TrainStep:
    """Forward pass, backward pass and update of one network on one batch.

    Attributes:
        epoch: epochs done; the loop around the steps counts it up.
        steps_per_epoch: how many batches an epoch has.
        collapsed: (steps_per_epoch,), 1 for a step of this epoch that overflowed at float16's least loss scale.
        cache_epochs: after so many epochs the same augmentations come again; None: they never do.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, scaler: LossScaler | None,
        ema: ExponentialMovingAverage | None, *, steps_per_epoch: int, device: torch.device,
        cache_epochs: int | None = None, group: DataParallelGroup | None = None,
    ):  # fmt: skip
        """Take what a step works on; nothing is copied.

        Args:
            network: holds the parameters that `optimizer` changes.
            objective: gives logits and loss of a batch; its recipe also says how the gradients are used.
            optimizer: from lowrank.training.optimizer.make_optimizer.
            scaler: for float16 alone.
            ema: moving average of the weights, where the recipe asks for one.
            steps_per_epoch: how many batches an epoch has.
            device: where the network is.
            cache_epochs: after so many epochs the same augmentations come again; None: they never do.
            group: the processes that train the network together.
        """
        self.network, self.objective, self.optimizer, self.scaler, self.ema = network, objective, optimizer, scaler, ema
        self.recipe: Recipe = objective.recipe
        self.steps_per_epoch, self.device, self.group = steps_per_epoch, device, group
        self.dtype = working_dtype(self.recipe, device)
        self.penalised = penalised_maps(network, self.recipe)
        self.gradient_meter = GradientMeter(network, steps_per_epoch)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._buckets = None if group is None else GradientBuckets(trained)
        self.epoch = 0
        self.collapsed = torch.zeros(0)
        self.cache_epochs = cache_epochs
        self._micro_indices: tuple[Tensor, ...] = ()  # of the images of each micro-batch, for variational layers

    @property
    def cache_epoch(self) -> int:
        """The number that augmentations are drawn with; it also selects signals."""
        return self.epoch if self.cache_epochs is None else self.epoch % self.cache_epochs

    def begin_epoch(self) -> None:
        """Forget which steps of the last epoch collapsed."""
        self.collapsed = torch.zeros(self.steps_per_epoch, device=self.device)

    def ask_teacher(self, images: Tensor, indices: Tensor) -> BatchSignals | None:
        """Get what the teacher says about a batch.

        Args:
            images: augmented, (B, C, H, W).
            indices: global indices of the images, (B,).

        Returns:
            Its logits and attention maps; None without a teacher.
        """
        return self.objective.teacher_signals(images, indices, self.cache_epoch)

    def compute_gradients(self, step: int, batch: Batch, meter: TrainMeter) -> None:
        """Get the teacher's signals for a batch and run `backward` on it.

        Args:
            step: counts from 0 within the epoch.
            batch: images, labels and indices.
            meter: takes in losses and errors as those of `step`.
        """
        images, labels, indices = batch
        self.begin_noise(step, indices)
        self.backward(step, images, labels, self.ask_teacher(images, indices), meter)

    def begin_noise(self, step: int, indices: Tensor) -> None:
        """Choose what variational layers draw in a step, and the weight of their divergence.

        Nothing is done for a network without them.

        Args:
            step: counts from 0 within the epoch.
            indices: global indices of the images, (B,); a recorded step reads them where they are now.
        """
        if self.objective.variational is not None:
            self.objective.variational.begin_step(self.epoch, step)
            self._micro_indices = indices.tensor_split(min(self.recipe.accumulate, len(indices)))

    def backward(
        self, step: int, images: Tensor, labels: Tensor, signals: BatchSignals | None, meter: TrainMeter,
        forward: Forward | None = None,
    ) -> None:  # fmt: skip
        """Run the forward and backward pass of one batch.

        The batch is cut into as many micro-batches as the recipe says. Several processes then have the mean of their
        gradients, and each the losses of its own images. Variational layers draw what `begin_noise` has chosen.

        Args:
            step: counts from 0 within the epoch.
            images: (B, C, H, W).
            labels: int64 (B,).
            signals: the teacher's, for these images.
            meter: takes in losses and errors as those of `step`.
            forward: another form of the objective, with the same results.
        """
        forward = forward or self.objective
        self.optimizer.zero_grad(set_to_none=True)
        count = len(labels)
        parts = min(self.recipe.accumulate, count)
        signal_parts = [None] * parts if signals is None else signals.gather().cut(parts)
        micro_batches = zip(images.tensor_split(parts), labels.tensor_split(parts), signal_parts, strict=True)
        for number, (images_part, labels_part, signals_part) in enumerate(micro_batches, start=1):
            share = len(labels_part) / count
            if self.objective.variational is not None:
                self.objective.variational.noise.select(self._micro_indices[number - 1])
            logits, loss, losses = forward(images_part, labels_part, signals_part, self.autocast)
            scaled = loss if parts == 1 else loss * share
            if self._buckets is not None and number == parts:
                self._buckets.begin()
            (scaled if self.scaler is None else self.scaler.scaled(scaled)).backward()
            meter.add(step, share, logits.detach(), labels_part, loss.detach(), [part.detach() for part in losses])
        if self._buckets is not None:
            self._buckets.finish()

    def update(self, step: int) -> None:
        """Change the weights by the gradients that `compute_gradients` has left.

        Args:
            step: counts from 0 within the epoch.
        """
        set_lr(self.optimizer, self.learning_rate(step))
        if self.scaler is not None:
            gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
            self.collapsed[step] = self.scaler.unscale(gradients)[0]
            # The fused step skips itself; AdamW's count of steps has no axis
            self.optimizer.found_inf = self.scaler.overflow.view(())  # type: ignore[attr-defined]
        self.gradient_meter.add(step)
        self.apply_gradients()
        if self.scaler is not None:
            self.scaler.update()
        self.after_update(step)

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of a step, before the multipliers of parameter groups.

        Args:
            step: counts from 0 within the epoch.

        Returns:
            The recipe's rate times its schedule.
        """
        done = self.epoch * self.steps_per_epoch + step
        return self.recipe.lr * lr_factor(self.recipe, done / (self.recipe.epochs * self.steps_per_epoch))

    def apply_gradients(self) -> None:
        """Clip the gradients, add Frobenius decay and run the optimizer."""
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        # Like torch's own weight decay, Frobenius decay is no part of the loss and is never clipped
        add_frobenius_gradient(self.penalised, self.recipe.weight_decay * self.recipe.decay_multiplier)
        self.optimizer.step()
        if self.objective.variational is not None:
            self.objective.variational.clip()

    def after_update(self, step: int) -> None:
        """Update the moving average of the weights."""
        if self.ema is not None:
            self.ema.update(self.epoch * self.steps_per_epoch + step)

    def autocast(self) -> AbstractContextManager[Any]:
        """Enter the precision in which the network runs."""
        return autocast(self.device, self.dtype)

    def state(self) -> dict[str, Tensor]:
        """Collect all that the next step depends on.

        Returns:
            Live tensors (no copies) under the checkpoint's keys: `network.NAME`, `momentum.NAME` (SGD),
            `SLOT.NAME` for each slot of AdamW, `average.NAME`, `scale.NAME`, `epoch`.
        """
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, slots in self.optimizer.state.items():
            for slot, tensor in slots.items():
                if tensor is not None:
                    key = "momentum" if slot == "momentum_buffer" else slot
                    state[f"{key}.{names[id(parameter)]}"] = tensor
        if self.ema is not None:
            state |= {f"average.{name}": tensor for name, tensor in self.ema.tensors.items()}
        if self.scaler is not None:
            state |= {f"scale.{name}": tensor for name, tensor in self.scaler.state().items()}
        state["epoch"] = torch.tensor(self.epoch)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, or from a finished run's weights alone.

        Momentum tensors of SGD are replaced by others; the slots of AdamW are filled.

        Args:
            state: from `state`, or `network.NAME` and `epoch` alone.

        Raises:
            RuntimeError: the weights are of another network.
            InputError: the moving average is of another network.
        """
        self.network.load_state_dict(_under(state, "network"))
        if isinstance(self.optimizer, torch.optim.AdamW):
            self._load_adamw(state)
        else:
            self._load_momentum(_under(state, "momentum"))
        if self.ema is not None:
            average = _under(state, "average")
            self.ema.load(average) if average else self.ema.restart()
        if self.scaler is not None and "scale.scale" in state:
            self.scaler.load(_under(state, "scale"))
        self.epoch = int(state["epoch"])

    def _load_momentum(self, momenta: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            self.optimizer.state.pop(parameter, None)
            if name in momenta:
                # The optimizer steps in the parameter's own memory order
                buffer = torch.empty_like(parameter, requires_grad=False)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momenta[name])

    def _load_adamw(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            for slot, tensor in self.optimizer.state.get(parameter, {}).items():
                saved = state.get(f"{slot}.{name}")
                tensor.zero_() if saved is None else tensor.copy_(saved)

    def live_tensors(self) -> list[Tensor]:
        """List all that a step changes in place: weights, statistics of norms, slots of the optimizer.

        Buffers that no checkpoint holds are among them, but for those of structured maps: large tables that stay.
        """
        slots = [slot for slots in self.optimizer.state.values() for slot in slots.values()]
        unsaved = [
            buffer for module in self.network.modules() if not isinstance(module, StructuredMap)
            for name in module._non_persistent_buffers_set if (buffer := module._buffers[name]) is not None
        ]  # fmt: skip
        return [*self.network.state_dict().values(), *unsaved, *(slot for slot in slots if isinstance(slot, Tensor))]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo what steps inside `with` do to weights, buffers, momentum and the random generators."""
        copies = [(tensor, tensor.clone()) for tensor in self.live_tensors()]
        random = random_state(self.device)
        try:
            with undone_buffers(self.network):
                yield
        finally:
            with torch.no_grad():
                for tensor, before in copies:
                    tensor.copy_(before)
            set_random_state(random, self.device)


def _under(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Select the keys `PART.NAME`, by NAME."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
