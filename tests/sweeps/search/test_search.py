"""The search: nothing infeasible and nothing twice is launched; what a kill leaves is taken up again."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from lowrank.errors import InfeasibleError, InputError
from sweeps.records.events import TERMINAL, Status
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.search.optuna_proposer import make_proposer
from sweeps.search.proposer import Proposal
from sweeps.search.search import PreparedTrial, Search
from sweeps.space.parse import parse_space, read_space
from sweeps.trials.feasibility import left_out_lines, reachable_strata
from sweeps.trials.resolver import Resolver
from tests.support.journals import read_events

EPOCH = {
    "val_error": 10.0, "val_loss": 1.0, "train_error": 5.0, "train_loss": 0.5, "lr": 0.1, "images_per_second": 1000.0,
    "epoch_seconds": 1.0,
}  # fmt: skip


@pytest.fixture
def open_search(digits, tmp_path):
    """Opens a search of a space in one folder, as a driver would at its start."""
    journals = []

    def opened(space) -> Search:
        journals.append(Journal(tmp_path / "journal.jsonl"))
        record = fold_journal(journals[-1].path)
        return Search(space, Resolver(space, digits), make_proposer(space, tmp_path), journals[-1], record)

    yield opened
    for journal in journals:
        journal.close()


@pytest.fixture
def search(space, open_search) -> Search:
    return open_search(space)


def finish(search: Search, trial_id: str, error: float = 10.0) -> None:
    search.write_epoch(trial_id, 1, {**EPOCH, "val_error": error})
    search.finish(trial_id, Status.COMPLETED)


def run_out(search: Search) -> list[str]:
    launched = []
    while (trial := search.next()) is not None:
        launched.append(trial.trial_id)
        finish(search, trial.trial_id, error=5.0 + len(launched))
    return launched


def test_references_first_then_so_many_trials_each_once(search):
    launched = run_out(search)
    assert search.record.trials[launched[0]].method == "separable"
    assert len(launched) == 1 + 6
    assert len(set(launched)) == 7


def test_strata_get_equal_shares(search):
    launched = run_out(search)
    strata = [search.record.trials[name].stratum for name in launched[1:]]
    assert sorted(strata.count(label) for label in set(strata)) == [3, 3]


def test_every_launched_trial_is_within_its_budget(search):
    for name in run_out(search)[1:]:
        trial = search.record.trials[name]
        limit = trial.parameters["budget.params"] * trial.counts["separable_params"]
        assert trial.counts["params"] <= limit


def test_a_small_space_is_used_up_without_a_repeat(content, open_search):
    content["train"] = {"epochs": 2}
    content["search"] = {"trials": 100}
    space = parse_space("small", content)
    launched = run_out(open_search(space))
    assert len(launched) == len(set(launched)) == 1 + 2 * 3 * 2


def test_a_grid_trains_equal_networks_once_and_reports_each_row(open_search):
    space = read_space("tt_schedule", ["train.epochs=1", "references=[]"])
    search = open_search(space)
    launched = run_out(search)
    rows = [parameters for name in launched for parameters in (search.record.trials[name].parameters,)]
    rows += [alias for trial in search.record.trials.values() for alias in trial.aliases]
    assert len(launched) == 121
    assert len(rows) == len({tuple(sorted(row.items())) for row in rows}) == 129


def test_what_cannot_meet_the_budget_is_recorded_and_never_launched(content, open_search):
    content["budget"]["params"] = {"choice": [0.036]}
    content["method"] = {"name": "tensor_train", "dims": {"int": [2, 3]}}
    content["search"] = {"trials": 4}
    space = parse_space("small", content)
    search = open_search(space)
    launched = run_out(search)
    infeasible = [trial for trial in search.record.trials.values() if trial.status is Status.INFEASIBLE]
    assert infeasible
    assert all("tensor_train (dims 2) has no setting within the budget" in trial.reason for trial in infeasible)
    assert not {trial.trial_id for trial in infeasible} & set(launched)


def test_infeasible_points_of_equal_values_in_other_fields_have_ids_of_their_own(search, monkeypatch):
    monkeypatch.setattr(search.proposer, "tell", lambda *_: None)
    for point in ({"a": "x-y", "b": "z"}, {"a": "x", "b": "y-z"}, {"a": "x", "b": "y-z"}):
        prepared = PreparedTrial()
        search._add_infeasible(Proposal(point, {}), search.strata[0], InfeasibleError("too large"), prepared.events)
        search.commit_proposal(prepared)
    recorded = [trial for trial in search.record.trials.values() if trial.status is Status.INFEASIBLE]
    assert [trial.parameters for trial in recorded] == [{"a": "x-y", "b": "z"}, {"a": "x", "b": "y-z"}]


def test_a_budget_that_nothing_meets_is_refused_with_the_reason(content, digits):
    content["budget"]["params"] = {"choice": [0.01]}
    space = parse_space("small", content)
    with pytest.raises(InputError, match=r"no method can meet the budget: params <= 7,548: .*never substituted"):
        reachable_strata(space, Resolver(space, digits))


def test_a_stratum_that_nothing_meets_is_named_and_left_out(content, digits):
    content["budget"]["params"] = {"choice": [0.01, 0.2]}
    space = parse_space("small", content)
    reachable, unreachable = reachable_strata(space, Resolver(space, digits))
    assert [stratum.label for stratum in reachable] == ["params <= 150,963"]
    assert list(unreachable) == ["params <= 7,548"]
    assert "never substituted" in unreachable["params <= 7,548"]


def test_what_is_infeasible_takes_no_turn_of_its_stratum(content, open_search):
    content["budget"]["params"] = {"choice": [0.036, 0.2]}  # of the smaller, only some shapes are possible
    content["search"] = {"trials": 8}
    search = open_search(parse_space("small", content))
    strata = [search.record.trials[name].stratum for name in run_out(search)[1:]]
    assert sorted(strata.count(label) for label in set(strata)) == [4, 4]


def test_an_end_is_recorded_once(search):
    trial = search.next()
    finish(search, trial.trial_id)
    search.finish(trial.trial_id, Status.FAILED, "late")
    ends = [event for event in read_events(search.journal.path) if event["event"] == "finished"]
    assert [event["status"] for event in ends] == ["completed"]


def test_a_trial_that_is_taken_back_is_handed_out_next_and_once(search):
    search.next()
    trial = search.next()
    search.requeue(trial.trial_id)
    assert not search.is_over()
    assert search.next() == trial
    assert search.next() != trial
    finish(search, trial.trial_id)
    search.requeue(trial.trial_id)  # it had reported its end before its process was lost
    assert trial not in search.waiting


def test_a_resumed_search_takes_up_what_has_no_end_and_repeats_nothing(space, open_search, tmp_path):
    first = open_search(space)
    reference, one, two, three = (first.next() for _ in range(4))
    for trial in (reference, one):
        finish(first, trial.trial_id)
    # killed here: two and three have no end
    second = open_search(space)
    taken = [second.next().trial_id for _ in range(2)]
    assert taken == [two.trial_id, three.trial_id]
    for name in taken:
        finish(second, name)
    rest = run_out(second)
    assert len({reference.trial_id, one.trial_id, *taken, *rest}) == 7
    record = fold_journal(tmp_path / "journal.jsonl")
    assert all(trial.status in TERMINAL for trial in record.trials.values())
    assert second.proposer.open_handles() == []


def test_an_end_that_the_sampler_never_heard_of_is_told_on_resume(space, open_search):
    first = open_search(space)
    first.next()
    trial = first.next()
    first.proposer.tell = lambda handle, outcome: None  # killed between the journal and the sampler
    finish(first, trial.trial_id, error=3.5)

    second = open_search(space)
    study = second.proposer.optuna_study(trial.stratum)
    assert [found.value for found in study.get_trials(deepcopy=False)] == [3.5]


def test_a_diverged_trial_ends_and_the_sampler_learns_of_it(search):
    search.next()
    trial = search.next()
    search.finish(trial.trial_id, Status.DIVERGED, "training loss nan in epoch 1, step 3")
    study = search.proposer.optuna_study(trial.stratum)
    assert [found.state.name for found in study.get_trials(deepcopy=False)] == ["PRUNED"]
    assert search.record.trials[trial.trial_id].reason.endswith("step 3")


def test_what_ran_out_of_memory_waits_for_a_later_phase_also_after_a_kill(space, search, open_search):
    trials = [search.next() for _ in range(3)]
    search.postpone(trials[1].trial_id, "on 1 CPU: no memory")
    finish(search, trials[0].trial_id)
    finish(search, trials[2].trial_id)
    left = run_out(search)
    assert trials[1].trial_id not in left
    assert not search.is_over()
    assert search.is_exhausted()  # of this phase
    resumed = open_search(space)
    assert [trial.trial_id for trial in resumed.postponed] == [trials[1].trial_id]
    assert resumed.next() is None
    again = resumed.pop_postponed()
    assert (again.trial_id, again.specification) == (trials[1].trial_id, trials[1].specification)
    finish(resumed, again.trial_id)
    assert resumed.is_over()


def test_a_worker_lost_in_the_phase_of_the_larger_share_is_retried_in_that_phase(search):
    search.next()  # a reference
    trial = search.next()
    search.postpone(trial.trial_id, "on 1 CPU: no memory")
    assert search.pop_postponed() is not None
    assert search.is_running()
    search.requeue(trial.trial_id)
    assert trial not in search.waiting
    assert not search.is_over()
    assert search.pop_postponed().trial_id == trial.trial_id


def test_the_sampler_is_shown_what_no_share_holds_as_infeasible(search):
    search.next()  # a reference
    trial = search.next()
    search.finish(trial.trial_id, Status.OUT_OF_MEMORY, "no memory")
    handle = search.record.trials[trial.trial_id].proposal
    stored = search.proposer.optuna_study(handle["study"]).get_trials(deepcopy=False)[handle["number"]]
    assert stored.state is TrialState.PRUNED
    assert any("feasible" in key and value > 0 for key, value in stored.system_attrs.items())


def test_repeats_and_what_starts_from_a_postponed_trial_wait_for_it(content, open_search):
    """Neither keeps the phase waiting for ever."""
    content["references"], content["start"] = ["dense"], "dense"
    content["search"] |= {"trials": 2, "repeats": 2}
    search = open_search(parse_space("small", content))
    dense = search.next()
    assert search.next() is None
    assert not search.is_blocked()  # it runs
    search.postpone(dense.trial_id, "no memory")
    assert search.is_blocked()
    assert search.next() is None
    finish(search, search.pop_postponed().trial_id)
    assert not search.is_blocked()
    first, second = search.next(), search.next()
    finish(search, first.trial_id)
    search.postpone(second.trial_id, "no memory")
    assert search.next() is None
    assert search.is_blocked()
    finish(search, search.pop_postponed().trial_id)
    assert search.next() is not None  # a repeat


def repeating(content: dict, trials: int = 2):
    content["train"] = {"epochs": 2}
    content["references"] = []
    content["search"] = {"trials": trials, "repeats": 3, "sampler": "random", "stop": "none"}
    return parse_space("repeats", content)


def test_a_first_seed_that_diverged_where_it_was_good_leaves_the_other_seeds_to_be_trained(content, open_search):
    search = open_search(repeating(content))
    small, large = sorted((search.next(), search.next()), key=lambda trial: trial.counts["params"])
    search.write_epoch(small.trial_id, 1, {**EPOCH, "val_error": 20.0})
    search.finish(small.trial_id, Status.DIVERGED, "training loss nan in epoch 2, step 3")
    finish(search, large.trial_id, error=5.0)
    again = [search.record.trials[name] for name in run_out(search)]
    assert sorted(trial.point_id for trial in again) == sorted([small.point_id, large.point_id] * 2)
    assert {trial.specification.seed for trial in again} == {1, 2}


@pytest.mark.parametrize(
    ("error", "status", "broken"),
    [
        (None, Status.DIVERGED, ""),  # nothing is known of it
        (2.0, Status.OUT_OF_MEMORY, ""),  # another seed is as large
        (2.0, Status.STOPPED, ""),
        (30.0, Status.FAILED, ""),  # no better than another, though larger
        (2.0, Status.DIVERGED, "a wrong split"),
    ],
)
def test_what_promises_nothing_gets_no_further_seed(content, open_search, error, status, broken):
    search = open_search(repeating(content))
    small, large = sorted((search.next(), search.next()), key=lambda trial: trial.counts["params"])
    finish(search, small.trial_id, error=20.0)
    if error is not None:
        search.write_epoch(large.trial_id, 1, {**EPOCH, "val_error": error})
    search.finish(large.trial_id, status, "why")
    search.record.trials[large.trial_id].broken = broken
    assert {trial.point_id for trial in search._missing_repeats()} == {small.point_id}


def test_on_a_grid_every_seed_is_trained_whatever_became_of_another(content, open_search):
    content["train"] = {"epochs": 2}
    content["references"] = []
    content["search"] = {"sampler": "grid", "repeats": 3, "stop": "none", "trials": 100}
    search = open_search(parse_space("grid", content))
    launched = []
    while (trial := search.next()) is not None:
        launched.append(trial)
        if trial.specification.seed == 0:
            search.finish(trial.trial_id, Status.DIVERGED, "training loss nan in epoch 1, step 3")
        else:
            finish(search, trial.trial_id)
    seeds = {}
    for trial in launched:
        seeds.setdefault(trial.point_id, set()).add(trial.specification.seed)
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


def test_a_grid_that_nothing_meets_is_refused_with_the_reason(content, digits):
    content["train"] = {"epochs": 2}
    content["budget"]["params"] = {"choice": [0.01, 0.012]}
    content["search"] = {"sampler": "grid", "stop": "none"}
    space = parse_space("small", content)
    with pytest.raises(InputError, match=r"no method can meet the budget: tensor_train .*never substituted"):
        reachable_strata(space, Resolver(space, digits))


def test_what_a_space_cannot_train_is_said_once_for_each_method(content, digits):
    content["train"] = {"epochs": 2}
    content["method"] = {"name": {"choice": ["bottleneck", "monarch"]}}
    content["budget"]["params"] = {"choice": [0.06, 0.07, 0.5]}
    for sampler in ("grid", "random"):
        space = parse_space("small", {**content, "search": {"sampler": sampler, "stop": "none"}})
        (line,) = left_out_lines(space, Resolver(space, digits), {})
        assert line.startswith("left out: monarch has no setting within the budget in resnet9: its smallest has ")
        assert "over the budget of 52,837" in line  # the largest that is out of reach


def test_references_that_cannot_be_trained_are_said_once_for_each_name(content, digits):
    content["references"] = ["dense", "thin_dense"]
    content["method"] = {"name": "hashed"}
    content["network"] = {"name": "tests.support.own_networks:layer_scale"}
    content["budget"]["params"] = {"choice": [0.9, 1.0]}
    space = parse_space("small", content)
    resolver = Resolver(space, digits)
    (line,) = left_out_lines(space, resolver, reachable_strata(space, resolver)[1])
    labels = "; ".join(stratum.label for stratum in resolver.strata)
    assert line.startswith(f"left out: the reference thin_dense at {labels}: {space.network.name} has no `width`")


def test_budgets_that_no_method_can_meet_take_one_line_in_all(content, digits):
    content["train"] = {"epochs": 2}
    content["method"] = {"name": {"choice": ["bottleneck", "monarch"]}}
    content["budget"]["params"] = {"choice": [0.001, 0.002, 0.07, 0.5]}
    for sampler in ("grid", "random"):
        space = parse_space("small", {**content, "search": {"sampler": sampler, "stop": "none"}})
        resolver = Resolver(space, digits)
        unmet, monarch = left_out_lines(space, resolver, reachable_strata(space, resolver)[1])
        labels = "; ".join(stratum.label for stratum in resolver.strata[:2])
        assert unmet.startswith(f"cannot be met, left out: {labels}: bottleneck has no setting within the budget")
        assert f"over the budget of {resolver.strata[1].limit:,}; " in unmet
        assert monarch.startswith("left out: monarch has no setting within the budget")
        assert "over the budget of 52,837" in monarch
