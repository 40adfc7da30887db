"""Exported files: each has the network's outputs, says what it takes, and none is missed without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import onnx
import pytest
import torch

from lowrank.deployment import formats
from lowrank.deployment.card import CardContent, render_card
from lowrank.deployment.formats import Export, ExportedFile, check_opset, export_formats, split_batches
from lowrank.errors import InputError
from lowrank.io import ImagePreprocessing, ModelSpecification, find_preprocessing, parse_preprocessing
from lowrank.layers import Dense
from tests.support.environment import python_path

OWN = "tests.support.own_teacher:network"
ROOT = Path(__file__).resolve().parents[3]
SPECIFICATION = ModelSpecification(network={"name": OWN}, method=Dense(), image_shape=(3, 8, 8), classes=4)
PREPROCESSING = ImagePreprocessing(
    mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 0.125), image_size=8, crop=0.875, interpolation="bicubic",
    classes=("a, b", "<c>", "```", "ü"), source="a test",
)  # fmt: skip
IMAGES, LABELS = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 4


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SPECIFICATION.build().eval()


@pytest.fixture
def only_tensors(monkeypatch):
    """Leaves the exporters out, which take seconds: other forms are the network itself."""
    for name in ("_write_program", "_write_onnx"):
        monkeypatch.setattr(formats, name, lambda *arguments: arguments[-1].write_bytes(b"file"))
    torch.manual_seed(0)
    model = SPECIFICATION.build().eval()
    for name in ("_read_program", "onnx_forward"):
        monkeypatch.setattr(formats, name, lambda path: model)


def make_card(export: Export) -> str:
    content = CardContent(
        title="a network", quality=["good"], introduction=[], images="ten images", specification=SPECIFICATION,
        preprocessing=PREPROCESSING, export=export, latencies=[], machine="a machine", date="2026-11-29",
    )  # fmt: skip
    return render_card(content)


@pytest.mark.slow  # exporters and a process of its own take a quarter of a minute
def test_a_network_of_ones_own_loads_by_the_lines_of_its_card(network, tmp_path):
    export = export_formats(
        network, SPECIFICATION, split_batches(IMAGES, LABELS, 4), tmp_path, str, preprocessing=PREPROCESSING, opset=20
    )  # fmt: skip
    assert export.problems == []
    assert len(export.files) == 6
    for kind in ("factorised", "merged"):
        model = onnx.load(tmp_path / f"{kind}.onnx")
        assert (model.opset_import[0].version, model.ir_version) == (20, 9)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert parse_preprocessing(metadata, kind) == PREPROCESSING
        assert json.loads(metadata["classes"]) == list(PREPROCESSING.classes)
        assert find_preprocessing(tmp_path / f"{kind}.safetensors") == PREPROCESSING
        extra = {"preprocessing.json": ""}
        torch.export.load(tmp_path / f"{kind}.pt2", extra_files=extra)
        assert ImagePreprocessing(**json.loads(extra["preprocessing.json"])) == PREPROCESSING
    card = make_card(export)
    assert "opset 20 and IR version 9; the oldest ONNX Runtime that reads them is 1.17" in card
    assert "LOWRANK_ALLOW_CODE=1" in card
    code = card.partition("```python\n")[2].partition("\n```")[0]
    assert f"trusted_network='{OWN}'" in code
    ran = subprocess.run(
        [sys.executable, "-c", code + "\nprint(tuple(logits.shape))"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": python_path()}, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "(1, 4)\n"), ran.stderr


def test_images_are_taken_one_batch_after_the_other(network, only_tensors, tmp_path):
    alive: list[weakref.ref[torch.Tensor]] = []

    def batches():
        for images, labels in split_batches(IMAGES, LABELS, 2):
            batch = images.clone()
            assert sum(reference() is not None for reference in alive) <= 1  # the one before, which the loop holds
            alive.append(weakref.ref(batch))
            yield batch, labels

    export = export_formats(network, SPECIFICATION, batches(), tmp_path, str)
    wrong = (network(IMAGES).argmax(1) != LABELS).double().mean()
    assert export.images == len(alive) * 2 == 10
    assert export.error == pytest.approx(100 * float(wrong))
    assert {file.error for file in export.files} == {export.error}


def test_what_cannot_be_written_is_named_and_the_rest_is_there(network, only_tensors, tmp_path, monkeypatch):
    def fail(*arguments):
        arguments[-1].write_bytes(b"half a file")
        raise RuntimeError("no operator\nfor this layer")

    monkeypatch.setattr(formats, "_write_onnx", fail)
    monkeypatch.setattr(formats, "_read_program", lambda path: lambda images: images.reshape(1, 2, 3))
    export = export_formats(network, SPECIFICATION, split_batches(IMAGES, None), tmp_path, str)
    assert [line.partition(":")[0] for line in export.problems] == [
        "factorised.onnx", "merged.onnx", "factorised.pt2", "merged.pt2",
    ]  # fmt: skip
    assert export.problems[0] == "factorised.onnx: not written: no operator for this layer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["factorised.safetensors", "merged.safetensors"]
    assert export.error is None
    card = make_card(export)
    assert "**factorised.onnx: not written: no operator for this layer**" in card
    assert "onnxruntime" not in card.partition("```python")[2]


class CountsByLen(torch.nn.Module):
    """Takes the number of images by `len`, as many networks with a class token do."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.zeros(1, 1, 3))
        self.head = torch.nn.Linear(3, 4)

    def forward(self, images):
        tokens = torch.cat([self.token.expand(len(images), -1, -1), images.flatten(2).transpose(1, 2)], 1)
        return self.head(tokens.mean(1))


class FixesTheBatch(CountsByLen):
    def forward(self, images):
        return super().forward(images)[torch.arange(int(str(images.shape[0])))]


def test_the_number_of_images_stays_open_where_the_code_takes_it_by_len():
    network = CountsByLen().eval()
    program = formats._trace(network, SPECIFICATION)
    torch.testing.assert_close(program.module()(IMAGES), network(IMAGES))


def test_code_that_fixes_the_number_of_images_is_told_what_to_change():
    reason = r"the number of images a constant \(4 where 4 images were tried\); use images.shape\[0\] as it is"
    with pytest.raises(ValueError, match=reason):
        formats._trace(FixesTheBatch().eval(), SPECIFICATION)


class Branching(torch.nn.Module):
    """Decides by the values of the images, which no exporter can record."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(192, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((2 * x if float(x.mean()) > 0 else x).flatten(1))


def test_a_network_that_cannot_be_recorded_is_one_error_and_nothing_else_is_printed(capfd):
    with pytest.raises(ValueError, match="data-dependent") as error:
        formats._trace(Branching().eval(), SPECIFICATION)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_no_failure_of_a_form(network, only_tensors, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "_write_onnx", fail)
    with pytest.raises(OSError, match="No space left"):
        export_formats(network, SPECIFICATION, split_batches(IMAGES, None), tmp_path, str)


def test_outputs_that_differ_are_named(network, only_tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "onnx_forward", lambda path: lambda images: network(images) + 1)
    monkeypatch.setattr(formats, "_read_program", lambda path: lambda images: network(images) * torch.nan)
    export = export_formats(network, SPECIFICATION, split_batches(IMAGES, LABELS), tmp_path, str)
    assert [file.file for file in export.files if file.matches] == ["factorised.safetensors", "merged.safetensors"]
    assert len(export.problems) == 4
    assert "factorised.onnx: its outputs differ from the network's by 1 (largest logit" in export.problems[1]


def test_a_network_whose_outputs_are_no_numbers_is_refused(network, only_tensors, tmp_path):
    with pytest.raises(InputError, match="its outputs are not finite numbers"):
        export_formats(network, SPECIFICATION, split_batches(IMAGES * torch.inf, None), tmp_path, str)


@pytest.mark.parametrize(
    ("values", "matches"),
    [
        ({"difference": 9e-3}, True),
        ({"difference": 2e-2}, False),
        ({"difference": 9e-4, "largest_logit": 5e-4}, False),  # relative to the logits, however small
        ({"difference": 9e-3, "widest_change": 9e-3}, True),  # a tie
        ({"difference": 9e-3, "widest_change": 1.8e-2}, False),
    ],
)
def test_outputs_match_up_to_rounding_and_classes_outside_of_ties(values, matches):
    fields = {
        "network": "merged", "kind": "ONNX", "file": "f", "bytes": 1, "largest_logit": 10.0, "agreement": 1.0,
        "error": None, "mult_adds": 1, **values,
    }  # fmt: skip
    assert ExportedFile(**fields).matches is matches


def test_the_margin_of_a_changed_class_is_measured():
    comparison = formats._Comparison()
    expected = torch.tensor([[1.0, 0.25, 0.0], [1.0, 0.9, 0.0]])
    comparison.add(torch.tensor([[0.0, 0.25, 0.0], [1.0, 0.9, 0.0]]), expected, torch.tensor([0, 0]))
    assert (comparison.widest_change, comparison.same_class, comparison.error) == (0.75, 1, 50.0)


def test_only_opsets_that_were_tried_are_written():
    check_opset(17)
    with pytest.raises(InputError, match=r"unknown opset '16'; choose from: 17, 18, .*, 23"):
        check_opset(16)


class MaximumPools(torch.nn.Module):
    """Pools to one pixel, as ResNet-9 does at its end, and to four."""

    def forward(self, images):
        return torch.nn.functional.adaptive_max_pool2d(images, 1), torch.nn.functional.adaptive_max_pool2d(images, 2)


def test_a_pool_to_one_pixel_is_exported_as_a_maximum_which_older_exporters_know():
    images = torch.randn(3, 2, 8, 8)
    program = torch.export.export(MaximumPools(), (images,))
    replaced = formats._replace_global_max_pools(program)
    operator = torch.ops.aten.adaptive_max_pool2d.default
    kept = [node for node in replaced.graph.nodes if node.target is operator]
    assert [tuple(node.args[1]) for node in kept] == [(2, 2)]
    torch.testing.assert_close(replaced.module()(images), MaximumPools()(images), rtol=0, atol=0)
    plain = torch.export.export(torch.nn.ReLU(), (images,))
    assert formats._replace_global_max_pools(plain) is plain
