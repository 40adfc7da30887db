"""How much work trainings are, and how fast this machine trains: `--plan` turns mult-adds into time."""

from __future__ import annotations

import enum
import time
from collections import Counter

import torch
from torch.nn import functional

from lowrank.compression import VariationalSettings, build_sized_student, make_variational
from lowrank.errors import InputError
from lowrank.layers import Bayesian, Dense, Separable
from lowrank.networks import NetworkSettings
from lowrank.training import VariationalTraining, split_output, use_channels_last
from lowrank.utils import first_line
from sweeps.records import Trial
from sweeps.space import Space
from sweeps.trials import Resolver, variational_settings

MAX_PROBED_PARAMS = 20_000_000  # of the dense network that gives the speed of this machine
MAX_PROBED_MULT_ADDS = 5_000_000_000  # of a forward pass on a CPU, so that a step takes about a second
BACKWARD = 3  # forward and backward cost about three forwards
VARIATIONAL_MAPS = 2  # a variational layer maps means and variances


class Form(enum.StrEnum):
    """What the layers of a network are: a mult-add takes another time in each form."""

    STRUCTURED = "structured"
    DENSE = "dense"
    VARIATIONAL = "variational"


def training_work(trial: Trial, images: int, *, is_shared: bool) -> Counter[Form]:
    """Count the mult-adds of a trial's training.

    Args:
        trial: resolved.
        images: of an epoch.
        is_shared: whether another trial of the study trains the same posterior, from which this one is made.

    Returns:
        Mult-adds by the form of the network. After a removal of groups the network counts as a whole one.
    """
    epoch = BACKWARD * trial.counts["mult_adds"] * images
    variational = variational_settings(trial.specification)
    if variational is None:
        form = Form.DENSE if trial.specification.method.name == Dense().name else Form.STRUCTURED
        return Counter({form: epoch * trial.specification.train.epochs})
    work = Counter({Form.DENSE: epoch * variational.method.finetune_epochs})
    if not is_shared:
        work[Form.VARIATIONAL] = VARIATIONAL_MAPS * epoch * trial.specification.train.epochs
    return work


def probe_speed(space: Space, resolver: Resolver, form: Form) -> float:
    """Time a few training steps on random numbers, on this machine.

    The network is the space's in its dense form, in its separable one (for all structured layers), or with the default
    variational layers.

    Args:
        space: the space.
        resolver: makes its trials.
        form: of the network.

    Returns:
        Mult-adds a second of one slot.

    Raises:
        InputError: the network cannot be trained.
    """
    settings = _small_enough(space.network, resolver)
    method = Separable() if form is Form.STRUCTURED else Dense()
    network, plan, _ = build_sized_student(settings, {"name": method.name}, resolver.image_shape, resolver.classes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = plan.mult_adds(method)
    variational = None
    if form is Form.VARIATIONAL:
        work *= VARIATIONAL_MAPS
        make_variational(network, Bayesian())
    use_channels_last(network.to(device))
    examples = len(resolver.data.train)
    if form is Form.VARIATIONAL:
        variational = VariationalTraining(
            network, VariationalSettings(method=Bayesian(), network=settings), seed=0, examples=examples,
            steps_per_epoch=1, image_shape=resolver.image_shape, classes=resolver.classes,
        )  # fmt: skip
    batch = min(space.recipe({}).batch_size, examples, 512)
    if device == "cpu":
        batch = min(batch, 64, max(2, MAX_PROBED_MULT_ADDS // work))
    images = torch.randn(batch, *resolver.image_shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = min(_time_step(network, images, labels, variational) for _ in range(3))
    except Exception as error:  # the network may be anybody's code
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"a training step of {settings.name}, which --plan times, raised {reason}") from error
    finally:
        torch.set_num_threads(threads)
    return BACKWARD * work * batch / seconds


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


def _time_step(
    network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, variational: VariationalTraining | None
) -> float:  # fmt: skip
    start = time.perf_counter()
    if variational is not None:
        variational.begin_step(0, 0)
        variational.noise.select(torch.arange(len(images)))
    loss = functional.cross_entropy(split_output(network(images))[0], labels)
    if variational is not None:
        loss = loss + variational.loss()[0]
    loss.backward()
    if variational is not None:
        variational.clip()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
