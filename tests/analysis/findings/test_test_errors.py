from __future__ import annotations

from analysis.findings.published_results import (
    PUBLISHED_RESULTS,
    EvaluationSetting,
    evaluation_setting,
    matching_results,
)
from analysis.findings.test_errors import measured_test_errors, series_of_test_errors
from analysis.reporting.tables import table_of_test_errors
from analysis.stats.front import collect_points
from sweeps.records.events import Role
from tests.support.synthetic_data import SEPARABLE, study, trial


class TestTested:
    def test_only_where_data_and_split_are_the_same(self):
        wide = {"network": {"name": "wrn_28_10"}}
        data = {"name": "cifar10", "train_images": 40_000, "test_images": 10_000}
        points, note = matching_results(evaluation_setting(study(**wide, data=data)))
        assert points == []
        assert "20 printed test errors of wrn_28_10 on cifar10 are not drawn: they are of networks trained on" in note
        assert "50,000 images and tested on 10,000, these were trained on 40,000 and tested on 10,000." in note
        own = evaluation_setting(study(**wide, data={**data, "train_images": 50_000}))
        assert matching_results(own) == (list(PUBLISHED_RESULTS), "")

    def test_of_another_network_nothing_is_said(self):
        own = EvaluationSetting(network="resnet9", data="digits", train_images=1, test_images=1)
        assert matching_results(own) == ([], "")

    def test_means_over_seeds_and_printed_ones_are_hollow(self):
        first, second, base = (
            trial("a", error=4.0, method="tucker"),
            trial("a1", error=6.0, method="tucker", seed=1, role=Role.REPEAT),
            trial("s", SEPARABLE, 3.0, method="separable", dims=None, role=Role.REFERENCE),
        )
        for each, error in ((first, 5.0), (second, 7.0), (base, 2.0)):
            each.test_error = error
        points = collect_points(study(first, second, base, trial("never", 50, 1.0)))
        found = measured_test_errors(points)
        assert [(each.point.trial_id, each.error, each.seeds) for each in found] == [("a", 6.0, 2), ("s", 2.0, 1)]
        series = series_of_test_errors(points, found, PUBLISHED_RESULTS[:1] + PUBLISHED_RESULTS[-1:])
        assert [(each.label, each.printed, len(each.points)) for each in series] == [
            ("Tucker", False, 1), ("separable", False, 1), ("ACDC, printed", True, 1),
            ("tensor train, printed", True, 1),
        ]  # fmt: skip
        table = table_of_test_errors(found, PUBLISHED_RESULTS[:1])
        assert [row[-1] for row in table.rows] == ["measured", "measured", "printed"]
        assert table.texts[0][2:4] == ("6.00 % ± 1.41 (n = 2)", "5.00 %")
