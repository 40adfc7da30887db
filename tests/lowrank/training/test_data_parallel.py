"""Two processes that share every batch have the losses, statistics, evaluations and weights of one."""

from __future__ import annotations

import copy
import math
import os
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import AugmentationSettings, Batch, ProcessShard, default_augmentation
from lowrank.errors import InputError
from lowrank.kernels import global_norm as norms
from lowrank.networks.base import DropPath
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.divergence import DivergedError
from lowrank.training.engine import compiled_forward, data_parallel
from lowrank.training.engine.compiled_forward import COMPILED_FOLDER, CompiledObjective
from lowrank.training.engine.data_parallel import DataParallelGroup, GlobalBatchNorm, GradientBuckets
from lowrank.training.trainer import Trainer
from tests.support.process_group import run_in_group
from tests.support.training import (
    SMALL,
    TAPS,
    copied_state,
    small_data,
    small_recipe,
    small_teacher,
    small_trainer,
    tensor_train,
)

RUNS: dict[str, dict[str, Any]] = {
    "tensor_train": {},
    "captured": {"engine": "captured", "momentum": 0.9},
    "everything": {
        "attention_weight": 50.0, "kd_weight": 0.5, "accumulate": 2, "decay": "frobenius", "clip_norm": 1.0,
        "ema_decay": 0.9, "label_smoothing": 0.1,
    },
}  # fmt: skip
FIRST = {"batch_size": 48}  # four steps an epoch


STEPS = 50  # over which losses are compared


class InDouble(nn.Module):
    """A network that computes in float64."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.double())


class PermutedTrainer(Trainer):
    """Sees the images of each batch in another order."""

    seed = 1

    def batches(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        for images, labels, indices in super().batches():
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            yield images[order].contiguous(memory_format=torch.channels_last), labels[order], indices[order]


class Dropping(nn.Module):
    """Everything that looks beyond one image, or draws: a batch norm over vectors, dropped paths, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.path, self.dropout = DropPath(), nn.Dropout(0.3)
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(512), nn.Linear(512, 10))

    def set_drop_path(self, rate: float) -> None:
        self.path.set_rate(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head(self.dropout(x + self.path(x)))


def trainer(name: str, group: DataParallelGroup | None) -> Trainer:
    if name == "dropping":
        torch.manual_seed(3)
        return small_trainer(small_recipe(drop_path=0.4, **FIRST), network=Dropping(), group=group)
    fields = RUNS[name]
    teacher = {"teacher": small_teacher(), "taps": TAPS} if name == "everything" else {}
    return small_trainer(
        small_recipe(**fields, **FIRST), method=tensor_train(), decay_ratio=0.1, group=group, **teacher
    )


def train(group: DataParallelGroup | None, names: list[str]) -> dict[str, Any]:
    """Train the second epoch (which drops paths) of each run: losses of its steps, metrics and state after it."""
    outcome: dict[str, Any] = {}
    for name in names:
        run = trainer(name, group)
        run.epoch = 1
        metrics = run.train_epoch()
        outcome[name] = run.step_losses.tolist(), metrics, copied_state(run)
    return outcome


class PermutedOtherwise(PermutedTrainer):
    seed = 2


def losses_of_50_steps(
    group: DataParallelGroup | None, double: bool, kind: type[Trainer] = Trainer, device: str = "cpu", **fields: Any
) -> torch.Tensor:
    network = build_student(SMALL, network_plan(SMALL, (1, 8, 8), 10), tensor_train(), (1, 8, 8), 10, 0)
    recipe = small_recipe(**FIRST, epochs=13, **fields)
    run = kind(
        InDouble(network) if double else network, small_data(), recipe, order_seed=0, decay_ratio=0.1, group=group,
        augmentation=default_augmentation("digits", (1, 8, 8)), device=device,
    )  # fmt: skip
    losses = []
    for run.epoch in range(recipe.epochs):
        run.train_steps()
        losses.append(run.step_losses)
    return torch.cat(losses)[:STEPS].double().cpu()


def largest_difference(losses: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((losses - expected) / expected).abs().max())


def divergence_message(group: DataParallelGroup | None) -> str:
    run = small_trainer(small_recipe(lr=1e12), method=tensor_train(), group=group)
    with pytest.raises(DivergedError) as caught:
        run.train_epoch()
    return str(caught.value)


class WithUnusedLayer(nn.Module):
    """The second of its layers takes no part in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.layers[0](x))


def averaged_gradients(group: DataParallelGroup) -> tuple[list[torch.Tensor | None], list[int]]:
    """Gradients of the sum of outputs at inputs that differ; two backward passes add up, the last one averages."""
    torch.manual_seed(0)
    network = WithUnusedLayer()
    data_parallel.BUCKET_BYTES = 60  # a bucket for each layer or two
    buckets = GradientBuckets(network.parameters())
    sent: list[int] = []
    real = data_parallel._Bucket.send

    def send(bucket: Any) -> None:
        sent.append(len(bucket.parameters))
        real(bucket)

    data_parallel._Bucket.send = send  # type: ignore[method-assign]
    for last in (False, True):
        if last:
            buckets.begin()
        network(torch.full((5, 4), 1.0 + group.index)).sum().backward()
    buckets.finish()
    data_parallel._Bucket.send, data_parallel.BUCKET_BYTES = real, 2**25  # type: ignore[method-assign]
    return [parameter.grad for parameter in network.parameters()], sent


def disagreement(group: DataParallelGroup) -> tuple[bool, list[str]]:
    """Whether the steps are compiled where the second process cannot compile them, and the notices."""
    if group.index == 1:
        compiled_forward.compile_obstacle = lambda device: "there is no C compiler"
    else:
        CompiledObjective.__init__ = lambda self, *arguments: None  # type: ignore[method-assign]
        CompiledObjective.compiled = types.SimpleNamespace(digest=lambda images: f"test-{os.getpid()}")  # type: ignore
        CompiledObjective.__call__ = lambda self, *arguments: run.step.objective(*arguments)  # type: ignore
    notices: list[str] = []
    run = small_trainer(small_recipe(**FIRST, engine="compiled"), group=group, notify=notices.append)
    run.train_steps(limit=2)
    assert run.captured_epoch is not None
    return run.captured_epoch.compiled, notices


Outcome = tuple[Any, ...]


def train_and_diverge(group: DataParallelGroup | None) -> Outcome:
    long_runs = {double: losses_of_50_steps(group, double) for double in (False, True)}
    outcome = train(group, [*RUNS, "dropping"]), divergence_message(group), long_runs
    return outcome if group is None else (*outcome, averaged_gradients(group), disagreement(group))


@pytest.fixture(scope="module")
def runs() -> tuple[Outcome, list[Outcome]]:
    """The outcome of one process alone, and that of each of two."""
    return train_and_diverge(None), run_in_group(2, train_and_diverge)


@pytest.mark.parametrize("name", [*RUNS, "dropping"])
def test_two_processes_have_the_losses_of_one(runs, name):
    (alone, *_), shared = runs
    losses, expected, state = alone[name]
    for outcome, *_ in shared:
        ours, metrics, weights = outcome[name]
        assert ours == pytest.approx(losses, rel=5e-6)
        assert metrics.keys() == expected.keys()
        for key in ("train_loss", "val_loss", "grad_norm", "prediction_spread"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-4), key
        assert metrics["train_error"] == pytest.approx(expected["train_error"])
        assert metrics["val_error"] == pytest.approx(expected["val_error"], abs=0.6)  # one image of 200
        assert weights.keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


def test_the_processes_have_the_same_weights_to_the_bit(runs):
    first, second = (outcome for outcome, *_ in runs[1])
    for name in first:
        for key, tensor in first[name][2].items():
            assert torch.equal(tensor, second[name][2][key]), (name, key)


def test_the_losses_of_50_steps_differ_by_rounding_alone(runs):
    """In float64 the recorded losses, which are float32, differ in their last digit at most."""
    (_, _, alone), shared = runs
    for _, _, losses, *_ in shared:
        assert largest_difference(losses[True], alone[True]) < 2.5e-7


def test_in_float32_two_processes_are_as_near_to_one_as_images_in_another_order(runs):
    (_, _, alone), shared = runs
    spread = largest_difference(losses_of_50_steps(None, False, PermutedTrainer), alone[False])
    for _, _, losses, *_ in shared:
        assert largest_difference(losses[False], alone[False]) < 2 * spread


def test_gradients_are_averaged_in_buckets_and_unused_parameters_have_none(runs):
    torch.manual_seed(0)
    network = WithUnusedLayer()
    for value in (1.0, 2.0):
        network(torch.full((5, 4), value)).sum().backward()
    for *_, (gradients, sent), _ in runs[1]:
        assert len(sent) > 1
        assert sum(sent) == 6
        for gradient, parameter in zip(gradients, network.parameters(), strict=True):
            if parameter.grad is None:
                assert gradient is None
            else:
                torch.testing.assert_close(gradient, parameter.grad)  # two passes each of mean (1 + 2) / 2


def test_no_process_runs_compiled_steps_where_one_of_them_cannot(runs):
    (*_, (first, notices)), (*_, (second, reasons)) = runs[1]
    assert not first
    assert not second
    assert notices == ["training is not compiled, and so is slower: another process cannot compile it"]
    assert reasons == ["training is not compiled, and so is slower: there is no C compiler"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_compile_one_after_the_other_and_have_the_losses_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    losses, *_ = train(None, ["tensor_train"])["tensor_train"]
    for ours, compiled in run_in_group(2, compiled_losses, seconds=800):
        assert compiled
        assert ours == pytest.approx(losses, rel=5e-6)
    assert len(list((tmp_path / COMPILED_FOLDER).glob("*.lock"))) == 1  # both have compiled the same function


def compiled_losses(group: DataParallelGroup) -> tuple[list[float], bool]:
    run = small_trainer(small_recipe(**FIRST, engine="compiled"), method=tensor_train(), decay_ratio=0.1, group=group)
    run.epoch = 1
    run.train_steps()
    assert run.captured_epoch is not None
    return run.step_losses.tolist(), run.captured_epoch.compiled


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3), (6, 3, 5)])
def test_a_norm_over_one_process_is_torchs_own(shape):
    torch.manual_seed(0)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3)
    nn.init.normal_(norm.weight)
    global_norm = GlobalBatchNorm.of(copy.deepcopy(norm))
    outputs = []
    for module in (norm, global_norm):
        x = torch.linspace(-2, 3, math.prod(shape)).sin().view(shape).requires_grad_()
        out = module(x)
        (out * torch.arange(out.numel()).view(shape).cos()).sum().backward()
        outputs.append([out, x.grad, module.weight.grad, module.bias.grad, module.running_mean, module.running_var])
    for ours, theirs in zip(outputs[1], outputs[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_norm_over_two_processes_is_torchs_over_the_images_of_both(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias, direction = torch.randn(6, 3, 4, 4), torch.rand(3), torch.rand(3), torch.randn(6, 3, 4, 4)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wanted = functional.batch_norm(inputs[0], None, None, *inputs[1:], training=True)
    (wanted[:3] * direction[:3]).sum().backward(retain_graph=True)
    statistics = torch.empty(2, 3)
    norms._local_statistics(x[3:], statistics)
    normal = functional.batch_norm(x, None, None, training=True)[3:]
    sums = torch.stack([(direction[3:] * normal).sum((0, 2, 3)), direction[3:].sum((0, 2, 3))])
    of_other = iter([statistics, sums])
    monkeypatch.setattr(norms, "process_count", lambda: 2)
    monkeypatch.setattr(norms, "gather_parts", lambda part: torch.stack([part, next(of_other)]))
    ours = [tensor.clone().requires_grad_() for tensor in (x[:3], weight, bias)]
    out, mean, _ = norms.global_norm(*ours, None, 1e-5, False, False)
    (out * direction[:3]).sum().backward()
    torch.testing.assert_close(out, wanted[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    for own, expected in zip(ours[1:], inputs[1:], strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-5, atol=1e-5)
    inputs[0].grad = None
    (wanted * direction).sum().backward()
    assert inputs[0].grad is not None
    torch.testing.assert_close(ours[0].grad, inputs[0].grad[:3], rtol=1e-5, atol=1e-5)


def test_all_processes_see_a_divergence_at_the_same_step(runs):
    (_, alone, _), shared = runs
    messages = [text for _, text, *_ in shared]
    assert "epoch 1, step " in alone
    assert messages[0].partition(";")[0] == messages[1].partition(";")[0]
    assert messages[0].partition("; ")[0].rpartition(" in ")[2] == alone.partition("; ")[0].rpartition(" in ")[2]


def losses_on_gpus(group: DataParallelGroup | None, precision: str, engine: str) -> list[float]:
    """Without TF32: cuDNN may choose other kernels for half a batch, and TF32 rounds in each to ten bits."""
    torch.backends.cudnn.allow_tf32 = False
    device = f"cuda:{group.index}" if group else "cuda:0"
    recipe = small_recipe(**FIRST, precision=precision, engine=engine)
    run = small_trainer(recipe, method=tensor_train(), decay_ratio=0.1, group=group, device=device)
    outcome = run.train_epoch()
    return [*run.step_losses.tolist(), outcome["val_loss"]]


@pytest.mark.gpu(2)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # of torch 2.11, once a process
@pytest.mark.parametrize("engine", ["plain", "captured", "compiled"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_two_gpus_have_the_losses_of_one(precision, tolerance, engine, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # is set back afterwards
    alone = losses_on_gpus(None, precision, engine)
    for outcome in run_in_group(2, losses_on_gpus, precision, engine, on_gpus=True):
        assert outcome == pytest.approx(alone, rel=tolerance)


def losses_of_50_steps_on_gpus(group: DataParallelGroup | None, precision: str) -> torch.Tensor:
    torch.backends.cudnn.allow_tf32 = False
    device = f"cuda:{group.index}" if group else "cuda:0"
    return losses_of_50_steps(group, False, device=device, precision=precision, engine="captured")


@pytest.mark.gpu(2)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # of torch 2.11, once a process
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_gpus_are_as_near_to_one_as_images_in_another_order(precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # is set back afterwards
    settings: dict[str, Any] = {"device": "cuda:0", "precision": precision, "engine": "captured"}
    alone, *permuted = (
        losses_of_50_steps(None, False, kind, **settings) for kind in (Trainer, PermutedTrainer, PermutedOtherwise)
    )
    spread = max(largest_difference(losses, alone) for losses in permuted)
    for losses in run_in_group(2, losses_of_50_steps_on_gpus, precision, on_gpus=True):
        assert largest_difference(losses, alone) < 2 * spread


def test_a_global_batch_norm_shares_the_tensors_of_the_norm_that_it_replaces():
    network = make_network(NetworkSettings(width=0.125), (1, 8, 8), 10)
    before = network.state_dict(keep_vars=True)
    DataParallelGroup(0, 2).use_global_batch(network)
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[name] is tensor for name, tensor in before.items())
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {type(norm) for norm in norms} == {GlobalBatchNorm}
    network.eval()(torch.zeros(1, 1, 8, 8))  # needs no other process


def test_random_numbers_for_one_process_alone_are_refused():
    with pytest.raises(InputError, match="Dropout2d draws random numbers for the images of one process alone"):
        DataParallelGroup(0, 2).use_global_batch(nn.Sequential(nn.Dropout2d()))


def test_shards_of_micro_batches_add_up_to_the_batch():
    order = torch.arange(24)
    group = [ProcessShard(index, 3, 2).of_batches(order, 12) for index in range(3)]
    assert group[0].tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert sorted(torch.cat(group).tolist()) == list(range(24))
    assert [len(ProcessShard(index, 3).of_range(10)) for index in range(3)] == [3, 3, 4]


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match="but 32 images in 2 parts cannot be by 3"):
        ProcessShard(0, 3, 2).of_batches(torch.arange(64), 32)


def test_shards_are_augmented_as_the_whole_batch():
    from lowrank.data import train_batches

    data, augmentation = small_data(), AugmentationSettings(shift=1, flip=True)
    settings: dict[str, Any] = {"augmentation": augmentation, "order_seed": 0, "epoch": 1}
    batches = list(train_batches(data, "cpu", 32, **settings))
    shards = [list(train_batches(data, "cpu", 32, shard=ProcessShard(index, 2), **settings)) for index in range(2)]
    for batch, *halves in zip(batches, *shards, strict=True):
        for tensor, *tensor_halves in zip(batch, *halves, strict=True):
            assert torch.equal(tensor, torch.cat(tensor_halves))
