"""Maps whose weight follows from their factors alone, so that many layers' weights can be rebuilt together.

A network's layers of one shape are rebuilt as one stack: the same few matrix products, batched, instead of many
small ones in sequence, which on a GPU cost their launch more than their work.
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

ALIGNMENT = 8  # numbers of half precision in 16 bytes

Column = tuple[Tensor, ...]  # one factor of each map of a stack
Tables = dict[object, tuple[Tensor, Tensor, list[list[tuple[int, ...]]]]]

_TABLES: WeakKeyDictionary[StructuredMap, Tables] = WeakKeyDictionary()  # of maps rebuilt alone


class FactoredMap(StructuredMap):
    """A map that says how factors make a weight; one that is no factor of it (a bias) is none of its `factors`."""

    cast_factors_first: ClassVar[bool] = True  # under autocast; for maps that only multiply them

    @abstractmethod
    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight, as `weight` returns it, of factors in the order of `factors`.

        Each factor may have one more dimension in front, the same for all: a stack of layers; so has the weight.
        """

    def weight(self) -> Tensor:
        factors = self.factors()
        if factors[0].is_cuda and self.cast_factors_first and not torch.compiler.is_compiling():
            return self.assembled(self._filled_alone(factors))
        return self.assembled(factors)

    def _filled_alone(self, factors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The factors cast and laid out in one go, where autocast casts them and that gains.

        Not while a CUDA graph is recorded before the layer's tables are on the device.
        """
        dtype, tables = working_dtype(factors[0]), _TABLES.setdefault(self, {})
        ready = bool(tables) or not (factors[0].is_cuda and torch.cuda.is_current_stream_capturing())
        if dtype == factors[0].dtype or not ready or not self.benefits_from_padding():
            return factors
        (found,) = gathered([self], [[(factor,) for factor in factors]], dtype, tables)
        return [factor.squeeze(0) for factor in found]

    def builds_weight(self, on_gpu: bool) -> bool:
        """Whether `forward` goes by the weight, or by the factors in turn."""
        return True

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        """Shapes to which factors may be filled up with zeros, their ranks to multiples of 8; the weight is the same.

        A GPU has fast kernels for rows of a multiple of 16 bytes alone.
        """
        return [tuple(factor.shape) for factor in self.factors()]

    def filled(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Factors (G, *shape) of G maps as a GPU multiplies them fastest, zeros where nothing is; for `assembled`."""
        found = []
        for factor, shape in zip(factors, self.aligned_shapes(), strict=True):
            whole = factor.new_zeros(len(factor), *shape)
            whole[tuple(map(slice, factor.shape))] = factor
            found.append(whole)
        return found

    def benefits_from_padding(self) -> bool:
        """Whether `filled` changes anything."""
        return self.aligned_shapes() != [tuple(factor.shape) for factor in self.factors()]

    def structure_key(self) -> tuple[Any, ...]:
        """Layers with equal keys can be stacked."""
        shapes = tuple(tuple(factor.shape) for factor in self.factors())
        return (type(self), self.weight_shape, shapes)


def aligned(rank: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-rank // ALIGNMENT) * ALIGNMENT


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product would take `x`: autocast's, where that is on and `x` is float32."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class Filled(torch.autograd.Function):
    """Entries `index` of x, as `dtype`; the gradient takes entries `back`; that of the first one has no meaning."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(back)
        ctx.dtype = x.dtype
        return x[index].to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradient[back].to(ctx.dtype), None, None, None


def gathered(
    leads: Sequence[FactoredMap], columns: Sequence[Sequence[Column]], dtype: torch.dtype, tables: Tables
) -> list[list[Tensor]]:
    """Each stack's factors as `dtype`, each (maps, *its shape): views of one tensor.

    `leads` are the first maps of the stacks, `columns` their factors. On a GPU they are laid out as `filled` says.
    """
    entries = [factor.reshape(-1) for factors in columns for column in factors for factor in column]
    if entries[0].is_cuda and entries[0].dtype != dtype and any(lead.benefits_from_padding() for lead in leads):
        index, back, shapes = filling(leads, columns, tables)
        flat = Filled.apply(torch.cat([entries[0].new_zeros(1), *entries]), index, back, dtype)
    else:
        shapes = [[(len(column), *column[0].shape) for column in factors] for factors in columns]
        flat = torch.cat(entries).to(dtype)
    pieces = iter(flat.split([prod(shape) for group in shapes for shape in group]))
    return [[next(pieces).view(shape) for shape in group] for group in shapes]


def filling(
    leads: Sequence[FactoredMap], columns: Sequence[Sequence[Column]], tables: Tables
) -> tuple[Tensor, Tensor, list[list[tuple[int, ...]]]]:
    """Which entry each entry of the filled tensor takes, the first one for a zero; the way back; and the shapes."""
    device = columns[0][0][0].device
    key = (tuple((lead.structure_key(), len(factors[0])) for lead, factors in zip(leads, columns, strict=True)), device)
    if key not in tables:
        groups, entries = [], 1
        for lead, factors in zip(leads, columns, strict=True):
            own = []
            for column in factors:
                shape = (len(column), *column[0].shape)
                own.append(torch.arange(entries, entries + prod(shape), device="cpu").view(shape))
                entries += prod(shape)
            groups.append(lead.filled(own))
        index = torch.cat([each.flatten() for group in groups for each in group])
        places = torch.nonzero(index)[:, 0]
        back = torch.zeros(entries, dtype=torch.int64, device="cpu").index_copy_(0, index[places], places)
        tables[key] = (index.to(device), back.to(device), [[tuple(each.shape) for each in group] for group in groups])
    return tables[key]
