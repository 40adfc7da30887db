"""What rebuilt weights keep for the backward pass, with and without a checkpoint.

Run by `python -m benchmarks.layers.saved_memory`. Bytes are counted as autograd saves them (distinct storages, without
parameters, buffers and the input); on a GPU the peak of a whole step is measured too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measurement import (
    Measurement,
    Options,
    Table,
    environment,
    header,
    interleaved,
    load,
    median,
    show,
)
from lowrank.layers.base_layer import checkpoint_rebuild
from lowrank.layers.base_method import ConvShape
from lowrank.layers.registry import make_method
from lowrank.utils import OneLineParser

CHANNELS = 640
LAYERS = 4  # one after the other: what they keep adds up, what one rebuild needs for a while does not
METHODS: tuple[Mapping[str, Any], ...] = (
    {"name": "acdc", "layers": 32},
    {"name": "hashed", "bank_scale": 0.1},
    {"name": "tensor_train", "dims": 3, "rank_scale": 0.26},
)
REPEATS = 3


def make_stack(settings: Mapping[str, Any], channels: int, device: str, *, checkpointed: bool, seed: int) -> nn.Module:
    """`LAYERS` pointwise maps of one method in a row."""
    torch.manual_seed(seed)
    shape = ConvShape(channels, channels)
    stack = nn.Sequential(*(make_method(settings).build(shape) for _ in range(LAYERS)))
    return checkpoint_rebuild(stack, checkpointed).to(device)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages that one forward pass keeps, less the network's own and the input."""
    excluded = {tensor.untyped_storage().data_ptr() for tensor in (x, *network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x)
    del output
    return sum(tensor.untyped_storage().nbytes() for where, tensor in saved.items() if where not in excluded)


def peak_bytes(network: nn.Module, x: Tensor) -> int | None:
    """Most memory on the GPU during a forward and backward pass, above what there was before; None on a CPU."""
    if x.device.type != "cuda":
        return None
    network(x).sum().backward()  # libraries' own workspaces, and the gradients, are there from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(x).sum().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(settings: Mapping[str, Any], options: Options) -> list[dict[str, Any]]:
    """Two rows: without a checkpoint and with one."""
    channels, side = (40, 2) if options.quick else (CHANNELS, 8)
    x = torch.randn(8, channels, side, side, generator=torch.Generator().manual_seed(options.seed)).to(options.device)
    stacks = {
        name: make_stack(settings, channels, options.device, checkpointed=on, seed=options.seed)
        for name, on in (("kept", False), ("checkpointed", True))
    }
    steps = {name: lambda stack=stack: stack(x).sum().backward() for name, stack in stacks.items()}
    times = interleaved(steps, options.device, options.repeated(REPEATS))
    rows = []
    for name, stack in stacks.items():
        peak = peak_bytes(stack, x)
        shown = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
        rows.append({
            "method": settings["name"], "settings": shown, "rebuild": name, "saved MB": saved_bytes(stack, x) / 1e6,
            "peak MB": None if peak is None else peak / 1e6, "step ms": 1000 * median(times[name]),
        })  # fmt: skip
    return rows


def run(options: Options) -> Measurement:
    """Measure every method."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or 1)
    try:
        rows = [row for settings in METHODS for row in measure(settings, options)]
    finally:
        torch.set_num_threads(before)
    channels = 40 if options.quick else CHANNELS
    columns = ("method", "settings", "rebuild", "saved MB", "peak MB", "step ms")
    title = f"{LAYERS} maps {channels} x {channels}: kept for the backward pass (with the layers' own outputs)"
    return Measurement(
        name="memory",
        settings={"seed": options.seed, "device": options.device, "threads": options.threads or 1},
        tables=[Table(title=title, columns=columns, rows=rows)],
    )


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    around = environment()
    found = run(Options(quick=asked.quick, device=asked.device))
    show(found, header(around, found.settings, load()))
