"""Divergence: noticed without making every step wait, then traced to the epoch, step and layer where it began.

A training has diverged when a loss or a gradient is not finite, when gradients overflow though float16's loss scale is
at its minimum, or when the loss explodes: when the mean cross-entropy of the last CHECK_EVERY steps of the epoch is
more than EXPLOSION_FACTOR times log K. Guessing evenly among K classes costs log K. The KL divergence of variational
layers explodes when it is more than EXPLOSION_FACTOR times what it was at the start.

Every CHECK_EVERY steps, and at the end of an epoch, one check waits for the device. If all is well, the state is
copied. If not, the steps since the last copy are run again, each of them checked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.data import Batch
from lowrank.errors import LowrankError
from lowrank.training.engine.host_state import RandomState, random_state, set_random_state
from lowrank.training.engine.precision import MIN_SCALE
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import TrainMeter
from lowrank.training.variational import VariationalTraining
from lowrank.utils import ForwardHooks, modules_with_hooks

CHECK_EVERY = 50  # steps
EXPLOSION_FACTOR = 20.0  # times log K


class DivergedError(LowrankError):
    """A loss, weight or gradient is not finite, or the loss has exploded.

    Args:
        text: the message.
        epoch: where it began, from 1.
        step: within the epoch, from 1; None if it is not known.
        layer: the name of the module where it began ("" is the network itself); None if it is not known.
    """

    def __init__(self, text: str, *, epoch: int, step: int | None = None, layer: str | None = None):
        super().__init__(text)
        self.epoch, self.step, self.layer = epoch, step, layer


class NonFiniteLocator(ForwardHooks):
    """Finds, inside `with`, the first module whose output or gradient is not finite.

    Outputs count first, in the order in which modules run. A gradient counts only if all outputs are finite; it is that
    of a module's output, in the order of the backward pass.

    Args:
        network: runs inside `with`.

    Attributes:
        output: the first module with such an output; None if there is none.
        gradient: the first module with such a gradient; None if there is none.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self.output: str | None = None
        self.gradient: str | None = None

    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        return ((module, self._output_hook(name)) for name, module in modules_with_hooks(self._network))

    def _output_hook(self, name: str) -> Any:
        def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if self.output is None and not _finite(tensor):
                    self.output = name
                if tensor.requires_grad:
                    tensor.register_hook(self._gradient_hook(name))

        return check_output

    def _gradient_hook(self, name: str) -> Any:
        def check_gradient(gradient: Tensor) -> None:
            if self.gradient is None and not _finite(gradient):
                self.gradient = name

        return check_gradient

    @property
    def first(self) -> tuple[str | None, str]:
        """The module and a sentence about it.

        The name "" is the network itself; None means that no module was found.
        """
        for name, kind in ((self.output, "output"), (self.gradient, "gradient")):
            if name is not None:
                return name, f"first in the {kind} of {quoted(name)}"
        owner = _first_gradient(self._network)
        return owner, "no layer's output was at fault" if owner is None else f"first in the gradient of `{owner}`"


def quoted(name: str) -> str:
    """Write a module's name for a message."""
    return f"`{name}`" if name else "the network as a whole"


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _first_gradient(network: nn.Module) -> str | None:
    """Name the module that owns the first parameter whose gradient is not finite."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return name.rpartition(".")[0]
    return None


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Check whether all tensors are finite, without waiting for the device.

    The sums of absolute values are checked, which reads each tensor once and copies nothing. A finite tensor whose sum
    overflows is far beyond any use.

    Args:
        tensors: on one device; those of whole numbers are always finite.

    Returns:
        A bool on the device, of shape ().
    """
    numbers = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    return torch.isfinite(torch.stack(torch._foreach_norm(numbers, 1))).all()


class DivergenceMonitor:
    """Checks the epochs of one training for divergence.

    Args:
        train_step: takes the steps, and repeats them after a divergence.
        batches: gives the batches of the epoch from its first, the same at every call.
        load_state: restores a state of `train_step`, and frees what was recorded on the tensors that it replaces.
        classes: K.
    """

    def __init__(
        self, train_step: TrainStep, batches: Callable[[], Iterator[Batch]],
        load_state: Callable[[dict[str, Tensor]], None], classes: int,
    ):  # fmt: skip
        self._train_step, self._batches, self._load_state = train_step, batches, load_state
        self._limit = EXPLOSION_FACTOR * math.log(max(2, classes))
        self._state: dict[str, Tensor] = {}
        self._random: RandomState | None = None
        self._start = 0  # steps of this epoch that were done when the state was copied

    def begin(self) -> None:
        """Start a new epoch."""
        self._train_step.begin_epoch()
        self._copy_state(0)

    def _copy_state(self, done: int) -> None:
        """Copy the state, into the last copy's memory where there is one."""
        live = self._train_step.state()
        if live.keys() != self._state.keys():
            self._state = {name: torch.empty_like(tensor) for name, tensor in live.items()}
        names_by_type: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, tensor in live.items():
            names_by_type.setdefault((tensor.device, tensor.dtype), []).append(name)
        for names in names_by_type.values():  # tensors of one type are copied by few kernels
            torch._foreach_copy_([self._state[name] for name in names], [live[name] for name in names])
        self._start, self._random = done, random_state(self._train_step.device)

    @torch.no_grad()
    def check(self, meter: TrainMeter, done: int) -> None:
        """Check the steps since the last check.

        Args:
            meter: of the epoch.
            done: steps of the epoch that have been taken.

        Raises:
            DivergedError: the training has diverged.
        """
        losses, cross_entropies = meter.losses[self._start : done], meter.parts[:done, 0][-CHECK_EVERY:]
        checks = torch.stack([
            torch.isfinite(losses).all(), all_finite(self._train_step.network.parameters()),
            (self._train_step.collapsed == 0).all(), cross_entropies.mean() <= self._limit,
        ])  # fmt: skip
        variational = self._train_step.objective.variational
        if variational is not None:
            mean_kl = meter.parts[self._start : done, -1].mean()
            checks = torch.cat([checks, (mean_kl <= EXPLOSION_FACTOR * max(1.0, variational.initial_kl))[None]])
        *finite, bounded, bounded_kl = [*checks.tolist(), True][:5]  # the one read that waits for the device
        if not all(finite):
            raise self._trace(meter, done)
        if not bounded:
            raise self._exploded(cross_entropies, done - len(cross_entropies))
        if not bounded_kl:
            assert variational is not None
            raise self._exploded_kl(variational, done)
        if done < self._train_step.steps_per_epoch:  # the next epoch begins with a copy
            self._copy_state(done)

    def _exploded(self, losses: Tensor, before: int) -> DivergedError:
        """Name the step, after `before` others, whose loss first passed the limit, and the layer that moved most."""
        offset = int((losses > self._limit).nonzero()[0])
        step, epoch = before + offset + 1, self._train_step.epoch + 1
        movements = self._relative_movements()
        layer = max(movements, key=lambda name: movements[name])
        return DivergedError(
            f"training loss {losses[offset].item():.3g} in epoch {epoch}, step {step} has exploded: the mean of "
            f"{len(losses)} steps is over {self._limit:.3g}; {quoted(layer)} has moved most, by {movements[layer]:.3g} "
            "times its size", epoch=epoch, step=step, layer=layer,
        )  # fmt: skip

    def _exploded_kl(self, variational: VariationalTraining, done: int) -> DivergedError:
        """Name the layer whose divergence from the prior has grown most."""
        epoch, layer = self._train_step.epoch + 1, variational.grown_most()
        return DivergedError(
            f"the divergence from the prior in epoch {epoch}, step {done} has exploded: it is over "
            f"{EXPLOSION_FACTOR:g} times what it was at the start; that of {quoted(layer)} has grown most",
            epoch=epoch, step=done, layer=layer,
        )  # fmt: skip

    def _relative_movements(self) -> dict[str, float]:
        """Measure how far each layer's own parameters are from the last copy, as a multiple of their norm there."""
        squares: dict[str, list[float]] = {}
        for name, now in self._train_step.network.named_parameters():
            then = self._state[f"network.{name}"]
            sums = squares.setdefault(name.rpartition(".")[0], [0.0, 0.0])
            sums[0] += (now - then).abs().double().square().sum().item()
            sums[1] += then.abs().double().square().sum().item()
        return {name: math.sqrt(moved / max(size, 1e-30)) for name, (moved, size) in squares.items()}

    def _trace(self, meter: TrainMeter, done: int) -> DivergedError:
        """Repeat the steps since the last check to see where the divergence began."""
        epoch = self._train_step.epoch + 1
        faulty = ~torch.isfinite(meter.losses[:done]) | (self._train_step.collapsed[:done] > 0)
        last = int(faulty.nonzero()[0]) if bool(faulty.any()) else done - 1
        error = self._replay(last)
        if error is not None:
            return error
        loss = meter.losses[last].item()
        fault = f"training loss {loss}" if not math.isfinite(loss) else "weights or gradients that are not finite"
        return DivergedError(
            f"{fault} in epoch {epoch}, step {last + 1}; run again, the steps before it did not show the layer",
            epoch=epoch, step=last + 1,
        )  # fmt: skip

    @torch.enable_grad()
    def _replay(self, last: int) -> DivergedError | None:
        """Repeat the steps from the copy to `last` (from 0); the first faulty one runs once more with hooks."""
        train_step = self._train_step
        self._load_state(self._state)
        assert self._random is not None, "an epoch begins with a copy"
        set_random_state(self._random, train_step.device)
        batches = itertools.islice(self._batches(), self._start, last + 1)
        for step, batch in enumerate(batches, start=self._start):
            random = random_state(train_step.device)
            buffers = [buffer.clone() for buffer in train_step.network.buffers()]
            loss = self._compute_gradients(step, batch)
            fault = self._fault(loss)
            if fault is None:
                train_step.update(step)
                continue
            set_random_state(random, train_step.device)
            for buffer, before in zip(train_step.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            with NonFiniteLocator(train_step.network) as locator:
                self._compute_gradients(step, batch)
            layer, where = locator.first
            variational = train_step.objective.variational
            if locator.output is None and variational is not None and (name := variational.not_finite()) is not None:
                layer, where = name, f"first in the divergence of {quoted(name)} from its prior"
            epoch = train_step.epoch + 1
            return DivergedError(f"{fault} in epoch {epoch}, step {step + 1}; {where}",
                                 epoch=epoch, step=step + 1, layer=layer)  # fmt: skip
        return None

    def _compute_gradients(self, step: int, batch: Batch) -> float:
        """Compute the gradients of a step; returns its loss."""
        train_step = self._train_step
        meter = TrainMeter(train_step.steps_per_epoch, train_step.objective.names, train_step.device)
        train_step.compute_gradients(step, batch, meter)
        if train_step.group is not None:
            meter.sum_over_processes(range(step, step + 1), train_step.group)
        return float(meter.losses[step])

    def _fault(self, loss: float) -> str | None:
        """Say what is wrong with a step; None if nothing is, or if float16's scaling merely skips it."""
        if not math.isfinite(loss):
            return f"training loss {loss}"
        parameters = self._train_step.network.parameters()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scaler = self._train_step.scaler
        if (scaler is not None and scaler.scale.item() > MIN_SCALE) or bool(all_finite(gradients)):
            return None
        if scaler is not None:
            return f"gradients still overflow at the least loss scale ({MIN_SCALE:g})"
        return f"gradients are not finite (training loss {loss:.3g})"
