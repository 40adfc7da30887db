"""A linear map whose weight is given by few parameters: any structured pointwise map, applied to the last dimension.

Letters: B any leading dimensions, I in-features, O out-features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import SeparableConv2d, StructuredMap
from lowrank.layers.base_method import ConvShape, Method


class StructuredLinear(nn.Module):
    """Takes the place of `nn.Linear`; the structure is that of a 1 x 1 convolution, weights, starts and all."""

    def __init__(self, pointwise: StructuredMap | SeparableConv2d):
        super().__init__()
        self.pointwise = pointwise
        mapping = pointwise if isinstance(pointwise, StructuredMap) else pointwise.pointwise
        self.in_features, self.out_features = mapping.in_channels, mapping.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B.., I) -> (B.., O)."""
        structure = self.pointwise
        if isinstance(structure, StructuredMap) and type(structure).forward is StructuredMap.forward:
            weight = structure.forward_weight().flatten(1)
            return functional.linear(x, weight, structure.bias)  # by its weight: one matrix product
        images = x.reshape(-1, x.shape[-1], 1, 1)
        return structure(images).reshape(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Tensor:
        """The dense weight (O, I) that the layer stands for, differentiable."""
        return self.pointwise.dense_weight().flatten(1)

    def dense_bias(self) -> Tensor | None:
        """The bias (O) that the layer adds; None without one."""
        return self.pointwise.dense_bias()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Start from a trained (O, I) weight, as near as the structure gets; returns ||W - dense|| / ||dense||."""
        return self.pointwise.init_from_dense(dense[:, :, None, None])


def build_linear(method: Method, shape: ConvShape) -> nn.Module:
    """The module that stands in for a linear map of this shape: structured, or plain where `method` builds it plain."""
    built = method.build(shape._replace(stride=(1, 1), padding=(0, 0), dilation=(1, 1)))
    if isinstance(built, StructuredMap | SeparableConv2d):
        return StructuredLinear(built)
    assert isinstance(built, nn.Conv2d)
    return as_linear(built.weight.flatten(1), built.bias)


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain linear map with this weight (O, I) and bias (O)."""
    linear = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
