"""Remove the groups of a trained variational network whose score is over a threshold.

A group that falls away is first masked: its weights are 0, and where it is an output channel, what its batch norm adds
is 0 too, since a batch norm would turn a channel of zeros into a constant. Channels that nothing uses any more are then
cut out of every layer that has them. So the smaller network has the outputs of the masked one. Letters: G groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank.compression.bayesian.bit_widths import BitWidth, bit_width
from lowrank.compression.bayesian.channels import Channels, Structure, find_structure
from lowrank.compression.bayesian.variational_network import posterior_mean
from lowrank.layers import VariationalLinear, variational_layers
from lowrank.networks import ImageShape, NetworkSettings, make_network

Masks = Mapping[str, Tensor]  # by layer, bool (G,), True for a group that stays


def group_scores(network: nn.Module) -> dict[str, Tensor]:
    """Compute the score of each group: the group with the largest score is removed first.

    Args:
        network: has variational layers.

    Returns:
        float32 (G,) on the CPU, by name of the layer.
    """
    with torch.no_grad():
        return {name: layer.scales.scores().float().cpu() for name, layer in variational_layers(network)}


def groups_below(scores: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Say which groups stay at a threshold.

    Args:
        scores: from `group_scores`.
        threshold: groups with a higher score are removed, but of each layer the one with the lowest score stays; the
            first of several that are equal.

    Returns:
        The masks.
    """
    masks = {name: values <= threshold for name, values in scores.items()}
    for name, values in scores.items():
        masks[name][values.argmin()] = True
    return masks


def keep_share(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Lower the scores of the groups that no threshold may remove.

    Args:
        scores: from `group_scores`.
        share: of the groups of each layer, those with the lowest scores; rounded up.

    Returns:
        The scores, minus infinity for these groups.
    """
    lowered = {name: values.clone() for name, values in scores.items()}
    for values in lowered.values():
        values[values.argsort(stable=True)[: math.ceil(share * len(values))]] = -math.inf
    return lowered


class Remover:
    """Knows a trained variational network and makes smaller ones of it.

    Attributes:
        scores: of the groups, by layer; minus infinity for those that stay at every threshold.
        structure: the shared channels; None where groups are only masked.
    """

    def __init__(self, network: nn.Module, settings: NetworkSettings, min_share: float = 0.0):
        """Read the network.

        Args:
            network: has variational layers; it is not changed.
            settings: of the dense network.
            min_share: of each layer's groups, that stay at every threshold; 0 for one group.
        """
        self.scores = keep_share(group_scores(network), min_share)
        self.structure = find_structure(network, settings)
        self._settings, self._network = settings, network
        self._linear = {name for name, layer in variational_layers(network) if isinstance(layer, VariationalLinear)}

    @property
    def is_masked(self) -> bool:
        """Whether groups are only masked, because nobody has worked out this network's channels."""
        return self.structure is None

    @property
    def network_name(self) -> str:
        """Name of the network, for messages."""
        return self._settings.name

    def masked_parameters(self, threshold: float) -> int:
        """Count the parameters that are masked at a threshold, in the layers alone."""
        masks, total = groups_below(self.scores, threshold), 0
        for name, layer in variational_layers(self._network):
            bias = 0 if layer.bias is None or name in self._linear else 1
            group_size = layer.weight_mean.numel() // len(masks[name]) + bias
            total += group_size * int((~masks[name]).sum())
        return total

    def bit_widths(self, threshold: float) -> dict[str, BitWidth]:
        """Find the bits that the weights which stay need, by layer."""
        masks, widths = groups_below(self.scores, threshold), {}
        present = self._present_channels(masks) if self.structure is not None else []
        with torch.no_grad():
            for name, layer in variational_layers(self._network):
                weight, variance = layer.weight.cpu(), layer.weight_variance().cpu()
                rows, columns = (
                    torch.ones(weight.shape[0], dtype=torch.bool),
                    torch.ones(weight.shape[1], dtype=torch.bool),
                )
                if self.structure is None:
                    rows, columns = (rows, masks[name]) if name in self._linear else (masks[name], columns)
                else:
                    for channels, mask in zip(self.structure.channels, present, strict=True):
                        rows = mask if name in channels.producers else rows
                        columns = mask if name in channels.consumers else columns
                widths[name] = bit_width(weight[rows][:, columns], variance[rows][:, columns])
        return widths

    def settings_at(self, threshold: float) -> NetworkSettings:
        """Describe the network that is left at a threshold; a network that is only masked stays as it is."""
        if self.structure is None:
            return self._settings
        counts = [int(present.sum()) for present in self._present_channels(groups_below(self.scores, threshold))]
        return self._settings.model_copy(update=self.structure.fields(counts))

    def masked(self, threshold: float) -> nn.Module:
        """Make the network of full size whose removed groups are masked.

        Args:
            threshold: of the scores.

        Returns:
            A plain network in evaluation mode, with the posterior means of all weights that stay.
        """
        network, masks = posterior_mean(self._network), groups_below(self.scores, threshold)
        modules = dict(network.named_modules())
        with torch.no_grad():
            for name, mask in masks.items():
                _mask_layer(modules[name], mask, is_input=name in self._linear)
            if self.structure is not None:
                for channels, present in zip(self.structure.channels, self._present_channels(masks), strict=True):
                    for producer in channels.producers:
                        _mask_outputs(modules[producer], present)
                    self._mask_norms(modules, channels, masks, present)
        return network

    def removed(self, threshold: float, image_shape: ImageShape, classes: int) -> nn.Module:
        """Make the smaller network.

        Args:
            threshold: of the scores.
            image_shape: (C, H, W).
            classes: number of classes.

        Returns:
            A plain network in evaluation mode with the outputs of `masked`; where groups are only masked, that one.
        """
        masked = self.masked(threshold)
        if self.structure is None:
            return masked
        with torch.random.fork_rng(devices=[]):
            smaller = make_network(self.settings_at(threshold), image_shape, classes)
        present = self._present_channels(groups_below(self.scores, threshold))
        device = next(masked.parameters()).device
        state = _cut(masked, self.structure, [mask.to(device) for mask in present])
        smaller.to(device).load_state_dict(state)
        return smaller.eval()

    def _mask_norms(
        self, modules: Mapping[str, nn.Module], channels: Channels, masks: Masks, present: Tensor
    ) -> None:  # fmt: skip
        """Set what batch norms add to 0 in the channels that are gone, also where another layer still gives them."""
        for producer, norm_name in zip(channels.producers, channels.norms, strict=True):
            norm = modules[norm_name]
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            own_mask = masks[producer] if producer in masks and producer not in self._linear else present
            absent = ~(present & own_mask).to(norm.weight.device)
            norm.weight[absent] = 0
            norm.bias[absent] = 0

    def _present_channels(self, masks: Masks) -> list[Tensor]:
        """Say which of the shared channels stay: bool, one tensor for each entry of the structure; at least one each.

        A channel falls away if every layer that gives it is a convolution whose group is gone, or if every layer that
        takes it is a linear map whose group is gone.
        """
        assert self.structure is not None
        present = []
        for channels in self.structure.channels:
            absent = torch.zeros(self._size(channels), dtype=torch.bool)
            for names, linear in ((channels.producers, False), (channels.consumers, True)):
                if names and all(name in masks and (name in self._linear) == linear for name in names):
                    absent |= ~torch.stack([masks[name] for name in names]).any(0)
            if bool(absent.all()):  # two layers disagree about every channel
                absent[0] = False
            present.append(~absent)
        return present

    def _size(self, channels: Channels) -> int:
        side, names = ("out", channels.producers) if channels.producers else ("in", channels.consumers)
        layer = self._network.get_submodule(names[0])
        count = getattr(layer, f"{side}_channels", None) or getattr(layer, f"{side}_features")
        assert isinstance(count, int)
        return count


def _mask_layer(layer: nn.Module, mask: Tensor, *, is_input: bool) -> None:
    """Set the weights of the groups that are gone to 0."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if is_input:
        layer.weight[:, ~mask.to(layer.weight.device)] = 0
    else:
        _mask_outputs(layer, mask)


def _mask_outputs(layer: nn.Module, present: Tensor) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    absent = ~present.to(layer.weight.device)
    layer.weight[absent] = 0
    if layer.bias is not None:
        layer.bias[absent] = 0


def _cut(network: nn.Module, structure: Structure, present: Sequence[Tensor]) -> dict[str, Tensor]:
    """Cut the channels that fall away out of a masked network's tensors."""
    state = network.state_dict()
    for channels, mask in zip(structure.channels, present, strict=True):
        indices = mask.nonzero().flatten()
        for name in _tensors_of(state, channels.producers):
            state[name] = state[name].index_select(0, indices)
        for name in _tensors_of(state, channels.norms):
            if state[name].dim() > 0:  # the count of batches has no channels
                state[name] = state[name].index_select(0, indices)
        for consumer in channels.consumers:
            weight = state[f"{consumer}.weight"]
            state[f"{consumer}.weight"] = weight.index_select(1, indices)
        if not channels.producers:  # the pixels of an mlp
            selected = state.get("selected")
            state["selected"] = indices if selected is None else selected[indices]
    return state


def _tensors_of(state: Mapping[str, Tensor], modules: Sequence[str]) -> Iterator[str]:
    names = itertools.product(modules, ("weight", "bias", "running_mean", "running_var"))
    return (f"{module}.{tensor}" for module, tensor in names if f"{module}.{tensor}" in state)
