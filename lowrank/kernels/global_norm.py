"""Batch norm in training whose statistics are those of the batches of all processes that train together.

Each process has a batch of the same size, of the same channels. Forward: the processes exchange each channel's mean and
variance. Backward: likewise the two sums that the gradient by the input needs. The gradients of weight and bias are
those of this process's own images; whoever averages gradients over processes averages these too.

Each exchange gathers what every process has, and each process joins it in the order of the processes. The messages are
so small that only their delay counts, and a gather has fewer steps than a sum over processes; no buffer must be zero.

On GPUs the passes over the images are the kernels of lowrank.kernels.batch_norm; elsewhere, and where those cannot run,
torch's own functions. The operations can be recorded in a CUDA graph, and stand in a compiled graph as they are.

Letters: P processes, B images of one of them, C channels. Statistics and sums have the rows (2, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, distributed as dist

from lowrank.kernels.dispatch import MAX_ENTRIES, supports_kernels

# Torch 2.13 has renamed it
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class _Exchange:
    """Whether this process exchanges anything now; for all its threads, since backward passes have their own."""

    suspended = False


@contextmanager
def suspended_exchange() -> Iterator[None]:
    """Let this process compute alone inside `with`: nothing is exchanged.

    For a step whose results do not count, such as the one that compiles: the processes take it one after another. Its
    results are those of this process's own images.

    Yields:
        Nothing.
    """
    before, _Exchange.suspended = _Exchange.suspended, True
    try:
        yield
    finally:
        _Exchange.suspended = before


def exchange_is_suspended() -> bool:
    """Say whether this process computes alone now.

    Returns:
        True inside `suspended_exchange`.
    """
    return _Exchange.suspended


def process_count() -> int:
    """Count the processes whose batches belong together now.

    Returns:
        1 inside `suspended_exchange`, and where there is no process group.
    """
    return 1 if _Exchange.suspended or not dist.is_initialized() else dist.get_world_size()


def _has_kernels(x: Tensor) -> bool:
    """Return whether the kernels can work on x."""
    return (
        x.is_cuda and x.dtype != torch.float64 and find_spec("triton") is not None and supports_kernels(x.device)
        and x.numel() <= MAX_ENTRIES
    )  # fmt: skip


def _as_images(x: Tensor) -> Tensor:
    """View or copy (B, C, ...) as images (B, C, H, W) whose channels lie last."""
    images = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def _shaped(images: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_as_images`."""
    return images if len(shape) == 4 else images.reshape(shape).contiguous()


def _empty_result(x: Tensor, pool: bool) -> Tensor:
    if x.dim() != 4:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = (x.shape[2] // 2, x.shape[3] // 2) if pool else x.shape[2:]
    shape = (*x.shape[:2], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _local_statistics(x: Tensor, out: Tensor) -> None:
    """Write mean and biased variance of each channel of this process's images into `out` (2, C)."""
    if _has_kernels(x):
        from lowrank.kernels.batch_norm import batch_statistics  # needs Triton

        batch_statistics(x, out)
        return
    variance, mean = torch.var_mean(x.to(out.dtype), (0, 2, 3), correction=0)
    out[0], out[1] = mean, variance


def gather_parts(part: Tensor) -> Tensor:
    """Gather a tensor of each process.

    Args:
        part: of this process, of the same shape in all.

    Returns:
        Those of all processes in their order, (P, ...).
    """
    count = process_count()
    if count == 1:
        return part[None]
    parts = torch.empty((count * len(part), *part.shape[1:]), dtype=part.dtype, device=part.device)
    _all_gather(parts, part)
    return parts.view(count, *part.shape)


def joined_statistics(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Join the statistics of equally many images of each process.

    About the joined mean, so that no digits cancel.

    Args:
        parts: mean and biased variance of each process, (P, 2, C).

    Returns:
        Mean and biased variance over all images, both (C,).
    """
    if len(parts) == 1:
        return parts[0, 0].clone(), parts[0, 1].clone()
    mean = parts[:, 0].mean(0)
    return mean, (parts[:, 1] + (parts[:, 0] - mean).square()).mean(0)


@torch.library.custom_op("lowrank::global_norm", mutates_args=())
def global_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the statistics of the batches of all processes, then apply ReLU, 2 x 2 max pooling and a residual.

    Args:
        x: (B, C, ...). Without the kernels nothing may follow the norm.
        weight: (C,), float32; float64 where x is.
        bias: (C,), likewise.
        residual: added to the result, of its shape; None for none.
        eps: added to the variance.
        relu: whether negative values become zero.
        pool: whether only the largest of each 2 x 2 positions stays.

    Returns:
        The result, in x's dtype, channels-last, and each channel's mean and biased variance over all processes, (C,).
    """
    images = _as_images(x)
    part = torch.empty((2, images.shape[1]), dtype=_work_dtype(x), device=x.device)
    _local_statistics(images, part)
    parts = gather_parts(part)
    if _has_kernels(images):
        from lowrank.kernels.batch_norm import normalise_by_parts  # needs Triton

        out, mean, variance = normalise_by_parts(images, weight, bias, parts, residual, eps, relu, pool)
        return _shaped(out, x.shape), mean, variance
    if relu or pool or residual is not None:
        raise NotImplementedError("without kernels nothing may follow a norm over processes")
    mean, variance = joined_statistics(parts)
    scale = weight * torch.rsqrt(variance + eps)
    out = (images.to(mean.dtype) - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return _shaped(out.to(x.dtype).contiguous(memory_format=torch.channels_last), x.shape), mean, variance


@global_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(x.shape[1], dtype=_work_dtype(x), device=x.device) for _ in range(2))
    return _empty_result(x, pool), mean, variance


@torch.library.custom_op("lowrank::global_norm_backward", mutates_args=())
def global_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool,
    pool: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of `global_norm`.

    Args:
        gradient: of the result.
        x: as `global_norm` took it, as are weight, bias, eps, relu and pool.
        weight: (C,).
        bias: (C,).
        mean: as `global_norm` returned it, (C,).
        variance: as `global_norm` returned it, (C,).
        eps: added to the variance.
        relu: whether there was a ReLU.
        pool: whether there was a pooling.
        other: another gradient of x, to be added to the first result; None for none, as where there was a pooling.

    Returns:
        That by x, of the sum of all processes' losses; those by weight and bias, of this process's loss, (2, C).
    """
    images, gradients = _as_images(x), _as_images(gradient)
    rows_of_all = process_count() * images.numel() // images.shape[1]
    sums = torch.empty((2, images.shape[1]), dtype=weight.dtype, device=x.device)
    if _has_kernels(images):
        from lowrank.kernels.batch_norm import input_gradient, reduce_gradients  # need Triton

        reduce_gradients(gradients, images, weight, bias, mean, variance, eps, relu, pool, sums)
        parts = gather_parts(sums)
        grad_x = input_gradient(
            gradients, images, weight, bias, mean, variance, parts[0, 1], parts[0, 0], rows_of_all, eps, relu, pool,
            parts=len(parts), other=None if other is None else _as_images(other),
        )  # fmt: skip
    else:
        inverse, rows = torch.rsqrt(variance + eps), gradients.to(mean.dtype)
        normal = (images.to(mean.dtype) - mean[:, None, None]) * inverse[:, None, None]
        sums[0], sums[1] = (rows * normal).sum((0, 2, 3)), rows.sum((0, 2, 3))
        of_weight, of_bias = gather_parts(sums).sum(0)[:, :, None, None] / rows_of_all
        grad_x = (weight * inverse)[:, None, None] * (rows - of_bias - normal * of_weight)
        grad_x = (grad_x if other is None else grad_x + _as_images(other)).to(x.dtype)
    return _shaped(grad_x.contiguous(memory_format=torch.channels_last), x.shape), sums


@global_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool,
    pool: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _empty_result(x, False), torch.empty((2, x.shape[1]), dtype=weight.dtype, device=x.device)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.eps, ctx.relu, ctx.pool = inputs
    ctx.adds = residual is not None
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs; the statistics only feed the running ones, so they pass none back."""
    grad_x, (grad_weight, grad_bias) = global_norm_backward(
        gradient, *ctx.saved_tensors, ctx.eps, ctx.relu, ctx.pool
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, gradient if ctx.adds else None, None, None, None


global_norm.register_autograd(_backward, setup_context=_save_for_backward)
