"""`gpus_per_trial: auto`: how many trials a card are chosen, from a table of speeds, and what is recorded."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lowrank.errors import HungError, InputError
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord
from sweeps.records.tables import FIT_FOLDER, FITS
from sweeps.resources import packing_benchmark
from sweeps.resources.configurations import configuration
from sweeps.resources.gpu_packing import (
    Limit,
    MeasuringTime,
    NoMemoryError,
    Packing,
    Throughput,
    best_packing,
    choose_count,
    packing_limit,
    packing_lines,
)
from sweeps.resources.memory_probe import write_rows
from sweeps.resources.mps import MPS, PROCESSES
from sweeps.resources.packing_benchmark import PackingBenchmark, choose_packing, probed_peak
from sweeps.resources.shares import Cluster
from sweeps.space.parse import parse_space
from sweeps.trials.resolver import Resolver
from tests.support.waiting import scaled

FREE = Limit(8, "")  # more than 8 are never tried
SMALL = {1: 141.0, 2: 214.0, 4: 230.0, 8: 232.0}  # thousand images/s of a small student: what grows by 5 % goes on
CARDS = Cluster(cpus=32, gpus=2, max_cpus=16, max_gpus=1)


def table(speeds: dict[int, float], counts: list[int] | None = None) -> Any:
    """Measure by a table; `counts` takes what was measured."""

    def measure(count: int) -> Throughput:
        if counts is not None:
            counts.append(count)
        if count not in speeds:
            raise NoMemoryError("Tried to allocate 2 GiB")
        return Throughput(count, speeds[count])

    return measure


@pytest.mark.parametrize(
    ("speeds", "limit", "memory", "chosen", "tried", "reason"),
    [
        (SMALL, FREE, (None, None), 8, [1, 2, 4, 8], "with 8 the total no longer grows"),
        ({1: 100, 2: 101, 4: 500, 8: 900}, FREE, (None, None), 2, [1, 2], "with 2 the total no longer grows"),
        ({1: 100, 2: 90, 4: 500}, FREE, (None, None), 1, [1, 2], "with 2 the total no longer grows"),
        ({1: 1, 2: 2, 4: 4, 8: 8}, FREE, (None, None), 8, [1, 2, 4, 8], "more than 8 are not tried"),
        (SMALL, Limit(3, "3 trials"), (None, None), 2, [1, 2], "4 are too many: 3 trials"),
        ({1: 1.0, 2: 2.0}, FREE, (None, None), 2, [1, 2, 4], "4 do not fit on a card: Tried to allocate 2 GiB"),
        (
            SMALL,
            FREE,
            (24_000, 5_000),
            2,
            [1, 2],
            "4 would need 27,400 MB of the card's 24,000, 5,000 MB the largest",
        ),
        (SMALL, FREE, (8_000, 9_000), 1, [1], "2 would need 23,700 MB"),  # alone it is tried whatever is foreseen
        ({}, FREE, (None, None), 1, [1], "1 do not fit on a card"),
    ],
)
def test_the_count_with_the_largest_total_is_chosen_and_larger_ones_are_not_tried_in_vain(
    speeds, limit, memory, chosen, tried, reason
):
    counts: list[int] = []
    packing = choose_count(table(speeds, counts), limit, *memory)
    assert (packing.per_card, counts) == (chosen, tried)
    assert packing.gpus == 1 / chosen
    assert packing.reason.startswith(reason)


@pytest.mark.parametrize(
    ("cpus", "trials", "max_concurrent", "limit", "reason"),
    [
        (1, 100, None, 16, "32 CPUs for 2 cards, 1 a trial"),
        (6, 100, None, 2, "32 CPUs for 2 cards, 6 a trial"),
        (1, 3, None, 2, "3 trials for 2 cards"),
        (1, 100, 6, 3, "at most 6 trials at once"),
        (16, 100, None, 1, "32 CPUs for 2 cards, 16 a trial"),
    ],
)
def test_cpus_trials_and_the_user_limit_trials_a_card(cpus, trials, max_concurrent, limit, reason):
    assert packing_limit(CARDS, cpus, trials, max_concurrent) == Limit(limit, reason)


def test_the_choice_is_printed():
    lines = packing_lines(choose_count(table(SMALL), FREE, None, None), "Card X")
    assert lines[0] == "  1 trial a card: 141 images/s"
    assert lines[-1] == "8 trials a card (Card X): with 8 the total no longer grows"


@pytest.fixture(autouse=True)
def cards_in_use(monkeypatch) -> None:
    """Somebody uses the cards: the study's own trials cannot be spread over them, so it measures."""
    monkeypatch.setattr(packing_benchmark, "cards_are_free", lambda cards: False)


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.jsonl")
    yield opened
    opened.close()


def test_a_measurement_is_recorded_and_used_again_on_cards_of_the_same_type_alone(
    space, resolver, journal, monkeypatch, capsys
):
    calls = []

    def measure(*_: Any) -> tuple[Packing, dict[str, Any]]:
        calls.append(1)
        return choose_count(table(SMALL), FREE, None, None), DETAILS

    def run(card: str, record: StudyRecord) -> float:
        monkeypatch.setattr(packing_benchmark, "card_types", lambda: [card])
        return choose_packing(space, resolver, CARDS, 24, journal, record, None, {PROCESSES: {}}).gpus

    monkeypatch.setattr(packing_benchmark, "measure_packing", measure)
    assert run("X", StudyRecord()) == 1 / 8
    assert capsys.readouterr().out.count("images/s") == 4
    record = fold_journal(journal.path)
    assert record.packing["tried"][0] == {
        "trials": 1, "images_per_second": 141.0, "peak_mb": None, "sharing": PROCESSES,
    }  # fmt: skip
    assert run("X", record) == 1 / 8
    assert capsys.readouterr().out == "8 trials a card (Card X): as measured when the study began\n"
    assert len(calls) == 1
    run("Y", record)
    assert len(calls) == 2


DETAILS = {"card": "Card X", "card_mb": None, "peak_mb": None, "measured": "t", "peak_from": "dry run"}


def choose_in_new_study(
    tmp_path: Path, name: str, space: Any, resolver: Any, monkeypatch: Any, packing: Packing | None, card: str = "X"
) -> Packing:
    """What a study takes that begins now; `packing` is what it would measure, None where it must not."""

    def measure(*_: Any) -> tuple[Packing, dict[str, Any]]:
        assert packing is not None, "measured again"
        return packing, DETAILS

    (tmp_path / name).mkdir()
    monkeypatch.setattr(packing_benchmark, "card_types", lambda: [card])
    monkeypatch.setattr(packing_benchmark, "measure_packing", measure)
    with closing(Journal(tmp_path / name / "journal.jsonl")) as journal:
        return choose_packing(space, resolver, CARDS, 24, journal, StudyRecord(), None, {PROCESSES: {}})


def test_a_measurement_serves_later_studies_of_the_same_cost(
    space, resolver, content, digits, tmp_path, monkeypatch, capsys
):
    measured = choose_count(table(SMALL), FREE, None, None)
    assert choose_in_new_study(tmp_path, "a", space, resolver, monkeypatch, measured) == measured
    capsys.readouterr()
    again = choose_in_new_study(tmp_path, "b", space, resolver, monkeypatch, None)
    assert (again.per_card, again.measurements) == (measured.per_card, measured.measurements)
    assert capsys.readouterr().out == "8 trials a card (Card X): as measured for an earlier study\n"
    assert fold_journal(tmp_path / "b" / "journal.jsonl").packing["card"] == "Card X"
    alone = choose_count(table({1: 1.0}), Limit(1, "1"), None, None)
    other_card = choose_in_new_study(tmp_path, "c", space, resolver, monkeypatch, alone, card="Y")
    other_space = parse_space("small", {**content, "train": {**content.get("train", {}), "batch_size": 16}})
    other = choose_in_new_study(tmp_path, "d", other_space, Resolver(other_space, digits), monkeypatch, alone)
    assert (other_card.per_card, other.per_card) == (1, 1)


def test_a_measurement_that_a_short_study_cut_off_serves_no_other(space, resolver, tmp_path, monkeypatch):
    short = Packing(1, (Throughput(1, 9.0),), "too short", cut_short=True)
    assert choose_in_new_study(tmp_path, "a", space, resolver, monkeypatch, short) == short
    measured = choose_count(table(SMALL), FREE, None, None)
    assert choose_in_new_study(tmp_path, "b", space, resolver, monkeypatch, measured) == measured


def test_a_damaged_measurement_is_taken_again(space, resolver, tmp_path, monkeypatch, capsys):
    measured = choose_count(table(SMALL), FREE, None, None)
    choose_in_new_study(tmp_path, "a", space, resolver, monkeypatch, measured)
    (file,) = (tmp_path / FIT_FOLDER).glob("packing_*.json")
    file.write_text('{"per_card": 8}')
    capsys.readouterr()
    assert choose_in_new_study(tmp_path, "b", space, resolver, monkeypatch, measured) == measured
    assert f"{file} is damaged, so trials on a card are measured again: " in capsys.readouterr().out
    assert choose_in_new_study(tmp_path, "c", space, resolver, monkeypatch, None).per_card == 8


@pytest.mark.parametrize(
    ("seconds_of_study", "tried"),  # with one trial a card at 100 images a second; a measurement takes 10 s
    [(150, [1]), (399, [1]), (401, [1, 2]), (2_000, [1, 2, 4, 8]), (100_000, [1, 2, 4, 8])],
)
def test_measuring_takes_at_most_a_twentieth_of_the_studys_expected_time(seconds_of_study, tried):
    now = [0.0]
    speeds = table({1: 100.0, 2: 110.0, 4: 150.0, 8: 160.0}, counts := [])

    def measure(count: int) -> Throughput:
        now[0] += 10
        return speeds(count)

    time_limit = MeasuringTime(100.0 * seconds_of_study, clock=lambda: now[0])
    packing = choose_count(measure, FREE, None, None, time_limit)
    assert counts == tried
    assert packing.cut_short == (len(tried) < 4)
    assert packing.per_card == tried[-1]
    spent_more = now[0] - 10  # the first measurement is needed to know how long the study takes
    assert spent_more <= 0.05 * seconds_of_study


class FakeBenchmark:
    """A card that is not there; subclasses say how they are made and how fast it is."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...

    def card(self) -> tuple[str, float | None]:
        return "X", None

    def peak(self, trial: Any) -> float:
        return 100.0


def test_a_short_study_measures_one_sharing_mode_alone(space, resolver, monkeypatch):
    modes = []

    class Measured(FakeBenchmark):
        def __init__(self, *_: Any, sharing: str, **__: Any):
            modes.append(sharing)

        def measure(self, count: int) -> Throughput:
            return Throughput(count, 1000.0)

    monkeypatch.setattr(packing_benchmark, "PackingBenchmark", Measured)
    clock = iter(range(0, 1000, 10))
    short = MeasuringTime(10_000.0, clock=lambda: next(clock))
    packing, _ = packing_benchmark.measure_packing(
        space, resolver, Limit(8, "8"), Path("study"), None, {PROCESSES: {}, MPS: {}}, short
    )  # fmt: skip
    assert modes == [PROCESSES]
    assert packing.cut_short
    assert packing.reason == "the study trains for about 10 s, too short to measure more after 10 s"


def test_the_sharing_mode_whose_card_trains_the_most_is_chosen_and_all_measurements_are_recorded():
    in_turns = choose_count(table({1: 200.0, 2: 210.0}), FREE, None, None)
    at_once = choose_count(lambda count: Throughput(count, 100.0 * count, 2000.0, MPS), Limit(4, "4"), None, None)
    packing = best_packing([in_turns, at_once])
    assert (packing.sharing, packing.per_card, len(packing.measurements)) == (MPS, 4, 5)
    assert Packing.from_event(packing.to_event()) == packing
    lines = packing_lines(packing, "X")
    assert lines[0] == "  1 trial a card: 200 images/s"
    assert lines[4] == "  4 trials a card by mps: 400 images/s, 2,000 MB each"
    assert lines[5].startswith("4 trials a card by mps (X): 8 are too many")
    assert best_packing([in_turns, choose_count(table({}), FREE, None, None)]).sharing == PROCESSES


def test_an_event_without_a_sharing_mode_is_by_processes():
    event = {"per_card": 2, "tried": [{"trials": 2, "images_per_second": 9.0, "peak_mb": None}], "why": "so"}
    assert Packing.from_event(event).sharing == PROCESSES


def test_each_sharing_mode_is_measured_under_its_own_environment(space, resolver, monkeypatch):
    started = []

    class Measured(FakeBenchmark):
        def __init__(self, *_: Any, sharing: str, environment: Any, **__: Any):
            started.append((sharing, environment))
            self.sharing = sharing

        def measure(self, count: int) -> Throughput:
            return Throughput(count, count * (2.0 if self.sharing == MPS else 1.0), 100.0, self.sharing)

    monkeypatch.setattr(packing_benchmark, "PackingBenchmark", Measured)
    modes = {PROCESSES: {}, MPS: {"A": "b"}}
    packing, details = packing_benchmark.measure_packing(
        space, resolver, Limit(2, "2"), Path("study"), None, modes
    )  # fmt: skip
    assert started == list(modes.items())
    assert (packing.sharing, packing.per_card, details["peak_mb"], details["card"]) == (MPS, 2, 100.0, "X")


def test_the_memory_probe_gives_the_largest_peak_if_it_measured_all_configurations(resolver, tmp_path):
    trials = [resolver.resolve(resolver.points.grid()[index]) for index in (0, -1)]
    rows = [
        {"configuration": configuration(trial.specification), "status": FITS, "device": "X", "peak_mb": peak}
        for trial, peak in zip(trials, (70.0, 30.0), strict=True)
    ]
    write_rows(rows, tmp_path / FIT_FOLDER / "small.parquet")
    assert probed_peak(tmp_path, ("study", "small"), trials, "X") == 70.0
    assert probed_peak(tmp_path, ("study", "small"), trials, "Y") is None
    write_rows(rows[:1], tmp_path / FIT_FOLDER / "small.parquet")
    assert probed_peak(tmp_path, ("study", "small"), trials, "X") is None


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus_per_trial": "some"}, "`resources.gpus_per_trial`: must be a number from 0, or auto, but got 'some'"),
        ({"gpus_per_trial": True}, "`resources.gpus_per_trial`: must be a number from 0, or auto, but got True"),
        ({"processes_per_trial": 1.5}, "`resources.processes_per_trial`: must be a whole number"),
    ],
)
def test_an_invalid_resource_is_one_line(content, resources, message):
    with pytest.raises(InputError) as caught:
        parse_space("small", {**content, "resources": resources})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_trainers_that_never_answer_end_the_command_with_one_line(monkeypatch):
    """No card comes, or they hang; `ray.wait` then returns without an answer, again and again."""
    monkeypatch.setattr(packing_benchmark, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(packing_benchmark.ray, "wait", lambda answers, num_returns, timeout: ([], answers))
    benchmark = object.__new__(PackingBenchmark)
    with pytest.raises(HungError, match=r"^gpus_per_trial auto: 2 trainers on one card have not answered for 0 s: "):
        benchmark._wait(["first", "second"])


@pytest.mark.study
@pytest.mark.slow
def test_real_trainers_on_cpus_are_measured_together(resolver, content):
    """A card of CPUs: two trainers at once, and the memory of one."""
    import ray

    from sweeps.cluster.ray_session import connect

    connect(None, cpus=2)
    try:
        trial = resolver.resolve(resolver.points.grid()[0])
        with PackingBenchmark(trial, None, 1, 2, on_card=False, seconds=0.5) as benchmark:
            assert benchmark.card() == ("cpu", None)
            assert (benchmark.peak(trial) or 1) > 0
            packing = choose_count(benchmark.measure, Limit(2, "2 cores"), None, None)
        assert [measurement.trials for measurement in packing.measurements] == [1, 2]
        assert all(measurement.images_per_second > 0 for measurement in packing.measurements)
    finally:
        ray.shutdown()


@pytest.mark.study
@pytest.mark.slow
def test_ray_itself_puts_trials_where_a_card_has_a_place(monkeypatch):
    """Two made cards, on which Ray alone decides: it would fill the first one before the second."""
    import ray

    from sweeps.cluster import CardPlaces, cards_are_free

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")

    @ray.remote(num_cpus=0, num_gpus=0.25)
    class Worker:
        def card(self) -> int:
            return int(ray.get_gpu_ids()[0])

    @ray.remote(num_cpus=0)
    class WithoutCard:
        def answer(self) -> None:
            pass

    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert cards_are_free(2)
        assert not cards_are_free(3)
        with CardPlaces(2, 4) as places:
            workers = []
            for count, upper in ((2, 1), (2, 2), (4, 4)):
                places.open(upper)
                workers += [Worker.remote() for _ in range(count)]  # type: ignore[attr-defined]
                cards = ray.get([worker.card.remote() for worker in workers], timeout=scaled(60))
                assert sorted(cards) == sorted([0, 1] * upper)
            block = places.close_one()
            ray.kill(workers[cards.index(1)])
            assert block.wait(scaled(60))
            another = Worker.remote()  # type: ignore[attr-defined]
            card = another.card.remote()
            for _ in range(2):  # each starts, although it was asked for later
                later = WithoutCard.remote()  # type: ignore[attr-defined]
                ray.get(later.answer.remote(), timeout=scaled(60))
            assert ray.wait([card], timeout=0)[0] == []
        assert ray.get(card, timeout=scaled(60)) == 1
        assert not cards_are_free(2)
    finally:
        ray.shutdown()
