"""In the graph of a backward pass: a gradient's sum with a depthwise map's is left to the kernel that finds the latter.

A residual's input has two gradients, its own and that of the depthwise map which reads it too. As an operation of its
own their sum reads both and writes it, where one read is enough.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node


class FuseGradientSums(CustomGraphPass):
    """Changes a graph of aten operations in place, before it becomes code."""

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
                _ = _joined(graph, node, *node.args) or _joined(graph, node, *reversed(node.args))
        graph.lint()

    def uuid(self) -> Any:
        """Names what this does, for the compiler's cache."""
        return get_hash_for_files((__file__,))


def _joined(graph: Graph, node: Node, found: Any, other: Any) -> bool:
    """Put `other` into the operation that `found` is the first result of, where it is there by then."""
    if not isinstance(found, Node) or found.target is not operator.getitem or len(found.users) != 1:
        return False
    source, place = found.args
    if not isinstance(source, Node) or source.target is not torch.ops.lowrank.depthwise_backward.default:
        return False
    if place != 0 or len(source.args) != 3 or not isinstance(other, Node) or not _alike(found, other):
        return False
    if not other < source:  # in the order of the graph
        return False
    source.args = (*source.args, other)
    if "eager_input_vals" in source.meta:  # by which the compiler holds inputs to the strides that they had
        args, kwargs = source.meta["eager_input_vals"]
        source.meta["eager_input_vals"] = ((*args, other.meta["val"]), kwargs)
    node.replace_all_uses_with(found)
    graph.erase_node(node)
    return True


def _alike(one: Node, other: Node) -> bool:
    first, second = one.meta.get("val"), other.meta.get("val")
    return (
        isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        and (first.shape, first.dtype) == (second.shape, second.dtype)
    )  # fmt: skip
