"""Short training of a compressed network, distilled from the network that it came from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from lowrank.data import ImageData
from lowrank.distillation import LiveTeacher
from lowrank.networks import has_batch_norms
from lowrank.training import DivergedError, Recipe, Trainer, augmentation_for, default_recipe, recipe_fields
from lowrank.utils import Countdown

KD_WEIGHT, KD_TEMPERATURE = 0.5, 2.0
BATCH_SIZE = 128
"""At most so many images in a batch: few epochs need many steps. On CIFAR-10 (four dense networks, three epochs, a
quarter of the parameters) this and KD_WEIGHT 0.5 halved the loss in accuracy that batches of 512 and 0.9 left."""
RATES = (0.2, 0.1, 0.05)
"""Learning rates that are tried, relative to that of a training from scratch with batches of the same size. They lie
close together so that the mean of their weights is a good network too."""
ADAMW = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05}
"""For networks without batch norms, such as transformers, on which SGD at the rates of convolutional networks diverges.
The values are usual ones for a vision transformer of this size."""
ADAMW_RATES = (0.6, 0.3, 0.15)
"""As RATES, relative to ADAMW. On a ViT (CIFAR-10, four sizes) the highest was better than a third of it each time."""
EMA_DECAY = 0.99
"""Of the moving average of the weights, which is compared with the last weights: it forgets half in 69 steps."""
LOG_TEMPERATURES = (-3.0, 3.0)
"""Natural logarithms of the temperatures between which `tempered_cross_entropy` looks for the best."""


@dataclass(frozen=True)
class Finetuned:
    """A compressed network after its short training.

    Attributes:
        network: in evaluation mode.
        rates: the learning rates of the trainings whose weights it is the mean of; empty where no training lowered the
            loss, so that it is the network as it was.
    """

    network: nn.Module
    rates: tuple[float, ...]


@dataclass(frozen=True)
class _Candidate:
    """Weights that may be chosen, with the rates of their trainings and their loss."""

    network: nn.Module
    rates: tuple[float, ...]
    loss: float


def finetune(
    network: nn.Module,
    dense: nn.Module,
    data: ImageData,
    *,
    network_name: str,
    epochs: int,
    choosing: tuple[Tensor, Tensor],
    rates: Sequence[float] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    labels_only: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Finetuned:
    """Train copies of a compressed network at several rates and average the weights that agree.

    Each rate has an order of the images of its own. The candidates are the last weights of each training and their
    moving average. The best one is averaged with the next best as long as that lowers the loss.

    Args:
        network: the compressed network; unchanged.
        dense: the network that it came from, which it is distilled from.
        data: the training split is trained on, with the data set's own augmentation.
        network_name: chooses the recipe.
        epochs: of each training.
        choosing: images (normalised) and labels whose cross entropy, at each network's own best temperature, is the
            loss that chooses.
        rates: learning rates to try; None for RATES times that of the data set's recipe (SGD), or ADAMW_RATES times
            that of ADAMW for a network without batch norms, in proportion to the size of a batch.
        seed: of the orders of the images and of their augmentation.
        device: where.
        labels_only: train on the labels alone, without the dense network.
        progress: called with one line for each rate.

    Returns:
        The trained network, and of which trainings it has weights.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time" (the greedy average).
    """
    fields = recipe_fields(data.name, network_name, {"recipe": default_recipe(data.name, network_name)})
    factors = RATES
    if not has_batch_norms(network):
        factors, fields = ADAMW_RATES, fields | ADAMW
    distillation = {} if labels_only else {"kd_weight": KD_WEIGHT, "kd_temperature": KD_TEMPERATURE}
    short = {"epochs": epochs, "schedule": "cosine", "warmup": 0.1, "decay": "plain", "scaled_decay": False}
    scratch = Recipe(**(fields | short | distillation))
    batch_size = min(scratch.batch_size, BATCH_SIZE)
    base = scratch.model_copy(
        update={"batch_size": batch_size, "lr": scratch.lr * batch_size / scratch.batch_size, "ema_decay": EMA_DECAY}
    )
    rates = list(rates or [base.lr * factor for factor in factors])
    untrained = _Candidate(network, (), tempered_cross_entropy(network, *choosing))
    candidates = []
    countdown = Countdown(progress, "fine-tuning", epochs * len(rates))
    for index, rate in enumerate(rates):
        order_seed = seed * len(rates) + index
        recipe = base.model_copy(update={"lr": rate})
        student = copy.deepcopy(network)  # frozen parameters stay frozen
        trainer = Trainer(
            student, data, recipe, order_seed=order_seed, device=device,
            augmentation=augmentation_for(recipe, data.name, data.image_shape, order_seed),
            teacher=None if labels_only else _teacher(dense, torch.device(device)), notify=progress,
        )  # fmt: skip
        try:
            for epoch in range(epochs):
                countdown.step(f"rate {rate:g}, epoch {epoch + 1}")
                trainer.train_epoch()
        except DivergedError as error:
            progress(f"rate {rate:g} diverged: {error}")
            continue
        assert trainer.step.ema is not None
        with trainer.step.ema.swapped_in():
            average = copy.deepcopy(student)
        candidates += [
            _Candidate(trained, (rate,), tempered_cross_entropy(trained, *choosing)) for trained in (student, average)
        ]
    best = _greedy_mean([one for one in candidates if one.loss < untrained.loss], choosing) or untrained
    return Finetuned(best.network.eval(), best.rates)


def _greedy_mean(candidates: Sequence[_Candidate], choosing: tuple[Tensor, Tensor]) -> _Candidate | None:
    """Average the best candidate with each next best one that lowers the loss; None where there is none."""
    if not candidates:
        return None
    first, *others = sorted(candidates, key=lambda one: one.loss)
    members, best = [first.network], first
    for other in others:
        network = mean_weights([*members, other.network])
        loss = tempered_cross_entropy(network, *choosing)
        if loss < best.loss:
            members.append(other.network)
            best = _Candidate(network, tuple(sorted({*best.rates, *other.rates}, reverse=True)), loss)
    return best


@torch.no_grad()
def mean_weights(networks: Sequence[nn.Module]) -> nn.Module:
    """Average the weights and the running statistics of networks of one form.

    Args:
        networks: at least one; unchanged.

    Returns:
        A new network. Integers, such as counters, are those of the first.
    """
    states = [network.state_dict() for network in networks]
    mean = copy.deepcopy(networks[0])
    for name, value in mean.state_dict().items():
        if value.is_floating_point() or value.is_complex():
            exact = torch.promote_types(value.dtype, torch.float64)
            value.copy_(torch.stack([state[name].to(exact) for state in states]).mean(0))
    return mean.eval()


@torch.no_grad()
def tempered_cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the cross entropy of a network at its own best temperature.

    A short training on labels makes a network more confident, which can raise its cross entropy while its error falls.

    Args:
        network: put in evaluation mode.
        images: (B, C, H, W), normalised.
        labels: (B).

    Returns:
        The mean over the images in nats, the least over all temperatures of the softmax.

    Source: Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks" (temperature scaling).
    """
    logits = torch.cat([network.eval()(part).float() for part in images.split(256)]).double().cpu()
    expected = labels.cpu()

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits / math.exp(log_temperature), expected))

    return float(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").fun)


def _teacher(dense: nn.Module, device: torch.device) -> LiveTeacher:
    autocast = torch.bfloat16 if device.type == "cuda" else None
    return LiveTeacher(copy.deepcopy(dense).to(device), (), autocast=autocast)
