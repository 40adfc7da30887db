"""Each benchmark in its smallest form gives records of the right structure; no time is asserted."""

from __future__ import annotations

import importlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import __main__ as benchmarks
from benchmarks import measurement as bench_record
from benchmarks.gpu import distillation as gpu_distill
from benchmarks.gpu import sweep as gpu_sweep
from benchmarks.measurement import Goal, Measurement, Options, Table
from benchmarks.search import counting as bench_counting
from benchmarks.studies import gpu_packing as bench_placement
from benchmarks.studies import logging_cost as bench_reports
from benchmarks.studies import report as bench_study_report
from benchmarks.studies import throughput as bench_throughput
from benchmarks.studies import turnaround as bench_turnaround
from benchmarks.training import batches as bench_batches
from benchmarks.training import steps as bench_steps
from benchmarks.training import teacher as bench_teacher
from lowrank.distillation.teacher_files import RECORD_FILE, read_record
from lowrank.layers.registry import METHODS
from sweeps.records.events import Event
from sweeps.records.journal import Journal, read_journal
from sweeps.records.model import StudyRecord, fold
from sweeps.records.names import JOURNAL_FILE
from sweeps.resources.gpu_packing import Limit, NoMemoryError, Throughput
from tests.support.teachers import small_data, write_teacher

QUICK = Options(quick=True)
START = 1_790_000_000.0


def check(found: Measurement) -> None:
    """The structure that every record has."""
    assert found.tables
    for table in found.tables:
        assert table.rows, table.title
        for row in table.rows:
            assert set(table.columns) <= set(row), table.title
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(plain) == {"name", "settings", "tables", "goals", "notes"}
    line = bench_record.header(bench_record.environment(), found.settings, bench_record.load())
    console = Console(width=120, file=io.StringIO())
    bench_record.show(found, line, console)
    assert found.tables[0].title in console.file.getvalue()  # type: ignore[attr-defined]


def finite(row: dict[str, Any], *columns: str) -> bool:
    return all(math.isfinite(row[column]) and row[column] > 0 for column in columns)


def test_batches(tmp_path: Path) -> None:
    bench_batches.write_images(tmp_path, 400, seed=0)
    found = bench_batches.run(Options(quick=True, images=tmp_path))
    check(found)
    assert [len(table.rows) for table in found.tables] == [5, 5]
    assert all(finite(row, "images/s", "slowest images/s") for table in found.tables for row in table.rows)


def test_steps_hold_every_method_or_say_why_not() -> None:
    found = bench_steps.run(QUICK)
    check(found)
    for table in found.tables:
        rows = {row["method"]: row for row in table.rows}
        assert {"dense", "separable"} <= set(rows)
        assert rows["separable"]["x separable"] == 1
        left = [name for name in METHODS if any(note.startswith(f"left out: {name}") for note in found.notes)]
        assert set(rows) | set(left) == set(METHODS)
        limit = int(bench_steps.SHARE * rows["separable"]["params"])
        sizes = [row["params"] for name, row in rows.items() if name not in bench_steps.REFERENCES]
        assert max(sizes) <= limit
        assert all(finite(row, "ms", "images/s", "x dense") for row in table.rows)


def test_teacher_asks_three_ways(tmp_path: Path) -> None:
    bench_batches.write_images(tmp_path, 400, seed=0)
    found = bench_teacher.run(Options(quick=True, images=tmp_path))
    check(found)
    (table,) = found.tables
    assert [row["way"] for row in table.rows] == ["plain", "live teacher", "cached teacher"]
    assert all(finite(row, "ms", "images/s", "x plain") for row in table.rows)
    assert [goal.limit for goal in found.goals] == [1.1]


def test_counting_measures_every_method() -> None:
    found = bench_counting.run(QUICK)
    check(found)
    assert all([row["method"] for row in table.rows] == list(METHODS) for table in found.tables)
    assert [goal.limit for goal in found.goals] == [2.0, 10.0]


def test_the_report_of_a_made_up_study() -> None:
    found = bench_study_report.run(QUICK)
    check(found)
    assert [row["from"] for row in found.tables[0].rows] == ["journal", "tables"]
    assert all(finite(row, "s", "MB", "page MB") for row in found.tables[0].rows)
    assert [goal.limit for goal in found.goals] == [15.0, 1000.0]


@pytest.mark.slow
def test_turnaround_of_a_real_study() -> None:
    check(bench_turnaround.run(QUICK))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, from within MLflow
def test_logging() -> None:
    check(bench_reports.run(QUICK))


def write_turns(folder: Path) -> StudyRecord:
    """Two workers, one of which runs two trials of two epochs; the second begins 0.25 s after the first has ended."""
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="turns", data={"train_images": 100}, time=START)
    for trial, pid, begin in (("a", 1, 10.0), ("b", 2, 10.0), ("c", 1, 14.25)):
        journal.append(
            Event.PROPOSED, trial=trial, role="search", stratum="", parameters={}, counts={}, proposal={},
            specification={"train": {"batch_size": 32}}, time=START + begin - 5,
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial=trial, pid=pid, start_seconds=0.125, device="cpu", time=START + begin + 2)
        for epoch in (1, 2):
            metrics = {"epoch_seconds": 2.0, "images_per_second": 60.0, "val_error": 50.0}
            journal.append(Event.EPOCH, trial=trial, epoch=epoch, metrics=metrics, time=START + begin + 2 * epoch)
        journal.append(Event.FINISHED, trial=trial, status="completed", reason="", time=START + begin + 4)
    journal.close()
    return fold(read_journal(folder / JOURNAL_FILE))


def test_turns_are_read_off_the_journal(tmp_path: Path) -> None:
    record = write_turns(tmp_path)
    (turn,) = bench_turnaround.turns(record)
    assert (turn.worker, turn.seconds, turn.setting_up, turn.ahead) == (1, 0.25, 0.125, 4.75)
    run = bench_turnaround.Run(started=START - 5, ended=START + 20, slots=2, record=record, said="")
    found = bench_turnaround.summarise(run, QUICK)
    check(found)
    assert [goal.met for goal in found.goals] == [True, True]
    assert "2 workers for 2 slots ran 2 + 1 trials" in found.notes


def test_throughput_counts_each_image_once(tmp_path: Path) -> None:
    found = bench_throughput.throughput(write_turns(tmp_path))
    assert (found.most_at_once, found.full_seconds, found.epochs) == (2, 4.0, 6)
    assert found.full == pytest.approx(2 * 96 / 2)  # two trials of 96 images every 2 s
    assert found.overall == pytest.approx((2 * 96 + 2 * 96) / 6.25)  # from 12 to 18.25
    assert found.own_speed_mean == 60


def test_throughput_of_a_study_without_epochs(tmp_path: Path) -> None:
    found = bench_throughput.throughput(StudyRecord())
    assert found.full is found.overall is None
    assert found.epochs == 0


def test_a_goal_says_whether_it_is_met() -> None:
    assert str(Goal(what="x", limit=0.5, found=0.7, unit="s")).startswith("goal NOT met: x 0.7 s (at most 0.5 s)")
    assert Goal(what="x", limit=0.5, found=0.5, unit="s").met


def test_interleaved_calls_each_contestant_equally_often() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = bench_record.interleaved(ways, "cpu", 3, calls=2, warm_ups=1)
    assert calls == ["a", "a", "b", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(title="t", columns=("way", "images/s"), rows=[{"way": "x", "images/s": 1.0}])
    works = Measurement(name="works", settings={"seed": 0}, tables=[table])

    def breaks(options: Options) -> Measurement:
        raise RuntimeError("no such thing")

    for name, module in benchmarks.BENCHMARKS.items():
        run = breaks if name == "counting" else lambda options: works
        monkeypatch.setattr(importlib.import_module(module), "run", run)
    assert benchmarks.main(["all", "--json", str(tmp_path / "all.json")]) == 1
    records = dict(zip(benchmarks.BENCHMARKS, json.loads((tmp_path / "all.json").read_text()), strict=True))
    failed, others = records.pop("counting"), list(records.values())
    assert {record["name"] for record in others} == {"works"}
    assert failed["error"] == "RuntimeError: no such thing"
    expected = {"date", "cpu", "cores", "gpus", "versions", "load", "load_after", "command"}
    assert expected <= set(others[0]["environment"])
    assert "no such thing" in capsys.readouterr().err


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    def read(out: Path) -> list[dict[str, Any]]:
        raise FileNotFoundError("no journal")

    command = ["bash", "-c", "echo ValueError: so it goes; exit 3"]
    rows = gpu_sweep.execute(gpu_sweep.Part(name="p", log="p.log", command=command, seconds=20, read=read), tmp_path)
    assert [row["unit"] for row in rows] == ["FAILED", "FAILED", "s"]
    assert "no journal" in rows[0]["what"]
    assert rows[1]["what"] == "exit code 3: ValueError: so it goes"


def test_a_part_ends_at_its_time_limit(tmp_path: Path) -> None:
    part = gpu_sweep.Part(name="p", log="p.log", command=["sleep", "60"], seconds=0.2, read=lambda out: [])
    assert gpu_sweep.execute(part, tmp_path)[0]["what"] == "time limit of 0 s"


def test_students_are_compared_with_their_untaught_like(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL_FILE)
    errors = {("tucker", 0.0): 6.0, ("tucker", 250.0): 5.0, ("hashed", 0.0): 7.0, ("hashed", 250.0): 7.5}
    for (method, weight), error in errors.items():
        trial = f"{method}{weight}"
        specification = {"method": {"name": method}, "seed": 0, "train": {"attention_weight": weight}}
        journal.append(
            Event.PROPOSED, trial=trial, role="search", stratum="", parameters={}, counts={"params": 10}, proposal={},
            specification=specification,
        )  # fmt: skip
        journal.append(Event.EPOCH, trial=trial, epoch=1, metrics={"val_error": error})
        journal.append(Event.FINISHED, trial=trial, status="completed", reason="")
    journal.append(Event.TESTED, trial="tucker250.0", test_error=5.5)
    journal.close()
    folder = write_teacher(tmp_path, "t", small_data())
    teacher = read_record(folder / RECORD_FILE)
    assert teacher is not None
    rows = gpu_distill.table(fold(read_journal(tmp_path / JOURNAL_FILE)), teacher)
    found = {row["method"]: (row["gain"], row["gap"]) for row in rows}
    assert found == {"tucker": (1.0, 5.5 - teacher.test_error), "hashed": (-0.5, 7.5 - teacher.val_error)}


def test_the_sweep_is_read_from_its_journal(tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "out"
    study.mkdir()
    out.mkdir()
    write_turns(study)
    rows = {row["what"]: row["value"] for row in gpu_sweep.read_sweep(study, out)}
    assert rows["trials completed"] == 3
    assert (out / JOURNAL_FILE).exists()


def test_a_share_that_does_not_fit_is_a_row_without_a_speed():
    outcomes = {1: Throughput(1, 100.0, 900.0), 2: Throughput(2, 150.0, 900.0), 4: NoMemoryError("2 GiB")}
    chosen = bench_placement._chosen(outcomes, Limit(8, ""), None, None)
    rows = bench_placement._rows("small", outcomes, chosen.per_card)
    assert [(row["share"], row["images/s"], row["times"], row["auto"]) for row in rows] == [
        ("1", 100.0, 1.0, ""), ("1/2", 150.0, 1.5, "chosen"), ("1/4", None, None, ""),
    ]  # fmt: skip
    assert chosen.reason == "4 do not fit on a card: 2 GiB"
