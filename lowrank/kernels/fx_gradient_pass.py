"""A pass over the graph of a backward pass: adds a gradient within the kernel that computes the other one.

The input of a residual has two gradients, the residual's and that of the depthwise convolution or of the norm that
reads it too. A sum as an operation of its own reads both and writes the result, where reading one is enough.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

from lowrank.kernels.dispatch import kernel_digest

FUSE_NORM_SUMS = True  # whether gradients are added in the norm's kernel too: a fifth to a third faster on an H200


class FuseGradientSums(CustomGraphPass):
    """Changes a graph of aten operations in place, before it is compiled."""

    def __call__(self, graph: Graph) -> None:
        """Fuse the sums of `graph`, in place."""
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
                any(_fuse_sum(graph, node, *terms) for terms in (node.args, node.args[::-1]))
        graph.lint()

    def uuid(self) -> Any:
        """Return what identifies this pass in the compiler's cache: a hash of all modules of kernels.

        The cache knows a graph by the names of its operations. A changed gradient of one of them is another graph.
        """
        return kernel_digest()


def _fuse_sum(graph: Graph, node: Node, gradient: Any, other: Any) -> bool:
    """Pass `other` to the operation whose first result is `gradient`, in place of their sum `node`.

    Only where `other` is computed before that operation. Returns whether the graph was changed.
    """
    if not isinstance(gradient, Node) or gradient.target is not operator.getitem or len(gradient.users) != 1:
        return False
    source, index = gradient.args
    if not isinstance(source, Node) or index != 0 or not _takes_another_gradient(source):
        return False
    if not isinstance(other, Node) or not _same_shape_and_dtype(gradient, other):
        return False
    if not other < source:  # in the order of the graph
        return False
    source.args = (*source.args, other)
    if "eager_input_vals" in source.meta:  # from which the compiler takes the strides that inputs must have
        args, kwargs = source.meta["eager_input_vals"]
        source.meta["eager_input_vals"] = ((*args, other.meta["val"]), kwargs)
    node.replace_all_uses_with(gradient)
    graph.erase_node(node)
    return True


def _takes_another_gradient(source: Node) -> bool:
    """Return whether this is an operation whose last argument is a gradient to be added, and it has none yet."""
    operations = torch.ops.lowrank
    if source.target is operations.depthwise_backward.default:
        return len(source.args) == 3
    if source.target in (operations.norm_backward.default, operations.global_norm_backward.default):
        return FUSE_NORM_SUMS and len(source.args) == 9 and source.args[8] is False  # not where it was pooled
    return False


def _same_shape_and_dtype(one: Node, other: Node) -> bool:
    """Return whether the results of two nodes have the same shape and dtype."""
    first, second = one.meta.get("val"), other.meta.get("val")
    return (
        isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        and (first.shape, first.dtype) == (second.shape, second.dtype)
    )  # fmt: skip
