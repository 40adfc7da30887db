"""Triton kernels for the entries of ACDC's layers; imported only where Triton is installed.

Functions, letters and layout are those of `lowrank.layers.acdc.entries`. Each entry is computed in the dtype of the
diagonals and rounded once. Without atomic operations, so that equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 16, 128  # of a tile
PRODUCT_ROWS, ENTRIES, INNER = 4, 8, 256  # of a product's tile: rows, entries of the result, numbers to multiply
COUNTS = ("maps", "layers", "blocks", "count")  # arguments whose values do not cause a new compilation


@triton.jit
def _channel(row, layer, width):  # type: ignore[no-untyped-def]
    """Return the channel that a row of a layer's matrix reads: rows of all but the first layer are those of P^T."""
    return tl.where(layer == 0, row, (row % 2) * ((width + 1) // 2) + row // 2)


@triton.jit(do_not_specialize=COUNTS[:2])
def _write_kernel(  # type: ignore[no-untyped-def]
    first, halves, gains, slots, out, maps, layers, width, tile_rows: tl.constexpr, tile_columns: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64)
    layer = number % layers
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(2) * tile_columns + tl.arange(0, tile_columns)[None, :]
    channel = _channel(row, layer, width)
    scale = tl.load(first + number * width + channel, mask=row < width) * tl.load(gains + layer)
    row, channel = row[:, None], channel[:, None]
    inside = (row < width) & (column < width)
    total = channel + column
    folded = tl.where(total < width, total, 2 * width - 2 - total)
    layer_halves = halves + number * 2 * width
    entries = tl.load(layer_halves + tl.abs(channel - column), mask=inside) + tl.load(
        layer_halves + width + folded, mask=inside
    )
    matrix = tl.load(slots + layer).to(tl.int64) * maps + number // layers
    entries = (entries * scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + matrix * width * width + (row * width + column), entries, mask=inside)


@triton.jit(do_not_specialize=COUNTS[3:])
def _multiply_kernel(  # type: ignore[no-untyped-def]
    rows, matrix, out, count, inner, outer,
    tile_rows: tl.constexpr, tile_entries: tl.constexpr, tile_inner: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    entry = tl.program_id(1) * tile_entries + tl.arange(0, tile_entries)
    products = tl.zeros([tile_rows, tile_entries, tile_inner], dtype=rows.dtype.element_ty)
    for start in range(0, inner, tile_inner):
        position = start + tl.arange(0, tile_inner)
        valid = (position < inner)[None, :]
        row_values = tl.load(
            rows + (row[:, None] * inner + position[None, :]), mask=(row < count)[:, None] & valid, other=0.0
        )
        entry_values = tl.load(
            matrix + (entry[:, None] * inner + position[None, :]), mask=(entry < outer)[:, None] & valid, other=0.0
        )
        products += row_values[:, None, :] * entry_values[None, :, :]
    inside = (row < count)[:, None] & (entry < outer)[None, :]
    tl.store(out + (row[:, None] * outer + entry[None, :]), tl.sum(products, 2), mask=inside)


@triton.jit(do_not_specialize=COUNTS[:3])
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient, first, halves, gains, slots, by_first, sums, maps, layers, width, blocks,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    layer = number % layers
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    in_rows = row < width
    channel = _channel(row, layer, width)
    gain = tl.load(gains + layer)
    scale = tl.load(first + number * width + channel, mask=in_rows, other=0.0) * gain
    matrix = tl.load(slots + layer).to(tl.int64) * maps + number // layers
    layer_gradient, rows = gradient + matrix * width * width, row[None, :] * width
    layer_halves = halves + number * 2 * width
    layer_sums = sums + (number * blocks + tl.program_id(1)) * 4 * width
    # Tiles are (columns, rows), so that neighbouring threads read along rows: Triton sees no order in wrapped columns
    by_row = tl.zeros([tile_columns, tile_rows], dtype=first.dtype.element_ty)  # summed once, after the loop
    for start in range(0, width, tile_columns):
        position = start + tl.arange(0, tile_columns)
        valid = position < width
        inside = valid[:, None] & in_rows[None, :]
        # Along diagonals: entry (channel, channel + position); past the end, from the other side of the main diagonal
        column = position[:, None] + channel[None, :]
        over = column >= width
        entries = tl.load(layer_gradient + (rows + tl.where(over, column - width, column)), mask=inside, other=0.0).to(
            by_row.dtype
        )
        close = tl.load(layer_halves + position, mask=valid, other=0.0)
        distant = tl.load(layer_halves + width - position, mask=valid & (position > 0), other=0.0)
        by_row += entries * tl.where(over, distant[:, None], close[:, None])
        entries *= scale[None, :]
        tl.store(layer_sums + position, tl.sum(tl.where(over, 0.0, entries), 1), mask=valid)
        turned = tl.where(position == 0, 0, width - position)
        tl.store(layer_sums + 2 * width + turned, tl.sum(tl.where(over, entries, 0.0), 1), mask=valid)
        # Along antidiagonals: entry (channel, position - channel); past the end, from beyond the middle one
        column = position[:, None] - channel[None, :]
        under = column < 0
        entries = tl.load(layer_gradient + (rows + tl.where(under, column + width, column)), mask=inside, other=0.0).to(
            by_row.dtype
        )
        close = tl.load(layer_halves + width + position, mask=valid, other=0.0)
        distant = tl.load(layer_halves + 2 * width - 2 - position, mask=position < width - 1, other=0.0)
        by_row += entries * tl.where(under, distant[:, None], close[:, None])
        entries *= scale[None, :]
        tl.store(layer_sums + width + position, tl.sum(tl.where(under, 0.0, entries), 1), mask=valid)
        turned = tl.where(position == width - 1, width - 1, width - 2 - position)
        tl.store(layer_sums + 3 * width + turned, tl.sum(tl.where(under, entries, 0.0), 1), mask=valid)
    tl.store(by_first + number * width + channel, tl.sum(by_row, 0) * gain, mask=in_rows)


def try_out(device: torch.device) -> None:
    """Run all kernels once; raises what Triton raises where it cannot compile them."""
    ones, slots = torch.ones(1, 1, 16, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    out = torch.empty(1, 1, 16, 16, device=device)
    write_matrices(ones, ones.new_ones(1, 32), ones.new_ones(1), slots, out)
    matrices_backward(out, ones, multiply_rows(ones[0], ones.new_ones(32, 16)), ones.new_ones(1), slots)


def multiply_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """As `entries.multiply_rows`: a library's product has too few blocks for so few rows."""
    (count, inner), outer = rows.shape, len(matrix)
    out = rows.new_empty(count, outer)
    with torch.cuda.device_of(out):
        _multiply_kernel[(triton.cdiv(count, PRODUCT_ROWS), triton.cdiv(outer, ENTRIES))](
            rows, matrix, out, count, inner, outer,
            tile_rows=PRODUCT_ROWS, tile_entries=ENTRIES, tile_inner=INNER,
        )  # fmt: skip
    return out


def write_matrices(first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor, out: Tensor) -> None:
    """As `entries.write_matrices`, in one kernel that writes each entry once."""
    maps, layers, width = first.shape
    grid = (maps * layers, triton.cdiv(width, ROWS), triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(out):
        _write_kernel[grid](first, halves, gains, slots, out, maps, layers, width, tile_rows=ROWS, tile_columns=COLUMNS)


def matrices_backward(
    gradient: Tensor, first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """As `entries.matrices_backward`, in one kernel that reads each gradient entry twice, and a sum over its tiles."""
    maps, layers, width = first.shape
    blocks = triton.cdiv(width, ROWS)
    by_first, sums = torch.empty_like(first), halves.new_empty(maps * layers, 2 * blocks, 2 * width)
    with torch.cuda.device_of(gradient):
        _backward_kernel[(maps * layers, blocks)](
            gradient, first, halves, gains, slots, by_first, sums, maps, layers, width, blocks,
            tile_rows=ROWS, tile_columns=COLUMNS,
        )  # fmt: skip
    return by_first, sums.sum(1)
