"""Where to put the words on a picture: a greedy search for places without overlap. Plain geometry, no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEADER = 18.0  # pixels from which on a line joins a label to its point
FARTHEST = 64  # pixels between a label and its point at most
WORTH = 260.0  # the price at which a label is not worth its place


@dataclass(frozen=True)
class Box:
    """An upright rectangle in pixels; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area in common, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True)
class Label:
    """A label of `width` x `height` pixels that belongs to the point (x, y)."""

    x: float
    y: float
    width: float
    height: float


def place(labels: Sequence[Label], obstacles: Sequence[Box], frame: Box) -> list[Box | None]:
    """A box for each label near its point; None where every place would cover another label or leave the frame.

    Labels come in order of importance: each takes the best place that those before it left. Covering `obstacles`
    (markers, lines) costs its area in square pixels, distance costs little; what is worth less than its price is left
    out. A label that is far from its point is joined to it by a line, which must not cross another label.
    """
    taken: list[Box] = []
    placed: list[Box | None] = []
    edges = _edges(obstacles)
    for label in labels:
        reach = _reach(label)
        close = [other for other in taken if other.overlap(reach) > 0]
        best = next(_affordable(label, edges[:, _touching(edges, reach)], close, frame), None)
        if best is not None:
            taken += [best, *_leader(label, best)]
        placed.append(best)
    return placed


def _affordable(label: Label, near: Array, close: Sequence[Box], frame: Box) -> Iterator[Box]:
    """The places that are worth their price and cover no label, cheapest first, of equal ones in order of preference;
    `near` are the edges of the obstacles that may be covered, `close` the labels and lines that may not."""
    candidates = _candidates(label)
    boxes = _edges([box for _, box in candidates])
    costs = 2.0 * np.array([gap for gap, _ in candidates]) + _areas(boxes, near).sum(axis=1)
    inside = (boxes[0] >= frame.left) & (boxes[1] >= frame.bottom) & (boxes[2] <= frame.right) & (boxes[3] <= frame.top)
    free = inside & (costs < WORTH) & ~(_areas(boxes, _edges(close)) > 0).any(axis=1)
    for index in np.argsort(costs, kind="stable"):
        box = candidates[index][1]
        if free[index] and not any(part.overlap(other) for part in _leader(label, box) for other in close):
            yield box


def _areas(boxes: Array, others: Array) -> Array:
    """The areas that each of `boxes` [4, n] has in common with each of `others` [4, m]: [n, m]."""
    left, bottom, right, top = boxes[:, :, None]
    width = np.minimum(right, others[2]) - np.maximum(left, others[0])
    height = np.minimum(top, others[3]) - np.maximum(bottom, others[1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def distance(label: Label, box: Box) -> float:
    """Pixels between a label's point and the nearest point of its box."""
    return math.dist(_nearest(label, box), (label.x, label.y))


def _reach(label: Label) -> Box:
    """What some place of the label, or its line, could touch."""
    x, y = FARTHEST + label.width, FARTHEST + label.height
    return Box(label.x - x, label.y - y, label.x + x, label.y + y)


def _edges(boxes: Sequence[Box]) -> Array:
    """left, bottom, right and top of the boxes, [4, boxes]: thousands of points lie around some dozens of labels."""
    return np.array([(box.left, box.bottom, box.right, box.top) for box in boxes]).reshape(-1, 4).T


def _touching(edges: Array, reach: Box) -> NDArray[np.intp]:
    """Indices of the boxes that overlap `reach`: a handful."""
    left, bottom, right, top = edges
    across = (left < reach.right) & (right > reach.left)
    return np.flatnonzero(across & (bottom < reach.top) & (top > reach.bottom))


def _nearest(label: Label, box: Box) -> tuple[float, float]:
    return min(max(label.x, box.left), box.right), min(max(label.y, box.bottom), box.top)


def _leader(label: Label, box: Box) -> list[Box]:
    """The line from a far label to its point, as small boxes; none if the label is near."""
    length = distance(label, box)
    if length <= LEADER:
        return []
    (x, y), steps = _nearest(label, box), int(length / 3)
    places = [(label.x + (x - label.x) * k / steps, label.y + (y - label.y) * k / steps) for k in range(steps)]
    return [Box(px - 1, py - 1, px + 1, py + 1) for px, py in places]


def _candidates(label: Label) -> list[tuple[float, Box]]:
    """Distances and boxes around the point, in the order of preference among equals."""
    found = []
    for gap in (8, 16, 28, 44, FARTHEST):
        for step in range(16):
            angle = math.radians(45 + 22.5 * step)
            # The nearest point of the box, not its centre, keeps the distance: wide labels sit as close as high ones.
            x = label.x + gap * math.cos(angle) + (label.width / 2) * _side(math.cos(angle))
            y = label.y + gap * math.sin(angle) + (label.height / 2) * _side(math.sin(angle))
            box = Box(x - label.width / 2, y - label.height / 2, x + label.width / 2, y + label.height / 2)
            found.append((float(gap), box))
    return found


def _side(value: float) -> float:
    return max(-1.0, min(1.0, 2 * value))
