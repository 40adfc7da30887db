"""What an epoch tells of itself: errors, losses, gradients, speed and memory, under the names of the records.

Everything is summed on the device and read once an epoch. Means are over samples, also with an incomplete batch.
Shapes: B images, K classes, P parameters.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from lowrank.training.engine.data_parallel import DataParallelGroup

TOP5_ABOVE = 5  # classes from which on a top-5 error says something
GRADIENT_SAMPLES = 8  # steps of an epoch, evenly spread, at which gradients are measured
STAGE_NORM = "grad_norm."  # followed by the name of a stage


class TrainMeter:
    """Losses and errors of an epoch's training steps; a step may come in several micro-batches."""

    def __init__(self, steps: int, names: Sequence[str], device: torch.device):
        self.names = tuple(names)
        self.losses = torch.zeros(steps, device=device)
        # With one part alone the loss is that part
        self.parts = torch.zeros(steps, len(names), device=device) if len(names) > 1 else self.losses[:, None]
        self.wrong = torch.zeros(steps, dtype=torch.int64, device=device)
        self.sizes = [0] * steps

    def add(
        self, step: int, share: float, logits: Tensor, labels: Tensor, loss: Tensor, parts: Sequence[Tensor]
    ) -> None:
        """Take in a micro-batch that is `share` of the step's images."""
        self.losses[step].add_(loss, alpha=share)
        if len(self.names) > 1:
            self.parts[step].add_(torch.stack(list(parts)), alpha=share)
        self.wrong[step].add_((logits.argmax(1) != labels).sum())
        self.sizes[step] += len(labels)

    def add_up(self, step: int, ranks: DataParallelGroup) -> None:
        """Make a step that every rank has taken in, each its own images, that of all of them together."""
        at = slice(step, step + 1)
        means = torch.cat([self.losses[at], self.parts[step] if len(self.names) > 1 else self.losses[:0]])
        total = torch.cat([means.double(), self.wrong[at].double()])
        ranks.add_up(total)
        self.losses[at] = total[:1] / ranks.count
        if len(self.names) > 1:
            self.parts[step] = total[1:-1] / ranks.count
        self.wrong[at] = total[-1:].long()
        self.sizes[step] *= ranks.count

    def take(self, step: int, other: TrainMeter) -> None:
        """Take in another meter's only step as this one's `step`."""
        self.losses[step].copy_(other.losses[0])
        if len(self.names) > 1:
            self.parts[step].copy_(other.parts[0])
        self.wrong[step].copy_(other.wrong[0])
        self.sizes[step] += other.sizes[0]

    def clear(self) -> None:
        """Begin again, in the same memory."""
        self.losses.zero_()
        if len(self.names) > 1:
            self.parts.zero_()
        self.wrong.zero_()
        self.sizes = [0] * len(self.sizes)

    @property
    def images(self) -> int:
        """Images seen."""
        return sum(self.sizes)

    def read(self) -> dict[str, float]:
        """train_loss, its parts by name, and train_error in percent."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64, device=self.losses.device)
        table = torch.cat([self.losses[:, None], self.parts], dim=1).double()
        means = ((table * sizes[:, None]).sum(0) / sizes.sum()).tolist()
        error = {"train_error": 100 * self.wrong.sum().item() / self.images}
        return dict(zip(("train_loss", *self.names), means, strict=True)) | error


class EvalMeter:
    """Loss, errors and spread of predictions over a split."""

    def __init__(self, classes: int, device: torch.device):
        self.classes, self.count = classes, 0
        self.loss, self.wrong, self.wrong5 = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        self.sums, self.squares = (torch.zeros(classes, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: logits float32 (B, K), labels (B,)."""
        self.count += len(labels)
        self.loss += functional.cross_entropy(logits, labels, reduction="sum")
        self.wrong += (logits.argmax(1) != labels).sum()
        if self.classes > TOP5_ABOVE:
            self.wrong5 += (logits.topk(5, dim=1).indices != labels[:, None]).all(1).sum()
        predicted = logits.softmax(1).double()
        self.sums += predicted.sum(0)
        self.squares += predicted.square().sum(0)

    def add_up(self, ranks: DataParallelGroup) -> None:
        """Make what every rank has taken in, each its own images, that of all of them together."""
        count = torch.tensor([self.count], device=self.sums.device)
        ranks.add_up(self.loss, self.wrong, self.wrong5, self.sums, self.squares, count)
        self.count = int(count.item())

    def read(self) -> dict[str, float]:
        """loss, error and error_top5 (percent; the latter only for more than 5 classes), prediction_spread.

        prediction_spread is the mean over classes of the standard deviation, over images, of the predicted
        probability: 0 for a network that says the same of every image, sqrt(K - 1) / K for one that is always sure
        and gives each of K classes an equal part.
        """
        variance = (self.squares / self.count - (self.sums / self.count).square()).clamp_min(0)
        found = {"loss": self.loss.item() / self.count, "error": 100 * self.wrong.item() / self.count}
        if self.classes > TOP5_ABOVE:
            found["error_top5"] = 100 * self.wrong5.item() / self.count
        return found | {"prediction_spread": variance.sqrt().mean().item()}


def stage_of(network: nn.Module, name: str) -> str:
    """The stage of the network that a parameter belongs to.

    That is the part of the network's own that holds it, such as `stage1` or `classifier`. Where the ends of stages
    (`taps`) lie deeper in such a part, as in a list of cells, it is the next end.
    """
    part = name.partition(".")[0]
    ends = [tap for tap in getattr(network, "taps", ()) if tap.startswith(f"{part}.")]
    if not ends:
        return part
    order = list(dict(network.named_modules()))
    position = order.index(next(module for module in _parents(name) if module in order))
    following = (end for end in ends if name.startswith(f"{end}.") or order.index(end) >= position)
    return next(following, part)


def _parents(name: str) -> list[str]:
    """Names of the modules around a parameter, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


class GradientMeter:
    """L2 norms of the gradient, of all and by stage, at some steps of an epoch; before clipping, without decay."""

    def __init__(self, network: nn.Module, steps: int):
        self._stages = [
            (stage_of(network, name), parameter)
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        ]
        samples = min(GRADIENT_SAMPLES, steps)
        self._steps = {(index + 1) * steps // samples - 1 for index in range(samples)}  # the last one among them
        self._present: list[str] = []
        self._found: list[tuple[list[str], Tensor]] = []

    def add(self, step: int) -> None:
        """Measure, at a step that is sampled."""
        if step in self._steps:
            self.take(step, self.norms())

    def norms(self) -> Tensor:
        """The norm of each parameter's gradient now; also says which parameters have one."""
        present = [(stage, parameter.grad) for stage, parameter in self._stages if parameter.grad is not None]
        self._present = [stage for stage, _ in present]
        return torch.stack(torch._foreach_norm([gradient for _, gradient in present]))

    def take(self, step: int, norms: Tensor) -> None:
        """Take in the norms of a step, where it is sampled."""
        if step in self._steps:
            self._found.append((self._present, norms.clone()))

    def read(self) -> dict[str, float]:
        """grad_norm and grad_norm.STAGE, means over the sampled steps, less those that overflowed (float16)."""
        rows = []
        for stages, norms in self._found:
            row = {"grad_norm": 0.0}
            for stage, norm in zip(stages, norms.double().square().tolist(), strict=True):
                row["grad_norm"] += norm
                row[STAGE_NORM + stage] = row.get(STAGE_NORM + stage, 0.0) + norm
            rows.append({name: value**0.5 for name, value in row.items()})
        self._found.clear()
        finite = [row for row in rows if row["grad_norm"] < float("inf")]
        return {name: sum(row[name] for row in finite) / len(finite) for name in finite[0]} if finite else {}


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of device memory, so that the next one is this epoch's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def machine_metrics(device: torch.device) -> dict[str, float]:
    """What the machine says: memory in MB (1e6 bytes), utilisation in percent; what it does not know is left out.

    peak_device_mb: the most that tensors of this process held since `reset_peak_memory`.
    device_utilisation: the card's, all processes together, over the driver's last sample (below a second).
    host_memory_mb: this process, resident now.
    """
    found = {}
    if device.type == "cuda":
        found["peak_device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        if importlib.util.find_spec("pynvml") is not None:
            found |= _utilisation(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        found["host_memory_mb"] = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return found


def _utilisation(device: torch.device) -> dict[str, float]:
    import pynvml  # only where there is a card, and not always there

    try:
        return {"device_utilisation": float(torch.cuda.utilization(device))}
    except pynvml.NVMLError:  # a slice of a card does not know
        return {}
