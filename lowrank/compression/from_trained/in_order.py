"""Replaces the layers of a trained network one after another, each fitted on what the layers before it really give.

Later layers see the errors of earlier ones. Fitted in order, each layer's input is that of the network compressed so
far and its target is the dense network's output, so that it corrects what it can (Zhang et al. 2015).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.fit import ROUNDS, Problem, fit_factors, make_problems
from lowrank.compression.from_trained.moments import LayerOutputs, Moments, Plain, collect_moments, paired_calls
from lowrank.compression.from_trained.replay import Replay, count_calls, storage_limit
from lowrank.compression.from_trained.through_relu import find_relu, fit_through_relu
from lowrank.layers import ConvShape, KernelChain, WholeKernelMethod, chain_product, relative_error

Batches = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Layer:
    """A layer that may be replaced.

    It has its name, its shape, whether it is a linear map, and how often it runs in one forward pass.
    """

    name: str
    shape: ConvShape
    linear: bool = False
    calls: int = 1


@dataclass(frozen=True)
class Choice:
    """What a layer becomes: factors of a method at these ranks of one group.

    None leaves the layer dense.
    """

    method: WholeKernelMethod
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class LayerFit:
    """How well a layer was met.

    Attributes:
        name: the layer's name.
        choice: its factors; None where it stays dense.
        weight_error: ||W - dense|| / ||dense||.
        output_error: sqrt of the share of the target outputs' variance that is missed.
    """

    name: str
    choice: Choice | None
    weight_error: float
    output_error: float


@torch.no_grad()
def fit_in_order(
    dense: nn.Module,
    layers: Sequence[Layer],
    choices: Mapping[str, Choice | None],
    batches: Batches,
    *,
    in_order: bool = True,
    rounds: int = ROUNDS,
    outputs: LayerOutputs | None = None,
    progress: Callable[[str], None] = lambda name: None,
    through_relu: bool = False,
) -> tuple[nn.Module, list[LayerFit]]:
    """Compress a copy of a trained network.

    Args:
        dense: the trained network in evaluation mode; unchanged.
        layers: the layers, in the order in which they run.
        choices: what each layer becomes, by name; a layer that is not named is left alone, one that is named None
            keeps its form and is fitted again to what now enters it.
        batches: gives the calibration images (B, C, H, W) anew at each call, on the device of the network.
        in_order: fit on what the compressed network gives; otherwise on what the dense one gives.
        rounds: steps of L-BFGS for factors without a closed form.
        outputs: the dense network's outputs over the same batches, where they are known; the others are computed.
        progress: called with the name of each layer before it is fitted.
        through_relu: fit layers with a ReLU directly behind them to what is left after it, where that is nearer.

    Returns:
        The compressed network, in evaluation mode, and one fit for each layer that was named.
    """
    student = copy.deepcopy(dense).eval()
    source = student if in_order else dense
    first = next(iter(batches()))[:1]
    replay = Replay(source, count_calls(source, first), storage_limit(first.device))
    fits: list[LayerFit] = []
    for layer in layers:
        progress(layer.name)
        if layer.name not in choices:
            continue
        choice = choices[layer.name]
        if choice is None and not (in_order and fits):
            continue  # nothing before it has changed
        plain = dense.get_submodule(layer.name)
        assert isinstance(plain, Plain)
        pairs = partial(
            paired_calls, source, dense, layer.name, batches, layer.calls, outputs=outputs, replay=replay
        )  # fmt: skip
        refit = partial(_fit_to_pairs, layer, choice, plain, rounds=rounds)
        module, fit = refit(pairs())
        affine = find_relu(dense, plain, first) if through_relu else None
        if affine is not None:
            module, fit = fit_through_relu((module, fit), pairs, affine, refit)
        replace_module(student, layer.name, module)
        fits.append(fit)
    return student, fits


def _fit_to_pairs(
    layer: Layer, choice: Choice | None, plain: Plain, pairs: Iterator[tuple[Tensor, Tensor]], *, rounds: int
) -> tuple[nn.Module, LayerFit]:  # fmt: skip
    """Fit what a layer becomes to pairs of its inputs and target outputs."""
    moments = collect_moments(plain, pairs)
    return fit_layer(layer, choice, plain, make_layer_problems(plain, layer, choice, moments), rounds)


def make_layer_problems(plain: Plain, layer: Layer, choice: Choice | None, moments: Moments) -> list[Problem]:
    """The least-squares problems of a layer's groups for what it is to become."""
    bias = plain.bias is not None if choice is None else choice.method.has_bias(layer.shape)
    return make_problems(moments, kernel_of(plain), bias=bias)


def kernel_of(plain: Plain) -> Tensor:
    """Return the weight of a layer as the kernel of a convolution.

    Args:
        plain: a convolution or a linear map.

    Returns:
        (O, I / g, KH, KW); of a linear map (O, I, 1, 1).
    """
    return plain.weight if plain.weight.dim() == 4 else plain.weight[:, :, None, None]


@torch.no_grad()
def fit_layer(
    layer: Layer, choice: Choice | None, plain: Plain, problems: Sequence[Problem], rounds: int = ROUNDS
) -> tuple[nn.Module, LayerFit]:
    """Make the module that a layer becomes and fit it.

    Args:
        layer: the layer.
        choice: what it becomes; None for a dense layer with the best weights.
        plain: the trained layer.
        problems: one for each group.
        rounds: steps of L-BFGS for factors without a closed form.

    Returns:
        The fitted module, on the device and with the dtype of `plain`, frozen where that was frozen; and its fit.
    """
    trained = kernel_of(plain).detach().double()
    if choice is None:
        module: Plain | KernelChain = copy.deepcopy(plain)
        assert not isinstance(module, KernelChain)
        kernel = torch.cat([problem.best for problem in problems])
        module.weight.copy_(kernel.reshape(plain.weight.shape))
    else:
        chain = KernelChain(choice.method, layer.shape, choice.ranks, linear=layer.linear)
        chain = chain.to(plain.weight.device, plain.weight.dtype)
        fitted = [fit_factors(choice.method, problem, choice.ranks, rounds=rounds)[0] for problem in problems]
        chain.set_weights(fitted)
        module, kernel = chain, chain.dense_weight().double().reshape(trained.shape)
    if module.bias is not None:
        parts = zip(kernel.chunk(len(problems)), problems, strict=True)
        module.bias.copy_(torch.cat([problem.bias(part) for part, problem in parts]))
    energy = sum(problem.energy for problem in problems)
    pairs = zip(kernel.chunk(len(problems)), problems, strict=True)
    missed = sum(problem.error(part) * problem.energy for part, problem in pairs) / max(energy, 1e-300)
    module.requires_grad_(plain.weight.requires_grad).train(plain.training)
    return module, LayerFit(layer.name, choice, relative_error(kernel, trained), missed**0.5)


@torch.no_grad()
def merged_layer(layer: Layer, choice: Choice, plain: Plain, problems: Sequence[Problem], rounds: int) -> Plain:
    """Make a plain layer that equals the fitted factors, for a quick measurement.

    Args:
        layer: the layer.
        choice: what it becomes.
        plain: the trained layer.
        problems: one for each group.
        rounds: steps of L-BFGS for factors without a closed form.

    Returns:
        A copy of `plain` with the product of the fitted factors as its weight.
    """
    kernels = [
        chain_product(fit_factors(choice.method, problem, choice.ranks, rounds=rounds)[0]) for problem in problems
    ]
    merged = copy.deepcopy(plain)
    merged.weight.copy_(torch.cat(kernels).reshape(plain.weight.shape))
    if choice.method.has_bias(layer.shape):
        bias = torch.cat([problem.bias(kernel) for problem, kernel in zip(problems, kernels, strict=True)])
        merged.bias = nn.Parameter(bias.to(plain.weight.dtype))
    return merged


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a module of a network, under each of the names that it has.

    Args:
        network: is changed.
        name: of the module that is replaced.
        module: takes its place.
    """
    old = network.get_submodule(name)
    for parent in list(network.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, child_name, module)
