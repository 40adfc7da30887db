"""Variational linear maps and convolutions: weights w = z * v with a posterior for each v and each group's scale z.

In training mode the outputs are drawn, never the weights (local reparametrisation); z is drawn for each example. In
evaluation mode the layer is the plain one with the posterior mean of its weights. What is random is computed in
float32, also under autocast. Letters: B batch, I inputs, O outputs, G groups.
Source: Louizos, Ullrich, Welling 2017, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.bayesian.divergences import normal_kl
from lowrank.layers.bayesian.priors import INITIAL_LOG_VARIANCE, MIN_LOG_VARIANCE, GroupScales
from lowrank.layers.functional import Pair

MIN_VARIANCE = 1e-8  # of an output: the gradient of the root of 0 is infinite


class WeightNoise(Protocol):
    """Gives the standard normal numbers of a forward pass."""

    def normal(self, site: int, examples: int, count: int, device: torch.device) -> Tensor:
        """Return float32 (examples, count) of the layer's draw `site`."""


class TorchNoise:
    """Numbers of torch's own generator: for layers that no trainer runs."""

    def normal(self, site: int, examples: int, count: int, device: torch.device) -> Tensor:
        """Return float32 (examples, count)."""
        return torch.randn(examples, count, device=device)


class VariationalLayer(nn.Module):
    """What both layers share: the posterior of v, the bias and the scales.

    Attributes:
        weight_mean: posterior mean of v, in the shape of the plain layer's weight.
        weight_log_variance: of v, in the same shape.
        scales: posterior of z.
        bias: without a posterior; None without one.
        noise: where the random numbers come from.
        site: number of the layer in its network; its two draws have the numbers 2 * site and 2 * site + 1.
        group_axis: axis of the weight that the groups are on.
    """

    group_axis: int

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: GroupScales, max_std: float):
        """Begin near a plain layer.

        Args:
            weight: of the plain layer; the posterior means begin there.
            bias: likewise; None without one.
            scales: posterior of as many scales as there are groups.
            max_std: largest standard deviation of the posterior of v.
        """
        super().__init__()
        self.weight_mean = nn.Parameter(weight.detach().clone())
        self.weight_log_variance = nn.Parameter(torch.full_like(self.weight_mean, INITIAL_LOG_VARIANCE))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.scales, self.max_std = scales, max_std
        self.noise: WeightNoise = TorchNoise()
        self.site = 0

    def _grouped(self, values: Tensor) -> Tensor:
        """Shape (G,) so that it multiplies the weight."""
        shape = [1] * self.weight_mean.dim()
        shape[self.group_axis] = -1
        return values.view(shape)

    @property
    def weight(self) -> Tensor:
        """The posterior mean of w, in the shape of the plain layer's weight; it is computed at each access."""
        return self.weight_mean * self._grouped(self.scales.mean())

    @torch.no_grad()
    def begin_at(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the posterior means of w and the bias to those of a plain layer, in place; variances and scales stay.

        Args:
            weight: of the plain layer, in the shape of this layer's.
            bias: likewise; None for zeros.
        """
        self.weight_mean.copy_(weight / self._grouped(self.scales.mean()))
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias / self._bias_scales())

    def _bias_scales(self) -> Tensor | float:
        """Return what the bias is multiplied by, on average."""
        return 1.0

    def weight_variance(self) -> Tensor:
        """Compute the posterior variance of w, in the shape of the weight: Var(z v) of independent z and v."""
        mean, variance = self._grouped(self.scales.mean()), self._grouped(self.scales.variance())
        return self.weight_log_variance.exp() * (mean.square() + variance) + self.weight_mean.square() * variance

    def kl(self) -> Tensor:
        """Compute the divergence of the layer's posterior from its prior in nats: KL(z) + KL(v)."""
        return self.scales.kl() + normal_kl(self.weight_mean, self.weight_log_variance).sum()

    def signal_to_noise(self) -> Tensor:
        """Compute |mean| / standard deviation of each v, in the shape of the weight."""
        return self.weight_mean.abs() * (-0.5 * self.weight_log_variance).exp()

    def clip(self) -> None:
        """Bound the log variances, in place."""
        with torch.no_grad():
            self.weight_log_variance.clamp_(MIN_LOG_VARIANCE, 2 * math.log(self.max_std))
        self.scales.clip()

    def _draw_scales(self, x: Tensor) -> Tensor:
        noise = self.noise.normal(2 * self.site, len(x), self.scales.noise_count(), x.device)
        return self.scales.draw(noise)

    def _add_noise(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Draw the outputs: float32, in the shape of `mean`."""
        noise = self.noise.normal(2 * self.site + 1, len(mean), mean[0].numel(), mean.device)
        return mean.float() + (variance + MIN_VARIANCE).sqrt() * noise.view(mean.shape)


class VariationalLinear(VariationalLayer):
    """A linear map (B, .., I) -> (B, .., O) with a group for each input."""

    group_axis = 1

    @property
    def in_features(self) -> int:
        """I."""
        return self.weight_mean.shape[1]

    @property
    def out_features(self) -> int:
        """O."""
        return self.weight_mean.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, .., I) -> (B, .., O)."""
        if not self.training:
            return functional.linear(x, self.weight, self.bias)
        scales = self._draw_scales(x)
        scales = scales.view(len(x), *[1] * (x.dim() - 2), self.in_features)
        scaled = x * scales
        mean = functional.linear(scaled, self.weight_mean, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            variance = functional.linear(scaled.float().square(), self.weight_log_variance.exp())
            return self._add_noise(mean, variance)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


class VariationalConv2d(VariationalLayer):
    """A convolution with a group for each output channel; z also scales the bias."""

    group_axis = 0
    groups, padding_mode, transposed = 1, "zeros", False  # what other code reads of an `nn.Conv2d`

    def __init__(
        self, weight: Tensor, bias: Tensor | None, scales: GroupScales, max_std: float, *, stride: Pair,
        padding: Pair | str, dilation: Pair,
    ):  # fmt: skip
        """Begin near a plain convolution.

        Args:
            weight: (O, I, K, K).
            bias: (O,); None without one.
            scales: posterior of O scales.
            max_std: largest standard deviation of the posterior of v.
            stride: steps down and across.
            padding: zeros above and left, or "valid" or "same".
            dilation: distance of the kernel's entries.
        """
        super().__init__(weight, bias, scales, max_std)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    @property
    def in_channels(self) -> int:
        """I."""
        return self.weight_mean.shape[1]

    @property
    def out_channels(self) -> int:
        """O."""
        return self.weight_mean.shape[0]

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""
        height, width = self.weight_mean.shape[2:]
        return height, width

    def mean_bias(self) -> Tensor | None:
        """Compute the posterior mean of the scaled bias (O,); None without one."""
        return None if self.bias is None else self.bias * self.scales.mean()

    def _bias_scales(self) -> Tensor:
        return self.scales.mean()

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        if not self.training:
            return self._convolve(x, self.weight, self.mean_bias())
        scales = self._draw_scales(x)[:, :, None, None]
        mean = self._convolve(x, self.weight_mean, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            variance = self._convolve(x.float().square(), self.weight_log_variance.exp(), None)
            return self._add_noise(mean.float() * scales, variance * scales.square())

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"{self.in_channels} -> {self.out_channels}, kernel {self.kernel_size}, stride {self.stride}"


def variational_layers(network: nn.Module) -> Iterator[tuple[str, VariationalLayer]]:
    """List the variational layers of a network.

    Args:
        network: any module.

    Yields:
        Name and layer, in the order of the modules.
    """
    for name, module in network.named_modules():
        if isinstance(module, VariationalLayer):
            yield name, module


def posterior_parameters(network: nn.Module, *, means: bool) -> list[nn.Parameter]:
    """List the parameters of posteriors, which have a prior instead of weight decay.

    Args:
        network: any module.
        means: also the means of weights; otherwise their log variances and all parameters of scales.

    Returns:
        The parameters, in the order of the modules.
    """
    parameters: list[nn.Parameter] = []
    for _, layer in variational_layers(network):
        parameters += [layer.weight_mean] * means + [layer.weight_log_variance, *layer.scales.parameters()]
    return parameters
