"""Triton kernels for the entries of ACDC's layers; imported only where Triton is (see `acdc_entries`).

Letters and layout as in `acdc_entries`. Each entry is computed in the dtype of the diagonals and rounded once. No
atomics: equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 16, 128  # of a tile
ROWS_AT_ONCE, ENTRIES, INNER = 4, 8, 256  # of a product's tile: rows given, entries found, numbers multiplied
COUNTS = ("maps", "layers", "blocks", "count")  # kernels are not compiled anew for each of these


@triton.jit
def _channel(row, layer, width):  # type: ignore[no-untyped-def]
    """The channel that a row of a layer's matrix reads: rows of all but the first are riffled back."""
    return tl.where(layer == 0, row, (row % 2) * ((width + 1) // 2) + row // 2)


@triton.jit(do_not_specialize=COUNTS[:2])
def _form(  # type: ignore[no-untyped-def]
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
    own = halves + number * 2 * width
    entries = tl.load(own + tl.abs(channel - column), mask=inside) + tl.load(own + width + folded, mask=inside)
    matrix = tl.load(slots + layer).to(tl.int64) * maps + number // layers
    entries = (entries * scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + matrix * width * width + (row * width + column), entries, mask=inside)


@triton.jit(do_not_specialize=COUNTS[3:])
def _project(  # type: ignore[no-untyped-def]
    given, matrix, out, count, inner, outer,
    tile_rows: tl.constexpr, tile_entries: tl.constexpr, tile_inner: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    entry = tl.program_id(1) * tile_entries + tl.arange(0, tile_entries)
    products = tl.zeros([tile_rows, tile_entries, tile_inner], dtype=given.dtype.element_ty)
    for start in range(0, inner, tile_inner):
        place = start + tl.arange(0, tile_inner)
        valid = (place < inner)[None, :]
        left = tl.load(given + (row[:, None] * inner + place[None, :]), mask=(row < count)[:, None] & valid, other=0.0)
        right = tl.load(
            matrix + (entry[:, None] * inner + place[None, :]), mask=(entry < outer)[:, None] & valid, other=0.0
        )
        products += left[:, None, :] * right[None, :, :]
    inside = (row < count)[:, None] & (entry < outer)[None, :]
    tl.store(out + (row[:, None] * outer + entry[None, :]), tl.sum(products, 2), mask=inside)


@triton.jit(do_not_specialize=COUNTS[:3])
def _form_back(  # type: ignore[no-untyped-def]
    gradient, first, halves, gains, slots, by_first, sums, maps, layers, width, blocks,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    layer = number % layers
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    there = row < width
    channel = _channel(row, layer, width)
    gain = tl.load(gains + layer)
    scale = tl.load(first + number * width + channel, mask=there, other=0.0) * gain
    matrix = tl.load(slots + layer).to(tl.int64) * maps + number // layers
    given_at, rows = gradient + matrix * width * width, row[None, :] * width
    own = halves + number * 2 * width
    found = sums + (number * blocks + tl.program_id(1)) * 4 * width
    # Tiles are (columns, rows): threads side by side then read along rows, as Triton sees no order in wrapped columns.
    by_row = tl.zeros([tile_columns, tile_rows], dtype=first.dtype.element_ty)  # summed once, at the end
    for start in range(0, width, tile_columns):
        place = start + tl.arange(0, tile_columns)
        valid = place < width
        inside = valid[:, None] & there[None, :]
        # along diagonals: entry (channel, channel + place), round the end from the other side of the main diagonal
        column = place[:, None] + channel[None, :]
        over = column >= width
        given = tl.load(given_at + (rows + tl.where(over, column - width, column)), mask=inside, other=0.0).to(
            by_row.dtype
        )
        near = tl.load(own + place, mask=valid, other=0.0)
        far = tl.load(own + width - place, mask=valid & (place > 0), other=0.0)
        by_row += given * tl.where(over, far[:, None], near[:, None])
        given *= scale[None, :]
        tl.store(found + place, tl.sum(tl.where(over, 0.0, given), 1), mask=valid)
        turned = tl.where(place == 0, 0, width - place)
        tl.store(found + 2 * width + turned, tl.sum(tl.where(over, given, 0.0), 1), mask=valid)
        # along antidiagonals: entry (channel, place - channel), round the end from beyond the middle one
        column = place[:, None] - channel[None, :]
        under = column < 0
        given = tl.load(given_at + (rows + tl.where(under, column + width, column)), mask=inside, other=0.0).to(
            by_row.dtype
        )
        near = tl.load(own + width + place, mask=valid, other=0.0)
        far = tl.load(own + 2 * width - 2 - place, mask=place < width - 1, other=0.0)
        by_row += given * tl.where(under, far[:, None], near[:, None])
        given *= scale[None, :]
        tl.store(found + width + place, tl.sum(tl.where(under, 0.0, given), 1), mask=valid)
        turned = tl.where(place == width - 1, width - 1, width - 2 - place)
        tl.store(found + 3 * width + turned, tl.sum(tl.where(under, given, 0.0), 1), mask=valid)
    tl.store(by_first + number * width + channel, tl.sum(by_row, 0) * gain, mask=there)


def try_out(device: torch.device) -> None:
    """Runs both kernels; raises what Triton raises where it cannot compile them."""
    ones, slots = torch.ones(1, 1, 16, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    out = torch.empty(1, 1, 16, 16, device=device)
    form(ones, ones.new_ones(1, 32), ones.new_ones(1), slots, out)
    form_back(out, ones, project(ones[0], ones.new_ones(32, 16)), ones.new_ones(1), slots)


def project(given: Tensor, matrix: Tensor) -> Tensor:
    """As `acdc_entries.project`: so few rows that a library's product has too little to share out among its blocks."""
    (count, inner), outer = given.shape, len(matrix)
    out = given.new_empty(count, outer)
    with torch.cuda.device_of(out):
        _project[(triton.cdiv(count, ROWS_AT_ONCE), triton.cdiv(outer, ENTRIES))](
            given, matrix, out, count, inner, outer,
            tile_rows=ROWS_AT_ONCE, tile_entries=ENTRIES, tile_inner=INNER,
        )  # fmt: skip
    return out


def form(first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor, out: Tensor) -> None:
    """As `acdc_entries.form`, in one kernel that writes each entry once."""
    maps, layers, width = first.shape
    grid = (maps * layers, triton.cdiv(width, ROWS), triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(out):
        _form[grid](first, halves, gains, slots, out, maps, layers, width, tile_rows=ROWS, tile_columns=COLUMNS)


def form_back(gradient: Tensor, first: Tensor, halves: Tensor, gains: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """As `acdc_entries.form_back`: one kernel that reads each entry of the gradient twice, and a sum over its tiles."""
    maps, layers, width = first.shape
    blocks = triton.cdiv(width, ROWS)
    by_first, sums = torch.empty_like(first), halves.new_empty(maps * layers, 2 * blocks, 2 * width)
    with torch.cuda.device_of(gradient):
        _form_back[(maps * layers, blocks)](
            gradient, first, halves, gains, slots, by_first, sums, maps, layers, width, blocks,
            tile_rows=ROWS, tile_columns=COLUMNS,
        )  # fmt: skip
    return by_first, sums.sum(1)
