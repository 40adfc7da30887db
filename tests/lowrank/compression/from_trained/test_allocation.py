"""Ranks within limits: exact, at the least error that multipliers find, and filled to the last that fits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lowrank.compression.from_trained.allocation import (
    Candidate,
    allocate,
    dense_candidate,
    divergence,
    efficient,
    least_costs,
    measured_candidates,
    probe_places,
    rank_grid,
)
from lowrank.compression.from_trained.in_order import Choice, Layer
from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.cp_kernel import CPKernel
from lowrank.layers.low_rank.spatial_svd import SpatialSVD
from lowrank.layers.low_rank.svd import SVD
from lowrank.layers.low_rank.tensor_train_kernel import TensorTrainKernel
from lowrank.layers.low_rank.tucker2 import Tucker2

CHOICE = Choice(SVD(), (1,))


def candidate(cost: int, error: float, work: int | None = None) -> Candidate:
    return Candidate(CHOICE, (cost, cost if work is None else work), error)


tables = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.floats(0, 10)), min_size=1, max_size=5),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(entries=tables, share=st.floats(0, 1), work_share=st.none() | st.floats(0, 1))
def test_an_allocation_keeps_every_limit_and_nothing_more_fits(entries, share, work_share) -> None:
    table = {str(i): [candidate(*entry[:1], entry[2], entry[1]) for entry in row] for i, row in enumerate(entries)}
    most = [sum(max(one.costs[axis] for one in row) for row in table.values()) for axis in (0, 1)]
    limits = (share * most[0], None if work_share is None else work_share * most[1])
    picked = allocate(table, limits)
    combinations = list(product(*table.values()))

    def fits(chosen) -> bool:
        return all(
            limit is None or sum(one.costs[axis] for one in chosen) <= limit for axis, limit in enumerate(limits)
        )

    if picked is None:
        if work_share is None:
            assert not any(fits(chosen) for chosen in combinations)
        return
    assert fits(list(picked.values()))
    for name, row in table.items():
        for other in row:
            exchanged = [other if key == name else one for key, one in picked.items()]
            assert not (fits(exchanged) and other.error < picked[name].error), "a better candidate would have fitted"


def test_an_allocation_spends_where_it_lowers_the_error_most() -> None:
    table = {
        "matters": [candidate(10, 5.0), candidate(20, 1.0), candidate(30, 0.0)],
        "does not": [candidate(10, 0.2), candidate(20, 0.1), candidate(30, 0.0)],
    }
    picked = allocate(table, (40, None))
    assert picked is not None
    assert [one.costs[0] for one in picked.values()] == [30, 10]
    assert allocate(table, (19, None)) is None


def test_dominated_candidates_are_dropped() -> None:
    front = efficient([candidate(30, 0.5), candidate(10, 2.0), candidate(20, 2.0), candidate(25, 0.4)])
    assert [(one.costs[0], one.error) for one in front] == [(10, 2.0), (25, 0.4)]


def test_a_measured_rise_is_interpolated_over_the_missed_energy() -> None:
    front = [candidate(cost, error) for cost, error in ((10, 0.8), (20, 0.4), (30, 0.2), (40, 0.1))]
    renewed = measured_candidates(front, {0: 1.6, 2: 0.1})
    errors = {one.costs[0]: one.error for one in renewed}
    assert errors[10] == pytest.approx(1.6)
    assert errors[30] == pytest.approx(0.1)
    assert errors[20] == pytest.approx(0.4)  # halfway between both, as logarithms
    assert errors[40] == pytest.approx(0.025)  # along the slope of two, beyond what was measured


def test_places_to_measure_are_spread_and_leave_the_dense_layer_out() -> None:
    front = [candidate(10 * i, 0.9**i) for i in range(1, 30)] + [Candidate(None, (400, 400), 0.0)]
    places = probe_places(front, 5)
    assert len(places) == 5
    assert places[0] == 0
    assert len(front) - 1 not in places


@pytest.mark.parametrize("method", [SVD(), Tucker2()])
def test_ranks_that_are_tried_are_smaller_than_the_dense_layer(method) -> None:
    layer = Layer("conv", ConvShape(32, 48, (3, 3), padding=(1, 1), in_area=64, out_area=64))
    grid = rank_grid(layer, method)
    assert len(grid) == len(set(grid)) > 5
    for ranks in grid:
        assert method.chain_params(layer.shape, ranks) < 32 * 48 * 9
        assert method.chain_mult_adds(layer.shape, ranks) < 32 * 48 * 9 * 64


@pytest.mark.parametrize("shape", [
    ConvShape(32, 48, (3, 3), padding=(1, 1), in_area=64, out_area=64, mixed_area=64),
    ConvShape(3, 8, (5, 5), stride=(2, 2), padding=(2, 2), in_area=64, out_area=16, mixed_area=32),
    ConvShape(16, 32, (1, 1), in_area=64, out_area=64, mixed_area=64),
    ConvShape(16, 16, (3, 3), padding=(1, 1), groups=4, in_area=64, out_area=64, mixed_area=64),
    ConvShape(1, 2, (1, 1), in_area=64, out_area=64, mixed_area=64),  # no factors are smaller
])  # fmt: skip
@pytest.mark.parametrize("kind", [SVD, SpatialSVD, Tucker2, CPKernel, TensorTrainKernel])
def test_rank_1_costs_the_least_of_all_candidates(shape, kind) -> None:
    layer, method = Layer("conv", shape), kind(bias=True)
    costs = [dense_candidate(layer).costs]
    costs += [
        (method.chain_params(shape, ranks), method.chain_mult_adds(shape, ranks)) for ranks in rank_grid(layer, method)
    ]
    assert least_costs(shape, method) == (min(one[0] for one in costs), min(one[1] for one in costs))


def test_divergence_is_zero_for_equal_logits_alone() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert divergence(logits, logits + 3) == pytest.approx(0, abs=1e-7)  # a constant changes no class
    assert divergence(logits.flip(1), logits) > 0.1
