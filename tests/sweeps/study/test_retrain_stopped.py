"""Trials that were stopped are drawn by a seed, trained whole under their own ids, and held against the front."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError
from sweeps.records.events import Event, Status
from sweeps.records.journal import Journal
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE
from sweeps.run import main
from sweeps.search.proposer import EmptyProposer
from sweeps.search.search import Search
from sweeps.space import RetrainOrigin
from sweeps.space.parse import parse_space, read_space
from sweeps.study import driver, start
from sweeps.study.retrain import select_again, select_stopped
from sweeps.study.retrain_report import retrain_lines
from sweeps.trials.resolver import Resolver
from tests.support import studies

SMALL = ["network.width=0.125", "data.train_images=200", "train.epochs=9"]


@pytest.fixture(scope="module")
def trials():
    space = read_space("tt_schedule", SMALL)
    resolver = Resolver(space, load_data(DataSettings(train_images=200)))
    found = [resolver.resolve(point) for point in resolver.points.grid()[20:40]]
    return list({trial.trial_id: trial for trial in found}.values())[:6]  # in so narrow a network settings coincide


def write(folder: Path, trials) -> Path:
    """The first is completed with 10 %, the others were stopped after epoch 2 with 30 %; the last is broken."""
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="mine")
    for index, each in enumerate(trials):
        journal.append(
            Event.PROPOSED, trial=each.trial_id, role=str(each.role), stratum=each.stratum, parameters=each.point,
            specification=each.specification.to_json(), counts=each.counts, proposal={"index": index},
            point_id=each.point_id,
        )  # fmt: skip
        first = index == 0
        journal.append(
            Event.EPOCH, trial=each.trial_id, epoch=9 if first else 2, metrics={"val_error": 10.0 if first else 30.0}
        )
        status = Status.COMPLETED if first else Status.STOPPED
        journal.append(Event.FINISHED, trial=each.trial_id, status=str(status))
    journal.append(Event.EXCLUDED, trial=trials[-1].trial_id, broken="a bad disk")
    journal.close()
    return folder


def finished(folder: Path, was: Path, trials, ends: list[float | None]) -> list[str]:
    """The last words of a study that finishes those of `trials` for which there is an end, or None for none yet."""
    journal = Journal(folder / JOURNAL_FILE)
    ids = {each.trial_id: each.trial_id for each in trials}
    journal.append(Event.STUDY, name="end", repeats={"study": str(was), "stopped": 4, "finishes": ids})
    for each, end in zip(trials, ends, strict=True):
        journal.append(
            Event.PROPOSED, trial=each.trial_id, role="search", stratum="", parameters=each.point,
            specification=each.specification.to_json(), counts=each.counts, proposal={"index": 0},
            point_id=each.point_id,
        )  # fmt: skip
        if end is not None:
            journal.append(Event.EPOCH, trial=each.trial_id, epoch=9, metrics={"val_error": end})
            journal.append(Event.FINISHED, trial=each.trial_id, status="completed")
    journal.close()
    return retrain_lines(load_study(folder))


def test_the_same_seed_draws_the_same_of_those_that_were_stopped(tmp_path, trials):
    write(tmp_path / "mine", trials)
    first, again, other = (select_stopped("mine", tmp_path, 2, seed) for seed in (0, 0, 1))
    drawn = [recorded.trial.trial_id for recorded in first.trials]
    assert drawn == [recorded.trial.trial_id for recorded in again.trials]
    assert drawn != [recorded.trial.trial_id for recorded in other.trials]
    assert set(drawn) < {each.trial_id for each in trials[1:-1]}
    every = select_stopped("mine", tmp_path, 99, 0)
    assert {recorded.trial.trial_id for recorded in every.trials} == {each.trial_id for each in trials[1:-1]}
    assert (every.stopped, every.name) == (4, "mine_finish")


def test_they_are_trained_whole_under_their_ids_all_at_once(tmp_path, trials):
    retrain = select_stopped(str(write(tmp_path, trials)), tmp_path, 3, 0)
    space = parse_space("end", retrain.content({"max_concurrent": 2}))
    data = load_data(space.data)
    assert (space.search.stop, space.epochs, space.search.trials, space.resources.max_concurrent) == ("none", 9, 3, 2)
    ids = retrain.check(data, None).ids
    assert all(old == new for old, new in ids.items())
    assert len(ids) == 3


def test_a_resume_trains_the_trials_that_were_drawn_wherever_the_driver_was_killed(tmp_path, trials, monkeypatch):
    """A driver is killed before the second proposal; a resume proposes what is missing, and nothing else."""
    write(tmp_path / "mine", trials)
    seen = []

    def killed_early(space, resolver, config, retrain, history=None, mirror=None):
        driver._write_space(space, config)
        with closing(Journal(config.folder / JOURNAL_FILE)) as journal:
            journal.append(Event.STUDY, name=config.name, repeats=config.origin.to_json())
            first = replace(retrain, trials=retrain.trials[:1])
            first.propose(journal, load_study(config.folder), config.folder, config.origin)
        return 130

    def resumed(space, resolver, config, retrain=None, history=None, mirror=None):
        seen.append(retrain)
        with closing(Journal(config.folder / JOURNAL_FILE)) as journal:
            record = load_study(config.folder)
            if retrain is not None:
                retrain.propose(journal, record, config.folder, config.origin)
            search = Search(space, resolver, EmptyProposer(), journal, record)
            launched = iter(search.next, None)
            assert sorted(trial.trial_id for trial in launched) == sorted(config.origin.ids.values())
        return 0

    out = ("--out", str(tmp_path))
    monkeypatch.setattr(start, "run_study", killed_early)
    assert main(["--retrain-stopped", "mine", "--sample", "3", "--seed", "5", *out]) == 130
    assert len(load_study(tmp_path / "mine_finish").trials) == 1
    monkeypatch.setattr(start, "run_study", resumed)
    assert main(["--resume", "mine_finish", *out]) == 0
    (tmp_path / "mine").rename(tmp_path / "moved")  # not needed any more
    assert main(["--resume", "mine_finish", *out]) == 0
    assert [retrain is None for retrain in seen] == [False, True]
    drawn = select_stopped("moved", tmp_path, 3, 5)
    assert set(load_study(tmp_path / "mine_finish").trials) == {one.trial.trial_id for one in drawn.trials}


def test_a_resume_that_needs_a_record_that_is_gone_is_one_line(tmp_path, trials):
    origin = {"study": str(tmp_path / "gone"), "trial": trials[0].trial_id, "as": trials[0].trial_id}
    with pytest.raises(InputError, match="unknown study"):
        select_again(RetrainOrigin.parse(origin), StudyRecord(), "digits")


def test_what_stopping_lost_is_said(tmp_path, trials):
    was = write(tmp_path / "was", trials)
    large, other = sorted(trials[1:-1], key=lambda each: -each.counts["params"])[:2]
    assert large.counts["params"] >= trials[0].counts["params"]
    lines = finished(tmp_path / "end", was, [large, other], [9.0, None])
    assert lines[0].startswith(f"{large.trial_id} (tensor_train, ")
    assert "stopped after epoch 2 at 30.00 %; to its end 9.00 %" in lines[0]
    assert lines[0].endswith("would stand on the front")
    assert lines[1].endswith("stopped after epoch 2 at 30.00 %; proposed after epoch 0")
    assert lines[2] == "did stopping lose a point of the front? Of 1 of the 4 that were stopped, 1 would stand on it"
    worse = finished(tmp_path / "worse", was, [large], [11.0])
    assert worse[0].endswith("to its end 11.00 %, the front has 10.00 % at that size: not on the front")
    assert worse[1].endswith("Of 1 of the 4 that were stopped, none would stand on it")
    assert finished(tmp_path / "none", was, [large], [None])[-1].startswith("none of the 4 that were stopped has been")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--retrain-stopped", "nope"], "unknown study 'nope'"),
    (["--retrain-stopped", "mine"], "has no trial that was stopped early"),
    (["--retrain-stopped", "mine", "--sample", "0"], "--sample must be at least 1, but got 0"),
    (["--retrain-stopped", "mine", "--trials", "3"], "--trials cannot be used with --retrain-stopped"),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, trials, arguments, message):
    write(tmp_path / "mine", trials[:1])
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_record_that_is_gone_is_said(tmp_path, trials):
    with pytest.raises(InputError, match="unknown study"):
        select_stopped("gone", tmp_path, 1, 0)
    (line,) = finished(tmp_path / "end", tmp_path / "gone", trials[:1], [None])
    assert line.startswith("not compared with the record: ")


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.timeout(900)  # two studies, each with a Ray of its own
def test_the_command_finishes_what_another_stopped(tmp_path):
    where = ("--out", str(tmp_path))
    method = "method={name: tensor_train, dims: {int: [2, 4]}, rank_scale: {uniform: [0.05, 0.95, 0.05]}}"
    sets = [word for each in (*SMALL, "search.grace=0.2", method) for word in ("--set", each)]
    first = studies.run("--space", "tt_schedule", *sets, *where, "--name", "was", "--trials", "12")
    assert first.returncode == 0, first.stdout + first.stderr
    done = studies.run("--retrain-stopped", "was", "--sample", "2", *where)
    assert done.returncode == 0, done.stdout + done.stderr
    record, was = studies.record(tmp_path / "was_finish"), studies.record(tmp_path / "was")
    assert [trial.status for trial in record.trials.values()] == [Status.COMPLETED] * 2
    assert all(was.trials[trial_id].status is Status.STOPPED for trial_id in record.trials)
    assert all(
        was.trials[each].epochs[1]["val_error"] == trial.epochs[1]["val_error"] for each, trial in record.trials.items()
    )
    assert "did stopping lose a point of the front? Of 2 of the" in done.stdout
