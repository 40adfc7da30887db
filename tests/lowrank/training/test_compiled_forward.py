"""A compiled trunk serves every setting of a network, trains as the plain loop does, and is left out where needed."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.distillation.teacher import LiveTeacher, default_taps
from lowrank.kernels import fx_rewrite as rewriting
from lowrank.kernels.dispatch import has_enough_shared_memory, supports_kernels
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.divergence import DivergedError
from lowrank.training.engine import compiled_forward as trunk
from lowrank.training.engine import cuda_graph as captured
from lowrank.training.engine.compiled_forward import NotCompilableError, compiled_forward_of
from lowrank.training.objective import Loss
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

SMALL = NetworkSettings(width=0.125)
LOSS = Loss.of(Recipe())
PARAMS = 4500


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=200))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Trunks are traced as ever and then run as they were traced, without a compiler; what was traced."""
    found: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(trunk, "_COMPILED", type(trunk._COMPILED)())
    monkeypatch.setattr(trunk, "compile_graph", keep)
    monkeypatch.setattr(trunk, "compile_obstacle", lambda device: None)
    yield found
    torch._dynamo.reset()


def student(method: dict[str, Any] | None = None, params: int = PARAMS, **network: Any) -> nn.Module:
    settings = SMALL.model_copy(update=network)
    plan = network_plan(settings, (1, 8, 8), 10)
    solved = solve(plan, make_method(method or {"name": "tensor_train", "dims": 3}), Budget(params=params))
    return build_student(settings, plan, solved, (1, 8, 8), 10, seed=0)


def trainer(
    data: ImageData, engine: str, network: nn.Module | None = None, notify: Any = None, **fields: Any
) -> Trainer:
    torch.manual_seed(1)
    wise = make_network(SMALL, data.image_shape, 10)
    recipe = Recipe(epochs=3, batch_size=32, lr=0.01, engine=engine, **fields)  # type: ignore[arg-type]
    return Trainer(
        network or student(), data, recipe, augmentation=default_augmentation("digits"), order_seed=0,
        notify=notify or pytest.fail, teacher=LiveTeacher(wise, default_taps(wise)),
    )  # fmt: skip


def losses(run: Trainer, epochs: int = 1) -> Tensor:
    found = []
    for _ in range(epochs):
        run.train_steps()
        found.append(run.step_losses.clone())
        run.epoch += 1
    return torch.cat(found)


def one_trunk(network: nn.Module, loss: Loss = LOSS) -> trunk.CompiledForward:
    return compiled_forward_of(network, BatchedRebuild(network, include_all=True), loss, (), None)


def test_settings_of_every_factored_method_share_a_trunk_and_other_networks_do_not(graphs):
    wanted = one_trunk(student())
    for method in ({"name": "tensor_train", "dims": 2}, {"name": "tucker"}, {"name": "cp"}, {"name": "bottleneck"}):
        assert one_trunk(student(method, 6000)) is wanted
    frozen = student().requires_grad_(False)
    rest = [student({"name": "shuffle"}, 9000), student(width=0.25, params=20_000), frozen, student().eval()]
    others = [one_trunk(network) for network in rest] + [one_trunk(student(), Loss.of(Recipe(label_smoothing=0.1)))]
    assert len({id(each) for each in [wanted, *others]}) == 6


def test_what_cannot_be_compared_has_a_trunk_of_its_own_and_hooks_have_none(graphs):
    odd = student()
    odd.stage1.gain = torch.ones(1)  # a tensor of no known place
    assert one_trunk(odd) is not one_trunk(odd)
    odd.stage2.register_forward_hook(lambda *_: None)
    with pytest.raises(NotCompilableError, match="its module `stage2` has hooks"):
        one_trunk(odd)


@pytest.mark.parametrize("name", ["plain", "taught, clipped, averaged"])
def test_a_trunk_trains_as_the_plain_loop_and_is_traced_once_for_all_settings(data, graphs, name):
    taught = {"attention_weight": 1000.0, "kd_weight": 0.5, "clip_norm": 0.5, "ema_decay": 0.9}
    fields = {} if name == "plain" else taught
    for method in ({"name": "tensor_train", "dims": 3}, {"name": "tucker"}):
        found = trainer(data, "compiled", student(method), **fields)
        wanted = trainer(data, "plain", student(method), **fields)
        torch.testing.assert_close(losses(found), losses(wanted), rtol=1e-4, atol=1e-5)
        state = found.state()
        for key, tensor in wanted.state().items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    assert len(graphs) == 1


def test_a_machine_that_cannot_compile_says_so_once_and_trains(data, monkeypatch):
    monkeypatch.setattr(captured, "_WARNED", set())
    monkeypatch.setattr(trunk, "compile_obstacle", lambda device: "there is no C compiler")
    said: list[str] = []
    runs = [trainer(data, engine, notify=said.append) for engine in ("compiled", "compiled", "plain")]
    first, second, plain = (losses(run) for run in runs)
    assert said == ["training is not compiled, and so is slower: there is no C compiler"]
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_a_compiler_that_fails_is_done_without(data, graphs, monkeypatch):
    def unlucky(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(trunk, "compile_graph", unlucky)
    monkeypatch.setattr(captured, "_WARNED", set())
    said: list[str] = []
    found = losses(trainer(data, "compiled", notify=said.append))
    assert said == ["training is not compiled, and so is slower: no such instruction"]
    assert torch.equal(found, losses(trainer(data, "plain")))


def test_a_kernel_that_finds_no_room_is_done_without(data, graphs, monkeypatch):
    """Found out while the step runs for the first time, when parts of it have been done."""

    class NoRoomError(Exception):
        pass

    def cramped(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            graph(*arguments)
            raise NoRoomError("out of resource: shared memory")

        return run

    monkeypatch.setattr(trunk, "compile_graph", cramped)
    monkeypatch.setattr(captured, "kernel_errors", lambda: (NoRoomError,))
    monkeypatch.setattr(captured, "_WARNED", set())
    said: list[str] = []
    found, wanted = trainer(data, "compiled", notify=said.append), trainer(data, "plain")
    assert torch.equal(losses(found), losses(wanted))
    assert said == ["training is not compiled, and so is slower: out of resource: shared memory"]
    for key, tensor in wanted.state().items():
        assert torch.equal(found.state()[key], tensor), key


class OnCard(Tensor):
    """Looks as if it lay on a card."""

    is_cuda = True  # type: ignore[assignment]
    device = torch.device("cuda")  # type: ignore[assignment]


@pytest.mark.parametrize(("kernels", "room"), [(False, False), (True, False), (True, True)])
def test_a_graph_is_changed_as_its_card_has_the_kernels_and_the_room(kernels, room, monkeypatch):
    changed: list[bool] = []
    monkeypatch.setattr(rewriting, "supports_kernels", lambda device: kernels)
    monkeypatch.setattr(rewriting, "has_enough_shared_memory", lambda device: room)
    monkeypatch.setattr(rewriting, "rewrite", lambda graph, *, fuse_pointwise: changed.append(fuse_pointwise))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *given, config_patches: config_patches)
    graph = torch.fx.symbolic_trace(nn.Identity())
    patches = rewriting.compile_graph(graph, [torch.ones(1).as_subclass(OnCard)])
    assert changed == ([room] if kernels else [])
    assert ("post_grad_custom_pre_pass" in patches) == kernels


@pytest.mark.parametrize(
    ("capability", "kilobytes", "kernels", "room"),
    [((7, 5), 64, False, False), ((8, 0), 163, True, False), ((8, 9), 99, True, False), ((9, 0), 227, True, True)],
    ids=["T4", "A100", "L4", "H100"],
)
def test_cards_have_the_kernels_that_they_have_room_for(capability, kilobytes, kernels, room, monkeypatch):
    properties = types.SimpleNamespace(shared_memory_per_block_optin=kilobytes * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert (supports_kernels(torch.device("cuda")), has_enough_shared_memory(torch.device("cuda"))) == (kernels, room)


def test_divergence_is_traced_to_its_layer_in_a_compiled_run(data, graphs):
    run = trainer(data, "compiled")
    with torch.no_grad():
        run.network.stage2[1].weight[0] = float("nan")
    with pytest.raises(DivergedError, match=r"in the output of `stage2\.1`"):
        run.train_steps()


@pytest.mark.slow
def test_compiled_code_has_the_plain_loops_losses_over_fifty_steps(data):
    if trunk.compile_obstacle(torch.device("cpu")) is not None:
        pytest.skip("no C compiler")
    torch._dynamo.reset()
    found, wanted = (losses(trainer(data, engine), epochs=9)[:50] for engine in ("compiled", "plain"))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)
    torch._dynamo.utils.counters.clear()
    losses(trainer(data, "compiled", student({"name": "tucker"})))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
