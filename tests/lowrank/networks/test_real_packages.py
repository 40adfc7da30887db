"""Networks of the real timm and transformers, where they are installed; test_external.py has stand-ins for both."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest
import torch

from lowrank.compression import find_builder_weights, network_plan, substitute
from lowrank.errors import InputError
from lowrank.io import load_weights
from lowrank.layers import Dense
from lowrank.networks import NetworkSettings, make_network
from lowrank.utils import prepare_torchvision

pytestmark = pytest.mark.slow
IMAGE, CLASSES = (3, 32, 32), 10
IMAGES = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))


def import_or_skip(name: str) -> ModuleType:
    """Import a package; one that is installed and lacks a package of its own fails the test."""
    prepare_torchvision()  # both packages import it
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_a_network_of_timm_is_counted_and_keeps_its_outputs(name, tmp_path):
    import_or_skip("timm")
    settings = NetworkSettings(name=f"timm:{name}", linear=True)
    network = make_network(settings, IMAGE, CLASSES).eval()
    plan = network_plan(settings, IMAGE, CLASSES)
    assert plan.params(Dense()) == sum(value.numel() for value in network.parameters())
    assert find_builder_weights(settings, IMAGE, CLASSES).modules == ()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other = make_network(settings, IMAGE, CLASSES).eval()
    load_weights(other, tmp_path / "weights.pth")
    expected = network(IMAGES)
    assert torch.equal(other(IMAGES), expected)
    substitute(network, Dense(), IMAGE, linear=True)
    assert torch.equal(network(IMAGES), expected)


def test_a_classifier_of_transformers_is_read_from_its_folder(tmp_path):
    transformers = import_or_skip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=CLASSES,
    )  # fmt: skip
    original = transformers.ViTForImageClassification(config).eval()
    original.save_pretrained(tmp_path)
    settings = NetworkSettings(name=f"hf:{tmp_path}", weights="DEFAULT", linear=True)
    network = make_network(settings, IMAGE, CLASSES).eval()
    torch.testing.assert_close(network(IMAGES), original(IMAGES).logits)
    assert network_plan(settings, IMAGE, CLASSES).params(Dense()) == sum(v.numel() for v in original.parameters())
    torch.save({"strange": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="weights DEFAULT, those in the folder of `hf:`, are read by transformers"):
        load_weights(network, tmp_path / "other.pth")
