"""Memory for time: weights that are rebuilt from factors may be rebuilt once more in the backward pass.

A rebuild keeps every intermediate product until the backward pass: L matrices of N x N for an ACDC of L layers. With
a checkpoint neither they nor the weight are kept, only the layer's input; the convolution itself is not run again,
since the second run stops as soon as its inputs are there. A linear map keeps the weight.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from torch import nn

from lowrank.layers.base import StructuredMap


def checkpoint_rebuild(network: nn.Module, on: bool = True) -> nn.Module:
    """Set, in place, whether every structured map of `network` checkpoints its rebuild; returns the network.

    Values and gradients stay the same to the bit. Maps that never form their weight are not changed by it.
    """
    for module in network.modules():
        if isinstance(module, StructuredMap):
            module.rebuild_checkpoint = on
    return network
