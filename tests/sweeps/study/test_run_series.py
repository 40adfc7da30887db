"""A series runs its studies in order, shares its time, stops at what a study cannot go on from, and sums up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank.errors import InputError
from lowrank.utils import ExitCode
from sweeps.records import JOURNAL_FILE, SERIES_FILE, SPACE_FILE, Event, Journal
from sweeps.records.study_folders import write_space_file
from sweeps.space import RunOptions, StoredOptions
from sweeps.storage import Storage
from sweeps.study import run_series
from sweeps.study.series import parse_series
from sweeps.utils import dump_yaml
from tests.support.specifications import plain_specification
from tests.sweeps.study.test_series import SMALL


def write_journal(folder: Path, *errors: float, seeds: int = 1, closed: str = "finished") -> None:
    """A study of one stratum whose points have these validation errors."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name=folder.name)
    for number, error in enumerate(errors):
        for seed in range(seeds):
            name = f"{number}-{seed}"
            journal.append(
                Event.PROPOSED, trial=name, role="repeat" if seed else "search", stratum="params <= 700", proposal={},
                parameters={"method.dims": number}, point_id=str(number), counts={"params": 500 - number},
                specification=plain_specification(
                    method={"name": "tensor_train", "dims": number + 2, "rank_scale": None}, seed=seed
                ),
            )  # fmt: skip
            journal.append(Event.EPOCH, trial=name, epoch=1, metrics={"val_error": error + seed})
            journal.append(Event.FINISHED, trial=name, status="completed", reason="")
    journal.append(Event.CLOSED, reason=closed)
    journal.close()


class Studies:
    """Stands for the studies themselves: each takes some seconds, leaves a journal and ends with a code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.codes, self.calls = 100.0, [], []
        self.errors: tuple[float, ...] = (5.0,)
        monkeypatch.setattr(run_series, "monotonic_time", lambda: self.now)
        monkeypatch.setattr(run_series, "start_study", lambda space, options: self.run("start", options, space))
        monkeypatch.setattr(run_series, "resume_study", lambda options: self.run("resume", options))

    def run(self, how: str, options: RunOptions, space: Any = None) -> int:
        name = options.name if how == "start" else options.resume
        self.calls.append((how, name, options.time))
        self.now += 10
        folder = Path(options.out or "") / str(name)
        code = self.codes.pop(0) if self.codes else ExitCode.DONE
        if space is not None:
            folder.mkdir(parents=True)
            write_space_file(folder, space.source, StoredOptions(space=space.name))
            assert space.search.time == options.time
        write_journal(folder, *self.errors, closed="finished" if code == ExitCode.DONE else "interrupted")
        return code


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Studies:
    return Studies(monkeypatch)


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., RunOptions]:
    """The options of a series of two studies, in a file."""
    (tmp_path / "both.yaml").write_text(dump_yaml(SMALL))

    def options(**fields: Any) -> RunOptions:
        return RunOptions(space=str(tmp_path / "both.yaml"), out=tmp_path / "studies", name="both", **fields)

    return options


def test_each_study_gets_an_equal_part_of_the_remaining_time(studies, series, capsys):
    assert run_series.start_series(series(time="60s")) == ExitCode.DONE
    assert studies.calls == [("start", "plain", "30s"), ("start", "cp", "50s")]  # the first has left some of its own
    printed = capsys.readouterr().out
    assert "study 1 of 2: plain\n" in printed
    assert (
        "cp (ended): 1 of 1 trial completed. Which?\n  params <= 700: tensor_train, 500 parameters, 5.00 %" in printed
    )
    assert "go on with" not in printed


def test_an_interrupted_study_ends_the_run_and_a_resume_goes_on_with_it(studies, series, capsys, tmp_path):
    studies.codes = [ExitCode.INTERRUPTED]
    assert run_series.start_series(series()) == ExitCode.INTERRUPTED
    printed = capsys.readouterr().out
    assert "cp (not begun): 0 of 0 trials completed" in printed
    assert f"not all studies have ended; go on with: python sweeps/run.py --resume both --out {tmp_path}" in printed
    assert run_series.resume_series(RunOptions(resume="both", out=tmp_path / "studies")) == ExitCode.DONE
    assert [call[:2] for call in studies.calls[1:]] == [("resume", "plain"), ("start", "cp")]
    assert run_series.resume_series(RunOptions(resume="both", out=tmp_path / "studies")) == ExitCode.DONE
    assert len(studies.calls) == 3  # all have ended


def test_more_trials_are_a_reason_to_go_on_with_what_has_ended(studies, series, tmp_path):
    run_series.start_series(series())
    run_series.resume_series(RunOptions(resume="both", out=tmp_path / "studies", trials=9))
    assert [call[:2] for call in studies.calls[2:]] == [("resume", "plain"), ("resume", "cp")]


def test_a_study_without_a_result_does_not_hold_up_the_next_one(studies, series):
    studies.codes = [run_series.NOTHING_COMPLETED]
    assert run_series.start_series(series()) == run_series.NOTHING_COMPLETED
    assert [call[1] for call in studies.calls] == ["plain", "cp"]


def test_a_name_that_is_taken_is_bad_input(studies, series, monkeypatch):
    """Also where another command takes it at this moment."""
    run_series.start_series(series())
    with pytest.raises(InputError, match="both"):
        run_series.start_series(series())
    monkeypatch.setattr(run_series, "new_study_folder", lambda root, name, *_: root / name)
    with pytest.raises(InputError, match=r"another command begins 'both' in .*studies; choose another --name"):
        run_series.start_series(series())


def test_a_series_that_only_the_storage_has_is_fetched(studies, series, tmp_path):
    uri = (tmp_path / "stored").as_uri()
    run_series.start_series(series(storage=uri))
    assert Storage(uri, "both").get(SERIES_FILE) == (tmp_path / "studies" / "both" / SERIES_FILE).read_bytes()
    there = RunOptions(resume="both", out=tmp_path / "elsewhere", storage=uri)
    assert run_series.is_resumable_series(there)
    assert run_series.resume_series(there) == ExitCode.DONE
    assert [call[1] for call in studies.calls[2:]] == ["plain", "cp"]  # here none of them has a journal
    assert (tmp_path / "elsewhere" / "both" / "plain" / SPACE_FILE).exists()
    assert not run_series.is_resumable_series(RunOptions(resume="other", out=tmp_path / "elsewhere", storage=uri))


def test_the_best_of_a_stratum_has_the_lowest_mean_and_of_equal_ones_the_fewest_parameters(tmp_path):
    write_journal(tmp_path / "plain", 6.0, 4.0, 4.0, seeds=2)
    members = parse_series(SMALL, "both", RunOptions())
    record = run_series.fold_journal(tmp_path / "plain" / JOURNAL_FILE)
    lines = run_series.summary_lines(members, tmp_path, {"plain": record, "cp": None})
    assert lines[1].startswith("plain (ended): 6 of 6 trials completed")
    assert lines[2] == "  params <= 700: tensor_train, 498 parameters, 4.50 % validation error, mean of 2 seeds"
    assert lines[3].startswith("cp (not begun)")
