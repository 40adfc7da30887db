"""What the export prints, and where it refuses to write, without an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from analysis.__main__ import main
from analysis.model_export.trial_export import PROOF_FILE, export_trial, proof_lines
from analysis.stats.front import collect_points
from lowrank.errors import InputError
from tests.analysis.model_export.test_model_card import make_proof
from tests.lowrank.deployment.test_given_images import BoundsWeight, KeepsByHook
from tests.support.synthetic_data import study, trial
from tests.support.synthetic_study import Plan, write_study


def test_the_lines_name_trial_files_latencies_and_problems():
    record = study(trial("abcd01", 100, 3.5), trial("abcd02", 100, 4.5, seed=1))
    proof = make_proof(measured=9.0)
    export = proof.export
    files = (replace(export.files[0], difference=3.0, agreement=0.5), *export.files[1:])
    proof = replace(proof, export=replace(export, files=files))
    lines = proof_lines(collect_points(record)[0], proof, Path("out"))
    assert lines[0].endswith("100 parameters, 3.50 % validation error (4.00 % in the mean of 2 seeds)")
    assert lines[1] == (
        "largest difference of logits from the trained network on the 360 validation images, and error of each file:"
    )
    assert lines[2].startswith("  factorised.safetensors")
    assert lines[2].endswith("12,345 bytes, difference 3.0e+00, 9.00 % error: NOT THE SAME")
    assert lines[3].endswith("difference 1.0e-06, 9.00 % error: same")
    assert "  dense                    batch 1: 1.23, batch 10: 1.23" in lines
    assert lines[-2] == (
        "error: the network has 9.00 % validation error, but the study recorded 3.50 %: its weights are not those that "
        "were measured"
    )
    assert lines[-1] == "written into out; start with README.md"


def export_into(folder: Path, trained: Any = None) -> None:
    record = study(trial("abcd01", 100, 3.5))
    export_trial(record, collect_points(record)[0], trained, None, folder, lambda name: None, opset=18)


def test_nothing_but_an_earlier_export_is_replaced(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out must be a folder, but .*file is a file"):
        export_into(tmp_path / "file")
    with pytest.raises(InputError, match=r"--out must be a folder, but .*file is a file"):
        export_into(tmp_path / "file" / "x")
    with pytest.raises(InputError, match=r"--out must be a new folder or an earlier export, but .* holds other files"):
        export_into(tmp_path)
    (tmp_path / PROOF_FILE).write_text("{}")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'specification'"):
        export_into(tmp_path)  # it goes on to the trial


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BoundsWeight(), "BoundsWeight gives its parameter `inner.2.weight` other memory while it runs"),
        (KeepsByHook(), "a copy of KeepsByHook must give the logits of the original, but does not"),
    ],
)
def test_a_network_that_no_form_can_follow_is_refused_before_anything_is_written(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    trained = SimpleNamespace(specification=SimpleNamespace(image_shape=(3, 6, 6)), network=network)
    with pytest.raises(InputError, match=message):
        export_into(tmp_path / "out" / "model", trained)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-params", "0"], "--max-params must be above 0, but got 0"),
        (["--max-error", "-1.5"], "--max-error must be above 0, but got -1.5"),
        (["--threads", "0"], "--threads must be above 0, but got 0"),
        (["--trial", "x", "--max-params", "9"], "--trial names one trial; leave --max-params and --max-error out"),
    ],
)
def test_limits_that_mean_nothing_are_one_line(options, message, tmp_path, capsys):
    folder = write_study(tmp_path / "small", Plan(trials=2, epochs=1))
    assert main(["export", "--study", str(folder), *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
