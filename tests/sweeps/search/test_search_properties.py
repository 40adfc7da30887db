"""For random spaces: nothing launched is over its budget, nothing is launched twice, and a resume changes neither.

Nor does a series launch anything twice, whatever its studies share.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies as st

from lowrank.compression.budget import measure
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE, SERIES_FILE
from sweeps.search.optuna_proposer import make_proposer
from sweeps.search.reuse import SiblingResults, weights_path
from sweeps.search.search import Search
from sweeps.space.model import Space
from sweeps.space.parse import parse_space
from sweeps.space.run_options import RunOptions
from sweeps.study.series import parse_series
from sweeps.trials.feasibility import reachable_strata
from sweeps.trials.resolver import Resolver

METHODS = ("tensor_train", "tucker", "bottleneck", "shuffle", "acdc", "hashed")
SPACES = st.fixed_dictionaries({
    "names": st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True),
    "budget": st.sampled_from([
        {"params": {"choice": [0.35, 0.6]}, "relative_to": "separable"},
        {"params": {"log_uniform": [0.3, 0.9]}, "relative_to": "separable"},
        {"params": 9_000, "mult_adds": {"choice": [40_000, 60_000]}},
        {"params": {"choice": [8_000, 12_000]}, "window": 0.8},
    ]),
    "allocation": st.sampled_from(["even", "stage", "layer", {"choice": ["even", "stage"]}]),
    "sampler": st.sampled_from(["tpe", "random", "qmc", "nsga2"]),
    "seed": st.integers(0, 5),
    "cut": st.integers(0, 8),
})  # fmt: skip


def content_of(drawn: dict) -> dict:
    return {
        "question": "Which?",
        "network": {"name": "resnet9", "width": 0.125},
        "train": {"epochs": 1, "weight_decay": {"choice": [1e-4, 1e-3]}},
        "method": {"name": {"choice": drawn["names"]}},
        "budget": {**drawn["budget"], "allocation": drawn["allocation"]},
        "search": {"trials": 8, "sampler": drawn["sampler"], "seed": drawn["seed"], "stop": "none"},
    }


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SPACES)
def test_a_random_space_wastes_no_trial(digits, drawn):
    with tempfile.TemporaryDirectory() as folder:
        _run_out(parse_space("random", content_of(drawn)), digits, drawn["cut"], Path(folder) / "random")


ENTRIES = st.lists(
    st.sampled_from([
        {}, {"method.name": "cp"}, {"search.sampler": "random"}, {"search.seed": 3},
        {"search.sampler": "grid", "search.repeats": 2, "budget.allocation": "even", "budget.params": 0.6,
         "budget.mult_adds": None, "budget.relative_to": "separable"},
    ]),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SPACES, ENTRIES)
def test_no_study_of_a_random_series_wastes_a_trial(digits, drawn, entries):
    studies = [{"name": f"study{index}", "set": changes} for index, changes in enumerate(entries)]
    options = RunOptions()
    members = parse_series({**content_of(drawn), "studies": studies}, "random", options)
    assert [member.name for member in members] == [study["name"] for study in studies]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SERIES_FILE).write_text("{}")
        launched = [
            trial_id
            for member in members
            for trial_id in _run_out(member.space, digits, drawn["cut"], Path(folder) / member.name)
        ]
    assert len(launched) == len(set(launched))


def _run_out(space: Space, digits, cut: int, folder: Path) -> list[str]:
    """Launch all that the space proposes, in two runs; every trial is new, within its budget, and wanted."""
    resolver = Resolver(space, digits)
    try:
        strata, _ = reachable_strata(space, resolver)
    except InputError:
        return []  # no method can meet the budget
    launched: list[str] = []
    record = StudyRecord()
    for run in range(2):  # the first one is cut, as a kill would
        journal = Journal(folder / JOURNAL_FILE)
        record = fold_journal(journal.path)
        proposer = make_proposer(space, folder, resolver.points)
        search = Search(space, resolver, proposer, journal, record, strata, SiblingResults.read(folder))
        while (trial := search.next()) is not None:
            if run == 0 and len(launched) >= cut:
                break
            launched.append(trial.trial_id)
            search.write_epoch(trial.trial_id, 1, {"val_error": 5.0 + len(launched) % 5})
            weights_path(folder, trial.trial_id).parent.mkdir(parents=True)
            weights_path(folder, trial.trial_id).write_bytes(b"")
            search.finish(trial.trial_id, Status.COMPLETED)
        journal.close()
    done = [trial for trial in record.trials.values() if trial.status is Status.COMPLETED]
    assert {trial.trial_id for trial in done if not trial.adopted} == set(launched)
    assert len(launched) == len(set(launched))
    assert len(done) <= space.search.trials
    for trial in done:
        _check_within(resolver, trial)
    return launched


def _check_within(resolver: Resolver, trial) -> None:
    """The specification, read back as a worker reads it, keeps every limit of its own point."""
    assert trial.role in (Role.SEARCH, Role.REPEAT)
    plan = resolver.plan(trial.specification.network)
    sized = trial.specification.model(resolver.image_shape, resolver.classes).sized(plan)
    budget = resolver.budget(trial.parameters)
    assert budget.exceeded(plan, sized) is None
    assert budget.missed(plan, sized) is None
    assert measure("params", plan, sized, None) == trial.counts["params"]
