"""Image files and folders are classified as the model itself says that images are prepared."""

from __future__ import annotations

import csv
import json

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


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them in a folder below, and files that are none."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    for index, name in enumerate(("b.png", "a.PNG", "more/c, d.png")):
        Image.fromarray(np.full((8, 8), 80 * index, np.uint8)).save(root / name)
    for name in ("notes.txt", ".hidden.png", ".DS_Store", "__MACOSX/x.png"):
        (root / name).write_bytes(b"no image")
    (root / "more" / "back").symlink_to(root)  # a folder within itself is read once
    return root


def test_all_images_of_folders_are_classified_as_if_each_were_named(model, folder, monkeypatch, capsys):
    monkeypatch.setattr("lowrank.predict.BATCH", 2)
    files = [str(folder / name) for name in ("a.PNG", "b.png", "more/c, d.png")]
    for path in files:
        assert main([str(model), path]) == 0
    alone = capsys.readouterr()
    assert alone.err == ""
    assert main([str(model), str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out == alone.out
    assert printed.err.splitlines() == [
        f"{folder}: not used: files that are no images by their names: 1 (notes.txt)",
        f"{folder}: not used: files and folders whose names start with a dot: 1 (.hidden.png)",
        "3 images classified",
    ]
    (folder / "more" / "back").unlink()
    assert main([str(model), files[1], str(folder / "more"), "--top", "2"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [files[1], files[2]]
    assert main([str(model), str(folder / "more")]) == 0
    assert capsys.readouterr().err == "1 image classified\n"


def test_a_table_and_json_have_a_row_for_each_class(model, folder, capsys):
    (folder / "b.png").write_bytes(b"no image")
    assert main([str(model), str(folder), "--top", "2", "--csv"]) == 1
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["file"], row["rank"]) for row in table] == [
        (str(folder / name), rank) for name in ("a.PNG", "more/c, d.png") for rank in "12"
    ]
    pixels = np.full((8, 8), 80, np.uint8)
    assert [int(row["class"]) for row in table[:2]] == [number for number, _ in likeliest(model, pixels)[:2]]
    assert float(table[0]["probability"]) == pytest.approx(likeliest(model, pixels)[0][1] / 100, abs=1e-5)
    assert main([str(model), str(folder), "--top", "2", "--json"]) == 1
    printed = capsys.readouterr()
    first, broken, last = json.loads(printed.out)["predictions"]
    assert [entry["class"] for entry in first["classes"]] == [row["class"] for row in table[:2]]
    assert (last["file"], last["error"]) == (str(folder / "more/c, d.png"), None)
    assert (broken["file"], broken["classes"]) == (str(folder / "b.png"), [])
    assert "must be a readable image" in broken["error"]
    assert "2 images classified, 1 could not be" in printed.err


def test_a_folder_without_images_is_named_and_the_others_are_classified(model, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (folder / "more" / "back").unlink()
    assert main([str(model), str(tmp_path / "empty"), str(folder / "more")]) == 1
    printed = capsys.readouterr()
    assert f"error: {tmp_path / 'empty'}: the folder must hold images, but has none" in printed.err
    assert printed.out.startswith(str(folder / "more"))


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
