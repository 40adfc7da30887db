from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, strategies as st

from analysis.reporting.label_placement import LEADER_DISTANCE, Box, Label, distance, place_labels

random_labels = st.builds(Label, st.floats(0, 500), st.floats(0, 300), st.floats(5, 80), st.floats(5, 20))


class TestPlacement:
    @given(st.lists(random_labels, max_size=12))
    @settings(max_examples=40, deadline=None)
    def test_labels_never_cover_each_other_nor_leave_the_frame(self, labels):
        frame = Box(0, 0, 500, 300)
        boxes = [box for box in place_labels(labels, [], frame) if box is not None]
        assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
        assert all(box.overlap(frame) == pytest.approx(box.overlap(box)) for box in boxes)

    def test_a_lone_label_sits_beside_its_point(self):
        label = Label(100, 100, 40, 10)
        (box,) = place_labels([label], [], Box(0, 0, 200, 200))
        assert 0 < distance(label, box) < LEADER_DISTANCE

    def test_obstacles_are_avoided(self):
        label, wall = Label(100, 100, 40, 10), Box(101, 0, 200, 200)
        (box,) = place_labels([label], [wall], Box(0, 0, 200, 200))
        assert box.overlap(wall) == 0

    def test_a_label_that_does_not_fit_is_left_out(self):
        assert place_labels([Label(5, 5, 40, 10)], [], Box(0, 0, 10, 10)) == [None]

    def test_no_two_of_60_labels_of_a_front_overlap(self):
        labels = [Label(15 + 14 * n, 20 + 440 * 0.95**n, 40 + 17 * (n % 3), 12) for n in range(60)]
        markers = [Box(label.x - 7, label.y - 7, label.x + 7, label.y + 7) for label in labels]
        boxes = [box for box in place_labels(labels, markers, Box(0, 0, 860, 500)) if box is not None]
        assert len(boxes) >= 40
        assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))

    def test_the_first_label_has_the_best_place(self):
        label = Label(100, 100, 40, 10)
        frame = Box(0, 0, 200, 200)
        assert place_labels([label] * 5, [], frame)[0] == place_labels([label], [], frame)[0]
