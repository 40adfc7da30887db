"""A vision transformer for small images (Dosovitskiy et al. 2021), pre-norm, with learned positions.

The mean over the patches is classified, as in Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k", where it
is as accurate as a class token. Without a class token the tokens of every block are an image of features: blocks take
and give (B, D, H', W'), so that distillation compares them with those of any convolutional network.

Letters: B batch, P patch, H' x W' patches of an image, N = H' W', D embedding, A heads.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import InputError
from lowrank.networks.base import Network
from lowrank.networks.images import ImageShape

PATCH, DEPTH, WIDTH, HEADS = 4, 6, 192, 3
MLP_RATIO = 4
INIT_STD = 0.02  # of weights and positions
EPSILON = 1e-6  # of layer norms
TAPS = 3


class LearnedPositions(nn.Module):
    """Adds a learned vector to each patch: (B, H', W', D) -> the same.

    Args:
        height: H', patches in a column.
        width: W', patches in a row.
        features: D, numbers of a patch.
    """

    def __init__(self, height: int, width: int, features: int):
        super().__init__()
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(height, width, features), std=INIT_STD))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H', W', D) -> the same."""
        return x + self.positions


class SelfAttention(nn.Module):
    """Multi-head self-attention of all patches, with one linear map for query, key and value."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H', W', D) -> the same."""
        by_head = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1))  # (B, N, 3, A, D / A)
        query, key, value = by_head.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, A, N, D / A)
        return self.proj(attended.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, features: int):
        super().__init__()
        self.fc1 = nn.Linear(features, MLP_RATIO * features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) -> the same."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention, then two linear maps, each after a layer norm and beside an identity."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(features, eps=EPSILON)
        self.attn = SelfAttention(features, heads)
        self.norm2 = nn.LayerNorm(features, eps=EPSILON)
        self.mlp = MLP(features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H', W') -> the same."""
        x = x.permute(0, 2, 3, 1)  # views alone: patches lie together in memory throughout
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.permute(0, 3, 1, 2)


class ViT(Network):
    """A vision transformer for images of one fixed shape; its blocks' linear maps are substituted.

    Args:
        image_shape: (C, H, W), where P divides H and W.
        classes: number of classes.
        width: multiple of the 192 features, rounded to whole features a head.
        patch: P.
        depth: number of blocks.
        heads: A.

    Raises:
        InputError: the patches do not cover the image.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ("patches", "classifier")
    linear_maps: ClassVar[tuple[str, ...]] = ("blocks.*",)

    def __init__(
        self,
        image_shape: ImageShape,
        classes: int,
        width: float = 1.0,
        *,
        patch: int = PATCH,
        depth: int = DEPTH,
        heads: int = HEADS,
    ):
        super().__init__()
        channels, height, breadth = image_shape
        if height % patch or breadth % patch:
            raise InputError(
                f"vit cuts images into patches of {patch} x {patch}, so both sides must be multiples of {patch}, "
                f"but got {height} x {breadth}"
            )
        features = heads * max(1, round(WIDTH * width / heads))
        self.patches = nn.Conv2d(channels, features, patch, stride=patch)
        self.positions = LearnedPositions(height // patch, breadth // patch, features)
        self.blocks = nn.Sequential(*(Block(features, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(features, eps=EPSILON)
        self.classifier = nn.Linear(features, classes)
        ends = sorted({math.ceil(depth * part / TAPS) - 1 for part in range(1, TAPS + 1)})
        self.taps = tuple(f"blocks.{end}" for end in ends)  # type: ignore[misc]
        self._init_weights()

    def _init_weights(self) -> None:
        """Draw linear maps as in the published network, and the map of patches, a linear one, by its fan-in."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = INIT_STD if isinstance(module, nn.Linear) else 1 / math.sqrt(module.weight[0].numel())
                nn.init.trunc_normal_(module.weight, std=std)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.positions(self.patches(x).permute(0, 2, 3, 1).contiguous())
        x = self.blocks(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.classifier(self.norm(x).mean((1, 2)))
