"""All pointwise layers of a network in one step, as training has them: forward through each, then backward.

Ours are rebuilt together (`lowrank.layers.batched_rebuild`). The weights of another library are all rebuilt before the
first layer too. While a graph is recorded, each is rebuilt on one of several streams, so that rebuilds may run beside
one another and beside the layers before them, as ours do. Layers that rebuild nothing, or inside their own code, run as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers import one_by_one
from benchmarks.layers.other_libraries import Rebuilt
from benchmarks.measurement import Options, median, synchronise
from lowrank.layers import Method
from lowrank.layers.batched_rebuild import BatchedRebuild

BRANCHES = 6  # streams for a peer's rebuilds


def measure_together(
    case: one_by_one.Case, methods: Mapping[str, Method], options: Options, peers: bool = True
) -> one_by_one.Timed:
    """Time one step of all layers for each method and peer; what fails is left out, with the reason."""
    tensors = {layer: one_by_one.images(layer, case.batch_size, options) for layer in case.layers}
    order = [layer for layer, count in case.layers.items() for _ in range(count)]
    builders: dict[str, list[Callable[[], nn.Module]]] = {}
    for layer in order:
        for name, build in one_by_one.modules(methods, layer, peers, options.device == "cuda").items():
            builders.setdefault(name, []).append(build)
    steps: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    pool = new_pool(options.device)
    for name, builds in builders.items():
        torch.manual_seed(options.seed)
        try:
            step = make_step([build() for build in builds], [tensors[layer] for layer in order], pool)
            step()
            synchronise(options.device)
            steps[name] = step
        except Exception as error:  # as for single layers: the reason is printed
            pool = new_pool(options.device)  # a failed capture leaves its own in disorder
            failed[name] = f"{name}, all layers: {type(error).__name__}: {error}".splitlines()[0]
    times = one_by_one.in_turn(steps, options.device, options.repeated(one_by_one.REPEATS))
    steps.clear()
    one_by_one.released(options.device)
    return one_by_one.Timed(
        middle={name: median(seconds) for name, seconds in times.items()},
        fastest={name: min(seconds) for name, seconds in times.items()}, failed=failed,
    )  # fmt: skip


def new_pool(device: str) -> Any:
    """Memory that graphs share, since they run one after the other; None on a CPU."""
    return torch.cuda.graph_pool_handle() if device == "cuda" else None


def make_step(
    modules: Sequence[nn.Module], tensors: Sequence[tuple[Tensor, Tensor]], pool: Any = None
) -> Callable[[], object]:
    """Forward and backward through all layers, gradients of their inputs and parameters; captured on a GPU."""
    network = nn.ModuleList(modules).to(tensors[0][0].device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = [x.detach().requires_grad_() for x, _ in tensors]  # one for each layer, over the same memory
    inputs = [*images, *network.parameters()]
    device = images[0].device.type
    rebuild, side_streams = BatchedRebuild(network), list[torch.cuda.Stream]()

    def step() -> None:
        with one_by_one.precision(device), rebuild.use_rebuilt_weights(), rebuilt_before(network, side_streams):
            outputs = [module(x) for module, x in zip(network, images, strict=True)]
        directions = [direction.to(output.dtype) for output, (_, direction) in zip(outputs, tensors, strict=True)]
        torch.autograd.grad(outputs, inputs, directions, allow_unused=True)

    return one_by_one.captured(step, pool=pool) if device == "cuda" else step


@contextmanager
def rebuilt_before(network: nn.ModuleList, sides: list[torch.cuda.Stream]) -> Iterator[None]:
    """Within, the peers' layers use weights rebuilt now, on the streams `sides` while a graph is recorded."""
    peers = [module for module in network if isinstance(module, Rebuilt)]
    if peers and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        here = torch.cuda.current_stream()
        sides.extend(torch.cuda.Stream(priority=-1) for _ in range(BRANCHES - len(sides)))
        for side in sides:
            side.wait_stream(here)
        for number, peer in enumerate(peers):
            with torch.cuda.stream(sides[number % BRANCHES]):
                peer.external_weight = peer.rebuild()
                peer.external_weight_ready = sides[number % BRANCHES].record_event()
            peer.external_weight.record_stream(here)
    else:
        for peer in peers:
            peer.external_weight = peer.rebuild()
    try:
        yield
    finally:
        for peer in peers:
            peer.external_weight = peer.external_weight_ready = None
