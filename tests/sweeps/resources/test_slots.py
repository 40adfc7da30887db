"""What each trial holds: planned from the cluster, and from a measurement where the space says `auto`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from sweeps.records.events import Status
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.resources import packing_benchmark, slots
from sweeps.resources.gpu_packing import Limit, Throughput, choose_count
from sweeps.resources.gradual_packing import GradualPacking
from sweeps.resources.mps import MPS, PROCESSES
from sweeps.resources.shares import Cluster, Share
from sweeps.resources.slots import ExpectedResources, ResourcePlanner, TrialResources
from sweeps.resources.spreading import MeasureCards, Spreading, choose_cards
from sweeps.space.parse import parse_space

NO_CARDS = Cluster(cpus=4, gpus=0, max_cpus=4, max_gpus=0)
CARDS = Cluster(cpus=32, gpus=2, max_cpus=16, max_gpus=1)
FOUR_CARDS = Cluster(cpus=32, gpus=4, max_cpus=32, max_gpus=4)
Planners = Callable[..., ResourcePlanner]


def measure_nothing(*arguments: Any) -> MeasureCards:
    pytest.fail("there is nothing to measure")


@pytest.fixture
def planner(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Planners:
    """Plans for 24 trials of a space on a cluster, without Ray."""

    def make(cluster: Cluster, trials: int = 24, address: str | None = None, **resources: Any) -> ResourcePlanner:
        monkeypatch.setattr(slots, "read_cluster", lambda autoscaled: cluster)
        space = parse_space("small", {**content, "resources": resources})
        return ResourcePlanner(space, trials, require_gpus=False, address=address)

    return make


def test_where_there_is_no_card_auto_says_so_and_measures_nothing(planner, resolver, monkeypatch, capsys):
    planned = planner(NO_CARDS, gpus_per_trial="auto")
    assert capsys.readouterr().out == "gpus_per_trial auto: there is no GPU here, so trials run on CPUs\n"
    monkeypatch.setattr(slots, "choose_packing", lambda *_: pytest.fail("there is nothing to measure"))
    with planned.sharing_modes() as modes:
        resources = planned.resolve(resolver, None, StudyRecord(), None, modes, measure_nothing)
    assert (resources.share, resources.larger) == (Share(1, 0, 4), Share(2, 0, 2))
    assert resources.sharing == (PROCESSES, {})
    assert resources.as_event() == {"slots": 4, "cpus": 1, "gpus": 0, "sharing": "processes"}


@pytest.mark.parametrize(
    ("cluster", "trials", "settings", "cores"),
    [
        (NO_CARDS, 24, {}, 1),
        (NO_CARDS, 24, {"cpus_per_trial": 2}, 2),
        (NO_CARDS, 3, {}, 1),
        (NO_CARDS, 24, {"max_concurrent": 1}, 4),
        (CARDS, 24, {"gpus_per_trial": 1}, 16),  # one trial a card, which asks for a single core
        (CARDS, 24, {"gpus_per_trial": 0.5}, 8),
        (CARDS, 1, {"gpus_per_trial": 1}, 32),
    ],
)
def test_each_trial_may_decode_on_its_share_of_all_cores(planner, resolver, cluster, trials, settings, cores):
    planned = planner(cluster, trials, **settings)
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}}, measure_nothing)
    assert resources.cores_per_trial == cores


def test_auto_gives_each_trial_the_share_and_the_mode_that_were_measured(planner, resolver, monkeypatch, capsys):
    packing = choose_count(lambda count: Throughput(count, 100.0 * count, 2000.0, MPS), Limit(4, "4"), None, None)
    monkeypatch.setattr(slots, "choose_packing", lambda *_: packing)
    planned = planner(CARDS, gpus_per_trial="auto")
    assert planned.share.gpus == 1  # a whole card until it is measured
    modes = {PROCESSES: {}, MPS: {"PIPE": "here"}}
    resources = planned.resolve(resolver, None, StudyRecord(), None, modes, measure_nothing)
    assert (resources.share, resources.larger) == (Share(1, 0.25, 8), Share(1, 0.5, 4))
    assert resources.sharing == (MPS, {"PIPE": "here"})
    assert resources.as_event() == {"slots": 8, "cpus": 1, "gpus": 0.25, "sharing": "mps"}
    assert capsys.readouterr().out == ""


def test_on_one_card_auto_begins_with_one_trial_and_allows_more(planner, resolver, tmp_path, monkeypatch, capsys):
    card = Cluster(cpus=6, gpus=1, max_cpus=6, max_gpus=1)
    monkeypatch.setattr(packing_benchmark, "card_types", lambda: ["X"])
    (tmp_path / "a").mkdir()
    with closing(Journal(tmp_path / "a" / "journal.jsonl")) as journal:
        record = StudyRecord()
        planned = planner(card, gpus_per_trial="auto")
        resources = planned.resolve(resolver, journal, record, None, {PROCESSES: {}}, measure_nothing)
        assert (resources.share, resources.larger) == (Share(1, 0.25, 4), Share(1, 1, 1))
        growing = resources.growing
        assert growing is not None
        assert (growing.slots, growing.max_slots) == (1, 4)
        growing.add_epoch("t", {"epoch_seconds": 1.0})
        growing.slots = 2
        growing._measurements.append(Throughput(1, 10.0))
        growing.out_of_memory("no memory")
        assert record.packing["per_card"] == 1
        assert record.packing["card"] == "X"
        lines = growing.take_lines()
    assert lines[-1] == "1 trial a card (as its trials trained): 2 do not fit on a card: no memory"
    (tmp_path / "b").mkdir()
    with closing(Journal(tmp_path / "b" / "journal.jsonl")) as journal:  # the next study knows it
        resources = planner(card, gpus_per_trial="auto").resolve(
            resolver, journal, StudyRecord(), None, {PROCESSES: {}}, measure_nothing
        )
    assert (resources.share, resources.growing) == (Share(1, 1, 1), None)
    (tmp_path / "c").mkdir()
    with closing(Journal(tmp_path / "c" / "journal.jsonl")) as journal:
        resources = planner(card, gpus_per_trial="auto").resolve(
            resolver, journal, StudyRecord(), None, {PROCESSES: {}, MPS: {"PIPE": "here"}}, measure_nothing
        )
    assert resources.growing is not None
    assert resources.sharing == (MPS, {"PIPE": "here"})  # kernels of all trials run at once


def test_on_several_free_cards_auto_begins_with_one_trial_on_each(planner, resolver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing_benchmark, "card_types", lambda: ["X"])
    monkeypatch.setattr(packing_benchmark, "cards_are_free", lambda cards: cards == 4)
    (tmp_path / "a").mkdir()
    with closing(Journal(tmp_path / "a" / "journal.jsonl")) as journal:
        resources = planner(FOUR_CARDS, gpus_per_trial="auto").resolve(
            resolver, journal, StudyRecord(), None, {PROCESSES: {}}, measure_nothing
        )
    assert (resources.share, resources.larger) == (Share(1, 0.25, 16), Share(1, 1, 4))
    growing = resources.growing
    assert growing is not None
    assert (growing.slots, growing.max_slots, growing.cards) == (1, 4, 4)
    assert [growing.may_launch(running) for running in (3, 4)] == [True, False]
    assert capsys.readouterr().out == (
        "gpus_per_trial auto: one trial on each of 4 cards, then up to 4, as long as all train more together\n"
    )


def test_nothing_is_measured_where_only_one_trial_a_card_can_be(planner, resolver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing_benchmark, "card_types", lambda: ["X"])
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        resources = planner(FOUR_CARDS, gpus_per_trial="auto", cpus_per_trial=8).resolve(
            resolver, journal, StudyRecord(), None, {PROCESSES: {}}, measure_nothing
        )
    assert (resources.share, resources.growing) == (Share(8, 1, 4), None)
    assert capsys.readouterr().out == "1 trial a card (X): 2 are too many: 32 CPUs for 4 cards, 8 a trial\n"


@pytest.mark.parametrize(
    ("cluster", "resources", "lines"),
    [
        (CARDS, {"gpus_per_trial": 0.5, "sharing": "mps"}, 1),
        (CARDS, {"gpus_per_trial": "auto"}, 1),
        (CARDS, {"gpus_per_trial": 0.5}, 0),  # `auto` is a matter of measurement
        (CARDS, {"gpus_per_trial": 1, "sharing": "mps"}, 0),
        (NO_CARDS, {"gpus_per_trial": 0.5, "sharing": "mps"}, 0),
    ],
)
def test_the_service_is_only_asked_for_where_trials_share_a_card(planner, capsys, cluster, resources, lines):
    """On a cluster of several machines it is never started, which is said."""
    with planner(cluster, address="head:6379", **resources).sharing_modes() as modes:
        assert modes == {PROCESSES: {}}
    assert capsys.readouterr().out.count("no multi-process service (it is started on this machine alone") == lines


def speeds(**by_count: float) -> Callable[..., MeasureCards]:
    """What measures a trial: images per second by the number of cards."""

    def measure_on_cards(trial: Any, data_dir: Any, cpus: float, cards: int) -> MeasureCards:
        return lambda count: by_count[f"on_{count}"]

    return measure_on_cards


def test_a_trial_has_the_cards_it_asks_for_and_nothing_is_measured(planner, resolver, capsys):
    planned = planner(FOUR_CARDS, gpus_per_trial=2)
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}}, measure_nothing)
    assert (resources.share, resources.spreading) == (Share(1, 2, 2, 2), None)
    assert capsys.readouterr().out == (
        "2 cards for one trial wait for each other in every step, and train it at most 2 times as fast at the same "
        "batch; with --gpus-per-trial 1, 4 trials run at once, and none waits for another. Keep 2 where one trial "
        "takes too long or its batch does not fit on one card\n"
    )


@pytest.mark.parametrize(
    ("trials", "ended", "settings", "said"),
    [
        (4, 0, {"gpus_per_trial": 2}, True),
        (3, 0, {"gpus_per_trial": 2}, False),  # on one card each, a card would have no trial
        (8, 5, {"gpus_per_trial": 2}, False),
        (8, 4, {"gpus_per_trial": 4}, True),
        (24, 0, {"gpus_per_trial": 2, "max_concurrent": 2}, False),
        (24, 0, {"gpus_per_trial": 2, "max_concurrent": 1}, False),
        (24, 0, {"gpus_per_trial": 2, "cpus_per_trial": 16}, False),  # there are CPUs for two trials alone
        (24, 0, {"gpus_per_trial": 1}, False),
        (24, 0, {"gpus_per_trial": 0.5}, False),
        (4, 4, {"gpus_per_trial": 2}, False),
    ],
)
def test_several_cards_for_one_trial_are_remarked_on_where_each_could_have_its_own(
    planner, resolver, capsys, trials, ended, settings, said
):
    trained = {str(number): TrialRecord(str(number), status=Status.COMPLETED) for number in range(ended)}
    planned = planner(FOUR_CARDS, trials, **settings)
    planned.resolve(resolver, None, StudyRecord(trials=trained), None, {PROCESSES: {}}, measure_nothing)
    assert ("with --gpus-per-trial 1, 4 trials run at once" in capsys.readouterr().out) == said


def one_trial_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = choose_count(lambda count: Throughput(count, 100.0), Limit(1, "1"), None, None)
    monkeypatch.setattr(slots, "choose_packing", lambda *_: packing)


def test_auto_gives_a_trial_several_cards_where_they_are_faster_than_one(planner, resolver, monkeypatch, capsys):
    one_trial_a_card(monkeypatch)
    planned = planner(FOUR_CARDS, 2, gpus_per_trial="auto")
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}}, speeds(on_1=100.0, on_2=160.0))
    assert resources.share == Share(1, 2, 2, 2)
    assert resources.as_event()["spreading"] == {"cards": 2, "tried": 2, "one": 100.0, "several": 160.0}
    assert capsys.readouterr().out.splitlines()[-1] == (
        "each trial gets 2 cards: 2 cards train 160 images/s, one card trains 100"
    )


def test_auto_gives_a_trial_one_card_where_several_would_be_slower(planner, resolver, monkeypatch, capsys):
    one_trial_a_card(monkeypatch)
    planned = planner(FOUR_CARDS, 2, gpus_per_trial="auto")
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}}, speeds(on_1=100.0, on_2=90.0))
    assert resources.share == Share(1, 1, 2)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "each trial gets one card, not 2: 2 cards train 90 images/s, one card trains 100"
    )


def test_a_trial_that_does_not_fit_on_one_card_gets_several():
    assert choose_cards(lambda count: 0.0 if count == 1 else 50.0, 2) == Spreading(2, 2, 0.0, 50.0)


@pytest.mark.parametrize(("trials", "cards"), [(1, 4), (2, 2), (3, 1), (24, 1)])
def test_auto_spreads_trials_over_the_cards_that_would_have_none(planner, resolver, monkeypatch, trials, cards):
    one_trial_a_card(monkeypatch)
    planned = planner(FOUR_CARDS, trials, gpus_per_trial="auto")
    measure = measure_nothing if cards == 1 else speeds(on_1=100.0, on_2=180.0, on_4=300.0)
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}}, measure)
    assert (resources.share.gpus, resources.share.processes) == (cards, cards)
    assert resources.share.concurrent == min(trials, 4)


@pytest.mark.parametrize(
    ("cpus", "cards", "trials", "settings", "workers", "uses_service"),
    [
        (32, 1, 129, {"gpus_per_trial": 0.16, "sharing": "mps"}, 6, True),
        (32, 1, 129, {"gpus_per_trial": 0.16}, 6, False),
        (32, 1, 4, {"gpus_per_trial": 0.16, "sharing": "processes"}, 4, False),
        (4, 1, 129, {"gpus_per_trial": 1, "sharing": "mps"}, 1, False),
        (32, 0, 129, {"gpus_per_trial": 0.16, "sharing": "mps"}, 32, False),
        (32, 2, 129, {"gpus_per_trial": "auto"}, 16, True),
    ],
)
def test_what_a_study_will_hold_is_known_before_ray_runs(content, cpus, cards, trials, settings, workers, uses_service):
    space = parse_space("small", {**content, "resources": settings})
    expected = ExpectedResources.of(space, trials, cpus, cards, require_gpus=False)
    assert expected == ExpectedResources(workers, uses_service)
    if not uses_service:
        with expected.begin_service() as starting:
            assert starting is None


@pytest.mark.parametrize(("cards", "holds"), [(None, False), (1, False), (2, True)])
def test_places_are_held_only_while_the_number_of_trials_on_several_cards_is_decided(cards, holds):
    growing = None if cards is None else GradualPacking(Limit(8, "memory"), 1000, MPS, lambda *_: None, cards=cards)
    resources = TrialResources(Share(1, 0.125, 8), None, (MPS, {}), growing=growing)
    assert resources.holds_places == holds
