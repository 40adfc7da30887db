"""Posteriors of the scales z of a layer's groups under the two group priors.

A group is an input of a linear map, or an output channel of a convolution. All parameters are float32, and so is all
that is computed from them. Letters: B batch, G groups.
Source: Louizos, Ullrich, Welling 2017, sections 4.1 and 4.2 with appendix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lowrank.layers.bayesian.divergences import (
    log_normal_gamma_kl,
    log_normal_inverse_gamma_kl,
    log_uniform_kl,
)

INITIAL_LOG_VARIANCE = -9.0  # of all scales and weights: the layer begins nearly without noise
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -20.0, 2.0  # of scales; without an upper bound the training ended in NaN


class GroupScales(nn.Module, ABC):
    """The posterior of a layer's scales z.

    Args:
        groups: G.
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    @abstractmethod
    def noise_count(self) -> int:
        """Count the standard normal numbers that a draw of one example takes."""

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Draw scales from standard normal numbers (B, noise_count()): (B, G)."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Compute the posterior means of z: (G,)."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Compute the posterior variances of z: (G,)."""

    @abstractmethod
    def kl(self) -> Tensor:
        """Compute the divergence of all scales from their prior in nats: ()."""

    @abstractmethod
    def scores(self) -> Tensor:
        """Compute by how much each group asks to be removed: (G,); the group with the largest score goes first."""

    @torch.no_grad()
    def clip(self) -> None:
        """Bound the log variances, in place."""
        for name, parameter in self.named_parameters():
            if name.endswith("log_variance"):
                parameter.clamp_(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)


class NormalJeffreysScales(GroupScales):
    """z ~ N(mean, variance) under the prior p(z) ~ 1 / |z|.

    The score of a group is log alpha, with alpha the variance over the squared mean: its noise over its signal.

    Args:
        groups: G.
    """

    def __init__(self, groups: int):
        super().__init__(groups)
        self.location = nn.Parameter(torch.ones(groups))
        self.log_variance = nn.Parameter(torch.full((groups,), INITIAL_LOG_VARIANCE))

    def log_alpha(self) -> Tensor:
        """Compute log(variance / mean^2) of each group: (G,)."""
        return self.log_variance - (self.location.square() + 1e-8).log()

    def noise_count(self) -> int:
        return self.groups

    def draw(self, noise: Tensor) -> Tensor:
        return self.location + (0.5 * self.log_variance).exp() * noise

    def mean(self) -> Tensor:
        return self.location

    def variance(self) -> Tensor:
        return self.log_variance.exp()

    def kl(self) -> Tensor:
        return log_uniform_kl(self.log_alpha()).sum()

    def scores(self) -> Tensor:
        return self.log_alpha()


class HorseshoeScales(GroupScales):
    """z = s * t, half-Cauchy scales of the layer and of each group.

    The square of a half-Cauchy number is a gamma number times an inverse gamma number; the posteriors of all four are
    log-normal, so that z is log-normal too. The score of a group is minus the log of the posterior's mode of z. Behind
    a batch norm the size of z means nothing, since the norm divides by it: the posterior then follows the prior,
    whatever the channel is worth. Networks with such convolutions have the score of the other prior in all layers: log
    of variance over squared mean of z.

    Args:
        groups: G.
        scale: of the prior of s.
        is_normalised: whether batch norms divide outputs of the network's groups by their size.
    """

    def __init__(self, groups: int, scale: float, *, is_normalised: bool = False):
        super().__init__(groups)
        self.log_squared_scale = 2 * math.log(scale)
        self.is_normalised = is_normalised
        self.layer_gamma_location = nn.Parameter(torch.full((1,), self.log_squared_scale))
        self.layer_inverse_gamma_location = nn.Parameter(torch.zeros(1))
        self.gamma_location = nn.Parameter(torch.zeros(groups))
        # At the start the medians of all z are 1, as those of a network without scales
        self.inverse_gamma_location = nn.Parameter(torch.full((groups,), -self.log_squared_scale))
        for name, size in (
            ("layer_gamma", 1),
            ("layer_inverse_gamma", 1),
            ("gamma", groups),
            ("inverse_gamma", groups),
        ):
            variance = nn.Parameter(torch.full((size,), INITIAL_LOG_VARIANCE))
            self.register_parameter(f"{name}_log_variance", variance)

    layer_gamma_log_variance: nn.Parameter
    layer_inverse_gamma_log_variance: nn.Parameter
    gamma_log_variance: nn.Parameter
    inverse_gamma_log_variance: nn.Parameter

    def log_mean(self) -> Tensor:
        """Compute the mean of log z: (G,)."""
        layer = self.layer_gamma_location + self.layer_inverse_gamma_location
        return 0.5 * (layer + self.gamma_location + self.inverse_gamma_location)

    def _layer_variance(self) -> Tensor:
        return 0.25 * (self.layer_gamma_log_variance.exp() + self.layer_inverse_gamma_log_variance.exp())

    def _group_variance(self) -> Tensor:
        return 0.25 * (self.gamma_log_variance.exp() + self.inverse_gamma_log_variance.exp())

    def log_variance_of_z(self) -> Tensor:
        """Compute the variance of log z: (G,)."""
        return self._layer_variance() + self._group_variance()

    def noise_count(self) -> int:
        return self.groups + 1  # the layer's scale is one number for all groups

    def draw(self, noise: Tensor) -> Tensor:
        layer = self._layer_variance().sqrt() * noise[:, :1]
        return (self.log_mean() + layer + self._group_variance().sqrt() * noise[:, 1:]).exp()

    def mean(self) -> Tensor:
        return (self.log_mean() + 0.5 * self.log_variance_of_z()).exp()

    def variance(self) -> Tensor:
        return torch.expm1(self.log_variance_of_z()) * self.mean().square()

    def kl(self) -> Tensor:
        layer = log_normal_gamma_kl(self.layer_gamma_location, self.layer_gamma_log_variance, self.log_squared_scale)
        layer_inverse = log_normal_inverse_gamma_kl(
            self.layer_inverse_gamma_location, self.layer_inverse_gamma_log_variance
        )
        groups = log_normal_gamma_kl(self.gamma_location, self.gamma_log_variance, 0.0)
        inverse = log_normal_inverse_gamma_kl(self.inverse_gamma_location, self.inverse_gamma_log_variance)
        return layer.sum() + layer_inverse.sum() + groups.sum() + inverse.sum()

    def scores(self) -> Tensor:
        if self.is_normalised:
            return torch.expm1(self.log_variance_of_z()).log()
        return self.log_variance_of_z() - self.log_mean()
