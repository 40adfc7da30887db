"""The networks by name: shapes, sizes as published, torchvision's and the user's own, and the messages of errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.trace import network_plan
from lowrank.errors import InputError
from lowrank.layers import Dense, Separable
from lowrank.networks.base import DropPath
from lowrank.networks.darts import DARTS, FactorizedReduce
from lowrank.networks.external import replace_head
from lowrank.networks.registry import NETWORK_NAMES, NetworkSettings, default_images, is_own_code, make_network
from lowrank.networks.resnet9 import ResNet9
from lowrank.networks.vit import Block

torch.set_num_threads(1)  # tiny layers

NAMES = ("wrn_16_4", "wrn_50_2", "darts", "mobilenet_v2", "resnet9", "vgg16", "mlp", "resnet18", "vit")


@pytest.mark.parametrize(
    ("name", "substituted", "fixed"),
    [  # RULES: substituted layers and fixed parameters
        ("wrn_16_4", 12, 48602),
        ("wrn_40_2", 36, 17882),
        ("wrn_28_10", 24, 283354),
        ("wrn_50_2", 52, 2126632),
        ("darts", 240, 49078),
        ("mobilenet_v2", 35, 99200),
        ("resnet9", 7, 11328),
        ("resnet18", 19, 532_008),
        ("vit", 24, 28_618),
    ],
)
def test_substituted_layers_and_fixed_parameters(name: str, substituted: int, fixed: int) -> None:
    plan = network_plan(NetworkSettings(name=name), *default_images(name))
    assert len(plan.substituted) == substituted
    assert plan.fixed_params == fixed


@pytest.mark.parametrize(
    ("name", "method", "params"),
    [
        ("wrn_50_2", Dense(), 68_883_240),  # torchvision's wide_resnet50_2
        ("mobilenet_v2", Dense(), 3_504_872),  # torchvision's mobilenet_v2
        ("resnet18", Dense(), 11_689_512),  # torchvision's resnet18
        ("vgg16", Dense(), 14_728_266),  # 13 convolutions with bias and batch norm, one linear map of 512 x 10
        ("darts", Separable(), 3_349_342),  # 3.3 million in Liu et al. 2019
        ("mlp", Dense(), (3072 + 512) * 512 + 2 * 2 * 512 + 512 * 10 + 10),
    ],
)
def test_sizes_as_published(name: str, method: Dense | Separable, params: int) -> None:
    plan = network_plan(NetworkSettings(name=name), *default_images(name))
    assert plan.params(method) == params
    assert plan.base == ("separable" if name == "darts" else "dense")


@pytest.mark.parametrize("name", ["wrn_50_2", "mobilenet_v2", "resnet18"])
def test_imagenet_networks_cost_what_torchvisions_do(name: str) -> None:
    theirs = f"torchvision:{name.replace('wrn_50_2', 'wide_resnet50_2')}"
    plan, other = (network_plan(NetworkSettings(name=network), (3, 96, 96), 7) for network in (name, theirs))
    assert plan.mult_adds(Dense()) == other.mult_adds(Dense())
    assert plan.params(Dense()) == other.params(Dense())
    # Published with a last pooling of 7 x 7 that is no adaptive one, and with a classifier that is a convolution
    differences = {"wrn_50_2": {"pooling": other.extras.pooling + 2048 * 3 * 3}, "mobilenet_v2": {"linear_biases": 0}}
    assert plan.extras == dataclasses.replace(other.extras, **differences.get(name, {}))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("resnet9", (3, 32, 32)),
        ("resnet9", (1, 8, 8)),
        ("resnet9", (3, 40, 72)),
        ("wrn_10_1", (3, 20, 24)),
        ("wrn_50_2", (3, 40, 33)),
        ("darts", (3, 32, 32)),
        ("darts", (1, 28, 28)),
        ("darts", (3, 9, 15)),  # odd at each halving
        ("mobilenet_v2", (3, 33, 40)),
        ("vgg16", (3, 32, 48)),
        ("mlp", (1, 8, 9)),
        ("resnet18", (3, 33, 40)),
        ("vit", (3, 32, 32)),
        ("vit", (1, 8, 12)),
    ],
)
def test_networks_map_images_to_logits(name: str, image: tuple[int, int, int]) -> None:
    network = make_network(NetworkSettings(name=name, width=0.125), image, 7).eval()
    with torch.no_grad():
        assert tuple(network(torch.randn(2, *image)).shape) == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_never_substituted_and_taps_name_modules(name: str) -> None:
    image, classes = (3, 32, 32), 10
    network = make_network(NetworkSettings(name=name, width=0.125), image, classes).eval()
    seen: dict[str, Tensor] = {}
    for tap in network.taps:
        network.get_submodule(tap).register_forward_hook(lambda module, inputs, out, tap=tap: seen.update({tap: out}))
    network(torch.zeros(2, *image))
    areas = [seen[tap].shape[2] * seen[tap].shape[3] for tap in network.taps]
    assert areas == sorted(areas, reverse=True)
    assert all(tap.dim() == 4 for tap in seen.values())


@pytest.mark.parametrize("name", NAMES)
def test_initial_activations_neither_explode_nor_vanish(name: str) -> None:
    torch.manual_seed(0)
    network = make_network(NetworkSettings(name=name, width=0.25), (3, 32, 32), 10)
    logits = network(torch.randn(8, 3, 32, 32))
    assert 1e-3 < logits.std().item() < 10
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ({"name": "resnet18", "stem": "small"}, (1, 8, 8)),
        ({"name": "resnet18", "stem": "small"}, (3, 32, 40)),
        ({"name": "vit", "patch": 2, "depth": 1, "heads": 5}, (3, 10, 4)),
    ],
)
def test_fields_of_single_networks(settings: dict, image: tuple[int, int, int]) -> None:
    network = make_network(NetworkSettings(**settings, width=0.125), image, 7).eval()
    with torch.no_grad():
        assert tuple(network(torch.randn(2, *image)).shape) == (2, 7)


def test_fields_of_single_networks_leave_dumps_of_others_as_they_were() -> None:
    """Trial ids are hashes of dumps."""
    before = {"name": "vit", "width": 1.0, "linear": False, "weights": None, "auxiliary": False}
    assert NetworkSettings(name="vit", stem="imagenet", patch=4, depth=6, heads=3).model_dump() == before
    changed = NetworkSettings(name="vit", patch=8, heads=6)
    assert changed.model_dump(mode="json") == {**before, "patch": 8, "heads": 6}
    assert NetworkSettings(**changed.model_dump()) == changed


def test_resnet18_with_the_small_stem_keeps_the_resolution_in_its_first_stage() -> None:
    small, published = (
        make_network(NetworkSettings(name="resnet18", width=0.125, stem=stem), (3, 32, 32), 10)
        for stem in ("small", "imagenet")
    )
    x = torch.zeros(2, 3, 32, 32)
    assert (small.stem(x).shape[2:], published.stem(x).shape[2:]) == ((32, 32), (8, 8))


def test_the_width_of_vit_is_a_multiple_of_its_heads() -> None:
    for width, features in ((1.0, 192), (0.5, 96), (0.26, 51), (1e-9, 3)):
        network = make_network(NetworkSettings(name="vit", width=width, depth=1), (3, 8, 8), 10)
        assert network.classifier.in_features == features


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, ["blocks.0"]), (2, ["blocks.0", "blocks.1"]), (12, ["blocks.3", "blocks.7", "blocks.11"])]
)
def test_taps_of_vit_share_out_its_blocks(depth: int, taps: list[str]) -> None:
    network = make_network(NetworkSettings(name="vit", width=0.05, depth=depth), (3, 8, 8), 10)
    assert list(network.taps) == taps


def test_a_block_of_vit_is_a_pre_norm_transformer_layer() -> None:
    torch.manual_seed(0)
    block = Block(24, 3).eval()
    layer = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    names = {
        "norm1": "norm1", "norm2": "norm2", "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj",
        "linear1": "mlp.fc1", "linear2": "mlp.fc2",
    }  # fmt: skip
    state = block.state_dict()
    for theirs, parameter in layer.named_parameters():
        prefix = next(prefix for prefix in names if theirs.startswith(prefix))
        parameter.data.copy_(state[theirs.replace(prefix, names[prefix])])
    x = torch.randn(2, 24, 3, 4)
    with torch.no_grad():
        expected = layer(x.flatten(2).mT).mT.unflatten(2, (3, 4))
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=0)


def test_vit_knows_where_a_patch_is() -> None:
    network = make_network(NetworkSettings(name="vit", width=0.125, depth=1), (1, 8, 8), 10).eval()
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(network(x), network(x.roll(4, 2)), atol=1e-5)
        network.positions.positions.zero_()
        torch.testing.assert_close(network(x), network(x.roll(4, 2)), atol=1e-5, rtol=0)


def test_the_last_pooling_of_resnet9_is_global() -> None:
    pool = ResNet9(3, 10, width=0.1).pool
    for side in (1, 3, 4, 5, 9):
        x = torch.randn(2, 3, side, side + 2)
        assert torch.equal(pool(x)[:, :, 0, 0], x.amax((2, 3)))


def test_width_thins_the_inner_channels_only() -> None:
    network = make_network(NetworkSettings(name="wrn_16_4", width=0.5), (3, 32, 32), 10)
    assert network.classifier.in_features == 128
    assert network.stem.out_channels == 16


@pytest.mark.parametrize("name", NAMES)
def test_every_network_can_be_made_thinner(name: str) -> None:
    image, classes = default_images(name)
    full, half, least = (
        network_plan(NetworkSettings(name=name, width=width), image, classes).params(Dense())
        for width in (1.0, 0.5, 1e-9)
    )
    assert least < half < full


# DARTS


def small_darts(**settings: bool) -> DARTS:
    torch.manual_seed(0)
    return DARTS(3, 10, width=0.12, **settings)


def test_the_auxiliary_head_is_trained_and_not_counted() -> None:
    settings = NetworkSettings(name="darts", width=0.12, auxiliary=True)
    network = make_network(settings, (3, 32, 32), 10)
    logits, auxiliary = network.train()(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 10)
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    without = settings.model_copy(update={"auxiliary": False})
    plans = [network_plan(variant, (3, 32, 32), 10) for variant in (settings, without)]
    assert plans[0] == plans[1]
    assert not any(site.name.startswith("auxiliary") for site in plans[0].sites)


def test_drop_path_drops_whole_samples_and_preserves_the_mean() -> None:
    drop = DropPath()
    drop.set_rate(0.25)
    x = torch.ones(4000, 2, 3, 3)
    torch.manual_seed(0)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x
    with pytest.raises(InputError, match=r"the drop-path rate must be at least 0 and below 1, but got 1\.5"):
        drop.set_rate(1.5)


def test_drop_path_skips_identity_branches() -> None:
    network = small_darts().train()
    network.set_drop_path(0.999999)
    cell = network.cells[0]
    assert [isinstance(edge, nn.Identity) for edge in cell.edges].count(True) == 2
    states = [torch.randn(2, cell.edges[0][0][1].in_channels, 8, 8) for _ in range(4)]
    for index, edge in enumerate(cell.edges):
        nonzero = bool(cell._edge(index, states).any())
        assert nonzero == isinstance(edge, nn.Identity)
    assert "rate" not in str(list(network.state_dict()))


def test_the_second_half_of_a_reduction_is_shifted_by_one_pixel() -> None:
    reduce = FactorizedReduce(1, 2).eval()
    nn.init.ones_(reduce.conv1.weight)
    nn.init.ones_(reduce.conv2.weight)
    x = torch.arange(36.0).view(1, 1, 6, 6)
    out = reduce(x) * math.sqrt(1 + reduce.norm.eps)
    torch.testing.assert_close(out, torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1))


# Networks from elsewhere


def test_torchvision_networks_by_name() -> None:
    network = make_network(NetworkSettings(name="torchvision:squeezenet1_1"), (3, 64, 64), 7).eval()
    assert tuple(network(torch.zeros(1, 3, 64, 64)).shape) == (1, 7)


@pytest.mark.parametrize("classes", [1000, 5])
def test_trained_weights_are_loaded_by_name_with_a_new_head(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowrank.utils.torchvision_compat import torchvision

    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    trained = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(trained, tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])  # found: not downloaded
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = NetworkSettings(name="torchvision:squeezenet1_1", weights="IMAGENET1K_V1")
    network = make_network(settings, (3, 64, 64), classes)
    state = network.state_dict()
    same = {name for name, value in state.items() if torch.equal(value, trained[name])}
    head = set() if classes == 1000 else {"classifier.1.weight", "classifier.1.bias"}
    assert set(state) - same == head
    assert tuple(network.eval()(torch.zeros(1, 3, 64, 64)).shape) == (1, classes)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))  # counting loads none
    assert network_plan(settings, (3, 64, 64), classes).params(Dense()) == sum(p.numel() for p in network.parameters())


def test_a_head_that_is_a_linear_map_is_replaced() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20, bias=False))
    replace_head(network, 20, 3)
    assert (network[1].out_features, network[3].out_features, network[3].bias) == (20, 3, None)
    with pytest.raises(InputError, match="Sequential has no layer of 1000 outputs to replace by one of 3"):
        replace_head(network, 1000, 3)


OWN = """
from torch import nn

def make(image_shape, num_classes, width=1.0):
    return nn.Sequential(
        nn.Conv2d(image_shape[0], round(8 * width), 3), nn.ReLU(), nn.Conv2d(round(8 * width), 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

def plain(): return make((3, 8, 8), 10)
def asks(colour): return make((3, 8, 8), 10)
def wrong(): return 3
number = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with networks of the user's own."""
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "broken_networks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    network_plan.cache_clear()
    return "own_networks"


def test_networks_of_the_user(own_module: str) -> None:
    network = make_network(NetworkSettings(name=f"{own_module}:make", width=0.5), (1, 8, 8), 7)
    assert (network[0].in_channels, network[0].out_channels, network[-1].out_features) == (1, 4, 7)
    plan = network_plan(NetworkSettings(name=f"{own_module}:plain"), (3, 8, 8), 10)
    assert [site.name for site in plan.substituted] == ["2"]
    assert default_images(f"{own_module}:make") == ((3, 32, 32), 10)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("resnet10", (3, 32, 32), r"unknown network 'resnet10'; choose from: .*resnet9"),
        ("wrn_29_10", (3, 32, 32), r"the depth of a wide ResNet must be 6n \+ 4 .*, but got 29"),
        ("wrn_28_0", (3, 32, 32), "the widening factor of a wide ResNet must be at least 1, but got 0"),
        ("resnet9", (3, 4, 32), "resnet9 needs images of at least 8 x 8, but got 4 x 32"),
        ("vgg16", (3, 31, 32), "vgg16 needs images of at least 32 x 32, but got 31 x 32"),
        ("torchvision:resnet19", (3, 32, 32), "unknown torchvision network 'resnet19'; choose from: .*resnet18"),
        ("resnet18", (3, 31, 40), "resnet18 needs images of at least 32 x 32, but got 31 x 40"),
        ("vit", (3, 30, 32), "vit cuts images into patches of 4 x 4, so both sides .* of 4, but got 30 x 32"),
        ("torchvision:resnet18", (1, 32, 32), "torchvision:resnet18 takes images of 3 channels, but got 1"),
        ("nowhere:make", (3, 32, 32), "network 'nowhere:make' cannot be imported: ModuleNotFoundError: No module"),
        ("broken_networks:make", (3, 32, 32), "'broken_networks:make' cannot be imported: ZeroDivisionError"),
        ("own_networks:nothing", (3, 32, 32), "own_networks has no function or class 'nothing'"),
        ("own_networks:number", (3, 32, 32), "own_networks has no function or class 'number'"),
        ("own_networks:asks", (3, 32, 32), r"own_networks:asks asks for `colour`; it can be given: .*num_classes"),
        ("own_networks:wrong", (3, 32, 32), r"own_networks:wrong must return a torch\.nn\.Module, but returned a int"),
    ],
)
def test_errors_name_impossible_networks(own_module: str, name: str, image: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_network(NetworkSettings(name=name), image, 10)
    assert "\n" not in str(caught.value)


def test_a_file_without_its_function_is_told_which_it_has(own_module: str, tmp_path: Path) -> None:
    path = tmp_path / "own_networks.py"
    with pytest.raises(
        InputError, match=rf"must name the function or class that makes it, such as {path}:make; the file has: "
    ):
        make_network(NetworkSettings(name=str(path)), (3, 8, 8), 10)
    with pytest.raises(InputError, match=r"there is no file absent\.py; it is named path/to/file\.py:function"):
        make_network(NetworkSettings(name="absent.py"), (3, 8, 8), 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "torchvision:resnet18", "width": 0.5}, "torchvision:resnet18 has no `width`"),
        ({"name": "own_networks:plain", "width": 0.5}, "own_networks:plain has no `width`"),
        ({"name": "torchvision:resnet18", "weights": "BEST"}, "unknown weights of torchvision:resnet18 'BEST'; .*IMAG"),
        (
            {"name": "resnet9", "weights": "DEFAULT"},
            "`weights` are those of torchvision, timm, hf .*: resnet9 has none",
        ),
        ({"name": "resnet9", "stem": "small"}, "resnet9 has no `stem`; resnet18 has"),
        ({"name": "resnet18", "heads": 2}, "resnet18 has no `heads`; vit has"),
        ({"name": "resnet9", "auxiliary": True}, "resnet9 has no `auxiliary` head; darts has"),
    ],
)
def test_errors_name_settings_that_a_network_does_not_have(own_module: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(**settings), (3, 32, 32), 10)


def test_only_names_of_the_users_modules_are_code() -> None:
    own = [name for name in (*NETWORK_NAMES, "torchvision:resnet18") if is_own_code(name.partition(" ")[0])]
    assert own == ["path/to/file.py:function (your own)", "package.module:function (your own)"]
    assert is_own_code("os:abort")
    assert is_own_code("../module:function")  # no name of the table, so it is not taken for harmless
    assert not is_own_code("resnet99")


def test_the_auxiliary_head_needs_images_of_32_pixels() -> None:
    with pytest.raises(InputError, match="darts needs images of at least 32 x 32, but got 16 x 16"):
        make_network(NetworkSettings(name="darts", width=0.1, auxiliary=True), (3, 16, 16), 10)


@pytest.mark.parametrize("name", ["resnet9", "darts"])
def test_networks_are_reproducible_from_a_seed(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = make_network(NetworkSettings(name=name, width=0.1), (3, 32, 32), 10)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["wrn_6004_1", "wrn_28_4000"])
def test_a_name_cannot_ask_for_a_network_without_bounds(name):
    """A file of anybody's may name it, and it is built to be counted."""
    with pytest.raises(InputError, match="at most 1000 layers and a width of 128, but got"):
        make_network(NetworkSettings(name=name), (3, 32, 32), 10)
