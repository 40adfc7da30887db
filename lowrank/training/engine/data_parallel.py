"""Data-parallel training: several processes train one network, with the losses of one process at the same batch.

Process i of n takes the i-th of n equal slices of every batch (of every micro-batch, where the recipe accumulates
gradients), augmented just as one process would augment it. Torch's DistributedDataParallel averages the gradients.
Modules that look at a whole batch look at the global one: batch norms take their statistics from it, dropout and
dropped paths draw their random numbers for it. Losses, errors and evaluations are summed over the processes. So the
numbers are those of one process, up to the order of summation.

Functions that draw or normalise across images without a module (torch's functional dropout, say) cannot be found here:
each process then draws for its own images, from the same seed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lowrank.data import ProcessShard
from lowrank.errors import InputError
from lowrank.networks import DropPath

_BatchNorm = nn.modules.batchnorm._BatchNorm
_DropoutNd = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class DataParallelGroup:
    """This process's place in torch's default process group, which must exist.

    Attributes:
        index: of this process, from 0.
        count: processes that train together.
    """

    index: int
    count: int

    def shard(self, parts: int) -> ProcessShard:
        """Describe what this process takes of every batch.

        Args:
            parts: micro-batches that a batch is cut into.

        Returns:
            The slice, for lowrank.data.train_batches and eval_batches.
        """
        return ProcessShard(self.index, self.count, parts)

    def sum_in_place(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes.

        Args:
            tensors: of the same shapes in every process.
        """
        for tensor in tensors:
            dist.all_reduce(tensor)

    def use_global_batch(self, network: nn.Module) -> None:
        """Make modules that look at a whole batch look at the global one, in place.

        Args:
            network: its batch norms and dropouts are replaced.

        Raises:
            InputError: the random numbers of a module cannot be drawn for the global batch.
        """
        replacements: dict[nn.Module, nn.Module] = {}  # a module that is used in several places stays one
        for parent in list(network.modules()):
            for name, child in parent._modules.items():
                if child is not None:
                    if child not in replacements:
                        replacements[child] = self._replacement(child)
                    parent._modules[name] = replacements[child]

    def _replacement(self, module: nn.Module) -> nn.Module:
        if isinstance(module, DropPath):
            module.shard = (self.index, self.count)
        elif isinstance(module, nn.Dropout):
            return GlobalDropout(module, self)
        elif isinstance(module, _DropoutNd):
            raise InputError(f"{type(module).__name__} draws random numbers for the images of one process alone; "
                             "a network that has it cannot be trained by several")  # fmt: skip
        elif isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | GlobalBatchNorm):
            on_gpu = next(module.parameters()).is_cuda if module.affine else torch.cuda.is_initialized()
            return nn.SyncBatchNorm.convert_sync_batchnorm(module) if on_gpu else GlobalBatchNorm.of(module)
        return module

    def wrap(self, network: nn.Module, *, unused: bool) -> DistributedDataParallel:
        """Wrap a network so that its gradients are averaged over the processes.

        Args:
            network: on its device.
            unused: whether some parameters may take no part in a loss.

        Returns:
            The wrapper, which shares the parameters of `network`.
        """
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=unused
        )


def unsynchronised(network: nn.Module, on: bool) -> AbstractContextManager[Any]:
    """Keep gradients of a wrapped network local inside `with`.

    The next backward pass outside averages them all.

    Args:
        network: wrapped or not.
        on: False does nothing.

    Returns:
        A context manager.
    """
    return network.no_sync() if on and isinstance(network, DistributedDataParallel) else nullcontext()


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

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
    """Batch norm over the images of all processes, for CPUs.

    Each process has equally many images. On GPUs torch's SyncBatchNorm does this; it does not run on CPUs.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> GlobalBatchNorm:
        """Make one that shares the parameters and statistics of `norm`."""
        global_norm = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        global_norm.weight, global_norm.bias = norm.weight, norm.bias
        global_norm.running_mean, global_norm.running_var = norm.running_mean, norm.running_var
        global_norm.num_batches_tracked = norm.num_batches_tracked
        global_norm.train(norm.training)
        return global_norm

    def _check_input_dim(self, input: Tensor) -> None:  # any shape that the replaced norm took
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        if not self.training:
            output: Tensor = super().forward(input)
            return output
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
    """Dropout whose mask is a slice of the mask that one process would draw.

    Args:
        dropout: the module that it replaces.
        group: says which slice.
    """

    def __init__(self, dropout: nn.Dropout, group: DataParallelGroup):
        super().__init__(dropout.p)  # not in place: the mask is drawn from another tensor
        self._group = group
        self.train(dropout.training)

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> the same."""
        if not self.training or self.p == 0:
            return input
        # Random numbers are drawn in memory order, so the global batch needs the strides of this one
        ones = torch.ones_like(torch.cat([input.detach()] * self._group.count))
        return input * functional.dropout(ones, self.p).chunk(self._group.count)[self._group.index]
