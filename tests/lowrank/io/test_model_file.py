"""Models in files: the same model comes back, and a file that is damaged, foreign or hostile is one clear line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.compression.merging import merge
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InputError
from lowrank.io.image_preprocessing import ImagePreprocessing
from lowrank.io.model_file import (
    METADATA,
    ModelSpecification,
    load_any_model,
    load_merged,
    load_model,
    read_specification,
    save_merged,
    save_model,
    write_model,
)
from lowrank.io.preprocessing import find_preprocessing
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers import Dense, Separable
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings

torch.set_num_threads(1)
IMAGE, CLASSES = (1, 8, 8), 7
SMALL = NetworkSettings(width=0.0625)


def make_specification(
    name: str = "tensor_train", network: NetworkSettings = SMALL, **fields: Any
) -> ModelSpecification:
    method = make_method({"name": name, **fields})
    return ModelSpecification(network=network, method=method, image_shape=IMAGE, classes=CLASSES)


def make_model(specification: ModelSpecification, seed: int = 3) -> nn.Module:
    """A model away from its start, statistics of norms included."""
    plan = network_plan(specification.network, specification.image_shape, specification.classes)
    model = build_student(
        specification.network, plan, specification.method, specification.image_shape, specification.classes, seed
    )
    model(torch.randn(4, *specification.image_shape))
    return model


def save(path: Path, model: nn.Module, specification: ModelSpecification, **options: Any) -> None:
    save_model(
        path,
        model,
        network=specification.network,
        method=specification.method,
        image_shape=specification.image_shape,
        classes=specification.classes,
        **options,
    )


def assert_same(model: nn.Module, other: nn.Module) -> None:
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_loaded_model_equals_the_saved_one(name, tmp_path):
    network = NetworkSettings(name="mlp", width=0.125) if name == "tied_bottleneck" else SMALL
    specification = make_specification(name, network)
    if name == "bottleneck":
        specification = make_specification(name, network, rank_scale=0.3)
    model, path = make_model(specification), tmp_path / "deep" / "model.safetensors"
    save(path, model, specification)
    loaded = load_model(path)
    assert_same(model, loaded)
    assert not loaded.training
    x = torch.randn(3, *IMAGE)
    assert torch.equal(loaded(x), model.eval()(x))
    assert read_specification(path) == specification


def test_the_file_is_plain_safetensors_with_json_metadata(tmp_path):
    specification = make_specification("cp", dims=3, rank_scale=0.4)
    save(tmp_path / "m.safetensors", make_model(specification), specification)
    tensors, metadata = load_tensors(tmp_path / "m.safetensors")
    assert "classifier.weight" in tensors
    assert json.loads(metadata[METADATA]) == {
        "version": 1, "network": SMALL.model_dump(), "image_shape": [1, 8, 8], "classes": 7,
        "method": {"name": "cp", "dims": 3, "rank_scale": 0.4},
    }  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
def test_a_changed_weight_or_word_is_noticed(merged, tmp_path):
    specification = make_specification("cp", dims=3, rank_scale=0.4)
    model, path = make_model(specification), tmp_path / "m.safetensors"
    images = ImagePreprocessing(mean=(0.25,), std=(0.5,), classes=tuple("abcdefg"), source="a test")
    if merged:
        save_merged(path, merge(model, combined=False), specification, images, combined=False)
    else:
        save(path, model, specification, preprocessing=images)
    content = path.read_bytes()
    assert find_preprocessing(path) == images
    load_any_model(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged: its tensors do not have their checksum"):
        load_any_model(path)
    path.write_bytes(content.replace(b"0.25", b"0.26", 1))
    for read in (load_any_model, find_preprocessing):
        with pytest.raises(InputError, match="damaged: its metadata do not have their checksum"):
            read(path)


def test_the_same_model_gives_the_same_file(tmp_path):
    """A teacher's hash is that of its file, and stands in the identity of the trials that it taught."""
    specification = make_specification("cp", dims=3, rank_scale=0.4)
    model = make_model(specification)
    for number in range(8):
        save(tmp_path / str(number), model, specification, checksum=False)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_stored(dtype, tmp_path):
    specification = make_specification("acdc", layers=2)
    model = make_model(specification).to(dtype).eval()
    save(tmp_path / "m", model, specification)
    loaded = load_model(tmp_path / "m")
    assert_same(model, loaded)
    x = torch.randn(2, *IMAGE, dtype=dtype)
    assert torch.equal(loaded(x), model(x))


def test_loading_leaves_the_global_generator_alone(tmp_path):
    specification = make_specification()
    save(tmp_path / "m", make_model(specification), specification)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(tmp_path / "m")
    assert torch.equal(torch.rand(3), expected)


def test_an_auxiliary_head_is_stored(tmp_path):
    network = NetworkSettings(name="darts", width=1 / 36, auxiliary=True)
    specification = ModelSpecification(network=network, method=Separable(), image_shape=(3, 32, 32), classes=3)
    plan = network_plan(network, specification.image_shape, 3)
    model = build_student(network, plan, specification.method, specification.image_shape, 3, 0)
    save(tmp_path / "m", model, specification)
    assert_same(model, load_model(tmp_path / "m"))


def test_models_in_channels_last_format_can_be_saved(tmp_path):
    specification = make_specification()
    model = make_model(specification).to(memory_format=torch.channels_last)
    save(tmp_path / "m", model, specification)
    assert_same(model, load_model(tmp_path / "m"))


def test_a_model_that_the_settings_do_not_describe_is_not_saved(tmp_path):
    specification = make_specification(rank_scale=0.2)
    model = make_model(specification)
    params = sum(parameter.numel() for parameter in model.parameters())
    merged = merge(model)
    after = sum(parameter.numel() for parameter in merged.parameters())
    assert params != after
    message = f"the settings describe a model of {params:,} parameters, but this one has {after:,}"
    with pytest.raises(InputError, match=message):
        save(tmp_path / "m", merged, specification)
    assert not list(tmp_path.iterdir())


def changed(tmp_path: Path, change: Any) -> Path:
    """A file whose tensors and metadata `change` has edited."""
    specification, path = make_specification("bottleneck"), tmp_path / "m.safetensors"
    save(path, make_model(specification), specification)
    tensors, metadata = load_tensors(path)
    content = json.loads(metadata[METADATA])
    change(tensors, content)
    save_tensors(path, tensors, {METADATA: json.dumps(content)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("classifier.weight"), "it stores no `classifier.weight`"),
        (lambda t, c: t.update(more=torch.ones(1)), "its `more` has no place in the model"),
        (lambda t, c: t.update({"classifier.weight": t["classifier.weight"].T}), "its `classifier.weight` is 32x7"),
        (lambda t, c: t.update({"classifier.weight": t["classifier.weight"].half()}), "is 7x32 torch.float16, but the"),
        (lambda t, c: c.update(version=2), "must be of version 1"),
        (lambda t, c: c.update(classes="7"), "`lowrank_model.classes`: must be a whole number, such as 7, but got '7'"),
        (lambda t, c: c.update(classes=0), "`lowrank_model.classes`: must be greater than or equal to 1, but got 0"),
        (lambda t, c: c.update(image_shape=[1, 8]), "`lowrank_model.image_shape`: "),
        (lambda t, c: c.pop("method"), "`lowrank_model.method` is missing"),
        (lambda t, c: c.update(method={"name": "pickle"}), "unknown method 'pickle'; choose from: "),
        (lambda t, c: c.update(method={"name": "cp", "dims": 99}), "`method.dims`: must be less than or equal to 9"),
        (lambda t, c: c["network"].update(name="nothing"), "unknown network 'nothing'; choose from: "),
        (lambda t, c: c["network"].update(colour=1), "unknown field `lowrank_model.network.colour`"),
        (lambda t, c: c["network"].update(width=16), "parameters, but it stores"),
        (lambda t, c: c.update(method={"name": "bottleneck", "rank_scale": 1e-9}), " is 0; `rank_scale` must be"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_of_one_line(tmp_path, change, message):
    path = changed(tmp_path, change)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_errors_name_missing_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "m.safetensors"
    for read in (load_model, read_specification):
        with pytest.raises(InputError, match=f"there is no model file {re.escape(str(path))}"):
            read(path)
    save_tensors(path, {"a": torch.ones(3)}, {"other": "x"})
    with pytest.raises(InputError, match="holds no model of this library: its metadata have no `lowrank_model`"):
        read_specification(path)
    for text in ("{", "[1]", "[" * 100_000):
        save_tensors(path, {"a": torch.ones(3)}, {METADATA: text})
        with pytest.raises(InputError, match=r"its `lowrank_model` (is not JSON|must be of version 1)"):
            load_model(path)
    path.write_bytes(path.read_bytes()[:40])
    for read in (load_model, load_merged, read_specification):
        with pytest.raises(InputError, match="is damaged") as caught:
            read(path)
        assert str(caught.value).count(str(path)) == 1


def test_a_file_cannot_make_untrusted_code_run(tmp_path, monkeypatch):
    (tmp_path / "own_code_of_a_test.py").write_text(
        "from lowrank.networks.mlp import MLP\n\n"
        "def make(image_shape, classes):\n    return MLP(image_shape, classes, 0.125)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "own_code_of_a_test:make"
    specification = make_specification(network=NetworkSettings(name=name))
    model = make_model(specification)
    save(tmp_path / "m", model, specification)
    del sys.modules["own_code_of_a_test"]
    network_plan.cache_clear()
    for allowed in (None, "another:make"):
        with pytest.raises(
            InputError, match="it names code to run, the network 'own_code_of_a_test:make'; `trusted_network='"
        ):
            load_model(tmp_path / "m", trusted_network=allowed)
        assert "own_code_of_a_test" not in sys.modules
    assert_same(model, load_model(tmp_path / "m", trusted_network=name))
    save_merged(tmp_path / "merged", merge(model, combined=False), specification, combined=False)
    del sys.modules["own_code_of_a_test"]
    with pytest.raises(InputError, match=r"merged: it names code to run, the network 'own_code_of_a_test:make'"):
        load_merged(tmp_path / "merged")
    assert "own_code_of_a_test" not in sys.modules
    assert_same(merge(model, combined=False), load_any_model(tmp_path / "merged", trusted_network=name))


def test_a_file_of_code_may_lie_elsewhere_when_the_model_is_read(tmp_path, monkeypatch):
    code = "from lowrank.networks.mlp import MLP\n\n"
    code += "def make(image_shape, classes):\n    return MLP(image_shape, classes, 0.125)\n"
    (tmp_path / "mine.py").write_text(code)
    specification = make_specification(network=NetworkSettings(name=f"{tmp_path}/mine.py:make"))
    model = make_model(specification)
    save(tmp_path / "m", model, specification)
    (tmp_path / "other").mkdir()
    (tmp_path / "mine.py").rename(tmp_path / "other" / "mine.py")
    (tmp_path / "other" / "yours.py").write_text(code)
    monkeypatch.chdir(tmp_path / "other")
    assert_same(model, load_model(tmp_path / "m", trusted_network="mine.py:make"))
    for allowed in ("yours.py:make", "mine.py:other"):
        with pytest.raises(InputError, match="it names code to run"):
            load_model(tmp_path / "m", trusted_network=allowed)


def test_trained_weights_that_the_settings_name_are_not_downloaded(tmp_path, monkeypatch):
    network = NetworkSettings(name="torchvision:squeezenet1_1", weights="DEFAULT")
    specification = ModelSpecification(network=network, method=Separable(), image_shape=(3, 64, 64), classes=3)
    model = specification.build()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("fetched"))
    save(tmp_path / "m", model, specification)
    assert_same(model, load_model(tmp_path / "m"))
    assert read_specification(tmp_path / "m").network.weights == "DEFAULT"


TWICE = """
from torch import nn

class Twice(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stem, self.first, self.head = nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, classes)
        self.second = self.first

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))

def make(image_shape, classes):
    return Twice(image_shape[0], classes)
"""


def test_a_layer_under_two_names_is_loaded_as_one(tmp_path, monkeypatch):
    (tmp_path / "twice_of_a_test.py").write_text(TWICE)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "twice_of_a_test:make"
    specification = make_specification("bottleneck", NetworkSettings(name=name))
    model = make_model(specification)
    assert model.second is model.first
    save(tmp_path / "m", model, specification)
    loaded = load_model(tmp_path / "m", trusted_network=name)
    assert loaded.second is loaded.first
    assert_same(model, loaded)


READS_VALUES = """
import torch
from torch import nn

def make(image_shape, classes):
    widths = torch.linspace(4, 8, 2).tolist()  # fails without values, as in torchvision's RegNets
    assert nn.Linear(2, 2).weight.abs().sum().item() > 0
    layers = nn.Conv2d(image_shape[0], int(widths[0]), 3), nn.Conv2d(int(widths[0]), int(widths[1]), 3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(int(widths[1]), classes))
"""


def test_a_compressed_network_whose_builder_reads_values_is_counted_and_loaded(tmp_path, monkeypatch):
    (tmp_path / "reads_values_of_a_test.py").write_text(READS_VALUES)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "reads_values_of_a_test:make"
    specification = ModelSpecification(
        network=NetworkSettings(name=name), method=Dense(), image_shape=IMAGE, classes=CLASSES,
        layers={"1": {"method": "svd", "ranks": [2], "bias": True}},
    )  # fmt: skip
    model = specification.build()
    assert specification.params() == sum(value.numel() for value in model.parameters())
    write_model(tmp_path / "m", model, specification)
    assert_same(model, load_model(tmp_path / "m", trusted_network=name))


def test_an_auxiliary_head_of_a_compressed_network_is_not_counted():
    network = NetworkSettings(name="darts", width=0.125)
    layers = {"classifier": {"method": "svd", "ranks": [2], "bias": True}}
    plain, with_head = (
        ModelSpecification(
            network=network.model_copy(update={"auxiliary": auxiliary}), method=Dense(), image_shape=(3, 32, 32),
            classes=CLASSES, layers=layers,
        )
        for auxiliary in (False, True)
    )  # fmt: skip
    assert with_head.params() == plain.params()


@pytest.mark.parametrize("combined", [True, False])
def test_a_merged_file_cannot_ask_for_more_memory_than_it_holds(tmp_path, combined, monkeypatch):
    specification = ModelSpecification(
        network=NetworkSettings(name="wrn_28_10", width=2.0), method=Dense(), image_shape=(3, 32, 32), classes=10
    )
    save_merged(tmp_path / "merged", torch.nn.Linear(1, 1), specification, combined=combined)
    monkeypatch.setattr(ModelSpecification, "build", lambda self: pytest.fail("it takes the memory"))
    with pytest.raises(InputError, match=r"merged: its settings describe [\d,]+ parameters, but it stores 2 numbers"):
        load_merged(tmp_path / "merged")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_a_file_follows_the_umask_as_that_of_every_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "weights.safetensors", {"x": torch.zeros(1)}, {})
        (tmp_path / "text").write_text("")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"weights.safetensors": 0o666 & ~umask, "text": 0o666 & ~umask}
