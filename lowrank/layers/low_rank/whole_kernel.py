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
from lowrank.utils import factor_matrix


class Stage(NamedTuple):
    """The shape of one convolution in a chain; `area` is the number of its output positions for one image."""

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


class Decomposition(NamedTuple):
    """What truncations of one kernel to any ranks share.

    `kernel` is (O, I, KH, KW) of one group; `parts` are the method's own, for example the factors of an SVD.
    """

    kernel: Tensor
    parts: tuple[Tensor, ...]


class WholeKernelMethod(Method):
    """Settings of a chain of convolutions that replaces a convolution or a linear map.

    Each convolution of the chain is a stage. `rank_scale` sets every rank to max(1, round(rank_scale * largest useful
    rank)). `ranks` gives them explicitly instead, for one group and in the order of `rank_names`. The last stage has a
    bias if the dense layer has one, or if `bias` is true: a fit to calibration data centres the outputs and needs a
    bias for their mean. Where the chain would have at least as many parameters or mult-adds as the dense layer, the
    layer stays dense.
    """

    scale: ClassVar[str] = "rank_scale"
    rank_names: ClassVar[tuple[str, ...]]

    rank_scale: float = Field(default=0.5, gt=0, le=1)
    ranks: tuple[int, ...] | None = None
    bias: bool = False

    @abstractmethod
    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the smallest ranks, for one group, at which the chain can represent every dense weight."""

    @abstractmethod
    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        """Return the stages for these ranks of one group; only called for kernels larger than 1 x 1."""

    @abstractmethod
    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Return what truncations to any ranks share, of a kernel (O / g, I / g, KH, KW) in float64."""

    @abstractmethod
    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        """Factorise one group's kernel into one weight for each kernel stage, from what `decompose_kernel` returned."""

    def stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        """Return the stages for these ranks of one group; for a 1 x 1 kernel two, of the first rank, by any method."""
        if shape.kernel_area > 1:
            return self.kernel_stages(shape, ranks)
        middle = ranks[0] * shape.groups
        return (
            spatial("reduce", shape.in_channels, middle, shape, shape.out_area),
            pointwise("expand", middle, shape.out_channels, shape, shape.out_area),
        )

    def decompose(self, kernel: Tensor) -> Decomposition:
        """Return what truncations of one group's weight (O / g, I / g, KH, KW), float64, to any ranks share."""
        is_matrix = kernel[0, 0].numel() == 1
        return Decomposition(kernel, factor_matrix(kernel.flatten(1)) if is_matrix else self.decompose_kernel(kernel))

    def truncate(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        """Factorise one group's weight, decomposed by `decompose`, into one weight for each stage."""
        if decomposition.kernel[0, 0].numel() > 1:
            return self.truncate_kernel(decomposition, ranks)
        up, down = truncated_factors(decomposition.parts, ranks[0])
        return [down[:, :, None, None], up[:, :, None, None]]

    def ranks_at(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the ranks of one group for `shape`, at most the full ones; all equal where the kernel is 1 x 1."""
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
        """Return whether the chain's last stage has a bias."""
        return self.bias or shape.bias

    def chain_params(self, shape: ConvShape, ranks: Sequence[int]) -> int:
        """Count the chain's parameters at these ranks, bias included, even where it is larger than the dense layer."""
        bias = shape.out_channels if self.has_bias(shape) else 0
        return sum(stage.params for stage in self.stages(shape, ranks)) + bias

    def chain_mult_adds(self, shape: ConvShape, ranks: Sequence[int]) -> int:
        """Count the chain's mult-adds for one image at these ranks."""
        return sum(stage.mult_adds for stage in self.stages(shape, ranks))

    def stays_dense(self, shape: ConvShape) -> bool:
        """Return whether the chain would have at least as many parameters or mult-adds as the dense layer."""
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
    """A chain of plain convolutions (or linear maps) that replaces a single one.

    (B, I, H, W) -> (B, O, H', W'). Only the last stage has a bias, so the chain equals the convolution with
    `dense_weight()` and `dense_bias()` at every position, image borders included. With `linear` it maps (.., I) ->
    (.., O) and its weights are matrices.

    Args:
        method: the settings that made the chain; `init_from_dense` uses their `truncate`.
        shape: the convolution or linear map that the chain replaces.
        ranks: the ranks of one group, one for each of `method.rank_names`.
        linear: whether the chain replaces a linear map.
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
        """The dense weight's shape: (O, I / g, KH, KW), or (O, I) for a linear map."""
        shape = self.shape.out_channels, self.shape.in_channels // self.groups
        return shape if self.linear else (*shape, *self.shape.kernel)

    # What other code reads of an `nn.Conv2d`
    padding_mode = "zeros"
    transposed = False

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""
        return self.shape.kernel

    @property
    def in_features(self) -> int:
        """I, as an `nn.Linear` calls it."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """O, as an `nn.Linear` calls it."""
        return self.out_channels

    @property
    def weight(self) -> Tensor:
        """The dense weight, of `weight_shape`, that equals the chain; it is computed at each access."""
        return self.dense_weight()

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,) of the last stage; None without one."""
        return self.layers()[-1].bias

    def layers(self) -> list[nn.Conv2d | nn.Linear]:
        """Return the stages in the order in which they run."""
        return [module for module in self if isinstance(module, nn.Conv2d | nn.Linear)]

    def factors(self) -> list[nn.Parameter]:
        """Return the weights of the stages, to which compression-scaled weight decay applies."""
        return [weight for layer in self.layers() if isinstance(weight := layer.weight, nn.Parameter)]

    def dense_weight(self) -> Tensor:
        """Compute the dense weight, of `weight_shape`, that equals the chain, differentiable."""
        if self.linear:
            first, second = self.factors()
            return second @ first
        groups = zip(*(weight.chunk(self.groups) for weight in self.factors()), strict=True)
        return torch.cat([chain_product(group) for group in groups])

    def dense_bias(self) -> Tensor | None:
        """Return the bias (O,) that the chain adds; None without one."""
        return self.bias

    @torch.no_grad()
    def reset(self, *, std: float | None = None, generator: torch.Generator | None = None) -> None:
        """Initialise at random, so that the dense weight has a given root mean square; set the bias to zero.

        Args:
            std: the root mean square of the dense weight; He's sqrt(2 / (KH * KW * I / g)) if None.
            generator: the source of random numbers; torch's own if None.
        """
        if self.factors()[0].is_meta:
            return  # only counted
        fan_in = math.prod(self.weight_shape[1:])
        target = math.sqrt(2 / fan_in) if std is None else std
        for weight in self.factors():
            weight.normal_(std=1 / math.sqrt(weight[0].numel()), generator=generator)
        rms = self.dense_weight().double().square().mean().sqrt().item()
        gain = (target / rms) ** (1 / len(self.factors())) if rms > 0 else 1.0
        for weight in self.factors():
            weight.mul_(gain)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Initialise from a trained weight by truncation, without calibration data.

        Args:
            dense: the trained weight, of `weight_shape`.

        Returns:
            ||W - dense|| / ||dense||, W being the chain's dense weight afterwards.

        Raises:
            ValueError: `dense` is not of `weight_shape`.
        """
        if tuple(dense.shape) != self.weight_shape:
            expected = " x ".join(map(str, self.weight_shape))
            raise ValueError(f"expected a weight of {expected}, got {tuple(dense.shape)}")
        kernel = dense.detach().double()
        kernel = kernel[:, :, None, None] if self.linear else kernel
        groups = [self.method.decompose(part) for part in kernel.chunk(self.groups)]
        self.set_weights([self.method.truncate(group, self.ranks) for group in groups])
        return relative_error(self.dense_weight(), dense.to(self.dense_weight().device))

    @torch.no_grad()
    def set_weights(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Set the weights of every stage, in canonical form: the product stays the same, see `to_canonical_form`.

        Args:
            groups: for each group, the weight (out, in, height, width) of each stage.
        """
        factors = self.factors()
        canonical_groups = [to_canonical_form(list(group)) for group in groups]
        for index, factor in enumerate(factors):
            factor.copy_(torch.cat([group[index] for group in canonical_groups]).reshape(factor.shape))

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{name} {rank}" for name, rank in zip(self.method.rank_names, self.ranks, strict=True))
        return f"{self.method.name}: {self.in_channels} -> {self.out_channels}, {ranks}"


def chain_product(weights: Sequence[Tensor]) -> Tensor:
    """Multiply the stages of one group into the dense kernel that they equal.

    A stage with one input channel for each output is depthwise if the stage before it has several outputs.

    Args:
        weights: (out, in, height, width) of each stage, first stage first. Along each kernel axis only one stage may
            be larger than 1.

    Returns:
        (O, I, KH, KW), with the channels of one group.
    """
    product = weights[0]
    for weight in weights[1:]:
        if weight.shape[1] == 1 and len(product) > 1:
            longer = torch.einsum("rcd,riab->riacbd", weight[:, 0], product)
        else:
            longer = torch.einsum("srcd,riab->siacbd", weight, product)
        product = longer.flatten(2, 3).flatten(3, 4)  # one of a, c is 1, and one of b, d
    return product


def to_canonical_form(weights: list[Tensor]) -> list[Tensor]:
    """Rewrite the stages in canonical form, without changing their product, so that they train at similar rates.

    The largest stage takes the norm of the product. The stages before it get orthonormal rows and those after it
    orthonormal columns, as in the canonical form of a tensor train. The gradient of the largest stage then has the
    scale of the dense weight's gradient, so that learning rates of the dense network suit it. A depthwise stage (CP)
    cannot absorb the triangular factor of a QR decomposition: then all stages get the same root mean square instead.

    Args:
        weights: one group's stages, (out, in, height, width) each.

    Returns:
        Weights of the same shapes with the same product.
    """
    if any(later.shape[1] == 1 and len(earlier) > 1 for earlier, later in itertools.pairwise(weights)):
        return _equalise_rms(weights)
    weights = list(weights)
    largest = max(range(len(weights)), key=lambda index: weights[index].numel())
    for index in range(largest):
        rows = weights[index].flatten(1)
        if len(rows) <= rows.shape[1]:
            basis, triangular = torch.linalg.qr(rows.T)
            weights[index] = basis.T.reshape(weights[index].shape)
            weights[index + 1] = torch.einsum("srab,qr->sqab", weights[index + 1], triangular)
    for index in range(len(weights) - 1, largest, -1):
        columns = weights[index].transpose(1, 3).flatten(0, 2)
        if len(columns) >= columns.shape[1]:
            basis, triangular = torch.linalg.qr(columns)
            out, rank, height, width = weights[index].shape
            weights[index] = basis.reshape(out, width, height, rank).transpose(1, 3)
            weights[index - 1] = torch.einsum("qr,riab->qiab", triangular, weights[index - 1])
    return weights


def _equalise_rms(weights: Sequence[Tensor]) -> list[Tensor]:
    """Scale the stages to the geometric mean of their root mean squares; the product stays the same."""
    values = [weight.double().square().mean().sqrt().item() for weight in weights]
    if min(values) == 0:
        return list(weights)
    target = math.exp(sum(map(math.log, values)) / len(values))
    return [weight * (target / rms) for weight, rms in zip(weights, values, strict=True)]


def truncated_factors(factors: tuple[Tensor, ...], rank: int) -> tuple[Tensor, Tensor]:
    """Truncate an SVD to a rank and share the singular values out.

    Args:
        factors: U (M, K), S (K) and V (K, N), as `factor_matrix` returns them.
        rank: the number of singular values to keep.

    Returns:
        Left (M, rank) and right (rank, N): their product is the best approximation of that rank. Each has the square
        roots of the singular values; columns and rows beyond K are zero.
    """
    left_vectors, values, right_vectors = factors
    used = min(rank, len(values))
    root = values[:used].sqrt()
    first = values.new_zeros(left_vectors.shape[0], rank)
    second = values.new_zeros(rank, right_vectors.shape[1])
    first[:, :used] = left_vectors[:, :used] * root
    second[:used] = root[:, None] * right_vectors[:used]
    return first, second


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factorise a matrix (M, N), float64, by its truncated singular value decomposition, see `truncated_factors`."""
    return truncated_factors(factor_matrix(matrix), rank)
