from __future__ import annotations

import pytest

from analysis.model_export.model_card import Preprocessing, Proof, model_card
from analysis.stats.front import collect_points
from lowrank.deployment.formats import ExportedFile
from lowrank.deployment.latency import Latency
from lowrank.io.model_file import ModelSpecification
from lowrank.layers import TensorTrain
from tests.support.synthetic_data import study, trial


@pytest.fixture
def proof():
    return make_proof()


def make_proof() -> Proof:
    """What was measured of a trial that never was exported."""
    files = tuple(
        ExportedFile(
            network=network, kind=kind, file=f"{network}.{ending}", bytes=12_345, difference=1e-6, largest=10.0,
            agree=1.0, error=3.5, mult_adds=5_000,
        )
        for network in ("factorised", "merged") for kind, ending in (("safetensors", "safetensors"), ("ONNX", "onnx"))
    )  # fmt: skip
    latencies = tuple(
        Latency(name=name, batch=batch, median_ms=1.234, fastest_ms=1.0, slowest_ms=2.0, repeats=50 // batch)
        for batch in (1, 10)
        for name in ("factorised", "dense")
    )
    return Proof(
        study="made", trial_id="abcd01", setting="CP", params=100, images="the 360 validation images", forms=files,
        sizes={"factorised": 10_000}, mult_adds={"factorised": 7_000}, latencies=latencies, machine="CPU, 1 thread",
        date="2026-01-01",
    )  # fmt: skip


def card(proof, preprocessing=None, **header):
    record = study(trial("abcd01", 100, 5.0), **header)
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


def test_paragraphs_are_apart_by_one_blank_line(proof):
    assert "\n\n\n" not in card(proof)
    assert card(proof).startswith("# resnet9 of width 0.125, CP, 2 dims\n\nTrial `abcd01` of the study `made`")


def test_classes_and_questions_cannot_write_tags(proof):
    preprocessing = Preprocessing(mean=[0.1], std=[0.2], classes=["a", "it's <b>"])
    text = card(proof, preprocessing, question="<script> & more?", command="python x --set 'a=1'")
    assert "Outputs, in this order: a, it's &lt;b&gt;." in text
    assert "&lt;script&gt; &amp; more?" in text
    assert "* command: python x --set 'a=1'\n" in text  # a command is copied as it is
    assert "mean, std = torch.tensor([0.1]), torch.tensor([0.2])" in text


def test_without_the_data_set_nothing_is_said_of_means_and_classes(proof):
    text = card(proof)
    assert "mean" not in text
    assert "Outputs, in this order" not in text
