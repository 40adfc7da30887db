"""Variational layers: divergences and moments against Monte Carlo, the start, evaluation, clips, float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, InverseGamma, LogNormal, Normal

from lowrank.errors import InputError
from lowrank.layers import (
    METHODS,
    VARIATIONAL_METHODS,
    Bayesian,
    ConvShape,
    GroupScales,
    HorseshoeScales,
    NormalJeffreysScales,
    VariationalConv2d,
    VariationalLinear,
    build_linear,
    make_method,
)
from lowrank.layers.bayesian.divergences import (
    log_normal_gamma_kl,
    log_normal_inverse_gamma_kl,
    log_uniform_kl,
    normal_kl,
)

SAMPLES = 200_000
PRIORS = ("normal_jeffreys", "horseshoe")


def within_errors(samples: Tensor, value: Tensor | float) -> bool:
    """Whether the mean over the first axis is within three standard errors of a value, everywhere."""
    error = samples.std(0) / math.sqrt(len(samples))
    return bool(((samples.mean(0) - value).abs() <= 3 * error + 1e-9).all())


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.2, 0.3), (-0.5, 0.01)])
def test_divergence_of_weights_agrees_with_monte_carlo(mean: float, variance: float) -> None:
    torch.manual_seed(0)
    posterior, prior = Normal(mean, math.sqrt(variance)), Normal(0.0, 1.0)
    draws = posterior.sample((SAMPLES,)).double()
    expected = posterior.log_prob(draws) - prior.log_prob(draws)
    assert within_errors(expected, normal_kl(torch.tensor(mean), torch.tensor(math.log(variance))).item())


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 0.5), (-2.0, 0.1), (1.0, 0.3)])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_divergences_of_half_cauchy_factors_agree_with_monte_carlo(mean: float, variance: float, scale: float) -> None:
    torch.manual_seed(1)
    posterior = LogNormal(torch.tensor(mean).double(), torch.tensor(math.sqrt(variance)).double())
    draws = posterior.sample((SAMPLES,))
    location, log_variance = torch.tensor(mean).double(), torch.tensor(math.log(variance)).double()
    gamma = posterior.log_prob(draws) - Gamma(0.5, 1 / scale).log_prob(draws)
    assert within_errors(gamma, log_normal_gamma_kl(location, log_variance, math.log(scale)).item())
    inverse = posterior.log_prob(draws) - InverseGamma(0.5, 1.0).log_prob(draws)
    assert within_errors(inverse, log_normal_inverse_gamma_kl(location, log_variance).item())


def test_differences_of_the_divergence_of_scales_agree_with_monte_carlo() -> None:
    torch.manual_seed(2)
    alphas = torch.tensor([0.02, 0.1, 0.5, 1.0, 4.0, 30.0]).double()
    draws = 1 + alphas.sqrt() * torch.randn(2_000_000, 1, dtype=torch.float64)
    # KL(q || 1 / |z|) up to a constant: the negative entropy of q, plus E log |z|
    expected = draws.abs().log().mean(0) - 0.5 * alphas.log()
    given = log_uniform_kl(alphas.log())
    assert torch.allclose(given.diff(), expected.diff(), atol=0.02)
    assert given[3].item() == pytest.approx(0.431, abs=0.001)
    assert log_uniform_kl(torch.tensor([25.0])).item() == pytest.approx(0, abs=1e-4)


def test_squared_half_cauchy_number_is_a_gamma_times_an_inverse_gamma_number() -> None:
    torch.manual_seed(3)
    scale = 0.3
    gamma, inverse = Gamma(0.5, 1 / scale**2).sample((SAMPLES,)), InverseGamma(0.5, 1.0).sample((SAMPLES,))
    draws = (gamma * inverse).sqrt().double()
    quantiles = torch.tensor([0.1, 0.5, 0.9]).double()
    expected = scale * (math.pi / 2 * quantiles).tan()
    assert torch.allclose(draws.quantile(quantiles), expected, rtol=0.03)


def spread(layer: nn.Module, size: float = 0.3) -> None:
    """Move every parameter of a layer away from its start, and give it some variance."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.add_(size * torch.randn_like(parameter))
            if name.endswith("log_variance"):
                parameter.add_(6)


def scales_of(prior: str, groups: int) -> GroupScales:
    scales = NormalJeffreysScales(groups) if prior == "normal_jeffreys" else HorseshoeScales(groups, 0.5)
    spread(scales)
    return scales


@pytest.mark.parametrize("prior", PRIORS)
def test_means_and_variances_of_scales_agree_with_monte_carlo(prior: str) -> None:
    scales = scales_of(prior, 5).double()
    draws = scales.draw(torch.randn(5 * SAMPLES, scales.noise_count(), dtype=torch.float64))
    assert within_errors(draws, scales.mean())
    assert within_errors((draws - scales.mean()).square(), scales.variance())


def sampled_outputs(layer: VariationalLinear | VariationalConv2d, x: Tensor, scales: Tensor) -> Tensor:
    """Draw whole weights for each example, the way that local reparametrisation avoids."""
    deviation = (0.5 * layer.weight_log_variance).exp()
    weights = layer.weight_mean + deviation * torch.randn(len(scales), *layer.weight_mean.shape)
    if isinstance(layer, VariationalLinear):
        return torch.einsum("boi,bi->bo", weights, x * scales) + (0 if layer.bias is None else layer.bias)
    outputs = torch.stack([layer._convolve(x, weight, layer.bias)[0] for weight in weights])
    return outputs * scales[:, :, None, None]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@torch.no_grad()
def test_activations_have_the_means_and_variances_of_drawn_weights(prior: str, kind: str) -> None:
    plain = nn.Linear(4, 3) if kind == "linear" else nn.Conv2d(2, 3, 3, padding=1)
    layer = Bayesian(prior=prior, horseshoe_scale=0.5, max_std=1.0).make_layer(plain).train()
    spread(layer, 0.2)
    assert isinstance(layer, VariationalLinear | VariationalConv2d)
    count = 100_000 if kind == "linear" else 8_000
    x = torch.randn(1, 4) if kind == "linear" else torch.randn(1, 2, 3, 3)
    given = layer(x.expand(count, *x.shape[1:]))
    scales = layer.scales.draw(torch.randn(count, layer.scales.noise_count()))
    expected = sampled_outputs(layer, x, scales)
    for power in (1, 2):
        first, second = given.double() ** power, expected.double() ** power
        error = ((first.var(0) + second.var(0)) / count).sqrt()
        assert bool(((first.mean(0) - second.mean(0)).abs() <= 3 * error).all()), f"moment {power}"


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("plain", [nn.Linear(6, 4), nn.Conv2d(3, 5, 3, stride=2, padding=1)], ids=["linear", "conv"])
def test_evaluation_is_the_plain_layer_of_the_posterior_means(prior: str, plain: nn.Linear | nn.Conv2d) -> None:
    layer = Bayesian(prior=prior).make_layer(plain).eval()
    x = torch.randn(2, 6) if isinstance(plain, nn.Linear) else torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-3, atol=1e-3)  # it begins at the plain layer
    spread(layer)
    again = layer(x)
    torch.testing.assert_close(again, layer(x), rtol=0, atol=0)
    bias = layer.bias if isinstance(layer, VariationalLinear) else layer.mean_bias()  # type: ignore[operator]
    expected = (
        nn.functional.linear(x, layer.weight, bias) if isinstance(plain, nn.Linear)
        else nn.functional.conv2d(x, layer.weight, bias, stride=2, padding=1)
    )  # fmt: skip
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_random_stays_in_float32_under_autocast(prior: str) -> None:
    layer = Bayesian(prior=prior).make_layer(nn.Conv2d(3, 4, 3)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(torch.randn(2, 3, 5, 5))
        assert output.dtype == torch.float32
        assert layer.kl().dtype == torch.float32
    output.sum().backward()
    assert all(parameter.grad is not None for name, parameter in layer.named_parameters())


def test_clips_bound_the_variances_from_above() -> None:
    layer = Bayesian(max_std=0.2).make_layer(nn.Linear(3, 3))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(50.0)
    layer.clip()
    assert layer.weight_log_variance.exp().max().item() == pytest.approx(0.04)
    assert torch.isfinite(layer.kl())
    assert torch.equal(layer.weight_mean, torch.full((3, 3), 50.0)), "only variances are clipped"


def test_settings_are_those_of_a_method_that_is_declared_apart() -> None:
    assert "bayesian" in VARIATIONAL_METHODS
    assert "bayesian" not in METHODS
    shape = ConvShape(4, 6, (3, 3), padding=(1, 1), bias=True, in_area=9, out_area=9)
    method = make_method({"name": "bayesian", "prior": "horseshoe"})
    assert (method.params(shape), method.mult_adds(shape)) == (4 * 6 * 9 + 6, 4 * 6 * 9 * 9)
    assert isinstance(method.build(shape), VariationalConv2d)
    assert isinstance(build_linear(method, ConvShape(4, 6, bias=True)), VariationalLinear)
    assert "2 groups" in (method.infeasible(shape._replace(groups=2)) or "")
    with pytest.raises(InputError, match=r"`method\.prior`"):
        make_method({"name": "bayesian", "prior": "laplace"})


def test_a_field_that_came_later_leaves_the_ids_of_earlier_trials() -> None:
    shape = ConvShape(3, 4)
    earlier = ("bayesian", 0, 0.001, 1e-5, 1.0, 0.2, "normal_jeffreys", 0.0, 5.0)
    assert Bayesian().signature(shape) == earlier
    assert Bayesian(finetune_kd_weight=0.5).signature(shape) != earlier
    assert Bayesian(min_groups=0).signature(shape) != earlier
