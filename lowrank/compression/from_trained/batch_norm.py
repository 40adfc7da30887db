"""Estimate the means and variances of batch norms anew, over calibration images.

Compressed layers give other outputs than dense ones, so the statistics of the trained network no longer fit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.allocation import divergence
from lowrank.compression.from_trained.calibration import network_logits
from lowrank.compression.from_trained.in_order import Batches


@dataclass(frozen=True)
class NearerNetwork:
    """A copy of a network with other batch norms, which is nearer to the network that both came from.

    Attributes:
        network: the copy, in evaluation mode.
        logits: its outputs for the images that judge (B, K).
        divergence: of these outputs from the reference, in nats.
    """

    network: nn.Module
    logits: Tensor
    divergence: float


@torch.no_grad()
def reestimate_batch_norms(network: nn.Module, batches: Batches) -> nn.Module:
    """Copy a network and estimate the statistics of its batch norms again.

    The running statistics become those of calibration images. Only the batch norms run in training mode; dropout and
    all other modules run in evaluation mode.

    Args:
        network: is not changed.
        batches: a function that gives the calibration images, batches of (B, C, H, W), from the first at each call.

    Returns:
        The copy in evaluation mode.
    """
    clone = copy.deepcopy(network).eval()
    norms = [module for module in clone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]  # others have none
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then takes the plain mean over all batches
        norm.train()
    for images in batches():
        clone(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return clone.eval()


def find_nearer_batch_norms(
    network: nn.Module, batches: Batches, images: Tensor, reference: Tensor, before: float
) -> NearerNetwork | None:
    """Estimate batch norms again if that brings the network nearer to a reference.

    Args:
        network: is not changed.
        batches: as for `reestimate_batch_norms`.
        images: those that judge (B, C, H, W).
        reference: the logits to come near to, for these images (B, K).
        before: the divergence of the network's own outputs from the reference, in nats.

    Returns:
        The copy; None if it is no nearer.
    """
    renewed = reestimate_batch_norms(network, batches)
    logits = network_logits(renewed, images)
    after = divergence(logits, reference)
    return NearerNetwork(renewed, logits, after) if after < before else None
