"""A study with a teacher, through the real command: cache first, students with it and without, one record."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeps.records.events import Status
from sweeps.teachers.cache_options import CACHE_FOLDER
from tests.support import studies
from tests.support.teachers import small_data, write_teacher

pytestmark = [pytest.mark.study, pytest.mark.slow]  # cache, prebuild and planned teacher have tests of their own

SPACE = (
    "--space", "distill", "--set", "network={name: wrn_10_1, width: 0.5}", "--set", "data.train_images=200",
    "--set", "train.epochs=2", "--set", "method.name=bottleneck", "--set", "budget.params=0.8",
    "--set", "teacher.name=good",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_teacher(folder / "teachers", "good", small_data())
    return folder


def where(root: Path) -> tuple[str, ...]:
    return ("--out", str(root / "studies"), "--teachers", str(root / "teachers"))


@pytest.fixture(scope="module")
def said(root: Path) -> str:
    done = studies.run(*SPACE, *where(root))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_cache_is_built_before_the_first_trial(root: Path, said: str) -> None:
    assert said.index("teacher cache: 2 epochs built in") < said.index("completed ")
    assert len(list((root / "studies" / CACHE_FOLDER).glob("*/*/*.arrow"))) == 2


def test_both_students_are_on_record_with_the_teacher(root: Path, said: str) -> None:
    record = studies.record(root / "studies" / "distill")
    assert record.header.teacher.name == "good"
    assert [trial.status for trial in record.trials.values()] == [Status.COMPLETED] * 2
    assert [trial.notices for trial in record.trials.values()] == [[], []]  # the cache was ready
    rows = pq.read_table(root / "studies" / "distill" / "results.parquet").to_pylist()
    found = {row["attention_weight"]: (row["teacher"], row["kd_weight"]) for row in rows}
    assert found == {0.0: (None, 0.0), 60.0: ("good", 0.0)}


def test_a_resumed_study_wants_the_same_teacher(root: Path, said: str) -> None:
    (root / "teachers" / "good").rename(root / "teachers" / "first")
    try:
        write_teacher(root / "teachers", "good", small_data(), seed=1)
        done = studies.run("--resume", "distill", "--out", str(root / "studies"))
        assert done.returncode == 2
        assert "the teacher good has changed since the study began" in done.stderr
    finally:
        (root / "teachers" / "good").rename(root / "teachers" / "second")
        (root / "teachers" / "first").rename(root / "teachers" / "good")


# lowrank/distillation/test_cache.py shows the same without a study
def test_a_cache_that_cannot_be_built_falls_back_and_says_so(root: Path, said: str) -> None:
    blocked = root / "file"
    blocked.write_text("")
    done = studies.run(*SPACE, *where(root), "--name", "live", "--cache-dir", str(blocked), "--set",
                       "train.attention_weight=60")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no teacher cache, the live teacher runs instead: " in done.stdout
    (trial,) = studies.record(root / "studies" / "live").trials.values()
    assert trial.status is Status.COMPLETED
    assert "the live teacher runs instead" in trial.notices[0]
    (taught,) = (
        each for each in studies.record(root / "studies" / "distill").trials.values()
        if each.specification.train.attention_weight
    )  # fmt: skip
    assert trial.trial_id == taught.trial_id  # the same trial, whichever way the teacher was asked
