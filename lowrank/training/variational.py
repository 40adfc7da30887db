"""Training of variational layers: their random numbers, and their divergence as a part of the loss.

The loss is the mean data term plus the divergence over the number of training examples, which is the negative evidence
lower bound of the whole set over that number (Louizos, Ullrich, Welling 2017, section 3). The divergence is weighted by
a factor that rises from 0 to `kl_weight` over the first epochs. Letters: B images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.data import Stream
from lowrank.layers import Bayesian, variational_layers


class CounterNoise:
    """Standard normal numbers that are a function of (seed, epoch, index of the image, draw) alone.

    So an epoch can be repeated from its beginning or from its middle, in batches and processes of any number.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._stream = Stream(seed, 0, "weight noise")
        self._indices = torch.zeros(0, dtype=torch.int64)

    def begin_epoch(self, epoch: int) -> None:
        """Take the numbers of an epoch, counted from 0."""
        self._stream = Stream(self._seed, epoch, "weight noise")

    def select(self, indices: Tensor) -> None:
        """Take the numbers of these images, int64 (B,), which the next forward pass must have."""
        self._indices = indices

    def normal(self, site: int, examples: int, count: int, device: torch.device) -> Tensor:
        """Return float32 (examples, count) for the images that were selected."""
        if len(self._indices) != examples:
            raise ValueError(f"noise was selected for {len(self._indices)} images, but {examples} run")
        return self._stream.normal(self._indices.to(device), site, count)


class VariationalTraining:
    """What the training of a network with variational layers adds to each step.

    Attributes:
        layers: the variational layers by name.
        noise: their random numbers.
    """

    def __init__(self, network: nn.Module, method: Bayesian, *, seed: int, examples: int, steps_per_epoch: int):
        """Give the layers their random numbers.

        Args:
            network: has at least one variational layer.
            method: weighs the divergence.
            seed: of the random numbers.
            examples: images of the training split.
            steps_per_epoch: how many batches an epoch has.
        """
        self.layers = dict(variational_layers(network))
        self.noise = CounterNoise(seed)
        for site, layer in enumerate(self.layers.values()):
            layer.noise, layer.site = self.noise, site
        self._method, self._examples, self._steps = method, examples, steps_per_epoch
        self._weight = 0.0
        self.initial_kl = self.kl().item()

    def begin_step(self, epoch: int, step: int) -> None:
        """Set the weight of the divergence and the epoch of the random numbers.

        Args:
            epoch: epochs done.
            step: counts from 0 within the epoch.
        """
        self.noise.begin_epoch(epoch)
        self._weight = self.weight_at(epoch + step / self._steps)

    def weight_at(self, epochs: float) -> float:
        """Return the weight of the divergence after so many epochs."""
        warmup = self._method.warmup_epochs
        return self._method.kl_weight * (min(1.0, epochs / warmup) if warmup > 0 else 1.0)

    def kl(self) -> Tensor:
        """Compute the divergence of all layers over the number of training examples, in nats: ()."""
        return torch.stack([layer.kl() for layer in self.layers.values()]).sum() / self._examples

    def loss(self) -> tuple[Tensor, Tensor]:
        """Compute the divergence as it is added to the loss, and as it is: two of ()."""
        kl = self.kl()
        return self._weight * kl, kl

    def clip(self) -> None:
        """Bound the log variances of all layers after an update."""
        for layer in self.layers.values():
            layer.clip()

    def not_finite(self) -> str | None:
        """Name the first layer whose divergence is not finite; None if all are."""
        return next((name for name, layer in self.layers.items() if not bool(torch.isfinite(layer.kl()))), None)

    def largest(self) -> str:
        """Name the layer with the largest divergence."""
        return max(self.layers, key=lambda name: float(self.layers[name].kl()))
