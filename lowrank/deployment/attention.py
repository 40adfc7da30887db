"""Gives the attention of a trained network projections of its own, which can then be factorised."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowrank.layers import disable_fused_encoders, project_attention
from lowrank.utils import first_line


@torch.no_grad()
def project_where_equal(network: nn.Module, images: Tensor, progress: Callable[[str], None]) -> tuple[nn.Module, int]:
    """Give attention projections of its own, unless the network then computes something else.

    A network may read the weights of its attention by itself; its attention stays as it is.

    Args:
        network: in evaluation mode; is changed where it has transformer encoders.
        images: on which the logits are compared.
        progress: called with the reason where attention stays.

    Returns:
        The network, and how many attention modules were replaced.
    """
    disable_fused_encoders(network)
    projected = copy.deepcopy(network)
    count = project_attention(projected)
    if count == 0:
        return network, 0
    before = network(images).double()
    try:
        after = projected(images).double()
    except Exception as error:  # the network's own code may raise anything
        progress(f"attention stays as it is, since the network reads its weights: {first_line(error)}")
        return network, 0
    is_precise = next(projected.parameters()).dtype in (torch.float32, torch.float64)
    difference = float((after - before).abs().max()) / max(1e-12, float(before.abs().max()))
    if not difference <= (1e-3 if is_precise else 5e-2):
        progress(f"attention stays as it is, since the logits would change by {difference:.1%}")
        return network, 0
    return projected, count
