from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.model_export.model_card import Proof, model_card
from analysis.stats.front import collect_points
from lowrank.deployment.formats import Export, ExportedFile
from lowrank.deployment.latency import Latency
from lowrank.io.image_preprocessing import ImagePreprocessing
from lowrank.io.model_file import ModelSpecification
from lowrank.layers import TensorTrain
from tests.support.synthetic_data import study, trial


@pytest.fixture
def proof():
    return make_proof()


def make_proof(measured: float | None = 3.5, recorded: float = 3.5, images: int = 360, here: bool = True) -> Proof:
    """What was measured of a trial that never was exported."""
    files = tuple(
        ExportedFile(
            network=network, kind=kind, file=f"{network}.{ending}", bytes=12_345, difference=1e-6, largest_logit=10.0,
            agreement=1.0, error=measured, mult_adds=5_000,
        )
        for network in ("factorised", "merged") for kind, ending in (("safetensors", "safetensors"), ("ONNX", "onnx"))
    )  # fmt: skip
    latencies = tuple(
        Latency(name=name, batch=batch, median_ms=1.234, fastest_ms=1.0, slowest_ms=2.0, repeats=50 // batch)
        for batch in (1, 10)
        for name in ("factorised", "dense")
    )
    return Proof(
        study="made", trial_id="abcd01", setting="CP", params=100, images=f"the {images:,} validation images",
        export=Export(files=files, failures=(), images=images, error=measured, opset=18), recorded_error=recorded,
        trained_here=here, sizes={"factorised": 10_000}, mult_adds={"factorised": 7_000}, latencies=latencies,
        machine="CPU, 1 thread", date="2026-01-01",
    )  # fmt: skip


def card(proof, preprocessing=None, trials=None, **header):
    record = study(*(trials or [trial("abcd01", 100, 5.0)]), **header)
    specification = ModelSpecification(
        network={"name": "resnet9", "width": 0.125}, method=TensorTrain(dims=3, rank_scale=0.3), image_shape=(1, 8, 8),
        classes=10,
    )  # fmt: skip
    return model_card(record, collect_points(record)[0], specification, proof, preprocessing)


def test_tables_have_a_row_for_each_file_and_each_network(proof):
    text = card(proof)
    assert "| `merged.onnx` | 12,345 | 1e-06 | 100.0 % | 3.50 % | 5,000 |\n" in text
    assert "| network | bytes | mult-adds | batch 1, ms | batch 10, ms |\n|---|---|---|---|---|\n" in text
    assert "| factorised | 10,000 | 7,000 | 1.23 | 1.23 |\n| dense |  |  | 1.23 | 1.23 |\n" in text
    assert "Medians of repeats (50 at batch 1, 5 at batch 10), CPU, 1 thread, 2026-01-01" in text


def test_the_error_of_the_files_comes_first(proof):
    seeds = [trial(f"abcd0{seed}", 100, error, seed=seed) for seed, error in enumerate((3.5, 2.0, 5.0))]
    lines = card(proof, trials=seeds).splitlines()
    assert lines[0] == "# resnet9 of width 0.125, CP, 2 dims"
    assert lines[2].startswith("Validation error of these files: 3.50 %, measured on the 360 validation images (95 %")
    assert lines[4] == "Mean over the 3 seeds of this setting: 3.50 %, deviation 1.50."


def test_paragraphs_are_apart_by_one_blank_line(proof):
    assert "\n\n\n" not in card(proof)
    assert "\n\nTrial abcd01 of the study made.\n\n" in card(proof)


def test_classes_and_questions_cannot_write_tags(proof):
    preprocessing = ImagePreprocessing(mean=(0.1,), std=(0.2,), classes=("a", "it's <b>\n## x"), source="a test")
    text = card(proof, preprocessing, question="<script> & more?", command="python x --set 'a=1'")
    assert '\n["a", "it\'s \\u003cb>\\n## x"]\n' in text
    assert "&lt;script&gt; &amp; more?" in text
    assert "* command: python x --set 'a=1'\n" in text  # a command is copied as it is
    assert "mean, std = torch.tensor([0.1]), torch.tensor([0.2])" in text


def test_every_step_from_an_image_to_an_input_is_said(proof):
    preprocessing = ImagePreprocessing(
        mean=(0.0,), std=(1.0,), image_size=8, crop=0.875, interpolation="bicubic", value_range=(-1.0, 1.0),
        source="timm",
    )  # fmt: skip
    text = card(proof, preprocessing)
    assert "(timm):\n\n* middle square, 87.5 % of the shorter side, resized to 8 x 8 pixels (bicubic)\n" in text
    assert "* values: 0 to 255 become -1 to 1\n" in text
    assert "images = (pixels / 255 * 2 + -1 - mean" in text


def test_without_the_data_set_nothing_is_said_of_means_and_classes(proof):
    text = card(proof)
    assert "How images are normalised is not on record" in text
    assert "mean, std" not in text
    assert "Outputs, in this order" not in text


@pytest.mark.parametrize(
    ("measured", "images", "here", "sound"),
    [
        (3.5, 360, True, True),
        (3.5 + 100 / 360, 360, True, False),  # one image of 360
        (3.5 + 100 / 360, 360, False, True),  # which another processor may round otherwise
        (3.6, 1000, True, True),
        (3.7, 1000, True, False),
        (89.5, 360, False, False),
        (None, 256, True, True),  # random images have no error
    ],
)
def test_another_error_than_the_recorded_one_is_a_problem(measured, images, here, sound):
    proof = make_proof(measured, 3.5, images, here)
    assert (proof.problems == []) is sound
    if not sound:
        assert f"has {measured:.2f} % validation error, but the study recorded 3.50 %" in proof.problems[0]
        assert proof.problems[0] in card(proof)


def test_the_record_of_a_proof_keeps_its_keys(proof):
    failed = replace(proof, export=replace(proof.export, failures=("merged.pt2: not written: why",)))
    record = failed.as_record()
    assert {"network", "kind", "file", "bytes", "difference", "largest", "agree", "error", "mult_adds"} <= set(
        record["forms"][0]
    )
    assert record["equal"] is True
    assert record["problems"] == ["merged.pt2: not written: why"]
