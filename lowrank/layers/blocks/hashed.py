"""Hashed layers: every weight is an entry of a small bank, times a sign.

    W[j] = sign(j) * bank[entry(j)]

Three forms, as in the study of 2018-19: the full K x K kernel hashed, the pointwise part of a separable convolution
hashed, and both of its parts hashed. The hash is a fixed function of the layer's shape and is never stored. It spreads
the weights evenly, so that every bank entry is used, and a bank as large as the weight is the weight.

Source: Chen et al. 2015, "Compressing neural networks with the hashing trick" (HashedNets).

Letters: N weights of a layer, E bank entries, I in-channels, O out-channels, K kernel size, x `bank_scale`. `..` is a
stack of layers, or nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import wraps
from math import prod, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from lowrank.layers.base_layer import SeparableConv2d
from lowrank.layers.base_method import ConvShape, Method, make_depthwise
from lowrank.layers.factored import FactoredMap, working_dtype

MAX_TABLE_BYTES = 64_000_000  # of each kind that a process keeps: those of a WRN-28-10 whose kernels are hashed
_SCALE: Any = Field(default=0.1, gt=0, le=1, validation_alias=AliasChoices("bank_scale", "scale"))


class _HashedMethod(Method):
    """Shared by the three forms; `bank_scale` may also be called `scale`."""

    scale: ClassVar[str] = "bank_scale"

    bank_scale: float = _SCALE
    bias: bool = False  # whether the layer has a bias even where the convolution had none, as in the study

    @abstractmethod
    def banks(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the entries of each bank of the layer for `shape`."""

    def has_bias(self, shape: ConvShape) -> bool:
        """Return whether the layer has a bias: its own, or that of the convolution it replaces."""
        return self.bias or shape.bias

    def infeasible(self, shape: ConvShape) -> str | None:
        if min(self.banks(shape)) > 0:
            return None
        i, o, (height, width) = shape.in_channels, shape.out_channels, shape.kernel
        return f"`scale` {self.bank_scale:g} leaves a bank without entries at {i} -> {o} channels, {height} x {width}"

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.banks(shape), self.has_bias(shape))

    def mult_adds(self, shape: ConvShape) -> int:
        return (shape.depthwise_params + shape.in_channels * shape.out_channels) * shape.out_area


class HashedFull(_HashedMethod):
    """The K x K convolution with trunc(K*K*I*O*x) distinct weights.

    It takes the mult-adds of the dense one.
    """

    name: Literal["hashed_full"] = "hashed_full"

    def banks(self, shape: ConvShape) -> tuple[int, ...]:
        return (int(shape.kernel_area * shape.in_channels * shape.out_channels * self.bank_scale),)

    def params(self, shape: ConvShape) -> int:
        return sum(self.banks(shape)) + shape.out_channels * self.has_bias(shape)

    def mult_adds(self, shape: ConvShape) -> int:
        return shape.kernel_area * shape.in_channels * shape.out_channels * shape.out_area

    def study_mult_adds(self, shape: ConvShape) -> int:
        return shape.kernel_area * shape.in_channels * shape.out_channels * shape.undilated_out_area

    def build(self, shape: ConvShape) -> nn.Module:
        return HashedMap(
            shape.in_channels, shape.out_channels, *self.banks(shape), kernel=shape.kernel, stride=shape.stride,
            padding=shape.padding, dilation=shape.dilation, bias=self.has_bias(shape),
        )  # fmt: skip


class Hashed(_HashedMethod):
    """Depthwise K x K and a hashed pointwise map.

    With `share_of` "pointwise" the bank has trunc(I*O*x) entries. With "kernel" both parts together may have
    trunc(K*K*I*O*x) parameters: the depthwise part comes first, the bank gets the remainder, at most I*O. The study's
    "decimate" is "kernel" with x = 0.1.
    """

    name: Literal["hashed"] = "hashed"
    share_of: Literal["pointwise", "kernel"] = "pointwise"

    def banks(self, shape: ConvShape) -> tuple[int, ...]:
        pointwise = shape.in_channels * shape.out_channels
        if self.share_of == "pointwise":
            return (int(pointwise * self.bank_scale),)
        remainder = int(shape.kernel_area * pointwise * self.bank_scale) - shape.depthwise_params
        return (min(max(remainder, 0), pointwise),)

    def params(self, shape: ConvShape) -> int:
        return shape.depthwise_params + sum(self.banks(shape)) + shape.out_channels * self.has_bias(shape)

    def build(self, shape: ConvShape) -> nn.Module:
        channels, bias = (shape.in_channels, shape.out_channels), self.has_bias(shape)
        if shape.kernel_area == 1:
            return HashedMap(*channels, *self.banks(shape), stride=shape.stride, padding=shape.padding, bias=bias)
        return SeparableConv2d(make_depthwise(shape), HashedMap(*channels, *self.banks(shape), bias=bias))


class HashedBoth(_HashedMethod):
    """Depthwise and pointwise parts, both hashed.

    A pointwise convolution has a depthwise 1 x 1 in front. B = trunc((I*O + K*K*I [K>1]) * x) entries are shared in
    proportion to K*K*I and I*O, each share cut to a whole number. With `bias`, as in the study (11-16 December 2018, x
    = 0.1), both parts have one.
    """

    name: Literal["hashed_both"] = "hashed_both"
    bias: bool = True

    def banks(self, shape: ConvShape) -> tuple[int, ...]:
        depthwise, pointwise = shape.kernel_area * shape.in_channels, shape.in_channels * shape.out_channels
        budget = int((pointwise + shape.depthwise_params) * self.bank_scale)
        return tuple(budget * part // (depthwise + pointwise) for part in (depthwise, pointwise))

    def params(self, shape: ConvShape) -> int:
        biases = shape.in_channels * self.bias + shape.out_channels * self.has_bias(shape)
        return sum(self.banks(shape)) + biases

    def build(self, shape: ConvShape) -> nn.Module:
        i, (depthwise_bank, bank) = shape.in_channels, self.banks(shape)
        depthwise = HashedDepthwise(
            i, i, depthwise_bank, kernel=shape.kernel, stride=shape.stride, padding=shape.padding,
            dilation=shape.dilation, groups=i, bias=self.bias,
        )  # fmt: skip
        return SeparableConv2d(depthwise, HashedMap(i, shape.out_channels, bank, bias=self.has_bias(shape)))


def _mix_bits(values: Tensor) -> Tensor:
    """Turn integers into pseudo-random ones of 32 bits, the same on every machine.

    The finaliser of MurmurHash3 (Appleby 2011).
    """
    mask = 0xFFFFFFFF
    values = ((values ^ (values >> 16)) * 0x85EBCA6B) & mask
    values = ((values ^ (values >> 13)) * 0xC2B2AE35) & mask
    return values ^ (values >> 16)


def weight_order(weights: int) -> Tensor:
    """Return the pseudo-random order (N,) in which N weights are assigned to the entries of a bank."""
    return torch.argsort(_mix_bits(torch.arange(1, weights + 1, dtype=torch.int64, device="cpu")), stable=True)


def sign_bits(weights: int) -> Tensor:
    """Return 1 where a weight is the negative of its entry, else 0: (N,)."""
    return _mix_bits(torch.arange(weights, dtype=torch.int64, device="cpu") + 0x9E3779B9) & 1


def _keep_recent(make: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
    """Keep the tables that were used last, so that equal layers share one; a module keeps its own alive anyway."""
    tables: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @wraps(make)
    def table(weights: int, entries: int) -> Tensor:
        key = weights, entries
        recent = tables.pop(key, None)
        tables[key] = make(weights, entries) if recent is None else recent
        while len(tables) > 1 and sum(entry.nbytes for entry in tables.values()) > MAX_TABLE_BYTES:
            tables.popitem(last=False)
        return tables[key]

    return table


@_keep_recent
def hash_table(weights: int, entries: int) -> Tensor:
    """Return which number each weight reads: an index into the bank followed by its negative.

    The weights, in pseudo-random order, are assigned to the entries in turn.

    Args:
        weights: N.
        entries: E.

    Returns:
        (N,), int32.
    """
    reads = torch.empty(weights, dtype=torch.int64, device="cpu")
    reads[weight_order(weights)] = torch.arange(weights, device="cpu") % entries
    return (reads + entries * sign_bits(weights)).int()


@_keep_recent
def reader_table(weights: int, entries: int) -> Tensor:
    """Return which weights read each entry, the inverse of `hash_table`.

    An entry's gradient is the sum of its column. The last round may be incomplete: it is filled up with zeros.

    Args:
        weights: N.
        entries: E.

    Returns:
        (rounds, E) flattened, int32: an index into the N weights, followed by their negatives and a zero.
    """
    order = weight_order(weights)
    signed = order + weights * sign_bits(weights)[order]
    missing = -weights % entries
    return torch.cat([signed, signed.new_full((missing,), 2 * weights)]).int()


class BankLookup(torch.autograd.Function):
    """Look a bank (.., E) up as weights (.., N) of `dtype`, by `hash_table`; the gradient by `reader_table`.

    On a GPU the usual gradient of a gather adds up by atomic operations, slowly and in an order that changes.
    """

    @staticmethod
    def forward(bank: Tensor, reads: Tensor, readers: Tensor, dtype: torch.dtype) -> Tensor:
        return with_negatives(bank.to(dtype)).index_select(-1, reads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        bank, _, readers, _ = inputs
        ctx.entries, ctx.dtype = bank.shape[-1], bank.dtype
        ctx.save_for_backward(readers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (readers,) = ctx.saved_tensors
        table = torch.cat([with_negatives(gradient), torch.zeros_like(gradient[..., :1])], -1)
        rounds = table.index_select(-1, readers).unflatten(-1, (-1, ctx.entries))
        return rounds.sum(-2, dtype=ctx.dtype), None, None, None


def with_negatives(values: Tensor) -> Tensor:
    """Return values (.., E) followed by their negatives: (.., 2E)."""
    return torch.cat([values, -values], -1)


class HashedMap(FactoredMap):
    """A convolution (pointwise unless `kernel` says otherwise) whose weights come from a bank of `entries`."""

    cast_factors_first = False  # so that a bank's gradient, a sum over many weights, has full precision

    reads: Tensor
    readers: Tensor

    def __init__(self, in_channels: int, out_channels: int, entries: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.bank = nn.Parameter(torch.empty(entries))
        weights = prod(self.weight_shape)
        if self.bank.is_meta:  # only counted: tables of a large layer would take gigabytes and a minute
            reads, readers = (
                torch.empty(size, dtype=torch.int32) for size in (weights, -(-weights // entries) * entries)
            )
        else:
            reads, readers = hash_table(weights, entries), reader_table(weights, entries)
        self.register_buffer("reads", reads, persistent=False)
        self.register_buffer("readers", readers, persistent=False)
        self.reset()

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        (bank,) = factors
        if bank.is_cuda and not torch.compiler.is_compiling():
            flat = BankLookup.apply(bank, self.reads, self.readers, working_dtype(bank))
        else:
            flat = with_negatives(bank).index_select(-1, self.reads)
        return flat.unflatten(-1, (self.out_channels, -1) if prod(self.kernel) == 1 else self.weight_shape)

    def squared_norm(self) -> Tensor:
        """Sum each squared entry as often as it is read: floor(N / E) times, the first N mod E entries once more."""
        rounds, extra = divmod(prod(self.weight_shape), len(self.bank))
        squares = self.bank.square()
        return rounds * squares.sum() + squares[:extra].sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw the bank with the target std: signs and bank are independent, so every weight has it."""
        self.bank.normal_(std=std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Set the nearest bank: the mean, signs undone, of the weights that share an entry."""
        entries = len(self.bank)
        entry, sign = self.reads.long() % entries, 1 - 2 * (self.reads.long() // entries)
        sums = torch.zeros(entries, dtype=torch.float64, device=self.bank.device)
        sums.index_add_(0, entry, dense.double().flatten().to(sums) * sign)
        self.bank.copy_(sums / torch.bincount(entry, minlength=entries))


class HashedDepthwise(HashedMap):
    """A depthwise convolution whose weights come from a bank."""

    def target_std(self, fan: Literal["in", "out"] = "in") -> float:
        """Return 1 / K, as for a plain depthwise part."""
        return 1 / sqrt(prod(self.kernel))
