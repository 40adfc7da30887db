"""The exact size on disk of a network with a method in its sites; one layer of each shape is built, without memory.

A safetensors file is eight bytes, a JSON header padded with blanks to a multiple of eight, and the tensors' bytes.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import factor_parameters
from lowrank.compression.trace import meta_weights
from lowrank.errors import UncountableError
from lowrank.layers import ConvShape, Dense, Method, build_linear

# How safetensors names each type, in the order of their tensors in the file.
_TYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_ORDER = {dtype: position for position, dtype in enumerate(_TYPES)}
Entry = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class FileSize:
    """Size of a network's weights.

    Attributes:
        bytes: of the safetensors file.
        factor_params: parameters that are factors of structured maps.
    """

    bytes: int
    factor_params: int


def safetensors_size(entries: Mapping[str, Entry]) -> int:
    """Compute the size of a safetensors file without metadata.

    Args:
        entries: type and shape of each tensor by name.

    Returns:
        Bytes.

    Raises:
        UncountableError: safetensors cannot hold a tensor of such a type.
    """
    for name, (dtype, _) in entries.items():
        if dtype not in _TYPES:
            raise UncountableError(f"`{name}` is of the type {dtype}, which a safetensors file cannot hold")
    header, start = {}, 0
    for name, (dtype, shape) in sorted(entries.items(), key=lambda entry: (_ORDER[entry[1][0]], entry[0])):
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(text) / 8) * 8 + start


def measure_file_size(network: nn.Module, plan: NetworkPlan, sized: SizedMethod) -> FileSize:
    """Measure the weights of a network with a method in its sites.

    Args:
        network: the dense network; it may be on the meta device.
        plan: its sites.
        sized: the method, or the allocation, that stands in them.

    Returns:
        The size of the safetensors file.
    """
    return FileSizeCalculator(network, plan).measure(sized)


class FileSizeCalculator:
    """Measures one network on disk with any method in its sites.

    Each distinct network and layer is measured once.
    """

    def __init__(self, network: nn.Module, plan: NetworkPlan):
        """Read the names, types and shapes of a network's tensors.

        Args:
            network: the dense network; it may be on the meta device, and is not kept.
            plan: its sites.
        """
        self.plan = plan
        self._dense = _entries(network)
        self._names = _all_names(network)  # a layer that stands in two places is written twice
        inside = tuple(f"{name}." for site in plan.substituted for name in self._names[site.name])
        self._outside = {name: entry for name, entry in self._dense.items() if not name.startswith(inside)}
        self._sizes: dict[Any, FileSize] = {}
        self._layers: dict[Any, tuple[dict[str, Entry], int]] = {}

    def measure(self, sized: SizedMethod) -> FileSize:
        """Measure the network with a method in its sites.

        Args:
            sized: the method, or the allocation.

        Returns:
            The size of the whole safetensors file.
        """
        signature = self.plan.signature(sized)
        if signature not in self._sizes:
            self._sizes[signature] = self._measure_network(sized)
        return self._sizes[signature]

    def _measure_network(self, sized: SizedMethod) -> FileSize:
        if isinstance(sized, Dense):
            return FileSize(safetensors_size(self._dense), 0)
        entries, factors = dict(self._outside), 0
        for site, method in self.plan.methods_by_site(sized):
            layer_entries, layer_factors = self._layer(
                method, site.shape, site.linear, self._dense[f"{site.name}.weight"][0]
            )
            for layer_name in self._names[site.name]:
                entries.update({f"{layer_name}.{name}": entry for name, entry in layer_entries.items()})
            factors += layer_factors
        return FileSize(safetensors_size(entries), factors)

    def _layer(
        self, method: Method, shape: ConvShape, linear: bool, dtype: torch.dtype
    ) -> tuple[dict[str, Entry], int]:
        """Return a layer's entries by name within it, and the number of its factor parameters."""
        key = method.signature(shape), shape._replace(in_area=1, out_area=1), linear, dtype
        if key not in self._layers:
            with meta_weights():
                layer = build_linear(method, shape) if linear else method.build(shape)
            factors = sum(factor.numel() for factor in factor_parameters(layer))
            self._layers[key] = _entries(layer.to(dtype)), factors
        return self._layers[key]


def _all_names(network: nn.Module) -> dict[str, list[str]]:
    """List all names of each module, by its first one."""
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {places[0]: places for places in names.values()}


def _entries(module: nn.Module) -> dict[str, Entry]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
