"""Means and variances of batch norms, estimated again over calibration images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lowrank.compression.from_trained.in_order import Batches


@torch.no_grad()
def reestimate_batch_norms(network: nn.Module, batches: Batches) -> nn.Module:
    """Copy a network and replace the running statistics of its batch norms by those of the calibration images.

    Args:
        network: in evaluation mode; unchanged.
        batches: gives the calibration images (B, C, H, W) anew at each call.

    Returns:
        The copy in evaluation mode. Dropout and everything else than batch norms stays as in evaluation.
    """
    renewed = copy.deepcopy(network).eval()
    norms = [module for module in renewed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for images in batches():
        renewed(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return renewed.eval()
