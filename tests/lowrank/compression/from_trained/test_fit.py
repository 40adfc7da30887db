"""Fits of factors: exact at full rank, better with rank, never worse than plain truncation on the images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.fit import Problem, fit_factors, make_problems, tucker_tails
from lowrank.compression.from_trained.in_order import Choice, Layer, fit_in_order
from lowrank.compression.from_trained.moments import collect_moments, layer_calls, patches, targets
from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import KernelChain, WholeKernelMethod, chain_product
from lowrank.layers.registry import make_method

METHODS = ("svd", "spatial_svd", "tucker2", "cp_kernel", "tensor_train_kernel")
CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 8, 3, padding=1),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(6, 8, 3, dilation=2, padding="same"),
    "groups": nn.Conv2d(8, 8, 3, groups=2, padding=1),
    "tall": nn.Conv2d(6, 8, (5, 1), padding=(2, 0)),
    "pointwise": nn.Conv2d(6, 8, 1, stride=2),
    "linear": nn.Linear(6, 8),
}


def correlated(layer: nn.Conv2d | nn.Linear, seed: int = 0) -> Tensor:
    """Inputs whose channels depend on one another, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    mixing = torch.randn(channels, channels, generator=generator) ** 3
    shape = (40, 9, 10) if isinstance(layer, nn.Conv2d) else (400,)
    x = torch.randn(*shape, channels, generator=generator) @ mixing + 0.5
    return x.permute(0, 3, 1, 2).contiguous() if isinstance(layer, nn.Conv2d) else x


def kernel(layer: nn.Conv2d | nn.Linear) -> Tensor:
    weight = layer.weight.detach()
    return (weight if weight.dim() == 4 else weight[:, :, None, None]).double()


def problems_of(layer: nn.Conv2d | nn.Linear, x: Tensor, ridge: float = 1e-6) -> list[Problem]:
    with torch.no_grad():
        return make_problems(collect_moments(layer, [(x, layer(x))]), kernel(layer), ridge=ridge)


@pytest.fixture(params=CONVOLUTIONS, scope="module")
def layer(request: pytest.FixtureRequest) -> nn.Conv2d | nn.Linear:
    torch.manual_seed(3)
    fresh = copy.deepcopy(CONVOLUTIONS[request.param])
    fresh.reset_parameters()
    return fresh


def shape_of(layer: nn.Conv2d | nn.Linear) -> ConvShape:
    if isinstance(layer, nn.Linear):
        return ConvShape(layer.in_features, layer.out_features, bias=layer.bias is not None)
    return ConvShape(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.bias is not None, groups=layer.groups,
    )  # fmt: skip


def whole_kernel(name: str, **settings: object) -> WholeKernelMethod:
    method = make_method({"name": name, **settings})
    assert isinstance(method, WholeKernelMethod)
    return method


def test_patches_times_the_weight_give_the_outputs(layer) -> None:
    x = correlated(layer)
    with torch.no_grad():
        y = targets(layer, layer(x))
    weight = torch.stack(kernel(layer).flatten(1).float().chunk(len(y)))
    bias = 0 if layer.bias is None else torch.stack(layer.bias.detach().chunk(len(y)))[:, None]
    torch.testing.assert_close(patches(layer, x) @ weight.mT + bias, y, rtol=1e-4, atol=1e-4)


def test_the_best_weight_is_the_trained_one_where_nothing_was_compressed(layer) -> None:
    parts = [problem.best for problem in problems_of(layer, correlated(layer))]
    torch.testing.assert_close(torch.cat(parts), kernel(layer), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_factors_of_full_rank_give_the_dense_layer(layer, name) -> None:
    method, shape, x = whole_kernel(name, bias=True), shape_of(layer), correlated(layer)
    ranks = method.full_ranks(shape)
    chain = KernelChain(method, shape, ranks, linear=isinstance(layer, nn.Linear))
    problems = problems_of(layer, x)
    fitted = [fit_factors(method, problem, ranks, rounds=0) for problem in problems]
    chain.set_weights([weights for weights, _ in fitted])
    with torch.no_grad():
        biases = [problem.bias(chain_product(weights)) for problem, (weights, _) in zip(problems, fitted, strict=True)]
        chain.bias.copy_(torch.cat(biases))
        torch.testing.assert_close(chain(x), layer(x), rtol=2e-3, atol=5e-3)
    assert all(error < 1e-4 for _, error in fitted)


@pytest.mark.parametrize("name", METHODS)
def test_the_error_falls_with_the_rank_and_is_that_of_the_outputs(layer, name) -> None:
    method, shape, x = whole_kernel(name, bias=True), shape_of(layer), correlated(layer)
    problems, full = problems_of(layer, x), method.full_ranks(shape)
    errors = []
    for share in (0.2, 0.5, 0.8):
        ranks = tuple(max(1, round(share * limit)) for limit in full)
        ranks = ranks if shape.kernel_area > 1 else (min(ranks),) * len(ranks)
        weights, error = fit_factors(method, problems[0], ranks)
        errors.append(error)
        with torch.no_grad():  # the error is the share of the outputs' variance that is missed
            y = targets(layer, layer(x))[0].double()
            gap = y - patches(layer, x)[0].double() @ chain_product(weights).flatten(1).T
            measured = (gap - gap.mean(0)).square().sum() / (y - y.mean(0)).square().sum()
        assert error == pytest.approx(float(measured), rel=0.02, abs=1e-4)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_to_the_images_misses_no_more_than_plain_truncation(layer, name) -> None:
    method, shape = whole_kernel(name), shape_of(layer)
    ranks = method.model_copy(update={"rank_scale": 0.3}).ranks_at(shape)
    for problem, dense in zip(problems_of(layer, correlated(layer)), kernel(layer).chunk(shape.groups), strict=True):
        _, error = fit_factors(method, problem, ranks)
        plain = problem.error(chain_product(method.truncate(method.decompose(dense), ranks)))
        assert error <= plain * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("name", ["spatial_svd", "tucker2", "cp_kernel", "tensor_train_kernel"])
def test_rounds_of_least_squares_never_harm(name) -> None:
    layer = CONVOLUTIONS["plain"]
    method, (problem,) = whole_kernel(name), problems_of(layer, correlated(layer))
    ranks = method.model_copy(update={"rank_scale": 0.3}).ranks_at(shape_of(layer))
    assert fit_factors(method, problem, ranks, rounds=20)[1] <= fit_factors(method, problem, ranks, rounds=0)[1]


def test_what_tucker_misses_is_known_for_every_out_rank() -> None:
    layer = CONVOLUTIONS["plain"]
    (problem,) = problems_of(layer, correlated(layer))
    tail = tucker_tails(problem, 6)
    assert len(tail) == 9
    assert float(tail[0]) == pytest.approx(problem.energy, rel=1e-3)  # nothing is kept
    assert float(tail[8]) == pytest.approx(0, abs=1e-3 * problem.energy)  # all is kept
    assert bool((tail.diff() <= 1e-9).all())


class Twice(nn.Module):
    """One convolution that runs twice, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.first(x).relu()).relu()).relu()
        return self.last(x.mean((2, 3)))


def test_a_layer_that_runs_twice_is_seen_twice() -> None:
    network = Twice().eval()
    calls = layer_calls(network, network.shared, torch.randn(2, 3, 6, 6), 2)
    assert len(calls) == 2
    torch.testing.assert_close(calls[0][1].relu(), calls[1][0])


def test_in_order_each_layer_mends_what_the_layers_before_it_lost() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    images = torch.randn(128, 3, 8, 8)
    method = whole_kernel("svd", bias=True)
    layers = [
        Layer(name, shape_of(network.get_submodule(name)), isinstance(network.get_submodule(name), nn.Linear))
        for name in ("0", "2", "4", "7")
    ]
    choices = {"0": Choice(method, (6,)), "2": Choice(method, (6,)), "4": Choice(method, (6,)), "7": None}

    def gap(in_order: bool) -> float:
        student, fits = fit_in_order(network, layers, choices, lambda: iter(images.split(64)), in_order=in_order)
        assert [fit.name for fit in fits] == (["0", "2", "4", "7"] if in_order else ["0", "2", "4"])
        with torch.no_grad():
            return float((student(images) - network(images)).square().mean())

    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert gap(True) < 0.8 * gap(False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "it was changed"
