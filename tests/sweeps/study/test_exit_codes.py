"""Exit codes say whether there is a result: after a limit of time, for a series, for a storage that lacks the end."""

from __future__ import annotations

import errno
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.errors import InputError
from lowrank.utils import ExitCode
from sweeps.execution import tuner
from sweeps.records.events import Role, Status
from sweeps.records.journal import FullDiskError, Journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import JOURNAL_FILE
from sweeps.space.run_options import RunOptions
from sweeps.study import driver, run_series, start
from sweeps.study.driver import CloseReason, exit_code
from sweeps.study.series import parse_series
from tests.support.journals import read_events
from tests.sweeps.study.test_series import OPTIONS, SMALL


def study(*ends: tuple[Role, Status]) -> StudyRecord:
    trials = {str(index): TrialRecord(str(index), role=role, status=end) for index, (role, end) in enumerate(ends)}
    return StudyRecord(trials=trials)


REFERENCE = (Role.REFERENCE, Status.COMPLETED)
FAILED = (Role.SEARCH, Status.FAILED)


@pytest.mark.parametrize(
    ("ends", "reason", "code"),
    [
        ([], CloseReason.TIME, 1),
        ([(Role.SEARCH, Status.RUNNING)], CloseReason.TIME, 1),
        ([REFERENCE, (Role.SEARCH, Status.RUNNING)], CloseReason.TIME, 0),
        ([REFERENCE, FAILED], CloseReason.TIME, 0),  # further trials may come
        ([REFERENCE, FAILED], CloseReason.FINISHED, 1),
        ([FAILED], CloseReason.FINISHED, 1),
        ([REFERENCE], CloseReason.FINISHED, 0),
    ],
)
def test_a_study_without_a_completed_trial_has_no_result(ends, reason, code):
    assert exit_code(study(*ends), reason) == code


def test_studies_that_had_no_time_left_have_no_result(tmp_path, capsys):
    members = parse_series(SMALL, "both", OPTIONS)
    assert run_series._run(members, tmp_path / "both", RunOptions(time="0.5s"), None) == 1
    printed = capsys.readouterr().out
    assert "the time is used up before plain" in printed
    assert "cp (not begun): 0 of 0 trials completed" in printed


class Phases:
    """Stands for Ray: each phase takes some seconds of a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float):
        self.now, self.limits = 100.0, []
        monkeypatch.setattr(tuner, "monotonic_time", lambda: self.now)
        monkeypatch.setattr(tuner, "ProposalPrefetcher", contextmanager(lambda *_, **__: iter([None])))

        def run_phase(search, config, prefetcher, relay):
            self.limits.append(config.seconds)
            self.now += seconds

        monkeypatch.setattr(tuner, "_run_phase", run_phase)

    def run(self, folder: Path, seconds: float | None) -> bool:
        search = SimpleNamespace(
            postponed=[], is_running=lambda: True, release_ready=lambda: None, record=StudyRecord()
        )  # fmt: skip
        config = tuner.ExecutionConfig(
            study_dir=folder, data_dir=None, resources=SimpleNamespace(share=SimpleNamespace(concurrent=1)),
            max_concurrent=None, seconds=seconds, on_change=lambda: None,
        )  # fmt: skip
        return tuner.run_search(search, config)


@pytest.mark.parametrize(("limit", "seconds", "out_of_time"), [(60, 70, True), (60, 10, False), (None, 70, False)])
def test_the_search_says_whether_its_limit_of_time_has_ended_it(tmp_path, monkeypatch, limit, seconds, out_of_time):
    """The clock is that of the limit, in which time asleep counts."""
    assert Phases(monkeypatch, seconds).run(tmp_path, limit) is out_of_time


def test_a_limit_below_a_second_is_kept(tmp_path, monkeypatch):
    phases = Phases(monkeypatch, 1)
    assert phases.run(tmp_path, 0.1) is True
    assert phases.limits == [pytest.approx(0.1)]
    assert phases.run(tmp_path, 0.0) is True
    assert len(phases.limits) == 1


@pytest.mark.parametrize(
    ("error", "expected", "reason", "text"),
    [
        (None, None, "finished", None),
        (KeyboardInterrupt(), None, "interrupted", None),
        (RuntimeError("evaluation\nbroke"), RuntimeError, "failed", "evaluation broke"),
        (InputError("no card has enough memory"), InputError, "failed", "no card has enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), FullDiskError, "failed", "No space left on device"),
    ],
)
def test_the_journal_says_how_the_driver_has_ended(tmp_path, monkeypatch, error, expected, reason, text):
    monkeypatch.setattr(driver, "is_study_disk_full", lambda error, folder: isinstance(error, OSError))
    raised = pytest.raises(expected) if expected else nullcontext()
    with closing(Journal(tmp_path / JOURNAL_FILE)) as journal, raised, driver._record_end(journal, tmp_path) as end:
        if error is not None:
            raise error
        end.reason = CloseReason.FINISHED
    (event,) = read_events(tmp_path / JOURNAL_FILE)
    assert (event["event"], event["reason"]) == ("closed", reason)
    assert event.get("error") == text or event["error"].endswith(text)


@pytest.mark.parametrize("code", [0, 1])
def test_a_summary_that_fails_is_on_record(tmp_path, monkeypatch, capsys, code):
    error = driver._print_summary(tmp_path, study(REFERENCE), SimpleNamespace(run=lambda: code))
    assert error == ("the summary failed with exit code 1" if code else "")
    assert ("the study itself is whole, repeat it" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        (ExitCode.DONE, None, 0), (ExitCode.DONE, "no route", 5), (ExitCode.FAILED, "no route", 1),
        (ExitCode.INTERRUPTED, "no route", 130),
    ],
)  # fmt: skip
def test_a_storage_that_lacks_the_end_has_an_exit_code_of_its_own(monkeypatch, tmp_path, code, error, expected):
    @contextmanager
    def mirror(uri, folder, new):
        yield SimpleNamespace(error=error)

    monkeypatch.setattr(start, "mirror_study", mirror)
    assert start._run_mirrored("s3://bucket", tmp_path, lambda folder, mirror: code, new=True) == expected
