"""Data-parallel training: several processes train one network, with the losses of one process at the same batch.

Process i of n takes the i-th of n equal slices of every batch (of every micro-batch, where the recipe accumulates
gradients), augmented just as one process would augment it. Gradients are averaged in few large buckets, which travel
while the backward pass goes on. Modules that look at a whole batch look at the global one: batch norms take their
statistics from it, dropout and dropped paths draw their random numbers for it. Losses, errors and evaluations are
summed over the processes. So the numbers are those of one process, up to the order of summation.

All that a step exchanges can be recorded in a CUDA graph: nothing waits for the device or asks it for a size. Torch's
DistributedDataParallel is not used: its gradient accumulators belong to the stream on which it was made, it wraps the
module that a compiled step does without, and it must run eleven steps before it can be recorded.

Functions that draw or normalise across images without a module (torch's functional dropout, say) cannot be found here:
each process then draws for its own images, from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn import functional

from lowrank.data import ProcessShard
from lowrank.errors import InputError
from lowrank.kernels import exchange_is_suspended, process_count
from lowrank.networks import DropPath

BUCKET_BYTES = 32 * 2**20  # of gradients that are summed at once: large enough to use the link between two cards well

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
        elif isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
            return GlobalBatchNorm.of(module)
        return module

    def share_initial_state(self, network: nn.Module) -> None:
        """Give every process the weights and statistics of the first one.

        Each has drawn them from the same seed; a network of the user's own may draw from elsewhere.

        Args:
            network: on its device.
        """
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in network.state_dict().values():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for tensors in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.broadcast(flat, 0)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        """Ask all processes, so that they go the same way.

        Args:
            yes: the answer of this process.
            device: over which they talk.

        Returns:
            Whether every process said yes.
        """
        noes = torch.tensor([0 if yes else 1], device=device)
        dist.all_reduce(noes)
        return not noes.item()


class _Bucket:
    """Gradients that are summed over the processes at once.

    Args:
        parameters: of one device and dtype.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self._flat = torch.zeros(
            sum(parameter.numel() for parameter in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        self._views, start = [], 0
        for parameter in parameters:
            part = self._flat[start : start + parameter.numel()]
            self._views.append(part.as_strided(parameter.shape, parameter.stride(), part.storage_offset()))
            start += parameter.numel()
        self.missing = len(parameters)
        self._work: dist.Work | None = None
        self._present: list[tuple[nn.Parameter, Tensor]] = []

    def send(self) -> None:
        """Begin to sum the gradients that are there; the others count as zeros."""
        pairs = list(zip(self.parameters, self._views, strict=True))
        self._present = [(parameter, view) for parameter, view in pairs if parameter.grad is not None]
        if len(self._present) < len(pairs):
            self._flat.zero_()
        if self._present:
            gradients = [parameter.grad for parameter, _ in self._present if parameter.grad is not None]
            torch._foreach_copy_([view for _, view in self._present], gradients)
        self._work = dist.all_reduce(self._flat, async_op=True)

    def take(self) -> None:
        """Wait for the sum, and let the parameters have the mean as their gradients."""
        assert self._work is not None
        self._work.wait()  # of a GPU the stream waits, not the program
        self._work = None
        self._flat.div_(dist.get_world_size())
        for parameter, view in self._present:
            parameter.grad = view
        self._present = []


class GradientBuckets:
    """Averages gradients over the processes, each bucket as soon as the backward pass has its last gradient.

    Args:
        parameters: those that are trained, in the order of the network; gradients come in the reverse order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._collecting = False
        bucket: list[nn.Parameter] = []
        for parameter in [*reversed([*parameters])]:
            size = sum(other.numel() * other.element_size() for other in (*bucket, parameter))
            if bucket and (size > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
                self._add(bucket)
                bucket = []
            bucket.append(parameter)
        if bucket:
            self._add(bucket)

    def _add(self, parameters: list[nn.Parameter]) -> None:
        self._buckets.append(_Bucket(parameters))
        for parameter in parameters:
            self._bucket_of[parameter] = self._buckets[-1]
            parameter.register_post_accumulate_grad_hook(self._count)

    def _count(self, parameter: Tensor) -> None:
        """Note that a gradient is complete; sends its bucket with the last one."""
        assert isinstance(parameter, nn.Parameter)
        bucket = self._bucket_of[parameter]
        if self._collecting:
            bucket.missing -= 1
            if bucket.missing == 0:
                bucket.send()

    def begin(self) -> None:
        """Expect the last backward pass of a step; earlier ones (of micro-batches) only add to the gradients."""
        self._collecting = not exchange_is_suspended()
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """Wait until every gradient is the mean over the processes.

        A parameter that took no part in the loss, in any process alike, has none.
        """
        if not self._collecting:
            return
        self._collecting = False
        for bucket in self._buckets:
            if bucket.missing > 0:
                bucket.send()
        for bucket in self._buckets:
            bucket.take()


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, each of which has equally many.

    Attributes:
        in_template: whether the module is part of a network that is compiled; it then runs torch's own batch norm, and
            the compiler's rewrite replaces that by the one over all processes.
    """

    in_template = False

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
        if not self.training or self.in_template:
            output: Tensor = super().forward(input)
            return output
        weight, bias = self.weight, self.bias
        if weight is None or bias is None:
            dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
            weight = torch.ones(self.num_features, dtype=dtype, device=input.device)
            bias = torch.zeros_like(weight)
        out: Tensor
        out, mean, variance = torch.ops.lowrank.global_norm(input, weight, bias, None, self.eps, False, False)
        rows = process_count() * input.numel() // input.shape[1]
        self._track(mean, variance * (rows / max(1, rows - 1)))
        return out

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
