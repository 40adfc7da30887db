"""What a decomposition really costs, rebuilt or contracted.

Either its weight is rebuilt once a step and applied densely, or its cores are contracted with the activations in the
best order.

Letters: I in-channels, O out-channels, P positions of the output, n_k sizes, r_k ranks; core k is (r_{k-1}, n_k, r_k).

The study cut the O x I matrix into dimensions without regard to where the outputs end and the inputs begin (RULES), so
a core may hold parts of both. Cores from the left whose sizes multiply to a divisor of O, and cores from the right
whose sizes multiply to a divisor of I, hold outputs and inputs alone; those between are multiplied into one core
first, which then holds an output part and an input part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from math import prod

from lowrank.layers import CP, ConvShape, Method, TensorTrain, Tucker
from lowrank.layers.tensor.tensor_train_ops import best_split, train_cost
from lowrank.layers.tensor.tucker import rebuild_costs

POSITIONS = "p"
MOST_OPERANDS = 10  # contraction trees are searched exhaustively, in 3^n steps


@dataclass(frozen=True)
class Operand:
    """A tensor to contract: its name and its indices, in the order of its dimensions."""

    name: str
    indices: tuple[str, ...]


@dataclass(frozen=True)
class TensorNetwork:
    """A pointwise map as tensors to contract with `x`: sizes of all indices, and what joining straddling cores cost."""

    operands: tuple[Operand, ...]
    sizes: dict[str, int]
    outputs: frozenset[str]
    joined: int = 0


@dataclass(frozen=True)
class Contraction:
    """The cheapest order of contracting tensors pair by pair: mult-adds in all, those without `x`, and the order."""

    mult_adds: int
    without_x: int
    order: str


@dataclass(frozen=True)
class RealCost:
    """Mult-adds of one layer: what is paid once a step whatever the batch, and what each image adds."""

    rebuilt_once: int
    rebuilt_image: int
    contracted_once: int
    contracted_image: int
    order: str


def real_cost(method: Method, shape: ConvShape) -> RealCost | None:
    """Both real costs of `method` at `shape`, its depthwise part included; None if it is no decomposition.

    The order is the best for one image; what it multiplies before any activation is paid once a step.
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
    """Mult-adds of multiplying the weight out as the layers do where they form it: halves towards a cut, joined last.

    For Tucker that is done with the factors applied before, or to the core, then spread by them: what costs less.
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
    """How many cores from the left hold outputs alone, and from which core on they hold inputs alone."""
    left = 0
    while left < len(sizes) and out_channels % prod(sizes[: left + 1]) == 0:
        left += 1
    right = len(sizes)
    while right > left and in_channels % prod(sizes[right - 1 :]) == 0:
        right -= 1
    return left, right


def make_tensor_network(
    method: TensorTrain | Tucker | CP, in_channels: int, out_channels: int, positions: int
) -> TensorNetwork:
    """The tensors of a pointwise map and its activations, every index named; cores that straddle are joined."""
    if isinstance(method, CP):
        sizes, rank = method.structure(in_channels, out_channels)
        ranks: tuple[int, ...] = (rank,) * (len(sizes) - 1)
        inner: tuple[int, ...] | None = None
    elif isinstance(method, Tucker):
        sizes, inner, ranks = method.structure(in_channels, out_channels)
    else:
        (sizes, ranks), inner = method.structure(in_channels, out_channels), None
    left, right = split_sides(sizes, in_channels, out_channels)
    digits, dims = _digits(sizes, left, right, in_channels, out_channels)
    dims[POSITIONS] = positions
    inputs = tuple(name for part in digits for name in part if name.startswith("i"))
    outputs = frozenset(name for part in digits for name in part if name.startswith("o"))
    x = Operand("x", (POSITIONS, *inputs))
    blocks = _blocks(len(sizes), left, right)
    if isinstance(method, CP):
        dims["r"] = rank
        tensors = [Operand(_name(block), (*part, "r")) for block, part in zip(blocks, digits, strict=True)]
        joined = sum(rank * prod(sizes[left:end]) for end in range(left + 2, right + 1))
    else:
        tensors, joined = _train_operands(blocks, digits, dims, sizes, ranks, inner)
    return TensorNetwork((x, *tensors), dims, outputs | {POSITIONS}, joined)


def _blocks(cores: int, left: int, right: int) -> list[range]:
    """Which cores each tensor holds: those between `left` and `right` are one."""
    middle = [range(left, right)] if right > left else []
    return [range(k, k + 1) for k in range(left)] + middle + [range(k, k + 1) for k in range(right, cores)]


def _name(block: range) -> str:
    return "core" + "+".join(str(k + 1) for k in block)


def _digits(
    sizes: Sequence[int], left: int, right: int, in_channels: int, out_channels: int
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """The output and input indices that each block holds, and their sizes."""
    dims = {f"o{k + 1}": sizes[k] for k in range(left)} | {f"i{k + 1}": sizes[k] for k in range(right, len(sizes))}
    digits: list[tuple[str, ...]] = [(f"o{k + 1}",) for k in range(left)]
    if right > left:
        digits.append(("o", "i"))
        dims["o"] = out_channels // prod(sizes[:left])
        dims["i"] = in_channels // prod(sizes[right:])
    return digits + [(f"i{k + 1}",) for k in range(right, len(sizes))], dims


def _train_operands(
    blocks: Sequence[range], digits: Sequence[tuple[str, ...]], dims: dict[str, int], sizes: Sequence[int],
    ranks: Sequence[int], inner: Sequence[int] | None,
) -> tuple[list[Operand], int]:  # fmt: skip
    """Cores of a train (for Tucker, factors and core pieces) with their rank indices, which are added to `dims`.

    Tucker's factors are kept apart from the pieces of its core only while the order can be searched exhaustively.
    """
    edged = (1, *ranks, 1)
    dims.update({f"r{k}": rank for k, rank in enumerate(edged)})
    apart = inner is not None and 2 * len(blocks) < MOST_OPERANDS
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
    """The least cost of multiplying neighbouring cores into one (the network of matrix products)."""

    @cache
    def least(start: int, stop: int) -> int:
        if stop - start == 1:
            return 0
        whole = edges[start] * prod(sizes[start:stop]) * edges[stop]
        return min(least(start, cut) + least(cut, stop) + whole * edges[cut] for cut in range(start + 1, stop))

    return least(0, len(sizes))


def best_contraction(network: TensorNetwork) -> Contraction:
    """The contraction tree of fewest mult-adds, over all of them, by dynamic programming over subsets of tensors.

    One product of two tensors costs the product of all their indices' sizes; an index is summed as soon as no other
    tensor and no output has it. Indices of size 1 cost nothing.
    """
    search = _Search(network)
    full = (1 << len(network.operands)) - 1
    for subset in range(1, full + 1):
        search.solve(subset)
    return Contraction(search.cost[full], search.cost_without_x(full), search.order(full))


class _Search:
    """The tables of `best_contraction`; subsets of tensors and sets of indices are bit masks, `x` is tensor 0."""

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
        """Indices of a contracted subset that something outside of it still has."""
        inside, outside = 0, self.outputs
        for k, indices in enumerate(self.indices):
            if subset >> k & 1:
                inside |= indices
            else:
                outside |= indices
        return inside & outside

    def volume(self, indices: int) -> int:
        """The product of the sizes of a set of indices."""
        if indices not in self.volumes:
            names = (name for k, name in enumerate(self.names) if indices >> k & 1)
            self.volumes[indices] = prod(self.network.sizes[name] for name in names)
        return self.volumes[indices]

    def solve(self, subset: int) -> None:
        """Find the best last product of a subset, all smaller ones being solved."""
        lowest = subset & -subset
        rest = subset ^ lowest
        if not rest:
            return
        best, part = None, rest
        while part:  # `part` runs over the subsets of `rest`: every pair of halves once
            other = subset ^ part
            cost = self.cost[part] + self.cost[other] + self.volume(self.open[part] | self.open[other])
            if best is None or cost < best:
                best, self.cost[subset], self.split[subset] = cost, cost, part
            part = (part - 1) & rest

    def cost_without_x(self, subset: int) -> int:
        """The part of the cost that no activation takes part in."""
        if not subset & 1:
            return self.cost[subset]
        part = self.split[subset]
        return self.cost_without_x(subset ^ part) + self.cost[part] if part else 0

    def order(self, subset: int) -> str:
        """The tree in brackets, such as "((x core3) core2)"."""
        part = self.split[subset]
        if not part:
            return self.network.operands[subset.bit_length() - 1].name
        return f"({self.order(subset ^ part)} {self.order(part)})"
