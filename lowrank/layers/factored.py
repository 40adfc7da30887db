"""Maps whose weight follows from their factors alone, so that many layers' weights can be rebuilt together.

A network's layers of one shape are rebuilt as one stack: the same few matrix products, batched. On a GPU many small
products in sequence would cost more in kernel launches than in arithmetic.

For the same reason the factors of many maps are copied into one tensor, cast once, and padded with zeros to the sizes
that a GPU multiplies fastest (`gather_factors`).

Letters: G maps of a stack.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lowrank.layers.base_layer import StructuredMap

ALIGNMENT = 8  # half-precision numbers in 16 bytes

Column = tuple[Tensor, ...]  # one factor of each map of a stack
# For stacks of some structure on some device: entries to gather, the way back, and the shapes of the padded factors
PaddingTables = dict[object, tuple[Tensor, Tensor, list[list[tuple[int, ...]]]]]

_TABLES: WeakKeyDictionary[StructuredMap, PaddingTables] = WeakKeyDictionary()  # of maps that are rebuilt alone


class FactoredMap(StructuredMap):
    """A map that computes its weight from `factors()` alone; a bias is not among them."""

    cast_factors_first: ClassVar[bool] = True  # under autocast; for maps that only multiply them

    @abstractmethod
    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        """Compute the weight, in the shape of `compute_weight()`, from factors in the order of `factors()`.

        Each factor may have one more dimension in front, G for all of them: a stack of layers. So has the weight then.

        Args:
            factors: as `factors()`, or as `pad_factors` lays them out.
        """

    def compute_weight(self) -> Tensor:
        factors = self.factors()
        if factors[0].is_cuda and self.cast_factors_first and not torch.compiler.is_compiling():
            return self.assemble(self._padded_alone(factors))
        return self.assemble(factors)

    def _padded_alone(self, factors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Cast and pad the factors in one copy, where autocast casts them and padding helps.

        Not while a CUDA graph is recorded before the layer's tables are on the device: the copy cannot be recorded.
        """
        dtype, tables = working_dtype(factors[0]), _TABLES.setdefault(self, {})
        has_tables = bool(tables) or not (factors[0].is_cuda and torch.cuda.is_current_stream_capturing())
        if dtype == factors[0].dtype or not has_tables or not self.benefits_from_padding():
            return factors
        (padded,) = gather_factors([self], [[(factor,) for factor in factors]], dtype, tables)
        return [factor.squeeze(0) for factor in padded]

    def builds_weight(self, on_gpu: bool) -> bool:
        """Return whether `forward` builds the weight; else it applies the factors in turn.

        Args:
            on_gpu: whether the images are on a GPU.
        """
        return True

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes to which factors may be padded with zeros without a change of the weight.

        Ranks become multiples of 8: a GPU has fast kernels only for rows of a multiple of 16 bytes.
        """
        return [tuple(factor.shape) for factor in self.factors()]

    def pad_factors(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Lay the factors of G maps out as a GPU multiplies them fastest, padded with zeros, for `assemble`.

        Args:
            factors: (G, *shape) for each of `factors()`.
        """
        padded = []
        for factor, shape in zip(factors, self.aligned_shapes(), strict=True):
            target = factor.new_zeros(len(factor), *shape)
            target[tuple(map(slice, factor.shape))] = factor
            padded.append(target)
        return padded

    def benefits_from_padding(self) -> bool:
        """Return whether `pad_factors` changes anything."""
        return self.aligned_shapes() != [tuple(factor.shape) for factor in self.factors()]

    def stack_key(self) -> tuple[Any, ...]:
        """Return a key that is equal for layers that can be rebuilt as one stack."""
        shapes = tuple(tuple(factor.shape) for factor in self.factors())
        return (type(self), self.weight_shape, shapes)


def align(rank: int) -> int:
    """Round `rank` up to a multiple of `ALIGNMENT`."""
    return -(-rank // ALIGNMENT) * ALIGNMENT


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product would take `x`.

    That is autocast's, where autocast is on and `x` is float32; else the one of `x`.
    """
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class PadAndCast(torch.autograd.Function):
    """Gather entries of x as another dtype.

    Forward takes entries `index` of x; the gradient takes entries `back`. Entry 0 of x is the zero that pads; its
    gradient has no meaning.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(back)
        ctx.dtype = x.dtype
        return x[index].to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradient[back].to(ctx.dtype), None, None, None


def gather_factors(
    leads: Sequence[FactoredMap], columns: Sequence[Sequence[Column]], dtype: torch.dtype, tables: PaddingTables
) -> list[list[Tensor]]:
    """Gather the factors of several stacks in one copy and one cast.

    Args:
        leads: the first map of each stack.
        columns: for each stack and each factor, that factor of all maps.
        dtype: of the result.
        tables: where the tables of the padding are looked up, and added.

    Returns:
        For each stack its factors, each (G, *shape), views of one tensor. On a GPU, where they are cast, they are
        laid out as `pad_factors` says.
    """
    entries = [factor.reshape(-1) for factors in columns for column in factors for factor in column]
    if entries[0].is_cuda and entries[0].dtype != dtype and any(lead.benefits_from_padding() for lead in leads):
        index, back, shapes = padding_tables(leads, columns, tables)
        flat = PadAndCast.apply(torch.cat([entries[0].new_zeros(1), *entries]), index, back, dtype)
    else:
        shapes = [[(len(column), *column[0].shape) for column in factors] for factors in columns]
        flat = torch.cat(entries).to(dtype)
    pieces = iter(flat.split([prod(shape) for group in shapes for shape in group]))
    return [[next(pieces).view(shape) for shape in group] for group in shapes]


def padding_tables(
    leads: Sequence[FactoredMap], columns: Sequence[Sequence[Column]], tables: PaddingTables
) -> tuple[Tensor, Tensor, list[list[tuple[int, ...]]]]:
    """Return the tables of the padding for these stacks, from `tables` where they are there.

    Args:
        leads: the first map of each stack.
        columns: for each stack and each factor, that factor of all maps.
        tables: where new ones are added.

    Returns:
        Which entry each padded entry takes (0 for a zero), which padded entry each entry went to, and the shapes of
        the padded factors.
    """
    device = columns[0][0][0].device
    key = (tuple((lead.stack_key(), len(factors[0])) for lead, factors in zip(leads, columns, strict=True)), device)
    if key not in tables:
        groups, entries = [], 1
        for lead, factors in zip(leads, columns, strict=True):
            numbers = []
            for column in factors:
                shape = (len(column), *column[0].shape)
                numbers.append(torch.arange(entries, entries + prod(shape), device="cpu").view(shape))
                entries += prod(shape)
            groups.append(lead.pad_factors(numbers))
        index = torch.cat([factor.flatten() for group in groups for factor in group])
        positions = torch.nonzero(index)[:, 0]
        back = torch.zeros(entries, dtype=torch.int64, device="cpu").index_copy_(0, index[positions], positions)
        shapes = [[tuple(factor.shape) for factor in group] for group in groups]
        tables[key] = (index.to(device), back.to(device), shapes)
    return tables[key]
