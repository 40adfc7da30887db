"""What weights expect of an image is read from where torchvision, timm and Hugging Face say it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lowrank.data import DataSettings
from lowrank.errors import InputError
from lowrank.io import preprocessing
from lowrank.io.image_preprocessing import ImagePreprocessing, override_preprocessing
from lowrank.io.preprocessing import (
    find_preprocessing,
    network_preprocessing,
    read_class_names,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# https://huggingface.co/timm/resnet18.a1_in1k
TIMM_RESNET18 = {
    "url": "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/resnet18_a1_0-d63eafa0.pth",
    "hf_hub_id": "timm/resnet18.a1_in1k", "architecture": "resnet18", "tag": "a1_in1k", "custom_load": False,
    "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "fixed_input_size": False,
    "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000, "pool_size": [7, 7],
    "first_conv": "conv1", "classifier": "fc",
}  # fmt: skip
# https://huggingface.co/microsoft/resnet-18
HF_RESNET18 = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
# https://huggingface.co/google/vit-base-patch16-224
HF_VIT = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
# https://huggingface.co/facebook/deit-base-patch16-224
HF_DEIT = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
    "size": {"height": 256, "width": 256},
}  # fmt: skip
# https://huggingface.co/apple/mobilevit-small
HF_MOBILEVIT = {
    "crop_size": 256, "do_center_crop": True, "do_flip_channel_order": True, "do_resize": True, "resample": 2,
    "size": 288, "do_normalize": False,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(1)}, path)
    return path


def beside(path: Path, name: str, content: Any) -> Path:
    (path.parent / name).write_text(json.dumps(content))
    return path


def found(path: Path) -> ImagePreprocessing:
    preprocessing = find_preprocessing(path)
    assert preprocessing is not None
    return preprocessing


@pytest.mark.parametrize("prefix", ["", "torchvision:"])
def test_torchvisions_weights_by_name(prefix):
    expected = found(f"{prefix}resnet18/IMAGENET1K_V1")
    assert (expected.mean, expected.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (expected.image_size, expected.crop, expected.interpolation) == (224, 0.875, "bilinear")
    assert expected.classes is not None
    assert (len(expected.classes), expected.classes[0]) == (1000, "tench")
    assert expected.source == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    large = found(f"{prefix}efficientnet_b4/DEFAULT")
    assert (large.image_size, large.crop, large.interpolation) == (380, 380 / 384, "bicubic")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "resnet18/IMAGENET",
            "unknown weights of torchvision:resnet18 .* 'IMAGENET'; choose from: DEFAULT, IMAGENET1K",
        ),
        ("resnet18", "unknown weights of torchvision:resnet18"),
        ("torchvision:resnet/DEFAULT", "unknown torchvision network 'resnet'"),
        ("none.pth", "there is no file none.pth, and no such weights of torchvision"),
    ],
)
def test_unknown_references(reference, message):
    with pytest.raises(InputError, match=message) as caught:
        find_preprocessing(reference)
    assert "\n" not in str(caught.value)


def test_a_file_that_torchvision_downloaded_is_recognised(tmp_path, monkeypatch):
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save({"weight": torch.ones(1)}, path)
    assert find_preprocessing(path) is None  # another content under that name
    monkeypatch.setattr(preprocessing, "file_hash", lambda path: "f37072fd" + 56 * "0")
    assert found(path) == found("resnet18/IMAGENET1K_V1")


def test_timms_config_beside_the_file(weights):
    content = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": TIMM_RESNET18}
    expected = found(beside(weights, "config.json", content))
    assert (expected.mean, expected.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (expected.image_size, expected.crop, expected.interpolation) == (224, 0.95, "bicubic")
    assert expected.classes is None
    assert expected.source == f"`pretrained_cfg` of {weights.parent / 'config.json'}"
    assert find_preprocessing(weights.parent) == expected
    beside(weights, "config.json", {**content, "label_names": ["a", "b"]})
    assert found(weights).classes == ("a", "b")


def test_timms_settings_in_the_file_and_in_the_model_object(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(1)}, path, {"pretrained_cfg": json.dumps({**TIMM_RESNET18, "crop_mode": "squash"})})
    expected = found(path)
    assert (expected.image_size, expected.crop, expected.resize) == (224, 1.0, "squash")
    assert expected.source.endswith("(crop_mode squash, here without its crop_pct of 0.95)")
    save_file(
        {"weight": torch.ones(1)}, path,
        {"pretrained_cfg": json.dumps({**TIMM_RESNET18, "crop_pct": 1.0, "crop_mode": "border"})},
    )  # fmt: skip
    assert (found(path).resize, found(path).source) == ("pad", f"`pretrained_cfg` of {path}")
    save_file({"weight": torch.ones(1)}, path, {"pretrained_cfg": json.dumps({**TIMM_RESNET18, "crop_mode": "mosaic"})})
    assert found(path).source.endswith("(crop_mode mosaic, here the middle square)")
    network = nn.Linear(1, 1)
    assert network_preprocessing(network) is None
    for settings in (TIMM_RESNET18, SimpleNamespace(**TIMM_RESNET18)):
        network.pretrained_cfg = settings
        expected = network_preprocessing(network)
        assert expected is not None
        assert (expected.mean, expected.crop) == (IMAGENET_MEAN, 0.95)


@pytest.mark.parametrize(
    ("content", "size", "crop", "resize", "interpolation", "data_std"),
    [
        (HF_RESNET18, 224, 0.875, "crop", "bicubic", IMAGENET_STD),
        (HF_VIT, 224, 1.0, "squash", "bilinear", (0.5, 0.5, 0.5)),
        (HF_DEIT, 224, 0.875, "crop", "bicubic", IMAGENET_STD),
        ({**HF_MOBILEVIT, "do_flip_channel_order": False}, 256, 256 / 288, "crop", "bilinear", (1.0, 1.0, 1.0)),
        (
            {**HF_DEIT, "size": {"shortest_edge": 232}, "crop_size": 224},
            224,
            224 / 232,
            "crop",
            "bicubic",
            IMAGENET_STD,
        ),
        ({**HF_RESNET18, "size": {"shortest_edge": 384}}, 384, 1.0, "squash", "bicubic", IMAGENET_STD),
        ({"do_resize": False, "do_rescale": False}, None, 1.0, "crop", "bilinear", (1 / 255,) * 3),
    ],
)
def test_hugging_faces_processors(weights, content, size, crop, resize, interpolation, data_std):
    expected = found(beside(weights, "preprocessor_config.json", content))
    assert (expected.image_size, expected.crop, expected.interpolation) == (size, crop, interpolation)
    assert expected.resize == resize
    fields = expected.data_fields()
    assert fields["std"] == pytest.approx(data_std)
    settings = DataSettings(name="folder:images", **fields)
    assert (settings.image_size, settings.crop, settings.resize) == (size, crop, resize)


def test_values_of_another_range_become_those_of_the_data(weights):
    content = {**HF_VIT, "rescale_factor": 1 / 127.5, "offset": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    expected = found(beside(weights, "preprocessor_config.json", content))
    assert expected.value_range == pytest.approx((-1, 1))
    fields = expected.data_fields()
    assert (fields["mean"], fields["std"]) == (pytest.approx((0.5,) * 3), pytest.approx((0.5,) * 3))


def test_another_order_of_channels_is_refused_by_the_data(weights):
    expected = found(beside(weights, "preprocessor_config.json", HF_MOBILEVIT))
    assert expected.channel_order == "bgr"
    with pytest.raises(InputError, match=r"images are read as rgb, but .* says bgr; reverse the input channels"):
        expected.data_fields()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        (None, None),
    ],
)
def test_hugging_faces_names_of_classes(weights, labels, classes):
    beside(weights, "config.json", {"id2label": labels} if labels else {})
    assert found(beside(weights, "preprocessor_config.json", HF_VIT)).classes == classes


def test_a_classifier_of_this_library(weights):
    content = {"mean": [0.3], "std": [0.4], "classes": ["a", "b"], "example": [[[0, 1], [2, 3]]]}
    expected = found(beside(weights, "images.json", content))
    assert (expected.mean, expected.std, expected.image_size, expected.classes) == ((0.3,), (0.4,), 2, ("a", "b"))


def test_without_a_word_there_is_none(weights):
    assert find_preprocessing(weights) is None
    assert find_preprocessing(beside(weights, "config.json", {"architectures": ["X"]})) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"pretrained_cfg": 3}, "must be an object, but got 3"),
        ("config.json", {"pretrained_cfg": {**TIMM_RESNET18, "std": [0.0, 1.0, 1.0]}}, "`std` must be greater than 0"),
        ("config.json", {"pretrained_cfg": {**TIMM_RESNET18, "std": [0.1]}}, "one value for each channel, but got 3"),
        ("config.json", {"pretrained_cfg": {**TIMM_RESNET18, "crop_pct": 1.5}}, "crop`: must be less than or equal to"),
        ("config.json", {"pretrained_cfg": {**TIMM_RESNET18, "input_size": [3, 224, 192]}}, "images must be square"),
        ("config.json", {"pretrained_cfg": {**TIMM_RESNET18, "interpolation": "x"}}, "interpolation`: must be"),
        ("config.json", [], "must hold one JSON object"),
        ("preprocessor_config.json", {**HF_VIT, "resample": 9}, "unknown `resample` of .* 9.0; choose from: 0, 1"),
        ("preprocessor_config.json", {**HF_VIT, "resample": [2]}, "`resample` of .* must be a number"),
        ("preprocessor_config.json", {**HF_VIT, "rescale_factor": "x"}, "`rescale_factor` of .* must be a number"),
        ("preprocessor_config.json", {**HF_VIT, "size": {"longest_edge": 3}}, "images must be square"),
        ("preprocessor_config.json", {**HF_VIT, "image_std": None}, "`mean` and `std` must be given together"),
        ("images.json", {"mean": "x"}, "mean`: must be a list"),
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(weights, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        find_preprocessing(beside(weights, name, content))
    assert "\n" not in str(caught.value)


def test_values_given_go_before_those_found(weights):
    assert override_preprocessing(None, {"mean": None, "crop": None}) is None
    given = override_preprocessing(None, {"mean": (0.5,), "std": (0.25,), "image_size": 8})
    assert given == ImagePreprocessing(mean=(0.5,), std=(0.25,), image_size=8, source="values given")
    vit = found(beside(weights, "preprocessor_config.json", {**HF_VIT, "rescale_factor": 1.0}))
    assert override_preprocessing(vit, {}) is vit
    changed = override_preprocessing(vit, {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 0.9}, "--mean, --std")
    assert changed is not None
    assert (changed.image_size, changed.crop, changed.value_range) == (224, 0.9, (0.0, 1.0))
    assert changed.source.endswith("; mean, std, crop: --mean, --std")
    with pytest.raises(InputError, match="`mean` and `std` must be given together"):
        override_preprocessing(vit, {"std": (1.0,)})


def test_the_description_is_one_line():
    expected = found("resnet18/IMAGENET1K_V1").describe()
    assert expected == (
        "middle square of 87.5 % of the shorter side resized to 224 x 224 (bilinear); rgb values from 0 to 1; "
        "mean (0.485, 0.456, 0.406), deviation (0.229, 0.224, 0.225); 1,000 named classes; from torchvision's "
        "ResNet18_Weights.IMAGENET1K_V1"
    )


@pytest.mark.parametrize(
    "text", ['["cat", "dog"]', '{"1": "dog", "0": "cat"}', '{"cat": 0, "dog": 1}', "cat\ndog\n", " cat \n\ndog"]
)
def test_names_of_classes(tmp_path, text):
    path = tmp_path / "classes"
    path.write_text(text)
    assert read_class_names(path) == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold names of classes: a JSON list, a JSON object by index, or one name a line"),
        ("[1, 2]", "must hold names of classes"),
        ('["a",', "must be JSON, but"),
        ('{"0": "a", "2": "b"}', "indices of classes must be 0 to 1, each once"),
        ('{"a": 1, "b": 1}', "indices of classes must be 0 to 1, each once"),
    ],
)
def test_wrong_names_of_classes(tmp_path, text, message):
    path = tmp_path / "classes"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_class_names(path)
    with pytest.raises(InputError, match="the class names cannot be read"):
        read_class_names(tmp_path / "none")


def test_classes_of_the_data_among_those_of_the_network():
    named = ImagePreprocessing(classes=("cat", "dog", "crane", "crane"), source="a test")
    assert named.class_positions(["dog", "cat"]) == (1, 0)
    assert ImagePreprocessing(source="a test").class_positions(["dog"]) is None
    with pytest.raises(InputError, match=r"2 of 3 are not \(crane, ant\); a test has cat, dog, crane, ..."):
        named.class_positions(["crane", "cat", "ant"])
