"""Metrics of an epoch: errors, losses, gradients, speed and memory, under the names that the records use.

Everything is summed on the device and read once an epoch. Means are over samples, also with an incomplete batch.
Shapes: B images, K classes, P parameters.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.training.engine.data_parallel import DataParallelGroup

TOP5_ABOVE = 5  # with so many classes or fewer, every top-5 error is 0
GRADIENT_SAMPLES = 8  # steps of an epoch, evenly spread, at which gradients are measured
STAGE_NORM = "grad_norm."  # followed by the name of a stage


class TrainMeter:
    """Losses and errors of an epoch's training steps.

    A step may come in several micro-batches.

    Args:
        steps: of the epoch.
        names: parts of the loss, in their order.
        device: of the network.

    Attributes:
        losses: (steps,), mean over each step's images.
        parts: (steps, len(names)), the parts of `losses`.
        wrong: int64 (steps,), misclassified images.
        sizes: images of each step.
    """

    def __init__(self, steps: int, names: Sequence[str], device: torch.device):
        self.names = tuple(names)
        self.losses = torch.zeros(steps, device=device)
        # A single part is the loss itself
        self.parts = torch.zeros(steps, len(names), device=device) if len(names) > 1 else self.losses[:, None]
        self.wrong = torch.zeros(steps, dtype=torch.int64, device=device)
        self.sizes = [0] * steps

    def add(
        self, step: int, share: float, logits: Tensor, labels: Tensor, loss: Tensor, parts: Sequence[Tensor]
    ) -> None:
        """Add a micro-batch.

        Args:
            step: counts from 0 within the epoch.
            share: of the step's images that are in the micro-batch.
            logits: (B, K).
            labels: int64 (B,).
            loss: mean over the micro-batch.
            parts: of the loss.
        """
        self.losses[step].add_(loss, alpha=share)
        if len(self.names) > 1:
            self.parts[step].add_(torch.stack(list(parts)), alpha=share)
        self.wrong[step].add_((logits.argmax(1) != labels).sum())
        self.sizes[step] += len(labels)

    def sum_over_processes(self, steps: range, group: DataParallelGroup) -> None:
        """Replace steps of this process's images by those of all processes' images.

        Args:
            steps: consecutive, counted from 0 within the epoch; each once.
            group: every process of it must call this.
        """
        at = slice(steps.start, steps.stop)
        total = torch.cat([self.losses[at, None], self.parts[at], self.wrong[at, None]], dim=1).double()
        group.sum_in_place(total)
        means = total[:, :-1] / group.count
        self.parts[at] = means[:, 1:]
        self.losses[at] = means[:, 0]
        self.wrong[at] = total[:, -1].long()
        for step in steps:
            self.sizes[step] *= group.count

    def copy_step(self, step: int, other: TrainMeter) -> None:
        """Copy another meter's only step.

        Args:
            step: of this meter, counts from 0 within the epoch.
            other: a meter of one step.
        """
        self.losses[step].copy_(other.losses[0])
        if len(self.names) > 1:
            self.parts[step].copy_(other.parts[0])
        self.wrong[step].copy_(other.wrong[0])
        self.sizes[step] += other.sizes[0]

    def clear(self) -> None:
        """Set everything to zero, in the same memory."""
        self.losses.zero_()
        if len(self.names) > 1:
            self.parts.zero_()
        self.wrong.zero_()
        self.sizes = [0] * len(self.sizes)

    @property
    def images(self) -> int:
        """Images of all steps so far."""
        return sum(self.sizes)

    def read(self) -> dict[str, float]:
        """Read the epoch, which waits for the device.

        Returns:
            train_loss, its parts by name, and train_error in percent.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64, device=self.losses.device)
        table = torch.cat([self.losses[:, None], self.parts], dim=1).double()
        means = ((table * sizes[:, None]).sum(0) / sizes.sum()).tolist()
        error = {"train_error": 100 * self.wrong.sum().item() / self.images}
        return dict(zip(("train_loss", *self.names), means, strict=True)) | error


class EvalMeter:
    """Loss, errors and spread of predictions over a split.

    Args:
        classes: K.
        device: of the network.
        images: of the whole split.
        start: position in the split of the first image that this process evaluates; the others follow it.

    Attributes:
        wrong_images: uint8 (images,), 1 where the network was wrong; it stays on the device.
    """

    def __init__(self, classes: int, device: torch.device, images: int, start: int = 0):
        self.classes, self.count, self._position = classes, 0, start
        self.wrong_images = torch.zeros(images, dtype=torch.uint8, device=device)
        self.loss, self.wrong, self.wrong5 = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        self.sums, self.squares, self.images_of, self.wrong_of = (
            torch.zeros(classes, dtype=torch.float64, device=device) for _ in range(4)
        )

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: float32 (B, K).
            labels: int64 (B,).
        """
        self.loss += functional.cross_entropy(logits, labels, reduction="sum")
        wrong = logits.argmax(1) != labels
        self.note_wrong(wrong)
        self.wrong += wrong.sum()
        self.images_of.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self.wrong_of.scatter_add_(0, labels, wrong.double())
        if self.classes > TOP5_ABOVE:
            self.wrong5 += (logits.topk(5, dim=1).indices != labels[:, None]).all(1).sum()
        predicted = logits.softmax(1).double()
        self.sums += predicted.sum(0)
        self.squares += predicted.square().sum(0)

    def note_wrong(self, wrong: Tensor) -> None:
        """Count the next images, and note which of them are wrong.

        Args:
            wrong: bool or uint8 (B,).
        """
        self.wrong_images[self._position : self._position + len(wrong)] = wrong
        self._position += len(wrong)
        self.count += len(wrong)

    def take(self, other: EvalMeter) -> None:
        """Add another meter's sums; its images must have been counted by `note_wrong`.

        Args:
            other: over the same classes.
        """
        for total, part in zip(self._sums, other._sums, strict=True):
            total.add_(part)

    def clear(self) -> None:
        """Set all sums to zero, in the same memory."""
        for total in self._sums:
            total.zero_()

    def rewind(self) -> None:
        """Let the next images take the rows of the first ones; the sums stay."""
        self._position = self.count = 0

    @property
    def _sums(self) -> tuple[Tensor, ...]:
        return self.loss, self.wrong, self.wrong5, self.sums, self.squares, self.images_of, self.wrong_of

    def sum_over_processes(self, group: DataParallelGroup) -> None:
        """Replace the sums over this process's images by those over all processes' images.

        Args:
            group: every process of it must call this.
        """
        count = torch.tensor([self.count], device=self.sums.device)
        group.sum_in_place(*self._sums, count, self.wrong_images)
        self.count = int(count.item())

    def read(self) -> dict[str, float]:
        """Read the split, which waits for the device.

        Returns:
            loss, error, balanced_error (the mean over classes of the error on their images) and error_top5 (in percent;
            the latter only for more than 5 classes), and prediction_spread: the mean over classes of the standard
            deviation, over images, of the predicted probability. It is 0 for a network with the same output for every
            image, sqrt(K - 1) / K for one that is always certain and predicts each of K classes equally often.
        """
        scalars = torch.stack([self.loss, self.wrong, self.wrong5])
        read = torch.cat([scalars, self.sums, self.squares, self.images_of, self.wrong_of]).cpu()  # the only wait
        loss, wrong, wrong5 = read[:3].tolist()
        sums, squares, images_of, wrong_of = read[3:].view(4, self.classes)
        variance = (squares / self.count - (sums / self.count).square()).clamp_min(0)
        metrics = {"loss": loss / self.count, "error": 100 * wrong / self.count}
        present = images_of > 0
        metrics["balanced_error"] = 100 * (wrong_of[present] / images_of[present]).mean().item()
        if self.classes > TOP5_ABOVE:
            metrics["error_top5"] = 100 * wrong5 / self.count
        return metrics | {"prediction_spread": variance.sqrt().mean().item()}


def stage_of(network: nn.Module, name: str) -> str:
    """Name the stage of the network that a parameter belongs to.

    That is the network's direct child that holds it, such as `stage1` or `classifier`. Where the ends of stages
    (`network.taps`) lie inside such a child, as in a list of cells, it is the next end.

    Args:
        network: has the parameter.
        name: of the parameter.

    Returns:
        The name of a module.
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
    """Name the modules that contain a parameter, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


class GradientMeter:
    """L2 norms of the gradient, total and by stage, at some steps of an epoch.

    They are those before clipping, without decay.

    Args:
        network: its trained parameters are measured.
        steps: of an epoch.
    """

    def __init__(self, network: nn.Module, steps: int):
        self._stages = [
            (stage_of(network, name), parameter)
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        ]
        samples = min(GRADIENT_SAMPLES, steps)
        self._steps = {(index + 1) * steps // samples - 1 for index in range(samples)}  # the last one among them
        self._present: list[str] = []
        self._samples: list[tuple[list[str], Tensor]] = []

    def add(self, step: int) -> None:
        """Measure the gradients if `step` is sampled."""
        if step in self._steps:
            self.add_norms(step, self.norms())

    def norms(self) -> Tensor:
        """Compute the norm of each parameter's gradient, for `add_norms`.

        Returns:
            A norm for each parameter that has a gradient now; their stages are remembered.
        """
        present = [(stage, parameter.grad) for stage, parameter in self._stages if parameter.grad is not None]
        self._present = [stage for stage, _ in present]
        return torch.stack(torch._foreach_norm([gradient for _, gradient in present]))

    def add_norms(self, step: int, norms: Tensor) -> None:
        """Add norms if `step` is sampled.

        Args:
            step: counts from 0 within the epoch.
            norms: from `norms`.
        """
        if step in self._steps:
            self._samples.append((self._present, norms.clone()))

    def read(self) -> dict[str, float]:
        """Read the epoch, which waits for the device, and start a new one.

        Returns:
            grad_norm and grad_norm.STAGE, means over the sampled steps that did not overflow (float16); that of a
            stage over those in which it had gradients, since a layer may be dropped in some steps.
        """
        rows = []
        for stages, norms in self._samples:
            row = {"grad_norm": 0.0}
            for stage, norm in zip(stages, norms.double().square().tolist(), strict=True):
                row["grad_norm"] += norm
                row[STAGE_NORM + stage] = row.get(STAGE_NORM + stage, 0.0) + norm
            rows.append({name: value**0.5 for name, value in row.items()})
        self._samples.clear()
        finite = [row for row in rows if row["grad_norm"] < float("inf")]
        values: dict[str, list[float]] = {}
        for row in finite:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        return {name: sum(norms) / len(norms) for name, norms in values.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak of device memory.

    Args:
        device: of the network.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def machine_metrics(device: torch.device) -> dict[str, float]:
    """Read memory in MB (1e6 bytes) and utilisation in percent.

    Args:
        device: of the network.

    Returns:
        peak_device_mb: the most that tensors of this process held since `reset_peak_memory`.
        device_utilisation: the GPU's, all processes together, over the driver's last sample (below a second).
        host_memory_mb: of this process, resident now.
        What the machine does not tell is absent.
    """
    metrics = {}
    if device.type == "cuda":
        metrics["peak_device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        if importlib.util.find_spec("pynvml") is not None:
            metrics |= _utilisation(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        metrics["host_memory_mb"] = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return metrics


def _utilisation(device: torch.device) -> dict[str, float]:
    import pynvml  # an optional package, needed on GPUs alone

    try:
        return {"device_utilisation": float(torch.cuda.utilization(device))}
    except pynvml.NVMLError:  # a MIG slice of a GPU has no utilisation of its own
        return {}
