"""A classifier kept as plain data answers as the network does on the batches of the training loop."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, eval_batches, load_data
from lowrank.errors import InputError
from lowrank.layers import Dense, TensorTrain
from lowrank.networks.registry import NetworkSettings
from lowrank.serving import (
    IMAGES_FILE,
    MODEL_FILE,
    _load_pyfunc,
    load_classifier,
    read_preprocessing,
    save_classifier,
)
from tests.support.models import describe

SETTINGS = NetworkSettings(name="resnet9", width=0.125)
METHOD = TensorTrain(dims=3, rank_scale=0.5)


@pytest.fixture(scope="module")
def data():
    return load_data(DataSettings(name="digits", train_images=200))


@pytest.fixture(scope="module")
def network(data):
    plan = network_plan(SETTINGS, data.image_shape, len(data.classes))
    return build_student(SETTINGS, plan, METHOD, data.image_shape, len(data.classes), seed=0).eval()


@pytest.fixture
def folder(tmp_path, data, network):
    save_classifier(tmp_path / "model", network, data, describe(SETTINGS, METHOD, data))
    return tmp_path / "model"


def test_raw_images_give_the_logits_of_the_training_loop(folder, data, network):
    classifier = _load_pyfunc(str(folder))
    images, *_ = next(iter(eval_batches(data, "val", "cpu", 16)))
    with torch.no_grad():
        expected = network(images).numpy()
    raw = data.val.decode(torch.arange(16)).permute(0, 3, 1, 2).numpy()
    logits = classifier.predict(raw)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert classifier.preprocessing.classes == data.classes
    alone = load_classifier(folder / MODEL_FILE)  # the file holds what it expects of an image too
    assert np.array_equal(alone.predict(raw), logits)
    assert alone.preprocessing.classes == data.classes
    assert np.array_equal(classifier.preprocessing.example_batch(), raw[:1])


def test_the_folder_contains_no_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == [IMAGES_FILE, MODEL_FILE]


def test_images_of_another_shape_are_an_error_of_one_line(folder):
    with pytest.raises(InputError, match=r"images must be \(B, 1, 8, 8\), but got \(2, 8, 8, 1\)"):
        _load_pyfunc(str(folder)).predict(np.zeros((2, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_images_of_another_dtype_are_refused(folder, dtype):
    with pytest.raises(InputError, match=f"images must be uint8, values from 0 to 255, but got {dtype}"):
        _load_pyfunc(str(folder)).predict(np.zeros((2, 1, 8, 8), dtype))


def test_a_folder_of_an_older_version_is_read(folder):
    content = json.loads((folder / IMAGES_FILE).read_text())
    older = {name: content[name] for name in ("mean", "std", "classes", "example")}
    example = np.array([content["example"]], np.uint8)
    expected = load_classifier(folder).predict(example)
    (folder / IMAGES_FILE).write_text(json.dumps(older))
    assert np.array_equal(load_classifier(folder).predict(example), expected)


def test_a_failed_write_leaves_the_older_folder(folder, data, network, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("lowrank.serving.write_model", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    other = replace(data, mean=(0.9,))
    with pytest.raises(OSError, match="disk full"):
        save_classifier(folder, network, other, describe(SETTINGS, METHOD, other))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_example_comes_from_memory(tmp_path, data, network, monkeypatch):
    expected = data.val.images[0].permute(2, 0, 1).numpy()
    monkeypatch.setattr(type(data.val), "decode", lambda *_: pytest.fail("the files may have gone"))
    save_classifier(tmp_path / "model", network, data, describe(SETTINGS, METHOD, data))
    assert np.array_equal(read_preprocessing(tmp_path / "model").example_batch()[0], expected)


def test_a_network_of_ones_own_is_served_where_the_environment_allows_it(tmp_path, data, monkeypatch):
    settings = NetworkSettings(name="tests.support.own_teacher:network")
    plan = network_plan(settings, data.image_shape, len(data.classes))
    network = build_student(settings, plan, Dense(), data.image_shape, len(data.classes), seed=0).eval()
    save_classifier(tmp_path / "own", network, data, describe(settings, Dense(), data))
    with pytest.raises(
        InputError, match=r"own names code to run, the network .*; LOWRANK_ALLOW_CODE=1 in the environment allows"
    ):
        _load_pyfunc(str(tmp_path / "own"))
    monkeypatch.setenv("LOWRANK_ALLOW_CODE", "1")
    images = read_preprocessing(tmp_path / "own").example_batch()
    expected = load_classifier(tmp_path / "own", trusted_network=settings.name).predict(images)
    assert np.array_equal(_load_pyfunc(str(tmp_path / "own")).predict(images), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "must hold one JSON object"), ("{}", "mean` is missing")],
)
def test_a_damaged_folder_is_an_error_of_one_line(folder, content, message):
    (folder / IMAGES_FILE).write_text(content)
    with pytest.raises(InputError, match=message):
        _load_pyfunc(str(folder))
    (folder / MODEL_FILE).unlink()
    with pytest.raises(InputError, match=r"there is no model file [^;]*$"):
        _load_pyfunc(str(folder))


def test_a_folder_of_an_export_and_its_other_forms_name_the_files_to_read(tmp_path):
    for name in ("factorised.safetensors", "merged.safetensors", "factorised.onnx"):
        (tmp_path / name).write_bytes(bytes([8]) * 100)
    models = f"; there are {tmp_path}/factorised.safetensors, {tmp_path}/merged.safetensors"
    for path, message in (
        (tmp_path, f"there is no model file {tmp_path / MODEL_FILE}{models}"),
        (tmp_path / "factorised.onnx", f"{tmp_path}/factorised.onnx is no safetensors file{models}"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            load_classifier(path)
    with pytest.raises(InputError, match=r"factorised.safetensors is damaged: "):
        load_classifier(tmp_path / "factorised.safetensors")


def test_settings_of_another_network_are_refused(tmp_path, data, network):
    with pytest.raises(InputError, match="the settings describe a model of"):
        save_classifier(tmp_path, network, data, describe(SETTINGS, TensorTrain(dims=2, rank_scale=0.5), data))
