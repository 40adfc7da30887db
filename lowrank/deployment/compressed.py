"""What became of a trained network: the smaller network with its counts, its errors and a report of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

NO_PLAIN_LAYER = "it is no convolution or linear map"


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name.
        kind: "linear", or the kernel such as "3 x 3"; of any other module its class, of a lone tensor "parameter".
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

    @classmethod
    def unreplaced(cls, name: str, kind: str, params: int, reason: str) -> LayerReport:
        """Report a layer that is never replaced.

        Args:
            name: its name.
            kind: as in the attribute.
            params: its parameters.
            reason: why it stays.

        Returns:
            The report.
        """
        return cls(
            name=name, kind=kind, method="dense", ranks=(), params=params, dense_params=params, weight_error=None,
            output_error=None, reason=reason,
        )  # fmt: skip


def other_parameters(network: nn.Module) -> list[LayerReport]:
    """Report what has parameters and is neither a convolution nor a linear map.

    Args:
        network: any network.

    Returns:
        One report for each such module without inner modules, and for each parameter of any other; a parameter that
        two modules share counts once.
    """
    reports: list[LayerReport] = []
    plain = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    seen = {id(value) for layer in plain for value in layer.parameters()}
    for name, module in network.named_modules():
        counts = {key: value.numel() for key, value in module.named_parameters(recurse=False) if id(value) not in seen}
        seen |= {id(value) for value in module.parameters(recurse=False)}
        kind = "parameter"
        if counts and next(module.children(), None) is None:
            kind, counts = type(module).__name__, {"": sum(counts.values())}
        reports += [
            LayerReport.unreplaced(".".join(filter(None, (name, key))), kind, count, NO_PLAIN_LAYER)
            for key, count in counts.items()
        ]
    return reports


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
