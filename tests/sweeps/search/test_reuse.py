"""Equal trials of a series are trained once: the other studies adopt them, and count no cost for them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.findings.cost import study_cost
from lowrank.training import Recipe, number_format
from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trial_config import TrialConfig
from sweeps.records.events import Event, Role, Status
from sweeps.records.image_errors import encode_wrong_images
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.mlflow_names import trial_tags
from sweeps.records.model import StudyRecord, TrialRecord, apply_event
from sweeps.records.names import JOURNAL_FILE, SERIES_FILE
from sweeps.records.tables import trial_from_row, trial_to_row
from sweeps.search import reuse as adoption
from sweeps.search.optuna_proposer import make_proposer
from sweeps.search.prefetch import ProposalPrefetcher
from sweeps.search.reuse import SiblingResults, weights_path
from sweeps.search.search import Search
from sweeps.space.parse import parse_space
from sweeps.space.settings import SearchSettings
from sweeps.study.final_evaluation import evaluate_front
from sweeps.study.progress_view import progress
from sweeps.trials.resolver import Resolver
from tests.support.journals import read_events
from tests.support.specifications import make_specification

GRID = {"sampler": "grid", "trials": 100, "stop": "none", "repeats": 2}
WRONG_IMAGES = encode_wrong_images(np.arange(25) < 2)  # 8 %
MACHINE = {"host": "here", "device": "cpu", "cpus": 1.0, "start_seconds": 0.5, "pid": 7}


@pytest.fixture
def series(digits, tmp_path, content):
    """Opens the search of a study of a series, as a driver would: `series(name, method.dims, **search)`."""
    (tmp_path / SERIES_FILE).write_text("{}")
    journals = []

    def opened(name: str, dims: list[int], **search) -> Search:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        journal = Journal(folder / JOURNAL_FILE)
        journals.append(journal)
        method = {"name": "tensor_train", "dims": {"choice": dims}}
        space = parse_space(name, {**content, "train": {"epochs": 2}, "method": method, "search": {**GRID, **search}})
        record = fold_journal(journal.path)
        proposer = make_proposer(space, folder)
        return Search(space, Resolver(space, digits), proposer, journal, record, siblings=SiblingResults.read(folder))

    yield opened
    for journal in journals:
        journal.close()


def folder_of(search: Search) -> Path:
    return search.journal.path.parent


def train(search: Search, trial_id: str, status: Status = Status.COMPLETED) -> None:
    search.write_attempt(trial_id, MACHINE)
    for epoch in (1, 2):
        search.write_epoch(trial_id, epoch, {"val_error": 10.0 - epoch, "epoch_seconds": 3.0})
    path = weights_path(folder_of(search), trial_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(trial_id.encode())
    search.finish(trial_id, status, wrong_images=WRONG_IMAGES)


def run_out(search: Search) -> list[str]:
    launched = []
    while (trial := search.next()) is not None:
        launched.append(trial.trial_id)
        train(search, trial.trial_id)
    assert search.is_over()
    return launched


def test_a_grid_trains_only_what_no_other_study_of_the_series_has(series):
    first = series("first", [2, 3])
    launched = run_out(first)
    second = series("second", [2, 4])
    again = run_out(second)
    assert not set(launched) & set(again)
    ended = [trial for trial in second.record.trials.values() if trial.status is Status.COMPLETED]
    assert len(ended) == len(second.record.trials) == 2 + 2 * 2 * 2  # references, and seeds x budgets x dims
    adopted = {trial.trial_id for trial in ended if trial.adopted}
    assert adopted == set(launched) & set(second.record.trials)
    assert len(adopted) == 2 + 2 * 2
    for name in adopted:
        ours, theirs = second.record.trials[name], first.record.trials[name]
        assert ours.adopted == {"study": "first", "host": "here", "device": "cpu", "cpus": 1.0}
        assert {epoch: values["val_error"] for epoch, values in ours.epochs.items()} == {1: 9.0, 2: 8.0}
        assert ours.wrong_images == {"val": WRONG_IMAGES}
        assert (ours.role, ours.stratum, ours.point_id) == (theirs.role, theirs.stratum, theirs.point_id)
        assert os.path.samefile(weights_path(folder_of(second), name), weights_path(folder_of(first), name))
    assert fold_journal(second.journal.path) == second.record


def test_an_adopted_trial_costs_the_study_nothing_and_says_where_it_was_trained(series):
    run_out(series("first", [2]))
    second = series("second", [2])
    assert run_out(second) == []
    cost = study_cost(second.record)
    assert (cost.train_seconds, cost.start_seconds, cost.attempts, cost.adopted) == (0, 0, 0, 6)
    trial = next(iter(second.record.trials.values()))
    row = trial_to_row("second", trial)
    assert (row["train_seconds"], row["attempts"], row["host"], row["val_error"]) == (0, 0, "here", 8.0)
    assert trial_from_row(row).adopted == trial.adopted
    assert trial_tags(second.record, trial)["adopted"] == "first"
    shown = progress(second.record, 6, 0.0, 0, 10.0)
    assert (shown.ended, shown.work, shown.remaining) == (6, 0, None)


def test_a_third_study_says_which_study_trained_it_whoever_hands_it_on(series, tmp_path):
    run_out(series("b_first", [2]))
    run_out(series("a_second", [2]))
    third = series("third", [2])
    assert run_out(third) == []
    assert {trial.adopted["study"] for trial in third.record.trials.values()} == {"b_first"}


def test_after_a_kill_in_the_midst_of_an_adoption_it_is_finished(series, monkeypatch):
    run_out(series("first", [2]))
    second = series("second", [2])

    class KilledError(Exception):
        pass

    def killed(*args, **kwargs):
        raise KilledError

    monkeypatch.setattr(second, "finish", killed)
    with pytest.raises(KilledError):
        second.next()
    second = series("second", [2])
    (cut,) = [trial for trial in second.record.trials.values() if trial.adopted]
    assert cut.status is Status.PROPOSED
    assert run_out(second) == []
    assert {trial.status for trial in second.record.trials.values()} == {Status.COMPLETED}
    lines = [event for event in read_events(second.journal.path) if event.get("trial") == cut.trial_id]
    assert [event["epoch"] for event in lines if event["event"] == Event.EPOCH] == [1, 2]


def test_what_was_cut_off_here_and_trained_elsewhere_since_is_adopted_on_resume(series):
    first = series("first", [2])
    trial = first.next()
    first.write_attempt(trial.trial_id, MACHINE)
    run_out(series("second", [2]))
    first = series("first", [2])
    assert run_out(first) == []
    assert first.record.trials[trial.trial_id].adopted["study"] == "second"


@pytest.mark.parametrize("spoil", ["broken", "weights", "stopped", "no series"])
def test_what_does_not_count_or_is_not_there_any_more_is_trained_again(series, tmp_path, spoil):
    first = series("first", [2])
    name = first.next().trial_id
    train(first, name, Status.STOPPED if spoil == "stopped" else Status.COMPLETED)
    if spoil == "broken":
        first.journal.append(Event.EXCLUDED, trial=name, broken="a test")
    elif spoil == "weights":
        weights_path(folder_of(first), name).unlink()
    elif spoil == "no series":
        (tmp_path / SERIES_FILE).unlink()
    assert series("second", [2]).next().trial_id == name


def test_divergence_is_a_result_too(series):
    first = series("first", [2])
    name = first.next().trial_id
    first.write_epoch(name, 1, {"val_error": 90.0})
    first.finish(name, Status.DIVERGED, "loss is nan")
    second = series("second", [2])
    second.next()
    trial = second.record.trials[name]
    assert (trial.status, trial.reason, trial.adopted["study"]) == (Status.DIVERGED, "loss is nan", "first")


def test_trained_here_after_all_it_is_no_longer_adopted():
    trial = TrialRecord("a", adopted={"study": "first", "host": "there"})
    assert trial.last_attempt("host") == "there"
    apply_event(StudyRecord(trials={"a": trial}), {"event": "attempt", "trial": "a", "time": 1.0, **MACHINE})
    assert (trial.adopted, trial.last_attempt("host")) == ({}, "here")


def test_the_sampler_learns_what_was_adopted_and_repeats_are_adopted_too(series):
    search = {"sampler": "random", "trials": 2, "repeats": 2}
    first = series("first", [2, 3], **search)
    launched = run_out(first)
    second = series("second", [2, 3], **search)
    assert run_out(second) == []
    assert set(second.record.trials) == set(launched)
    assert any(trial.role is Role.REPEAT for trial in second.record.trials.values())
    assert list(second.proposer.open_handles()) == []


def test_ahead_of_the_slots_adopted_trials_take_none(series):
    launched = run_out(series("first", [2, 3]))
    second = series("second", [2, 3, 4])
    taken = []
    with ProposalPrefetcher(second, 2) as prefetcher:
        while (trial := prefetcher.next(wait=True)) is not None:
            taken.append(trial.trial_id)
            train(second, trial.trial_id)
    assert not set(taken) & set(launched)
    assert len(taken) == 2 * 2


def test_a_copy_is_made_where_the_disk_has_no_links(series, monkeypatch):
    first = series("first", [2])
    run_out(first)

    def no_links(*args):
        raise OSError("no links here")

    monkeypatch.setattr(adoption.os, "link", no_links)
    second = series("second", [2])
    run_out(second)
    name = next(iter(second.record.trials))
    ours, theirs = (weights_path(folder_of(each), name) for each in (second, first))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not os.path.samefile(ours, theirs)


def test_the_test_split_is_not_looked_at_again_for_the_same_weights(series, digits):
    first = series("first", [2])
    run_out(first)
    for name in first.record.trials:
        first.write_test_error(name, 7.5, "4:test")
    second = series("second", [2])
    run_out(second)
    for trial in second.record.trials.values():  # a model would need real weights
        folder = folder_of(second) / "models" / trial.trial_id
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"")
    evaluate_front(second, folder_of(second), digits)  # the weights are no network: a look would fail
    tested = [trial.test_error for trial in second.record.trials.values() if trial.test_error is not None]
    assert tested
    assert set(tested) == {7.5}
    assert {trial.wrong_images.get("test") for trial in second.record.trials.values()} == {"4:test", None}


def test_the_early_stopping_knows_what_was_adopted_while_it_runs():
    adopted: list[TrialRecord] = []
    asha = StratifiedStopping(SearchSettings(grace=0.5, reduction=3), 12, StudyRecord(), adopted)
    for index in range(3):
        curve = {epoch: {"val_error": 5.0, "time": 1.0} for epoch in range(1, 13)}
        adopted.append(TrialRecord(f"known{index}", stratum="small", status=Status.COMPLETED, epochs=curve))
    config = TrialConfig(trial_id="worse", stratum="small", specification=make_specification(), study_dir="")
    worse = SimpleNamespace(trial_id="ray", config=config.to_tune())
    assert asha.on_trial_result(None, worse, {"epoch": 6, "val_error": 50.0}) == "STOP"


def test_a_study_alone_adopts_nothing(tmp_path):
    assert SiblingResults.read(tmp_path / "alone").trials == {}


@pytest.mark.parametrize(
    ("precision", "trained_on", "device", "adopted"),
    [
        ("auto", {"device": "cpu"}, "cpu", True),
        ("auto", {"device": "cpu"}, "cuda", False),
        ("auto", {"device": "cuda", "precision": "bfloat16"}, "cpu", False),
        ("float32", {"device": "cuda", "precision": "float32"}, "cpu", True),
        ("auto", {}, "cuda", True),  # an older record that does not say it
    ],
)
def test_a_trial_is_adopted_only_where_it_would_be_computed_in_the_same_format(
    tmp_path, precision, trained_on, device, adopted
):
    trial = TrialRecord(
        trial_id="a", status=Status.DIVERGED, specification=make_specification(train={"precision": precision}),
        attempts=[trained_on],
    )  # fmt: skip
    siblings = SiblingResults(device=device)
    siblings.add(tmp_path / "other", [trial])
    assert (siblings.find("a") is not None) is adopted


def test_a_test_error_is_that_of_the_study_that_trained_the_weights(tmp_path):
    """Two siblings have trained the same trial; this study has adopted the weights of one."""
    siblings = SiblingResults(study="here")
    for name, error in (("first", 11.0), ("second", 22.0)):
        siblings.add(tmp_path / name, [TrialRecord(trial_id="a", status=Status.COMPLETED, test_error=error)])
    assert siblings.tested(TrialRecord(trial_id="a", adopted={"study": "second"})).test_error == 22.0
    assert siblings.tested(TrialRecord(trial_id="a", adopted={"study": "first"})).test_error == 11.0
    assert siblings.tested(TrialRecord(trial_id="a")) is None
    siblings.add(tmp_path / "third", [TrialRecord(trial_id="a", adopted={"study": "here"}, test_error=33.0)])
    assert siblings.tested(TrialRecord(trial_id="a")).test_error == 33.0


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_format_of_older_records_follows_the_rule_of_the_training(precision, device):
    expected = number_format(Recipe(epochs=1, precision=precision), torch.device(device))
    specification = make_specification(train={"precision": precision})
    assert TrialRecord("a", specification=specification, attempts=[{"device": device}]).number_format == expected
