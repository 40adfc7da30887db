"""The space `compress` on a small trained network: planned, run, reported and resumed by its commands."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.records.load import load_study

PROJECT = Path(__file__).resolve().parents[2]
WEIGHTS = PROJECT / "tests" / "data" / "digits_resnet9.safetensors"
SMALL = [
    "--weights", str(WEIGHTS), "--set", "network.width=0.0625", "--set", "start.calibration=128",
    "--set", "budget.params={choice: [0.25, 0.5]}", "--set", "method.name=spatial_svd",
    "--set", "budget.allocation=energy", "--set", "start.scratch_train.epochs=2", "--set", "train.epochs=1",
]  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "sweeps/run.py", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.study
def test_a_study_of_a_trained_network_is_planned_run_and_reported(tmp_path):
    planned = command("--space", "compress", "--plan", *SMALL)
    assert planned.returncode == 0, planned.stderr
    line = r"spatial_svd by energy: \d of 8 layers replaced, relative error of outputs 0\.\d\d in the median"
    assert re.search(line, planned.stdout)
    planned_errors = re.findall(
        r"validation error before any training: spatial_svd by energy (\d+\.\d\d) %", planned.stdout
    )
    run = command("--space", "compress", "--out", str(tmp_path), *SMALL)
    assert run.returncode == 0, run.stderr
    assert "The trained network as it is:" in run.stdout
    assert re.search(r"A quarter \([\d,]+\) at [+-]\d", run.stdout)
    assert re.search(r"Half the parameters(: no network is better than| \([\d,]+\) at [+-]\d)", run.stdout)
    study = load_study(tmp_path / "compress")
    methods = {trial.method: trial for trial in study.trials.values()}
    assert methods["unchanged"].epochs == {}
    assert methods["unchanged"].val_error == methods["unchanged"].initial_error
    assert methods["thin_dense"].initial == {}
    initial = {f"{trial.initial_error:.2f}" for trial in study.trials.values() if trial.method == "spatial_svd"}
    assert initial == set(planned_errors), "the plan says with which error trials begin"
    layers = methods["spatial_svd"].initial["layers"]
    assert all({"name", "weight_error", "output_error"} <= layer.keys() for layer in layers)
    with (tmp_path / "compress" / "summary.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file) if row["initial_error"]} == {
            "unchanged", "dense", "separable", "spatial_svd"
        }  # fmt: skip
    resumed = command("--resume", "compress", "--out", str(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert len(load_study(tmp_path / "compress").trials) == len(study.trials)
