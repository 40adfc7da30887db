"""The settings of Bayesian compression, a method whose sizes follow from training instead of being set before it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.bayesian.layers import VariationalConv2d, VariationalLayer, VariationalLinear
from lowrank.layers.bayesian.priors import GroupScales, HorseshoeScales, NormalJeffreysScales
from lowrank.layers.dense import Dense


class Bayesian(Method):
    """Variational layers in training, of which a smaller dense network is left.

    It counts as the dense layer: that is the posterior mean before any group is removed.

    Attributes:
        AFTER_TRAINING: the fields of removal and fine-tuning, on which the training of the posterior does not depend.
        prior: of the scales of groups.
        warmup_epochs: over which the weight of the divergence in the loss rises from 0 to 1.
        kl_weight: of the divergence after that; 1 is the evidence lower bound.
        max_std: largest standard deviation of a weight before it is scaled.
        horseshoe_scale: of the half-Cauchy prior of a layer's scale.
        threshold: score above which a group counts as removed in the records, and is removed where no budget is given.
        min_groups: groups that each layer keeps at least within a budget, as a share of those that it would keep if all
            layers kept an equal share of theirs; 0 keeps one group.
        finetune_epochs: of training after the removal, without any noise.
        finetune_lr: learning rate of that training, which falls to 0 along a cosine.
        finetune_kd_weight: share of distillation in the loss of that training. It imitates the trial's teacher or, in a
            trial without one, the network before the removal.
    """

    AFTER_TRAINING: ClassVar[frozenset[str]] = frozenset(
        {"min_groups", "finetune_epochs", "finetune_lr", "finetune_kd_weight"}
    )

    name: Literal["bayesian"] = "bayesian"
    prior: Literal["normal_jeffreys", "horseshoe"] = "normal_jeffreys"
    warmup_epochs: float = Field(default=5.0, ge=0, le=10_000)
    kl_weight: float = Field(default=1.0, gt=0, le=1000)
    max_std: float = Field(default=0.2, gt=0, le=1)
    horseshoe_scale: float = Field(default=1e-5, gt=0, le=1)
    threshold: float = Field(default=0.0, ge=-20, le=20)
    min_groups: float = Field(default=0.5, ge=0, le=1)
    finetune_epochs: int = Field(default=0, ge=0, le=10_000)
    finetune_lr: float = Field(default=0.001, gt=0, le=10)
    finetune_kd_weight: float = Field(default=0.0, ge=0, le=1)

    def params(self, shape: ConvShape) -> int:
        return Dense().params(shape)

    def mult_adds(self, shape: ConvShape) -> int:
        return Dense().mult_adds(shape)

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        """Return what is built; fields that came later are left out at their defaults, so that ids stay."""
        late = {"finetune_kd_weight", "min_groups"}
        changed = self.model_dump(include=late, exclude_defaults=True)
        fields = {**self.model_dump(exclude={"name", *late}), **changed}
        return (self.name, *(value for _, value in sorted(fields.items())))

    def infeasible(self, shape: ConvShape) -> str | None:
        return f"it has no grouped form, but the layer has {shape.groups} groups" if shape.groups > 1 else None

    def build(self, shape: ConvShape) -> nn.Module:
        conv = Dense().build(shape)
        assert isinstance(conv, nn.Conv2d)
        return self.make_layer(conv)

    def make_scales(self, groups: int) -> GroupScales:
        """Make the posterior of the scales of so many groups, at its start."""
        if self.prior == "horseshoe":
            return HorseshoeScales(groups, self.horseshoe_scale)
        return NormalJeffreysScales(groups)

    def make_layer(self, layer: nn.Conv2d | nn.Linear) -> VariationalLayer:
        """Make the variational layer that begins at a plain one.

        Args:
            layer: linear, or an ungrouped convolution with a padding of zeros.

        Returns:
            The layer, on the device of the plain one.
        """
        weight: Tensor = layer.weight
        if isinstance(layer, nn.Linear):
            variational: VariationalLayer = VariationalLinear(
                weight, layer.bias, self.make_scales(layer.in_features), self.max_std
            )
        else:
            padding: Any = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
            variational = VariationalConv2d(
                weight, layer.bias, self.make_scales(layer.out_channels), self.max_std,
                stride=(layer.stride[0], layer.stride[1]), padding=padding,
                dilation=(layer.dilation[0], layer.dilation[1]),
            )  # fmt: skip
        return variational.to(weight.device).train(layer.training)
