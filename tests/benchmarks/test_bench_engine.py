"""The engine's benchmark: what is left out is said, the limit counts what it says, the comparison adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.measurement import Options
from benchmarks.studies import plain_tune
from benchmarks.training import engine as bench_engine
from benchmarks.training.engine_processes import TooLargeError
from benchmarks.training.step_traffic import copy_bandwidth, step_bytes
from sweeps.resources import mps


def test_without_the_service_its_rows_are_left_out_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = Options(quick=True, sharing=(mps.MPS,))
    run = bench_engine.Run(options)
    run.network(bench_engine.cases(options)[0])
    assert run.rows == []
    assert capsys.readouterr().out == "left out: mps: nvidia-cuda-mps-control is not installed\n"


class Pretended:
    """Processes that answer at once; more than `fit` do not fit."""

    def __init__(self, fit: int):
        self.fit = fit

    def __call__(self, which: range, name: str, case: Any) -> list[Any]:
        if which.stop > self.fit:
            raise TooLargeError("Tried to allocate 2 GiB")
        return [{"train": (100.0, 2000.0), "losses": [1.0]}.get(name, 0.5)] * len(which)


@pytest.mark.parametrize(("fit", "rows"), [(8, [1, 2, 4, 8]), (3, [1, 2]), (0, [])])
def test_rows_end_where_no_more_trials_fit(monkeypatch, fit, rows):
    monkeypatch.setitem(bench_engine.COUNTS, "cpu", (1, 2, 4, 8))
    run = bench_engine.Run(Options(quick=True))
    case = bench_engine.cases(Options(quick=True))[0]
    run._way(Pretended(fit), case, mps.MPS, 1000.0)  # type: ignore[arg-type]
    assert [row["trials"] for row in run.rows] == rows
    assert all(row["images/s"] == 100 * row["trials"] for row in run.rows)
    assert all(row["of limit"] == pytest.approx(row["images/s"] / 1000) for row in run.rows)
    left = [f"resnet9, mps, {case.way}: no more rows: Tried to allocate 2 GiB"] if fit < 8 else []
    assert run.notes == left


def test_networks_ways_and_sharing_are_chosen_in_the_order_given():
    options = Options(device="cuda", networks=("wrn_28_10",), ways=("torch", "compiled"), sharing=("mps",), seconds=9)
    run = bench_engine.Run(options)
    assert (run.ways, run.sharing) == (("torch", "compiled"), ("mps",))
    assert [case.network for case in bench_engine.cases(options)] == ["wrn_28_10"]


def test_bytes_of_a_step_are_counted_as_the_file_says():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
    )  # fmt: skip
    images, wide, pooled, last = 3 * 64, 4 * 64, 4 * 16, 8 * 16
    stem = 2 * images + 2 * wide
    first_norm = 5 * wide + 3 * pooled
    depthwise, pointwise = 3 * pooled + 2 * pooled, 3 * pooled + 2 * last
    values = stem + first_norm + depthwise + pointwise + 8 * last
    assert step_bytes(network, (3, 8, 8), 2) == 2 * values
    assert network.training
    assert step_bytes(network, (3, 8, 8), 4) == 4 * values  # no hook is left behind
    assert copy_bandwidth("cpu", 2**16) > 0


def test_a_plain_sweep_is_extrapolated_from_the_time_in_which_all_trained():
    def epoch(trial: str, start: float, end: float) -> dict[str, Any]:
        return {"trial": trial, "images": 100, "start": start, "end": end}

    rows = [epoch("a", 10, 20), epoch("a", 20, 30), epoch("a", 30, 40), epoch("b", 12, 20), epoch("b", 20, 30),
            epoch("b", 30, 41)]  # fmt: skip
    found = plain_tune.summary("resident", rows, began=4.0)
    assert found["images/s"] == pytest.approx(300 / 20)  # the second epochs, and the third that ended in that time
    assert found["start s"] == pytest.approx((6 + 8) / 2)
    hours = (129 * 128 * 100 / 15 + 129 / 2 * 7) / 3600
    assert found["129 x 128 h"] == pytest.approx(hours)


def test_views_on_the_device_keep_labels_and_shapes():
    data = plain_tune.load_images(None, True)
    batches = list(plain_tune.resident_batches(data, 64, "cpu")())
    assert len(batches) == 4
    assert all(images.shape == (64, 3, 32, 32) and labels.shape == (64,) for images, labels in batches)
    assert all((images == 0).flatten(2).any(2).all() for images, _ in batches)  # a square is erased in each
    assert torch.isfinite(batches[0][0]).all()
