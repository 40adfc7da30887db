"""`gpus_per_trial: auto`: how many trials a card are chosen, from a made table of speeds, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.errors import InputError
from sweeps.records.journal import Journal, read_journal
from sweeps.records.model import StudyRecord, fold
from sweeps.records.probe_schema import FIT_FOLDER, FITS
from sweeps.resources import packing_benchmark
from sweeps.resources.configurations import configuration
from sweeps.resources.gpu_packing import Limit, NoMemoryError, Placement, Tried, better, choose, limit_of, words
from sweeps.resources.memory_probe import keep
from sweeps.resources.mps import MPS, PROCESSES
from sweeps.resources.packing_benchmark import PackingBenchmark, known_peak, place
from sweeps.resources.shares import Cluster
from sweeps.space.parse import parse_space

FREE = Limit(8, "")
SMALL = {1: 141.0, 2: 214.0, 4: 230.0, 8: 232.0}  # thousand images/s of a small student: what grows by 5 % goes on
CARDS = Cluster(cpus=32, gpus=2, most_cpus=16, most_gpus=1)


def table(speeds: dict[int, float], asked: list[int] | None = None) -> Any:
    def measure(count: int) -> Tried:
        if asked is not None:
            asked.append(count)
        if count not in speeds:
            raise NoMemoryError("Tried to allocate 2 GiB")
        return Tried(count, speeds[count])

    return measure


@pytest.mark.parametrize(
    ("speeds", "limit", "memory", "chosen", "tried", "why"),
    [
        (SMALL, FREE, (None, None), 8, [1, 2, 4, 8], "with 8 the total no longer grows"),
        ({1: 100, 2: 101, 4: 500, 8: 900}, FREE, (None, None), 2, [1, 2], "with 2 the total no longer grows"),
        ({1: 100, 2: 90, 4: 500}, FREE, (None, None), 1, [1, 2], "with 2 the total no longer grows"),
        ({1: 1, 2: 2, 4: 4, 8: 8}, FREE, (None, None), 8, [1, 2, 4, 8], "more than 8 are not tried"),
        (SMALL, Limit(3, "3 trials"), (None, None), 2, [1, 2], "4 are too many: 3 trials"),
        ({1: 1.0, 2: 2.0}, FREE, (None, None), 2, [1, 2, 4], "4 do not fit on a card: Tried to allocate 2 GiB"),
        (SMALL, FREE, (24_000, 5_000), 2, [1, 2], "4 would need 27,400 MB of the card's 24,000, 5,000 MB the largest"),
        (SMALL, FREE, (8_000, 9_000), 1, [1], "2 would need 23,700 MB"),  # alone it is tried whatever is foreseen
        ({}, FREE, (None, None), 1, [1], "1 do not fit on a card"),
    ],
)
def test_the_number_with_the_largest_total_is_chosen_and_no_more_is_tried_than_pays(
    speeds, limit, memory, chosen, tried, why
):
    asked: list[int] = []
    found = choose(table(speeds, asked), limit, *memory)
    assert (found.per_card, asked) == (chosen, tried)
    assert found.gpus == 1 / chosen
    assert found.why.startswith(why)


@pytest.mark.parametrize(
    ("cpus", "trials", "most", "limit", "why"),
    [
        (1, 100, None, 16, "32 CPUs for 2 cards, 1 a trial"),
        (6, 100, None, 2, "32 CPUs for 2 cards, 6 a trial"),
        (1, 3, None, 2, "3 trials for 2 cards"),
        (1, 100, 6, 3, "at most 6 trials at once"),
        (16, 100, None, 1, "32 CPUs for 2 cards, 16 a trial"),
    ],
)
def test_cpus_trials_and_the_user_limit_it_and_trials_spread_before_they_share(cpus, trials, most, limit, why):
    assert limit_of(CARDS, cpus, trials, most) == Limit(limit, why)


def test_it_is_said_in_words():
    said = words(choose(table(SMALL), FREE, None, None), "Card X")
    assert said[0] == "  1 trial a card: 141 images/s"
    assert said[-1] == "8 trials a card (Card X): with 8 the total no longer grows"


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.jsonl")
    yield opened
    opened.close()


def test_what_was_measured_is_recorded_and_taken_again_on_such_cards_alone(
    space, resolver, journal, monkeypatch, capsys
):
    measured = []

    def measure(*_: Any) -> tuple[Placement, dict[str, Any]]:
        measured.append(1)
        return choose(table(SMALL), FREE, None, None), {"card": "Card X", "card_mb": None, "peak_mb": None}

    def sitting(card: str, record: StudyRecord) -> float:
        monkeypatch.setattr(packing_benchmark, "card_types", lambda: [card])
        return place(space, resolver, CARDS, 24, journal, record, None, {PROCESSES: {}}).gpus

    monkeypatch.setattr(packing_benchmark, "_measured", measure)
    assert sitting("X", StudyRecord()) == 1 / 8
    assert capsys.readouterr().out.count("images/s") == 4
    record = fold(read_journal(journal.path))
    assert record.placement["tried"][0] == {
        "trials": 1, "images_per_second": 141.0, "peak_mb": None, "sharing": PROCESSES,
    }  # fmt: skip
    assert sitting("X", record) == 1 / 8
    assert capsys.readouterr().out == "8 trials a card (Card X): as measured when the study began\n"
    assert len(measured) == 1
    sitting("Y", record)
    assert len(measured) == 2


def test_the_way_of_sharing_whose_card_trains_the_most_is_chosen_and_all_that_was_tried_is_kept():
    in_turns = choose(table({1: 200.0, 2: 210.0}), FREE, None, None)
    at_once = choose(lambda count: Tried(count, 100.0 * count, 2000.0, MPS), Limit(4, "4"), None, None)
    found = better([in_turns, at_once])
    assert (found.sharing, found.per_card, len(found.tried)) == (MPS, 4, 5)
    assert Placement.of_event(found.to_event()) == found
    said = words(found, "X")
    assert said[0] == "  1 trial a card: 200 images/s"
    assert said[4] == "  4 trials a card by mps: 400 images/s, 2,000 MB each"
    assert said[5].startswith("4 trials a card by mps (X): 8 are too many")
    assert better([in_turns, choose(table({}), FREE, None, None)]).sharing == PROCESSES


def test_a_placement_of_before_there_were_ways_is_by_processes():
    event = {"per_card": 2, "tried": [{"trials": 2, "images_per_second": 9.0, "peak_mb": None}], "why": "so"}
    assert Placement.of_event(event).sharing == PROCESSES


def test_each_way_is_measured_under_its_own_environment(space, resolver, monkeypatch):
    begun = []

    class Pretended:
        def __init__(self, *_: Any, sharing: str, environment: Any, **__: Any):
            begun.append((sharing, environment))
            self.sharing = sharing

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def card(self) -> tuple[str, float | None]:
            return "X", None

        def peak(self, trial: Any) -> float:
            return 100.0

        def __call__(self, count: int) -> Tried:
            return Tried(count, count * (2.0 if self.sharing == MPS else 1.0), 100.0, self.sharing)

    monkeypatch.setattr(packing_benchmark, "PackingBenchmark", Pretended)
    ways = {PROCESSES: {}, MPS: {"A": "b"}}
    found, about = packing_benchmark._measured(space, resolver, Limit(2, "2"), Path("study"), None, ways)
    assert begun == list(ways.items())
    assert (found.sharing, found.per_card, about["peak_mb"], about["card"]) == (MPS, 2, 100.0, "X")


def test_the_probe_says_how_much_memory_the_largest_takes_where_it_knows_all(resolver, tmp_path):
    trials = [resolver.resolve(resolver.points.grid()[index]) for index in (0, -1)]
    rows = [
        {"configuration": configuration(trial.specification), "status": FITS, "device": "X", "peak_mb": peak}
        for trial, peak in zip(trials, (70.0, 30.0), strict=True)
    ]
    keep(rows, tmp_path / FIT_FOLDER / "small.parquet")
    assert known_peak(tmp_path, ("study", "small"), trials, "X") == 70.0
    assert known_peak(tmp_path, ("study", "small"), trials, "Y") is None
    keep(rows[:1], tmp_path / FIT_FOLDER / "small.parquet")
    assert known_peak(tmp_path, ("study", "small"), trials, "X") is None


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus_per_trial": "some"}, "`resources.gpus_per_trial`: must be a number from 0, or auto, but got 'some'"),
        ({"gpus_per_trial": True}, "`resources.gpus_per_trial`: must be a number from 0, or auto, but got True"),
        ({"processes_per_trial": 1.5}, "`resources.processes_per_trial`: must be a valid integer"),
    ],
)
def test_a_share_that_is_none_is_one_line(content, resources, message):
    with pytest.raises(InputError) as caught:
        parse_space("small", {**content, "resources": resources})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_real_trainers_on_cpus_are_measured_together(resolver, content):
    """A card of CPUs: two trainers at once, and the memory of one."""
    import ray

    from sweeps.cluster.ray_session import connect

    connect(None, cpus=2)
    try:
        trial = resolver.resolve(resolver.points.grid()[0])
        with PackingBenchmark(trial, None, 1, 2, on_card=False, seconds=0.5) as run:
            assert run.card() == ("cpu", None)
            assert (run.peak(trial) or 1) > 0
            found = choose(run, Limit(2, "2 cores"), None, None)
        assert [each.trials for each in found.tried] == [1, 2]
        assert all(each.images_per_second > 0 for each in found.tried)
    finally:
        ray.shutdown()
