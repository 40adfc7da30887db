"""Counter-based random numbers: each is a pure function of (seed, step, purpose, index, draw).

Everything is 32-bit integer arithmetic inside int64 tensors, so the numbers are the same bits on every device, for
every batch composition and in every version of torch. The multipliers are odd and below 2**31: a product with a 32-bit
word stays below 2**63. They were picked for a low avalanche bias, which the tests measure.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)
Purpose = Literal[
    "augmentation",
    "order",
    "test split",
    "validation split",
    "training subset",
    "validation subset",
    "balanced order",
    "weight noise",
]

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0x43B79BC3, 0x5C60647F, 0x780CB351)
_PURPOSES: dict[Purpose, int] = {
    "augmentation": 1,
    "order": 2,
    "test split": 3,
    "validation split": 4,
    "training subset": 5,
    "validation subset": 6,
    "balanced order": 7,
    "weight noise": 8,
}


def scramble(word: Word) -> Word:
    """Scramble 32-bit words by a bijection.

    Args:
        word: an integer or int64 tensor, from 0 to 2**32 - 1.

    Returns:
        The scrambled words: each bit of the input flips each bit of the output with probability one half.
    """
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[0]) & WORD
    word = ((word ^ (word >> 15)) * _MULTIPLIERS[1]) & WORD
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[2]) & WORD
    return word ^ (word >> 15)


def _scramble_in_place(words: Tensor) -> Tensor:
    """Scramble words as `scramble` does, three times as fast, where their number is large.

    Args:
        words: int32, of any shape: the 32 bits of each word. It is overwritten.

    Returns:
        `words`.
    """
    for shift, multiplier in ((16, _MULTIPLIERS[0]), (15, _MULTIPLIERS[1]), (16, _MULTIPLIERS[2]), (15, 1)):
        high = words >> shift
        high &= WORD >> shift  # the shift has repeated the sign
        words ^= high
        if multiplier != 1:
            words *= multiplier  # overflows, which leaves the lower 32 bits
    return words


def _absorb(*values: int) -> int:
    """Hash integers of up to 64 bits each (negative ones as two's complement) to one 32-bit word."""
    word = len(values)
    for value in values:
        word = scramble(word ^ (value & WORD))
        word = scramble((word + (value >> 32)) & WORD)
    return word


class Stream:
    """The random numbers of one (seed, step, purpose)."""

    def __init__(self, seed: int, step: int, purpose: Purpose) -> None:
        """Choose the numbers.

        Args:
            seed: up to 64 bits.
            step: an epoch, or 0.
            purpose: keeps uses of the same seed independent.
        """
        self._key = (seed, step, _PURPOSES[purpose])

    def words(self, indices: Tensor, draws: int) -> list[Tensor]:
        """Draw independent words for each index.

        Args:
            indices: int64, any shape, from 0 to 2**32 - 1.
            draws: how many numbers each index gets.

        Returns:
            `draws` int64 tensors of the shape of `indices`, each uniform over 0 .. 2**32 - 1.
        """
        index_key, *draw_keys = self.keys(draws)
        base = scramble(indices ^ index_key)
        return [scramble(base ^ draw_key) for draw_key in draw_keys]

    def keys(self, draws: int) -> list[int]:
        """Hash the stream's name: all that its numbers depend on, but for the indices.

        Args:
            draws: how many draws of each index there are.

        Returns:
            32-bit words: the key of the indices, then the key of each draw.
        """
        return [_absorb(*self._key, number) for number in range(draws + 1)]


def normal_numbers(indices: Tensor, index_key: Tensor, draw_key: Tensor, count: int) -> Tensor:
    """Draw independent standard normal numbers for each index (Box and Muller 1958).

    The keys are tensors, so that a recorded step draws the numbers of another epoch when they are overwritten.

    Args:
        indices: int64 (B,), from 0 to 2**32 - 1.
        index_key: int64 (), the first of `Stream.keys`.
        draw_key: int64 (), another one of them; it keeps several draws of the same index independent.
        count: how many numbers each index gets.

    Returns:
        float32 (B, count), on the device of `indices`. Up to the rounding of logarithm and cosine they are the same
        on every device.
    """
    half = (count + 1) // 2
    places = torch.arange(2 * half, device=indices.device)
    rows, columns = scramble(indices ^ index_key).to(torch.int32), scramble(places ^ draw_key).to(torch.int32)
    words = _scramble_in_place(rows[:, None] ^ columns)
    uniform = (words.to(torch.int64) & WORD).float().add_(0.5).mul_(2.0**-32)  # above 0, at most 1
    radius, angle = uniform[:, :half].log().mul_(-2).sqrt_(), uniform[:, half:] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def uniform_below(words: Tensor, bound: int) -> Tensor:
    """Turn 32-bit words into uniform integers, by multiply and shift.

    Args:
        words: int64, from 0 to 2**32 - 1.
        bound: from 1 to 2**31.

    Returns:
        int64 from 0 to bound - 1, of the shape of `words`.
    """
    return (words * bound) >> 32


def shuffled(stream: Stream, indices: Tensor) -> Tensor:
    """Return the positions of `indices` in a random order.

    Args:
        stream: the random numbers.
        indices: int64 (n,); the place of one depends on the stream and its value alone.

    Returns:
        A permutation, int64 (n,).
    """
    high, low = stream.words(indices, 2)
    return torch.argsort((high << 31) | (low >> 1), stable=True)


def epoch_order(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the order of images in an epoch.

    Args:
        seed: of the order.
        epoch: another one gives another order.
        n: how many images.
        device: of the result.

    Returns:
        A permutation, int64 (n,), the same on every device.
    """
    return shuffled(Stream(seed, epoch, "order"), torch.arange(n, device=device))


def balanced_order(seed: int, epoch: int, labels: Tensor) -> Tensor:
    """Return the order of images in an epoch in which each class comes equally often.

    An epoch has as many images as there are, so some of a frequent class are left out, each time others, and those of a
    rare class come several times. Where the number is no multiple of the classes, some classes come once more, in each
    epoch others.

    Args:
        seed: of the order.
        epoch: another one gives another order.
        labels: int64 (n,) on the CPU.

    Returns:
        Positions, int64 (n,).
    """
    order = epoch_order(seed, epoch, len(labels))
    classes = labels.unique().tolist()
    share, remainder = divmod(len(labels), len(classes))
    drawn = []
    for number, label in enumerate(classes):
        members = order[labels[order] == label]
        count = share + ((number - epoch) % len(classes) < remainder)
        drawn.append(members[torch.arange(count) % len(members)])
    return torch.cat(drawn)[shuffled(Stream(seed, epoch, "balanced order"), torch.arange(len(labels)))]
