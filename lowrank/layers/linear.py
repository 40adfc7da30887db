"""A structured replacement of `nn.Linear`: a structured 1 x 1 convolution, applied to the last dimension.

Letters: .. any leading dimensions, I in-features, O out-features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import SeparableConv2d, StructuredMap
from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.bayesian.method import Bayesian
from lowrank.layers.dense import Dense
from lowrank.layers.low_rank.whole_kernel import KernelChain, WholeKernelMethod


class StructuredLinear(nn.Module):
    """A linear map with the structured weight of a 1 x 1 convolution.

    Its weights, their initialisation and its counts are those of the convolution.

    Args:
        pointwise: the 1 x 1 convolution; a `SeparableConv2d` has no depthwise part for this kernel size.
    """

    def __init__(self, pointwise: StructuredMap | SeparableConv2d):
        super().__init__()
        self.pointwise = pointwise
        structured_map = pointwise if isinstance(pointwise, StructuredMap) else pointwise.pointwise
        self.in_features, self.out_features = structured_map.in_channels, structured_map.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last dimension: (.., I) -> (.., O)."""
        conv = self.pointwise
        if isinstance(conv, StructuredMap) and type(conv).forward is StructuredMap.forward:
            # The layer multiplies by its rebuilt weight: one matrix product does that without reshaping to images
            return functional.linear(x, conv.forward_weight().flatten(1), conv.bias)
        images = x.reshape(-1, x.shape[-1], 1, 1)
        return conv(images).reshape(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The weight (O, I) of the plain linear map that equals the layer; it is computed at each access.

        Code that uses the weight without running the layer reads it, such as torch's fused transformer layers.
        """
        return self.pointwise.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,) that the layer adds; None without one."""
        return self.dense_bias()

    def dense_weight(self) -> Tensor:
        """Compute the weight (O, I) of the plain linear map that equals the layer, differentiable."""
        return self.pointwise.dense_weight().flatten(1)

    def dense_bias(self) -> Tensor | None:
        """Return the bias (O,) that the layer adds; None without one."""
        return self.pointwise.dense_bias()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Fit the structure to a trained weight.

        Args:
            dense: the trained weight (O, I).

        Returns:
            ||W - dense|| / ||dense||, W being the weight after the fit.

        Raises:
            ValueError: `dense` is not (O, I).
        """
        return self.pointwise.init_from_dense(dense[:, :, None, None])


def build_linear(method: Method, shape: ConvShape) -> nn.Module:
    """Build the layer that replaces a linear map.

    Args:
        method: settings of the structure.
        shape: the linear map's, with I and O as channels; stride, padding and dilation are ignored.

    Returns:
        A layer (.., I) -> (.., O): a `KernelChain` for methods that factorise whole kernels, a `VariationalLinear` for
        bayesian, a `StructuredLinear` for the others, or an `nn.Linear` where the method leaves this shape dense.
    """
    if isinstance(method, WholeKernelMethod) and not method.stays_dense(shape):
        return KernelChain(method, shape, method.ranks_at(shape), linear=True)
    plain = shape._replace(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    conv = Dense().build(plain) if isinstance(method, Bayesian) else method.build(plain)
    if isinstance(conv, StructuredMap | SeparableConv2d):
        return StructuredLinear(conv)
    assert isinstance(conv, nn.Conv2d)
    linear = as_linear(conv.weight.flatten(1), conv.bias)
    return method.make_layer(linear) if isinstance(method, Bayesian) else linear


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
