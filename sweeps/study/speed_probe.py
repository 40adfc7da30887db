"""How fast this machine trains: the speed by which `--plan` turns mult-adds into time."""

from __future__ import annotations

import time

import torch
from torch.nn import functional

from lowrank.compression import build_sized_student
from lowrank.errors import InputError
from lowrank.layers import Dense, Separable
from lowrank.networks import NetworkSettings
from lowrank.training import split_output, use_channels_last
from lowrank.utils import first_line
from sweeps.space import Space
from sweeps.trials import Resolver

MAX_PROBED_PARAMS = 20_000_000  # of the dense network that gives the speed of this machine
BACKWARD = 3  # forward and backward cost about three forwards


def probe_speed(space: Space, resolver: Resolver) -> float:
    """Time a few training steps of the separable network on random numbers, on this machine.

    Args:
        space: the space.
        resolver: makes its trials.

    Returns:
        Mult-adds a second of one slot.

    Raises:
        InputError: the network cannot be trained.
    """
    settings = _small_enough(space.network, resolver)
    network, plan, _ = build_sized_student(settings, {"name": "separable"}, resolver.image_shape, resolver.classes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_channels_last(network.to(device))
    batch = min(space.recipe({}).batch_size, len(resolver.data.train), 64 if device == "cpu" else 512)
    images = torch.randn(batch, *resolver.image_shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = min(_time_step(network, images, labels) for _ in range(3))
    except Exception as error:  # the network may be anybody's code
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"a training step of {settings.name}, which --plan times, raised {reason}") from error
    finally:
        torch.set_num_threads(threads)
    return BACKWARD * plan.mult_adds(Separable()) * batch / seconds


def _small_enough(settings: NetworkSettings, resolver: Resolver) -> NetworkSettings:
    """Make a large network narrower, so that to measure this machine's speed takes little memory and time.

    A network of another library or of the user's, whose width cannot be set, stays as it is.
    """
    params = resolver.plan(settings).params(Dense())
    while params > MAX_PROBED_PARAMS and ":" not in settings.name:
        narrower = settings.model_copy(update={"width": settings.width * (MAX_PROBED_PARAMS / params) ** 0.5})
        fewer = resolver.plan(narrower).params(Dense())
        if fewer >= params:  # its fixed layers alone are that large
            break
        settings, params = narrower, fewer
    return settings


def _time_step(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    start = time.perf_counter()
    functional.cross_entropy(split_output(network(images))[0], labels).backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
