"""A teacher's outputs on many images in one tensor, from which a step gathers those of its batch in one kernel.

A row holds the bits of an image's logits (float32) and attention maps (float16), each padded to 16 bytes. Letters: B
images of a batch, K classes, h x w positions of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.distillation.cache_file import Array, Layout
from lowrank.distillation.teacher import BatchSignals, Signals

ALIGNMENT = 8  # numbers of 16 bits: what compiled code reads at once


@dataclass(frozen=True)
class RowLayout:
    """Where the outputs on an image stand in a row, in numbers of 16 bits."""

    classes: int
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layout: Layout) -> RowLayout:
        """Take classes and sizes of a cache."""
        return cls(layout.classes, layout.sizes)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last number (not included) of the logits, then of each map."""
        spans, start = [], 0
        for width in (2 * self.classes, *(height * width for height, width in self.sizes)):
            spans.append((start, start + width))
            start += -(-width // ALIGNMENT) * ALIGNMENT
        return spans

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return -(-self.spans[-1][1] // ALIGNMENT) * ALIGNMENT

    def pack(self, arrays: list[Array], out: Tensor) -> None:
        """Write arrays of a cache file into rows.

        Args:
            arrays: logits (N, K), then a map (N, h * w) for each size, as `Layout.columns` says.
            out: int16 (N, columns), on the CPU.
        """
        for (start, stop), array in zip(self.spans, arrays, strict=True):
            out.numpy()[:, start:stop] = array.view("int16")

    def unpack(self, rows: Tensor) -> Signals:
        """View rows as signals.

        Args:
            rows: int16 (B, columns).

        Returns:
            Logits and maps, without a copy.
        """
        (first, *others) = self.spans
        maps = [
            rows[:, start:stop].view(torch.float16).unflatten(1, size)
            for (start, stop), size in zip(others, self.sizes, strict=True)
        ]
        return Signals(rows[:, first[0] : first[1]].view(torch.float32), tuple(maps))


@dataclass(frozen=True)
class SignalRows:
    """Signals that are still in a table.

    The table stays in one place, so that a recorded step can gather from it by rows that change.

    Attributes:
        table: int16 (.., columns).
        rows: of the images, int64 (B,).
        layout: of a row.
    """

    table: Tensor
    rows: Tensor
    layout: RowLayout

    def gather(self) -> Signals:
        """Read the signals of the rows."""
        return self.layout.unpack(self.table.index_select(0, self.rows))

    def cut(self, parts: int) -> list[SignalRows]:
        """Split the batch into `parts`, as torch's `tensor_split` does."""
        return [SignalRows(self.table, rows, self.layout) for rows in self.rows.tensor_split(parts)]

    def empty_like(self) -> SignalRows:
        """Allocate rows of the same table."""
        return SignalRows(self.table, torch.empty_like(self.rows), self.layout)

    def accepts(self, other: BatchSignals) -> bool:
        """Return whether `copy_` can take these."""
        return isinstance(other, SignalRows) and other.table is self.table and other.rows.shape == self.rows.shape

    def copy_(self, other: BatchSignals) -> None:
        """Take other rows of the same table.

        Args:
            other: what `accepts` agrees to.

        Raises:
            ValueError: they are not of this table.
        """
        if not isinstance(other, SignalRows) or not self.accepts(other):
            raise ValueError("rows of signals can only be replaced by as many rows of the same table")
        self.rows.copy_(other.rows)
