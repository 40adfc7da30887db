"""This project's kernels give torch's values and gradients, alone and in a rewritten network.

They need Triton and a GPU; with TRITON_INTERPRET=1 they run on a CPU (`make test-interpreted`).
"""

from __future__ import annotations

import copy
import operator
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch._aot_autograd.autograd_cache import check_node_safe
from torch._inductor.compile_fx import compile_fx
from torch.nn import functional

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import AugmentationSettings
from lowrank.data.augment import apply_augmentations, draw_augmentations, normaliser
from lowrank.kernels import fx_rewrite as rewriting, global_norm as norms_of_processes
from lowrank.kernels.fx_rewrite import rewrite
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.engine.precision import keep_float32_products

pytest.importorskip("triton", reason="the kernels need Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("the kernels need a GPU", allow_module_level=True)

from benchmarks.gpu.kernels import Layer, Stem, distances  # noqa: E402
from lowrank.kernels import (  # noqa: E402
    batch_norm as norm_kernels,
    depthwise as depthwise_kernels,
    fused_common as joined_kernels,
    stem_batch_norm as stem,
)
from lowrank.kernels.augment import augment_images  # noqa: E402
from lowrank.kernels.batch_norm import (  # noqa: E402
    batch_statistics,
    input_gradient,
    norm,
    norm_backward,
    normalise_by_parts,
    reduce_gradients,
)
from lowrank.kernels.depthwise import depthwise  # noqa: E402
from lowrank.kernels.fx_gradient_pass import FuseGradientSums  # noqa: E402
from lowrank.kernels.global_norm import global_norm_backward  # noqa: E402
from lowrank.kernels.pointwise_batch_norm import pointwise_norm, product_statistics, supports  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu
POINTWISE_CASES = [
    (8, 16, (6, 10), True, False, True), (8, 16, (6, 10), False, True, True), (8, 16, (6, 10), True, True, False),
    (64, 128, (2, 2), True, True, False), (128, 64, (2, 3), True, False, True),
    (128, 256, (4, 4), True, True, True), (8, 256, (2, 2), False, False, True),
    (16, 8, (1, 1), False, False, False),
    (48, 96, (2, 2), True, True, False), (96, 160, (2, 3), True, False, True), (80, 240, (1, 2), False, False, False),
]  # fmt: skip
if not INTERPRETED:  # in float32 no GPU has shared memory for more channels; benchmarks.gpu.kernels uses bfloat16
    POINTWISE_CASES = [case for case in POINTWISE_CASES if max(case[:2]) <= 64]
STEM_CASES = [(3, 16, (6, 5), True), (3, 64, (4, 4), False), (1, 32, (3, 1), True), (2, 16, (9, 20), True)]
SIXTEEN_BIT_CHANNELS = ((16, 64), (64, 64), (64, 128), (128, 32), (128, 128), (128, 256), (48, 96))


def processor_counts(size: tuple[int, int]) -> tuple[int, ...]:
    """Return for how many multiprocessors three images of a size are tested.

    With one, which runs two programs, a program has several tiles of up to 64 rows. Two tiles are one for each program
    on any number of processors: the same programs start.
    """
    return (1, 132) if 3 * size[0] * size[1] > 2 * 64 else (1,)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """Compute products of float32 in float32 on every GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def images(*shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * spread + centre
    return x.to(DEVICE, memory_format=torch.channels_last).requires_grad_()


def compare(found: Tensor, wanted: Tensor, inputs: tuple[Tensor, ...], near: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    direction = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    )  # fmt: skip
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [(2, 16, 6, 5), (2, 20, 8, 8), (1, 80, 4, 4), (2, 8, 1, 1), (1, 8, 3, 32)], ids=str)
@pytest.mark.parametrize("processors", [1, 132])
def test_depthwise(shape, processors, monkeypatch):
    monkeypatch.setattr(depthwise_kernels, "MULTIPROCESSORS", processors)  # with one, a program has several tiles
    x, weight = images(*shape), torch.randn(shape[1], 1, 3, 3, device=DEVICE, requires_grad=True)
    found = depthwise(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    compare(found, functional.conv2d(x, weight, padding=1, groups=shape[1]), (x, weight))


def compare_gradients(settings: NetworkSettings, backend: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Compare gradients of a separable network as compiled by a backend with the plain one's; return both after it."""
    plan = network_plan(settings, (3, 16, 16), 10)
    plain = build_student(settings, plan, make_method({"name": "separable"}), (3, 16, 16), 10, 0)
    plain = plain.to(DEVICE, memory_format=torch.channels_last).train()
    other, x = copy.deepcopy(plain), images(5, 3, 16, 16).detach()
    torch._dynamo.reset()
    direction = torch.randn(5, 10, device=DEVICE)
    with keep_float32_products():
        for network in (plain, torch.compile(other, backend=backend, fullgraph=True)):
            network(x).backward(direction)
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))
    return other, plain


@pytest.mark.slow  # when interpreted; on a GPU it is quick, and runs with all others that need one
def test_compiled_code_adds_the_gradients_of_residuals_in_the_depthwise_kernel(monkeypatch):
    found: list[int] = []

    class Counted(FuseGradientSums):
        def __call__(self, graph: torch.fx.Graph) -> None:
            before = len(graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor))
            super().__call__(graph)
            found.append(before - len(graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)))

        def uuid(self) -> None:
            return None

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        rewrite(graph)
        return compile_fx(graph, list(inputs), config_patches={"post_grad_custom_pre_pass": Counted()})

    monkeypatch.setattr(rewriting, "FUSED_DTYPES", (torch.float32,))
    compare_gradients(NetworkSettings(name="resnet9", width=0.25), backend)
    assert found == [0, 2]  # of the forward pass, and of the backward pass


@pytest.mark.slow  # when interpreted
def test_compiled_code_adds_the_gradient_of_a_residual_in_the_kernel_of_a_norm():
    """The input of the first of three pre-activation blocks is read by a norm and by the shortcut."""
    found: list[int] = []

    class Counted(FuseGradientSums):
        def __call__(self, graph: torch.fx.Graph) -> None:
            super().__call__(graph)
            norms = graph.find_nodes(op="call_function", target=torch.ops.lowrank.norm_backward.default)
            found.append(sum(len(node.args) == 10 for node in norms))

        def uuid(self) -> None:
            return None

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        rewrite(graph, fuse_pointwise=False)
        return compile_fx(graph, list(inputs), config_patches={"post_grad_custom_pre_pass": Counted()})

    other, plain = compare_gradients(NetworkSettings(name="wrn_10_1"), backend)
    assert found == [0, 1]  # of the forward pass, and of the backward pass
    for ours, theirs in zip(other.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_another_gradient_is_added_to_those_of_all_norms(monkeypatch):
    use_kernels_over_processes(monkeypatch)
    x, gradient, other = (images(2, 16, 6, 5, centre=each).detach() for each in range(3))
    weight, bias = torch.randn(2, 16, device=DEVICE)
    _, mean, variance = norm(x, weight, bias, None, 1e-5, True, False)
    norms = (gradient, x, weight, bias, mean, variance)
    for apart, joined in (
        (norm_backward(*norms, 1e-5, True, False), norm_backward(*norms, 1e-5, True, False, other)),
        (global_norm_backward(*norms, 1e-5, True, False), global_norm_backward(*norms, 1e-5, True, False, other)),
    ):
        torch.testing.assert_close(joined[0], apart[0] + other, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(joined[1:], apart[1:], strict=True):
            torch.testing.assert_close(ours, theirs)


def use_kernels_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels take tensors of a CPU, where norms over processes do without kernels."""
    if INTERPRETED:
        monkeypatch.setattr(norms_of_processes, "_has_kernels", lambda x: True)


@pytest.mark.parametrize("before", [True, False])
def test_a_gradient_is_added_in_the_kernel_only_if_computed_before(before):
    gradient, x, other = (images(2, 16, 6, 5, centre=each).detach() for each in range(3))
    weight = torch.randn(16, 1, 3, 3, device=DEVICE)
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(name) for name in ("gradient", "x", "weight")]
    extra = [graph.placeholder("other")] if before else []
    source = graph.call_function(torch.ops.lowrank.depthwise_backward.default, tuple(nodes))
    found = [graph.call_function(operator.getitem, (source, place)) for place in range(2)]
    extra = extra or [graph.call_function(torch.ops.aten.mul.Tensor, (nodes[1], 1.0))]
    total = graph.call_function(torch.ops.aten.add.Tensor, (extra[0], found[0]))
    graph.output((total, found[1]))
    found[0].meta["val"], extra[0].meta["val"] = x, other
    given = (gradient, x, weight, *([other] if before else []))
    wanted = torch.fx.GraphModule({}, graph)(*given)
    FuseGradientSums()(graph)
    adds = [node for node in graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert len(adds) == (0 if before else 1)
    for ours, theirs in zip(torch.fx.GraphModule({}, graph)(*given), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_a_gradient_is_added_in_the_kernel_of_a_norm_of_several_processes_unless_it_is_pooled(pool, monkeypatch):
    use_kernels_over_processes(monkeypatch)
    gradient, x, other = (images(2, 16, *size).detach() for size in ((2, 2) if pool else (4, 4), (4, 4), (4, 4)))
    weight, bias, mean, variance = torch.rand(4, 16, device=DEVICE)
    values = (gradient, x, weight, bias, mean, variance, other)
    graph = torch.fx.Graph()
    *inputs, extra = (graph.placeholder(f"input{number}") for number in range(len(values)))
    source = graph.call_function(torch.ops.lowrank.global_norm_backward.default, (*inputs, 1e-5, True, pool))
    found = [graph.call_function(operator.getitem, (source, place)) for place in range(2)]
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (found[0], extra)), found[1]))
    found[0].meta["val"], extra.meta["val"] = x, other
    wanted = torch.fx.GraphModule({}, graph)(*values)
    FuseGradientSums()(graph)
    assert len(graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)) == pool
    for ours, theirs in zip(torch.fx.GraphModule({}, graph)(*values), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cutout", [0, 1, 5])
def test_augmented_images_equal_those_of_plain_torch_to_the_bit(cutout, dtype):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (7, 9, 6, 3), dtype=torch.uint8, generator=generator)
    positions = torch.randint(0, 7, (20,), generator=generator)
    numbers = draw_augmentations(AugmentationSettings(shift=3, flip=True, cutout=cutout), 1, positions + 11, 9, 6)
    norm = normaliser((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    wanted = apply_augmentations(stored, positions, numbers, cutout, norm, dtype=dtype)
    given = [each.to(DEVICE) for each in (stored, positions, *numbers, *norm)]
    found = augment_images(given[0], given[1], tuple(given[2:7]), cutout, *given[7:], dtype).cpu()
    assert found.stride() == wanted.stride()
    bits = torch.int16 if dtype is torch.float16 else torch.int32
    assert torch.equal(found.view(bits), wanted.view(bits))


@pytest.mark.parametrize("shape", [(2, 16, 6, 10), (3, 20, 8, 8)], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_norm(shape, relu, pool, adds):
    compare_norm(shape, relu, pool, adds)


@pytest.mark.parametrize("pool", [False, True])
def test_a_norm_of_several_tiles(pool, monkeypatch):
    use_small_tiles(monkeypatch)
    compare_norm((6, 20, 6, 10), True, pool, adds=True)


def use_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rows and channels of a norm into several tiles, the last ones incomplete; reductions take several each."""
    monkeypatch.setattr(norm_kernels, "MULTIPROCESSORS", 4)
    monkeypatch.setattr(norm_kernels, "SUM_CHANNELS", 8)
    for name in ("STATISTICS", "REDUCE", "APPLY", "GRADIENT"):
        tile = replace(getattr(norm_kernels, name), numbers=128, channels=8)
        monkeypatch.setattr(norm_kernels, name, tile)


def compare_norm(shape: tuple[int, ...], relu: bool, pool: bool, adds: bool) -> None:
    """Compare the norm's result, statistics and gradients with torch's."""
    x, weight, bias = images(*shape, spread=2, centre=5), *torch.randn(2, shape[1], device=DEVICE)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    wanted = functional.batch_norm(x, None, None, weight, bias, training=True)
    wanted = functional.relu(wanted) if relu else wanted
    wanted = functional.max_pool2d(wanted, 2) if pool else wanted
    residual = torch.randn_like(wanted).requires_grad_() if adds else None
    wanted = wanted if residual is None else wanted + residual
    found, mean, variance = norm(x, weight, bias, residual, 1e-5, relu, pool)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
    compare(found, wanted, (x, weight, bias, *(() if residual is None else (residual,))))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_a_norm_over_parts_is_that_over_all_images(pool, small, monkeypatch):
    """As of processes that share a batch: each has the sums of its part alone, and all parts' tables."""
    if small:
        use_small_tiles(monkeypatch)
    torch.manual_seed(0)
    parts, channels = 3, 20
    x = torch.randn(2 * parts, channels, 4, 6, device=DEVICE) * 2 + 3
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(channels, device=DEVICE) + 0.5, torch.randn(channels, device=DEVICE)
    gradient = torch.randn_like(x[:, :, ::2, ::2] if pool else x).contiguous(memory_format=torch.channels_last)
    statistics, sums = (torch.empty(parts, 2, channels, device=DEVICE) for _ in range(2))
    for part, target in zip(x.chunk(parts), statistics, strict=True):
        batch_statistics(part, target)
    outputs, (mean, *_), (variance, *_) = zip(
        *(normalise_by_parts(part, weight, bias, statistics, None, 1e-5, True, pool) for part in x.chunk(parts)),
        strict=True,
    )
    for part, upper, target in zip(x.chunk(parts), gradient.chunk(parts), sums, strict=True):
        reduce_gradients(upper, part, weight, bias, mean, variance, 1e-5, True, pool, target)
    settings = (x.numel() // channels, 1e-5, True, pool)
    ours = torch.cat([
        input_gradient(upper, part, weight, bias, mean, variance, sums[0, 1], sums[0, 0], *settings, parts=parts)
        for part, upper in zip(x.chunk(parts), gradient.chunk(parts), strict=True)
    ])  # fmt: skip
    leaf = x.clone().requires_grad_()
    output, of_all, variance_of_all = norm(leaf, weight, bias, None, 1e-5, True, pool)
    output.backward(gradient)
    torch.testing.assert_close(torch.cat(outputs), output)
    torch.testing.assert_close(mean, of_all)
    torch.testing.assert_close(variance, variance_of_all)
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "outs", "size", "relu", "pool", "adds", "processors"),
    [(*case, processors) for case in POINTWISE_CASES for processors in processor_counts(case[2])],
)
def test_a_pointwise_map_fused_with_its_norm(channels, outs, size, relu, pool, adds, processors, monkeypatch):
    monkeypatch.setattr(joined_kernels, "MULTIPROCESSORS", processors)
    x = images(3, channels, *size, spread=2, centre=1)
    matrix = torch.randn(outs, channels, device=DEVICE) / channels**0.5
    weight, bias = torch.randn(2, outs, device=DEVICE)
    parameters = [each.requires_grad_() for each in (matrix, weight, bias)]
    product = functional.conv2d(x, matrix[:, :, None, None])
    wanted = functional.batch_norm(product, None, None, weight, bias, training=True)
    wanted = functional.relu(wanted) if relu else wanted
    wanted = functional.max_pool2d(wanted, 2) if pool else wanted
    residual = torch.randn_like(wanted).requires_grad_() if adds else None
    wanted = wanted if residual is None else wanted + residual
    found, mean, variance, _ = pointwise_norm(x, matrix, weight, bias, residual, 1e-5, relu, pool)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mean, product.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, product.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
    compare(found, wanted, (x, *parameters, *(() if residual is None else (residual,))))


@pytest.mark.parametrize(
    ("channels", "outs", "size", "relu", "processors"),
    [(*case, processors) for case in STEM_CASES for processors in processor_counts(case[2])],
)
def test_a_stem_fused_with_its_norm(channels, outs, size, relu, processors, monkeypatch):
    monkeypatch.setattr(joined_kernels, "MULTIPROCESSORS", processors)
    x = images(3, channels, *size, spread=2, centre=1).detach()
    kernel = torch.randn(outs, channels, 3, 3, device=DEVICE) / 3
    weight, bias = torch.randn(2, outs, device=DEVICE)
    parameters = [each.requires_grad_() for each in (kernel, weight, bias)]
    product = functional.conv2d(x.double(), kernel.double(), padding=1)
    wanted = functional.batch_norm(product, None, None, weight.double(), bias.double(), training=True)
    wanted = functional.relu(wanted) if relu else wanted
    matrix = kernel.permute(0, 2, 3, 1).flatten(1)
    found, mean, variance, _ = stem.stem_norm(x, matrix, weight, bias, 1e-5, relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mean, product.mean((0, 2, 3)).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, product.var((0, 2, 3), correction=0).float(), rtol=1e-3, atol=1e-4)
    compare(found, wanted.float(), tuple(parameters))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(16, 32, 4, True, True), Layer(32, 16, 3, False, False), Stem(3, 32, 8), Layer(8, 256, 6, True, False),
        *(Layer(*channels, 6, pool, not pool) for number, channels in enumerate(SIXTEEN_BIT_CHANNELS)
          for pool in ((number % 2 == 0,) if INTERPRETED else (False, True))),
    ],
    ids=str,
)  # fmt: skip
def test_in_sixteen_bits_a_fused_map_is_as_exact_as_a_map_and_a_norm(layer):
    dtype = torch.float16 if INTERPRETED else torch.bfloat16  # Triton's interpreter multiplies the bits of the latter
    for name, ours, theirs in distances(layer, 3, DEVICE, dtype):
        assert ours < max(1.2 * theirs, 0.004), name


@pytest.mark.parametrize("rows", [1, 127, 2000])
def test_statistics_of_a_product_far_from_zero(rows):
    """Deviations of a thousandth of the mean keep four digits, over several programs and tiles."""
    generator = torch.Generator().manual_seed(rows)
    x = 1 + torch.randn(1, 16, rows, 1, generator=generator) * 1e-3
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    mean, variance = product_statistics(x, torch.ones(32, 16, device=DEVICE))
    wanted = x.double().sum(1, keepdim=True).expand(-1, 32, -1, -1)
    torch.testing.assert_close(mean.double(), wanted.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), wanted.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("room", [True, False])
def test_in_bfloat16_maps_are_fused_where_shared_memory_allows(room):
    settings = NetworkSettings(name="resnet9", width=0.25)
    plan = network_plan(settings, (3, 8, 8), 10)
    network = build_student(settings, plan, make_method({"name": "separable"}), (3, 8, 8), 10, 0).to(DEVICE).train()
    found: dict[str, int] = {}

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.update(rewrite(copy.deepcopy(graph), fuse_pointwise=room))
        return graph.forward

    torch._dynamo.reset()
    with torch.autocast(DEVICE, torch.bfloat16):
        torch.compile(network, backend=backend, fullgraph=True)(images(2, 3, 8, 8).detach())
    apart = 0 if room else 7
    wanted = {
        "stem": 1,
        "joined": 7 - apart,
        "norm": apart,
        "depthwise": 7,
        "pointwise": apart,
        "narrow": 0,
        "pool": 1,
        "global_pool": 0,
    }
    assert found == wanted


@pytest.mark.parametrize(("name", "joined"), [("resnet9", True), ("mobilenet_v2", True), ("mobilenet_v2", False)])
def test_the_compiler_keeps_the_gradients_of_a_rewritten_graph_on_disk(name, joined):
    """It refuses a graph with an operation that it does not know, and then traces gradients in every process."""
    settings = NetworkSettings(name=name, width=0.25 if name == "resnet9" else 1.0)
    plan = network_plan(settings, (3, 16, 16), 10)
    network = build_student(settings, plan, make_method({"name": "separable"}), (3, 16, 16), 10, 0).to(DEVICE).train()
    changed: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        changed.append(sum(rewrite(graph, fuse_pointwise=joined).values()))
        for node in graph.graph.nodes:
            check_node_safe(node)  # raises
        return lambda *arguments: (torch.zeros(2, 10),)

    torch._dynamo.reset()
    with torch.autocast(DEVICE, torch.bfloat16):
        torch.compile(network, backend=backend, fullgraph=True)(images(2, 3, 16, 16).detach())
    assert changed[0] > 10


def test_shapes_that_the_fused_kernels_support():
    assert [supports(8, 8), supports(16, 8), supports(48, 96), supports(96, 128), supports(128, 256)] == [True] * 5
    assert [supports(4, 16), supports(24, 32), supports(32, 24), supports(144, 128), supports(128, 512)] == [False] * 5
    assert [stem.supports(3, 64), stem.supports(1, 16), stem.supports(2, 128)] == [True] * 3
    assert [stem.supports(4, 64), stem.supports(3, 8), stem.supports(3, 48), stem.supports(3, 256)] == [False] * 4


@pytest.mark.parametrize("pool", [False, True])
def test_nan_is_not_hidden_by_the_relu(pool):
    x = images(1, 8, 4, 4).detach()
    x[0, 3, 1, 1] = float("nan")
    found, _, variance = norm(x, torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE), None, 1e-5, True, pool)
    assert found[0, 3].isnan().all()
    assert variance[3].isnan()
    assert found[0, :3].isfinite().all()


COUNTS = {
    "resnet9": {"stem": 0, "joined": 0, "norm": 8, "depthwise": 7, "pointwise": 7, "narrow": 1, "pool": 1},
    "wrn_10_1": {"stem": 0, "joined": 0, "norm": 7, "depthwise": 4, "pointwise": 6, "narrow": 1, "pool": 0},
}


@pytest.mark.slow  # when interpreted
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("joined", [0, None], ids=["apart", "joined"])
def test_a_rewritten_network_equals_the_network(name, joined, monkeypatch):
    counts, width = COUNTS[name] | {"global_pool": int(name == "resnet9")}, 0.125
    if joined is None:
        width = 0.25  # the fewest channels of a stem that is joined
        monkeypatch.setattr(rewriting, "FUSED_DTYPES", (torch.float32,))
        stems, joined = {"resnet9": (1, 7), "wrn_10_1": (0, 3)}[name]
        counts |= {"stem": stems, "joined": joined, "norm": counts["norm"] - joined - stems}
        counts |= {"pointwise": counts["pointwise"] - joined, "narrow": counts["narrow"] - stems}
    settings = NetworkSettings(name=name, width=width if name == "resnet9" else 1.0)
    plan = network_plan(settings, (3, 16, 16), 10)
    plain = build_student(settings, plan, make_method({"name": "separable"}), (3, 16, 16), 10, 0)
    plain = plain.to(DEVICE, memory_format=torch.channels_last).train()
    other, found = copy.deepcopy(plain), {}

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.update(rewrite(graph))
        return graph.forward

    torch._dynamo.reset()
    x = images(5, 3, 16, 16).detach()  # among which no value is so near to zero that rounding turns a ReLU
    wanted = plain(x)
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(wanted)
    wanted.backward(direction)
    other.zero_grad()
    compiled(x).backward(direction)
    assert found == counts
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))
