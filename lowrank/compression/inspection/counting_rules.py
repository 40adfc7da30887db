"""How many mult-adds an operation takes: torch's formulas, those that it lacks, and the user's.

Only products are counted: matrix products, convolutions and what is made of them. Additions, norms, activations and
scalings by a parameter are free, as in published counts.
Letters: T steps, B images, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from lowrank.errors import InputError, UncountableError

Rule = Callable[..., int]
_ATEN = torch.ops.aten


def register_counting_rule(target: Any, rule: Rule) -> None:
    """Say how many mult-adds an operation or a module takes.

    Args:
        target: an operation such as `torch.ops.mylib.product`, or a class of modules.
        rule: returns the mult-adds. Of an operation it gets the arguments and, as `out_val`, the result; of a module
            `(module, inputs, output)`, and its answer stands for all that runs inside the module.

    Raises:
        InputError: `target` is neither.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        _module_rules[target] = rule
    elif isinstance(target, torch._ops.OpOverloadPacket):
        _operation_rules[target] = rule
    else:
        raise InputError(
            f"a counting rule is for a class of modules or an operation such as torch.ops.aten.mm, but got {target!r}"
        )


def module_rule(module: nn.Module) -> Rule | None:
    """Return the registered rule of a module's class, or of the nearest class that it derives from."""
    return next((_module_rules[base] for base in type(module).__mro__ if base in _module_rules), None)


def count_operation(operation: Any, arguments: tuple[Any, ...], keywords: dict[str, object], output: Any) -> int:
    """Count the mult-adds of one operation.

    Args:
        operation: such as `torch.ops.aten.mm`.
        arguments: its positional arguments.
        keywords: its keyword arguments.
        output: what it returned.

    Returns:
        Mult-adds; 0 for what is no product.

    Raises:
        UncountableError: the operation is, or may be, a product and has no rule.
    """
    rule = _operation_rules.get(operation)
    if rule is not None:
        return rule(*arguments, **keywords, out_val=output)
    if operation in flop_registry:
        return int(flop_registry[operation](*arguments, **keywords, out_val=output)) // 2
    name = str(operation)
    if name in _PRODUCTS_WITHOUT_RULE or not name.startswith(_FREE_PREFIXES):
        raise UncountableError(
            f"the network runs {name}, which has no counting rule; give one by lowrank.register_counting_rule"
        )
    return 0


def _matrix_vector(matrix: Tensor, vector: Tensor, *, out_val: Any) -> int:
    """(O, I) by (I)."""
    return matrix.numel()


def _added_matrix_vector(bias: Tensor, matrix: Tensor, vector: Tensor, *, out_val: Any, **_: Any) -> int:
    """(O) plus (O, I) by (I)."""
    return matrix.numel()


def _dot(first: Tensor, second: Tensor, *, out_val: Any) -> int:
    """(I) by (I)."""
    return first.numel()


def _added_batch_product(bias: Tensor, first: Tensor, second: Tensor, *, out_val: Any, **_: Any) -> int:
    """(O, P) plus the sum over B of (B, O, I) by (B, I, P)."""
    return first.numel() * second.shape[-1]


def _trilinear(
    first: Tensor, second: Tensor, third: Tensor, expand1: list[int], expand2: list[int], expand3: list[int],
    sumdim: list[int], unroll_dim: int = 1, *, out_val: Any,
) -> int:  # fmt: skip
    """Multiply three expanded tensors, as `nn.Bilinear` does: two products for each entry before the sum."""
    shapes = []
    for tensor, places in ((first, expand1), (second, expand2), (third, expand3)):
        shape = list(tensor.shape)
        for dimension in sorted(places):
            shape.insert(dimension, 1)
        shapes.append(shape)
    entries = 1
    for sides in zip(*shapes, strict=True):
        entries *= max(sides)
    return 2 * entries


def _recurrent_layer(inputs: Tensor, input_weight: Tensor, state_weight: Tensor, *_: Any, out_val: Any) -> int:
    """One direction of one layer: (T, B, I) by the weights of inputs and of the state."""
    return inputs.numel() // inputs.shape[-1] * (input_weight.numel() + state_weight.numel())


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """(.., L, D) queries by (.., S, D) keys, then by (.., S, V) values."""
    return query.numel() // query.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])


_operation_rules: dict[Any, Rule] = {
    _ATEN.mv: _matrix_vector,
    _ATEN.addmv: _added_matrix_vector,
    _ATEN.dot: _dot,
    _ATEN.vdot: _dot,
    _ATEN.addbmm: _added_batch_product,
    _ATEN._trilinear: _trilinear,
    _ATEN.mkldnn_rnn_layer: _recurrent_layer,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _fused_attention,
}
_module_rules: dict[type[nn.Module], Rule] = {}
_FREE_PREFIXES = ("aten.", "prim.", "prims.", "profiler.")
_PRODUCTS_WITHOUT_RULE = frozenset({
    "aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c", "aten._cdist_forward", "aten._transformer_encoder_layer_fwd",
    "aten._native_multi_head_attention", "aten.miopen_rnn", "aten._cudnn_rnn",
})  # fmt: skip
