"""Layers of other libraries that are comparable with one of ours: the same sizes and ranks, or as near as they offer.

* tensor train, Tucker, CP, reconstructed: the same tensor (for Tucker with a full core), multiplied out by
  tensorly-torch or tntorch, then a convolution.
* tensor train, Tucker, CP, factorised: tensorly-torch's `FactorizedLinear`, which contracts activations with factors of
  a weight of (o_1, o_2) x (i_1, i_2), with as many parameters as ours.
* bottleneck: tensorly-torch's `FactorizedConv` through as many channels, reconstructed and factorised.

tensorly-torch is no requirement of this project: see `INSTALL`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers import CP, Bottleneck, Method, TensorTrain, Tucker
from lowrank.layers.blocks.monarch import largest_divisor

INSTALL = "pip install --no-deps --target DIR tensorly tensorly-torch==0.5.0 opt_einsum, then PYTHONPATH=DIR"
Builders = dict[str, Callable[[], nn.Module]]
_NAMES = {TensorTrain: "TT", Tucker: "Tucker", CP: "CP"}


@cache
def _has(module: str) -> bool:
    return find_spec(module) is not None


def absent_peers(on_gpu: bool = False) -> list[str]:
    """A line for each library that is not there, or not compared on a GPU."""
    lines = {"tltorch": f"without tensorly-torch, which is not installed ({INSTALL})", "tntorch": "without tntorch"}
    found = [line for module, line in lines.items() if not _has(module)]
    if on_gpu and _has("tntorch"):
        found.append("without tntorch, which cannot be captured in a CUDA graph (it copies from the CPU)")
    return found


def _tltorch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tltorch  # with its warnings, and only where it is there
    return tltorch


class Rebuilt(nn.Module):
    """A pointwise convolution whose weight comes from another library's tensor, or was `given`, rebuilt before."""

    external_weight: Tensor | None = None
    external_weight_ready: torch.cuda.Event | None = None  # what the current stream must wait for before using it

    def __init__(self, tensor: nn.Module | nn.ParameterList, rebuild: Callable[[], Tensor], shape: Sequence[int]):
        super().__init__()
        self.tensor, self.rebuild, self.shape = tensor, rebuild, (*shape, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        weight = self.rebuild() if self.external_weight is None else self.external_weight
        if self.external_weight_ready is not None:
            torch.cuda.current_stream().wait_event(self.external_weight_ready)
        return functional.conv2d(x, weight.reshape(self.shape))


class OnChannels(nn.Module):
    """A linear map applied to the channels of images."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        pixels = x.permute(0, 2, 3, 1)
        return self.linear(pixels.flatten(0, 2)).unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)


def peers_of(method: Method, in_channels: int, out_channels: int, on_gpu: bool = False) -> Builders:
    """Builders of the peers of `method` for an O x I map, by name; none where there is nothing comparable."""
    found: Builders = {}
    channels = (in_channels, out_channels)
    if isinstance(method, TensorTrain | Tucker | CP):
        if _has("tltorch"):
            found["tensorly-torch reconstructed"] = lambda: tensorly_rebuilt(method, *channels)
            found["tensorly-torch factorised"] = lambda: tensorly_linear(method, *channels)
        if _has("tntorch") and not on_gpu:
            found["tntorch reconstructed"] = lambda: tntorch_rebuilt(method, *channels)
    if isinstance(method, Bottleneck) and _has("tltorch"):
        for kind in ("TT", "Tucker", "CP"):
            for way in ("reconstructed", "factorized"):
                name = f"tensorly-torch {kind} conv {way.replace('z', 's')}"
                found[name] = lambda kind=kind, way=way: tensorly_conv(  # type: ignore[misc]
                    kind, way, method.rank(*channels), *channels
                )
    return found


def tensorly_rebuilt(method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int) -> nn.Module:
    """The same sizes and ranks as ours, by tensorly-torch's `to_tensor`."""
    sizes, ranks, *_ = method.structure(in_channels, out_channels)
    rank: Any = (1, *ranks, 1) if isinstance(method, TensorTrain) else ranks  # type: ignore[misc]
    tensor = _tltorch().FactorizedTensor.new(sizes, rank=rank, factorization=_NAMES[type(method)])
    return Rebuilt(_drawn(tensor), tensor.to_tensor, (out_channels, in_channels))


def tensorly_linear(method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int) -> nn.Module:
    """`FactorizedLinear` with as many parameters, contracted with the activations."""
    (i, o) = (
        (channels // largest_divisor(channels, isqrt(channels)), largest_divisor(channels, isqrt(channels)))
        for channels in (in_channels, out_channels)
    )
    kind = "BlockTT" if isinstance(method, TensorTrain) else _NAMES[type(method)]
    share = method.map_params(in_channels, out_channels) / (in_channels * out_channels)
    return OnChannels(
        _tltorch().FactorizedLinear(i, o, bias=False, factorization=kind, rank=share, implementation="factorized")
    )


def tensorly_conv(kind: str, way: str, rank: int, in_channels: int, out_channels: int) -> nn.Module:
    """`FactorizedConv` of a 1 x 1 kernel through `rank` channels."""
    ranks = {"TT": (1, rank, rank, rank, 1), "Tucker": (rank, rank, 1, 1), "CP": rank}[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Determining the tt-rank", UserWarning)  # of a train of two cores
        conv = _tltorch().FactorizedConv(
            in_channels, out_channels, 1, order=2, rank=ranks, factorization=kind.lower(), implementation=way
        )
    _drawn(conv.weight)
    return conv


def _drawn(tensor: Any) -> Any:
    with torch.no_grad():
        tensor.normal_(0, 0.05)
    return tensor


def tntorch_rebuilt(method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int) -> nn.Module:
    """The same factors as ours, multiplied out by tntorch."""
    import tntorch

    ours = method.make_map(in_channels, out_channels)
    factors = nn.ParameterList(nn.Parameter(factor.detach().clone()) for factor in ours.factors())
    dims = method.dims

    def rebuild() -> Tensor:
        parts = list(factors)
        if isinstance(method, Tucker):  # factors first, then core pieces
            return tntorch.Tensor(parts[dims:], Us=parts[:dims]).torch()
        return tntorch.Tensor(parts).torch()

    return Rebuilt(factors, rebuild, (out_channels, in_channels))
