"""Shards of a batch or a split, for several processes that train or evaluate together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank.errors import InputError


@dataclass(frozen=True)
class ProcessShard:
    """The images of one process: the `index`-th of `count` equal pieces of a batch.

    Attributes:
        index: of the process, from 0.
        count: of the processes.
        parts: parts of a batch that are trained on one after another (gradient accumulation); each is shared evenly.
    """

    index: int = 0
    count: int = 1
    parts: int = 1

    def of_batches(self, order: Tensor, batch_size: int) -> Tensor:
        """Return this shard's entries of `order`, batch after batch.

        Args:
            order: int64 (n,), n a multiple of `batch_size`.
            batch_size: images of a whole batch.

        Returns:
            int64 (n / count,).

        Raises:
            InputError: a batch cannot be cut into equal shards.
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
        """Return this shard's positions in a split.

        Args:
            length: images of the split.

        Returns:
            Consecutive positions; some shards may be one longer than others.
        """
        return range(length * self.index // self.count, length * (self.index + 1) // self.count)


UNSHARDED = ProcessShard()
