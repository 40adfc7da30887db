"""A structured linear map: any structured pointwise map, applied to the last dimension.

Letters: .. any leading dimensions, I in-features, O out-features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import SeparableConv2d, StructuredMap
from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.low_rank.whole_kernel import KernelChain, WholeKernelMethod


class StructuredLinear(nn.Module):
    """A replacement of `nn.Linear` by the structure of a 1 x 1 convolution.

    Its weights, their initialisation and its counts are those of the convolution.

    Args:
        pointwise: the 1 x 1 convolution.
    """

    def __init__(self, pointwise: StructuredMap | SeparableConv2d):
        super().__init__()
        self.pointwise = pointwise
        mapping = pointwise if isinstance(pointwise, StructuredMap) else pointwise.pointwise
        self.in_features, self.out_features = mapping.in_channels, mapping.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(.., I) -> (.., O)."""
        structure = self.pointwise
        if isinstance(structure, StructuredMap) and type(structure).forward is StructuredMap.forward:
            weight = structure.forward_weight().flatten(1)
            return functional.linear(x, weight, structure.bias)  # one matrix product, without a detour by images
        images = x.reshape(-1, x.shape[-1], 1, 1)
        return structure(images).reshape(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Tensor:
        """Compute the weight (O, I) of the plain linear map that equals the layer, differentiable."""
        return self.pointwise.dense_weight().flatten(1)

    def dense_bias(self) -> Tensor | None:
        """Return the bias (O,) that the layer adds; None without one."""
        return self.pointwise.dense_bias()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Initialise from a trained weight: as near as the structure's fit gets.

        Args:
            dense: (O, I).

        Returns:
            ||W - dense|| / ||dense||.

        Raises:
            ValueError: `dense` has another shape.
        """
        return self.pointwise.init_from_dense(dense[:, :, None, None])


def build_linear(method: Method, shape: ConvShape) -> nn.Module:
    """Build the layer that replaces a linear map.

    Args:
        method: how.
        shape: of the linear map, with I and O as channels; its stride, padding and dilation are ignored.

    Returns:
        A `StructuredLinear` or `KernelChain`, or an `nn.Linear` where `method` stays plain, (.., I) -> (.., O).
    """
    if isinstance(method, WholeKernelMethod) and not method.stays_dense(shape):
        return KernelChain(method, shape, method.ranks_at(shape), linear=True)
    conv = method.build(shape._replace(stride=(1, 1), padding=(0, 0), dilation=(1, 1)))
    if isinstance(conv, StructuredMap | SeparableConv2d):
        return StructuredLinear(conv)
    assert isinstance(conv, nn.Conv2d)
    return as_linear(conv.weight.flatten(1), conv.bias)


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a plain linear map of copies of a weight and bias.

    Args:
        weight: (O, I).
        bias: (O,), or None for a map without one.

    Returns:
        The map, on the device and in the dtype of `weight`.
    """
    linear = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
