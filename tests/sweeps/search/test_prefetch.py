"""Proposals ahead of slots: none is lost, none is launched twice, and what a kill leaves is taken up again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import permutations

import pytest

from lowrank.errors import HungError
from sweeps.records.events import Role, Status
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord
from sweeps.search.earlier_study import absolute_names, earlier_studies, warm_start
from sweeps.search.optuna_proposer import OptunaProposer, make_proposer
from sweeps.search.prefetch import ProposalPrefetcher
from sweeps.search.proposer import Proposal
from sweeps.search.search import PreparedTrial, Search
from sweeps.space.parse import parse_space
from sweeps.trials.resolver import Resolver
from tests.support.journals import read_events
from tests.support.waiting import scaled, wait_until

EPOCH = {"val_error": 10.0, "val_loss": 1.0, "train_error": 5.0, "train_loss": 0.5, "lr": 0.1}
SAMPLERS = ("tpe", "nsga2", "gp", "random", "qmc")


@pytest.fixture
def small(content) -> dict:
    content["network"] = {"name": "resnet9", "width": 0.25}
    content["train"]["weight_decay"] = {"log_uniform": [1e-4, 1e-3]}
    content["budget"] = {"params": {"choice": [0.4, 0.7]}, "relative_to": "separable"}
    return content


@pytest.fixture
def open_search(digits, tmp_path):
    """Opens a search of a space in one folder, as a driver would at its start."""
    journals = []

    def opened(content) -> Search:
        space = parse_space("small", content)
        resolver = Resolver(space, digits)
        journals.append(Journal(tmp_path / "study" / "journal.jsonl"))
        record = fold_journal(journals[-1].path)
        proposer = make_proposer(space, tmp_path / "study", resolver.points)
        return Search(space, resolver, proposer, journals[-1], record)

    yield opened
    for journal in journals:
        journal.close()


def finish(search: Search, trial, error: float) -> None:
    search.write_epoch(trial.trial_id, 1, {**EPOCH, "val_error": error})
    search.finish(trial.trial_id, Status.COMPLETED)


def run_out(search: Search, prefetcher: ProposalPrefetcher) -> list:
    launched = []
    while not search.is_over():
        trial = prefetcher.next(wait=True)
        if trial is not None:
            launched.append(trial)
            finish(search, trial, 5.0 + len(launched) % 7)
    return launched


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_launches_each_trial_once_and_hears_of_all(small, open_search, sampler):
    small["search"] = {"trials": 14, "sampler": sampler, "repeats": 2}
    search = open_search(small)
    with ProposalPrefetcher(search, 2) as prefetcher:
        launched = run_out(search, prefetcher)
    ids = [trial.trial_id for trial in launched]
    assert len(ids) == len(set(ids))
    roles = [trial.role for trial in launched]
    assert roles.count(Role.SEARCH) == 14
    assert roles.count(Role.REPEAT) > 0
    assert search.proposer.open_handles() == []
    for stratum in search.strata:
        told = [t.value for t in search.proposer.optuna_study(stratum.label).get_trials() if t.value is not None]
        assert len(told) >= 7


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_several_objectives(small, open_search, sampler):
    small["search"] = {"trials": 8, "sampler": sampler, "objectives": ["val_error", "params"]}
    search = open_search(small)
    with ProposalPrefetcher(search, 2) as prefetcher:
        launched = run_out(search, prefetcher)
    assert len(launched) == 1 + 8


def test_quasi_random_points_fill_every_choice_evenly_and_go_on_after_a_stop(small, digits, tmp_path):
    small["search"] = {"sampler": "qmc"}
    space = parse_space("small", small)
    stratum = Resolver(space, digits).strata[0]
    found = [OptunaProposer(space, tmp_path).ask(stratum).point for _ in range(12)]
    names = [(point["method.name"], point["method.dims"]) for point in found]
    assert {names.count(name) for name in set(names)} <= {1, 2, 3}
    assert len(set(names)) == 6
    assert len({point["train.weight_decay"] for point in found}) == 12


def test_a_slot_does_not_wait_for_a_proposal(small, open_search):
    search = open_search(small)
    search.pop_waiting()
    asked = search.proposer.ask
    thinking = threading.Event()

    def slow(stratum, *, explore=False):
        thinking.wait(scaled())
        return asked(stratum, explore=explore)

    search.proposer.ask = slow
    with ProposalPrefetcher(search, 2) as prefetcher:
        assert prefetcher.next(wait=False) is None  # nothing is ready, and nobody waits
        thinking.set()
        first = prefetcher.next(wait=True)
        assert first is not None
        wait_until(lambda: len(search.reserved) >= 2, "two proposals that are ready")
        thinking.clear()
        assert prefetcher.next(wait=False) is not None
        thinking.set()


def test_what_was_ready_and_never_used_is_told_as_lost(small, open_search):
    search = open_search(small)
    with ProposalPrefetcher(search, 3) as prefetcher:
        reference, first = prefetcher.next(wait=True), prefetcher.next(wait=True)
        wait_until(lambda: len(search.reserved) >= 3, "three proposals that are ready")
    assert len(search.reserved) == len(search.ready) == 3  # for the next phase
    search.release_ready()
    assert search.reserved == {}
    assert len(search.proposer.open_handles()) == 1  # the one that was handed out
    assert set(search.record.trials) == {reference.trial_id, first.trial_id}


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_what_lies_ready_when_a_phase_ends_is_launched_in_the_next(small, open_search, sampler):
    """A grid gives each of its rows once: one that is dropped would never be trained."""
    small["train"]["weight_decay"] = 5e-4
    small["search"] = {"trials": 12, "sampler": sampler, "stop": "none"}
    search = open_search(small)
    launched = []
    for _ in range(20):  # phases, each of which ends after one trial
        with ProposalPrefetcher(search, 3) as prefetcher:
            trial = prefetcher.next(wait=True)
        if trial is None:
            break
        launched.append(trial)
        finish(search, trial, 5.0)
    assert search.is_over()
    ids = [trial.trial_id for trial in launched if trial.role is Role.SEARCH]
    assert len(ids) == len(set(ids)) == 12
    assert search.proposer.open_handles() == []


def test_points_over_a_budget_are_on_record_when_the_driver_ends_before_it_launches_the_next(small, open_search):
    small["budget"] = {"params": {"choice": [0.036, 0.2]}, "relative_to": "separable"}
    small["train"]["weight_decay"] = 5e-4
    small["search"] = {"trials": 12, "sampler": "grid", "stop": "none"}
    search = open_search(small)
    prepared = [search.prepare() for _ in range(12)]
    infeasible = [event for each in prepared for event in each.events]
    assert infeasible
    search.ready.extend(prepared)
    search.release_ready()
    assert [trial.status for trial in search.record.trials.values() if trial.role is Role.SEARCH] == [
        Status.INFEASIBLE
    ] * len(infeasible)
    assert search.reserved == {}


def test_two_threads_never_launch_one_trial_twice(content, open_search):
    """One thread prepares, one commits; there are fewer networks than proposals, so that many are equal."""
    content["train"] = {"epochs": 2}
    content["search"] = {"trials": 12, "sampler": "random"}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        search = open_search(content)
        with ProposalPrefetcher(search, 4) as prefetcher:
            launched = run_out(search, prefetcher)
    finally:
        sys.setswitchinterval(before)
    proposed = [event["trial"] for event in read_events(search.journal.path) if event["event"] == "proposed"]
    assert len(proposed) == len(set(proposed)) == len(launched)


class Turns:
    """Lets one of several threads run at a time, from one entry into a lock to the next, in a given order."""

    def __init__(self, programs: dict[str, Callable[[], None]]):
        self._holding: set[int] = set()
        self._lock = threading.RLock()
        self._turns = {name: threading.Semaphore(0) for name in programs}
        self._stops = threading.Semaphore(0)
        self._running = {name: threading.Thread(target=self._run, args=(name, programs[name])) for name in programs}
        self._names: dict[int, str] = {}
        self.errors: list[BaseException] = []
        for thread in self._running.values():
            thread.start()

    def _run(self, name: str, program: Callable[[], None]) -> None:
        self._names[threading.get_ident()] = name
        self._turns[name].acquire()
        try:
            program()
        except BaseException as error:
            self.errors.append(error)
        del self._running[name]
        self._stops.release()

    def play(self, order: str) -> None:
        """Give turns by the letters of `order`, and then in turn until all have ended."""
        letters = iter(order)
        while self._running:
            name = next(letters, min(self._running))
            if name in self._running:
                self._turns[name].release()
                assert self._stops.acquire(timeout=scaled())

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if thread in self._names and thread not in self._holding:
            self._stops.release()
            self._turns[self._names[thread]].acquire()
        self._lock.acquire()
        self._holding.add(thread)

    def __exit__(self, *_: object) -> None:
        self._holding.discard(threading.get_ident())
        self._lock.release()


@pytest.mark.parametrize("ready", [0, 1])
def test_in_every_order_of_two_threads_each_trial_is_launched_once(small, open_search, monkeypatch, ready):
    """One prepares three times and one commits three times, in all orders; most of the proposals are equal."""
    search = open_search(small)
    search.pop_waiting()
    trials = [search.prepare().trial for _ in range(7)]
    monkeypatch.setattr(search.proposer, "ask", lambda *_, **__: Proposal(trials[0].point, {}))
    monkeypatch.setattr(search.proposer, "tell", lambda *_: None)
    before, orders = dict(search.record.trials), set(permutations("PPPDDD"))
    launched_by_order = set()
    for order in sorted("".join(order) for order in orders):
        monkeypatch.setattr(search, "record", StudyRecord(trials=dict(before)))
        search.reserved.clear()
        answers = iter([trials[index] for index in (0, 0, 1, 0, 1, 2, 0, 3, 4, 5, 6)])
        monkeypatch.setattr(search.resolver, "resolve", lambda *_: next(answers))  # noqa: B023
        prepared = [search.prepare() for _ in range(ready)]
        launched: list[str] = []

        def prepare() -> None:
            for _ in range(3):
                prepared.append(search.prepare())  # noqa: B023

        def commit() -> None:
            for _ in range(3):
                if prepared:  # noqa: B023
                    trial = search.commit_proposal(prepared.pop(0))  # noqa: B023
                    launched.extend([trial.trial_id] if trial else [])  # noqa: B023

        turns = Turns({"P": prepare, "D": commit})
        search._lock = turns
        turns.play(order)
        assert turns.errors == []
        remaining = [each.trial.trial_id for each in prepared if each.trial is not None]
        assert len(launched) == len(set(launched))
        assert not set(launched) & set(remaining)
        assert sorted(search.reserved) == sorted(remaining)
        assert set(search.record.trials) - set(before) == set(launched)
        launched_by_order.add(len(launched))
    assert len(launched_by_order) > 1  # the orders differ


def test_a_trial_that_is_committed_while_an_equal_one_is_prepared_is_not_new(small, open_search, monkeypatch):
    """Between the two looks of the thread that prepares, the driver's thread journals the trial."""
    search = open_search(small)
    search.pop_waiting()
    first = search.prepare()
    equal = first.trial
    committed = threading.Event()
    commit = threading.Thread(target=lambda: (search.commit_proposal(first), committed.set()))

    class Record(dict):
        def get(self, key, default=None):
            value = super().get(key, default)
            if key == equal.trial_id and threading.current_thread() is not commit and not commit.ident:
                commit.start()
                committed.wait(0.2)  # without the lock it is committed here, and then in neither place
            return value

    search.record.trials = Record(search.record.trials)
    monkeypatch.setattr(search.resolver, "resolve", lambda *_: equal)
    prepared = PreparedTrial()
    proposal = search.proposer.ask(search.strata[0])
    assert not search._reserve_if_new(proposal, search.strata[0], prepared)
    commit.join()
    assert prepared.trial is None


def test_what_a_kill_leaves_ready_is_settled_by_the_next_driver(small, open_search):
    search = open_search(small)
    search.pop_waiting()
    search.prepare()  # asked of Optuna, never journaled: killed here
    again = open_search(small)
    assert again.proposer.open_handles() == []
    assert again.next() is not None


def test_an_error_of_the_sampler_reaches_the_driver(small, open_search):
    search = open_search(small)
    search.pop_waiting()

    def broken(stratum, *, explore=False):
        raise RuntimeError("the sampler broke")

    search.proposer.ask = broken
    with pytest.raises(RuntimeError, match="the sampler broke"), ProposalPrefetcher(search, 1) as prefetcher:
        prefetcher.next(wait=True)


def test_known_points_come_first_in_every_stratum_that_admits_them(small, open_search):
    everywhere = {"method.name": "tucker", "method.dims": 4}
    small["search"] = {"trials": 4, "enqueue": [everywhere, {"budget.params": 0.7, "method.dims": 2}]}
    search = open_search(small)
    search.next()
    points = [search.next().point for _ in range(4)]
    assert next(point["method.dims"] for point in points if point["budget.params"] == 0.4) == 4
    assert [point["method.dims"] for point in points if point["budget.params"] == 0.7] == [4, 2]


def test_a_known_point_is_not_proposed_again_after_a_stop(small, digits, tmp_path):
    small["search"] = {"enqueue": [{"train.weight_decay": 2e-4}]}
    space = parse_space("small", small)
    stratum = Resolver(space, digits).strata[0]
    decays = [OptunaProposer(space, tmp_path).ask(stratum).point["train.weight_decay"] for _ in range(3)]
    assert decays[0] == 2e-4
    assert 2e-4 not in decays[1:]


def test_an_earlier_study_warms_the_sampler_up_once(small, open_search, digits, tmp_path):
    search = open_search(small)
    for error in range(5):
        finish(search, search.next(), 3.0 + error)
    earlier = earlier_studies(("study",), tmp_path)
    space = parse_space("small", small)
    resolver = Resolver(space, digits)
    proposer = OptunaProposer(space, tmp_path / "later", resolver.points)
    assert warm_start(proposer, resolver, earlier) == ["warm start from study: 4 of 4 ended trials taken over"]
    values = [t.value for stratum in resolver.strata for t in proposer.optuna_study(stratum.label).get_trials()]
    assert sorted(values) == [4.0, 5.0, 6.0, 7.0]
    assert warm_start(proposer, resolver, earlier)[0].startswith("warm start from study: 0 of 4 ended trials")


@pytest.mark.parametrize(
    ("section", "field", "value"), [("train", "epochs", 3), ("train", "lr", 0.3), ("network", "width", 0.5)]
)
def test_a_warm_start_takes_over_only_what_is_comparable(
    small, open_search, digits, tmp_path, section, field, value
):  # fmt: skip
    search = open_search(small)
    for error in range(3):
        finish(search, search.next(), 3.0 + error)
    small[section] = {**small.get(section, {}), field: value}
    resolver = Resolver(parse_space("small", small), digits)
    proposer = OptunaProposer(resolver.space, tmp_path / "later", resolver.points)
    (line,) = warm_start(proposer, resolver, earlier_studies(("study",), tmp_path))
    assert line.startswith("warm start from study: 0 of 2 ended trials taken over (the others are")


def test_a_warm_start_from_nowhere_lists_the_studies(tmp_path):
    from lowrank.errors import InputError

    with pytest.raises(InputError, match=r"no study 'none' in .*; choose from: none yet"):
        earlier_studies(("none",), tmp_path)


def test_a_resume_goes_on_without_an_earlier_study_that_is_gone(small, open_search, tmp_path):
    search = open_search(small)
    finish(search, search.next(), 3.0)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "journal.jsonl").write_text("{\n")
    lines = []
    (earlier,) = earlier_studies(("gone", "study", "torn"), tmp_path, lines.append)
    assert earlier.name == "study"
    gone, torn = lines
    assert gone.startswith(f"`search.warm_start`: no study 'gone' in {tmp_path}; choose from: study, torn, or give a")
    assert gone.endswith("; what was taken over from 'gone' before stays")
    assert "torn/journal.jsonl: line 1 at byte 0 is damaged" in torn


def test_an_earlier_study_is_found_from_any_current_folder(tmp_path, monkeypatch):
    for folder in (tmp_path / "studies" / "by_name", tmp_path / "elsewhere" / "by_folder"):
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    names = ("by_name", "elsewhere/by_folder", str(tmp_path / "elsewhere" / "by_folder"), "gone")
    absolute = str(tmp_path / "elsewhere" / "by_folder")
    assert absolute_names(names, tmp_path / "studies") == ["by_name", absolute, absolute, "gone"]


def test_a_grid_of_repeats_is_balanced_wherever_it_is_cut(small, open_search):
    small["train"]["weight_decay"] = 5e-4
    small["search"] = {"sampler": "grid", "stop": "none", "repeats": 3, "trials": 16}
    search = open_search(small)
    launched = []
    while (trial := search.next()) is not None:
        launched.append(trial)
        finish(search, trial, 5.0)
    references = [trial for trial in launched if trial.role is Role.REFERENCE]
    assert [trial.specification.seed for trial in references] == [0, 1, 2]
    rows = [trial for trial in launched if trial.role is not Role.REFERENCE]
    points = [trial.point_id for trial in rows]
    assert len(rows) == 16
    assert {points.count(point) for point in set(points)} == {1, 2}  # 12 points, cut in the second round
    assert {trial.specification.seed for trial in rows} == {0, 1}


def test_trials_that_start_from_the_dense_reference_wait_for_it(small, open_search):
    small |= {"start": {"choice": ["scratch", "dense"]}, "references": ["dense"]}
    small["search"] = {"trials": 12, "sampler": "random"}
    search = open_search(small)
    reference = search.next()
    early = []
    while (trial := search.next()) is not None:
        early.append(trial)
    assert all(trial.depends_on is None for trial in early)
    finish(search, reference, 2.0)
    later = search.next()
    assert later.depends_on == reference.trial_id


def test_a_sampler_that_hangs_at_the_end_of_a_phase_ends_the_study_with_one_line(small, open_search, monkeypatch):
    search, computing, over = open_search(small), threading.Event(), threading.Event()

    def prepare():
        computing.set()
        over.wait()
        raise AssertionError("the phase is over")

    monkeypatch.setattr(search, "prepare", prepare)
    monkeypatch.setattr("sweeps.search.prefetch.SAMPLER_SECONDS", 0.1)
    prefetcher = ProposalPrefetcher(search, 1)
    message = "the sampler has not given a proposal for 0 s; the study ends here"
    with pytest.raises(HungError, match=message), prefetcher:
        assert computing.wait(scaled())
    over.set()
    prefetcher._thread.join(scaled())
