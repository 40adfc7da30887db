"""KL divergences of group priors over weights, in closed form, and nothing else: pure functions of float32 tensors.

A weight is w = z * v: z scales a group of weights, v is the weight itself with the prior N(0, 1).
Source: Louizos, Ullrich, Welling 2017, "Bayesian compression for deep learning", sections 4.1 and 4.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The fit of Molchanov et al. 2017, "Variational dropout sparsifies deep neural networks", good to 0.008 nats
K1, K2, K3 = 0.63576, 1.87320, 1.48695


def normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(N(mean, variance) || N(0, 1)), that of v.

    Args:
        mean: of any shape.
        log_variance: of the same shape.

    Returns:
        The divergence of each entry in nats, at least 0.
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """Compute KL(N(mean, alpha mean^2) || p) for the normal-Jeffreys prior p(z) ~ 1 / |z|.

    The prior is improper and the formula a fit: only differences between two alpha mean something. The constant is
    chosen so that the divergence goes to 0 as alpha grows.

    Args:
        log_alpha: log of variance over squared mean, of any shape.

    Returns:
        The divergence of each entry in nats.
    """
    log_ratio = torch.nn.functional.softplus(-log_alpha)  # log(1 + 1 / alpha), stable for any alpha
    return 0.5 * log_ratio + K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha)


def log_normal_gamma_kl(mean: Tensor, log_variance: Tensor, log_scale: float) -> Tensor:
    """Compute KL(LN(mean, variance) || Gamma(1/2, scale)).

    Args:
        mean: of the logarithm, of any shape.
        log_variance: of the logarithm, of the same shape.
        log_scale: log of the gamma's scale (the inverse of its rate).

    Returns:
        The divergence of each entry in nats, at least 0.
    """
    mean_over_scale = (mean + 0.5 * log_variance.exp() - log_scale).exp()
    return mean_over_scale - 0.5 * (mean - log_scale + log_variance + 1 + math.log(2))


def log_normal_inverse_gamma_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(LN(mean, variance) || InverseGamma(1/2, 1)).

    Args:
        mean: of the logarithm, of any shape.
        log_variance: of the logarithm, of the same shape.

    Returns:
        The divergence of each entry in nats, at least 0.
    """
    mean_of_inverse = (0.5 * log_variance.exp() - mean).exp()
    return mean_of_inverse - 0.5 * (log_variance - mean + 1 + math.log(2))
