"""Methods that factorise the whole K x K kernel of a convolution into a chain of smaller convolutions.

The separable methods replace a K x K kernel by a depthwise and a pointwise part, which keep almost nothing of a trained
kernel. The methods here keep its leading directions instead, so that a trained network still works after truncation.

Letters: I in-channels, O out-channels, g groups, KH x KW the kernel, R ranks of one group.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lowrank.layers.base_layer import relative_error
from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.dense import Dense
from lowrank.layers.functional import Pair
from lowrank.utils import robust_svd


class Stage(NamedTuple):
    """One convolution of a chain; `area` is the number of output positions that it computes for one image."""

    name: str
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair | str
    dilation: Pair
    groups: int
    area: int

    @property
    def params(self) -> int:
        """Entries of the stage's weight."""
        return math.prod(self.kernel) * self.in_channels // self.groups * self.out_channels

    @property
    def mult_adds(self) -> int:
        """Mult-adds of the stage for one image."""
        return self.params * self.area

    def build(self, *, bias: bool, linear: bool = False) -> nn.Conv2d | nn.Linear:
        """Make the convolution; with `linear`, the linear map that a 1 x 1 stage is."""
        if linear:
            return nn.Linear(self.in_channels, self.out_channels, bias=bias)
        return nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel, self.stride, self.padding, self.dilation, self.groups,
            bias=bias,
        )  # fmt: skip


def pointwise(name: str, in_channels: int, out_channels: int, shape: ConvShape, area: int) -> Stage:
    """Make a 1 x 1 stage in the groups of `shape`."""
    return Stage(name, in_channels, out_channels, (1, 1), (1, 1), (0, 0), (1, 1), shape.groups, area)


def spatial(name: str, in_channels: int, out_channels: int, shape: ConvShape, area: int, axes: str = "hw") -> Stage:
    """Make a stage that carries the kernel, stride, padding and dilation of `shape` along `axes` ("h", "w" or "hw")."""

    def along(values: Pair, neutral: int) -> Pair:
        return values[0] if "h" in axes else neutral, values[1] if "w" in axes else neutral

    padding = shape.padding if isinstance(shape.padding, str) else along(shape.padding, 0)
    return Stage(
        name, in_channels, out_channels, along(shape.kernel, 1), along(shape.stride, 1), padding,
        along(shape.dilation, 1), shape.groups, area,
    )  # fmt: skip


class WholeKernelMethod(Method):
    """Settings of a chain of convolutions that replaces one, or a linear map.

    `rank_scale` sets every rank to max(1, round(rank_scale * largest useful rank)); `ranks` names them instead, one
    for each of `rank_names`, for one group. The last stage carries a bias if the dense layer has one or `bias` asks for
    it: there it holds the mean that a fit to centred outputs leaves out. Where the chain would have as many parameters
    or mult-adds as the dense layer, the layer stays dense.
    """

    scale: ClassVar[str] = "rank_scale"
    rank_names: ClassVar[tuple[str, ...]]

    rank_scale: float = Field(default=0.5, gt=0, le=1)
    ranks: tuple[int, ...] | None = None
    bias: bool = False

    @abstractmethod
    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        """The ranks, for one group, from which on the chain can stand for every dense weight."""

    @abstractmethod
    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        """The convolutions of the chain for these ranks of one group, where the kernel is larger than 1 x 1."""

    @abstractmethod
    def truncate_kernel(self, dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """Factorise one group's kernel (O / g, I / g, KH, KW), float64, into one weight for each kernel stage."""

    def stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        """The convolutions of the chain for these ranks of one group; two where the kernel is 1 x 1."""
        if shape.kernel_area > 1:
            return self.kernel_stages(shape, ranks)
        middle = ranks[0] * shape.groups
        return (
            spatial("reduce", shape.in_channels, middle, shape, shape.out_area),
            pointwise("expand", middle, shape.out_channels, shape, shape.out_area),
        )

    def truncate(self, dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """Factorise one group's weight (O / g, I / g, KH, KW), float64, into one weight for each stage."""
        if dense[0, 0].numel() > 1:
            return self.truncate_kernel(dense, ranks)
        up, down = truncated_svd(dense.flatten(1), ranks[0])
        return [down[:, :, None, None], up[:, :, None, None]]

    def ranks_at(self, shape: ConvShape) -> tuple[int, ...]:
        """The ranks of one group that these settings give at `shape`; all equal where the kernel is 1 x 1."""
        full = self.full_ranks(shape)
        if self.ranks is not None:
            ranks = tuple(min(rank, limit) for rank, limit in zip(self.ranks, full, strict=True))
        else:
            ranks = tuple(max(1, round(self.rank_scale * limit)) for limit in full)
        return ranks if shape.kernel_area > 1 else (min(ranks),) * len(ranks)

    def infeasible(self, shape: ConvShape) -> str | None:
        if self.ranks is None:
            return None
        if len(self.ranks) != len(self.rank_names) or min(self.ranks, default=0) < 1:
            expected = ", ".join(self.rank_names)
            return f"`ranks` must be {len(self.rank_names)} numbers of at least 1 ({expected}), but got {self.ranks}"
        return None

    def has_bias(self, shape: ConvShape) -> bool:
        """Whether the chain's last stage has a bias."""
        return self.bias or shape.bias

    def chain_params(self, shape: ConvShape, ranks: Sequence[int]) -> int:
        """Parameters of the chain at these ranks, bias included, whether or not it is smaller than the dense layer."""
        bias = shape.out_channels if self.has_bias(shape) else 0
        return sum(stage.params for stage in self.stages(shape, ranks)) + bias

    def chain_mult_adds(self, shape: ConvShape, ranks: Sequence[int]) -> int:
        """Mult-adds of the chain for one image at these ranks."""
        return sum(stage.mult_adds for stage in self.stages(shape, ranks))

    def stays_dense(self, shape: ConvShape) -> bool:
        """Whether the chain would cost as much as the dense layer, in parameters or in mult-adds."""
        ranks = self.ranks_at(shape)
        return (
            self.chain_params(shape, ranks) >= _DENSE.params(shape)
            or self.chain_mult_adds(shape, ranks) >= _DENSE.mult_adds(shape)
        )  # fmt: skip

    def params(self, shape: ConvShape) -> int:
        return _DENSE.params(shape) if self.stays_dense(shape) else self.chain_params(shape, self.ranks_at(shape))

    def mult_adds(self, shape: ConvShape) -> int:
        if self.stays_dense(shape):
            return _DENSE.mult_adds(shape)
        return self.chain_mult_adds(shape, self.ranks_at(shape))

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        if self.stays_dense(shape):
            return ("dense",)
        return (self.name, self.ranks_at(shape), self.has_bias(shape))

    def build(self, shape: ConvShape) -> nn.Module:
        return _DENSE.build(shape) if self.stays_dense(shape) else KernelChain(self, shape, self.ranks_at(shape))


_DENSE = Dense()


class KernelChain(nn.Sequential):
    """A chain of plain convolutions (or linear maps) that replaces one.

    (B, I, H, W) -> (B, O, H', W'). No stage but the last has a bias, so the chain equals the convolution with
    `dense_weight()` and `dense_bias()` at every position, edges included. With `linear` it takes (B.., I) -> (B.., O)
    and its weights are matrices.

    Args:
        method: the settings that made the chain; they know how to truncate a dense weight.
        shape: the convolution or linear map that the chain stands for.
        ranks: the ranks of one group, one for each of `method.rank_names`.
        linear: whether the chain stands for a linear map.
    """

    def __init__(self, method: WholeKernelMethod, shape: ConvShape, ranks: Sequence[int], *, linear: bool = False):
        super().__init__()
        self.method, self.shape, self.ranks, self.linear = method, shape, tuple(ranks), linear
        self.in_channels, self.out_channels = shape.in_channels, shape.out_channels
        self.stride, self.padding, self.dilation, self.groups = (
            shape.stride, shape.padding, shape.dilation, shape.groups,
        )  # fmt: skip
        stages = method.stages(shape, ranks)
        for stage in stages:
            bias = method.has_bias(shape) and stage is stages[-1]
            self.add_module(stage.name, stage.build(bias=bias, linear=linear))
        self.reset()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, I / g, KH, KW) of the dense weight, or (O, I) of a linear map's."""
        shape = self.shape.out_channels, self.shape.in_channels // self.groups
        return shape if self.linear else (*shape, *self.shape.kernel)

    @property
    def bias(self) -> Tensor | None:
        """The bias (O) of the last stage."""
        return self.layers()[-1].bias

    def layers(self) -> list[nn.Conv2d | nn.Linear]:
        """The stages in the order in which they run."""
        return [module for module in self if isinstance(module, nn.Conv2d | nn.Linear)]

    def factors(self) -> list[nn.Parameter]:
        """The weights of the stages, to which scaled decay applies."""
        return [weight for layer in self.layers() if isinstance(weight := layer.weight, nn.Parameter)]

    def dense_weight(self) -> Tensor:
        """The dense weight, of `weight_shape`, that the chain stands for, differentiable."""
        if self.linear:
            first, second = self.factors()
            return second @ first
        groups = zip(*(weight.chunk(self.groups) for weight in self.factors()), strict=True)
        return torch.cat([chain_product(group) for group in groups])

    def dense_bias(self) -> Tensor | None:
        """The bias (O) that the chain adds; None without one."""
        return self.bias

    @torch.no_grad()
    def reset(self, *, std: float | None = None, generator: torch.Generator | None = None) -> None:
        """Start from scratch: draw every stage, then rescale until the dense weight has the target's deviation.

        Args:
            std: the standard deviation of the dense weight; He's sqrt(2 / (KH * KW * I / g)) if None.
            generator: the source of random numbers; torch's own if None.
        """
        fan = math.prod(self.weight_shape[1:])
        target = math.sqrt(2 / fan) if std is None else std
        for weight in self.factors():
            weight.normal_(std=1 / math.sqrt(weight[0].numel()), generator=generator)
        size = self.dense_weight().double().square().mean().sqrt().item()
        gain = (target / size) ** (1 / len(self.factors())) if size > 0 else 1.0
        for weight in self.factors():
            weight.mul_(gain)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Start from a trained weight, of `weight_shape`, by plain truncation.

        Returns:
            ||W - dense|| / ||dense|| of the weight W that the chain then stands for.

        Raises:
            ValueError: `dense` has another shape.
        """
        if tuple(dense.shape) != self.weight_shape:
            expected = " x ".join(map(str, self.weight_shape))
            raise ValueError(f"expected a weight of {expected}, got {tuple(dense.shape)}")
        kernel = dense.detach().double()
        kernel = kernel[:, :, None, None] if self.linear else kernel
        self.set_weights([self.method.truncate(part, self.ranks) for part in kernel.chunk(self.groups)])
        return relative_error(self.dense_weight(), dense.to(self.dense_weight().device))

    @torch.no_grad()
    def set_weights(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Set every stage; `groups` holds, for each group, one weight (4 dimensions) for each stage.

        The product stays as it is; see `to_canonical_form` for how it is shared among the stages.
        """
        factors = self.factors()
        shared = [to_canonical_form(list(group)) for group in groups]
        for index, factor in enumerate(factors):
            factor.copy_(torch.cat([group[index] for group in shared]).reshape(factor.shape))

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{name} {rank}" for name, rank in zip(self.method.rank_names, self.ranks, strict=True))
        return f"{self.method.name}: {self.in_channels} -> {self.out_channels}, {ranks}"


def chain_product(weights: Sequence[Tensor]) -> Tensor:
    """Multiply the stages of one group into the dense kernel that they equal.

    A stage of R outputs with one input channel each, after a stage of R > 1 outputs, is depthwise.

    Args:
        weights: (out, in, height, width) of each stage, first stage first; only one stage extends along each kernel
            axis.

    Returns:
        (O, I, KH, KW).
    """
    total = weights[0]
    for weight in weights[1:]:
        if weight.shape[1] == 1 and len(total) > 1:
            joined = torch.einsum("rcd,riab->riacbd", weight[:, 0], total)
        else:
            joined = torch.einsum("srcd,riab->siacbd", weight, total)
        total = joined.flatten(2, 3).flatten(3, 4)
    return total


def to_canonical_form(weights: list[Tensor]) -> list[Tensor]:
    """Share a product among its stages so that all of them train alike, without changing it.

    The largest stage holds the size of the weight; the stages before it get orthonormal rows, those after it
    orthonormal columns, as in the usual form of a Tucker or tensor-train decomposition. Gradients then reach the
    largest stage as they reach the dense weight, so that rates for the dense network fit. Depthwise stages (CP) cannot
    take up a rotation: there all stages get the same root mean square.

    Args:
        weights: of one group's stages, (out, in, KH, KW) each.

    Returns:
        Weights of the same shapes with the same product.
    """
    if any(later.shape[1] == 1 and len(earlier) > 1 for earlier, later in itertools.pairwise(weights)):
        return _balanced(weights)
    weights = list(weights)
    holder = max(range(len(weights)), key=lambda index: weights[index].numel())
    for index in range(holder):
        rows = weights[index].flatten(1)
        if len(rows) <= rows.shape[1]:
            basis, rest = torch.linalg.qr(rows.T)
            weights[index] = basis.T.reshape(weights[index].shape)
            weights[index + 1] = torch.einsum("srab,qr->sqab", weights[index + 1], rest)
    for index in range(len(weights) - 1, holder, -1):
        columns = weights[index].transpose(1, 3).flatten(0, 2)
        if len(columns) >= columns.shape[1]:
            basis, rest = torch.linalg.qr(columns)
            out, rank, height, width = weights[index].shape
            weights[index] = basis.reshape(out, width, height, rank).transpose(1, 3)
            weights[index - 1] = torch.einsum("qr,riab->qiab", rest, weights[index - 1])
    return weights


def _balanced(weights: Sequence[Tensor]) -> list[Tensor]:
    sizes = [weight.double().square().mean().sqrt().item() for weight in weights]
    if min(sizes) == 0:
        return list(weights)
    common = math.exp(sum(map(math.log, sizes)) / len(sizes))
    return [weight * (common / size) for weight, size in zip(weights, sizes, strict=True)]


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` product of a matrix (M, N): left (M, rank) and right (rank, N), values shared evenly."""
    left_vectors, values, right_vectors = robust_svd(matrix)
    keep = min(rank, len(values))
    root = values[:keep].sqrt()
    first = matrix.new_zeros(matrix.shape[0], rank)
    second = matrix.new_zeros(rank, matrix.shape[1])
    first[:, :keep] = left_vectors[:, :keep] * root
    second[:keep] = root[:, None] * right_vectors[:keep]
    return first, second
