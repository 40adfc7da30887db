"""What the driver records of the results that Ray's trials report."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.tune.search import Searcher

from lowrank.errors import InputError
from sweeps.cluster import error_reason
from sweeps.execution.callbacks import MAX_REASON, Recorder, TuneSearcher
from sweeps.execution.trial_config import TrialConfig, trial_config
from sweeps.execution.worker_errors import WorkerLostError
from sweeps.records import FullDiskError, Role, Status, Trial, TrialRecord
from sweeps.resources import GradualPacking, Share
from sweeps.resources.gpu_packing import Limit
from sweeps.search import Search as StudySearch

METRICS = {
    "val_error": 10.0, "val_loss": 1.0, "train_error": 5.0, "train_loss": 0.5, "lr": 0.1, "images_per_second": 1000.0,
    "epoch_seconds": 1.0,
}  # fmt: skip


class Search:
    """Keeps what would be written into the journal."""

    def __init__(self, trial: TrialRecord) -> None:
        self.record = SimpleNamespace(trials={trial.trial_id: trial})
        self.ends: list[tuple[Any, ...]] = []

    def write_initial(self, trial_id: str, initial: dict[str, Any]) -> None:
        self.record.trials[trial_id].initial = initial

    def write_epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        self.record.trials[trial_id].epochs[epoch] = metrics

    def finish(self, *end: Any) -> None:
        self.ends.append(end)


def report(trial: TrialRecord, *results: dict[str, Any]) -> list[tuple[Any, ...]]:
    search = Search(trial)
    config = SimpleNamespace(
        resources=SimpleNamespace(share="1 CPU", larger=None, growing=None), on_change=lambda: None
    )
    recorder = Recorder(search, SimpleNamespace(), config)  # type: ignore[arg-type]
    for result in results:
        recorder.on_trial_result(0, [], None, {"trial": trial.trial_id, **result})  # type: ignore[arg-type]
    return search.ends


END = {"outcome": str(Status.COMPLETED), "reason": "", "wrong_images": "8:x"}


def test_a_trial_that_is_only_evaluated_keeps_its_wrong_images():
    ends = report(TrialRecord("t"), {"initial": {"val_error": 12.5}, "epoch": 0, "val_error": 12.5, **END})
    assert ends == [("t", Status.COMPLETED, "", "8:x", None)]


@pytest.mark.parametrize(("recorded", "wrong_images"), [(12.5, "8:x"), (25.0, "")])
def test_wrong_images_are_those_of_the_recorded_error(recorded, wrong_images):
    trial = TrialRecord("t", epochs={1: {"val_error": recorded}})
    ends = report(trial, {"epoch": 1, "metrics": {"val_error": 12.5}, "val_error": 12.5, **END})
    assert ends == [("t", Status.COMPLETED, "", wrong_images, None)]


def tune_trial(trial: Trial, error: object = None) -> Any:
    """Tune's trial of one of ours, as callbacks see it."""
    config = TrialConfig(trial_id=trial.trial_id, specification=trial.specification, study_dir="")
    state = SimpleNamespace(error_of_attempt=error)
    metadata = SimpleNamespace(metric_analysis={"loss": {}}, metric_n_steps={"loss": {}}, last_result={"loss": 1})
    return SimpleNamespace(config=config.to_tune(), temporary_state=state, run_metadata=metadata)


@pytest.fixture
def search(open_search) -> StudySearch:
    return open_search()


def out_of_memory(trial_id: str, reason: str = "CUDA out of memory") -> dict[str, Any]:
    return {"trial": trial_id, "outcome": str(Status.OUT_OF_MEMORY), "reason": reason}


def test_no_more_trials_start_than_may_share_the_card_now(search, execution):
    growing = GradualPacking(Limit(8, "8"), 100, "processes", lambda *_: pytest.fail("nothing was measured"))
    config = execution()
    config = dataclasses.replace(config, resources=dataclasses.replace(config.resources, growing=growing))
    searcher = TuneSearcher(search, config, SimpleNamespace(next=lambda wait: search.next()), None)  # type: ignore[arg-type]
    assert trial_config(searcher.suggest("a")).card_share == 1.0
    assert searcher.suggest("b") is None
    growing.slots = 2
    assert trial_config(searcher.suggest("b")).card_share == 0.5
    assert searcher.suggest("c") is None
    first = next(iter(search.record.trials.values()))
    first.attempts.append({"gpus": 1.0})
    growing.decided = True
    Recorder(search, SimpleNamespace(), config).on_trial_result(0, [], None, out_of_memory(first.trial_id))  # type: ignore[arg-type]
    assert first.postponed.startswith("on 1 CPU and 1 GPU")


def test_a_failed_attempt_is_tried_again_and_a_second_one_is_the_trials_end(search, execution):
    changes = []
    recorder = Recorder(search, SimpleNamespace(), execution(on_change=lambda: changes.append(1)))
    trial = search.next()
    error = ValueError("ray::step()\n  File x\nno such method  " + "x" * 1000)
    recorder.on_trial_error(0, [], tune_trial(trial, error))
    assert (search.next(), changes) == (trial, [])  # it is launched again before anything else
    recorder.on_trial_error(0, [], tune_trial(trial, error))
    record = search.record.trials[trial.trial_id]
    assert record.status is Status.FAILED
    assert record.reason == ("no such method  " + "x" * 1000)[:MAX_REASON]
    assert changes == [1]


def test_the_reason_of_a_workers_error_of_several_lines_is_its_class_and_first_line():
    cause = InputError("the images\nare gone")
    assert error_reason(RayTaskError("step", "File x\nare gone", cause)) == "lowrank.errors.InputError: the images"
    assert error_reason(RayTaskError("step", "File x\nare gone", cause).as_instanceof_cause()).endswith(": the images")
    assert error_reason("the actor died\nWorker exits unexpectedly. ") == "Worker exits unexpectedly."


def test_an_attempt_that_is_repeated_leaves_a_notice_of_why(search, execution):
    """To Tune it is a trial that has failed; without the notice nobody could tell what became of it."""
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    reason = "the worker held 900 MB of device memory after its trial"
    for _ in range(4):
        recorder.on_trial_error(0, [], tune_trial(trial, WorkerLostError(f"ray::train()\n  File x\n{reason}")))
    record = search.record.trials[trial.trial_id]
    assert record.notices == [f"an attempt has failed and is repeated: {reason}"]  # equal ones are one
    assert (record.status, record.reason) == (Status.FAILED, reason)


def test_a_trial_whose_processes_are_lost_is_launched_again(search, execution):
    """It comes as a result, since the worker is sound: Tune would end that of a trial that fails."""
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    result = {"trial": trial.trial_id, "notices": ["plain steps"], "lost": "process 1 of 2 hangs"}
    for _ in range(3):
        recorder.on_trial_result(0, [], None, result)  # type: ignore[arg-type]
        assert search.next() == trial
    recorder.on_trial_result(0, [], None, result)  # type: ignore[arg-type]
    record = search.record.trials[trial.trial_id]
    assert record.notices == ["plain steps", "an attempt has failed and is repeated: process 1 of 2 hangs"]
    assert (record.status, record.reason) == (Status.FAILED, "process 1 of 2 hangs")
    assert [attempt["reason"] for attempt in record.attempts] == ["process 1 of 2 hangs"] * 4


def test_an_attempt_that_ends_before_its_first_epoch_is_on_record_with_its_reason(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    attempts = search.record.trials[trial.trial_id].attempts
    recorder.on_trial_error(0, [], tune_trial(trial, WorkerLostError("the worker has died")))
    (lost,) = attempts
    assert {key: lost[key] for key in lost if key != "time"} == {
        "device": "cuda", "cpus": 1, "gpus": 0.25, "processes": 1, "reason": "the worker has died",
    }  # fmt: skip
    assert search.next() == trial
    begun = {"trial": trial.trial_id, "attempt": {"host": "one"}, "epoch": 1, "metrics": METRICS}
    recorder.on_trial_result(0, [], None, begun)  # type: ignore[arg-type]
    recorder.on_trial_error(0, [], tune_trial(trial, WorkerLostError("the worker has died")))
    assert [attempt.get("host") for attempt in attempts] == [None, "one"], "one event for each attempt"


def test_a_group_that_is_lost_in_its_first_epoch_leaves_one_attempt(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    lost = {"attempt": {"host": "one", "reason": "process 1 of 2 hangs"}, "lost": "process 1 of 2 hangs"}
    recorder.on_trial_result(0, [], None, {"trial": trial.trial_id, **lost})  # type: ignore[arg-type]
    recorder.on_trial_complete(0, [], tune_trial(trial))
    attempts = search.record.trials[trial.trial_id].attempts
    assert [(attempt["host"], attempt["reason"]) for attempt in attempts] == [("one", "process 1 of 2 hangs")]


def test_an_error_without_words_is_recorded_by_its_type(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    for _ in range(2):
        recorder.on_trial_error(0, [], tune_trial(trial, ValueError()))
    assert search.record.trials[trial.trial_id].reason == "ValueError"


def test_a_full_disk_of_the_study_ends_the_study_and_not_the_trial(search, execution, tmp_path):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "trials" / "checkpoint"))
    with pytest.raises(FullDiskError):
        recorder.on_trial_error(0, [], tune_trial(trial, full))
    assert not search.record.trials[trial.trial_id].ended


def test_what_runs_out_of_memory_is_postponed_once_and_the_reason_names_both_shares(search, execution):
    config, trial = execution(), search.next()
    Recorder(search, SimpleNamespace(), config).on_trial_result(0, [], None, out_of_memory(trial.trial_id))
    record = search.record.trials[trial.trial_id]
    assert (record.ended, record.postponed) == (False, "on 1 CPU and 0.25 GPU: CUDA out of memory")
    assert record.notices == [
        f"out of memory: {trial.trial_id} on 1 CPU and 0.25 GPU; when the others are done it is tried once more on "
        "1 CPU and 0.5 GPU (CUDA out of memory)"
    ]
    assert search.pop_postponed() == trial
    second = Recorder(search, SimpleNamespace(), execution(share=config.resources.larger, larger=None))
    second.on_trial_result(0, [], None, out_of_memory(trial.trial_id, "2 GiB are missing"))
    assert record.status is Status.OUT_OF_MEMORY
    assert record.reason == (
        "on 1 CPU and 0.25 GPU: CUDA out of memory; once more on 1 CPU and 0.5 GPU: 2 GiB are missing"
    )


def test_without_a_larger_share_a_trial_that_runs_out_of_memory_has_ended(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution(larger=None)), search.next()
    recorder.on_trial_result(0, [], None, out_of_memory(trial.trial_id))
    record = search.record.trials[trial.trial_id]
    assert (record.status, record.reason) == (Status.OUT_OF_MEMORY, "CUDA out of memory")
    assert not search.postponed


def test_a_trial_of_several_cards_that_runs_out_of_memory_is_tried_again_at_once_but_not_for_ever(search, execution):
    config = execution(share=Share(2, 2, 1, processes=2), larger=None)
    recorder, trial = Recorder(search, SimpleNamespace(), config), search.next()
    recorder.on_trial_result(0, [], None, out_of_memory(trial.trial_id))
    record = search.record.trials[trial.trial_id]
    assert (record.ended, record.postponed) == (False, "")
    assert record.notices == ["an attempt has failed and is repeated: CUDA out of memory"]
    assert search.next() == trial
    recorder.on_trial_result(0, [], None, out_of_memory(trial.trial_id, "2 GiB are missing"))
    assert (record.status, record.reason) == (Status.OUT_OF_MEMORY, "2 GiB are missing")


def test_an_attempt_that_begins_again_brings_each_epoch_once(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    first = {"trial": trial.trial_id, "epoch": 1, "metrics": METRICS}
    attempt = {"attempt": 2, "start_seconds": 0.1}
    history = [{**METRICS, "val_error": 99.0}, {**METRICS, "val_error": 8.0}]
    recorder.on_trial_result(0, [], None, first)
    recorder.on_trial_result(
        0, [], None, {"trial": trial.trial_id, "attempt": attempt, "history": history, "notices": ["no cache"]}
    )
    recorder.on_trial_result(0, [], None, {"done": True})  # Tune's own last result of an actor names no trial
    record = search.record.trials[trial.trial_id]
    assert {epoch: metrics["val_error"] for epoch, metrics in record.epochs.items()} == {1: 10.0, 2: 8.0}
    assert record.notices == ["no cache"]


def test_a_new_epoch_renews_the_attempts_of_a_trial(search, execution):
    recorder, trial = Recorder(search, SimpleNamespace(), execution()), search.next()
    for epoch in range(1, 5):
        recorder.on_trial_error(0, [], tune_trial(trial, ValueError("no such file")))
        assert search.next() == trial
        recorder.on_trial_result(0, [], None, {"trial": trial.trial_id, "epoch": epoch, "metrics": METRICS})
    assert not search.record.trials[trial.trial_id].ended


def test_a_stop_by_the_scheduler_is_recorded_with_the_wrong_images_of_its_last_epoch(search, execution):
    trial = search.next()
    recorder = Recorder(search, SimpleNamespace(stopped={trial.trial_id: "worse than the median"}), execution())
    epoch = {"trial": trial.trial_id, "epoch": 1, "metrics": METRICS, "val_error": 10.0, "wrong_images": "8:x"}
    recorder.on_trial_result(0, [], None, epoch)
    recorder.on_trial_complete(0, [], tune_trial(trial))
    record = search.record.trials[trial.trial_id]
    assert (record.status, record.reason) == (Status.STOPPED, "worse than the median")
    assert record.wrong_images == {"val": "8:x"}


def test_a_trial_that_ends_without_an_outcome_was_interrupted_and_has_no_end(search, execution):
    trial = search.next()
    Recorder(search, SimpleNamespace(), execution()).on_trial_complete(0, [], tune_trial(trial))
    assert not search.record.trials[trial.trial_id].ended


def test_the_metrics_that_tune_keeps_of_an_ended_trial_are_freed_after_the_step(search, execution):
    recorder, ended = Recorder(search, SimpleNamespace(), execution()), tune_trial(search.next())
    recorder.on_trial_complete(0, [], ended)
    assert ended.run_metadata.metric_analysis  # other callbacks of this step may read them
    recorder.on_step_end(0, [])
    assert (ended.run_metadata.metric_analysis, ended.run_metadata.metric_n_steps) == ({}, {})


def test_what_ray_saves_of_searcher_and_recorder_has_no_open_journal(search, execution):
    for callback in (Recorder(search, SimpleNamespace(), execution()), TuneSearcher(search, execution(), None, None)):
        assert vars(pickle.loads(pickle.dumps(callback))) == {}


def test_a_suggested_trial_comes_with_all_that_its_worker_needs(open_search, execution, tmp_path):
    search = open_search(search={"trials": 1, "stop": "median"}, resources={"checkpoint_seconds": 7})
    prefetcher = SimpleNamespace(next=lambda wait: search.next())
    searcher = TuneSearcher(search, execution(), prefetcher, "relay-1")
    configs = [trial_config(searcher.suggest("x")) for _ in range(2)]
    assert [(config.role, config.may_stop) for config in configs] == [(Role.REFERENCE, False), (Role.SEARCH, True)]
    config = configs[1]
    assert config.specification == search.record.trials[config.trial_id].specification
    assert (config.study_dir, config.relay, config.checkpoint_seconds) == (str(tmp_path), "relay-1", 7)
    assert searcher.suggest("x") is None  # while trials run one may have to be retried
    for config in configs:
        search.finish(config.trial_id, Status.FAILED)
    assert searcher.suggest("x") == Searcher.FINISHED


def test_in_the_phase_of_the_larger_share_only_postponed_trials_are_suggested(search, execution):
    postponed = search.next()
    search.postpone(postponed.trial_id, "on 1 CPU")
    searcher = TuneSearcher(search, execution(), None, None)
    assert trial_config(searcher.suggest("x")).trial_id == postponed.trial_id
    assert searcher.suggest("x") is None
    search.finish(postponed.trial_id, Status.OUT_OF_MEMORY)
    assert searcher.suggest("x") == Searcher.FINISHED
    assert search.may_propose()  # new trials wait for the next phase
