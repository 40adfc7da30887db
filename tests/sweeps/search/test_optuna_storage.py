"""What a mark does to the search: the trial is out of its memory and its place is free, and an undo brings it back."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from optuna.trial import TrialState

from sweeps.records.events import Event, Role, Status
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.model import apply_event
from sweeps.records.names import JOURNAL_FILE, OPTUNA_FILE
from sweeps.search.optuna_proposer import OptunaProposer, make_proposer
from sweeps.search.optuna_storage import CrashSafeJournalBackend
from sweeps.search.proposer import Outcome, OutcomeKind
from sweeps.search.search import Search


@pytest.fixture
def begin(space, resolver, tmp_path):
    """A driver that takes the study up where it is."""
    opened: list[Journal] = []

    def driver() -> Search:
        while opened:
            opened.pop().close()
        opened.append(Journal(tmp_path / JOURNAL_FILE))
        proposer = make_proposer(space, tmp_path)
        return Search(space, resolver, proposer, opened[0], fold_journal(tmp_path / JOURNAL_FILE))

    yield driver
    opened.pop().close()


def train_all(search: Search) -> list[str]:
    done = []
    while (trial := search.next()) is not None:
        search.write_attempt(trial.trial_id, {"host": "here"})
        search.write_epoch(trial.trial_id, 1, {"val_error": 10.0 + len(done)})
        search.finish(trial.trial_id, Status.COMPLETED)
        if trial.role is Role.SEARCH:
            done.append(trial.trial_id)
    return done


def mark(folder: Path, trial: str, broken: str | None) -> None:
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.EXCLUDED, trial=trial, broken=broken)
    journal.close()


def values(search: Search) -> dict[tuple[str, int], float]:
    """What the sampler has to learn from, by Optuna's study and number."""
    proposer = search.proposer
    assert isinstance(proposer, OptunaProposer)
    found = {}
    for stratum in search.strata:
        study = proposer.optuna_study(stratum.label)
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            found[stratum.label, trial.number] = trial.value
    return found


def test_a_broken_trial_is_out_of_the_samplers_memory_until_the_mark_is_taken_back(begin, tmp_path):
    first = begin()
    victim = train_all(first)[0]
    handle = first.record.trials[victim].proposal
    before = values(first)
    assert (handle["study"], handle["number"]) in before
    mark(tmp_path, victim, "the disk was full")
    resumed = begin()
    assert values(resumed) == {
        key: value for key, value in before.items() if key != (handle["study"], handle["number"])
    }
    mark(tmp_path, victim, None)
    assert values(begin()) == before


def test_its_place_is_taken_by_a_new_trial_and_nothing_is_trained_twice(begin, tmp_path):
    done = train_all(begin())
    mark(tmp_path, done[2], "why")
    fresh = train_all(begin())
    assert len(fresh) == 1
    assert fresh[0] not in done
    assert begin().next() is None


def test_a_proposal_that_repeated_the_broken_outcome_is_forgotten_with_it(begin, tmp_path):
    search = begin()
    victim = train_all(search)[0]
    repeat = search.proposer.ask(search.strata[0])
    search.proposer.tell(repeat.handle, Outcome(OutcomeKind.COMPLETE, (10.0,), 1, victim))
    assert (repeat.handle["study"], repeat.handle["number"]) in values(search)
    mark(tmp_path, victim, "why")
    assert (repeat.handle["study"], repeat.handle["number"]) not in values(begin())


def test_a_broken_trial_without_an_end_is_not_taken_up_again(begin, tmp_path):
    search = begin()
    while (trial := search.next()).role is not Role.SEARCH:
        search.finish(trial.trial_id, Status.COMPLETED)
    mark(tmp_path, trial.trial_id, "why")
    resumed = begin()
    assert trial.trial_id not in [waiting.trial_id for waiting in resumed.waiting]
    assert resumed.record.trials[trial.trial_id].ended


def test_the_record_says_so_in_its_row(begin, tmp_path):
    from sweeps.records.tables import results_to_table

    search = begin()
    victim = train_all(search)[0]
    apply_event(search.record, {"event": "marked", "time": 1.0, "trial": victim, "broken": "why"})
    rows = {row["trial_id"]: row for row in results_to_table(search.record).to_pylist()}
    assert rows[victim]["broken"] == "why"
    assert {row["broken"] for name, row in rows.items() if name != victim} == {None}


def test_a_line_that_a_kill_has_torn_is_cut_off(tmp_path):
    path = tmp_path / "optuna.journal"
    CrashSafeJournalBackend(path).append_logs([{"op_code": 1}])
    with path.open("ab") as file:
        file.write(b'{"op_co')
    opened = CrashSafeJournalBackend(path)
    opened.append_logs([{"op_code": 2}])
    assert list(opened.read_logs(0)) == [{"op_code": 1}, {"op_code": 2}]


def test_a_disk_that_takes_part_of_a_line_leaves_none_of_it(tmp_path):
    path = tmp_path / "optuna.journal"
    opened = CrashSafeJournalBackend(path)
    opened.append_logs([{"op_code": 1}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            opened.append_logs([{"op_code": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    opened.append_logs([{"op_code": 3}])
    assert list(opened.read_logs(0)) == [{"op_code": 1}, {"op_code": 3}]


def proposals(search: Search) -> dict[tuple[str, int], tuple[dict, TrialState]]:
    """Parameters and state of every Optuna trial, by study and number."""
    proposer = search.proposer
    assert isinstance(proposer, OptunaProposer)
    return {
        (stratum.label, trial.number): (trial.params, trial.state)
        for stratum in search.strata
        for trial in proposer.optuna_study(stratum.label).get_trials()
    }


@pytest.mark.parametrize("damage", ["removed", "cut", "garbage", "a list"])
def test_optunas_journal_is_made_again_from_the_studys(begin, tmp_path, damage, capsys):
    done = train_all(begin())
    first = begin()
    before, path = values(first), tmp_path / OPTUNA_FILE
    points = proposals(first)
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(b"".join(lines[: len(lines) // 2]))
    else:
        lines[3] = b"[1]\n" if damage == "a list" else b'{"op_code\n'
        path.write_bytes(b"".join(lines))
    proposer = make_proposer(first.space, tmp_path)
    assert isinstance(proposer, OptunaProposer)
    assert proposer.restore(first.record.trials.values(), first.strata) > 0
    said = capsys.readouterr().out
    assert (f"{OPTUNA_FILE} is damaged (" in said) == (damage in ("garbage", "a list"))
    resumed = begin()
    assert values(resumed) == before
    assert {key: params for key, (params, _) in proposals(resumed).items()} == {
        key: params for key, (params, _) in points.items()
    }
    assert train_all(resumed) == []
    assert len(done) == len(before)
    proposer = make_proposer(first.space, tmp_path)
    assert proposer.restore(first.record.trials.values(), first.strata) == 0
