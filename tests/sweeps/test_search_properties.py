"""For random spaces: nothing launched is over its budget, nothing is launched twice, and a resume changes neither."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank.budget import measure
from lowrank.errors import InputError
from lowrank.networks import NetworkSettings
from sweeps.journal import Journal, read_journal
from sweeps.proposals import make_proposer
from sweeps.reachable import reachable_strata
from sweeps.records import Role, Status, StudyRecord, fold
from sweeps.search import Search
from sweeps.space import parse_space
from sweeps.specification import Resolver

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
        space = parse_space("random", content_of(drawn))
        resolver = Resolver(space, digits)
        try:
            strata, _ = reachable_strata(space, resolver)
        except InputError:
            return  # no method can meet the budget
        launched: list[str] = []
        record = StudyRecord()
        for sitting in range(2):  # the first one is cut, as a kill would
            journal = Journal(Path(folder) / "journal.jsonl")
            record = fold(read_journal(journal.path))
            proposer = make_proposer(space, Path(folder), resolver.points)
            search = Search(space, resolver, proposer, journal, record, strata)
            while (trial := search.next()) is not None:
                if sitting == 0 and len(launched) >= drawn["cut"]:
                    break
                launched.append(trial.trial_id)
                search.write_epoch(trial.trial_id, 1, {"val_error": 5.0 + len(launched) % 5})
                search.finish(trial.trial_id, Status.COMPLETED)
            journal.close()
        assert len(launched) == len(set(launched)) <= 8
        for trial_id in launched:
            _check_within(resolver, record.trials[trial_id])


def _check_within(resolver: Resolver, trial) -> None:
    """The specification, read back as a worker reads it, keeps every limit of its own point."""
    assert trial.role is Role.SEARCH
    plan = resolver.plan(NetworkSettings(**trial.specification["network"]))
    sized = plan.sized(trial.specification["method"], trial.specification.get("allocation"))
    budget = resolver.budget(trial.parameters)
    assert budget.exceeded(plan, sized) is None
    assert budget.missed(plan, sized) is None
    assert measure("params", plan, sized, None) == trial.counts["params"]
