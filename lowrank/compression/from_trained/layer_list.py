"""Which layers of a trained network may be replaced, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.in_order import Layer, replace_module
from lowrank.compression.inspection.network_pass import area, cannot_run, unfused_attention
from lowrank.compression.inspection.plain_layers import GIVES_CLASSES, ModuleUses, check_patterns, reason_by_name
from lowrank.compression.operation_counter import OperationCounter
from lowrank.compression.trace import conv_shape
from lowrank.errors import InputError, LowrankError
from lowrank.layers import ConvShape, KernelChain, WholeKernelMethod, make_method
from lowrank.utils import keep_modes


@dataclass(frozen=True)
class LayerList:
    """The layers of a network.

    Attributes:
        layers: those that may be replaced, in the order in which they first run.
        reasons: why each other convolution or linear map stays as it is, by name.
        last: the name of the layer that gives the classes.
        refits_last: whether that layer, which keeps its form, may get new weights: it is a plain layer that no pattern
            leaves out.
        params: parameters of the whole network.
        mult_adds: mult-adds of the whole network for one image, as torch counts what runs.
    """

    layers: tuple[Layer, ...]
    reasons: dict[str, str]
    last: str
    refits_last: bool
    params: int
    mult_adds: int


def list_layers(
    network: nn.Module, image: Tensor, keep: Sequence[str] = (), only: Sequence[str] | None = None
) -> LayerList:
    """Run a network once and list its convolutions and linear maps.

    Args:
        network: the trained network; it is put into evaluation mode for the run and back.
        image: one image (1, C, H, W), on the network's device.
        keep: shell-style patterns of names that stay as they are.
        only: patterns of the names that alone may be replaced; None for all.

    Returns:
        The layers that may be replaced. The classifier, depthwise layers and every module that is not used as a plain
        convolution or linear map stay, with the reason.

    Raises:
        InputError: the network has no layer, a pattern matches none, or it cannot take the image.
    """
    run = _Run(network, image)
    if not run.shapes:
        raise InputError(f"{type(network).__name__} runs no Conv2d or Linear layer, so nothing can be made smaller")
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    check_patterns((*keep, *(only or ())), network)
    last = list(run.shapes)[-1]
    uses = ModuleUses(network)
    layers, reasons, refits_last = [], {}, False
    for name in sorted(names, key=lambda one: list(run.shapes).index(one) if one in run.shapes else len(names)):
        module = network.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        reason = _why_kept(name, module, run, uses, last) or reason_by_name(name, keep, only)
        if name == last:
            refits_last = not (uses.reason_not_plain(module) or reason_by_name(name, keep, only))
        if reason:
            reasons[name] = reason
        else:
            layers.append(Layer(name, run.shapes[name], isinstance(module, nn.Linear), run.calls[name]))
    total = sum(value.numel() for value in network.parameters())
    return LayerList(tuple(layers), reasons, last, refits_last, total, run.mult_adds)


def _why_kept(name: str, module: nn.Conv2d | nn.Linear, run: _Run, uses: ModuleUses, last: str) -> str:
    """Why a layer can only stay as it is; "" if it may be replaced."""
    if name not in run.shapes:
        return "its weight is used without running it"
    if name == last:
        return GIVES_CLASSES
    return uses.reason_not_plain(module) or (_why_not_factorised(module) if isinstance(module, nn.Conv2d) else "")


def _why_not_factorised(conv: nn.Conv2d) -> str:
    """Why a plain convolution is not factorised; "" if it may be."""
    if conv.groups > 1 and conv.groups == conv.in_channels:
        return "it is depthwise"
    return "" if conv.padding_mode == "zeros" else f"its padding mode is {conv.padding_mode!r}"


class _Run:
    """One pass of one image: shapes by name in the order of the first run, runs by name, mult-adds."""

    def __init__(self, network: nn.Module, image: Tensor):
        self.shapes: dict[str, ConvShape] = {}
        self.calls: Counter[str] = Counter()
        operations = OperationCounter()
        handles = [
            module.register_forward_hook(self._watch(name))
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        try:
            with keep_modes(network), torch.no_grad(), unfused_attention(), operations:
                network.eval()(image)
        except LowrankError:
            raise
        except Exception as error:  # the network's own code may raise anything
            raise cannot_run(tuple(image.shape[1:]), error) from error
        finally:
            for handle in handles:
                handle.remove()
        self.mult_adds = operations.mult_adds

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.calls[name] += 1
            shape = _shape(module, inputs[0], output)
            before = self.shapes.get(name)
            if before is not None:  # a layer that runs twice costs twice
                shape = shape._replace(
                    in_area=shape.in_area + before.in_area, out_area=shape.out_area + before.out_area,
                    mixed_area=shape.mixed_area + before.mixed_area,
                )  # fmt: skip
            self.shapes[name] = shape

        return hook


def _shape(module: nn.Module, x: Tensor, y: Tensor) -> ConvShape:
    if isinstance(module, nn.Linear):
        rows = y.numel() // y.shape[-1]
        return ConvShape(
            module.in_features, module.out_features, bias=module.bias is not None, in_area=rows, out_area=rows,
            mixed_area=rows,
        )  # fmt: skip
    assert isinstance(module, nn.Conv2d)
    images = y.numel() // (y.shape[-3] * y.shape[-2] * y.shape[-1])  # more than one where patches are a batch
    shape = conv_shape(module, area(module, x), area(module, y))
    return shape._replace(groups=module.groups, mixed_area=images * y.shape[-2] * x.shape[-1])


def count_mult_adds(network: nn.Module, image: Tensor) -> int:
    """Count the mult-adds that a network runs for one image.

    Args:
        network: in any mode.
        image: (1, C, H, W).

    Returns:
        The mult-adds of its convolutions and linear maps.
    """
    return _Run(network, image).mult_adds


def layer_named(network: nn.Module, name: str, image: Tensor) -> Layer:
    """Return one convolution or linear map, whether or not it may be replaced.

    Args:
        network: in any mode.
        name: of the module.
        image: (1, C, H, W), on which the network runs once.

    Returns:
        The layer.
    """
    run = _Run(network, image)
    return Layer(name, run.shapes[name], isinstance(network.get_submodule(name), nn.Linear), run.calls[name])


def build_chains(network: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace layers of a network, in place, by untrained factors.

    Args:
        network: the dense network.
        layers: by name of a convolution or linear map: `method`, `ranks` (of one group) and `bias`.

    Raises:
        InputError: a name is no such layer, or a method or its ranks do not fit there.
    """
    for name, settings in layers.items():
        try:
            plain = network.get_submodule(name)
        except AttributeError:
            plain = None
        if not isinstance(plain, nn.Conv2d | nn.Linear):
            raise InputError(f"`{name}` must be a convolution or linear map of {type(network).__name__}")
        method = make_method({"name": settings["method"], "ranks": settings["ranks"], "bias": settings["bias"]})
        assert isinstance(method, WholeKernelMethod)  # no other method takes `ranks`
        shape = plain_shape(plain)
        reason = method.infeasible(shape)
        if reason is not None:
            raise InputError(f"`{name}`: {reason}")
        chain = KernelChain(method, shape, method.ranks_at(shape), linear=isinstance(plain, nn.Linear))
        replace_module(network, name, chain.to(plain.weight.dtype))


def plain_shape(plain: nn.Conv2d | nn.Linear) -> ConvShape:
    """The shape of a layer whose areas do not matter."""
    if isinstance(plain, nn.Linear):
        return ConvShape(plain.in_features, plain.out_features, bias=plain.bias is not None)
    return conv_shape(plain, 1, 1)._replace(groups=plain.groups)
