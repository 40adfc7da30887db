"""Where to put the words on a picture: a greedy search for places without overlap. Plain geometry, no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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

    def outside(self, other: Box) -> float:
        """Area of this box that lies outside `other`."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


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
    (markers, lines) is avoided but allowed, distance is avoided least.
    """
    taken: list[Box] = []
    placed: list[Box | None] = []
    for label in labels:
        free = [
            (cost, box)
            for cost, box in _candidates(label)
            if box.outside(frame) == 0 and not any(box.overlap(other) for other in taken)
        ]
        if not free:
            placed.append(None)
            continue
        cost, box = min(free, key=lambda item: item[0] + sum(item[1].overlap(other) for other in obstacles))
        taken.append(box)
        placed.append(box)
    return placed


def _candidates(label: Label) -> list[tuple[float, Box]]:
    """Boxes around the point with the price of their distance, in the order of preference among equals."""
    found = []
    for gap in (7, 16, 28, 44, 64, 90):
        for step in range(16):
            angle = math.radians(45 + 22.5 * step)
            # The nearest point of the box, not its centre, keeps the distance: wide labels sit as close as high ones.
            x = label.x + gap * math.cos(angle) + (label.width / 2) * _side(math.cos(angle))
            y = label.y + gap * math.sin(angle) + (label.height / 2) * _side(math.sin(angle))
            box = Box(x - label.width / 2, y - label.height / 2, x + label.width / 2, y + label.height / 2)
            found.append((2.0 * gap, box))
    return found


def _side(value: float) -> float:
    return max(-1.0, min(1.0, 2 * value))
