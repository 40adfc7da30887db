"""Bayesian compression by its commands: from a space to a report, and to an exported network with equal outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowrank.data import DataSettings, load_data
from lowrank.io.tensor_file import load_tensors
from sweeps.records.load import load_study
from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER
from sweeps.trials.build import make_student

PROJECT = Path(__file__).resolve().parents[2]
SPACE = """
question: How small does Bayesian compression make a multilayer perceptron?
data: {name: digits}
network: {name: mlp, hidden: [24, 16]}
train: {epochs: 4, batch_size: 32, lr: 0.01, optimizer: adamw, decay: plain, factor_lr: 3, shift: 0, cutout: 0}
method: {name: bayesian, warmup_epochs: 2, finetune_epochs: 2, finetune_lr: 0.005, finetune_kd_weight: 0.5}
budget: {params: {choice: [0.6, 0.3]}, relative_to: dense}
references: [dense]
search: {sampler: grid, stop: none}
"""


def command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.study
def test_a_study_of_bayesian_compression_is_run_reported_and_exported(tmp_path: Path) -> None:
    space, folder = tmp_path / "small.yaml", tmp_path / "small"
    space.write_text(SPACE)
    printed = command("sweeps/run.py", "--space", str(space), "--out", str(tmp_path))
    study = load_study(folder)
    dense = next(trial for trial in study.trials.values() if trial.method == "dense")
    trials = {trial.parameters["budget.params"]: trial for trial in study.trials.values() if trial.method == "bayesian"}
    assert set(trials) == {0.6, 0.3}
    for share, trial in trials.items():
        assert trial.counts["params"] <= share * dense.counts["params"]
        assert f"{trial.counts['params']:,}" in printed
    reported = command("-m", "analysis", "report", "--study", str(folder))
    assert "refused" not in reported, "MLflow keeps the sizes that a trial had at its end"
    assert "Bayesian compression" in (folder / "report" / "report.html").read_text()

    trial = trials[0.3]
    out = tmp_path / "exported"
    command("-m", "analysis", "export", "--study", str(folder), "--trial", trial.trial_id, "--out", str(out))
    proof = json.loads((out / "proof.json").read_text())
    assert proof["equal"] is True
    errors = [form["error"] for form in proof["forms"]]
    assert errors == pytest.approx([trial.val_error] * len(errors), abs=0.01)
    specification = trial.built_specification
    assert specification is not None
    data = load_data(DataSettings(name="digits"))
    network, _ = make_student(specification, data)
    state, _ = load_tensors(folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE)
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    network.load_state_dict(weights)
    assert sum(value.numel() for value in network.parameters()) == trial.counts["params"]
    images = torch.rand(16, 1, 8, 8)
    program = torch.export.load(out / "factorised.pt2").module()
    torch.testing.assert_close(program(images), network.eval()(images), rtol=1e-4, atol=1e-5)
