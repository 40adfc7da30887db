"""Bits that the weights of a layer need, from the variances of their posterior.

A weight whose posterior is wide need not be stored exactly: with t significant bits the unit round-off is 2^-t, and the
fewest bits are taken whose round-off is below twice the variance. As the paper counts it, a layer has one width, the
mean over its weights rounded up, an exponent that holds its largest weight, and a sign.
Source: Louizos, Ullrich, Welling 2017, section 3.3 and appendix, with the rules of the published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIGNIFICANT_BITS = 23  # of float32


@dataclass(frozen=True)
class BitWidth:
    """The format of a layer's weights.

    Attributes:
        significant: bits of the significand.
        exponent: bits of the exponent.
    """

    significant: int
    exponent: int

    @property
    def bits(self) -> int:
        """Bits of one weight, with its sign."""
        return 1 + self.exponent + self.significant


def bit_width(weight: Tensor, variance: Tensor) -> BitWidth:
    """Find the format that a layer's weights need.

    Args:
        weight: posterior means of the weights that stay.
        variance: posterior variances, of the same shape.

    Returns:
        The format: 1 to 23 significant bits.
    """
    needed = -torch.log2(2 * variance.double().clamp_min(1e-30))  # t with 2^-t = 2 variance
    bits = needed.ceil().clamp(1, SIGNIFICANT_BITS).mean()
    largest = float(weight.abs().max())
    exponent = math.ceil(math.log2(math.log2(largest + 1) + 1) + 1)
    return BitWidth(math.ceil(float(bits)), exponent)


def round_significand(weight: Tensor, bits: int) -> Tensor:
    """Round weights to so many significant bits.

    Args:
        weight: of any shape.
        bits: significant bits, without the leading one.

    Returns:
        The rounded weights, in the same shape and type.
    """
    mantissa, exponent = torch.frexp(weight)
    scale = 2.0 ** (bits + 1)
    return torch.ldexp((mantissa * scale).round() / scale, exponent)


def mixed_bytes(network: nn.Module, widths: Mapping[str, BitWidth]) -> int:
    """Count the bytes of a network's weights in mixed precision.

    Args:
        network: plain, after the removal.
        widths: of the layers' weights by name; all other parameters take 32 bits.

    Returns:
        Bytes, rounded up. Weights that are 0 in a network that is only masked count like others.
    """
    bits = 0
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        bits += parameter.numel() * (widths[layer].bits if kind == "weight" and layer in widths else 32)
    return math.ceil(bits / 8)
