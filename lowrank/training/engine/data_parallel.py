"""One training shared by several processes, a card each, with the losses of one process at the same batch.

Rank r of R takes the r-th of R equal slices of every batch (of every part of it, where the recipe cuts it into parts),
of the very views that one process would draw. Gradients are averaged by torch's DistributedDataParallel. What looks at
a whole batch still does: batch norms take their statistics, and dropped paths and units their random numbers, from the
total batch; losses, errors and evaluations are summed over the ranks. So the ranks are one training, up to the order in
which sums are made.

Functions that draw or normalise across images without a module (torch's functional dropout, say) cannot be seen here:
each rank then draws for itself, from the same seed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lowrank.data import ProcessShard
from lowrank.errors import InputError
from lowrank.networks.base import DropPath

_BatchNorm = nn.modules.batchnorm._BatchNorm
_DropoutNd = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class DataParallelGroup:
    """This process's place among `count` that train together; torch's default process group must be there."""

    index: int
    count: int

    def slice(self, parts: int) -> ProcessShard:
        """What this process takes of every batch that is cut into `parts`."""
        return ProcessShard(self.index, self.count, parts)

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all ranks, in place."""
        for tensor in tensors:
            dist.all_reduce(tensor)

    def join(self, network: nn.Module) -> None:
        """Make every module of `network` that looks at a whole batch look at the total one, in place.

        Raises InputError for a module whose random numbers cannot be drawn for the total batch.
        """
        joined: dict[nn.Module, nn.Module] = {}  # a module that stands in several places stays one
        for parent in list(network.modules()):
            for name, child in parent._modules.items():
                if child is not None:
                    joined[child] = joined[child] if child in joined else self._joined(child)
                    parent._modules[name] = joined[child]

    def _joined(self, module: nn.Module) -> nn.Module:
        if isinstance(module, DropPath):
            module.shard = (self.index, self.count)
        elif isinstance(module, nn.Dropout):
            return GlobalDropout(module, self)
        elif isinstance(module, _DropoutNd):
            raise InputError(f"{type(module).__name__} draws for the images of one process alone; a network that has "
                             "it cannot be trained by several")  # fmt: skip
        elif isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | GlobalBatchNorm):
            on_card = next(module.parameters()).is_cuda if module.affine else torch.cuda.is_initialized()
            return nn.SyncBatchNorm.convert_sync_batchnorm(module) if on_card else GlobalBatchNorm.of(module)
        return module

    def wrap(self, network: nn.Module, *, unused: bool) -> DistributedDataParallel:
        """`network` with gradients averaged over the ranks; `unused`: some parameters may take no part in a loss."""
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=unused
        )


def unsynchronised(network: nn.Module, on: bool) -> AbstractContextManager[Any]:
    """With `on`, gradients of a wrapped network stay this rank's own until the next backward outside of it."""
    return network.no_sync() if on and isinstance(network, DistributedDataParallel) else nullcontext()


class _Sum(torch.autograd.Function):
    """Sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the images of all ranks, of which each has as many; torch's SyncBatchNorm is for cards alone."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> GlobalBatchNorm:
        """With the very parameters and statistics of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        made.train(norm.training)
        return made

    def _check_input_dim(self, input: Tensor) -> None:  # whatever the norm that it stands for took
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        if not self.training:
            found: Tensor = super().forward(input)
            return found
        dims = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = dist.get_world_size() * x.numel() // x.shape[1]
        mean = _Sum.apply(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class GlobalDropout(nn.Dropout):
    """Dropout whose mask is this rank's slice of the one that a single process would draw."""

    def __init__(self, dropout: nn.Dropout, ranks: DataParallelGroup):
        super().__init__(dropout.p)  # never in place: the mask is drawn apart
        self._ranks = ranks
        self.train(dropout.training)

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> the same."""
        if not self.training or self.p == 0:
            return input
        total = torch.ones_like(torch.cat([input.detach()] * self._ranks.count))  # numbers are drawn in memory's order
        return input * functional.dropout(total, self.p).chunk(self._ranks.count)[self._ranks.index]
