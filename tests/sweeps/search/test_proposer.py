"""Proposers: memory that survives, strata that do not mix, outcomes told once."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from lowrank.errors import InputError
from sweeps.search.optuna_proposer import OptunaProposer
from sweeps.search.proposer import GridProposer, Outcome, OutcomeKind
from sweeps.space.parse import parse_space, read_space
from sweeps.space.points import Points
from sweeps.trials.resolver import Resolver


def trials_of(proposer: OptunaProposer, label: str) -> list[optuna.trial.FrozenTrial]:
    return proposer.optuna_study(label).get_trials(deepcopy=False)


@pytest.fixture
def proposer(space, tmp_path):
    return OptunaProposer(space, tmp_path)


def test_a_proposal_lies_in_its_stratum_and_its_domains(proposer, resolver):
    for stratum in resolver.strata:
        for _ in range(8):
            point = proposer.ask(stratum).point
            assert point["budget.params"] == dict(stratum.fixed)["budget.params"]
            assert point["method.dims"] in (2, 3, 4)
            assert point["train.weight_decay"] in (1e-4, 5e-4)


def test_strata_do_not_draw_the_same_points(proposer, resolver):
    first, second = (
        [{**proposer.ask(stratum).point, "budget.params": 0} for _ in range(8)] for stratum in resolver.strata
    )
    assert first != second


@pytest.mark.parametrize(
    ("outcome", "state", "value", "reported"),
    [
        (Outcome(OutcomeKind.COMPLETE, (7.5,), 2), TrialState.COMPLETE, 7.5, {}),
        (Outcome(OutcomeKind.PRUNED, (30.0,), 1), TrialState.PRUNED, 30.0, {1: 30.0}),
        (Outcome(OutcomeKind.DIVERGED), TrialState.PRUNED, None, {}),
        (Outcome(OutcomeKind.LOST), TrialState.FAIL, None, {}),
    ],
)
def test_what_the_sampler_learns(proposer, resolver, outcome, state, value, reported):
    stratum = resolver.strata[0]
    handle = proposer.ask(stratum).handle
    proposer.tell(handle, outcome)
    trial = trials_of(proposer, stratum.label)[0]
    assert trial.state is state
    assert trial.intermediate_values == reported
    if state is TrialState.COMPLETE:
        assert trial.value == value
    proposer.tell(handle, Outcome(OutcomeKind.LOST))  # a second report changes nothing
    assert trials_of(proposer, stratum.label)[0].state is state


def test_an_infeasible_point_teaches_its_constraint(proposer, resolver):
    proposal = proposer.ask(resolver.strata[0])
    proposer.tell(proposal.handle, Outcome(OutcomeKind.INFEASIBLE))
    trial = trials_of(proposer, resolver.strata[0].label)[0]
    assert trial.state is TrialState.PRUNED
    assert any("feasible" in key and value == 1.0 for key, value in trial.system_attrs.items())


def test_the_memory_is_there_for_the_next_driver(proposer, space, resolver, tmp_path):
    stratum = resolver.strata[0]
    told, open_one = proposer.ask(stratum), proposer.ask(stratum)
    proposer.tell(told.handle, Outcome(OutcomeKind.COMPLETE, (5.0,), 2))
    later = OptunaProposer(space, tmp_path)
    assert later.open_handles() == [open_one.handle]
    assert [trial.value for trial in trials_of(later, stratum.label)] == [5.0, None]


def test_a_stop_told_after_a_kill_keeps_its_error(proposer, space, resolver, tmp_path):
    stratum = resolver.strata[0]
    handle = proposer.ask(stratum).handle
    later = OptunaProposer(space, tmp_path)
    later.tell(handle, Outcome(OutcomeKind.PRUNED, (22.0,), 3))
    states = [(trial.state, trial.intermediate_values) for trial in trials_of(later, stratum.label)]
    assert states == [(TrialState.FAIL, {}), (TrialState.PRUNED, {3: 22.0})]


def test_what_was_infeasible_keeps_its_constraint_when_told_after_a_kill(proposer, space, resolver, tmp_path):
    stratum = resolver.strata[0]
    handle = proposer.ask(stratum).handle
    later = OptunaProposer(space, tmp_path)
    later.tell(handle, Outcome(OutcomeKind.INFEASIBLE))
    lost, kept = trials_of(later, stratum.label)
    assert (lost.state, kept.state) == (TrialState.FAIL, TrialState.PRUNED)
    assert list(kept.constraints.values()) == [1.0]


def test_asking_again_gives_the_same_point_under_a_new_number(proposer, resolver):
    stratum = resolver.strata[0]
    lost = proposer.ask(stratum)
    again = proposer.reask(stratum, lost.point, lost.handle)
    assert again.point == lost.point
    assert again.handle != lost.handle


def test_a_point_queued_but_never_asked_for_is_not_handed_out_later(proposer, space, resolver, tmp_path):
    stratum = resolver.strata[0]
    point = proposer.ask(stratum).point
    proposer.optuna_study(stratum.label).enqueue_trial(point)  # killed here
    later = OptunaProposer(space, tmp_path)
    for handle in later.open_handles():
        later.tell(handle, Outcome(OutcomeKind.LOST))
    assert [trial.state for trial in trials_of(later, stratum.label)] == [TrialState.FAIL, TrialState.FAIL]


def test_a_resumed_sampler_does_not_draw_its_first_numbers_again(content, resolver, tmp_path):
    content["train"]["weight_decay"] = {"log_uniform": [1e-5, 1e-2]}
    space = parse_space("small", content)
    stratum = resolver.strata[0]
    before = [OptunaProposer(space, tmp_path).ask(stratum).point["train.weight_decay"] for _ in range(4)]
    assert len(set(before)) == 4


def test_several_objectives_are_told_together(content, digits, tmp_path):
    content["search"] = {"objectives": ["val_error", "params"]}
    from sweeps.trials.resolver import Resolver

    space = parse_space("small", content)
    stratum = Resolver(space, digits).strata[0]
    proposer = OptunaProposer(space, tmp_path)
    proposer.tell(proposer.ask(stratum).handle, Outcome(OutcomeKind.COMPLETE, (5.0, 60_000.0), 2))
    proposer.tell(proposer.ask(stratum).handle, Outcome(OutcomeKind.PRUNED, (9.0, 60_000.0), 1))
    first, second = trials_of(proposer, stratum.label)
    assert first.values == [5.0, 60_000.0]
    assert second.state is TrialState.PRUNED


def test_a_grid_gives_every_point_once_in_an_order_set_by_the_seed(resolver):
    space = read_space("tt_schedule")
    stratum = resolver.strata[0]

    def order(seed: int) -> list:
        grid = GridProposer(read_space("tt_schedule", search__seed=seed))
        asked = iter(lambda: grid.ask(stratum), None)
        return [tuple(sorted(proposal.point.items())) for proposal in asked]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert set(order(0)) == {tuple(sorted(point.items())) for point in Points(space).grid()}
    assert len(order(0)) == 129


def test_a_grid_gives_the_longest_trainings_first_with_each_seed(digits):
    changes = [
        "search.sampler=grid", "search.order=longest_first", "search.repeats=2", "search.stop=none",
        "method.name=tucker",
        "method.dims={choice: [2, 3]}", "budget.params={choice: [0.3, 0.6]}", "network.width={choice: [0.125, 0.5]}",
        "train.epochs={choice: [4, 2]}", "train.weight_decay=0.001", "train.scaled_decay=true",
    ]  # fmt: skip
    space = read_space("tt_dims", changes)
    resolver = Resolver(space, digits)
    grid = GridProposer(space, resolver.points, resolver.training_cost)
    proposals = list(iter(lambda: grid.ask(resolver.strata[0]), None))
    asked = [(proposal.point["network.width"], proposal.point["train.epochs"]) for proposal in proposals]
    for repeat in range(2):
        assert asked[16 * repeat : 16 * repeat + 16] == [
            size for size in ((0.5, 4), (0.5, 2), (0.125, 4), (0.125, 2)) for _ in range(4)
        ]
        assert {proposal.repeat for proposal in proposals[16 * repeat : 16 * repeat + 16]} == {repeat}


def test_only_a_grid_has_an_order_to_choose():
    with pytest.raises(InputError, match="`order` is that of a grid, whose points are all known, but `sampler` is tpe"):
        read_space("tt_dims", ["search.order=longest_first"])


def test_the_size_of_a_space(space):
    assert Points(space).size() == 2 * 3 * 2 * 2
    assert Points(read_space("tt_dims")).size() is None
    assert Points(read_space("tt_schedule")).size() == 129
