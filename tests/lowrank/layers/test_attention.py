"""Attention with projections of its own computes what `nn.MultiheadAttention` computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.layers.attention import ProjectedAttention, project_attention

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, once a process

B, L, S, H, E = 3, 5, 7, 4, 16


def make_pair(**options: Any) -> tuple[nn.MultiheadAttention, ProjectedAttention]:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, H, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)  # torch's biases are zero at first
    return attention, ProjectedAttention.from_attention(attention)


def make_inputs(attention: nn.MultiheadAttention, queries: int = L, keys: int = S) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (queries, E), (keys, attention.kdim), (keys, attention.vdim)
    torch.manual_seed(1)
    query, key, value = (torch.randn(B, *shape) for shape in shapes)
    if attention.batch_first:
        return query, key, value
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def assert_equal(attention: nn.Module, projected: nn.Module, *inputs: Tensor, **options: Any) -> None:
    torch.manual_seed(2)
    output, weights = attention(*inputs, **options)
    torch.manual_seed(2)
    ours, our_weights = projected(*inputs, **options)
    torch.testing.assert_close(ours, output, atol=1e-5, rtol=0)
    assert (weights is None) == (our_weights is None)
    if weights is not None:
        torch.testing.assert_close(our_weights, weights, atol=1e-5, rtol=0)


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).triu(1)


def pad_mask(*lengths: int) -> Tensor:
    return torch.arange(S)[None] >= torch.tensor(lengths)[:, None]


torch.manual_seed(3)
RANDOM = torch.rand(B * H, L, S) < 0.3
RANDOM[:, :, 0] = False  # no query is left without a key
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": {"attn_mask": causal(L, S)},
    "float": {"attn_mask": torch.randn(L, S)},
    "bool 3-D": {"attn_mask": RANDOM},
    "float 3-D": {"attn_mask": torch.randn(B * H, L, S)},
    "padding": {"key_padding_mask": pad_mask(7, 4, 2)},
    "float padding": {"key_padding_mask": torch.randn(B, S)},
    "both": {"attn_mask": RANDOM, "key_padding_mask": pad_mask(7, 7, 1)},
    "both float": {"attn_mask": torch.randn(L, S), "key_padding_mask": torch.randn(B, S)},
    "causal": {"attn_mask": causal(L, S), "is_causal": True},
    "causal padding": {"attn_mask": causal(L, S), "is_causal": True, "key_padding_mask": pad_mask(7, 4, 2)},
}
WEIGHTS = ({"need_weights": True}, {"need_weights": True, "average_attn_weights": False}, {"need_weights": False})
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other key and value": {"kdim": 6, "vdim": 10},
    "other value": {"vdim": 10, "bias": False, "batch_first": True},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
    "bias key": {"add_bias_kv": True, "batch_first": True},
    "zero key": {"add_zero_attn": True, "kdim": 6, "batch_first": True},
    "dropout": {"dropout": 0.4, "batch_first": True},
}


@pytest.mark.parametrize("weights", WEIGHTS, ids=["mean weights", "weights by head", "no weights"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_it_equals_multihead_attention(options: str, masks: str, weights: dict[str, bool]) -> None:
    attention, projected = make_pair(**OPTIONS[options])
    inputs = make_inputs(attention)
    for training in (True, False):
        assert_equal(attention.train(training), projected.train(training), *inputs, **MASKS[masks], **weights)


@pytest.mark.parametrize("options", ["plain", "batch first", "more keys", "other key and value"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_inputs_without_a_batch(options: str, need_weights: bool) -> None:
    attention, projected = make_pair(**OPTIONS[options])
    query, key, value = torch.randn(L, E), torch.randn(S, attention.kdim), torch.randn(S, attention.vdim)
    masks: tuple[dict[str, Any], ...] = (
        {}, {"attn_mask": causal(L, S)}, {"attn_mask": RANDOM[:H]}, {"key_padding_mask": pad_mask(4)[0]},
        {"average_attn_weights": False},
    )  # fmt: skip
    for options_of_call in masks:
        assert_equal(attention, projected, query, key, value, need_weights=need_weights, **options_of_call)


def test_it_equals_the_fused_kernel_of_evaluation() -> None:
    attention, projected = make_pair(batch_first=True)
    x = torch.randn(B, S, E)
    with torch.no_grad():
        for options in ({}, {"key_padding_mask": pad_mask(7, 4, 2), "need_weights": False}):
            assert_equal(attention.eval(), projected.eval(), x, x, x, **options)


def test_gradients_are_equal() -> None:
    attention, projected = make_pair(add_bias_kv=True)
    for module in (attention, projected):
        module(*make_inputs(attention), attn_mask=MASKS["float"]["attn_mask"])[0].square().sum().backward()
    ours = torch.cat([projected.q_proj.weight.grad, projected.k_proj.weight.grad, projected.v_proj.weight.grad])
    torch.testing.assert_close(ours, attention.in_proj_weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projected.out_proj.bias.grad, attention.out_proj.bias.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projected.bias_k.grad, attention.bias_k.grad, atol=1e-4, rtol=1e-4)


def test_projections_are_plain_linear_maps_of_as_many_parameters() -> None:
    attention, projected = make_pair(kdim=6, add_bias_kv=True)
    projections = [projected.q_proj, projected.k_proj, projected.v_proj, projected.out_proj]
    assert all(type(projection) is nn.Linear for projection in projections)
    assert [projection.in_features for projection in projections] == [E, 6, E, E]
    assert sum(p.numel() for p in projected.parameters()) == sum(p.numel() for p in attention.parameters())


def test_a_copy_has_the_dtype_the_mode_and_the_frozen_parameters() -> None:
    attention = nn.MultiheadAttention(E, H, dtype=torch.float64).eval()
    attention.in_proj_weight.requires_grad_(False)
    attention.out_proj.bias.requires_grad_(False)
    with torch.no_grad():
        projected = ProjectedAttention.from_attention(attention)
    assert {p.dtype for p in projected.parameters()} == {torch.float64}
    assert not any(module.training for module in projected.modules())
    frozen = {name for name, parameter in projected.named_parameters() if not parameter.requires_grad}
    assert frozen == {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.bias"}
    projected.q_proj.weight.data.zero_()
    assert attention.in_proj_weight.any(dim=1).all()


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *inputs: Any, **options: Any) -> Any:
        output, weights = super().forward(*inputs, **options)
        return 2 * output, weights


def with_hook() -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(E, H)
    attention.register_forward_hook(lambda module, inputs, output: None)
    return attention


def normalised() -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(E, H)
    nn.utils.parametrizations.weight_norm(attention.out_proj)
    return attention


LEFT = [
    (lambda: OwnAttention(E, H), "it is a OwnAttention"),
    (with_hook, "hooks are attached to it"),
    (normalised, "its weights are computed from other parameters"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT)
def test_what_cannot_be_projected_is_refused_and_left(make: Any, reason: str) -> None:
    attention = make()
    with pytest.raises(InputError, match=f"a plain nn.MultiheadAttention, but {reason}"):
        ProjectedAttention.from_attention(attention)
    network = nn.ModuleDict({"left": attention, "plain": nn.MultiheadAttention(E, H)})
    assert project_attention(network) == 1
    assert network["left"] is attention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": True}, "`attn_mask` must be given too"),
        ({"attn_mask": torch.zeros(L, L)}, r"`attn_mask` must be \(5, 7\) or \(12, 5, 7\), but got \(5, 5\)"),
        ({"key_padding_mask": torch.zeros(B, L)}, r"`key_padding_mask` must be \(3, 7\), but got \(3, 5\)"),
        ({"attn_mask": torch.zeros(L, S, dtype=torch.long)}, "`attn_mask` must be of booleans or floating-point"),
    ],
)
def test_masks_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    attention, projected = make_pair()
    with pytest.raises(InputError, match=message):
        projected(*make_inputs(attention), **options)


def test_inputs_that_do_not_fit_are_refused() -> None:
    _, projected = make_pair(batch_first=True)
    x = torch.randn(B, S, E)
    with pytest.raises(InputError, match=r"must all have 2 or all have 3 dimensions, but got \(3, 2, 3\)"):
        projected(x, x[0], x)
    with pytest.raises(InputError, match=r"must agree in batch, .* but got query \(3, 7, 16\), key \(1, 7, 16\)"):
        projected(x, x[:1], x[:1])
    nested = torch._nested_tensor_from_mask(x, ~pad_mask(7, 4, 2))
    with pytest.raises(InputError, match="takes no nested tensors"):
        projected(nested, nested, nested)
    with pytest.raises(InputError, match="`num_heads` must divide the 16 embedding features, but got 3"):
        ProjectedAttention(projected.q_proj, projected.k_proj, projected.v_proj, projected.out_proj, 3)
    with pytest.raises(InputError, match="`bias_k` and `bias_v` must be given together"):
        ProjectedAttention(*(nn.Linear(4, 4) for _ in range(4)), 2, bias_k=nn.Parameter(torch.zeros(1, 1, 4)))


# Transformer encoders, whose fused kernels would read packed weights


def make_layer(**options: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True, **options)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of a projection; a hook would itself refuse the fused kernels."""
    calls: list[int] = []
    forward = nn.Linear.forward

    def counted(module: nn.Linear, x: Tensor) -> Tensor:
        calls.append(1)
        return forward(module, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return calls


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_transformer_layer_runs_its_modules_in_evaluation(by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer().eval()
    x = torch.randn(B, S, E)
    calls = count_calls(monkeypatch)
    with torch.no_grad():
        expected = layer(x, src_key_padding_mask=pad_mask(7, 6, 5))
        assert not calls  # torch's fused kernel
        if by_hand:
            layer.self_attn = ProjectedAttention.from_attention(layer.self_attn)
        else:
            assert project_attention(layer) == 1
        ours = layer(x, src_key_padding_mask=pad_mask(7, 6, 5))
    assert len(calls) == 6
    kept = ~pad_mask(7, 6, 5)
    torch.testing.assert_close(ours[kept], expected[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_transformer_encoder_runs_its_modules_in_evaluation(
    by_hand: bool, padded: bool, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = nn.TransformerEncoder(make_layer(), 2).eval()
    assert encoder.use_nested_tensor
    x, mask = torch.randn(B, S, E), pad_mask(7, 4, 2) if padded else None
    calls = count_calls(monkeypatch)
    with torch.set_grad_enabled(grad):
        expected = encoder(x, src_key_padding_mask=mask)
        calls.clear()
        if by_hand:
            for layer in encoder.layers:
                layer.self_attn = ProjectedAttention.from_attention(layer.self_attn)
        else:
            assert project_attention(encoder) == 2
        ours = encoder(x, src_key_padding_mask=mask)
    assert len(calls) == 12
    kept = slice(None) if mask is None else ~mask
    torch.testing.assert_close(ours[kept], expected[kept], atol=1e-5, rtol=0)


def test_other_modules_of_an_encoder_may_be_replaced_too() -> None:
    """With attention of one's own, torch's fused kernel would look for the weights of the modules replaced."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 2).eval()
    encoder.layers[0].self_attn = OwnAttention(E, H, batch_first=True)
    assert project_attention(encoder) == 1
    for layer in encoder.layers:
        layer.linear1 = nn.Sequential(nn.Linear(E, 4), nn.Linear(4, 32))
    encoder.layers[1].self_attn.out_proj = nn.Sequential(nn.Linear(E, 4), nn.Linear(4, E))
    with torch.no_grad():
        assert encoder(torch.randn(B, S, E), src_key_padding_mask=pad_mask(7, 4, 2)).shape == (B, S, E)


# Whole networks


def test_every_attention_is_replaced_under_each_of_its_names() -> None:
    network = nn.ModuleDict({"a": nn.MultiheadAttention(E, H), "b": nn.Sequential(nn.MultiheadAttention(E, H))})
    network["again"] = network["a"]
    assert project_attention(network) == 2
    assert type(network["a"]) is type(network["b"][0]) is ProjectedAttention
    assert network["again"] is network["a"]
    assert project_attention(network) == 0


def test_attention_that_shares_a_weight_is_left() -> None:
    first, second = nn.MultiheadAttention(E, H), nn.MultiheadAttention(E, H)
    second.in_proj_weight = first.in_proj_weight
    network = nn.ModuleList([first, second, nn.MultiheadAttention(E, H)])
    assert project_attention(network) == 1
    assert network[0] is first


def test_an_attention_cannot_replace_itself() -> None:
    with pytest.raises(InputError, match=r"use ProjectedAttention\.from_attention"):
        project_attention(nn.MultiheadAttention(E, H))


def test_a_whole_transformer_is_equal() -> None:
    torch.manual_seed(0)
    network = nn.Transformer(E, H, 1, 1, 32, batch_first=True).eval()
    projected = copy.deepcopy(network)
    assert project_attention(projected) == 3
    source, target = torch.randn(B, S, E), torch.randn(B, L, E)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    with torch.no_grad():
        torch.testing.assert_close(
            projected(source, target, tgt_mask=mask), network(source, target, tgt_mask=mask), atol=1e-5, rtol=0
        )
