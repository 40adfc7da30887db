"""A compiled function serves all settings of a network and trains as the plain loop; training can do without it."""

from __future__ import annotations

import operator
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.nn import functional

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.distillation import CachedTeacher, Teacher
from lowrank.distillation.teacher import LiveTeacher, default_taps
from lowrank.kernels import dispatch, fx_gradient_pass, fx_rewrite as rewriting, suspended_exchange
from lowrank.kernels.dispatch import has_enough_shared_memory, supports_kernels
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.divergence import DivergedError
from lowrank.training.engine import compiled_forward
from lowrank.training.engine.compiled_forward import NotCompilableError, compiled_forward_of
from lowrank.training.objective import Loss
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.utils import hold_lock, module_environment
from tests.support.traced_graphs import graphs_without_compiler
from tests.support.training import filled_cache

SMALL = NetworkSettings(width=0.125)
LOSS = Loss.of(Recipe())
PARAMS = 4500
CALLS: list[int] = []


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=200))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Trunks are traced as ever and then run as they were traced, without a compiler; what was traced."""
    with graphs_without_compiler(monkeypatch) as traced:
        yield traced


def student(method: dict[str, Any] | None = None, params: int = PARAMS, **network: Any) -> nn.Module:
    settings = SMALL.model_copy(update=network)
    plan = network_plan(settings, (1, 8, 8), 10)
    solved = solve(plan, make_method(method or {"name": "tensor_train", "dims": 3}), Budget(params=params))
    return build_student(settings, plan, solved, (1, 8, 8), 10, seed=0)


def trainer(
    data: ImageData, engine: str, network: nn.Module | None = None, notify: Any = None,
    teacher: Teacher | None = None, cache_epochs: int | None = None, **fields: Any,
) -> Trainer:  # fmt: skip
    torch.manual_seed(1)
    teacher_network = make_network(SMALL, data.image_shape, 10)
    recipe = Recipe(epochs=3, batch_size=32, lr=0.01, engine=engine, **fields)  # type: ignore[arg-type]
    return Trainer(
        network or student(), data, recipe, augmentation=default_augmentation("digits", data.image_shape), order_seed=0,
        notify=notify or pytest.fail, cache_epochs=cache_epochs,
        teacher=teacher or LiveTeacher(teacher_network, default_taps(teacher_network)),
    )  # fmt: skip


def losses(run: Trainer, epochs: int = 1) -> Tensor:
    found = []
    for _ in range(epochs):
        run.train_steps()
        found.append(run.step_losses.clone())
        run.epoch += 1
    return torch.cat(found)


def shared_forward(network: nn.Module, loss: Loss = LOSS) -> compiled_forward.CompiledForward:
    return compiled_forward_of(network, BatchedRebuild(network, include_all=True), loss, (), None)


def test_all_settings_of_factored_methods_share_one_compiled_function(graphs):
    expected = shared_forward(student())
    for method in ({"name": "tensor_train", "dims": 2}, {"name": "tucker"}, {"name": "cp"}, {"name": "bottleneck"}):
        assert shared_forward(student(method, 6000)) is expected
    frozen = student().requires_grad_(False)
    networks = [student({"name": "shuffle"}, 9000), student(width=0.25, params=20_000), frozen, student().eval()]
    forwards = [shared_forward(network) for network in networks] + [
        shared_forward(student(), Loss.of(Recipe(label_smoothing=0.1)))
    ]
    assert len({id(forward) for forward in [expected, *forwards]}) == 6


def test_incomparable_networks_share_nothing_and_hooks_are_refused(graphs):
    odd = student()
    odd.stage1.gain = torch.ones(1)  # a tensor of no known place
    assert shared_forward(odd) is not shared_forward(odd)
    odd.stage2.register_forward_hook(lambda *_: None)
    with pytest.raises(NotCompilableError, match="its module `stage2` has hooks"):
        shared_forward(odd)


@pytest.mark.parametrize("name", ["lazy", "boxed", "auxiliary", "tied_layer", "tied_parameter"])
def test_a_network_of_the_users_is_compiled_with_the_hook_that_takes_its_logits(data, graphs, name):
    settings = NetworkSettings(name=f"tests.support.own_networks:{name}")
    runs = []
    for engine in ("compiled", "plain"):
        torch.manual_seed(0)
        runs.append(trainer(data, engine, make_network(settings, data.image_shape, 10)))
    torch.testing.assert_close(losses(runs[0]), losses(runs[1]), rtol=1e-4, atol=1e-5)
    assert runs[0].captured_epoch.compiled
    assert len(graphs) == 1
    (function,) = compiled_forward._COMPILED.values()
    assert all(tensor.is_meta for tensor in function.template.state_dict().values())


@pytest.mark.parametrize("name", ["plain", "distilled, clipped, averaged"])
def test_the_compiled_function_trains_as_the_plain_loop_and_is_traced_once(data, graphs, name):
    distilled = {"attention_weight": 1000.0, "kd_weight": 0.5, "clip_norm": 0.5, "ema_decay": 0.9}
    fields = {} if name == "plain" else distilled
    for method in ({"name": "tensor_train", "dims": 3}, {"name": "tucker"}):
        found = trainer(data, "compiled", student(method), **fields)
        expected = trainer(data, "plain", student(method), **fields)
        torch.testing.assert_close(losses(found), losses(expected), rtol=1e-4, atol=1e-5)
        state = found.state()
        for key, tensor in expected.state().items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    assert len(graphs) == 1
    results = [node.meta["example_value"] for node in next(iter(graphs[0].graph.find_nodes(op="output"))).args[0]]
    # Nothing else leaves the graph, such as attention maps, and the backward pass begins at the loss alone
    assert {tuple(result.shape) for result in results} == {(32, 10), ()}
    assert sum(result.requires_grad for result in results) == 1


def test_the_compiled_function_gathers_what_the_cache_holds_over_fifty_steps(data, graphs, tmp_path):
    """Traced once: the rows that the step gathers have one layout whichever cache epoch they come from."""
    cache, runs = filled_cache(tmp_path, data, 2), []
    for engine, preload in (("compiled", True), ("plain", False)):
        teacher = CachedTeacher(cache, data, pytest.fail, preload=preload)
        run = trainer(data, engine, teacher=teacher, cache_epochs=2, attention_weight=10.0, kd_weight=0.5)
        runs.append(losses(run, epochs=9)[:50])
    assert len(runs[0]) == 50
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_a_machine_that_cannot_compile_warns_once_and_trains(data, monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    monkeypatch.setattr(compiled_forward, "compile_obstacle", lambda device: "there is no C compiler")
    messages: list[str] = []
    runs = [trainer(data, engine, notify=messages.append) for engine in ("compiled", "compiled", "plain")]
    first, second, plain = (losses(run) for run in runs)
    assert messages == ["training is not compiled, and so is slower: there is no C compiler"]
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_training_goes_on_when_another_process_compiles_for_too_long(data, graphs, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_forward, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(compiled_forward.CompiledForward, "digest", lambda *_: "abcd")
    folder = tmp_path / compiled_forward.COMPILED_FOLDER
    folder.mkdir()
    messages: list[str] = []
    with hold_lock(folder / "abcd.lock"):
        run = trainer(data, "compiled", notify=messages.append)
        assert losses(run).isfinite().all()
    assert messages[0] == "another process compiles the same network; waiting for it"
    assert messages[1].startswith("training is not compiled, and so is slower: the process that compiles the same netw")
    assert len(messages) == 2


@pytest.mark.parametrize(("code", "processes"), [("none", 7), ("on disk", 1), ("from the process that held it", 1)])
def test_the_compiler_has_processes_of_its_own_only_where_there_is_no_code(code, processes, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / compiled_forward.COMPILED_FOLDER
    folder.mkdir()
    with ExitStack() as stack, inductor_config.patch(compile_threads=7):
        if code == "from the process that held it":
            lock = stack.enter_context(hold_lock(folder / "abcd.lock"))
        elif code == "on disk":
            (folder / "abcd").touch()

        def finish(message: str) -> None:
            (folder / "abcd").touch()
            lock.release()

        with compiled_forward.compile_once("abcd", finish):
            assert inductor_config.compile_threads == processes
        assert inductor_config.compile_threads == 7


def test_code_on_disk_serves_only_the_kernels_that_it_was_compiled_with(monkeypatch, tmp_path):
    """The compiler's cache knows our operations by their names, and their gradients are part of the code."""
    passes, codes = [], []
    compiled = compiled_forward.CompiledLogits(nn.Conv2d(1, 2, 3), None)
    for number, text in enumerate(("first", "first", "second")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "batch_norm.py").write_text(text)
        monkeypatch.setattr(dispatch, "__file__", str(folder / "dispatch.py"))
        passes.append(fx_gradient_pass.FuseGradientSums().uuid())
        codes.append(compiled.digest(torch.ones(2, 1, 8, 8)))
    assert passes[0] == passes[1] != passes[2]
    assert codes[0] == codes[1] != codes[2]


COMPILED_STEP = """
import torch
from torch._dynamo.utils import counters
from lowrank.kernels import compile_graph
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
loss = torch.compile(network, backend=compile_graph, fullgraph=True, dynamic=False)(torch.ones(2, 4)).square().sum()
loss.backward()
print(loss.item(), network[0].weight.grad.sum().item())
print(*(counters["aot_autograd"][f"autograd_cache_{kind}"] for kind in ("miss", "hit", "bypass")))
print(*(counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("miss", "hit", "bypass")))
"""


@pytest.mark.slow
def test_a_second_process_takes_all_code_and_its_gradients_from_disk(tmp_path):
    environment = module_environment(TORCHINDUCTOR_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1")
    outputs = [
        subprocess.run(
            [sys.executable, "-c", COMPILED_STEP], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]  # fmt: skip
    assert outputs[0][1:] == ["1 0 0", "2 0 0"]
    assert outputs[1][1:] == ["0 1 0", "0 2 0"]
    assert outputs[0][0] == outputs[1][0]


def test_training_goes_on_when_the_compilers_cache_cannot_be_written(data, graphs, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    messages: list[str] = []
    run = trainer(data, "compiled", notify=messages.append)
    monkeypatch.setenv(
        "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache")
    )  # a trainer mends it when it is made
    assert losses(run).isfinite().all()
    (message,) = messages
    assert message.startswith("training is not compiled, and so is slower: [Errno 20] Not a directory")


def test_training_goes_on_without_a_compiler_that_fails(data, graphs, monkeypatch):
    def fail(graph: Any, inputs: Any) -> Any:
        raise KeyError("no such instruction")

    monkeypatch.setattr(compiled_forward, "compile_graph", fail)
    check_training_is_plain(data, monkeypatch, "no such instruction")


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, KeyError, ImportError])
def test_training_goes_on_where_a_compiler_cannot_begin(data, graphs, monkeypatch, kind):
    """Here torch does not turn the error into one of its own."""

    def fail(self: Any, images: Any) -> str:
        raise kind("no such instruction")

    monkeypatch.setattr(compiled_forward.CompiledForward, "digest", fail)
    check_training_is_plain(data, monkeypatch, "no such instruction")


def check_training_is_plain(data: ImageData, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    messages: list[str] = []
    found = losses(trainer(data, "compiled", notify=messages.append))
    (message,) = messages
    assert message.startswith("training is not compiled, and so is slower: ")
    assert reason in message
    assert torch.equal(found, losses(trainer(data, "plain")))


def test_memory_that_runs_out_while_compiling_is_the_trials_error(data, graphs, monkeypatch):
    def fail(self: Any, *arguments: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compiled_forward.CompiledObjective, "__call__", fail)
    with pytest.raises(torch.OutOfMemoryError):
        losses(trainer(data, "compiled"))


def test_training_goes_on_where_a_later_step_would_have_to_compile_again_and_cannot(data, graphs, monkeypatch):
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            CALLS.append(1)  # no attribute of a module
            return x * self.scale * (1 + 0.1 * len(CALLS))

    def counting() -> nn.Module:
        network = student()
        CALLS.clear()
        network.stage2 = nn.Sequential(network.stage2, Counter())
        return network

    monkeypatch.setattr(compiled_forward, "MAX_COMPILED", 2)
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    messages: list[str] = []
    run = trainer(data, "compiled", counting(), notify=messages.append)
    assert losses(run).isfinite().all()
    (message,) = messages
    assert message.startswith("training is not compiled, and so is slower: ")
    assert not run.captured_epoch.compiled


def test_advice_of_the_compiler_to_lower_the_precision_is_no_obstacle(data, graphs, monkeypatch):
    """Torch gives it for graphs with products of float32 on a GPU; here the compiler is replaced by one that does."""

    def advise(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        warnings.warn(
            "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. Consider setting "
            "`torch.set_float32_matmul_precision('high')` for better performance.",
            stacklevel=1,
        )
        return graph.forward

    monkeypatch.setattr(compiled_forward, "compile_graph", advise)
    before = torch.get_float32_matmul_precision()
    run = trainer(data, "compiled")
    losses(run)
    assert run.captured_epoch.compiled
    assert torch.get_float32_matmul_precision() == before


def test_training_goes_on_without_a_kernel_that_needs_too_much_shared_memory(data, graphs, monkeypatch):
    """The kernel fails while the first step runs, when parts of it have been done."""

    class OutOfSharedMemoryError(Exception):
        pass

    def fail_after_running(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            graph(*arguments)
            raise OutOfSharedMemoryError("out of resource: shared memory")

        return run

    monkeypatch.setattr(compiled_forward, "compile_graph", fail_after_running)
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    messages: list[str] = []
    found, expected = trainer(data, "compiled", notify=messages.append), trainer(data, "plain")
    assert torch.equal(losses(found), losses(expected))
    assert messages == ["training is not compiled, and so is slower: out of resource: shared memory"]
    for key, tensor in expected.state().items():
        assert torch.equal(found.state()[key], tensor), key


class OnGpu(Tensor):
    """A tensor that claims to be on a GPU."""

    is_cuda = True  # type: ignore[assignment]
    device = torch.device("cuda")  # type: ignore[assignment]


@pytest.mark.parametrize(("kernels", "room"), [(False, False), (True, False), (True, True)])
def test_a_graph_is_changed_as_its_card_has_the_kernels_and_the_room(kernels, room, monkeypatch):
    changed: list[bool] = []
    monkeypatch.setattr(rewriting, "supports_kernels", lambda device: kernels)
    monkeypatch.setattr(rewriting, "has_enough_shared_memory", lambda device: room)
    monkeypatch.setattr(
        rewriting, "rewrite", lambda graph, *, fuse_pointwise, processes: changed.append(fuse_pointwise)
    )
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *given, config_patches: config_patches)
    graph = torch.fx.symbolic_trace(nn.Identity())
    patches = rewriting.compile_graph(graph, [torch.ones(1).as_subclass(OnGpu)])
    assert changed == ([room] if kernels else [])
    assert ("post_grad_custom_pre_pass" in patches) == kernels


@pytest.mark.parametrize(
    ("capability", "kilobytes", "kernels", "room"),
    [((7, 5), 64, False, False), ((8, 0), 163, True, False), ((8, 9), 99, True, False), ((9, 0), 227, True, True)],
    ids=["T4", "A100", "L4", "H100"],
)
def test_gpus_have_the_kernels_that_their_shared_memory_allows(capability, kilobytes, kernels, room, monkeypatch):
    properties = types.SimpleNamespace(shared_memory_per_block_optin=kilobytes * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert (supports_kernels(torch.device("cuda")), has_enough_shared_memory(torch.device("cuda"))) == (kernels, room)


def test_a_divergence_of_a_compiled_run_is_traced_to_its_layer(data, graphs):
    run = trainer(data, "compiled")
    with torch.no_grad():
        run.network.stage2[1].weight[0] = float("nan")
    with pytest.raises(DivergedError, match=r"in the output of `stage2\.1`"):
        run.train_steps()


@pytest.mark.slow
def test_compiled_code_has_the_losses_of_the_plain_loop_over_fifty_steps(data):
    if compiled_forward.compile_obstacle(torch.device("cpu")) is not None:
        pytest.skip("no C compiler")
    torch._dynamo.reset()
    found, expected = (losses(trainer(data, engine), epochs=9)[:50] for engine in ("compiled", "plain"))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
    torch._dynamo.utils.counters.clear()
    losses(trainer(data, "compiled", student({"name": "tucker"})))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_a_norm_of_several_processes_takes_in_what_follows_and_counts_the_images_of_all():
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(x)) + x

    block, x = Block(), torch.randn(4, 3, 2, 2)
    torch.compile(block, backend=keep)(x)
    (graph,) = graphs
    for node in list(graph.graph.nodes):
        rewriting._replace_norm(graph.graph, node, processes=2)
    (norm,) = (node for node in graph.graph.nodes if node.target is torch.ops.lowrank.global_norm.default)
    _, _, _, residual, eps, relu, pool = norm.args
    assert (residual.op, eps, relu, pool) == ("placeholder", 1e-5, True, False)
    factors = [node.args[1] for node in graph.graph.nodes if node.target is operator.mul]
    assert sorted(factors) == [1.0, 32 / 31]  # of the mean and the variance of 2 x 4 x 2 x 2 positions
    assert not any(rewriting._is_training_norm(node) for node in graph.graph.nodes)


class ReusedNorms(nn.Module):
    """Norms of two momenta; one runs twice, and of another the running mean is read."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3)])
        self.twice, self.read = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in (*self.norms, self.twice, self.twice, self.read):
            x = 0.5 * norm(x) + 1
        return x * self.read.running_mean.sum()


def test_updates_of_norms_are_joined_but_for_tensors_that_are_also_read_and_have_the_same_values():
    graphs: list[torch.fx.GraphModule] = []
    networks = [ReusedNorms(), ReusedNorms()]
    for network, join in zip(networks, (False, True), strict=True):

        def rewrite(graph: torch.fx.GraphModule, inputs: object, join: bool = join) -> Callable[..., Any]:
            for node in list(graph.graph.nodes):
                rewriting._replace_norm(graph.graph, node, processes=2)  # the operation that needs no Triton
            if join:
                rewriting.join_updates(graph.graph)
            graph.graph.lint()
            graph.recompile()
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        with suspended_exchange():
            torch.compile(network, backend=rewrite, fullgraph=True)(torch.arange(96.0).view(4, 3, 2, 4) ** 2)
    assert all(torch.equal(a, b) for a, b in zip(networks[0].buffers(), networks[1].buffers(), strict=True))
    assert not torch.equal(networks[0].norms[0].running_mean, torch.zeros(3))
    moved = [(node.target, len(node.args[0])) for node in graphs[1].graph.nodes if "_foreach" in str(node.target)]
    # Four statistics of the usual momentum and the variance of the norm that is read; two of momentum 0.3; four counts
    assert {(str(target).split("_foreach_")[1].split("_")[0], count) for target, count in moved} == {
        ("lerp", 5), ("lerp", 2), ("add", 4)
    }  # fmt: skip
    alone = [node.target for node in graphs[1].graph.nodes if node.op == "call_method"]
    assert (alone.count("lerp_"), alone.count("add_")) == (
        5,
        2,
    )  # of the norm that runs twice, and the mean that is read


@pytest.mark.parametrize("options", [{"kernel_size": (4, 3)}, {"kernel_size": 6, "ceil_mode": True}])
def test_a_pooling_of_whole_images_has_the_gradient_of_the_first_largest_position(options):
    changed: list[bool] = []

    def rewrite(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        changed.extend(rewriting._replace_global_max_pool(graph.graph, node) for node in list(graph.graph.nodes))
        graph.graph.lint()
        graph.recompile()
        return graph.forward

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (5, 6, 4, 3), generator=generator).float()  # most images have several largest positions
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    torch._dynamo.reset()
    pooled = torch.compile(functional.max_pool2d, backend=rewrite, fullgraph=True)(x, **options)
    plain = functional.max_pool2d(x, **options)
    assert sum(changed) == 1
    assert torch.equal(pooled, plain)
    direction = torch.randn(plain.shape, generator=generator)
    (ours,), (expected,) = (torch.autograd.grad(y, x, direction) for y in (pooled, plain))
    assert torch.equal(ours, expected)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options", [{"kernel_size": 2}, {"kernel_size": 4, "padding": 2}, {"kernel_size": 3, "stride": 1}]
)
def test_other_poolings_stay(options):
    graph = torch.fx.symbolic_trace(lambda x: functional.max_pool2d(x, **options)).graph
    x = torch.randn(1, 8, 4, 4)
    for node, value in zip(graph.nodes, (x, functional.max_pool2d(x, **options)), strict=False):
        node.meta["example_value"] = value
    assert not any(rewriting._replace_global_max_pool(graph, node) for node in list(graph.nodes))
