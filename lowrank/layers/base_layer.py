"""The contract of a layer: a map whose weight is made from few parameters, and a separable pair of such maps.

Letters: B batch, I in-channels, O out-channels, H x W positions, K kernel size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowrank.layers.functional import Pair, convolve, is_unpadded


class StructuredMap(nn.Module, ABC):
    """A convolution whose weight is made from few parameters.

    Pointwise unless `kernel` says otherwise. The layer equals `conv2d` with `dense_weight()` in value and gradient.
    Subclasses register their factors and implement `compute_weight`, `init_factors` and `fit_factors`.

    Args:
        in_channels: I.
        out_channels: O.
        kernel: height and width.
        stride: steps down and across.
        padding: zeros above and left, or "valid" or "same".
        dilation: distance of the kernel's entries.
        groups: groups of channels that are convolved apart.
        bias: whether a bias, zero at first, is added.
    """

    rebuild_checkpoint = False  # store no intermediate of a rebuild for the backward pass: rebuild once more there
    external_weight: Tensor | None = None  # used instead of `dense_weight()`; see `lowrank.layers.batched_rebuild`
    external_weight_ready: torch.cuda.Event | None = None  # the current stream waits for it before using the weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Pair = (1, 1),
        stride: Pair = (1, 1),
        padding: Pair | str = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel, self.groups = in_channels, out_channels, kernel, groups
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @abstractmethod
    def compute_weight(self) -> Tensor:
        """Compute the weight from the parameters, differentiable: (O, I) if pointwise, else `weight_shape`."""

    # What other code reads of an `nn.Conv2d`
    padding_mode = "zeros"
    transposed = False

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""
        return self.kernel

    @property
    def weight(self) -> Tensor:
        """The weight that a forward pass uses, of `weight_shape`, differentiable; it is computed at each access."""
        return self.forward_weight()

    def dense_weight(self) -> Tensor:
        """Compute the weight in the shape that `conv2d` takes, `weight_shape`."""
        weight = self._checkpoint(self.compute_weight) if self.rebuild_checkpoint else self.compute_weight()
        return weight.reshape(self.weight_shape)

    def forward_weight(self) -> Tensor:
        """Return the weight that a forward pass uses: the external one where set, else `dense_weight()`."""
        return self.dense_weight() if self.external_weight is None else self._wait_for_external_weight()

    def _wait_for_external_weight(self) -> Tensor:
        if self.external_weight_ready is not None:
            torch.cuda.current_stream().wait_event(self.external_weight_ready)
        assert self.external_weight is not None
        return self.external_weight

    def scales_channels_only(self) -> bool:
        """Return whether this is an unpadded depthwise 1 x 1 convolution, which only scales its channels."""
        depthwise = self.groups == self.in_channels == self.out_channels
        return self.kernel == (1, 1) and depthwise and is_unpadded(self.padding)

    @staticmethod
    def _checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run `function`, and run it again in the backward pass instead of storing its intermediates."""
        output: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return output

    def squared_norm(self) -> Tensor:
        """Compute ||W||^2, the sum of the squared entries, differentiable.

        Subclasses override it where their factors give it without the weight.
        """
        return self.compute_weight().square().sum()

    def dense_bias(self) -> Tensor | None:
        """Return the bias (O,) that the layer adds; None without one."""
        return self.bias

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, I / groups, K, K)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @abstractmethod
    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw the factors so that `compute_weight()` has standard deviation `std`, averaged over draws.

        Args:
            std: of the weight's entries, about zero.
            generator: of the random numbers; None for torch's own.
        """

    def factors(self) -> list[nn.Parameter]:
        """Return the parameters that make up the weight; scaled weight decay applies to them."""
        return [parameter for name, parameter in self.named_parameters() if name != "bias"]

    def degree(self) -> int:
        """Return how many factors every weight entry is a product of; rescaling is shared between so many."""
        return 1

    def target_std(self, fan: Literal["in", "out"] = "in") -> float:
        """Return the standard deviation of an initial weight: sqrt(2 / fan) (He et al. 2015).

        The fan is channels times K*K. A depthwise layer has a target of its own.
        """
        channels = self.in_channels if fan == "in" else self.out_channels
        return math.sqrt(2 / (channels * math.prod(self.kernel)))

    @torch.no_grad()
    def reset(
        self, *, std: float | None = None, fan: Literal["in", "out"] = "in", generator: torch.Generator | None = None
    ) -> None:
        """Initialise at random: draw the factors, then rescale them until the weight has exactly the target std.

        A product of few random factors scatters widely about its mean (by 12 % to 54 % for one 640 x 640 map), hence
        the rescaling. The std is taken about zero: He's derivation needs the second moment.

        Args:
            std: the target; None for `target_std(fan)`.
            fan: channels that the target counts.
            generator: of the random numbers; None for torch's own.
        """
        if next(self.parameters()).is_meta:
            return  # only counted
        target = std if std is not None else self.target_std(fan)
        self.init_factors(target, generator)
        drawn = self.compute_weight().double().square().mean().sqrt().item()
        gain = (target / drawn) ** (1 / self.degree())
        for factor in self.rescaled_factors():
            factor.mul_(gain)
        if self.bias is not None:
            self.bias.zero_()

    def rescaled_factors(self) -> list[nn.Parameter]:
        """Return the factors that `reset` rescales: `degree()` of them multiply into each weight entry."""
        return self.factors()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Initialise from a trained weight: as near as this structure's fit gets.

        Args:
            dense: (O, I) or (O, I / groups, K, K).

        Returns:
            ||W - dense|| / ||dense||.

        Raises:
            ValueError: `dense` has another shape.
        """
        weight = self.compute_weight()
        if dense.numel() != weight.numel() or tuple(dense.shape[:2]) != tuple(weight.shape[:2]):
            expected = " x ".join(map(str, self.weight_shape))
            raise ValueError(f"expected a weight of {expected}, got {tuple(dense.shape)}")
        dense = dense.detach().to(weight.device).reshape(weight.shape)
        self.fit_factors(dense)
        if 1 < self.degree() == len(self.rescaled_factors()):
            balance(self.rescaled_factors())
        return relative_error(self.compute_weight(), dense)

    @abstractmethod
    def fit_factors(self, dense: Tensor) -> None:
        """Set the factors so that `compute_weight()` is near `dense`, which has the shape of `compute_weight()`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        twice = self.rebuild_checkpoint and self.external_weight is None
        return self._checkpoint(self._convolve, x) if twice else self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.external_weight is None:
            weight = self.compute_weight().reshape(self.weight_shape)
        else:
            weight = self._wait_for_external_weight()
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        shapes = " ".join("x".join(map(str, factor.shape)) for factor in self.factors())
        return f"{self.in_channels} -> {self.out_channels}, factors {shapes}"


class SeparableConv2d(nn.Module):
    """A depthwise convolution followed by a structured pointwise map.

    Args:
        depthwise: plain or structured, (I) -> (I) channels; carries stride, padding and dilation.
        pointwise: (I) -> (O) channels.
    """

    def __init__(self, depthwise: nn.Conv2d | StructuredMap, pointwise: StructuredMap):
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        if isinstance(self.depthwise, StructuredMap) and self.depthwise.scales_channels_only():
            return self._forward_merged(self.depthwise, x)
        return self.pointwise(self.depthwise(x))

    def _forward_merged(self, depthwise: StructuredMap, x: Tensor) -> Tensor:
        """Run both parts as one convolution.

        A depthwise 1 x 1 convolution is slow by itself, and only scales columns of the pointwise weight.
        """
        weight = self.pointwise.forward_weight()
        bias: Tensor | None = self.pointwise.bias
        if depthwise.bias is not None:
            mapped = weight.flatten(1) @ depthwise.bias.to(weight.dtype)
            bias = mapped if bias is None else mapped + bias
        weight = weight * depthwise.forward_weight().transpose(0, 1)
        return convolve(x, weight, bias, depthwise.stride)

    # What other code reads of an `nn.Conv2d`
    groups, padding_mode, transposed = 1, "zeros", False

    @property
    def in_channels(self) -> int:
        """I."""
        return self.depthwise.in_channels

    @property
    def out_channels(self) -> int:
        """O."""
        return self.pointwise.out_channels

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""
        height, width = self.depthwise.kernel_size
        return height, width

    @property
    def stride(self) -> Pair:
        """Positions from one output to the next, down and across."""
        down, across = self.depthwise.stride
        return down, across

    @property
    def padding(self) -> Pair | str:
        """Zeros added on each side, or "valid" or "same"."""
        padding = self.depthwise.padding
        return padding if isinstance(padding, str) else (padding[0], padding[1])

    @property
    def dilation(self) -> Pair:
        """Positions from one entry of the kernel to the next."""
        down, across = self.depthwise.dilation
        return down, across

    @property
    def weight(self) -> Tensor:
        """The weight (O, I, K, K) of the one convolution that equals both parts; it is computed at each access."""
        kernel = self.depthwise.weight
        return self.pointwise.forward_weight() * kernel.transpose(0, 1)

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,) that both parts together add; None without one."""
        return self.dense_bias()

    def kernel(self) -> Tensor:
        """Return the depthwise part's weight (I, 1, K, K)."""
        return self.depthwise.weight if isinstance(self.depthwise, nn.Conv2d) else self.depthwise.dense_weight()

    def dense_weight(self) -> Tensor:
        """Compute the weight (O, I, K, K) of the one convolution that equals both parts, differentiable."""
        return self.pointwise.dense_weight() * self.kernel().transpose(0, 1)

    def dense_bias(self) -> Tensor | None:
        """Compute the bias (O,) that both parts together add; None without one."""
        if self.depthwise.bias is None:
            return self.pointwise.bias
        mapped = self.pointwise.compute_weight() @ self.depthwise.bias
        return mapped if self.pointwise.bias is None else mapped + self.pointwise.bias

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Initialise from a trained weight.

        Each input channel's O x K*K slice is cut to rank one (the nearest depthwise and pointwise pair in the
        Frobenius norm, kernels of norm 1); the pointwise part is then fitted to what is best beside the kernels that
        the depthwise part can have.

        Args:
            dense: (O, I, K, K).

        Returns:
            ||W - dense|| / ||dense||.
        """
        target = dense.detach().double().to(self.pointwise.compute_weight().device)
        kernels = torch.linalg.svd(target.transpose(0, 1).flatten(2), full_matrices=False).Vh[:, 0]  # (I, K*K)
        kernels = kernels * torch.where(kernels.sum(1, keepdim=True) < 0, -1, 1)
        if isinstance(self.depthwise, StructuredMap):
            self.depthwise.init_from_dense(kernels.reshape(self.depthwise.weight_shape))
        else:
            self.depthwise.weight.copy_(kernels.view_as(self.depthwise.weight))
        self._init_pointwise(target)
        return relative_error(self.dense_weight(), target)

    def _init_pointwise(self, target: Tensor) -> None:
        """Fit the pointwise part by least squares beside the kernels as they are.

        Twice where the depthwise part is structured: the second time scaled to what the first fit missed.
        """
        kernels = self.kernel().double().flatten(1)
        best = torch.einsum("oik,ik->oi", target.flatten(2), kernels) / kernels.square().sum(1).clamp_min(1e-30)
        self.pointwise.init_from_dense(best)
        if isinstance(self.depthwise, StructuredMap):
            fitted = self.dense_weight().double()
            self.pointwise.init_from_dense(best * ((fitted * target).sum() / fitted.square().sum().clamp_min(1e-30)))


@torch.no_grad()
def init_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Draw a plain weight from a normal distribution and rescale it to exactly this RMS.

    Every other initialisation here is rescaled too.

    Args:
        weight: of any shape; changed in place.
        std: the root of the mean square afterwards.
        generator: of the random numbers; None for torch's own.
    """
    if weight.is_meta:
        return  # only counted
    weight.normal_(generator=generator)
    weight.mul_(std / weight.double().square().mean().sqrt().item())


def balance(factors: Sequence[nn.Parameter]) -> None:
    """Give factors that all multiply into each weight entry the same RMS; their product stays as it is.

    Args:
        factors: changed in place; left alone where one of them is all zero.
    """
    sizes = torch.stack([factor.double().square().mean().sqrt() for factor in factors])
    if bool((sizes > 0).all()):
        for factor, gain in zip(factors, (sizes.log().mean().exp() / sizes).tolist(), strict=True):
            factor.mul_(gain)


def relative_error(weight: Tensor, target: Tensor) -> float:
    """Compute ||weight - target|| / ||target|| in float64.

    Args:
        weight: of any shape.
        target: of the same shape.

    Returns:
        The relative error in the Frobenius norm, at least 0.
    """
    target = target.double()
    return ((weight.double() - target).norm() / target.norm().clamp_min(1e-30)).item()


def checkpoint_rebuild(network: nn.Module, on: bool = True) -> nn.Module:
    """Set whether every structured map of a network checkpoints its rebuild.

    For memory: a rebuild stores every intermediate product until the backward pass (for an ACDC of L layers, L matrices
    of N x N). With a checkpoint neither they nor the weight are stored, only the layer's input. The convolution itself
    does not run again, since the second run stops as soon as its inputs are there. A linear map keeps the weight.
    Values and gradients stay the same to the bit. Maps that never build their weight are not changed by it.

    Args:
        network: changed in place.
        on: whether they do.

    Returns:
        The network.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    for module in network.modules():
        if isinstance(module, StructuredMap):
            module.rebuild_checkpoint = on
    return network
