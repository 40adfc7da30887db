"""The benchmarks of the search in their smallest form: on a table that is made up, with sizes that are not."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.measurement import Options
from benchmarks.search import proposals, recorded_table, samplers


@pytest.fixture(scope="module")
def table() -> samplers.Recorded:
    grid, _ = recorded_table.rows()
    found = {}
    for row in grid:
        key = (row["method"], row["dims"], row["rank_scale"], row["weight_decay"], row["decay"])
        if row["params"] is None:
            found[key] = None
        else:
            found[key] = row["params"], 5 + 4e5 / row["params"] + 10 * abs(math.log10(row["weight_decay"]) + 3)
    return samplers.Recorded(found)


def test_the_grid_is_whole_and_few_of_it_keep_the_limit(table):
    assert len(table.found) == 4 * 3 * 10 * 3 * 2
    within = [entry for entry in table.found.values() if entry and entry[0] <= table.limit]
    assert 0.04 < len(within) / len(table.found) < 0.12


def test_no_launched_trial_of_this_project_is_over_the_limit(table):
    found = samplers.run(Options(quick=True), table, None)
    (rows,) = (each.rows for each in found.tables)
    assert [row["infeasible %"] for row in rows[:2]] == [0, 0]
    assert rows[-1]["infeasible %"] > 50
    assert found.goals[0].met
    json.dumps(found.to_json(), allow_nan=False)


def test_the_hypervolume_of_known_points():
    one = samplers.hypervolume([(100, 10.0)], 1000)
    assert one == pytest.approx(80 * math.log(10))
    assert samplers.hypervolume([(100, 10.0), (200, 20.0), (2000, 1.0)], 1000) == pytest.approx(one)
    more = samplers.hypervolume([(100, 10.0), (500, 5.0)], 1000)
    assert more == pytest.approx(one + 5 * math.log(2))


def test_proposals_are_timed_beside_optunas_own():
    found = proposals.run(Options(quick=True))
    total, own, beyond = (row["median ms"] for row in found.tables[0].rows)
    assert 0 < own < total
    assert 0 < beyond < total
