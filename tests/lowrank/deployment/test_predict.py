"""Image files are classified as the model itself says that images are prepared."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, load_data
from lowrank.layers import Dense
from lowrank.networks.registry import NetworkSettings
from lowrank.predict import main
from lowrank.serving import load_classifier, read_preprocessing, save_classifier
from tests.support.models import describe

OWN = "tests.support.own_teacher:network"


def write_model(folder, name: str):
    data = load_data(DataSettings(name="digits", train_images=200))
    settings = NetworkSettings(name=name, width=1.0 if ":" in name else 0.125)
    plan = network_plan(settings, data.image_shape, 10)
    network = build_student(settings, plan, Dense(), data.image_shape, 10, seed=0)
    save_classifier(folder, network, data, describe(settings, Dense(), data))
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", "resnet9")


def likeliest(model, pixels: np.ndarray, **options) -> list[tuple[int, float]]:
    logits = load_classifier(model, **options).predict(pixels[None, None])[0].astype(float)
    shares = np.exp(logits) / np.exp(logits).sum()
    return [(int(index), 100 * float(shares[index])) for index in np.argsort(-shares)]


def test_each_file_gets_a_line_with_classes_and_probabilities(model, tmp_path, capsys):
    pixels = read_preprocessing(model).example_batch()[0, 0]
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(pixels).save(small)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).convert("RGB").save(large)
    assert main([str(model), str(small), str(large), "--top", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    (one, share), (two, other), *_ = likeliest(model, pixels)
    assert first == f"{small}: {one} {share:.1f} %, {two} {other:.1f} %"
    assert second.startswith(f"{large}: ")  # cropped and resized to 8 x 8
    (tmp_path / "names").write_text("\n".join(f"digit {number}" for number in range(10)))
    assert main([str(model / "model.safetensors"), str(small), "--class-names", str(tmp_path / "names")]) == 0
    assert capsys.readouterr().out == f"{small}: digit {one} {share:.1f} %\n"


def test_a_file_that_is_no_image_is_named_and_the_others_are_classified(model, tmp_path, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(good)
    bad.write_bytes(b"no image")
    assert main([str(model), str(bad), str(tmp_path / "absent.png"), str(good)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{good}: ")
    assert f"error: {bad}: must be a readable image" in printed.err
    assert f"error: {tmp_path / 'absent.png'} cannot be read: No such file or directory" in printed.err


def test_what_is_wrong_with_the_command_is_one_line(model, tmp_path, capsys):
    (tmp_path / "names").write_text("one\ntwo")
    for options, message in (
        ([str(tmp_path / "absent"), "x.png"], "there is no model file"),
        ([str(model.parent / "absent"), "x.png"], f"absent; there are {model}"),
        ([str(model.parent), "x.png"], f"there are {model}"),
        ([str(model), "x.png", "--top", "0"], "--top must be at least 1, but got 0"),
        ([str(model), "x.png", "--class-names", str(tmp_path / "names")], "must have 10 names, one for each output"),
    ):
        assert main(options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_network_of_ones_own_needs_a_word(tmp_path, capsys):
    model, image = write_model(tmp_path / "own", OWN), tmp_path / "image.png"
    pixels = np.full((8, 8), 99, np.uint8)
    Image.fromarray(pixels).save(image)
    assert main([str(model), str(image)]) == 2
    assert f"{model} names code to run, the network {OWN!r}; --allow-code allows it" in capsys.readouterr().err
    assert main([str(model), str(image), "--allow-code"]) == 0
    number, share = likeliest(model, pixels, trusted_network=OWN)[0]
    assert capsys.readouterr().out == f"{image}: {number} {share:.1f} %\n"
    assert main([str(model), str(image), "--network", OWN]) == 0
    assert capsys.readouterr().out == f"{image}: {number} {share:.1f} %\n"
    assert main([str(model), str(image), "--network", "another:make"]) == 2
    assert f"it names code to run, the network {OWN!r}" in capsys.readouterr().err
