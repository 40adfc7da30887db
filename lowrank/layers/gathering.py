"""Factors of many maps taken in one copy, cast once, and laid out as a GPU multiplies them fastest."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lowrank.layers.factored import FactoredMap

Column = tuple[Tensor, ...]  # one factor of each map of a stack
Tables = dict[object, tuple[Tensor, Tensor, list[list[tuple[int, ...]]]]]


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
    if entries[0].is_cuda and entries[0].dtype != dtype and any(lead.gains_by_filling() for lead in leads):
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
