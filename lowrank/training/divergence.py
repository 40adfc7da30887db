"""Divergence: seen without making a step wait, and then traced to the epoch, the step and the layer where it began.

A training has diverged when a loss or a gradient is not finite, when float16's loss scale has fallen to its floor and
gradients still overflow, or when the loss explodes: a mean cross-entropy, over the last CHECK_EVERY steps of the epoch,
of more than EXPLOSION_FACTOR times log K, which is what guessing evenly among K classes costs.

Every CHECK_EVERY steps, and at an epoch's end, one look at what lies on the device waits for it. Where all was well, it
keeps a copy of the state; where not, the steps since that copy are run again, each watched.
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
from lowrank.training.engine.precision import MIN_SCALE
from lowrank.training.engine.rng import random_state, set_random_state
from lowrank.training.engine.step import TrainStep
from lowrank.training.metrics import TrainMeter
from lowrank.utils.hooks import ForwardHooks

CHECK_EVERY = 50  # steps
EXPLOSION_FACTOR = 20.0  # times log K


class DivergedError(LowrankError):
    """The training left the numbers; `epoch` and `step` count from 1, `layer` is a module's name where one is known."""

    def __init__(self, text: str, *, epoch: int, step: int | None = None, layer: str | None = None):
        super().__init__(text)
        self.epoch, self.step, self.layer = epoch, step, layer


class NonFiniteLocator(ForwardHooks):
    """Names the first module, in the order in which they run, whose output or gradient is not finite.

    Outputs come first; a gradient counts only where all outputs are finite, and is that of a module's output, in the
    order of the backward pass.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self.output: str | None = None
        self.gradient: str | None = None

    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        return ((module, self._seer(name)) for name, module in self._network.named_modules())

    def _seer(self, name: str) -> Any:
        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if self.output is None and not _finite(tensor):
                    self.output = name
                if tensor.requires_grad:
                    tensor.register_hook(self._grader(name))

        return see

    def _grader(self, name: str) -> Any:
        def grade(gradient: Tensor) -> None:
            if self.gradient is None and not _finite(gradient):
                self.gradient = name

        return grade

    @property
    def first(self) -> tuple[str | None, str]:
        """The module's name ("" is the network itself; None: none was seen), and the finding in words."""
        for name, what in ((self.output, "output"), (self.gradient, "gradient")):
            if name is not None:
                return name, f"first in the {what} of {shown(name)}"
        weights = _first_gradient(self._network)
        return weights, "no layer's output was at fault" if weights is None else f"first in the gradient of `{weights}`"


def shown(name: str) -> str:
    """A module's name for a message."""
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
    """The module that owns the first parameter whose gradient is not finite."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return name.rpartition(".")[0]
    return None


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, as a tensor on the device.

    Sums of absolute values tell, for a read of each and no copy; a sum that itself overflows is far beyond any use.
    """
    return torch.isfinite(torch.stack(torch._foreach_norm(list(tensors), 1))).all()


class DivergenceMonitor:
    """Looks after the epochs of one training.

    Args:
        train_step: what is watched.
        batches: gives the batches of the epoch from its first, the same at every call.
        classes: how many.
    """

    def __init__(self, train_step: TrainStep, batches: Callable[[], Iterator[Batch]], classes: int):
        self._train_step, self._batches = train_step, batches
        self._limit = EXPLOSION_FACTOR * math.log(max(2, classes))
        self._state: dict[str, Tensor] = {}
        self._random: list[Tensor] = []
        self._start = 0  # steps of this epoch done when the copy was made

    def begin(self) -> None:
        """An epoch begins."""
        self._train_step.begin_epoch()
        self._keep(0)

    def _keep(self, done: int) -> None:
        """Copy the state, into the last copy's memory where there is one."""
        live = self._train_step.state()
        if live.keys() != self._state.keys():
            self._state = {name: torch.empty_like(tensor) for name, tensor in live.items()}
        kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, tensor in live.items():
            kinds.setdefault((tensor.device, tensor.dtype), []).append(name)
        for names in kinds.values():  # a list of one kind is copied by few kernels
            torch._foreach_copy_([self._state[name] for name in names], [live[name] for name in names])
        self._start, self._random = done, random_state(self._train_step.device)

    @torch.no_grad()
    def look(self, meter: TrainMeter, done: int) -> None:
        """Look at the epoch's first `done` steps; raises DivergedError."""
        losses, plain = meter.losses[self._start : done], meter.parts[:done, 0][-CHECK_EVERY:]
        well = torch.stack([
            torch.isfinite(losses).all(), all_finite(self._train_step.network.parameters()),
            (self._train_step.collapsed == 0).all(), plain.mean() <= self._limit,
        ])  # fmt: skip
        finite, weights, scale, calm = well.tolist()
        if not finite or not scale or not weights:
            raise self._traced(meter, done)
        if not calm:
            raise self._exploded(plain, done - len(plain))
        if done < self._train_step.steps_per_epoch:  # the next epoch keeps its own
            self._keep(done)

    def _exploded(self, losses: Tensor, before: int) -> DivergedError:
        """The step, after `before` others, whose loss first left the limit, and the layer that has moved most."""
        offset = int((losses > self._limit).nonzero()[0])
        step, epoch = before + offset + 1, self._train_step.epoch + 1
        moved = self._moved()
        layer = max(moved, key=lambda name: moved[name])
        return DivergedError(
            f"training loss {losses[offset].item():.3g} in epoch {epoch}, step {step} has exploded: the mean of "
            f"{len(losses)} steps is over {self._limit:.3g}; {shown(layer)} has moved most, by {moved[layer]:.3g} "
            "times its size", epoch=epoch, step=step, layer=layer,
        )  # fmt: skip

    def _moved(self) -> dict[str, float]:
        """How far each layer's own parameters are from the last copy, as a multiple of their size there."""
        squares: dict[str, list[float]] = {}
        for name, now in self._train_step.network.named_parameters():
            then = self._state[f"network.{name}"]
            sums = squares.setdefault(name.rpartition(".")[0], [0.0, 0.0])
            sums[0] += (now - then).double().square().sum().item()
            sums[1] += then.double().square().sum().item()
        return {name: math.sqrt(moved / max(size, 1e-30)) for name, (moved, size) in squares.items()}

    def _traced(self, meter: TrainMeter, done: int) -> DivergedError:
        """What went wrong in the steps since the last look, from running them again."""
        epoch, bad = (
            self._train_step.epoch + 1,
            ~torch.isfinite(meter.losses[:done]) | (self._train_step.collapsed[:done] > 0),
        )
        last = int(bad.nonzero()[0]) if bool(bad.any()) else done - 1
        found = self._replay(last)
        if found is not None:
            return found
        loss = meter.losses[last].item()
        what = f"training loss {loss}" if not math.isfinite(loss) else "weights or gradients that are not finite"
        return DivergedError(
            f"{what} in epoch {epoch}, step {last + 1}; run again, the steps before it did not show the layer",
            epoch=epoch, step=last + 1,
        )  # fmt: skip

    @torch.enable_grad()
    def _replay(self, last: int) -> DivergedError | None:
        """Run the steps from the copy to `last` (from 0) again; the first that goes wrong once more, watched."""
        train_step = self._train_step
        train_step.load_state(self._state)
        set_random_state(self._random, train_step.device)
        batches = itertools.islice(self._batches(), self._start, last + 1)
        for step, batch in enumerate(batches, start=self._start):
            random, buffers = random_state(train_step.device), [each.clone() for each in train_step.network.buffers()]
            loss = self._gradients(step, batch)
            what = self._fault(loss)
            if what is None:
                train_step.update(step)
                continue
            set_random_state(random, train_step.device)
            for buffer, before in zip(train_step.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            with NonFiniteLocator(train_step.network) as watch:
                self._gradients(step, batch)
            layer, where = watch.first
            epoch = train_step.epoch + 1
            return DivergedError(f"{what} in epoch {epoch}, step {step + 1}; {where}",
                                 epoch=epoch, step=step + 1, layer=layer)  # fmt: skip
        return None

    def _gradients(self, step: int, batch: Any) -> float:
        meter = TrainMeter(self._train_step.steps_per_epoch, self._train_step.objective.names, self._train_step.device)
        self._train_step.compute_gradients(step, batch, meter)
        return float(meter.losses[step])

    def _fault(self, loss: float) -> str | None:
        """What is wrong with a step, in words; None for nothing (a float16 step that is merely skipped)."""
        if not math.isfinite(loss):
            return f"training loss {loss}"
        gradients = [each.grad for each in self._train_step.network.parameters() if each.grad is not None]
        scale = self._train_step.scaler
        if (scale is not None and scale.scale.item() > MIN_SCALE) or bool(all_finite(gradients)):
            return None
        if scale is not None:
            return f"gradients still overflow at the least loss scale ({MIN_SCALE:g})"
        return f"gradients are not finite (training loss {loss:.3g})"
