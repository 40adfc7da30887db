"""Slices of a batch, for several processes that train on it together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank.errors import InputError


@dataclass(frozen=True)
class ProcessShard:
    """The `index`-th of `count` equal slices of a batch, or of each of its `parts`."""

    index: int = 0
    count: int = 1
    parts: int = 1

    def of_batches(self, order: Tensor, batch_size: int) -> Tensor:
        """This slice's entries of `order`, (n,) with n a multiple of `batch_size`, batch after batch.

        Raises InputError when a batch cannot be cut into equal slices.
        """
        if self.count == 1:
            return order
        pieces = self.count * self.parts
        if batch_size % pieces or len(order) % batch_size:
            parts = f" in {self.parts} parts" if self.parts > 1 else ""
            raise InputError(
                f"a batch must be shared evenly by the processes of a trial, but {batch_size} images{parts} cannot be "
                f"by {self.count}"
            )
        return order.view(-1, self.parts, self.count, batch_size // pieces)[:, :, self.index].reshape(-1)

    def of_range(self, length: int) -> range:
        """This slice's positions of `length` in a row; some slices may be one longer than others."""
        return range(length * self.index // self.count, length * (self.index + 1) // self.count)


UNSHARDED = ProcessShard()
