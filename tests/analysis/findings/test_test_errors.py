from __future__ import annotations

from analysis.findings.published_results import (
    PUBLISHED_RESULTS,
    EvaluationSetting,
    evaluation_setting,
    matching_results,
)
from analysis.findings.test_errors import measured_test_errors, series_of_test_errors
from analysis.reporting.summary_table import summary_rows
from analysis.reporting.tables import table_of_test_errors
from analysis.stats.front import collect_points, trials_off_front
from sweeps.records.events import Role
from tests.support.synthetic_data import SEPARABLE, study, trial


class TestTestErrors:
    def test_published_results_are_shown_only_for_the_same_data_and_split(self):
        wide = {"network": {"name": "wrn_28_10"}}
        data = {"name": "cifar10", "train_images": 40_000, "test_images": 10_000}
        points, note = matching_results(evaluation_setting(study(**wide, data=data)))
        assert points == []
        assert "20 printed test errors of wrn_28_10 on cifar10 are not drawn: they are of networks trained on" in note
        assert "50,000 images and tested on 10,000, these were trained on 40,000 and tested on 10,000." in note
        setting = evaluation_setting(study(**wide, data={**data, "train_images": 50_000}))
        assert matching_results(setting) == (list(PUBLISHED_RESULTS), "")

    def test_another_network_has_no_published_results_and_no_note(self):
        setting = EvaluationSetting(network="resnet9", data="digits", train_images=1, test_images=1)
        assert matching_results(setting) == ([], "")

    def test_errors_are_means_over_seeds_beside_published_results(self):
        first, second, base = (
            trial("a", error=4.0, method="tucker"),
            trial("a1", error=6.0, method="tucker", seed=1, role=Role.REPEAT),
            trial("s", SEPARABLE, 3.0, method="separable", dims=None, role=Role.REFERENCE),
        )
        for record, error in ((first, 5.0), (second, 7.0), (base, 2.0)):
            record.test_error = error
        points = collect_points(study(first, second, base, trial("never", 50, 1.0)))
        errors = measured_test_errors(points)
        assert [(e.point.trial_id, e.error, e.seeds) for e in errors] == [("a", 6.0, 2), ("s", 2.0, 1)]
        series = series_of_test_errors(points, errors, PUBLISHED_RESULTS[:1] + PUBLISHED_RESULTS[-1:])
        assert [(line.label, line.printed, len(line.points)) for line in series] == [
            ("Tucker, left the front", False, 1), ("separable", False, 1), ("ACDC, printed", True, 1),
            ("tensor train, printed", True, 1),
        ]  # fmt: skip
        table = table_of_test_errors(errors, PUBLISHED_RESULTS[:1])
        assert [row[-1] for row in table.rows] == ["measured, has left the front", "measured", "printed"]
        assert table.texts[0][2:4] == ("6.00 % ± 1.41 (n = 2)", "5.00 %")
        assert trials_off_front(points) == {"a", "a1"}
        assert [row.point.trial_id for row in summary_rows(points) if row.left_front] == ["a", "a1"]
