from __future__ import annotations

from analysis.findings.curves import MAX_CURVES, evenly_spaced, learning_curves
from analysis.stats.front import collect_points, pareto_front
from sweeps.records.events import Role
from tests.support.synthetic_data import study, trial


class TestCurves:
    def test_curves_are_of_the_front_and_the_references(self):
        record = study(
            trial("a", 10, 5.0, epochs=3), trial("b", 20, 6.0, epochs=3),
            trial("r", 50, 4.0, epochs=3, method="dense", dims=None, role=Role.REFERENCE),
        )  # fmt: skip
        curves = learning_curves(record, collect_points(record))
        assert [(c.trial_id, c.reference, c.label) for c in curves] == [
            ("a", False, "CP, 2 dims, 10"), ("r", True, "dense"),
        ]  # fmt: skip
        assert curves[0].points == ((1, 5.0), (2, 5.0), (3, 5.0))

    def test_a_long_front_keeps_its_ends(self):
        points = pareto_front(collect_points(study(*(trial(f"t{n}", 10 + n, 50.0 - n) for n in range(20)))))
        spaced = evenly_spaced(points, MAX_CURVES)
        assert len(spaced) == MAX_CURVES
        assert (spaced[0], spaced[-1]) == (points[0], points[-1])
