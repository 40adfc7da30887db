"""Stratified parts: exact sizes, no class lost, nothing in two parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lowrank.data.splits import allocate, hold_out, stratified, training_subset, validation_subset
from lowrank.errors import InputError

LABELS = st.lists(st.integers(2, 60), min_size=1, max_size=12).flatmap(
    lambda counts: st.permutations(np.repeat(np.arange(len(counts)), counts).tolist())
)


def counts_of(labels: np.ndarray) -> list[int]:
    return np.bincount(labels).tolist()


@given(st.lists(st.integers(2, 400), min_size=1, max_size=30), st.floats(0, 1), st.sampled_from([0, 1]))
@settings(max_examples=200, deadline=None)
def test_allocate(counts: list[int], share: float, spare: int):
    low, high = len(counts), sum(counts) - spare * len(counts)
    total = low + round(share * (high - low))
    shares = allocate(counts, total, spare)
    assert sum(shares) == total
    assert all(1 <= share <= count - spare for share, count in zip(shares, counts, strict=True))
    exact = [total * count / sum(counts) for count in counts]
    if min(exact) >= 1 and all(e <= c - spare for e, c in zip(exact, counts, strict=True)):
        assert all(abs(share - e) < 1 + 1e-9 for share, e in zip(shares, exact, strict=True))


def test_allocate_by_largest_remainders():
    assert allocate([50, 30, 20], 11) == [6, 3, 2]  # exact 5.5, 3.3, 2.2
    assert allocate([97, 2, 1], 10) == [8, 1, 1]  # the small classes keep one each
    assert allocate([5, 5], 8, spare=1) == [4, 4]


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_hold_out(labels: list[int], fraction: float, seed: int):
    every = np.array(labels, dtype=np.int64)
    members = np.arange(len(every))
    remaining, held_out = hold_out(every, members, fraction, seed, "validation split")
    assert np.array_equal(np.sort(np.concatenate([remaining, held_out])), members)
    assert np.all(np.diff(remaining) > 0)
    assert np.all(np.diff(held_out) > 0)
    for part in (remaining, held_out):
        assert set(every[part]) == set(every)
    classes = every.max() + 1
    assert abs(len(held_out) - fraction * len(every)) <= max(classes, 0.5)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            hold_out(every, members, fraction, seed, "validation split"), (remaining, held_out), strict=True
        )
    )


def test_hold_out_is_proportional():
    labels = np.repeat(np.arange(4), [100, 200, 300, 50])
    remaining, held_out = hold_out(labels, np.arange(len(labels)), 0.2, 0, "validation split")
    assert counts_of(labels[held_out]) == [20, 40, 60, 10]
    assert counts_of(labels[remaining]) == [80, 160, 240, 40]


def test_seed_and_purpose_choose():
    labels = np.zeros(200, dtype=np.int64)
    members = np.arange(200)
    base = stratified(labels, members, 100, 0, "validation split")
    for other in (
        stratified(labels, members, 100, 1, "validation split"),
        stratified(labels, members, 100, 0, "test split"),
    ):
        assert 25 < len(np.intersect1d(base, other)) < 75  # 50 expected of independent choices


def test_a_larger_subset_contains_a_smaller_one():
    labels = np.arange(400) % 4
    members = np.arange(400)
    small, large = (training_subset(labels, members, total, 3) for total in (40, 200))
    assert set(small) < set(large)
    assert counts_of(labels[small]) == [10] * 4


@given(LABELS, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_training_subset(labels: list[int], share: float):
    every = np.array(labels, dtype=np.int64)
    members = np.arange(1, len(every))  # not the first, so that an index is not a place
    classes = len(set(every[members]))
    total = classes + round(share * (len(members) - classes))
    part = training_subset(every, members, total, 0)
    assert len(part) == len(set(part)) == total
    assert set(part) <= set(members)
    assert set(every[part]) == set(every[members])


@pytest.mark.parametrize("total", [3, 41])
def test_training_subset_names_its_bounds(total: int):
    with pytest.raises(
        InputError, match=rf"^`train_images` must be between 4 \(one of each class\) and 40 .* got {total}$"
    ):
        training_subset(np.arange(40) % 4, np.arange(40), total, 0)


def test_validation_subset():
    labels = np.arange(40) % 4
    members = np.arange(20, 40)
    assert validation_subset(labels, members, 20, 0) is members
    part = validation_subset(labels, members, 8, 0)
    assert counts_of(labels[part]) == [2] * 4
    assert set(part) < set(members)
    with pytest.raises(InputError, match=r"must be at least 4 \(the classes in validation\), but got 3"):
        validation_subset(labels, members, 3, 0)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match="the test split needs at least 2 images of each class, but class 1 has 1"):
        hold_out(np.array([0, 0, 1, 0]), np.arange(4), 0.2, 0, "test split")
