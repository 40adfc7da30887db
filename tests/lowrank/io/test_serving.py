"""A classifier kept as plain data answers as the network does on the batches of the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, eval_batches, load_data
from lowrank.errors import InputError
from lowrank.layers import TensorTrain
from lowrank.networks.registry import NetworkSettings
from lowrank.serving import IMAGES_FILE, MODEL_FILE, _load_pyfunc, save_classifier

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
    save_classifier(tmp_path / "model", network, data, settings=SETTINGS, method=METHOD)
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
    assert np.array_equal(classifier.preprocessing.example_batch(), raw[:1])


def test_the_folder_contains_no_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == [IMAGES_FILE, MODEL_FILE]


def test_images_of_another_shape_are_an_error_of_one_line(folder):
    with pytest.raises(InputError, match=r"images must be \(B, 1, 8, 8\), but got \(2, 8, 8, 1\)"):
        _load_pyfunc(str(folder)).predict(np.zeros((2, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "must hold one JSON object"), ("{}", "mean` is missing")],
)
def test_a_damaged_folder_is_an_error_of_one_line(folder, content, message):
    (folder / IMAGES_FILE).write_text(content)
    with pytest.raises(InputError, match=message):
        _load_pyfunc(str(folder))
    (folder / MODEL_FILE).unlink()
    with pytest.raises(InputError, match="there is no model file"):
        _load_pyfunc(str(folder))


def test_settings_of_another_network_are_refused(tmp_path, data, network):
    with pytest.raises(InputError, match="the settings describe a model of"):
        save_classifier(tmp_path, network, data, settings=SETTINGS, method=TensorTrain(dims=2, rank_scale=0.5))
