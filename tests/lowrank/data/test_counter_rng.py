"""The counter-based generator: quality of its numbers, and that they depend on nothing but their key."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lowrank.data.counter_rng import (
    WORD,
    Stream,
    _scramble_in_place,
    balanced_order,
    epoch_order,
    normal_numbers,
    scramble,
    uniform_below,
)

N = 20_000
GOLDEN = [[1026511149, 4264928069, 3183530598], [2754634694, 1815117720, 3156042629]]
GOLDEN_ORDER = [2, 7, 1, 5, 3, 6, 4, 0]


def words(seed: int, epoch: int, draws: int = 1, n: int = N) -> torch.Tensor:
    """(draws, n) words of neighbouring indices."""
    return torch.stack(Stream(seed, epoch, "augmentation").words(torch.arange(n), draws))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def chi_square(values: torch.Tensor, bins: int) -> float:
    counts = torch.bincount(values, minlength=bins).double()
    assert len(counts) == bins
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_scramble_is_the_same_for_integers_and_tensors():
    values = [0, 1, 2, 12345, 2**31, WORD]
    assert scramble(torch.tensor(values)).tolist() == [scramble(value) for value in values]


def test_scramble_has_no_collisions():
    assert len(scramble(torch.arange(1 << 18)).unique()) == 1 << 18


@pytest.mark.parametrize("bit", range(32))
def test_one_input_bit_flips_each_output_bit_half_of_the_time(bit: int):
    x = torch.arange(N)
    flipped = scramble(x) ^ scramble(x ^ (1 << bit))
    share = torch.stack([((flipped >> out) & 1).double().mean() for out in range(32)])
    # one deviation is 0.0035; the largest of 32 x 32 shares is expected near 3.5 of them
    assert (share - 0.5).abs().max() < 0.02


def test_the_numbers_never_change():
    """Old studies replay: these values are the format of every teacher cache and split."""
    assert words(0, 0, 2, 3).tolist() == GOLDEN
    assert epoch_order(3, 7, 8).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("bound", [2, 3, 9, 32, 224])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 199), (-5, 3), (2**40, 1)])
def test_uniform(bound: int, seed: int, epoch: int):
    values = uniform_below(words(seed, epoch)[0], bound)
    freedom = bound - 1
    assert abs(chi_square(values, bound) - freedom) < 4.5 * (2 * freedom) ** 0.5 + 4  # about 4.5 deviations


def test_uniform_over_epochs_for_one_image():
    values = torch.stack([Stream(0, epoch, "augmentation").words(torch.tensor([17]), 1)[0][0] for epoch in range(4000)])
    assert abs(chi_square(uniform_below(values, 9), 9) - 8) < 4.5 * 4 + 4


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 256])
def test_neighbouring_images_do_not_correlate(lag: int):
    values = words(0, 0)[0]
    assert abs(correlation(values[:-lag], values[lag:])) < 4.5 / N**0.5


def test_epochs_seeds_draws_and_purposes_do_not_correlate():
    rows = [
        *words(0, 0, 5),
        words(0, 1)[0],
        words(0, 2)[0],
        words(1, 0)[0],
        words(1 << 32, 0)[0],
        words(-1, 0)[0],
        Stream(0, 0, "order").words(torch.arange(N), 1)[0],
    ]
    matrix = torch.corrcoef(torch.stack(rows).double()) - torch.eye(len(rows), dtype=torch.double)
    assert matrix.abs().max() < 4.5 / N**0.5


def test_seed_and_epoch_are_not_interchangeable():
    assert not torch.equal(words(1, 2), words(2, 1))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000), st.lists(st.integers(0, WORD), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_a_number_depends_on_its_own_index_alone(seed: int, epoch: int, indices: list[int]):
    stream = Stream(seed, epoch, "augmentation")
    together = stream.words(torch.tensor(indices), 2)
    for position, index in enumerate(indices):
        alone = stream.words(torch.tensor([index]), 2)
        assert [int(draw[position]) for draw in together] == [int(draw[0]) for draw in alone]
        assert all(0 <= int(draw[0]) <= WORD for draw in alone)


def test_words_of_32_bits_are_scrambled_as_those_in_64_bits_are():
    edges = torch.tensor([0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
    words = torch.cat([edges, Stream(0, 0, "order").words(torch.arange(N), 1)[0]])
    scrambled = _scramble_in_place(words.to(torch.int32)).to(torch.int64) & WORD
    assert torch.equal(scrambled, scramble(words))


def test_normal_numbers_keep_their_bits():
    """Box and Muller's formula in whole words of 64 bits; what a seed gives must not change between versions."""
    stream, indices = Stream(3, 4, "weight noise"), torch.tensor([0, 7, 2**32 - 1])
    index_key, draw_key = torch.tensor(stream.keys(6))[[0, 6]]
    words = torch.stack(
        [scramble(scramble(indices ^ index_key) ^ scramble(torch.tensor(place) ^ draw_key)) for place in range(6)], 1
    )
    uniform = (words.float() + 0.5) * 2.0**-32
    radius, angle = (-2 * uniform[:, :3].log()).sqrt(), 2 * math.pi * uniform[:, 3:]
    expected = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :5]
    torch.testing.assert_close(normal_numbers(indices, index_key, draw_key, 5), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31 - 1), st.integers(0, 300), st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_epoch_order_is_a_permutation(seed: int, epoch: int, n: int):
    order = epoch_order(seed, epoch, n)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(order, epoch_order(seed, epoch, n))


def test_epoch_orders_differ_and_do_not_correlate():
    orders = [epoch_order(0, 0, N), epoch_order(0, 1, N), epoch_order(1, 0, N), torch.arange(N)]
    matrix = torch.corrcoef(torch.stack(orders).double()) - torch.eye(len(orders), dtype=torch.double)
    assert matrix.abs().max() < 4.5 / N**0.5


def test_each_image_comes_at_each_time():
    first = torch.tensor([int(epoch_order(0, epoch, 6)[0]) for epoch in range(1200)])
    assert chi_square(first, 6) < 25  # 5 degrees of freedom


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu():
    indices = torch.arange(N)
    for cpu, gpu in zip(
        Stream(3, 4, "augmentation").words(indices, 5),
        Stream(3, 4, "augmentation").words(indices.cuda(), 5),
        strict=True,
    ):
        assert torch.equal(cpu, gpu.cpu())
    assert torch.equal(epoch_order(3, 4, N), epoch_order(3, 4, N, "cuda").cpu())


class TestBalancedOrder:
    """Each class comes equally often in an epoch."""

    labels = torch.tensor([0] * 90 + [1] * 10 + [3] * 1)

    def test_counts(self):
        order = balanced_order(0, 0, self.labels)
        assert len(order) == 101
        counts = [torch.bincount(self.labels[balanced_order(0, epoch, self.labels)], minlength=4) for epoch in range(3)]
        assert [count.sort().values.tolist() for count in counts] == [[0, 33, 34, 34]] * 3
        assert torch.stack(counts).sum(0).tolist() == [101, 101, 0, 101]  # the remainder goes round

    def test_all_images_of_a_frequent_class_come_in_time_and_rare_ones_evenly(self):
        orders = [balanced_order(0, epoch, self.labels) for epoch in range(60)]
        seen = torch.bincount(torch.cat(orders), minlength=101)
        assert int(seen[:90].min()) > 0
        first = torch.bincount(orders[0], minlength=101)
        assert int(first[:90].max()) == 1
        assert set(first[90:100].tolist()) <= {3, 4}

    def test_it_replays_and_changes_with_seed_and_epoch(self):
        order = balanced_order(3, 5, self.labels)
        assert torch.equal(order, balanced_order(3, 5, self.labels))
        assert not torch.equal(order, balanced_order(3, 6, self.labels))
        assert not torch.equal(order, balanced_order(4, 5, self.labels))
        assert not torch.equal(order.sort().values, order)
