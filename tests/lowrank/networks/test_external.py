"""Networks from outside the project: functions of files and modules, timm, transformers, torchvision's weights."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.compression import build_sized_student, count_network, network_plan, substitute
from lowrank.count import main
from lowrank.errors import InputError
from lowrank.io import ModelSpecification
from lowrank.layers import make_method
from lowrank.networks import (
    NetworkSettings,
    absolute_name,
    default_images,
    is_own_code,
    make_network,
    user_modules,
    without_weights,
)
from lowrank.networks.external import torchvision_network
from lowrank.utils import torchvision
from tests.support.environment import python_path

OWN = """
from torch import nn
from blocks_beside import block

def make(num_classes, /, in_channels=3, *, depth=2):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), *[block() for _ in range(depth)],
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def fails():
    return {}["key"]

def refuses():
    from lowrank.errors import InputError
    raise InputError("only with more channels")

def calls_ours():
    from lowrank.networks import make_network
    return make_network(None, (3, 2, 2), 2)
"""
TIMM = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    input_size: tuple = (3, 16, 16)
    fixed_input_size: bool = False
    num_classes: int = 1000

_CONFIGS = {"tiny_net": Config(), "tiny_vit": Config(fixed_input_size=True)}

def list_models(): return list(_CONFIGS)
def is_model(name): return name.partition(".")[0] in _CONFIGS
def get_pretrained_cfg(name): return _CONFIGS[name.partition(".")[0]]

def create_model(name, pretrained=False, num_classes=1000, in_chans=3, img_size=(16, 16)):
    if pretrained:
        raise OSError("no network here")
    if name == "tiny_vit" and img_size[0] % 4:
        raise ValueError("sides must be multiples of 4")
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, num_classes))
"""
TRANSFORMERS = """
import json
from types import SimpleNamespace
from pathlib import Path
from safetensors.torch import load_file
from torch import nn

class AutoConfig:
    @classmethod
    def from_pretrained(cls, folder, local_files_only, trust_remote_code):
        assert local_files_only and not trust_remote_code
        return SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text()))

class Classifier(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(config.num_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.classifier = nn.Linear(8, config.num_labels)

    def forward(self, pixel_values, return_dict):
        assert return_dict
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values).mean((2, 3))))

class AutoModelForImageClassification:
    @classmethod
    def from_config(cls, config, trust_remote_code):
        assert not trust_remote_code
        return Classifier(config)

    @classmethod
    def from_pretrained(cls, folder, config, ignore_mismatched_sizes, use_safetensors, **offline):
        network = Classifier(config)
        state = load_file(Path(folder) / "model.safetensors")
        network.load_state_dict({k: v for k, v in state.items() if v.shape == network.state_dict()[k].shape}, False)
        return network
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with networks of the user's, and a module beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "blocks_beside", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "blocks_beside.py").write_text("from torch import nn\ndef block(): return nn.Conv2d(8, 8, 3)\n")
    return tmp_path / "own.py"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module path in which stand-ins for packages may lie."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("timm", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    network_plan.cache_clear()
    return tmp_path


def test_a_function_of_a_file_sees_the_modules_beside_it(
    own_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    network = make_network(NetworkSettings(name=f"{own_file}:make"), (1, 12, 12), 7)
    assert (network[0].in_channels, len(network), network[-1].out_features) == (1, 6, 7)
    monkeypatch.chdir(own_file.parent)
    assert absolute_name("own.py:make") == f"{own_file}:make"
    assert absolute_name("torchvision:resnet18") == "torchvision:resnet18"
    assert is_own_code("own.py:make")
    assert main(["--network", "own.py:make", "--method", "svd", "--keep", "2", "--image", "3x12x12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines if line.endswith("kept by name (2)")] == ["2"]


def test_files_with_different_modules_of_one_name_beside_them_are_refused(own_file: Path) -> None:
    make_network(NetworkSettings(name=f"{own_file}:make"), (1, 12, 12), 7)
    other = own_file.parent / "other" / "own.py"
    other.parent.mkdir()
    other.write_text(OWN)
    beside = other.with_name("blocks_beside.py")
    beside.write_bytes(own_file.with_name("blocks_beside.py").read_bytes())
    assert make_network(NetworkSettings(name=f"{other}:make"), (1, 12, 12), 7)[1].kernel_size == (3, 3)  # a copy
    third = own_file.parent / "third" / "own.py"
    third.parent.mkdir()
    third.write_text("def make(num_classes):\n    from inner_beside import block\n    return block()\n")
    third.with_name("inner_beside.py").write_text("from blocks_beside import block\n")
    third.with_name("blocks_beside.py").write_text("from torch import nn\ndef block(): return nn.Conv2d(8, 8, 1)\n")
    message = r"imports `blocks_beside`, but .* from .*/blocks_beside.py, not from .*/third/blocks_beside.py; rename"
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(name=f"{third}:make"), (1, 12, 12), 7)


def test_the_working_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in_the_working_folder.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(make_network(NetworkSettings(name="in_the_working_folder:make"), (3, 2, 2), 2), torch.nn.Linear)


def test_modules_of_a_network_can_be_shipped(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_file.parent)
    shipped = user_modules(f"{own_file}:make")
    assert {path.name for path in shipped.values()} == {"own.py", "blocks_beside.py"}
    assert shipped["blocks_beside"] == own_file.parent / "blocks_beside.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:fails", r"network '.*own.py:fails' raised an error for fails.*: KeyError: 'key' \(own.py, line 10\)"),
        ("own.py:calls_ours", r"raised an error for calls_ours.*: AttributeError: .* \(own.py, line 18\)"),
        ("own.py:refuses", "only with more channels"),
        ("own.py:nothing", r"has no function or class 'nothing'; it has: block, make, fails, refuses, calls_ours"),
        ("other.py:make", r"there is no file .*other.py"),
    ],
)
def test_errors_of_the_users_code_are_one_line(
    own_file: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(name=f"{own_file.parent}/{name}"), (3, 12, 12), 7)
    assert main(["--network", f"{own_file.parent}/{name}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_classes_of_a_file_are_choices_too(tmp_path: Path) -> None:
    path = tmp_path / "classes.py"
    path.write_text(
        "from torch.nn import Conv2d, Module\nclass Sizes: pass\nclass Mine(Module): pass\nclass _Part(Module): pass\n"
    )
    for name, message in (
        (f"{path}:nothing", r"has no function or class 'nothing'; it has: Mine$"),
        (str(path), rf"the function or class that makes it, such as {path}:Mine; the file has: Mine$"),
    ):
        with pytest.raises(InputError, match=message):
            make_network(NetworkSettings(name=name), (3, 12, 12), 7)


def test_modules_of_the_user_may_import_torchvision(tmp_path: Path) -> None:
    """Before anything here has done so, on a torch whose torchvision cannot load its operators."""
    (tmp_path / "own.py").write_text("import torchvision\ndef make(): return torchvision.models.squeezenet1_1()\n")
    code = (
        "from lowrank.networks import *; print(type(make_network(NetworkSettings(name='own:make'), (3,64,64), 1000)))"
    )
    environment = {"PYTHONPATH": python_path(), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "SqueezeNet" in done.stdout, done.stderr


def test_networks_of_timm(packages: Path) -> None:
    (packages / "timm.py").write_text(TIMM)
    assert default_images("timm:tiny_net") == ((3, 16, 16), 1000)
    assert not is_own_code("timm:tiny_net")
    network = make_network(NetworkSettings(name="timm:tiny_net.some_tag"), (1, 20, 20), 7)
    assert tuple(network(torch.zeros(2, 1, 20, 20)).shape) == (2, 7)
    count = count_network(NetworkSettings(name="timm:tiny_vit"), make_method({"name": "svd"}), (3, 16, 16), 10)
    assert [site.name for site in count.plan.substituted] == ["2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "timm:tini_net"}, "unknown timm network 'tini_net'; timm.list_models.* did you mean tiny_net"),
        ({"name": "timm:hf-hub:somebody/network"}, "unknown timm network 'hf-hub:somebody/network'"),
        ({"name": "timm:tiny_vit"}, "timm:tiny_vit cannot be made for images of 3x18x18: ValueError: sides must"),
        ({"name": "timm:tiny_net", "weights": "BEST"}, "`weights` of timm:tiny_net must be DEFAULT, but got 'BEST'"),
        ({"name": "timm:tiny_net", "weights": "DEFAULT"}, "not on this machine and cannot be downloaded: no network"),
        ({"name": "timm:tiny_net", "width": 0.5}, "timm:tiny_net has no `width`"),
    ],
)
def test_errors_of_timm_are_one_line(packages: Path, settings: dict[str, Any], message: str) -> None:
    (packages / "timm.py").write_text(TIMM)
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(**settings), (3, 18, 18), 10)


def saved_classifier(folder: Path) -> Path:
    """A folder as transformers saves a classifier of 5 classes."""
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"num_channels": 1, "image_size": 12, "id2label": dict.fromkeys("abcde", "")}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"body.0.weight": (8, 1, 3, 3), "body.0.bias": (8,), "body.2.weight": (8, 8, 3, 3), "body.2.bias": (8,),
              "classifier.weight": (5, 8), "classifier.bias": (5,)}  # fmt: skip
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def test_classifiers_saved_by_transformers(packages: Path) -> None:
    (packages / "transformers.py").write_text(TRANSFORMERS)
    folder = saved_classifier(packages / "saved")
    assert default_images(f"hf:{folder}") == ((1, 12, 12), 5)
    trained = make_network(NetworkSettings(name=f"hf:{folder}", weights="DEFAULT"), (1, 12, 12), 5)
    assert bool((trained.state_dict()["body.0.weight"] == 1).all())
    network = make_network(NetworkSettings(name=f"hf:{folder}", weights="DEFAULT"), (1, 12, 12), 3)
    images = torch.rand(2, 1, 12, 12)
    assert tuple(network(images).shape) == (2, 3)
    clone = copy.deepcopy(network)
    torch.nn.init.zeros_(clone.classifier.weight)
    assert not torch.equal(clone(images), network(images))
    assert [name for name in network.state_dict() if name.startswith("model.")] == []
    report = substitute(network, make_method({"name": "svd", "rank_scale": 1.0}), (1, 12, 12))
    assert report.changed == ("body.2",)


@pytest.mark.parametrize(
    ("weights", "image", "message"),
    [
        (None, (3, 12, 12), "its configuration says 1 channels, but the images have 3"),
        ("BEST", (1, 12, 12), "must be DEFAULT .the folder's own., but got 'BEST'"),
    ],
)
def test_errors_of_transformers_are_one_line(
    packages: Path, weights: str | None, image: tuple[int, int, int], message: str
) -> None:
    (packages / "transformers.py").write_text(TRANSFORMERS)
    folder = saved_classifier(packages / "saved")
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(name=f"hf:{folder}", weights=weights), image, 5)
    with pytest.raises(InputError, match=r"hf:nowhere must be a folder with a config.json"):
        make_network(NetworkSettings(name="hf:nowhere"), image, 5)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_missing_package_is_one_line_with_what_to_install(
    packages: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = "timm:tiny_net" if package == "timm" else f"hf:{saved_classifier(packages / 'saved')}"
    with pytest.raises(InputError, match=f"needs the package {package} .*; pip install {package}"):
        make_network(NetworkSettings(name=name), (1, 12, 12), 5)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    module = importlib.import_module(f"{torchvision.__name__}.models._api")
    monkeypatch.setattr(module, "load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"the weights DEFAULT of torchvision:squeezenet1_1 .* cannot be downloaded"):
        make_network(NetworkSettings(name="torchvision:squeezenet1_1", weights="DEFAULT"), (3, 64, 64), 1000)


def test_networks_that_convert_their_input_do_so_where_they_were_trained_to() -> None:
    with torch.device("meta"):
        assert torchvision_network("googlenet", (3, 64, 64), 10, None, trained=True).transform_input is True
        assert torchvision_network("googlenet", (3, 64, 64), 10, None).transform_input is False


def test_the_conversion_of_images_travels_with_the_specification() -> None:
    published = NetworkSettings(name="torchvision:googlenet", weights="DEFAULT")
    own = NetworkSettings(name="torchvision:googlenet")
    image = (3, 64, 64)
    for network, converts in (
        (published, True), (own.model_copy(update={"transform_input": True}), True), (own, False),
    ):  # fmt: skip
        with torch.device("meta"):
            networks = [make_network(without_weights(network), image, 10)]
            for method in ("dense", "separable"):
                specification = ModelSpecification(
                    network=network, method=make_method({"name": method}), image_shape=image, classes=10
                )
                networks.append(specification.build())
            networks.append(build_sized_student(network, {"name": "separable"}, image, 10).network)
        assert [each.transform_input for each in networks] == [converts] * 4
    assert "transform_input" not in published.model_dump()
    with pytest.raises(InputError, match="resnet9 has no `transform_input`; torchvision:googlenet and torchvision:inc"):
        make_network(NetworkSettings(transform_input=True), (3, 32, 32), 10)
