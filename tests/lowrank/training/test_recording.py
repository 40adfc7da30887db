"""A step is recorded only where a replay is the plain step; every other network trains plain, after one notice."""

from __future__ import annotations

import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NETWORK_NAMES, NetworkSettings, make_network, takes_width
from lowrank.training.engine import cuda_graph
from lowrank.training.engine.host_state import attribute_tensors, undone_attributes
from lowrank.training.engine.recording import _differ, consists_of_known_code, recording_obstacle
from lowrank.training.trainer import Trainer
from lowrank.utils import keep_modes
from tests.support.own_networks import ConvolutionalNetwork
from tests.support.recorder import FailingRecorder, OperationRecorder, recording_on_cpu
from tests.support.training import small_recipe, small_teacher, small_trainer, tensor_train

CLASSES, SIDE = 10, 8
SWITCH: list[bool] = []


class ReadsValue(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().mean()) > 0.1 else x


class CountsInNumbers(ConvolutionalNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def last(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x if self.calls > 4 else x * 0.5


class DropsByPython(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        return x if not self.training or random.random() < 0.5 else x * 0.5


class DropsByNumpy(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        return x if not self.training or np.random.rand() < 0.5 else x * 0.5


class SelectsByMask(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        return x - x[x > 1].sum()


class SwitchesOutside(ConvolutionalNetwork):
    """A branch on what no module holds: seen only by its outcome."""

    def last(self, x: Tensor) -> Tensor:
        SWITCH.append(True)
        return x if len(SWITCH) % 2 else x * 0.5


class RemembersItsGrid(ConvolutionalNetwork):
    """What is made at the first pass and kept is no change of every step."""

    grid: int | None = None

    def last(self, x: Tensor) -> Tensor:
        self.grid = self.grid or x.shape[1]
        return x


class DropsBeforeANorm(RemembersItsGrid):
    """The statistics of its second norm depend on random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.second_norm = nn.BatchNorm1d(8)

    def last(self, x: Tensor) -> Tensor:
        return self.second_norm(self.drop(super().last(x)))


class CountsOnDevice(ConvolutionalNetwork):
    """A warm-up that is kept in a buffer which no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def last(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x / self.steps


class KeepsMean(ConvolutionalNetwork):
    """A running mean that each step puts in the place of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class KeepsLastMean(ConvolutionalNetwork):
    """The mean of the last step alone, which only evaluation reads: no loss of the training shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def last(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.mean
        self.mean = x.detach().mean(0)
        return x


class ScalesByItsFirstImages(ConvolutionalNetwork):
    """A parameter that the first step sets, as an activation norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.is_set = nn.Parameter(torch.ones(8)), False

    def last(self, x: Tensor) -> Tensor:
        if not self.is_set:
            self.scale.data.copy_(1 / (x.detach().std(0) + 0.1))
            self.is_set = True
        return x * self.scale


class KeepsLastMeanAsTensor(KeepsLastMean):
    """The same in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.mean = torch.zeros(8)


class KeepsMeanOfEvaluation(ConvolutionalNetwork):
    """Training reads what the last evaluation has left."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(8)

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            return x - self.mean
        self.mean = x.detach().mean(0)
        return x


class SetsBufferOnce(ConvolutionalNetwork):
    """Only Python knows that the buffer has been set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_set = False
        self.register_buffer("mean", torch.zeros(8))

    def last(self, x: Tensor) -> Tensor:
        if not self.is_set:
            self.mean.copy_(x.detach().mean(0))
            self.is_set = True
        return x - self.mean


class SetsBufferThenAverages(SetsBufferOnce):
    """The first step sets what all later ones change."""

    def last(self, x: Tensor) -> Tensor:
        mean = x.detach().mean(0)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * mean) if self.is_set else self.mean.copy_(mean)
            self.is_set = True
        return x - self.mean


class ReplacesBufferOnce(SetsBufferOnce):
    def last(self, x: Tensor) -> Tensor:
        if not self.is_set:
            self.mean, self.is_set = x.detach().mean(0), True
        return x - self.mean


class ReplacesTensorOnce(ReplacesBufferOnce):
    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.mean = torch.zeros(8)


class MakesGrids(ConvolutionalNetwork):
    """Constants that are made at the first pass, one for each number of channels, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[int, Tensor] = {}

    def last(self, x: Tensor) -> Tensor:
        if x.shape[1] not in self.grids:
            self.grids[x.shape[1]] = torch.linspace(0, 1, x.shape[1])
        return x * self.grids[x.shape[1]]


class MakesCentre(ConvolutionalNetwork):
    """A constant of the first images of the training, made where none was."""

    def __init__(self) -> None:
        super().__init__()
        self.centre: Tensor | None = None

    def last(self, x: Tensor) -> Tensor:
        if self.centre is None and self.training:
            self.centre = x.detach().mean(0)
        return x - self.centre


class DeletesAnAttribute(ConvolutionalNetwork):
    """What only a first step has is there again when the training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 0.5

    def last(self, x: Tensor) -> Tensor:
        if hasattr(self, "first"):
            x = x * self.first
            del self.first
        return x


class KeepsMeanInAList(ConvolutionalNetwork):
    """The same in a place that nobody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.means = [torch.zeros(8)]

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.means[0] = 0.9 * self.means[0] + 0.1 * x.detach().mean(0)
        return x - self.means[0]


class BoundsWeight(ConvolutionalNetwork):
    """Gives its weight other memory in each step, as a constraint of its length does."""

    def last(self, x: Tensor) -> Tensor:
        self.head.weight.data = torch.renorm(self.head.weight.data, p=2, dim=0, maxnorm=0.3)
        return x


class CountsInTensor(ConvolutionalNetwork):
    """A tensor that is no buffer, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.zeros(())

    def last(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x / self.steps.clamp(min=1)


class SeedsItself(ConvolutionalNetwork):
    def last(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return x


class KeepsItsFeatures(ConvolutionalNetwork):
    """What a step leaves and the next one does not read is no obstacle."""

    def last(self, x: Tensor) -> Tensor:
        self.features = x
        return x


def trained(
    engine: str, make: type[nn.Module] = ConvolutionalNetwork, **fields: Any
) -> tuple[Trainer, Tensor, list[str]]:
    """Train two epochs of a seeded network; the trainer, its losses and its notices."""
    torch.manual_seed(0)
    notices: list[str] = []
    run = small_trainer(small_recipe(engine=engine, **fields), network=make(), notify=notices.append)
    losses = []
    for _ in range(2):
        run.train_steps()
        losses.append(run.step_losses.clone())
        run.epoch += 1
    return run, torch.cat(losses), notices


@pytest.fixture(autouse=True)
def forget_switches() -> None:
    SWITCH.clear()


@pytest.mark.parametrize(
    "make",
    [
        ConvolutionalNetwork,
        RemembersItsGrid,
        DropsBeforeANorm,
        CountsOnDevice,
        KeepsItsFeatures,
        MakesGrids,
        MakesCentre,
    ],
)
def test_a_replay_has_the_losses_of_the_plain_step_with_dropout(make: type[nn.Module], monkeypatch: Any) -> None:
    _, expected, _ = trained("plain", make)
    with recording_on_cpu(monkeypatch):
        run, losses, notices = trained("captured", make)
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is not None
    assert notices == []
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [MakesGrids, MakesCentre])
def test_what_a_network_makes_at_its_first_pass_serves_replays_and_evaluations(
    make: type[nn.Module], monkeypatch: Any
) -> None:
    class Rerunning(OperationRecorder):
        """Runs the step again; holds nothing of what it reads."""

        def record(self, run: Any) -> Any:
            run()
            made.extend(weakref.ref(tensor) for tensor in attribute_tensors(network))
            return run

    made: list[weakref.ref[Tensor]] = []
    plain, _, _ = trained("plain", make)
    torch.manual_seed(0)
    network = make()
    with recording_on_cpu(monkeypatch, Rerunning()):
        _, _, notices = trained("captured", lambda: network)  # type: ignore[arg-type]
    assert notices == []
    values = [tensor.clone() for tensor in attribute_tensors(network)]
    torch.testing.assert_close(values, attribute_tensors(plain.network))
    for name in ("grids", "centre"):
        setattr(network, name, {} if name == "grids" else None)
    assert [reference() is not None for reference in made] == [True]


@pytest.mark.parametrize("make", [MakesGrids, MakesCentre])
def test_what_only_python_makes_at_the_first_pass_stays_after_a_recording(
    make: type[nn.Module], monkeypatch: Any
) -> None:
    plain, _, _ = trained("plain", make)
    with recording_on_cpu(monkeypatch):
        run, _, _ = trained("captured", make)  # a replay runs no Python, so it makes nothing again
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is not None
    (made,) = attribute_tensors(run.network)
    torch.testing.assert_close([made], attribute_tensors(plain.network))


@pytest.mark.parametrize("before", ["missing", "none", "empty"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_tensor_that_a_network_makes_is_undone_unless_it_must_stay(before: str, keep: bool) -> None:
    network = ConvolutionalNetwork()
    if before != "missing":
        network.made = None if before == "none" else {}
    with undone_attributes(network) as undo:
        if before == "empty":
            network.made["grid"] = torch.zeros(2)
        else:
            network.made = torch.zeros(2)
        undo.keep_made = keep
    assert len(attribute_tensors(network)) == keep
    assert hasattr(network, "made") == (keep or before != "missing")


def test_a_taught_student_of_structured_maps_is_recorded(monkeypatch: Any) -> None:
    fields: dict[str, Any] = {
        "attention_weight": 100.0, "kd_weight": 0.5, "clip_norm": 0.5, "accumulate": 2, "class_weights": "balanced",
    }  # fmt: skip
    runs = []
    with recording_on_cpu(monkeypatch):
        for engine in ("plain", "captured"):
            recipe = small_recipe(engine=engine, **fields)
            runs.append(small_trainer(recipe, method=tensor_train(), teacher=small_teacher("cpu"), notify=pytest.fail))
            runs[-1].train_steps()
    assert runs[1].captured_epoch.replay is not None
    torch.testing.assert_close(runs[1].step_losses, runs[0].step_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wrn_10_1", "darts", "vit", "mlp", "mobilenet_v2", "torchvision:mobilenet_v3_small"])
def test_public_networks_may_be_recorded(name: str) -> None:
    network = make_network(NetworkSettings(name=name, **({} if ":" in name else {"width": 0.25})), (3, 32, 32), CLASSES)

    def run() -> None:
        network.train()(torch.randn(2, 3, 32, 32)).sum().backward()

    def evaluate() -> None:
        network.eval()(torch.randn(2, 3, 32, 32))

    assert recording_obstacle(network, run, OperationRecorder(), evaluate) is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ReadsValue, "the network reads the value of a tensor in `forward` (aten._local_scalar_dense.default)"),
        (SelectsByMask, "the network reads the value of a tensor in `forward` (aten.index.Tensor)"),
        (CountsInNumbers, "the network changes its attribute `calls` in each step"),
        (DropsByPython, "the network draws numbers of Python's `random` in each step"),
        (DropsByNumpy, "the network draws numbers of `numpy.random` in each step"),
        (CountsInTensor, "the network changes its tensor `steps` in each step"),
        (KeepsMean, "the network replaces its buffer `mean` in each step"),
        (ScalesByItsFirstImages, "the network changes its parameter `scale` in its first step alone"),
        (KeepsLastMean, "the network replaces its buffer `mean` in each step"),
        (
            KeepsLastMeanAsTensor,
            "the network reads a tensor in evaluation that its last step has made (aten.sub.Tensor)",
        ),
        (KeepsMeanOfEvaluation, "the network reads a tensor that its last evaluation has made (aten.sub.Tensor)"),
        (SetsBufferOnce, "the network changes its buffer `mean` in its first step alone"),
        (SetsBufferThenAverages, "the network changes its buffer `mean` in its first step alone"),
        (ReplacesBufferOnce, "the network changes its buffer `mean` in its first step alone"),
        (ReplacesTensorOnce, "the network changes its tensor `mean` in its first step alone"),
        (KeepsMeanInAList, "the network reads a tensor that its last step has made (aten.mul.Tensor)"),
        (BoundsWeight, "the network reads a tensor that its last step has made (aten.detach.default)"),
        (SeedsItself, "the network sets the seed of torch's random generator in `forward`"),
    ],
)
@pytest.mark.parametrize("engine", ["captured", "compiled"])
def test_what_a_recording_would_freeze_is_found_before_it_and_trains_as_with_the_plain_engine(
    engine: str, make: type[nn.Module], reason: str, monkeypatch: Any
) -> None:
    plain, expected, _ = trained("plain", make)
    with recording_on_cpu(monkeypatch):
        run, losses, notices = trained(engine, make)
    assert notices == [f"training steps run one by one, and so are slower: {reason}"]
    assert run.captured_epoch is not None
    assert (run.captured_epoch.replay, run.captured_epoch.compiled) == (None, False)
    if make is not KeepsMeanInAList:  # a tensor in a list cannot be put back
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(run.network.named_buffers()), dict(plain.network.named_buffers()))


def test_an_attribute_that_a_network_deletes_is_put_back() -> None:
    network = DeletesAnAttribute()
    with undone_attributes(network):
        network(torch.randn(2, 1, SIDE, SIDE))
        assert not hasattr(network, "first")
    assert network.first == 0.5


def test_a_step_whose_outcome_changes_for_reasons_unseen_is_not_recorded(monkeypatch: Any) -> None:
    with recording_on_cpu(monkeypatch):
        run, _, (notice,) = trained("captured", SwitchesOutside)
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is None
    assert notice.startswith(
        "training steps are not recorded, and so are slower: the same step run twice differs: the lo"
    )


def test_a_replay_that_differs_from_the_plain_step_is_given_up(monkeypatch: Any) -> None:
    class Frozen(OperationRecorder):
        def record(self, run: Any) -> Any:
            replay = super().record(run)

            def other() -> None:
                replay()
                epoch = trainers[-1]
                epoch._meter.losses.mul_(1.5)

            return other

    trainers: list[Any] = []
    real = cuda_graph.CapturedEpoch._record
    monkeypatch.setattr(
        cuda_graph.CapturedEpoch, "_record", lambda self, recorder: (trainers.append(self), real(self, recorder))
    )
    _, expected, _ = trained("plain")
    with recording_on_cpu(monkeypatch, Frozen()):
        _, losses, (notice,) = trained("captured")
    assert "a replayed step differs from the same step run plain: the loss is" in notice
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_training_goes_on_where_recording_fails(monkeypatch: Any) -> None:
    _, expected, _ = trained("plain")
    with recording_on_cpu(monkeypatch, FailingRecorder()):
        _, losses, notices = trained("captured")
    reason = "operation not permitted when stream is capturing"
    assert notices == [f"training steps are not recorded, and so are slower: {reason}"]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_memory_that_runs_out_while_recording_is_the_trials_error(monkeypatch: Any) -> None:
    class Full(OperationRecorder):
        def record(self, run: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    with recording_on_cpu(monkeypatch, Full()), pytest.raises(torch.OutOfMemoryError):
        trained("captured")


def test_an_attribute_that_changes_between_epochs_ends_the_recording(monkeypatch: Any) -> None:
    class DropsByRate(ConvolutionalNetwork):
        rate = 0.0

        def set_drop_path(self, rate: float) -> None:
            self.rate = rate

        def last(self, x: Tensor) -> Tensor:
            return x * (1 - self.rate)

    _, expected, _ = trained("plain", DropsByRate, drop_path=0.5)
    with recording_on_cpu(monkeypatch):
        run, losses, notices = trained("captured", DropsByRate, drop_path=0.5)
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is None
    reason = "the network changes its attribute `rate` between epochs"
    assert notices == [f"training steps are not recorded, and so are slower: {reason}"]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


HOUSE_NETWORKS = {
    "resnet9": 16, "wrn_10_1": 16, "wrn_50_2": 32, "darts": 16, "vit": 16, "mobilenet_v2": 32, "resnet18": 32,
    "vgg16": 32, "mlp": 8,
}  # fmt: skip


def test_every_network_of_this_project_is_watched_in_a_test() -> None:
    families = {name.split()[0].replace("D_W", "10_1") for name in NETWORK_NAMES if ":" not in name}
    assert set(HOUSE_NETWORKS) == families


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "separable") for name in HOUSE_NETWORKS),
        *(("resnet9", name) for name in METHODS if name != "separable"),
    ],
)
def test_nothing_stands_against_recording_a_network_of_this_project(name: str, method: str) -> None:
    """So it is recorded without being watched."""
    side = HOUSE_NETWORKS[name]
    settings = NetworkSettings(name=name, width=0.25) if takes_width(name) else NetworkSettings(name=name)
    plan = network_plan(settings, (3, side, side), 10)
    network = build_student(settings, plan, make_method({"name": method}), (3, side, side), 10, seed=0).train()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        network(images).square().mean().backward()

    def evaluate() -> None:
        with keep_modes(network), torch.no_grad():
            network.eval()(images)

    assert recording_obstacle(network, run, OperationRecorder(), evaluate) is None
    assert consists_of_known_code(network)


def test_networks_of_others_are_watched() -> None:
    settings = NetworkSettings(name="resnet9", width=0.25)
    hooked, replaced, extended = (make_network(settings, (3, 8, 8), 10) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda images: images.flatten(1)[:, :10]
    extended.add_module("last", ConvolutionalNetwork())
    foreign = make_network(NetworkSettings(name="torchvision:resnet18"), (3, 32, 32), 10)
    networks = (hooked, replaced, extended, foreign, nn.Sequential(nn.Linear(4, 4)))
    assert not any(map(consists_of_known_code, networks))


def test_nan_is_equal_to_nan_alone() -> None:
    number, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    assert [_differ(number, nan), _differ(nan, number), _differ(nan, nan), _differ(number, number)] == [
        True, True, False, False
    ]  # fmt: skip
