"""Attention whose projections are linear maps of their own, so that each can be replaced by a structured one.

`nn.MultiheadAttention` keeps the weights of its query, key and value projections in one tensor and uses the weight of
its output projection without running that module. `ProjectedAttention` computes the same through four modules.

Letters: B batch, L queries, S keys, H heads, E embedding, D = E / H.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import InputError
from lowrank.layers.linear import as_linear

_INPUTS = ("query", "key", "value")


class _NoPackedWeight:
    """Stands for the packed weight that `nn.TransformerEncoder` passes to its fused kernel, and makes it refuse that.

    The kernel is refused where one of its tensors overrides torch's functions.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        raise TypeError("ProjectedAttention has no packed `in_proj_weight`; its weights are in q_proj, k_proj, v_proj")


class ProjectedAttention(nn.Module):
    """Multi-head attention that runs its four projections as modules.

    It computes what an `nn.MultiheadAttention` with the same weights computes, in training with the same random numbers
    for dropout. The fused kernels of `nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and `nn.TransformerEncoder`
    would bypass these modules; torch refuses them for this class. So nested tensors, which only those kernels take, are
    refused with an `InputError`.

    Args:
        q_proj: the query projection, query features -> E.
        k_proj: the key projection, key features -> E.
        v_proj: the value projection, value features -> E.
        out_proj: the output projection, E -> E.
        num_heads: H.
        dropout: probability to drop an attention weight in training.
        batch_first: whether batched inputs and outputs are (B, L, E); else (L, B, E).
        bias_k: one more key (1, 1, E), after the projection; None without.
        bias_v: its value (1, 1, E); given if and only if `bias_k` is.
        add_zero_attn: whether one more key and value of zeros are added.

    Raises:
        InputError: the heads do not divide E, or only one of `bias_k` and `bias_v` is given.
    """

    # What torch reads before it takes a fused kernel; each of these values refuses one.
    in_proj_weight = _NoPackedWeight()
    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        out_proj: nn.Linear,
        num_heads: int,
        *,
        dropout: float = 0.0,
        batch_first: bool = False,
        bias_k: nn.Parameter | None = None,
        bias_v: nn.Parameter | None = None,
        add_zero_attn: bool = False,
    ):
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = q_proj.out_features, k_proj.in_features, v_proj.in_features
        self.num_heads, self.dropout = num_heads, dropout
        self.batch_first, self.add_zero_attn = batch_first, add_zero_attn
        if num_heads < 1 or self.embed_dim % num_heads:
            raise InputError(f"`num_heads` must divide the {self.embed_dim} embedding features, but got {num_heads}")
        if (bias_k is None) != (bias_v is None):
            raise InputError("`bias_k` and `bias_v` must be given together, but got one of them")
        self.head_dim = self.embed_dim // num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.bias_k, self.bias_v = bias_k, bias_v

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention) -> ProjectedAttention:
        """Make the module that computes what a trained attention computes.

        Args:
            attention: is not changed; its weights are copied.

        Returns:
            The module, on the same device, with the same dtype and mode; what is frozen stays frozen.

        Raises:
            InputError: `attention` is of a subclass, hooks are attached to it, or its weights are computed from other
                parameters.
        """
        reason = _why_kept(attention)
        if reason:
            raise InputError(f"attention can be projected if it is a plain nn.MultiheadAttention, but {reason}")
        packed, bias = attention.in_proj_weight, attention.in_proj_bias
        if packed is None:
            separate = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
            weights = [(weight, weight) for weight in separate]
        else:
            weights = [(part, packed) for part in packed.chunk(3)]
        biases = [None, None, None] if bias is None else bias.chunk(3)
        q_proj, k_proj, v_proj = (
            _copied_linear(weight, part, source, bias) for (weight, source), part in zip(weights, biases, strict=True)
        )
        output = attention.out_proj
        projected = cls(
            q_proj, k_proj, v_proj, _copied_linear(output.weight, output.bias, output.weight, output.bias),
            attention.num_heads, dropout=attention.dropout, batch_first=attention.batch_first,
            bias_k=_copied(attention.bias_k), bias_v=_copied(attention.bias_v),
            add_zero_attn=attention.add_zero_attn,
        )  # fmt: skip
        return projected.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with the arguments and outputs of `nn.MultiheadAttention`.

        Args:
            query: (B, L, E), (L, B, E) without `batch_first`, or (L, E).
            key: as `query`, with S and the key features.
            value: as `key`, with the value features.
            key_padding_mask: (B, S), or (S) without a batch; True, or a number that is added, for keys to ignore.
            need_weights: return the attention weights too, which is slower.
            attn_mask: (L, S) or (B * H, L, S); True, or a number that is added, for pairs to ignore.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: says that `attn_mask` is the causal mask, which must be given too.

        Returns:
            The output in the form of `query`, and the weights (B, L, S) or (B, H, L, S), without B for inputs without a
            batch; None unless `need_weights`.

        Raises:
            InputError: nested tensors, shapes that do not fit, masks of integers, or `is_causal` without a mask.
        """
        self._check_inputs(query, key, value, attn_mask, is_causal)
        batched = query.dim() == 3
        mask_type = query.dtype
        q, k, v = (
            self._batch_first(projection(x), batched)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2]:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(_INPUTS, (query, key, value), strict=True))
            raise InputError(f"query, key and value must agree in batch, and key and value in length, but got {shapes}")
        # As torch does: the mask is left out where the kernel masks by itself
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._merge_masks(attn_mask, key_padding_mask, q, k, mask_type)
        k, v = self._extend(k, self.bias_k), self._extend(v, self.bias_v)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        if mask is not None and k.shape[2] > mask.shape[-1]:
            mask = functional.pad(mask, (0, k.shape[2] - mask.shape[-1]))  # what is added is never masked
        rate = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, rate) if rate > 0 else weights
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, rate, causal)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def extra_repr(self) -> str:
        """Name the number of heads."""
        return f"num_heads={self.num_heads}, batch_first={self.batch_first}"

    def _check_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> None:
        if query.is_nested or key.is_nested or value.is_nested:
            raise InputError("ProjectedAttention takes no nested tensors: give a padded tensor and `key_padding_mask`")
        dims = query.dim(), key.dim(), value.dim()
        if dims not in ((2, 2, 2), (3, 3, 3)):
            raise InputError(f"query, key and value must all have 2 or all have 3 dimensions, but got {dims}")
        if is_causal and attn_mask is None:
            raise InputError("`is_causal` says that `attn_mask` is causal, so `attn_mask` must be given too")

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """Bring a projected input to (B, L, E)."""
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _extend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Append to (B, S, E) the learned key or value, then a zero one."""
        if bias is not None:
            x = torch.cat([x, bias.to(x.dtype).expand(x.shape[0], 1, -1)], 1)
        return functional.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, L, E) -> (B, H, L, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """Sum both masks as numbers to add, of a shape that broadcasts to (B, H, L, S); None without any."""
        batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        parts = []
        if attn_mask is not None:
            shapes = (queries, keys), (batch * self.num_heads, queries, keys)
            if tuple(attn_mask.shape) not in shapes:
                raise InputError(f"`attn_mask` must be {shapes[0]} or {shapes[1]}, but got {tuple(attn_mask.shape)}")
            added = _to_added(attn_mask, "attn_mask", dtype)
            parts.append(added[None, None] if added.dim() == 2 else added.unflatten(0, (batch, self.num_heads)))
        if key_padding_mask is not None:
            rows = key_padding_mask[None] if key_padding_mask.dim() == 1 else key_padding_mask
            if tuple(rows.shape) != (batch, keys):
                raise InputError(f"`key_padding_mask` must be {(batch, keys)}, but got {tuple(key_padding_mask.shape)}")
            parts.append(_to_added(rows, "key_padding_mask", dtype)[:, None, None])
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def project_attention(network: nn.Module) -> int:
    """Replace each plain attention of a network by one with projections of its own.

    The network is changed in place. Left as they are: subclasses of `nn.MultiheadAttention`, attention with hooks, with
    parameters that other modules share or with weights that are computed from other parameters. The fused kernels of
    transformer encoders are switched off; see `disable_fused_encoders`.

    Args:
        network: is changed; a module that stands under several names is replaced by one under each of them.

    Returns:
        How many modules were replaced.

    Raises:
        InputError: the network itself is an attention, which cannot be replaced in place.
    """
    if type(network) is nn.MultiheadAttention:
        raise InputError("an attention cannot replace itself in place; use ProjectedAttention.from_attention")
    owners = Counter(id(value) for module in network.modules() for value in module._parameters.values())
    projected = {
        id(module): ProjectedAttention.from_attention(module)
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention) and not _why_kept(module)
        and all(owners[id(value)] == 1 for value in module.parameters())
    }  # fmt: skip
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` gives a shared module once
            if id(child) in projected:
                setattr(parent, name, projected[id(child)])
    disable_fused_encoders(network)
    return len(projected)


def disable_fused_encoders(network: nn.Module) -> None:
    """Make torch's transformer encoders run their modules in evaluation too.

    Their fused kernels read the weights of the modules inside, so that no module there could be replaced: neither
    attention nor a linear map. Outputs stay the same but for rounding, and at padded positions, which have no meaning.

    Args:
        network: is changed.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # nothing but the choice of the fused kernel reads it


def _why_kept(attention: nn.MultiheadAttention) -> str:
    """Say why an attention cannot be projected; "" if it can."""
    if type(attention) is not nn.MultiheadAttention:
        return f"it is a {type(attention).__name__}"
    for module in (attention, attention.out_proj):
        if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "hooks are attached to it"
    names = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"}
    computed = set(attention._parameters) - names or set(attention.out_proj._parameters) - {"weight", "bias"}
    if computed or type(attention.out_proj) is not nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "its weights are computed from other parameters"
    return ""


def _copied_linear(weight: Tensor, bias: Tensor | None, weight_source: Tensor, bias_source: Tensor | None) -> nn.Linear:
    """Make a linear map of copies, frozen where the parameters that they are parts of are frozen."""
    linear = as_linear(weight, bias)
    linear.weight.requires_grad_(weight_source.requires_grad)
    if bias_source is not None:
        linear.bias.requires_grad_(bias_source.requires_grad)
    return linear


def _copied(parameter: Tensor | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _to_added(mask: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Turn a mask into numbers to add to the scores; True becomes minus infinity."""
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise InputError(f"`{name}` must be of booleans or floating-point numbers, but got {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
