"""Trials of Bayesian compression: their budgets, bounds and shared trainings, and the record of what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.sources.recount import NotOnRecordError, recount
from lowrank.errors import InfeasibleError, InputError
from lowrank.networks import NetworkSettings
from lowrank.training import SGD_NOTICE
from sweeps.records.events import Event, Status
from sweeps.records.header import HeaderData
from sweeps.records.mlflow_names import run_params, size_metrics
from sweeps.records.model import StudyRecord, apply_event
from sweeps.records.specification import BudgetSection, Trial, TrialSpec
from sweeps.records.tables import read_tables, write_tables
from sweeps.space.files import find_space, read_yaml
from sweeps.space.parse import parse_space
from sweeps.study.plan_report import make_plan, plan_lines
from sweeps.trials.build import make_student
from sweeps.trials.resolver import Resolver

CONTENT: dict[str, Any] = {
    "question": "How small?", "data": {"name": "digits"}, "network": {"name": "mlp", "hidden": [30, 20]},
    "train": {"epochs": 2}, "method": {"name": "bayesian", "prior": {"choice": ["normal_jeffreys", "horseshoe"]}},
    "budget": {"params": {"choice": [0.5, 0.2]}, "relative_to": "dense"}, "references": ["dense"],
    "search": {"sampler": "grid", "stop": "none"},
}  # fmt: skip


def resolver(digits: Any, **sections: Any) -> Resolver:
    return Resolver(parse_space("small", {**CONTENT, **sections}), digits)


def points(made: Resolver) -> list[Trial]:
    return [made.resolve(point) for point in made.points.grid()]


def test_a_budget_is_part_of_the_trial_and_bounds_its_counts(digits: Any) -> None:
    made = resolver(digits)
    trials = points(made)
    assert len({trial.trial_id for trial in trials}) == 4
    dense = trials[0].counts["dense_params"]
    for trial in trials:
        limit = int(float(trial.point["budget.params"] or 0) * dense)
        assert trial.specification.budget == BudgetSection(params=limit)
        assert trial.counts["params"] == limit, "until the end of the trial the most that it may have"
        assert TrialSpec.parse(trial.specification.to_json()) == trial.specification


def test_budgets_of_one_training_wait_for_the_first(digits: Any) -> None:
    trials = points(resolver(digits))
    first = {str(trial.point["method.prior"]): trial for trial in trials if trial.point["budget.params"] == 0.5}
    for trial in trials:
        source = first[str(trial.point["method.prior"])]
        assert trial.depends_on == (None if trial is source else source.trial_id)


def test_posteriors_that_begin_at_the_dense_reference_wait_for_it(digits: Any) -> None:
    made = resolver(digits, start={"how": "dense"}, method={"name": "bayesian"})
    first, second = points(made)
    dense = made.reference("dense").trial_id
    assert [trial.specification.start.trial_id for trial in (first, second)] == [dense, dense]  # type: ignore[union-attr]
    assert (first.depends_on, second.depends_on) == (dense, first.trial_id)
    scratch = {trial.trial_id for trial in points(resolver(digits, method={"name": "bayesian"}))}
    assert not scratch & {first.trial_id, second.trial_id}


def test_the_network_of_a_trial_has_variational_layers(digits: Any) -> None:
    network, ratio = make_student(points(resolver(digits))[0].specification, digits)
    assert {type(module).__name__ for module in network.modules()} >= {"VariationalLinear"}
    assert ratio == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"budget": {"params": 20}}, "cannot be that small: its minimum is"),
        ({"budget": {"params": {"min": 0.1, "max": 0.2}, "relative_to": "dense"}}, "no budget can have a minimum"),
        ({"network": {"name": "resnet18", "width": 0.05, "stem": "small"}, "budget": {"mult_adds": 9000}},
         "only masked"),
    ],
)  # fmt: skip
def test_what_no_removal_can_meet_is_infeasible(digits: Any, sections: dict[str, Any], message: str) -> None:
    made = resolver(digits, **sections)
    with pytest.raises(InfeasibleError, match=message):
        made.resolve(made.points.grid()[0])


def test_a_rule_that_ends_trials_early_is_refused() -> None:
    search = {"sampler": "grid", "stop": "asha"}
    with pytest.raises(InputError, match=r"no trial of it may end early: `search\.stop` must be none, but got asha"):
        parse_space("small", {**CONTENT, "search": search})


def test_the_space_searches_the_networks_of_each_data_set() -> None:
    from sweeps.space.run_options import RunOptions
    from sweeps.study.series import parse_series

    content = read_yaml(find_space("bayesian"))
    digits = parse_series(content, "bayesian", RunOptions())
    assert [member.space.network for member in digits] == [
        NetworkSettings(name="mlp", hidden=(300, 100)), NetworkSettings(name="resnet9", width=0.125)
    ]  # fmt: skip
    cifar = parse_series({**content, "data": {"name": "cifar10"}}, "bayesian", RunOptions())
    assert [member.space.network.name for member in cifar] == ["vgg16", "resnet9"]
    assert cifar[0].space.epochs == 60


REMOVED = {
    "network": {"name": "mlp", "hidden": [12, 9], "inputs": 20}, "threshold": 0.5, "masked": False,
    "counts": {"params": 448, "mult_adds": 438, "bytes": 2000, "mixed_bytes": 700, "budget_gap": 3},
    "alive": {"hidden.0": [20, 64]}, "bits": {"hidden.0": 9}, "mixed_error": 4.0,
}  # fmt: skip


def ended_study(digits: Any, removed: dict[str, Any] | None) -> tuple[StudyRecord, str]:
    trial, study = points(resolver(digits))[0], StudyRecord()
    apply_event(study, {
        "event": Event.PROPOSED, "trial": trial.trial_id, "role": str(trial.role), "stratum": trial.stratum,
        "parameters": trial.point, "specification": trial.specification.to_json(), "counts": trial.counts,
        "proposal": {}, "time": 1.0,
    })  # fmt: skip
    metrics = {"val_error": 5.0, "kl.hidden.0": 12.5, "alive.hidden.0": 20.0, "snr.hidden.0.-1": 0.25, "loss_kl": 3.0,
               "compression": 7.0, "full_val_error": 4.0}  # fmt: skip
    apply_event(study, {"event": Event.EPOCH, "trial": trial.trial_id, "epoch": 1, "metrics": metrics, "time": 2.0})
    fields = {"removed": removed} if removed else {}
    apply_event(study, {
        "event": Event.FINISHED, "trial": trial.trial_id, "status": str(Status.COMPLETED), "reason": "", "time": 3.0,
        **fields,
    })  # fmt: skip
    return study, trial.trial_id


def test_the_end_of_a_trial_records_what_is_left(digits: Any, tmp_path: Path) -> None:
    study, trial_id = ended_study(digits, REMOVED)
    trial = study.trials[trial_id]
    assert trial.counts["params"] == 448
    assert trial.counts["dense_params"] > 448
    assert trial.method == "bayesian"
    built = trial.built_specification
    assert built is not None
    assert (built.method.name, built.network.hidden, built.network.inputs) == ("dense", (12, 9), 20)
    assert built.budget is None
    write_tables(study, tmp_path)
    again = read_tables(tmp_path).trials[trial_id]
    assert (again.removed, again.counts) == (trial.removed, trial.counts)
    assert again.epochs[1] == trial.epochs[1]


def test_mlflow_gets_sizes_when_they_are_final(digits: Any) -> None:
    """MLflow refuses another value of a parameter; before the removal `params` is only a limit."""
    unfinished, trial_id = ended_study(digits, None)
    params, sizes = run_params(unfinished.trials[trial_id]), size_metrics(unfinished.trials[trial_id])
    assert "dense_params" in params
    assert not {"params", "mult_adds"} & params.keys()
    assert sizes == {}
    study, trial_id = ended_study(digits, REMOVED)
    params, sizes = run_params(study.trials[trial_id]), size_metrics(study.trials[trial_id])
    assert (params["params"], params["mult_adds"]) == ("448", "438")
    assert (sizes["params"], sizes["mult_adds"]) == (448, 438)


def test_what_is_left_is_counted_again(digits: Any) -> None:
    study, trial_id = ended_study(digits, REMOVED)
    data = HeaderData(image_shape=(1, 8, 8), classes=10)
    counts = recount(study.trials[trial_id], data)
    # 20 inputs, 12 and 9 hidden units with their batch norms, 10 classes with a bias
    assert counts["params"] == 20 * 12 + 24 + 12 * 9 + 18 + 9 * 10 + 10
    assert counts["dense_params"] == study.trials[trial_id].counts["dense_params"]
    unfinished, trial_id = ended_study(digits, None)
    with pytest.raises(NotOnRecordError, match="has not ended"):
        recount(unfinished.trials[trial_id], data)
    masked, trial_id = ended_study(digits, {**REMOVED, "masked": True})
    with pytest.raises(NotOnRecordError, match="only masked"):
        recount(masked.trials[trial_id], data)


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        (0, "after the removal of groups: not fine-tuned (`method.finetune_epochs`)"),
        ({"choice": [0, 3]}, "after the removal of groups: fine-tuned for 0 or 3 epochs (`method.finetune_epochs`)"),
    ],
)
def test_a_plan_says_how_long_networks_are_fine_tuned(digits: Any, epochs: Any, line: str) -> None:
    made = resolver(digits, method={"name": "bayesian", "finetune_epochs": epochs})
    plan = make_plan(made.space, made, 1)
    lines = plan_lines(plan, made.space, made)
    assert line in lines
    assert f"  note: {SGD_NOTICE}" in lines, "the recipe of the digits has SGD"


def test_an_empty_number_of_epochs_is_refused(digits: Any) -> None:
    message = r"`method\.finetune_epochs`: must be a whole number, such as 0, but got None"
    with pytest.raises(InputError, match=message):
        points(resolver(digits, method={"name": "bayesian", "finetune_epochs": None}))
