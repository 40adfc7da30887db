"""What became of a trained network: the smaller network with its counts, its errors and a report of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name.
        kind: "linear", or the kernel such as "3 x 3".
        method: its factors; "dense" where it stays.
        ranks: the ranks of one group; empty where it stays dense.
        params: parameters after.
        dense_params: parameters before.
        weight_error: ||W - dense|| / ||dense||; None where the weight was not touched.
        output_error: root of the share of the outputs' variance that is missed; None likewise.
        reason: why it stays dense; "" where it does not.
    """

    name: str
    kind: str
    method: str
    ranks: tuple[int, ...]
    params: int
    dense_params: int
    weight_error: float | None
    output_error: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed network and what is known of it.

    Attributes:
        network: the network with factors in its layers, in evaluation mode.
        method: the factors' kind; "mixed" where layers differ.
        allocation: how ranks were shared out.
        layers: one report a layer.
        params: parameters, exactly.
        dense_params: those of the given network.
        mult_adds: mult-adds for one image, as torch counts what runs.
        dense_mult_adds: those of the given network.
        divergence: mean Kullback-Leibler divergence (nats) from the given network on the images that chose.
        error_before: error of the given network in percent on the images that chose; None without labels.
        error_after: error of the compressed network on the same images, before any training.
        batch_norms_reestimated: whether running statistics of batch norms were replaced.
        projected_attention: how many attention modules became a `ProjectedAttention`.
        seconds: time that it took, without the preparation that several budgets share.
    """

    network: nn.Module = field(repr=False)
    method: str
    allocation: str
    layers: tuple[LayerReport, ...] = field(repr=False)
    params: int
    dense_params: int
    mult_adds: int
    dense_mult_adds: int
    divergence: float
    error_before: float | None
    error_after: float | None
    batch_norms_reestimated: bool
    projected_attention: int
    seconds: float
