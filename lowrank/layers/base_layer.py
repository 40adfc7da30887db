"""The contract of a layer: a map whose weight is given by few parameters, and a separable pair of such maps.

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
    """A convolution, pointwise unless `kernel` says otherwise, whose weight is given by few parameters.

    The layer equals `conv2d` with `dense_weight()` in value and gradient. Subclasses register their factors and
    implement `weight`, `init_factors` and `fit_factors`.
    """

    rebuild_checkpoint = False  # keep nothing of a rebuild for the backward pass: rebuild once more there
    external_weight: Tensor | None = (
        None  # the weight to use, of `weight_shape`, rebuilt with others (see `lowrank.layers.batched_rebuild`)
    )
    external_weight_ready: torch.cuda.Event | None = None  # what the current stream must wait for before using it

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
    def weight(self) -> Tensor:
        """The weight that the layer stands for, differentiable: O x I if pointwise, else as `dense_weight`."""

    def dense_weight(self) -> Tensor:
        """The same as `conv2d` wants it: (O, I / groups, K, K)."""
        weight = self._checkpointed(self.weight) if self.rebuild_checkpoint else self.weight()
        return weight.reshape(self.weight_shape)

    def forward_weight(self) -> Tensor:
        """What a forward pass uses: the weight that was given, else `dense_weight` as it is now."""
        return self.dense_weight() if self.external_weight is None else self._taken()

    def _taken(self) -> Tensor:
        if self.external_weight_ready is not None:
            torch.cuda.current_stream().wait_event(self.external_weight_ready)
        assert self.external_weight is not None
        return self.external_weight

    def scales_channels_only(self) -> bool:
        """Whether this is a depthwise 1 x 1 convolution whose bias meets no padding."""
        depthwise = self.groups == self.in_channels == self.out_channels
        return self.kernel == (1, 1) and depthwise and is_unpadded(self.padding)

    @staticmethod
    def _checkpointed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, run again in the backward pass, until all that this needs is there once more."""
        found: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return found

    def squared_norm(self) -> Tensor:
        """||W||^2, the sum of the weight's squares, differentiable; overridden where the factors give it for less."""
        return self.weight().square().sum()

    def dense_bias(self) -> Tensor | None:
        """The bias (O) that the layer adds; None without one."""
        return self.bias

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, I / groups, K, K)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @abstractmethod
    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw the factors so that `weight()` has standard deviation `std` in the mean over draws."""

    def factors(self) -> list[nn.Parameter]:
        """The parameters that make up the weight, to which scaled decay applies."""
        return [parameter for name, parameter in self.named_parameters() if name != "bias"]

    def degree(self) -> int:
        """How many factors every entry of the weight is a product of; sets how rescaling is shared out."""
        return 1

    def target_std(self, fan: Literal["in", "out"] = "in") -> float:
        """He's sqrt(2 / fan), the fan being channels times K*K (a depthwise layer has a start of its own)."""
        channels = self.in_channels if fan == "in" else self.out_channels
        return math.sqrt(2 / (channels * math.prod(self.kernel)))

    @torch.no_grad()
    def reset(
        self, *, std: float | None = None, fan: Literal["in", "out"] = "in", generator: torch.Generator | None = None
    ) -> None:
        """Start from scratch: draw the factors, then rescale them until the weight itself has the target std.

        The std is taken about zero (He's derivation needs the second moment); the default target is
        sqrt(2 / fan). A product of few random factors scatters widely about its mean, hence the rescaling (FACTS).
        """
        target = std if std is not None else self.target_std(fan)
        self.init_factors(target, generator)
        found = self.weight().double().square().mean().sqrt().item()
        gain = (target / found) ** (1 / self.degree())
        for factor in self.rescaled_factors():
            factor.mul_(gain)
        if self.bias is not None:
            self.bias.zero_()

    def rescaled_factors(self) -> list[nn.Parameter]:
        """The factors that `reset` rescales, `degree()` of which multiply into each entry of the weight."""
        return self.factors()

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Start from a trained weight, O x I or (O, I, K, K): the nearest that this structure finds.

        Returns ||W - dense|| / ||dense||.
        """
        weight = self.weight()
        if dense.numel() != weight.numel() or tuple(dense.shape[:2]) != tuple(weight.shape[:2]):
            expected = " x ".join(map(str, self.weight_shape))
            raise ValueError(f"expected a weight of {expected}, got {tuple(dense.shape)}")
        dense = dense.detach().to(weight.device).reshape(weight.shape)
        self.fit_factors(dense)
        if 1 < self.degree() == len(self.rescaled_factors()):
            balance(self.rescaled_factors())
        return relative_error(self.weight(), dense)

    @abstractmethod
    def fit_factors(self, dense: Tensor) -> None:
        """Set the factors so that `weight()` is near `dense`, which has the shape of `weight()`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        again = self.rebuild_checkpoint and self.external_weight is None
        return self._checkpointed(self._convolved, x) if again else self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        weight = self.weight().reshape(self.weight_shape) if self.external_weight is None else self._taken()
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        shapes = " ".join("x".join(map(str, factor.shape)) for factor in self.factors())
        return f"{self.in_channels} -> {self.out_channels}, factors {shapes}"


class SeparableConv2d(nn.Module):
    """A depthwise convolution (plain or structured) followed by a structured pointwise map."""

    def __init__(self, depthwise: nn.Conv2d | StructuredMap, pointwise: StructuredMap):
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        if isinstance(self.depthwise, StructuredMap) and self.depthwise.scales_channels_only():
            return self._scaled(self.depthwise, x)
        return self.pointwise(self.depthwise(x))

    def _scaled(self, depthwise: StructuredMap, x: Tensor) -> Tensor:
        """One convolution for both parts: a depthwise 1 x 1 is slow by itself and only scales columns of the weight."""
        weight = self.pointwise.forward_weight()
        bias: Tensor | None = self.pointwise.bias
        if depthwise.bias is not None:
            carried = weight.flatten(1) @ depthwise.bias.to(weight.dtype)
            bias = carried if bias is None else carried + bias
        weight = weight * depthwise.forward_weight().transpose(0, 1)
        return convolve(x, weight, bias, depthwise.stride)

    def kernel(self) -> Tensor:
        """The depthwise part's weight (I, 1, K, K)."""
        return self.depthwise.weight if isinstance(self.depthwise, nn.Conv2d) else self.depthwise.dense_weight()

    def dense_weight(self) -> Tensor:
        """The dense weight (O, I, K, K) that both parts together stand for, differentiable."""
        return self.pointwise.dense_weight() * self.kernel().transpose(0, 1)

    def dense_bias(self) -> Tensor | None:
        """The bias (O) that both parts together add; None without one."""
        if self.depthwise.bias is None:
            return self.pointwise.bias
        carried = self.pointwise.weight() @ self.depthwise.bias
        return carried if self.pointwise.bias is None else carried + self.pointwise.bias

    @torch.no_grad()
    def init_from_dense(self, dense: Tensor) -> float:
        """Start from a trained (O, I, K, K) weight. Returns ||W - dense|| / ||dense||.

        Each input channel's O x K*K slice is cut to rank one (the nearest depthwise and pointwise pair in the
        Frobenius norm, kernels of norm 1); the pointwise part then starts from what is best beside the kernels found.
        """
        wanted = dense.detach().double().to(self.pointwise.weight().device)
        kernels = torch.linalg.svd(wanted.transpose(0, 1).flatten(2), full_matrices=False).Vh[:, 0]  # (I, K*K)
        kernels = kernels * torch.where(kernels.sum(1, keepdim=True) < 0, -1, 1)
        if isinstance(self.depthwise, StructuredMap):
            self.depthwise.init_from_dense(kernels.reshape(self.depthwise.weight_shape))
        else:
            self.depthwise.weight.copy_(kernels.view_as(self.depthwise.weight))
        self._start_pointwise(wanted)
        return relative_error(self.dense_weight(), wanted)

    def _start_pointwise(self, wanted: Tensor) -> None:
        """Least squares beside the kernels as they are; twice, the second time scaled to what the first one missed."""
        kernels = self.kernel().double().flatten(1)
        best = torch.einsum("oik,ik->oi", wanted.flatten(2), kernels) / kernels.square().sum(1).clamp_min(1e-30)
        self.pointwise.init_from_dense(best)
        if isinstance(self.depthwise, StructuredMap):
            found = self.dense_weight().double()
            self.pointwise.init_from_dense(best * ((found * wanted).sum() / found.square().sum().clamp_min(1e-30)))


@torch.no_grad()
def init_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Draw a plain weight from a normal distribution and rescale it to exactly this RMS, as every other start here."""
    weight.normal_(generator=generator)
    weight.mul_(std / weight.double().square().mean().sqrt().item())


def balance(factors: Sequence[nn.Parameter]) -> None:
    """Give factors that all multiply into each entry of a weight the same RMS; their product stays as it is."""
    sizes = torch.stack([factor.double().square().mean().sqrt() for factor in factors])
    if bool((sizes > 0).all()):
        for factor, gain in zip(factors, (sizes.log().mean().exp() / sizes).tolist(), strict=True):
            factor.mul_(gain)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64."""
    wanted = wanted.double()
    return ((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
