"""Rewrites a captured graph before it is compiled: inserts this project's kernels, and forms that compile better.

Works on the graph of torch functions that Dynamo captures, before autograd and decomposition. Nodes that it does not
know stay as they are. Those that it inserts are functions, and methods of the graph's inputs alone: the compiler keeps
the gradients of a graph on disk only where it knows an example of each tensor whose method is called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional

from lowrank.kernels import global_norm  # noqa: F401  # registers its operations
from lowrank.kernels.dispatch import MAX_ENTRIES, has_enough_shared_memory, supports_kernels

# Of the result of a map that is fused with its norm: in float32 its products would need too much shared memory
FUSED_DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16,)
MIN_CONV_CHANNELS = 8  # fewer leave tensor cores idle; images are padded with channels of zeros
_RELUS = (functional.relu, torch.relu, functional.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)
_TO = torch.ops.aten.to.dtype


def compile_graph(
    graph_module: GraphModule, inputs: Sequence[Tensor], *, processes: int = 1
) -> Callable[..., Any]:  # fmt: skip
    """Compile a graph by inductor: a backend for `torch.compile`.

    Where the graph runs on a GPU that supports the kernels, `rewrite` changes it first.

    Args:
        graph_module: as Dynamo captured it; changed in place.
        inputs: examples of its inputs.
        processes: that share each batch; batch norms in training then take its statistics from all of them.

    Returns:
        The compiled function.

    Raises:
        NotImplementedError: the batch of all processes cannot be used by a batch norm of the graph.
    """
    from torch._inductor.compile_fx import compile_fx  # importing it takes long, and only compiling needs it

    patches: dict[str, object] = {"fallback_random": True}  # draw random numbers as the plain network does
    devices = [value.device for value in inputs if isinstance(value, Tensor) and value.is_cuda]
    if devices and supports_kernels(devices[0]):
        from lowrank.kernels.fx_gradient_pass import FuseGradientSums

        rewrite(graph_module, fuse_pointwise=has_enough_shared_memory(devices[0]), processes=processes)
        patches["post_grad_custom_pre_pass"] = FuseGradientSums()
    elif processes > 1:
        for node in list(graph_module.graph.nodes):
            _fuse_norm(graph_module.graph, node, None, processes, extend=False)
        graph_module.recompile()
    if processes > 1 and any(_is_training_norm(node) for node in graph_module.graph.nodes):
        raise NotImplementedError("a batch norm of the network cannot take its statistics from several processes")
    compiled: Any = compile_fx(graph_module, list(inputs), config_patches=patches)
    return cast(Callable[..., Any], compiled)


def rewrite(graph_module: GraphModule, *, fuse_pointwise: bool = True, processes: int = 1) -> dict[str, int]:
    """Change a graph in place; needs Triton.

    Args:
        graph_module: as Dynamo captured it.
        fuse_pointwise: whether pointwise maps may be fused with their norms
            (`lowrank.kernels.dispatch.has_enough_shared_memory`).
        processes: that share each batch; maps are then not fused with their norms.

    Returns:
        How many nodes were changed, for each kind of change.
    """
    from lowrank.kernels import (
        batch_norm as norm,  # noqa: F401  # registers its operations
        depthwise,  # noqa: F401  # registers its operations
        pointwise_batch_norm as pointwise,  # noqa: F401  # registers its operations
        stem_batch_norm as stem,  # noqa: F401  # registers its operations
    )

    changes: dict[str, Callable[[Graph, Node], bool]] = {
        "stem": _fuse_stem,
        "joined": _fuse_pointwise,
        "norm": partial(_replace_norm, processes=processes),
        "depthwise": _replace_depthwise,
        "pointwise": _replace_pointwise,
        "narrow": _pad_channels,
        "pool": _remove_idle_pool,
        "global_pool": _replace_global_max_pool,
    }
    counts = dict.fromkeys(changes, 0)
    if not fuse_pointwise or processes > 1:
        del changes["joined"]
    if processes > 1:
        del changes["stem"]
    for node in list(graph_module.graph.nodes):
        for name, change in changes.items():
            if node.op == "call_function" and node in graph_module.graph.nodes and change(graph_module.graph, node):
                counts[name] += 1
                break
    join_updates(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    return counts


def _example(node: Any) -> Tensor | None:
    """Return an example of a node's result, with its shape and dtype; None where Dynamo recorded none."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument that may have been passed by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _only_user(node: Node) -> Node | None:
    """Return the one operation that reads a node's result; None where there are others."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _replace(graph: Graph, chain: Sequence[Node], new: Node) -> None:
    """Let `new` replace the last node of `chain`, and remove the chain."""
    new.meta.update(chain[-1].meta)
    chain[-1].replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    for old in reversed(chain):
        graph.erase_node(old)


def _is_countable(value: Tensor | None) -> bool:
    """Return whether this is a batch of images whose entries the kernels can count."""
    return value is not None and value.dim() == 4 and value.numel() <= MAX_ENTRIES


@dataclass(frozen=True)
class FusableMap:
    """A map that is fused with the norm that follows it."""

    node: Node
    operation: Any
    inputs: Callable[[Graph], tuple[Node, ...]]  # makes the inputs of the operation that come before the norm's
    relu_only: bool = False  # whether only a ReLU may follow the norm


def _replace_norm(graph: Graph, node: Node, processes: int = 1) -> bool:
    """Replace a batch norm in training, with the ReLU, 2 x 2 max pooling and sum that follow."""
    return _fuse_norm(graph, node, None, processes)


def _is_training_norm(node: Node) -> bool:
    return node.target is functional.batch_norm and _argument(node, 5, "training") is True


def _fuse_norm(
    graph: Graph, node: Node, fusable: FusableMap | None, processes: int = 1, *, extend: bool = True
) -> bool:  # fmt: skip
    """Replace a batch norm and what follows; with `fusable` also the map before it, without `extend` it alone."""
    if not _is_training_norm(node):
        return False
    names = ("input", "running_mean", "running_var", "weight", "bias")
    x, mean, variance, weight, bias = (_argument(node, index, name) for index, name in enumerate(names))
    momentum, eps, value = _argument(node, 6, "momentum", 0.1), float(_argument(node, 7, "eps", 1e-5)), _example(x)
    if None in (mean, variance, weight, bias, momentum) or value is None:
        return False
    countable = _is_countable(value)
    if not countable and processes == 1:
        return False
    chain, relu, pool, residual = [node], False, False, None
    if extend and countable:
        relu = _extend(chain, lambda user: user.target in _RELUS)
        pool = _extend(chain, lambda user: _is_halving_pool(user, value))
        last = chain[-1]
        if _extend(chain, lambda user: _is_sum(user, last)):
            residual = next(argument for argument in chain[-1].args if argument is not last)
    operation: Any = torch.ops.lowrank.norm.default if processes == 1 else torch.ops.lowrank.global_norm.default
    inputs: tuple[Any, ...] = (x, weight, bias, residual, eps, relu, pool)
    if fusable is not None:
        if fusable.relu_only and (pool or residual is not None):
            return False
        operation, map_inputs = fusable.operation, fusable.inputs(graph)
        inputs = (*map_inputs, weight, bias, eps, relu) if fusable.relu_only else (*map_inputs, *inputs[1:])
        chain.insert(0, fusable.node)
    with graph.inserting_after(chain[-1]):
        new = graph.call_function(operation, inputs)
    output, rows = _get_item(graph, new, 0), processes * value.numel() // value.shape[1]
    _update_running(graph, mean, _get_item(graph, new, 1), momentum, 1.0)
    _update_running(graph, variance, _get_item(graph, new, 2), momentum, rows / max(1, rows - 1))
    _replace(graph, chain, output)
    return True


def _extend(chain: list[Node], condition: Callable[[Node], bool]) -> bool:
    """Append the one user of the last node, if it meets the condition."""
    user = _only_user(chain[-1])
    if user is None or not condition(user):
        return False
    chain.append(user)
    return True


def _is_halving_pool(user: Node, value: Tensor) -> bool:
    """Return whether this is a 2 x 2 max pooling that divides such images evenly."""
    if user.target is not functional.max_pool2d or value.shape[2] % 2 or value.shape[3] % 2:
        return False
    size, stride = _argument(user, 1, "kernel_size"), _argument(user, 2, "stride")
    padding, dilation = _argument(user, 3, "padding", 0), _argument(user, 4, "dilation", 1)
    pairs = [option if isinstance(option, tuple | list) else (option, option) for option in (size, stride or size)]
    plain = padding in (0, (0, 0)) and dilation in (1, (1, 1)) and not _argument(user, 6, "return_indices", False)
    return plain and all(tuple(pair) == (2, 2) for pair in pairs)


def _is_sum(user: Node, last: Node) -> bool:
    """Return whether this adds another tensor of the same shape and dtype."""
    if user.target not in _ADDS or len(user.args) != 2 or user.kwargs:
        return False
    one, other = (_example(argument) for argument in user.args)
    return (
        one is not None and other is not None and user.args[0] is not user.args[1]
        and (user.target is not operator.iadd or user.args[0] is last)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
    )  # fmt: skip


def _get_item(graph: Graph, node: Node, index: int) -> Node:
    """Insert a node that takes one of several results."""
    with graph.inserting_after(node):
        return graph.call_function(operator.getitem, (node, index))


def _update_running(graph: Graph, running: Any, statistic: Node, momentum: float, factor: float) -> None:
    """Insert nodes that move a running statistic towards `factor` times the batch's."""
    with graph.inserting_after(statistic):
        detached = graph.call_function(torch.detach, (statistic,))
    with graph.inserting_after(detached):
        unbiased = graph.call_function(operator.mul, (detached, factor))
    with graph.inserting_after(unbiased):
        graph.call_method("lerp_", (running, unbiased, float(momentum)))


def join_updates(graph: Graph) -> None:
    """Update the running statistics of all norms together, and their counts of batches.

    One by one they are three kernels for each norm, each of which takes its launch and next to nothing else.

    Args:
        graph: as Dynamo captured it, or after `_update_running`; changed in place. Updates of a tensor that anything
            else reads or updates stay where they are.
    """
    groups: dict[tuple[str, Any], list[Node]] = {}
    for node in graph.nodes:
        amount = _amount_of_update(node)
        if amount is not None:
            groups.setdefault((node.target, amount), []).append(node)
    end = next(iter(graph.find_nodes(op="output")))
    for (name, amount), updates in groups.items():
        targets = [update.args[0] for update in updates]
        with graph.inserting_before(end):
            if name == "add_":
                graph.call_function(torch._foreach_add_, (targets, amount))
            else:
                graph.call_function(torch._foreach_lerp_, (targets, [update.args[1] for update in updates], amount))
        for update in updates:
            graph.erase_node(update)


def _amount_of_update(node: Node) -> float | None:
    """Return by how much a node adds to a count, or how far it moves a statistic; None for any other node."""
    if node.op != "call_method" or node.target not in ("add_", "lerp_") or node.users or node.kwargs:
        return None
    tensor, *others, amount = node.args
    value = _example(tensor)
    if value is None or cast(Node, tensor).op != "placeholder" or len(cast(Node, tensor).users) != 1:
        return None
    if node.target == "add_":
        return amount if isinstance(amount, int) and value.dtype == torch.int64 and value.dim() == 0 else None
    source = _example(others[0])  # None for a statistic of this project's kernels, which is detached
    follows_gradients = value.requires_grad or (source is not None and source.requires_grad)
    return amount if isinstance(amount, float) and not follows_gradients else None


def _conv_parts(node: Node) -> tuple[Any, Any, Any, dict[str, Any]] | None:
    """Return input, weight, bias and the other options of a 2-d convolution; None for another node."""
    if node.target not in (torch.conv2d, functional.conv2d):
        return None
    names = (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))
    options = {name: _argument(node, index, name, default) for index, (name, default) in enumerate(names, start=3)}
    options = {name: (value, value) if isinstance(value, int) and name != "groups" else value
               for name, value in options.items()}  # fmt: skip
    return node.args[0], _argument(node, 1, "weight"), _argument(node, 2, "bias"), options


def _replace_depthwise(graph: Graph, node: Node) -> bool:
    """Replace a depthwise 3 x 3 convolution without stride and bias."""
    from lowrank.kernels.depthwise import MAX_WIDTH

    parts = _conv_parts(node)
    if parts is None:
        return False
    x, weight, bias, options = parts
    value, kernel, output = _example(x), _example(weight), _example(node)
    if value is None or kernel is None or output is None or not _is_countable(value) or bias is not None:
        return False
    supported = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": value.shape[1]}
    depthwise = kernel.shape == (value.shape[1], 1, 3, 3) and kernel.shape[0] > 1
    if options != supported or not depthwise or value.shape[3] > MAX_WIDTH:
        return False
    with graph.inserting_before(node):
        x = graph.call_function(_TO, (x, output.dtype))
        weight = graph.call_function(_TO, (weight, torch.float32))
        new = graph.call_function(torch.ops.lowrank.depthwise.default, (x, weight))
    _replace(graph, [node], new)
    return True


def _pointwise_parts(node: Node) -> tuple[Any, Any, Any] | None:
    """Return input, weight and bias of a 1 x 1 convolution without stride; None for another node."""
    parts = _conv_parts(node)
    if parts is None:
        return None
    x, weight, bias, options = parts
    kernel = _example(weight)
    plain = options == {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    if not plain or kernel is None or kernel.shape[2:] != (1, 1) or not _is_countable(_example(x)):
        return None
    return x, weight, bias


def _fuse_pointwise(graph: Graph, node: Node) -> bool:
    """Fuse a pointwise map whose result only a batch norm reads."""
    from lowrank.kernels.pointwise_batch_norm import supports

    parts, user, output = _pointwise_parts(node), _only_user(node), _example(node)
    if parts is None or user is None or output is None or output.dtype not in FUSED_DTYPES or not _is_countable(output):
        return False
    x, weight, bias = parts
    kernel = cast(Tensor, _example(weight))
    if bias is not None or not supports(kernel.shape[1], kernel.shape[0]) or _argument(user, 0, "input") is not node:
        return False

    def inputs(graph: Graph) -> tuple[Node, ...]:
        """Cast the map's inputs to the dtype of its result."""
        with graph.inserting_before(node):
            matrix = graph.call_function(torch.flatten, (weight, 1))
            return graph.call_function(_TO, (x, output.dtype)), graph.call_function(_TO, (matrix, output.dtype))

    return _fuse_norm(graph, user, FusableMap(node, torch.ops.lowrank.pointwise_norm.default, inputs))


def _fuse_stem(graph: Graph, node: Node) -> bool:
    """Fuse a 3 x 3 convolution of images, which have no gradient, whose result only a batch norm reads.

    Only a ReLU may follow the norm.
    """
    from lowrank.kernels.stem_batch_norm import supports

    parts, user, output = _conv_parts(node), _only_user(node), _example(node)
    if parts is None or user is None or output is None or output.dtype not in FUSED_DTYPES or not _is_countable(output):
        return False
    x, weight, bias, options = parts
    value, kernel = _example(x), _example(weight)
    if value is None or kernel is None or value.requires_grad or bias is not None or kernel.shape[2:] != (3, 3):
        return False
    plain = options == {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    if value.numel() * 9 > MAX_ENTRIES:  # a padded image has at most nine times the entries
        return False
    if not plain or not supports(value.shape[1], kernel.shape[0]) or _argument(user, 0, "input") is not node:
        return False

    def inputs(graph: Graph) -> tuple[Node, ...]:
        with graph.inserting_before(node):
            rows = graph.call_function(torch.flatten, (graph.call_function(torch.permute, (weight, (0, 2, 3, 1))), 1))
            return x, graph.call_function(_TO, (rows, output.dtype))

    return _fuse_norm(graph, user, FusableMap(node, torch.ops.lowrank.stem_norm.default, inputs, relu_only=True))


def _replace_pointwise(graph: Graph, node: Node) -> bool:
    """Replace a 1 x 1 convolution by a matrix product, whose gradient libraries compute faster."""
    parts = _pointwise_parts(node)
    if parts is None:
        return False
    x, weight, bias = parts
    with graph.inserting_before(node):
        rows = graph.call_function(torch.permute, (x, (0, 2, 3, 1)))
        matrix = graph.call_function(torch.flatten, (weight, 1))
        product = graph.call_function(functional.linear, (rows, matrix, bias))
        new = graph.call_function(torch.permute, (product, (0, 3, 1, 2)))
    _replace(graph, [node], new)
    return True


def _pad_channels(graph: Graph, node: Node) -> bool:
    """Pad a convolution of few channels, such as an image's, with channels of zeros."""
    parts = _conv_parts(node)
    if parts is None:
        return False
    x, weight, bias, options = parts
    value, kernel = _example(x), _example(weight)
    if value is None or kernel is None or options["groups"] != 1 or not _is_countable(value):
        return False
    missing = MIN_CONV_CHANNELS - value.shape[1]
    if missing <= 0 or kernel.shape[2:] == (1, 1):
        return False
    padding = (0, 0, 0, 0, 0, missing)
    with graph.inserting_before(node):
        padded_x = graph.call_function(functional.pad, (x, padding))
        padded_weight = graph.call_function(functional.pad, (weight, padding))
        new = graph.call_function(
            torch.conv2d, (padded_x, padded_weight, bias, options["stride"], options["padding"], options["dilation"], 1)
        )  # fmt: skip
    _replace(graph, [node], new)
    return True


def _remove_idle_pool(graph: Graph, node: Node) -> bool:
    """Remove an adaptive pooling of images that have its size already: libraries compute its gradient slowly."""
    if node.target not in (functional.adaptive_max_pool2d, functional.adaptive_avg_pool2d):
        return False
    x = node.args[0]
    before, after = _example(x), _example(node)
    if not isinstance(x, Node) or before is None or after is None or before.shape != after.shape:
        return False
    node.replace_all_uses_with(x)
    graph.erase_node(node)
    return True


def _replace_global_max_pool(graph: Graph, node: Node) -> bool:
    """Replace a max pooling of whole images by a sum in which only the first largest position counts.

    So the gradient is a choice for each position, part of a neighbouring kernel. That of a pooling is scattered over
    float32 zeros that are filled in before, and read after.
    """
    value, output = _example(node.args[0] if node.args else None), _example(node)
    if node.target is not functional.max_pool2d or value is None or output is None or not _is_countable(value):
        return False
    options = [_argument(node, *option) for option in ((3, "padding", 0), (4, "dilation", 1), (6, "return_indices", 0))]
    size, positions = _argument(node, 1, "kernel_size"), value.shape[2] * value.shape[3]
    sizes = size if isinstance(size, tuple | list) else (size, size)
    covers = all(one >= side for one, side in zip(sizes, value.shape[2:], strict=True)) and output.shape[2:] == (1, 1)
    if not covers or positions == 1 or options[0] not in (0, (0, 0)) or options[1] not in (1, (1, 1)) or options[2]:
        return False
    with graph.inserting_before(node):
        # In the memory order of channels-last images
        images = graph.call_function(torch.permute, (node.args[0], (0, 2, 3, 1)))
        rows = graph.call_function(torch.flatten, (images, 1, 2))
        index = graph.call_function(torch.argmax, (rows, 1, True))
        places = graph.call_function(torch.arange, (positions,), {"device": value.device})
        chosen = graph.call_function(operator.eq, (index, graph.call_function(torch.unsqueeze, (places, 1))))
        largest = graph.call_function(torch.sum, (graph.call_function(torch.where, (chosen, rows, 0.0)), 1))
        columns = graph.call_function(torch.unsqueeze, (graph.call_function(torch.unsqueeze, (largest, 2)), 3))
        new = graph.call_function(_TO, (columns, output.dtype))
    _replace(graph, [node], new)
    return True
