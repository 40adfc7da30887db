"""Networks with attention are compressed: each projection is a layer of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.compression import network_logits
from lowrank.deployment.compressor import Compressor
from lowrank.layers.attention import ProjectedAttention
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.utils.torchvision_compat import torchvision

torch.set_num_threads(1)

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def make_vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight, std=0.3)  # zero at first
    return network


class EncoderClassifier(nn.Module):
    """Rows of an image as tokens of an `nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(24, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.permute(0, 2, 1, 3).flatten(2))
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        padding[:, -2:] = True
        return self.head(self.encoder(tokens, src_key_padding_mask=padding)[:, :-2].mean(1))


class ReadsWeights(nn.Module):
    """Attention whose weights the network uses by itself, as CLIP's pooling does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).permute(2, 0, 1)
        query, key, value = functional.linear(tokens, self.attention.in_proj_weight).chunk(3, -1)
        return self.head((torch.softmax(query * key, 0) * value).sum(0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (make_vision_transformer, [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]),
        (EncoderClassifier, [f"encoder.layers.{i}.self_attn" for i in range(2)]),
    ],
)
def test_a_network_with_attention_is_halved(make: type[nn.Module], names: list[str]) -> None:
    network = make()
    given = copy.deepcopy(network.state_dict())
    images = torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        logits = network.eval()(images)
    network.train()
    compressor = Compressor(network, [images])
    assert compressor.projected_attention == 2
    torch.testing.assert_close(network_logits(compressor.dense, images), logits, atol=1e-5, rtol=0)

    compressed = compressor.compress(0.5, method="svd", allocation="energy")
    assert compressed.params == sum(value.numel() for value in compressed.network.parameters())
    assert compressed.params <= compressed.dense_params / 2
    assert compressed.projected_attention == 2
    reports = {report.name: report for report in compressed.layers}
    for name in names:
        assert isinstance(compressed.network.get_submodule(name), ProjectedAttention)
        assert all(reports[f"{name}.{projection}"].kind == "linear" for projection in PROJECTIONS)
    assert any(reports[f"{name}.{projection}"].method == "svd" for name in names for projection in PROJECTIONS)
    with torch.no_grad():
        assert compressed.network(images).shape == logits.shape

    assert network.training
    assert all(type(network.get_submodule(name)) is nn.MultiheadAttention for name in names)
    assert network.state_dict().keys() == given.keys()
    assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())


def test_at_the_full_budget_logits_stay() -> None:
    network, images = EncoderClassifier().eval(), torch.randn(24, 3, 8, 8)
    compressed = Compressor(network, [images]).compress(1.0, method="svd", allocation="energy")
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
        torch.testing.assert_close(compressed.network(images), network(images), atol=1e-3, rtol=0)


def test_attention_stays_where_the_network_reads_its_weights() -> None:
    network, images, lines = ReadsWeights(), torch.randn(16, 3, 8, 8), []
    compressor = Compressor(network, [images], progress=lines.append)
    assert compressor.projected_attention == 0
    assert type(compressor.dense.attention) is nn.MultiheadAttention
    assert "attention stays as it is" in lines[0]
    assert compressor.layer_list.reasons["attention.out_proj"] == "its weight is used without running it"


def test_the_fused_map_of_vit_is_factorised() -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(name="vit", width=0.125, depth=2)
    network = make_network(settings, (3, 8, 8), 5).eval()
    compressed = Compressor(network, [torch.randn(48, 3, 8, 8)]).compress(0.5, method="svd", allocation="energy")
    assert compressed.params <= compressed.dense_params / 2
    factorised = {report.name for report in compressed.layers if report.method == "svd"}
    assert any(name.endswith("attn.qkv") for name in factorised)
    assert "classifier" not in factorised
