"""Counts that are kept as trials change are those of the record as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from sweeps.records.events import Role, Status
from sweeps.records.model import TrialRecord
from sweeps.search.counters import TrialCounters

CHANGES = st.fixed_dictionaries({
    "trial_id": st.sampled_from("abcd"), "status": st.sampled_from(list(Status)), "role": st.sampled_from(list(Role)),
    "stratum": st.sampled_from(["small", "large"]), "broken": st.sampled_from(["", "wrong labels"]),
    "proposal": st.sampled_from([{}, {"index": 1}]), "aliases": st.lists(st.just({}), max_size=2),
})  # fmt: skip


@pytest.mark.parametrize("grid", [True, False])
@given(changes=st.lists(CHANGES, max_size=12))
def test_it_says_what_counting_anew_says(grid: bool, changes: list[dict[str, Any]]):
    trials: dict[str, TrialRecord] = {}
    kept = TrialCounters([], grid=grid)
    for change in changes:
        trials[change["trial_id"]] = TrialRecord(**change)
        kept.update(trials[change["trial_id"]])
        roles = (Role.SEARCH, Role.REPEAT) if grid else (Role.SEARCH,)
        sound = [each for each in trials.values() if each.status is not Status.INFEASIBLE and not each.broken]
        proposed = [each for each in sound if each.role in roles and each.proposal]
        assert set(kept.open) == {name for name, each in trials.items() if not each.ended}
        assert +kept.strata == TrialCounters(trials.values(), grid=grid).strata
        assert kept.strata["small"] == sum(each.stratum == "small" for each in sound)
        assert kept.proposed == sum(1 + (len(each.aliases) if grid else 0) for each in proposed)
