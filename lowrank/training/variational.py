"""Training of variational layers: their random numbers, and their divergence as a part of the loss.

The loss is the mean data term plus the divergence over the number of training examples, which is the negative evidence
lower bound of the whole set over that number (Louizos, Ullrich, Welling 2017, section 3). The divergence is weighted by
a factor that rises from 0 to `kl_weight` over the first epochs. Letters: B images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.compression import Remover, VariationalSettings, groups_below, network_plan
from lowrank.data import Stream, normal_numbers
from lowrank.layers import Dense, variational_layers
from lowrank.networks import ImageShape

KL_OF_LAYER, ALIVE, SIGNAL_TO_NOISE = "kl.", "alive.", "snr."  # prefixes of metrics, a layer's name follows
SNR_EDGES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)  # of the histogram, as powers of 10


SGD_NOTICE = (
    "the steps of SGD hardly move the variances of variational layers, so that groups are removed by their size alone; "
    "`train.optimizer: adamw` moves them"
)


class CounterNoise:
    """Standard normal numbers that are a function of (seed, epoch, index of the image, draw) alone.

    So an epoch can be repeated from its beginning or from its middle, in batches and processes of any number. What a
    step depends on is in tensors that stay at one address, so that it can be recorded.

    Args:
        seed: of the training.
        draws: of each image in a forward pass.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, draws: int, device: torch.device):
        self._seed = seed
        self._keys = torch.zeros(draws + 1, dtype=torch.int64, device=device)
        self._indices = torch.zeros(0, dtype=torch.int64, device=device)
        self._epoch = -1
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Take the numbers of an epoch, counted from 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._keys.copy_(torch.tensor(Stream(self._seed, epoch, "weight noise").keys(len(self._keys) - 1)))

    def select(self, indices: Tensor) -> None:
        """Take the numbers of these images, int64 (B,), which the next forward pass must have."""
        self._indices = indices.to(self._keys.device)

    def normal(self, site: int, examples: int, count: int, device: torch.device) -> Tensor:
        """Return float32 (examples, count) for the images that were selected."""
        if len(self._indices) != examples:
            raise ValueError(f"noise was selected for {len(self._indices)} images, but {examples} run")
        return normal_numbers(self._indices, self._keys[0], self._keys[site + 1], count)


class VariationalTraining:
    """What the training of a network with variational layers adds to each step.

    Attributes:
        layers: the variational layers by name.
        noise: their random numbers.
    """

    def __init__(
        self, network: nn.Module, settings: VariationalSettings, *, seed: int, examples: int, steps_per_epoch: int,
        image_shape: ImageShape, classes: int,
    ):  # fmt: skip
        """Give the layers their random numbers.

        Args:
            network: has at least one variational layer; on the device of the training.
            settings: what it was made from; they weigh the divergence.
            seed: of the random numbers.
            examples: images of the training split.
            steps_per_epoch: how many batches an epoch has.
            image_shape: (C, H, W).
            classes: number of classes.
        """
        self.layers = dict(variational_layers(network))
        device = next(network.parameters()).device
        self.noise = CounterNoise(seed, 2 * len(self.layers), device)
        for site, layer in enumerate(self.layers.values()):
            layer.noise, layer.site = self.noise, site
        self.settings, self._network = settings, network
        self._method, self._examples, self._steps = settings.method, examples, steps_per_epoch
        self._image_shape, self._classes = image_shape, classes
        self._weight = 0.0
        self._weight_tensor = torch.zeros((), device=device)  # the same number, which a recorded step reads
        with torch.no_grad():
            self._initial_kls = {name: layer.kl().item() for name, layer in self.layers.items()}

    def begin_step(self, epoch: int, step: int) -> None:
        """Set the weight of the divergence and the epoch of the random numbers.

        Args:
            epoch: epochs done.
            step: counts from 0 within the epoch.
        """
        self.noise.begin_epoch(epoch)
        self._weight = self.weight_at(epoch + step / self._steps)
        self._weight_tensor.fill_(self._weight)

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
        return self._weight_tensor * kl, kl

    def clip(self) -> None:
        """Bound the log variances of all layers after an update."""
        for layer in self.layers.values():
            layer.clip()

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """Name the first layer whose divergence is not finite; None if all are."""
        return next((name for name, layer in self.layers.items() if not bool(torch.isfinite(layer.kl()))), None)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Read what the posterior looks like now, which waits for the device.

        Returns:
            kl_weight; sparsity, the share of weights in groups over the method's threshold, and compression, the
            parameters of the network over those that are left at that threshold; and by layer kl.LAYER in nats,
            alive.LAYER (groups below the threshold) and snr.LAYER.EDGE, the shares of weights whose signal-to-noise
            ratio is below 10^EDGE and not below the edge before it (`inf` for the rest).
        """
        remover = Remover(self._network, self.settings.network)
        threshold = self._method.threshold
        masks = groups_below(remover.scores, threshold)
        metrics: dict[str, float] = {}
        weights = masked = 0
        for name, layer in self.layers.items():
            metrics[KL_OF_LAYER + name] = layer.kl().item()
            metrics[ALIVE + name] = float(masks[name].sum())
            weights += layer.weight_mean.numel()
            masked += layer.weight_mean.numel() // len(masks[name]) * int((~masks[name]).sum())
            metrics |= {
                f"{SIGNAL_TO_NOISE}{name}.{edge}": share for edge, share in _snr_shares(layer.signal_to_noise())
            }
        shape = (self._image_shape, self._classes)
        before = network_plan(self.settings.network, *shape).params(Dense())
        after = network_plan(remover.settings_at(threshold), *shape).params(Dense())
        if remover.is_masked:
            after -= remover.masked_parameters(threshold)
        return metrics | {"kl_weight": self._weight, "sparsity": masked / weights, "compression": before / after}

    @property
    def initial_kl(self) -> float:
        """The divergence of all layers before the training, over the number of training examples, in nats."""
        return sum(self._initial_kls.values()) / self._examples

    @torch.no_grad()
    def grown_most(self) -> str:
        """Name the layer whose divergence has grown most since the start."""
        return max(self.layers, key=lambda name: self.layers[name].kl().item() / max(1.0, self._initial_kls[name]))


def _snr_shares(ratios: Tensor) -> list[tuple[str, float]]:
    """Give the histogram of a layer's signal-to-noise ratios as (upper edge, share of the weights)."""
    edges = torch.tensor([10.0**edge for edge in SNR_EDGES], device=ratios.device)
    counts = torch.bucketize(ratios.flatten(), edges, right=True).bincount(minlength=len(SNR_EDGES) + 1)
    names = [*(f"{edge:g}" for edge in SNR_EDGES), "inf"]
    return list(zip(names, (counts.double() / ratios.numel()).tolist(), strict=True))
