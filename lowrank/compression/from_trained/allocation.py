"""Which ranks each layer gets, so that the network stays within its limits at the least expected error.

Every layer offers candidates: ranks with their cost and the error expected of them. With a multiplier m each layer
alone picks the candidate with the least error + m * cost; m is bisected until all costs fit, and what is left is
filled by the exchange that lowers the error most for its cost (Shoham and Gersho 1988, "Efficient bit allocation for an
arbitrary set of quantizers"). Several limits have one multiplier each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
import torch

from lowrank.compression.from_trained.fit import Problem, fit_factors, tucker_tails
from lowrank.compression.from_trained.in_order import Choice, Layer
from lowrank.layers import ConvShape, Dense, Tucker2, WholeKernelMethod

STEPS = 14
"""Values of each rank that are tried, from 1 to the rank at which the dense layer is as small."""
_DENSE = Dense()


@dataclass(frozen=True)
class Candidate:
    """One form of a layer.

    Attributes:
        choice: its factors; None for the dense layer.
        costs: parameters and mult-adds (of one image).
        error: what it is expected to cost the network, in the allocation's own unit; 0 for the dense layer.
    """

    choice: Choice | None
    costs: tuple[int, int]
    error: float


def dense_candidate(layer: Layer) -> Candidate:
    """The layer as it was."""
    return Candidate(None, (_DENSE.params(layer.shape), _DENSE.mult_adds(layer.shape)), 0.0)


def rank_grid(layer: Layer, method: WholeKernelMethod) -> list[tuple[int, ...]]:
    """Ranks of one group at which a layer is smaller than its dense form, from small to large.

    Methods of one rank take STEPS values in a geometric row, Tucker-2 a grid of pairs, and the others move all ranks
    together.
    """
    full = method.full_ranks(layer.shape)
    rows = [_geometric(limit, STEPS) for limit in full]
    tuples: list[tuple[int, ...]]
    if isinstance(method, Tucker2) and layer.shape.kernel_area > 1:
        tuples = [(first, second) for first in rows[0] for second in rows[1]]
    else:
        shares = numpy.geomspace(1 / max(full), 1, 2 * STEPS)
        tuples = [tuple(max(1, round(share * limit)) for limit in full) for share in shares]
        if layer.shape.kernel_area == 1:
            tuples = [(min(ranks),) * len(ranks) for ranks in tuples]
    sized = (method.model_copy(update={"ranks": ranks}) for ranks in dict.fromkeys(tuples))
    return [one.ranks for one in sized if one.ranks is not None and not one.stays_dense(layer.shape)]


def _geometric(limit: int, steps: int) -> list[int]:
    return sorted({max(1, round(value)) for value in numpy.geomspace(1, limit, steps)})


def energy_candidates(layer: Layer, method: WholeKernelMethod, problems: Sequence[Problem]) -> list[Candidate]:
    """Return a layer's candidates, each with the share of variance that it misses.

    Args:
        layer: the layer.
        method: the kind of its factors.
        problems: one least-squares problem a group, on the dense network's own inputs.

    Returns:
        The candidates that no other beats in parameters and error (the share of the outputs' variance), from cheap to
        expensive, the dense layer last.
    """
    candidates = [dense_candidate(layer)]
    energy = max(sum(problem.energy for problem in problems), 1e-300)
    errors = _tucker_errors(layer, problems) if isinstance(method, Tucker2) and layer.shape.kernel_area > 1 else {}
    for ranks in rank_grid(layer, method):
        missed = errors.get(ranks)
        if missed is None:
            missed = sum(fit_factors(method, one, ranks, rounds=0)[1] * one.energy for one in problems)
        choice = Choice(method.model_copy(update={"ranks": ranks}), ranks)
        candidates.append(Candidate(choice, _costs(layer, choice), missed / energy))
    return efficient(candidates)


def least_costs(shape: ConvShape, method: WholeKernelMethod) -> tuple[int, int]:
    """Count the smallest form of a layer, without calibration.

    Args:
        shape: of the layer.
        method: the kind of its factors.

    Returns:
        Parameters and mult-adds of one image at rank 1, the least of all candidates in both; those of the dense layer
        where no factors are smaller.
    """
    ones = (1,) * len(method.full_ranks(shape))
    smallest = method.model_copy(update={"ranks": ones})
    return smallest.params(shape), smallest.mult_adds(shape)


def _costs(layer: Layer, choice: Choice) -> tuple[int, int]:
    method = choice.method
    return method.chain_params(layer.shape, choice.ranks), method.chain_mult_adds(layer.shape, choice.ranks)


def _tucker_errors(layer: Layer, problems: Sequence[Problem]) -> dict[tuple[int, ...], float]:
    """What every pair of the grid misses: for each in-rank, the eigenvalues of the best reduced map say it for all."""
    limits = Tucker2().full_ranks(layer.shape)
    missed: dict[tuple[int, ...], float] = {}
    for first in _geometric(limits[0], STEPS):
        tails = [tucker_tails(problem, first) for problem in problems]
        for second in _geometric(limits[1], STEPS):
            missed[first, second] = sum(float(tail[min(second, len(tail) - 1)]) for tail in tails)
    return missed


def efficient(candidates: Iterable[Candidate], axis: int = 0) -> list[Candidate]:
    """Return the candidates that no cheaper one equals in error.

    Args:
        candidates: of one layer.
        axis: which of a candidate's costs counts.

    Returns:
        The candidates, from cheap to expensive.
    """
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.costs[axis], one.error)):
        if not front or candidate.error < front[-1].error:
            front.append(candidate)
    return front


def allocate(tables: Mapping[str, Sequence[Candidate]], limits: Sequence[float | None]) -> dict[str, Candidate] | None:
    """Pick one candidate for each layer.

    Args:
        tables: the candidates of each layer by name.
        limits: the most parameters and mult-adds of all these layers together; None is no limit.

    Returns:
        One candidate a layer within the limits, with the least sum of errors that multipliers find; None if even the
        cheapest candidates exceed a limit.
    """
    names = list(tables)
    costs = {name: numpy.array([one.costs for one in tables[name]], dtype=float) for name in names}
    errors = {name: numpy.array([one.error for one in tables[name]]) for name in names}
    bounds = numpy.array([numpy.inf if limit is None else limit for limit in limits], dtype=float)
    units = numpy.array([sum(costs[name][:, axis].max() for name in names) or 1.0 for axis in (0, 1)])

    def pick(multipliers: numpy.ndarray) -> dict[str, int]:
        return {name: int(numpy.argmin(errors[name] + costs[name] @ (multipliers / units))) for name in names}

    def total(index: Mapping[str, int]) -> numpy.ndarray:
        costs_of_all: numpy.ndarray = numpy.sum([costs[name][index[name]] for name in names], axis=0)
        return costs_of_all

    best: dict[str, int] | None = None
    for direction in _directions(bounds):
        low, high = 0.0, 1e-12
        while (total(pick(direction * high)) > bounds).any():
            high *= 4
            if high > 1e18:
                break
        for _ in range(80):
            middle = (low + high) / 2
            if (total(pick(direction * middle)) > bounds).any():
                low = middle
            else:
                high = middle
        index = pick(direction * high)
        if (total(index) > bounds).any():
            continue
        _fill(index, costs, errors, bounds)
        if best is None or _sum(errors, index) < _sum(errors, best):
            best = index
    return None if best is None else {name: tables[name][best[name]] for name in names}


def _directions(bounds: numpy.ndarray) -> list[numpy.ndarray]:
    """Ratios of the two multipliers: one limit alone, or seven mixtures of both."""
    finite = numpy.isfinite(bounds)
    if finite.all():
        return [numpy.array([share, 1 - share]) for share in (1, 0.9, 0.75, 0.5, 0.25, 0.1, 0)]
    return [numpy.where(finite, 1.0, 0.0)]


def _sum(errors: Mapping[str, numpy.ndarray], index: Mapping[str, int]) -> float:
    return float(sum(errors[name][place] for name, place in index.items()))


def _fill(
    index: dict[str, int],
    costs: Mapping[str, numpy.ndarray],
    errors: Mapping[str, numpy.ndarray],
    bounds: numpy.ndarray,
) -> None:
    """Exchange single candidates for dearer ones while something fits, the most error for its cost first."""
    while True:
        spent = numpy.sum([costs[name][place] for name, place in index.items()], axis=0)
        steps = []
        for name, place in index.items():
            gain = errors[name][place] - errors[name]
            extra = costs[name] - costs[name][place]
            fits = (spent + extra <= bounds).all(axis=1) & (gain > 0)
            if fits.any():
                value = numpy.where(fits, gain / numpy.maximum(extra.max(axis=1), 1e-9), -1)
                steps.append((value.max(), name, int(value.argmax())))
        if not steps:
            return
        _, name, place = max(steps)
        index[name] = place


def measured_candidates(candidates: Sequence[Candidate], measured: Mapping[int, float]) -> list[Candidate]:
    """Give candidates the errors that a measurement at some of them implies for all.

    The measured rise of the loss is interpolated over the missed energy, both as logarithms.

    Args:
        candidates: as `energy_candidates` gives them.
        measured: rise of the loss by place in `candidates`.

    Returns:
        The same candidates with errors that never rise with the cost.
    """
    places = sorted(measured, key=lambda place: candidates[place].error)
    missed = numpy.log([max(candidates[place].error, 1e-12) for place in places])
    rises = numpy.log(numpy.maximum.accumulate([max(measured[place], 1e-9) for place in places]))
    last = min(2, len(places) - 1)
    slope = max(0.2, (rises[last] - rises[0]) / (missed[last] - missed[0])) if missed[last] > missed[0] else 1.0

    def expected(error: float) -> float:
        x = float(numpy.log(max(error, 1e-12)))
        if x <= missed[0]:  # below the smallest that was measured: along the first points' slope
            return float(numpy.exp(rises[0] + slope * (x - missed[0])))
        return float(numpy.exp(numpy.interp(x, missed, rises)))

    return efficient(one if one.choice is None else replace(one, error=expected(one.error)) for one in candidates)


def probe_places(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Choose the candidates to measure.

    Args:
        candidates: of one layer.
        count: how many to measure.

    Returns:
        Their indices, spread evenly over the logarithm of the missed energy; the dense layer is not measured.
    """
    usable = [place for place, one in enumerate(candidates) if one.choice is not None]
    if len(usable) <= count:
        return usable
    logs = numpy.log([max(candidates[place].error, 1e-12) for place in usable])
    levels = numpy.linspace(logs.min(), logs.max(), count)
    return sorted({usable[int(numpy.argmin(abs(logs - level)))] for level in levels})


def divergence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the mean Kullback-Leibler divergence between two predictions.

    Args:
        logits: (B, C).
        reference: (B, C).

    Returns:
        In nats, of the reference's class probabilities from those of `logits`.
    """
    ours, theirs = logits.double().log_softmax(1), reference.double().log_softmax(1)
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())
