"""The size on disk of a network with a method in its sites, to the byte, building no more than one layer a shape.

A safetensors file is eight bytes, a JSON header padded with blanks to a multiple of eight, and the tensors' bytes.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lowrank.layers import ConvShape, Dense, Method
from lowrank.layers.linear import build_linear
from lowrank.plan import NetworkPlan
from lowrank.substitute import factor_parameters

# How safetensors names a type, and its rank in the order in which tensors are laid down (larger types first).
_TYPES = {
    torch.int64: ("I64", 7), torch.float64: ("F64", 6), torch.float32: ("F32", 5), torch.int32: ("I32", 4),
    torch.bfloat16: ("BF16", 3), torch.float16: ("F16", 2), torch.uint8: ("U8", 1), torch.bool: ("BOOL", 0),
}  # fmt: skip
Entry = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """Bytes of the whole network as safetensors, and how many of its parameters are factors of structured maps."""

    bytes: int
    factor_params: int


def safetensors_bytes(entries: Mapping[str, Entry]) -> int:
    """Bytes of the file that holds tensors of these types and shapes under these names, without metadata."""
    header, start = {}, 0
    for name, (dtype, shape) in sorted(entries.items(), key=lambda item: (-_TYPES[item[1][0]][1], item[0])):
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _TYPES[dtype][0], "shape": shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(text) / 8) * 8 + start


def stored(network: nn.Module, plan: NetworkPlan, method: Method) -> Stored:
    """What `network`, which may be on the meta device, takes on disk with `method` in every substituted site."""
    entries = _entries(network)
    if isinstance(method, Dense):
        return Stored(safetensors_bytes(entries), 0)
    factors, layers = 0, _Layers(method)
    for site in plan.substituted:
        for name in [name for name in entries if name.startswith(f"{site.name}.")]:
            del entries[name]
        own, of_factors = layers.of(site.shape, site.linear)
        entries.update({f"{site.name}.{name}": entry for name, entry in own.items()})
        factors += of_factors
    return Stored(safetensors_bytes(entries), factors)


def _entries(module: nn.Module) -> dict[str, Entry]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


class _Layers:
    """What each distinct layer of a method stores, and how many of its parameters are factors; each is built once."""

    def __init__(self, method: Method):
        self.method = method
        self.found: dict[tuple[ConvShape, bool], tuple[dict[str, Entry], int]] = {}

    def of(self, shape: ConvShape, linear: bool) -> tuple[dict[str, Entry], int]:
        """Entries by name within the layer, and the number of factor parameters."""
        key = shape._replace(in_area=1, out_area=1), linear
        if key not in self.found:
            with torch.random.fork_rng(devices=[]):
                layer = build_linear(self.method, shape) if linear else self.method.build(shape)
            factors = sum(factor.numel() for factor in factor_parameters(layer))
            self.found[key] = _entries(layer), factors
        return self.found[key]
