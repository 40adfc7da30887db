"""What is computed from measurements of several cards: a profile's sums, and simulated schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.exchange_speeds import ONE, TWO, Run, loss_rows, speed_rows
from benchmarks.gpu.several_cards import longest, summary
from benchmarks.studies.spread_simulation import NETWORKS, Network, SimulatedTrial, Simulation, speeds_on_two


def event(category: str, name: str, begin: float, duration: float) -> dict[str, Any]:
    return {"cat": category, "name": name, "ts": begin, "dur": duration}


def test_a_profile_counts_overlapping_kernels_once_and_exchanges_that_hide_nothing():
    events = [
        event("kernel", "conv", 0, 4000), event("kernel", "ncclDevKernel_AllReduce", 3000, 1000),
        event("kernel", "ncclDevKernel_AllGather", 4000, 1000),
        event("kernel", "conv", 8000, 2000), event("cuda_runtime", "cudaGraphLaunch", 0, 10),
        event("cuda_driver", "cuLaunchKernel", 0, 10), event("cuda_runtime", "cudaStreamSynchronize", 0, 10),
        {"name": "a mark without length", "ph": "i"},
    ]  # fmt: skip
    assert summary(events, 1) == pytest.approx({
        "launches": 2, "kernels": 4, "exchanges": 2, "waits": 1, "exchange ms": 2.0, "exchanging alone ms": 1.0,
        "idle %": 30.0,
    })  # fmt: skip


def test_a_profile_names_the_kernels_that_take_most_time():
    events = [event("kernel", "a", 0, 1000), event("kernel", "b", 0, 5000), event("kernel", "a", 0, 3000)]
    assert longest([*events, event("cuda_runtime", "c", 0, 9000)], 2) == {"b": [0.5, 2.5], "a": [1.0, 2.0]}


def test_two_cards_are_compared_with_one_round_by_round():
    server: Any = None
    runs = [
        Run("wrn", server, ONE, {"losses": [2.0, 1.0]}, [10.0, 12.0, 11.0]),
        Run("wrn", server, TWO, {"losses": [2.0, 1.001]}, [8.0, 8.0]),
    ]
    one, two = speed_rows(runs)
    assert one["times one card"] == 1
    assert (two["times one card"], two["least"], two["most"]) == (1.375, 1.25, 1.5)
    (row,) = loss_rows(runs)
    assert (row["losses of"], row["equal"], row["of"]) == (TWO, 1, 2)
    assert row["largest ppm"] == pytest.approx(1000)


def test_two_cards_that_did_not_start_have_no_ratio():
    server: Any = None
    runs = [Run("wrn", server, ONE, {"losses": [2.0]}, [10.0]), Run("wrn", server, TWO, None, [None])]
    _, two = speed_rows(runs)
    assert (two["times one card"], two["ms a step"], two["rounds"]) == (None, None, 0)
    assert loss_rows(runs) == []


SMALL, LARGE = Network("small", {1: 100.0, 2: 150.0}), Network("large", {1: 10.0}, on_two=16.0)


def simulate(way: str, cards: int, *trials: tuple[Network, float]) -> Simulation:
    simulation = Simulation([SimulatedTrial(network, images, start=0.0) for network, images in trials], cards, way)
    simulation.run()
    assert sum(simulation.trained) + simulation.idle == pytest.approx(cards * simulation.seconds)
    return simulation


def test_trials_that_share_a_card_train_as_fast_as_was_measured_for_their_number():
    assert simulate("one", 1, (SMALL, 3000.0), (SMALL, 3000.0)).seconds == pytest.approx(60)
    assert simulate("packed", 1, (SMALL, 3000.0), (SMALL, 3000.0)).seconds == pytest.approx(40)


def test_the_last_trial_goes_on_on_two_cards_after_it_has_been_begun_again():
    packed = simulate("packed", 2, (LARGE, 1000.0))
    assert (packed.seconds, packed.idle) == pytest.approx((100, 100))
    spread = simulate("spread", 2, (LARGE, 1000.0))
    assert (spread.seconds, spread.idle) == pytest.approx((15 + 1000 / 16, 0))


def test_a_trial_that_ends_soon_is_not_begun_again():
    assert simulate("spread", 2, (LARGE, 200.0)).seconds == pytest.approx(20)


def test_the_speed_on_two_cards_is_that_at_the_batch_of_one(tmp_path: Path):
    rows = [
        {"network": "resnet9", "cards": 1, "batch": 512, "images/s": 1.0},
        {"network": "resnet9", "cards": 2, "batch": 512, "images/s": 2.0},
        {"network": "resnet9", "cards": 2, "batch": 1024, "images/s": 3.0},
        {"network": "wrn_28_10", "cards": 1, "batch": 256, "images/s": 1.0},
        {"network": "wrn_28_10", "cards": 2, "batch": 256, "images/s": None},
    ]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"tables": [{"rows": rows}]}))
    assert speeds_on_two(path) == {"resnet9": 2.0}
    assert set(NETWORKS) == {"resnet9", "wrn_28_10"}
