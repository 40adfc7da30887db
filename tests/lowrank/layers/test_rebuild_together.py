"""All weights of a network rebuilt together equal those rebuilt one by one, in value and gradient."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from lowrank.layers import ConvShape, FactoredMap
from lowrank.layers.acdc.entries import diagonal_sums, halves_matrix, toeplitz_and_hankel
from lowrank.layers.acdc.layer import cosine_matrix, cosine_multiplier
from lowrank.layers.acdc.stack import excess_layers, layer_slots
from lowrank.layers.base_layer import checkpoint_rebuild, relative_error
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.layers.blocks import hashed
from lowrank.layers.blocks.hashed import BankLookup, hash_table, reader_table, with_negatives
from lowrank.layers.factored import PadAndCast, padding_tables
from lowrank.layers.linear import build_linear
from lowrank.layers.registry import METHODS, make_method

torch.set_num_threads(1)
SHAPES = [ConvShape(16, 16)] * 3 + [ConvShape(8, 16), ConvShape(16, 16, (3, 3), padding=(1, 1), bias=True)]
FACTORED = ("tensor_train", "tucker", "cp", "hashed_full", "hashed", "hashed_both", "acdc", "monarch")


def network_of(name: str, **settings: object) -> nn.ModuleList:
    torch.manual_seed(0)
    if name == "hashed_both":
        settings["scale"] = 0.5  # at less a bank of the smallest shape has no entry
    method = make_method({"name": name, **settings})
    return nn.ModuleList(method.build(shape) for shape in SHAPES).double()


def values_and_gradients(network: nn.ModuleList) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(2, shape.in_channels, 4, 4, dtype=torch.float64, generator=generator) for shape in SHAPES]
    found = [layer(x) for layer, x in zip(network, images, strict=True)]
    return [*found, *torch.autograd.grad(sum(each.square().sum() for each in found), list(network.parameters()))]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_values_and_gradients_are_those_of_each_layer_alone(name):
    network = network_of(name)
    rebuild = BatchedRebuild(network)
    plain = {"dense", "separable", "shuffle", "svd", "spatial_svd", "tucker2", "cp_kernel", "tensor_train_kernel"}
    assert (len(rebuild.maps) > 0) == (name not in plain)
    alone = values_and_gradients(network)
    with rebuild.use_rebuilt_weights():
        together = values_and_gradients(network)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_layers_of_one_structure_are_one_stack():
    rebuild = BatchedRebuild(network_of("tensor_train"))
    assert sorted(len(places) for places in rebuild.stacks) == [1, 4]  # a depthwise part is no matter
    assert BatchedRebuild(network_of("tensor_train", dims=2)).stacks == rebuild.stacks


def test_a_bottleneck_that_builds_its_weight_is_rebuilt_and_a_narrow_one_is_not():
    thin, wide = network_of("bottleneck", rank_scale=0.1), network_of("bottleneck", rank_scale=0.9)
    assert (len(BatchedRebuild(thin).maps), len(BatchedRebuild(wide).maps)) == (0, len(SHAPES))
    alone = values_and_gradients(wide)
    with BatchedRebuild(wide).use_rebuilt_weights():
        for one, other in zip(values_and_gradients(wide), alone, strict=True):
            torch.testing.assert_close(one, other)


def test_a_linear_map_uses_its_external_weight():
    layer = build_linear(make_method({"name": "tucker"}), ConvShape(16, 32, bias=True))
    rebuild, x = BatchedRebuild(layer), torch.randn(3, 16)
    with rebuild.use_weights([torch.zeros(32, 16, 1, 1)]):
        assert torch.equal(layer(x), layer.pointwise.bias.expand(3, 32))
    with rebuild.use_rebuilt_weights():
        torch.testing.assert_close(layer(x), x @ layer.dense_weight().T + layer.pointwise.bias)


def test_no_layer_has_an_external_weight_afterwards_even_after_an_error():
    network = network_of("cp")

    def unlucky() -> None:
        with BatchedRebuild(network).use_rebuilt_weights():
            assert all(each.external_weight is not None for each in network.modules() if isinstance(each, FactoredMap))
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        unlucky()
    assert all(each.external_weight is None for each in network.modules() if isinstance(each, FactoredMap))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch, while tracing
def test_a_network_is_compiled_once_for_all_settings():
    """Rebuilt weights have one shape whatever the method, so one compiled network that takes them serves all."""
    networks = [network_of("tensor_train", rank_scale=0.3), network_of("tucker", dims=4), network_of("cp")]
    compiled_for, images = BatchedRebuild(networks[0], include_all=True), torch.randn(2, 16, 4, 4, dtype=torch.float64)
    graphs: list[object] = []

    def trunk(x: Tensor, weights: list[Tensor]) -> Tensor:
        with compiled_for.use_weights(weights):
            return networks[0][2](networks[0][1](networks[0][0](x)))

    torch._dynamo.reset()
    compiled = torch.compile(trunk, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for network in networks:
        found = compiled(images, BatchedRebuild(network, include_all=True).weights())
        torch.testing.assert_close(found, network[2](network[1](network[0](images))))
        gradients = torch.autograd.grad(found.sum(), list(network[0].parameters()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert len(graphs) == 1


def test_checkpointed_maps_rebuild_themselves():
    assert BatchedRebuild(checkpoint_rebuild(network_of("cp"))).maps == ()


@pytest.mark.parametrize("name", FACTORED)
def test_under_autocast_weights_are_in_half_precision_near_the_exact_ones(name):
    network = network_of(name)
    exact = BatchedRebuild(network).weights()
    with torch.autocast("cpu", torch.bfloat16):
        found = BatchedRebuild(network.float()).weights()
    for weight, wanted in zip(found, exact, strict=True):
        assert ((weight.double() - wanted).norm() / wanted.norm()).item() < 0.02
        if name in ("tensor_train", "tucker", "cp", "monarch"):
            assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings", [*FACTORED, "bottleneck", "tied_bottleneck", {"name": "tucker", "dims": 4}], ids=str
)
def test_padded_factors_give_the_same_weight_and_gradients(settings):
    """The form that a GPU uses, on a CPU: for one map and for a stack."""
    settings = settings if isinstance(settings, dict) else {"name": settings}
    shape = ConvShape(24, 48)
    layers = [make_method(settings).build(shape).double() for _ in range(2)]
    maps = [[each for each in layer.modules() if isinstance(each, FactoredMap)][-1] for layer in layers]
    columns = list(zip(*(each.factors() for each in maps), strict=True))
    wanted = torch.stack([each.compute_weight() for each in maps])
    found = maps[0].assemble(maps[0].pad_factors([torch.stack(column) for column in columns]))
    torch.testing.assert_close(found, wanted)
    direction = torch.randn_like(wanted)
    factors = [factor for column in columns for factor in column]
    gradients = (torch.autograd.grad(each, factors, direction) for each in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    alone = maps[1].assemble(
        [factor.squeeze(0) for factor in maps[1].pad_factors([f[None] for f in maps[1].factors()])]
    )
    torch.testing.assert_close(alone, wanted[1])


@pytest.mark.parametrize("name", ["tensor_train", "tucker"])
def test_padding_is_a_gather_forward_and_backward(name):
    rebuild = BatchedRebuild(network_of(name, rank_scale=0.3))
    leads = [rebuild.maps[places[0]] for places in rebuild.stacks]
    columns = [list(zip(*(rebuild.maps[at].factors() for at in places), strict=True)) for places in rebuild.stacks]
    flat = torch.cat([factor.reshape(-1) for factors in columns for column in factors for factor in column])
    flat = torch.cat([torch.zeros(1, dtype=flat.dtype), flat.detach()]).requires_grad_()
    index, back, shapes = padding_tables(leads, columns, {})
    filled = PadAndCast.apply(flat, index, back, torch.float64)
    assert len(filled) == sum(torch.Size(shape).numel() for group in shapes for shape in group) > len(flat)
    groups = (lead.pad_factors(list(map(torch.stack, factors))) for lead, factors in zip(leads, columns, strict=True))
    wanted = torch.cat([each.flatten() for group in groups for each in group])
    assert torch.equal(filled, wanted)
    direction = torch.randn_like(filled)
    (gradient,) = torch.autograd.grad(filled, flat, direction)
    (expected,) = torch.autograd.grad(flat[index], flat, direction)
    assert torch.equal(gradient[1:], expected[1:])


@pytest.mark.parametrize("layers", range(1, 24))
def test_products_in_pairs_multiply_the_layers_in_their_order(layers):
    spare, slots = excess_layers(layers), layer_slots(layers)
    held = dict(zip(slots, ([layer] for layer in range(layers)), strict=True))
    held.update({2 * spare + pair: held.pop(pair) + held.pop(spare + pair) for pair in range(spare)})
    assert sorted(held) == list(range(2 * spare, layers + spare))
    level = [held[slot] for slot in sorted(held)]
    while len(level) > 1:
        half = len(level) // 2
        level = [left + right for left, right in zip(level[:half], level[half:], strict=True)]
    assert level == [list(range(layers))]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16])
def test_entries_of_a_cosine_multiplier_and_their_transpose(width):
    generator = torch.Generator().manual_seed(0)
    diagonals = torch.randn(3, width, dtype=torch.float64, generator=generator)
    transform, halves = cosine_matrix(width), diagonals @ halves_matrix(width, diagonals)
    entries = toeplitz_and_hankel(halves)
    torch.testing.assert_close(entries, transform.T @ (diagonals[:, :, None] * transform))
    torch.testing.assert_close(cosine_multiplier(diagonals), entries)
    given = torch.randn(entries.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((diagonal_sums(given) * halves).sum(1), (given * entries).sum((1, 2)))


@pytest.mark.parametrize("layers", [1, 2, 5, 8])
@pytest.mark.parametrize("channels", [(16, 16), (11, 11), (5, 15), (6, 16), (16, 4), (15, 5), (1, 1)], ids=str)
def test_acdc_in_stacks_is_acdc_by_products(channels, layers):
    """The form that a GPU uses, on a CPU: one map and a stack, far from the initial values, in three precisions."""
    maps = [make_method({"name": "acdc", "layers": layers}).build(ConvShape(*channels)).double() for _ in range(3)]
    with torch.no_grad():
        first, second = (
            torch.stack([each.factors()[k] + 0.3 * torch.randn_like(each.first) for each in maps]).requires_grad_()
            for k in (0, 1)
        )
    edge = maps[0].edge * maps[0].output_scale
    wanted = torch.stack([maps[0]._multiply_layers(*pair, edge) for pair in zip(first, second, strict=True)])
    direction = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, (first, second), direction)
    found = maps[0]._multiply_on_gpu(first, second, torch.float64)
    torch.testing.assert_close(found, wanted)
    for gradient, other in zip(torch.autograd.grad(found, (first, second), direction), gradients, strict=True):
        torch.testing.assert_close(gradient, other)
    torch.testing.assert_close(maps[0]._multiply_on_gpu(first[1], second[1], torch.float64), wanted[1])
    single = [each.detach().float().requires_grad_() for each in (first, second)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 0.005), (torch.bfloat16, 0.03)):
        half = maps[0].float()._multiply_on_gpu(*single, dtype)
        assert relative_error(half, wanted) < tolerance
        for gradient, other in zip(torch.autograd.grad(half, single, direction.to(dtype)), gradients, strict=True):
            assert gradient.dtype == torch.float32
            assert relative_error(gradient, other) < tolerance


def test_constants_of_acdc_are_made_once_and_serve_training_after_inference(monkeypatch):
    layer = make_method({"name": "acdc", "layers": 3}).build(ConvShape(8, 16))
    made = []
    make = layer._constants_on_gpu
    monkeypatch.setattr(layer, "_constants_on_gpu", lambda *given: made.append(given) or make(*given))
    with torch.inference_mode():
        layer._multiply_on_gpu(*layer.factors(), torch.float32)
    layer._multiply_on_gpu(*layer.factors(), torch.float32).sum().backward()
    assert len(made) == 1
    assert layer.first.grad.abs().sum() > 0


def test_a_single_layer_copies_its_factors_at_once_under_autocast():
    layer = make_method({"name": "tucker"}).build(ConvShape(16, 32))
    assert layer._padded_alone(layer.factors())[0] is layer.factors()[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer._padded_alone(layer.factors())
    assert {factor.untyped_storage().data_ptr() for factor in found} == {found[0].untyped_storage().data_ptr()}
    torch.testing.assert_close(layer.assemble(found).float(), layer.compute_weight(), rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("weights", "entries"), [(12, 4), (13, 5), (7, 7), (9, 1)])
def test_a_bank_lookup_has_the_gradient_of_a_gather(weights, entries):
    bank = torch.randn(2, entries, dtype=torch.float64, requires_grad=True)
    reads, readers = hash_table(weights, entries), reader_table(weights, entries)
    found, wanted = BankLookup.apply(bank, reads, readers, torch.float64), with_negatives(bank).index_select(-1, reads)
    assert torch.equal(found, wanted)
    direction = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, bank, direction), torch.autograd.grad(wanted, bank, direction), strict=True
    ):
        torch.testing.assert_close(one, other)
    half = BankLookup.apply(bank.float(), reads, readers, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.autograd.grad(half, bank, direction.bfloat16())[0].dtype == torch.float64


@pytest.mark.parametrize(("name", "convolutions"), [("hashed_both", 1), ("shuffle", 2)])
def test_a_depthwise_part_that_only_scales_runs_no_convolution(name, convolutions):
    layer = make_method({"name": name}).build(ConvShape(16, 16))
    with torch.profiler.profile() as profile:
        layer(torch.randn(2, 16, 4, 4))
    assert {event.key: event.count for event in profile.key_averages()}["aten::_convolution"] == convolutions


def test_hash_tables_of_many_sizes_take_bounded_memory(monkeypatch):
    made: list[weakref.ref[torch.Tensor]] = []

    @hashed._keep_recent
    def table(weights: int, entries: int) -> torch.Tensor:
        tensor = torch.zeros(weights, dtype=torch.int32)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(hashed, "MAX_TABLE_BYTES", 4 * 250)
    assert table(100, 1) is table(100, 1)
    for entries in range(1, 9):
        table(100, entries)
    assert sum(tensor() is not None for tensor in made) == 2
    assert table(1000, 1) is table(1000, 1)  # one alone may be larger
    assert sum(tensor() is not None for tensor in made) == 1
