"""Puts this project's kernels, and forms that libraries are faster at, into a captured graph before it is compiled.

Works on the graph of torch functions that Dynamo gives, before autograd and decomposition. What it does not know stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional

from lowrank.kernels.dispatch import MAX_ENTRIES, has_enough_shared_memory, supports_kernels

FUSED_DTYPES: tuple[torch.dtype, ...] = (
    torch.bfloat16,
)  # where a pointwise map and its norm are one; products in float32 leave no room for it
MIN_CONV_CHANNELS = 8  # below, tensor cores are left idle; images are filled up with zeros
_RELUS = (functional.relu, torch.relu, functional.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)


def compile_graph(graph_module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend for `torch.compile`: inductor, after `rewrite` where it runs on a GPU that has the kernels."""
    from torch._inductor.compile_fx import compile_fx  # only paid for where something is compiled

    patches: dict[str, Any] = {"fallback_random": True}  # random numbers as the plain network draws them
    cards = [each.device for each in inputs if isinstance(each, Tensor) and each.is_cuda]
    if cards and supports_kernels(cards[0]):
        from lowrank.kernels.fx_gradient_pass import FuseGradientSums

        rewrite(graph_module, fuse_pointwise=has_enough_shared_memory(cards[0]))
        patches["post_grad_custom_pre_pass"] = FuseGradientSums()
    found: Any = compile_fx(graph_module, list(inputs), config_patches=patches)
    return cast(Callable[..., Any], found)


def rewrite(graph_module: GraphModule, *, fuse_pointwise: bool = True) -> dict[str, int]:
    """Change the graph in place; returns how many nodes of each kind were changed. Needs Triton.

    Args:
        graph_module: as Dynamo captured it.
        fuse_pointwise: whether pointwise maps may be joined with their norms
            (`lowrank.kernels.dispatch.has_enough_shared_memory`).
    """
    from lowrank.kernels import batch_norm as norm  # noqa: F401  # which registers them
    from lowrank.kernels import depthwise  # noqa: F401  # which registers them
    from lowrank.kernels import pointwise_batch_norm as pointwise  # noqa: F401  # which registers them
    from lowrank.kernels import stem_batch_norm as stem  # noqa: F401  # which registers them

    kinds = {
        "stem": _stem,
        "joined": _joined,
        "norm": _norm,
        "depthwise": _depthwise,
        "pointwise": _pointwise,
        "narrow": _narrow,
        "pool": _idle_pool,
    }
    found = dict.fromkeys(kinds, 0)
    if not fuse_pointwise:
        del kinds["joined"]
    for node in list(graph_module.graph.nodes):
        for name, change in kinds.items():
            if node.op == "call_function" and node in graph_module.graph.nodes and change(graph_module.graph, node):
                found[name] += 1
                break
    graph_module.graph.lint()
    graph_module.recompile()
    return found


def _value(node: Any) -> Tensor | None:
    """What is known of a node's result without running it."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _replace(graph: Graph, chain: Sequence[Node], new: Node) -> None:
    """`new` takes the place of the last of `chain`, whose nodes go."""
    new.meta.update(chain[-1].meta)
    chain[-1].replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    for old in reversed(chain):
        graph.erase_node(old)


def _small(value: Tensor | None) -> bool:
    """Images whose entries the kernels can count."""
    return value is not None and value.dim() == 4 and value.numel() <= MAX_ENTRIES


@dataclass(frozen=True)
class Mapped:
    """A map that goes with the norm behind it."""

    node: Node
    operation: Any
    inputs: Callable[[Graph], tuple[Node, ...]]  # of the operation, which come before the norm's
    alone: bool = False  # nothing but a ReLU may follow the norm


def _norm(graph: Graph, node: Node) -> bool:
    """Batch norm in training, with the ReLU, 2 x 2 max pooling and sum that follow."""
    return _normed(graph, node, None)


def _normed(graph: Graph, node: Node, mapped: Mapped | None) -> bool:
    """Likewise; `mapped` is what goes with it."""
    if node.target is not functional.batch_norm or _argument(node, 5, "training") is not True:
        return False
    x, mean, variance, weight, bias = (
        _argument(node, place, name)
        for place, name in enumerate(("input", "running_mean", "running_var", "weight", "bias"))
    )
    momentum, eps, value = _argument(node, 6, "momentum", 0.1), _argument(node, 7, "eps", 1e-5), _value(x)
    if None in (mean, variance, weight, bias, momentum) or value is None or not _small(value):
        return False
    chain = [node]
    relu = _extended(chain, lambda user: user.target in _RELUS)
    pool = _extended(chain, lambda user: _halves(user, value))
    last, residual = chain[-1], None
    if _extended(chain, lambda user: _adds(user, last)):
        residual = next(each for each in chain[-1].args if each is not last)
    what: Any = torch.ops.lowrank.norm.default
    inputs: tuple[Any, ...] = (x, weight, bias, residual, float(eps), relu, pool)
    if mapped is not None:
        if mapped.alone and (pool or residual is not None):
            return False
        what, first = mapped.operation, mapped.inputs(graph)
        inputs = (*first, weight, bias, float(eps), relu) if mapped.alone else (*first, *inputs[1:])
        chain.insert(0, mapped.node)
    with graph.inserting_after(chain[-1]):
        new = graph.call_function(what, inputs)
    rows = value.numel() // value.shape[1]
    result = _taken(graph, new, 0)
    _moved(graph, mean, _taken(graph, new, 1), momentum, 1.0)
    _moved(graph, variance, _taken(graph, new, 2), momentum, rows / max(1, rows - 1))
    _replace(graph, chain, result)
    return True


def _extended(chain: list[Node], wanted: Callable[[Node], bool]) -> bool:
    """Append the one user of the last node, if it is wanted."""
    user = _only_user(chain[-1])
    if user is None or not wanted(user):
        return False
    chain.append(user)
    return True


def _halves(user: Node, value: Tensor) -> bool:
    """Whether this is a 2 x 2 max pooling that leaves nothing over of such images."""
    if user.target is not functional.max_pool2d or value.shape[2] % 2 or value.shape[3] % 2:
        return False
    size, stride = _argument(user, 1, "kernel_size"), _argument(user, 2, "stride")
    padding, dilation = _argument(user, 3, "padding", 0), _argument(user, 4, "dilation", 1)
    pairs = [each if isinstance(each, tuple | list) else (each, each) for each in (size, stride or size)]
    plain = padding in (0, (0, 0)) and dilation in (1, (1, 1)) and not _argument(user, 6, "return_indices", False)
    return plain and all(tuple(pair) == (2, 2) for pair in pairs)


def _adds(user: Node, last: Node) -> bool:
    """Whether this adds another tensor of the same kind."""
    if user.target not in _ADDS or len(user.args) != 2 or user.kwargs:
        return False
    one, other = (_value(each) for each in user.args)
    return (
        one is not None and other is not None and user.args[0] is not user.args[1]
        and (user.target is not operator.iadd or user.args[0] is last)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
    )  # fmt: skip


def _taken(graph: Graph, node: Node, place: int) -> Node:
    with graph.inserting_after(node):
        return graph.call_function(operator.getitem, (node, place))


def _moved(graph: Graph, running: Any, found: Node, momentum: float, factor: float) -> None:
    """Running statistics move towards what was found."""
    with graph.inserting_after(found):
        plain = graph.call_method("detach", (found,))
    with graph.inserting_after(plain):
        unbiased = graph.call_function(operator.mul, (plain, factor))
    with graph.inserting_after(unbiased):
        graph.call_method("lerp_", (running, unbiased, float(momentum)))


def _convolution(node: Node) -> tuple[Any, Any, Any, dict[str, Any]] | None:
    """Input, weight, bias and the rest of a 2-d convolution."""
    if node.target not in (torch.conv2d, functional.conv2d):
        return None
    names = (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))
    rest = {name: _argument(node, place, name, default) for place, (name, default) in enumerate(names, start=3)}
    rest = {name: (value, value) if isinstance(value, int) and name != "groups" else value
            for name, value in rest.items()}  # fmt: skip
    return node.args[0], _argument(node, 1, "weight"), _argument(node, 2, "bias"), rest


def _depthwise(graph: Graph, node: Node) -> bool:
    """3 x 3, one channel each, without stride."""
    from lowrank.kernels.depthwise import MAX_WIDTH

    found = _convolution(node)
    if found is None:
        return False
    x, weight, bias, rest = found
    value, kernel, result = _value(x), _value(weight), _value(node)
    if value is None or kernel is None or result is None or not _small(value) or bias is not None:
        return False
    wanted = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": value.shape[1]}
    one_each = kernel.shape == (value.shape[1], 1, 3, 3) and kernel.shape[0] > 1
    if rest != wanted or not one_each or value.shape[3] > MAX_WIDTH:
        return False
    with graph.inserting_before(node):
        x = graph.call_method("to", (x, result.dtype))
        weight = graph.call_method("to", (weight, torch.float32))
        new = graph.call_function(torch.ops.lowrank.depthwise.default, (x, weight))
    _replace(graph, [node], new)
    return True


def _plain_map(node: Node) -> tuple[Any, Any, Any] | None:
    """Input, weight and bias of a 1 x 1 convolution without stride."""
    found = _convolution(node)
    if found is None:
        return None
    x, weight, bias, rest = found
    kernel = _value(weight)
    plain = rest == {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    if not plain or kernel is None or kernel.shape[2:] != (1, 1) or not _small(_value(x)):
        return None
    return x, weight, bias


def _joined(graph: Graph, node: Node) -> bool:
    """A pointwise map whose result goes into a batch norm alone."""
    from lowrank.kernels.pointwise_batch_norm import fits

    found, user, result = _plain_map(node), _only_user(node), _value(node)
    if found is None or user is None or result is None or result.dtype not in FUSED_DTYPES or not _small(result):
        return False
    x, weight, bias = found
    kernel = cast(Tensor, _value(weight))
    if bias is not None or not fits(kernel.shape[1], kernel.shape[0]) or _argument(user, 0, "input") is not node:
        return False

    def inputs(graph: Graph) -> tuple[Node, ...]:
        """In the format of the result."""
        with graph.inserting_before(node):
            matrix = graph.call_method("flatten", (weight, 1))
            return graph.call_method("to", (x, result.dtype)), graph.call_method("to", (matrix, result.dtype))

    return _normed(graph, user, Mapped(node, torch.ops.lowrank.pointwise_norm.default, inputs))


def _stem(graph: Graph, node: Node) -> bool:
    """A 3 x 3 convolution of images, which have no gradient, whose result goes into a batch norm alone, which at most
    a ReLU may be joined with."""
    from lowrank.kernels.stem_batch_norm import fits

    found, user, result = _convolution(node), _only_user(node), _value(node)
    if found is None or user is None or result is None or result.dtype not in FUSED_DTYPES or not _small(result):
        return False
    x, weight, bias, rest = found
    value, kernel = _value(x), _value(weight)
    if value is None or kernel is None or value.requires_grad or bias is not None or kernel.shape[2:] != (3, 3):
        return False
    plain = rest == {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    if value.numel() * 9 > MAX_ENTRIES:  # with its edge an image has nine times its entries at most
        return False
    if not plain or not fits(value.shape[1], kernel.shape[0]) or _argument(user, 0, "input") is not node:
        return False

    def inputs(graph: Graph) -> tuple[Node, ...]:
        with graph.inserting_before(node):
            rows = graph.call_method("flatten", (graph.call_method("permute", (weight, 0, 2, 3, 1)), 1))
            return x, graph.call_method("to", (rows, result.dtype))

    return _normed(graph, user, Mapped(node, torch.ops.lowrank.stem_norm.default, inputs, alone=True))


def _pointwise(graph: Graph, node: Node) -> bool:
    """A 1 x 1 convolution is a matrix product over all positions, whose gradient libraries are faster at."""
    found = _plain_map(node)
    if found is None:
        return False
    x, weight, bias = found
    with graph.inserting_before(node):
        rows = graph.call_method("permute", (x, 0, 2, 3, 1))
        matrix = graph.call_method("flatten", (weight, 1))
        product = graph.call_function(functional.linear, (rows, matrix, bias))
        new = graph.call_method("permute", (product, 0, 3, 1, 2))
    _replace(graph, [node], new)
    return True


def _narrow(graph: Graph, node: Node) -> bool:
    """A convolution of few channels, an image's, is filled up with channels of zeros."""
    found = _convolution(node)
    if found is None:
        return False
    x, weight, bias, rest = found
    value, kernel = _value(x), _value(weight)
    if value is None or kernel is None or rest["groups"] != 1 or not _small(value):
        return False
    lacking = MIN_CONV_CHANNELS - value.shape[1]
    if lacking <= 0 or kernel.shape[2:] == (1, 1):
        return False
    padding_channels = (0, 0, 0, 0, 0, lacking)
    with graph.inserting_before(node):
        wide = graph.call_function(functional.pad, (x, padding_channels))
        filled = graph.call_function(functional.pad, (weight, padding_channels))
        new = graph.call_function(
            torch.conv2d, (wide, filled, bias, rest["stride"], rest["padding"], rest["dilation"], 1)
        )  # fmt: skip
    _replace(graph, [node], new)
    return True


def _idle_pool(graph: Graph, node: Node) -> bool:
    """An adaptive pooling of images that have its size already, whose gradient libraries are slow at."""
    if node.target not in (functional.adaptive_max_pool2d, functional.adaptive_avg_pool2d):
        return False
    x = node.args[0]
    before, after = _value(x), _value(node)
    if not isinstance(x, Node) or before is None or after is None or before.shape != after.shape:
        return False
    node.replace_all_uses_with(x)
    graph.erase_node(node)
    return True
