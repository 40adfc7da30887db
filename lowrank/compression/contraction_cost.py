"""The real cost of a tensor decomposition, applied in either of two ways.

Either the weight is rebuilt once a step and applied densely, or the cores are contracted with the activations in the
cheapest order.

Letters: I in-channels, O out-channels, P positions of the output, n_k sizes, r_k ranks; core k is (r_{k-1}, n_k, r_k).

The study split the O x I matrix into dimensions regardless of where the outputs end and the inputs begin, so a core may
hold parts of both. Cores from the left whose sizes multiply to a divisor of O hold outputs alone, and cores from the
right whose sizes multiply to a divisor of I hold inputs alone. Those between are first multiplied into one core, which
holds an output part and an input part.

The order is searched here and not by `opt_einsum`. Its dynamic programming finds the same total, but of orders of equal
cost it takes another one, which moves mult-adds between the two parts that are reported (with and without activations);
and it takes four times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from math import prod

from lowrank.layers import CP, ConvShape, Method, TensorTrain, Tucker, best_split, rebuild_costs, train_cost

POSITIONS = "p"
MAX_OPERANDS = 10  # the search takes 3^n steps


@dataclass(frozen=True)
class Operand:
    """A tensor to contract.

    Attributes:
        name: such as "core2".
        indices: names of its dimensions, in order.
    """

    name: str
    indices: tuple[str, ...]


@dataclass(frozen=True)
class TensorNetwork:
    """A pointwise map and its activations as tensors to contract.

    Attributes:
        operands: the activations `x`, then the cores.
        sizes: of all indices, by name.
        outputs: indices of the result.
        joined: mult-adds of multiplying the cores that hold outputs and inputs into one.
    """

    operands: tuple[Operand, ...]
    sizes: dict[str, int]
    outputs: frozenset[str]
    joined: int = 0


@dataclass(frozen=True)
class Contraction:
    """The cheapest order of contracting tensors pair by pair.

    Attributes:
        mult_adds: of all contractions.
        without_x: of those that no activation takes part in.
        order: the tree in brackets.
    """

    mult_adds: int
    without_x: int
    order: str


@dataclass(frozen=True)
class RealCost:
    """Mult-adds of one layer: paid once a step whatever the batch size, and for each image.

    Attributes:
        rebuilt_once: to rebuild the weight.
        rebuilt_image: to apply the rebuilt weight to one image.
        contracted_once: of the contractions without activations.
        contracted_image: of the contractions with the activations of one image.
        order: of the contractions, such as "((x core3) core2)".
    """

    rebuilt_once: int
    rebuilt_image: int
    contracted_once: int
    contracted_image: int
    order: str


def real_cost(method: Method, shape: ConvShape) -> RealCost | None:
    """Compute both real costs of a method at one site, its depthwise part included.

    The order of contractions is the cheapest for one image.

    Args:
        method: the method.
        shape: of the site.

    Returns:
        The costs; None if the method is no tensor decomposition.
    """
    if not isinstance(method, TensorTrain | Tucker | CP):
        return None
    return _real_cost(method, shape.in_channels, shape.out_channels, shape.out_area, shape.depthwise_params)


@lru_cache(maxsize=4096)
def _real_cost(method: TensorTrain | Tucker | CP, i: int, o: int, positions: int, depthwise: int) -> RealCost:
    network = make_tensor_network(method, i, o, positions)
    best = best_contraction(network)
    image = depthwise * positions
    return RealCost(
        rebuild_cost(method, i, o), image + i * o * positions, network.joined + best.without_x,
        image + best.mult_adds - best.without_x, best.order,
    )  # fmt: skip


def rebuild_cost(method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int) -> int:
    """Count the mult-adds of rebuilding the weight as the layers do: two halves, which are joined last.

    Tucker's factors are applied to the halves, or to the pieces of its core before: the cheaper of both.

    Args:
        method: the decomposition.
        in_channels: I.
        out_channels: O.

    Returns:
        Mult-adds.
    """
    if isinstance(method, CP):
        sizes, rank = method.structure(in_channels, out_channels)
        cut = best_split(sizes, (rank,) * (len(sizes) - 1))
        halves = (list(accumulate(half, int.__mul__))[1:] for half in (sizes[:cut], sizes[cut:]))
        return rank * (sum(map(sum, halves)) + prod(sizes))
    if isinstance(method, TensorTrain):
        return train_cost(*method.structure(in_channels, out_channels))
    return min(rebuild_costs(*method.structure(in_channels, out_channels)))


def split_sides(sizes: Sequence[int], in_channels: int, out_channels: int) -> tuple[int, int]:
    """Find the cores that hold outputs alone and those that hold inputs alone.

    Args:
        sizes: n_k of all cores.
        in_channels: I.
        out_channels: O.

    Returns:
        The number of cores from the left that hold outputs alone, and the first core from which all hold inputs alone.
    """
    output_end = 0
    while output_end < len(sizes) and out_channels % prod(sizes[: output_end + 1]) == 0:
        output_end += 1
    input_start = len(sizes)
    while input_start > output_end and in_channels % prod(sizes[input_start - 1 :]) == 0:
        input_start -= 1
    return output_end, input_start


def make_tensor_network(
    method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int, positions: int
) -> TensorNetwork:
    """Name the tensors of a pointwise map and its activations, and all their indices.

    Args:
        method: the decomposition.
        in_channels: I.
        out_channels: O.
        positions: P.

    Returns:
        The tensors; cores that hold outputs and inputs are joined into one.
    """
    if isinstance(method, CP):
        sizes, rank = method.structure(in_channels, out_channels)
        ranks: tuple[int, ...] = (rank,) * (len(sizes) - 1)
        inner: tuple[int, ...] | None = None
    elif isinstance(method, Tucker):
        sizes, inner, ranks = method.structure(in_channels, out_channels)
    else:
        (sizes, ranks), inner = method.structure(in_channels, out_channels), None
    output_end, input_start = split_sides(sizes, in_channels, out_channels)
    digits, dims = _digits(sizes, output_end, input_start, in_channels, out_channels)
    dims[POSITIONS] = positions
    inputs = tuple(name for part in digits for name in part if name.startswith("i"))
    outputs = frozenset(name for part in digits for name in part if name.startswith("o"))
    x = Operand("x", (POSITIONS, *inputs))
    blocks = _blocks(len(sizes), output_end, input_start)
    if isinstance(method, CP):
        dims["r"] = rank
        tensors = [Operand(_name(block), (*part, "r")) for block, part in zip(blocks, digits, strict=True)]
        joined = sum(rank * prod(sizes[output_end:end]) for end in range(output_end + 2, input_start + 1))
    else:
        tensors, joined = _train_operands(blocks, digits, dims, sizes, ranks, inner)
    return TensorNetwork((x, *tensors), dims, outputs | {POSITIONS}, joined)


def _blocks(cores: int, output_end: int, input_start: int) -> list[range]:
    """List the cores that each tensor consists of: those from `output_end` to `input_start` are one tensor."""
    middle = [range(output_end, input_start)] if input_start > output_end else []
    return [range(k, k + 1) for k in range(output_end)] + middle + [range(k, k + 1) for k in range(input_start, cores)]


def _name(block: range) -> str:
    return "core" + "+".join(str(k + 1) for k in block)


def _digits(
    sizes: Sequence[int], output_end: int, input_start: int, in_channels: int, out_channels: int
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """Name the output and input indices of each block, and give their sizes."""
    dims = {f"o{k + 1}": sizes[k] for k in range(output_end)} | {
        f"i{k + 1}": sizes[k] for k in range(input_start, len(sizes))
    }
    digits: list[tuple[str, ...]] = [(f"o{k + 1}",) for k in range(output_end)]
    if input_start > output_end:
        digits.append(("o", "i"))
        dims["o"] = out_channels // prod(sizes[:output_end])
        dims["i"] = in_channels // prod(sizes[input_start:])
    return digits + [(f"i{k + 1}",) for k in range(input_start, len(sizes))], dims


def _train_operands(
    blocks: Sequence[range], digits: Sequence[tuple[str, ...]], dims: dict[str, int], sizes: Sequence[int],
    ranks: Sequence[int], inner: Sequence[int] | None,
) -> tuple[list[Operand], int]:  # fmt: skip
    """Make the cores of a train (for Tucker, factors and core pieces) with rank indices, which are added to `dims`.

    Tucker's factors and core pieces are tensors of their own only as long as the number of tensors allows the search.
    """
    edged = (1, *ranks, 1)
    dims.update({f"r{k}": rank for k, rank in enumerate(edged)})
    apart = inner is not None and 2 * len(blocks) < MAX_OPERANDS
    operands, joined = [], 0
    for block, part in zip(blocks, digits, strict=True):
        edges = (f"r{block.start}", f"r{block.stop}")
        if inner is not None and (len(block) > 1 or not apart):
            joined += sum(edged[k] * sizes[k] * inner[k] * edged[k + 1] for k in block)
        if inner is not None and apart and len(block) == 1:
            (k,) = block
            dims[f"s{k + 1}"] = inner[k]
            operands.append(Operand(f"factor{k + 1}", (*part, f"s{k + 1}")))
            operands.append(Operand(f"piece{k + 1}", (edges[0], f"s{k + 1}", edges[1])))
        else:
            joined += _join_cost([sizes[k] for k in block], edged[block.start : block.stop + 1])
            operands.append(Operand(_name(block), (edges[0], *part, edges[1])))
    return operands, joined


def _join_cost(sizes: Sequence[int], edges: Sequence[int]) -> int:
    """Return the least cost of multiplying neighbouring cores into one (the matrix chain problem)."""

    @cache
    def least(start: int, stop: int) -> int:
        if stop - start == 1:
            return 0
        product = edges[start] * prod(sizes[start:stop]) * edges[stop]
        return min(least(start, cut) + least(cut, stop) + product * edges[cut] for cut in range(start + 1, stop))

    return least(0, len(sizes))


def best_contraction(network: TensorNetwork) -> Contraction:
    """Find the contraction tree of fewest mult-adds, by dynamic programming over subsets of tensors.

    Contracting two tensors costs the product of the sizes of all their indices. An index is summed as soon as no other
    tensor and no output has it.

    Args:
        network: the tensors.

    Returns:
        The cheapest of all trees.
    """
    search = _Search(network)
    full = (1 << len(network.operands)) - 1
    for subset in range(1, full + 1):
        search.solve(subset)
    return Contraction(search.cost[full], search.cost_without_x(full), search.order(full))


class _Search:
    """The tables of `best_contraction`; subsets of tensors and of indices are bit masks, and `x` is tensor 0."""

    def __init__(self, network: TensorNetwork):
        self.network = network
        self.names = sorted(name for name, size in network.sizes.items() if size > 1)
        bit = {name: 1 << k for k, name in enumerate(self.names)}
        self.indices = [sum(bit.get(name, 0) for name in operand.indices) for operand in network.operands]
        self.outputs = sum(bit.get(name, 0) for name in network.outputs)
        count = 1 << len(network.operands)
        self.cost, self.split = [0] * count, [0] * count
        self.open = [self._open(subset) for subset in range(count)]
        self.volumes: dict[int, int] = {}

    def _open(self, subset: int) -> int:
        """Return the indices of a contracted subset that a tensor outside of it, or the output, has too."""
        inside, outside = 0, self.outputs
        for k, indices in enumerate(self.indices):
            if subset >> k & 1:
                inside |= indices
            else:
                outside |= indices
        return inside & outside

    def volume(self, indices: int) -> int:
        """Return the product of the sizes of a set of indices."""
        if indices not in self.volumes:
            names = (name for k, name in enumerate(self.names) if indices >> k & 1)
            self.volumes[indices] = prod(self.network.sizes[name] for name in names)
        return self.volumes[indices]

    def solve(self, subset: int) -> None:
        """Find the cheapest last contraction of a subset; all smaller subsets must have been solved."""
        lowest = subset & -subset
        others = subset ^ lowest
        if not others:
            return
        best, part = None, others
        while part:  # `part` takes every subset of `others`, so each pair of halves occurs once
            remainder = subset ^ part
            volume = self.volume(self.open[part] | self.open[remainder])
            cost = self.cost[part] + self.cost[remainder] + volume
            if best is None or cost < best:
                best, self.cost[subset], self.split[subset] = cost, cost, part
            part = (part - 1) & others

    def cost_without_x(self, subset: int) -> int:
        """Return the cost of the contractions of a subset that no activation takes part in."""
        if not subset & 1:
            return self.cost[subset]
        part = self.split[subset]
        return self.cost_without_x(subset ^ part) + self.cost[part] if part else 0

    def order(self, subset: int) -> str:
        """Return the tree of a subset in brackets, such as "((x core3) core2)"."""
        part = self.split[subset]
        if not part:
            return self.network.operands[subset.bit_length() - 1].name
        return f"({self.order(subset ^ part)} {self.order(part)})"
