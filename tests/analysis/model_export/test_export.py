from __future__ import annotations

import copy
import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from analysis.__main__ import main
from analysis.model_export.select_trial import Limits, choose_trial, find_completed
from lowrank.data import load_data
from lowrank.deployment.formats import merged_network, onnx_forward, running_mult_adds
from lowrank.deployment.latency import Latency, describe_machine, measure_latency
from lowrank.errors import InputError
from lowrank.io.model_file import ModelSpecification, load_merged, load_model, save_merged
from lowrank.io.tensor_file import save_tensors
from lowrank.predict import main as predict
from lowrank.serving import load_classifier
from sweeps.records.events import Event, Role, Status
from sweeps.records.journal import Journal
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, TRIALS_FOLDER
from sweeps.space.parse import read_space
from sweeps.trials.build import make_trainer
from sweeps.trials.resolver import Resolver
from tests.support.synthetic_data import study, trial

POINT = {
    "method.name": "tucker", "method.dims": 3, "budget.params": 0.6, "train.weight_decay": 1e-4,
    "train.scaled_decay": True,
}  # fmt: skip


def write_untrained(folder: Path, seeds: int, recorded: float | None = None) -> list[tuple[str, float]]:
    """Write a study of untrained networks that differ in the seed; returns their ids and measured errors.

    `recorded` stands in the records instead of what was measured.
    """
    space = read_space("tt_dims", ["network.width=0.125", "data.train_images=200"])
    data = load_data(space.data)
    resolver = Resolver(space, data)
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="mine", question="which?", data={"name": "digits", "classes": 10})
    trials = []
    for seed in range(seeds):
        one = resolver.resolve(POINT, repeat=seed, role=Role.REPEAT if seed else Role.SEARCH)
        trainer = make_trainer(one.specification, data, "cpu")
        state = {name: tensor for name, tensor in trainer.state().items() if not name.startswith("momentum.")}
        save_tensors(folder / TRIALS_FOLDER / one.trial_id / CHECKPOINT_FILE, state, {})
        error = trainer.evaluate("val")["error"]
        journal.append(
            Event.PROPOSED, trial=one.trial_id, role="repeat" if seed else "search", stratum="", parameters=one.point,
            proposal={}, specification=one.specification.to_json(), counts=one.counts,
        )  # fmt: skip
        journal.append(Event.EPOCH, trial=one.trial_id, epoch=1, metrics={"val_error": recorded or error})
        journal.append(Event.FINISHED, trial=one.trial_id, status="completed", reason="")
        trials.append((one.trial_id, error))
    journal.close()
    return trials


def export(folder: Path, out: Path, *options: str) -> int:
    """Run the real command with as few rounds of latency as it takes: that is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.model_export.trial_export.measure_latency", partial(measure_latency, seconds=0.0))
        return main(["export", "--study", str(folder), *options, "--out", str(out)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A study of one untrained network, exported by the real command: its folder, the files, the proof, the error."""
    folder = tmp_path_factory.mktemp("studies") / "mine"
    ((_, error),) = write_untrained(folder, 1)
    out = folder.parent / "out"
    assert export(folder, out, "--max-params", "7e5") == 0
    return folder, out, json.loads((out / "proof.json").read_text()), error


@pytest.mark.slow
def test_of_several_seeds_the_card_leads_with_the_error_of_its_own_files(tmp_path):
    folder, out = tmp_path / "mine", tmp_path / "out"
    trials = write_untrained(folder, 3)
    errors = [error for _, error in trials]
    assert len(set(errors)) > 1
    mean = sum(errors) / 3
    for trial_id, error in trials[:2]:  # of the setting, then a later seed by its id
        assert export(folder, out, "--trial", trial_id) == 0
        proof = json.loads((out / "proof.json").read_text())
        assert proof["measured_error"] == pytest.approx(error) == pytest.approx(proof["recorded_error"])
        card = (out / "README.md").read_text()
        own = card.index(f"Validation error of these files: {error:.2f} %")
        assert own < card.index(f"Mean over the 3 seeds of this setting: {mean:.2f} %")


@pytest.mark.slow
def test_weights_of_another_error_than_the_recorded_one_are_no_success(tmp_path, capsys):
    folder, out = tmp_path / "mine", tmp_path / "out"
    ((_, error),) = write_untrained(folder, 1, recorded=5.0)
    assert export(folder, out) == 1
    message = f"the network has {error:.2f} % validation error, but the study recorded 5.00 %"
    assert message in capsys.readouterr().out
    assert message in (out / "README.md").read_text()


@pytest.mark.slow  # the fixture exports programs and ONNX files: half a minute
class TestExport:
    def test_six_files_have_the_outputs_of_the_trained_network(self, exported):
        _, out, proof, error = exported
        assert proof["equal"] is True
        files = [form["file"] for form in proof["forms"]]
        endings = ("safetensors", "pt2", "onnx")
        assert files == [f"{name}.{ending}" for name in ("factorised", "merged") for ending in endings]
        for form in proof["forms"]:
            assert form["bytes"] == (out / form["file"]).stat().st_size
            assert form["difference"] <= 1e-4
            assert form["error"] == pytest.approx(error)

    def test_each_file_runs_on_any_number_of_images(self, exported):
        _, out, _, _ = exported
        images = torch.randn(7, 1, 8, 8)
        with torch.no_grad():
            expected = load_model(out / "factorised.safetensors")(images)
            for logits in (
                load_merged(out / "merged.safetensors")(images),
                torch.export.load(out / "merged.pt2").module()(images),
                onnx_forward(out / "merged.onnx")(images),
                onnx_forward(out / "factorised.onnx")(images[:1]).expand(1, -1),
            ):
                assert torch.allclose(logits, expected[: len(logits)], atol=1e-5)

    def test_sizes_work_and_latencies_against_dense_and_separable(self, exported):
        _, _, proof, _ = exported
        names = {"factorised", "merged", "dense", "separable", "factorised, ONNX Runtime", "merged, ONNX Runtime"}
        assert {latency["name"] for latency in proof["latencies"]} == names
        assert {latency["batch"] for latency in proof["latencies"]} == {1, 64}
        assert set(proof["sizes"]) == set(proof["mult_adds"]) == names
        assert proof["mult_adds"]["merged"] == proof["mult_adds"]["separable"] < proof["mult_adds"]["dense"]
        assert "thread" in proof["machine"]

    def test_the_card_has_its_sections_and_numbers(self, exported):
        _, out, proof, _ = exported
        card = (out / "README.md").read_text()
        for part in ("## How to use it", "## Limits", "Validation error", "torch.export", proof["trial_id"]):
            assert part in card
        assert proof["images"].endswith("validation images")
        assert (
            f"Validation error of these files: {proof['measured_error']:.2f} %, measured on {proof['images']}" in card
        )
        assert proof["measured_error"] == pytest.approx(proof["recorded_error"])

    def test_the_code_on_the_card_runs(self, exported, monkeypatch):
        _, out, _, _ = exported
        monkeypatch.chdir(out)
        lines = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        generator = torch.Generator().manual_seed(0)
        variables = {"images": torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=generator)}
        lines = lines.replace("torch.zeros(1, 1, 8, 8, dtype=torch.uint8)", "images")
        exec(lines, variables)
        raw = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        expected = load_classifier(out / "factorised.safetensors").predict(raw.numpy())  # by the file's own metadata
        assert np.allclose(variables["logits"].detach().numpy(), expected, atol=1e-4)

    def test_the_command_on_the_card_classifies_an_image(self, exported, monkeypatch, capsys, tmp_path):
        _, out, _, _ = exported
        monkeypatch.chdir(out)
        Image.new("L", (8, 8), 200).save(tmp_path / "digit.png")
        command = (out / "README.md").read_text().partition("```sh\n")[2].partition("\n```")[0]
        assert command == "python -m lowrank.predict factorised.safetensors PATH"
        assert predict(command.replace("PATH", str(tmp_path / "digit.png")).split()[3:]) == 0
        assert re.fullmatch(rf"{tmp_path / 'digit.png'}: \d [\d.]+ %\n", capsys.readouterr().out)

    def test_the_onnx_file_holds_factors_and_no_path_of_this_machine(self, exported):
        _, out, _, _ = exported
        model = onnx.load(out / "factorised.onnx")
        factors = sum(tensor.numel() for tensor in load_model(out / "factorised.safetensors").state_dict().values())
        stored = sum(math.prod(weight.dims) for weight in model.graph.initializer)
        assert stored < 1.2 * factors
        for path in out.glob("*.[op]*"):
            assert str(Path(__file__).resolve().parents[3]).encode() not in path.read_bytes(), path

    def test_without_weights_nothing_is_written(self, exported, tmp_path, capsys):
        folder, *_ = exported
        bare = tmp_path / "bare"
        bare.mkdir()
        (bare / JOURNAL_FILE).write_bytes((folder / JOURNAL_FILE).read_bytes())
        assert main(["export", "--study", str(bare)]) == 2
        assert "error: the weights of trial" in capsys.readouterr().err
        assert [path.name for path in bare.iterdir()] == [JOURNAL_FILE]

    def test_another_networks_weights_are_refused(self, exported, tmp_path, capsys):
        folder, *_ = exported
        (trial_folder,) = (folder / TRIALS_FOLDER).iterdir()
        other = tmp_path / "other"
        other.mkdir()
        (other / JOURNAL_FILE).write_bytes((folder / JOURNAL_FILE).read_bytes())
        path = other / TRIALS_FOLDER / trial_folder.name / CHECKPOINT_FILE
        save_tensors(path, {"network.x": torch.zeros(1)}, {})
        assert main(["export", "--study", str(other)]) == 2
        assert "holds another network's weights" in capsys.readouterr().err


class TestChoice:
    def study(self):
        return study(
            trial("aa", 100, 5.0), trial("ab", 50, 7.0), trial("ba", 900, 2.0),
            trial("stopped", 10, 1.0, status=Status.STOPPED),
            trial("ref", 1000, 1.0, method="separable", dims=None, role=Role.REFERENCE),
        )  # fmt: skip

    @pytest.mark.parametrize(("pick", "limits", "expected"), [
        ("best", Limits(), "ba"), ("best", Limits(params=100), "aa"), ("smallest", Limits(), "ab"),
        ("smallest", Limits(error=5.0), "aa"), ("best", Limits(params=99, error=7.5), "ab"),
    ])  # fmt: skip
    def test_within_the_limits(self, pick, limits, expected):
        assert choose_trial(self.study(), pick, limits).trial_id == expected

    def test_without_a_trial_within_the_limits_the_nearest_is_named(self):
        message = (
            r"no completed trial has at most 20 parameters: the smallest has 50 parameters \(7.00 %\), the best 2.00"
        )
        with pytest.raises(InputError, match=message):
            choose_trial(self.study(), "best", Limits(params=20))

    def test_a_setting_counts_by_its_mean_and_its_exported_seed_by_its_own_error(self):
        seeds = [trial(f"seed{seed}", 100, error, seed=seed) for seed, error in enumerate((40.0, 2.0, 3.0))]
        trials = study(*seeds, trial("other", 100, 18.0, dims=3))
        assert choose_trial(trials, "best", Limits()).trial_id == "seed0"  # 15 % in the mean
        assert choose_trial(trials, "best", Limits(error=20.0)).trial_id == "other"
        lucky = [trial(f"seed{seed}", 100, error, seed=seed) for seed, error in enumerate((2.0, 40.0, 3.0))]
        with pytest.raises(InputError, match=r"the best 2.00 %, mean of 3 seeds 15.00 % \(100 parameters\)"):
            choose_trial(study(*lucky), "best", Limits(error=10.0))

    def test_by_the_beginning_of_an_id(self):
        trials = study(trial("abcd01", 100, 5.0), trial("abcd02", 50, 7.0), trial("ef0102", 10, 1.0, method="separable",
                       dims=None, role=Role.REFERENCE))  # fmt: skip
        assert find_completed(trials, "ef01").trial_id == "ef0102"
        with pytest.raises(InputError, match=r"must be the id of one completed trial of .*; found: abcd01, abcd02"):
            find_completed(trials, "abcd")
        with pytest.raises(InputError, match="at least 4 characters of its id, but got 'ef'"):
            find_completed(trials, "ef")
        with pytest.raises(InputError, match="found: none"):
            find_completed(self.study(), "stopped")


class TestMerged:
    def specification(self):
        return ModelSpecification(
            network={"name": "resnet9", "width": 0.125},
            method=choose_method(), image_shape=(1, 8, 8), classes=10,
        )  # fmt: skip

    def test_a_saved_merged_network_loads(self, tmp_path):
        specification = self.specification()
        model = specification.build().eval()
        save_merged(tmp_path / "m.safetensors", merged_network(model), specification, combined=False)
        images = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(load_merged(tmp_path / "m.safetensors")(images), model(images), atol=1e-5)

    def test_a_structured_file_is_refused(self, tmp_path):
        specification = self.specification()
        save_tensors(tmp_path / "m.safetensors", specification.build().state_dict(), specification.metadata())
        with pytest.raises(InputError, match="holds a structured model"):
            load_merged(tmp_path / "m.safetensors")

    def test_tensors_of_another_network_are_refused(self, tmp_path):
        specification = self.specification()
        save_merged(tmp_path / "m.safetensors", torch.nn.Linear(2, 2), specification, combined=True)
        with pytest.raises(InputError, match="its settings describe 103,800 parameters, but it stores 6 numbers"):
            load_merged(tmp_path / "m.safetensors")

    def test_merging_does_not_change_the_original_and_counts_its_mult_adds(self):
        specification = self.specification()
        model = specification.build()
        before = copy.deepcopy(model.state_dict())
        merged = merged_network(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert running_mult_adds(merged, specification) == specification.mult_adds()


def choose_method():
    from lowrank.layers import TensorTrain

    return TensorTrain(dims=3, rank_scale=0.3)


@pytest.mark.parametrize(("median", "busy"), [(1.9, False), (2.5, True)])
def test_a_machine_that_delays_half_of_the_repeats_is_called_busy(median, busy):
    idle = Latency(name="a", batch=1, median_ms=1.0, fastest_ms=0.9, slowest_ms=9.0, repeats=5)
    other = Latency(name="b", batch=1, median_ms=median, fastest_ms=1.0, slowest_ms=9.0, repeats=5)
    line = describe_machine([idle, other])
    assert ("busy with other work: a median is 2.5 times the fastest repeat" in line) == busy
    assert line.startswith(describe_machine())


def test_latencies_are_measured_in_turn():
    calls: list[str] = []

    def recorder(name):
        def forward(images):
            calls.append(f"{name}{len(images)}")
            return images

        return forward

    latencies = measure_latency({name: recorder(name) for name in "ab"}, (1, 2, 2), batches=(1, 3), seconds=0.0)
    assert [(latency.name, latency.batch, latency.repeats) for latency in latencies] == [
        ("a", 1, 5), ("b", 1, 5), ("a", 3, 5), ("b", 3, 5),
    ]  # fmt: skip
    assert calls == ["a1", "b1"] * 7 + ["a3", "b3"] * 7
    assert all(latency.fastest_ms <= latency.median_ms <= latency.slowest_ms for latency in latencies)
