"""Counter-based random numbers: each is a pure function of (seed, step, purpose, index, draw).

Everything is 32-bit integer arithmetic inside int64 tensors, so the numbers are the same bits on every device, for
every batch composition and in every version of torch. The multipliers are odd and below 2**31: a product with a 32-bit
word stays below 2**63. They were picked for a low avalanche bias, which the tests measure.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)
Purpose = Literal["views", "order", "test split", "validation split", "training part", "validation part"]

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0x43B79BC3, 0x5C60647F, 0x780CB351)
_PURPOSES: dict[Purpose, int] = {
    "views": 1,
    "order": 2,
    "test split": 3,
    "validation split": 4,
    "training part": 5,
    "validation part": 6,
}


def scramble(word: Word) -> Word:
    """A bijection of 32-bit words in which each input bit flips each output bit with probability one half."""
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[0]) & WORD
    word = ((word ^ (word >> 15)) * _MULTIPLIERS[1]) & WORD
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[2]) & WORD
    return word ^ (word >> 15)


def _absorb(*values: int) -> int:
    """One 32-bit word from integers of up to 64 bits each (negative ones as two's complement)."""
    word = len(values)
    for value in values:
        word = scramble(word ^ (value & WORD))
        word = scramble((word + (value >> 32)) & WORD)
    return word


class Stream:
    """The numbers of one (seed, step, purpose); `step` is an epoch, a cache epoch or 0."""

    def __init__(self, seed: int, step: int, purpose: Purpose) -> None:
        self._key = (seed, step, _PURPOSES[purpose])

    def words(self, indices: Tensor, draws: int) -> list[Tensor]:
        """`draws` independent words for each index.

        Args:
            indices: int64, any shape, from 0 to 2**32 - 1.
            draws: how many numbers each index gets.

        Returns:
            `draws` int64 tensors of the shape of `indices`, each uniform over 0 .. 2**32 - 1.
        """
        base = scramble(indices ^ _absorb(*self._key, 0))
        return [scramble(base ^ _absorb(*self._key, draw + 1)) for draw in range(draws)]


def below(words: Tensor, bound: int) -> Tensor:
    """Uniform integers 0 .. bound - 1 from 32-bit words, by multiply and shift; bound at most 2**31."""
    return (words * bound) >> 32


def shuffled(stream: Stream, indices: Tensor) -> Tensor:
    """The positions of `indices` (n,) in a random order that depends on the stream and on each index alone."""
    high, low = stream.words(indices, 2)
    return torch.argsort((high << 31) | (low >> 1), stable=True)


def epoch_order(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The order of n images in an epoch: an int64 permutation (n,), the same on every device."""
    return shuffled(Stream(seed, epoch, "order"), torch.arange(n, device=device))
