"""Training on a GPU: recorded steps that diverge, float16, memory and time of a step."""

from __future__ import annotations

import math
import random
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional

from lowrank.distillation import CachedTeacher
from lowrank.kernels import compile_side_by_side
from lowrank.networks import darts
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training import trainer as trainer_module
from lowrank.training.divergence import DivergedError
from lowrank.training.engine import captured_evaluation, compiled_forward, cuda_graph
from lowrank.training.engine.device_memory import free_memory
from lowrank.training.engine.memory_probe import measure_step, probe_memory
from lowrank.training.trainer import Trainer
from tests.support.training import (
    SMALL,
    filled_cache,
    small_data,
    small_recipe,
    small_teacher,
    small_trainer,
    tensor_train,
)  # fmt: skip

pytestmark = pytest.mark.gpu


class Fuse(nn.Module):
    """The identity until its `fuse`th call in training, then NaN; decided on the GPU, as a CUDA graph needs."""

    def __init__(self, fuse: int):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        return x + torch.where(self.calls == self.fuse, math.nan, 0.0)


def trainer(network: nn.Module | None = None, **fields: object) -> Trainer:
    if network is None:
        torch.manual_seed(0)
        network = make_network(SMALL, small_data().image_shape, 10)
    return small_trainer(small_recipe(**fields), network=network, device="cuda")


def test_a_recorded_step_that_diverges_is_traced_to_its_step_and_layer():
    torch.manual_seed(0)
    network = make_network(SMALL, small_data().image_shape, 10)
    network.stage2 = nn.Sequential(network.stage2, Fuse(8))
    run = trainer(network)
    assert run.captured_epoch is not None
    with pytest.raises(DivergedError) as caught:
        [run.train_epoch() for _ in range(3)]
    assert (caught.value.epoch, caught.value.step, caught.value.layer) == (2, 2, "stage2.1")


def test_float16_trains_with_a_loss_scale_and_learns():
    run = trainer(precision="float16", epochs=6)
    assert run.step.dtype is torch.float16
    found = [run.train_epoch() for _ in range(6)]
    assert all(math.isfinite(each["train_loss"]) and each["loss_scale"] >= 1 for each in found)
    assert found[-1]["train_loss"] < 0.98 * found[0]["train_loss"]


def test_a_float16_gradient_that_overflows_skips_its_step_and_halves_the_scale():
    run = trainer(precision="float16")
    assert run.step.scaler is not None
    run.step.scaler.scale.fill_(2.0**40)
    found = run.train_epoch()
    assert found["skipped_steps"] > 0
    assert found["loss_scale"] < 2.0**40
    assert math.isfinite(found["train_loss"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_is_measured_as_training_takes_it(precision):
    def make(batch_size: int) -> Trainer:
        return trainer(precision=precision, batch_size=batch_size)

    small, large = (measure_step(make, size, torch.device("cuda")) for size in (16, 64))
    assert small.peak_mb is not None
    assert large.peak_mb is not None
    assert 0 < small.peak_mb <= large.peak_mb
    assert large.images == 64
    assert small.seconds > 0


def taught(engine: str) -> Trainer:
    fields = {"attention_weight": 100.0, "kd_weight": 0.5, "clip_norm": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}
    recipe = small_recipe(engine=engine, precision="float32", **fields)
    return small_trainer(recipe, method=tensor_train(), device="cuda", teacher=small_teacher("cuda"))


def dropping(engine: str) -> Trainer:
    network = make_network(NetworkSettings(name="darts", width=0.25), small_data().image_shape, 10)
    # At the other cases' rate the loss leaves for 20, where a millionth of the weights is a hundredth of a later loss
    return trainer(network, engine=engine, precision="float32", drop_path=0.3, lr=0.01)


def wide(engine: str) -> Trainer:
    network = make_network(NetworkSettings(name="wrn_10_1"), small_data().image_shape, 10)
    return trainer(network, engine=engine, precision="float32", accumulate=2)


@pytest.mark.parametrize("make", [taught, dropping, wide])
def test_compiled_steps_have_the_plain_loops_losses(make, monkeypatch):
    """Cases that the benchmark of the engine leaves out: a teacher, dropped paths, parts of a batch."""
    monkeypatch.setattr(darts, "CELLS", 2)
    monkeypatch.setattr(darts, "REDUCING", (1, 1))
    monkeypatch.setattr(darts.DARTS, "taps", ("cells.0", "cells.1"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # else a pointwise convolution is not its product
    # A reason that an earlier test has caused is not given again: its steps would pass without being compiled
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    losses = []
    for engine in ("compiled", "plain"):
        torch.manual_seed(0)
        run = make(engine)
        for _ in range(3):
            run.train_steps()
            losses.append(run.step_losses.clone())
            run.epoch += 1
        assert engine == "plain" or run.captured_epoch.compiled
    found, wanted = torch.cat(losses[:3]), torch.cat(losses[3:])
    assert not torch.equal(found[: len(found) // 3], found[-(len(found) // 3) :])
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("engine", ["plain", "captured"])
def test_the_largest_batch_is_at_most_the_training_split(engine):
    def make(batch_size: int) -> Trainer:
        return trainer(engine=engine, batch_size=batch_size)

    found = probe_memory(make, 16, torch.device("cuda"), lambda error: isinstance(error, torch.OutOfMemoryError))
    assert found.step is not None
    assert found.step.images == 16
    assert (found.reason, found.limited) == ("", False)
    assert found.largest_batch == min(len(small_data().train), 64 * 16)


class ReadsValue(nn.Module):
    """A scale that Python reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().float().mean()) > 0 else 1.01 * x


class MakesTensor(nn.Module):
    """A constant that the host sends in each step."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(1.0, device=x.device)


class DropsByPython(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training or random.random() < 0.5 else 0.5 * x


def losses_of_engines(engines, dropout, make):
    """Train the same network with each engine, a module of `make` in it; returns losses of the steps, and notices."""
    losses, notices = [], []
    for engine in engines:
        torch.manual_seed(0)
        random.seed(0)
        network = make_network(SMALL, small_data().image_shape, 10)
        network.stage2 = nn.Sequential(network.stage2, nn.Dropout(dropout), make())
        recipe = small_recipe(engine=engine, precision="float32")
        run = small_trainer(recipe, network=network, device="cuda", notify=notices.append)
        run.train_steps()
        losses.append(run.step_losses.clone())
    return losses, notices


@pytest.mark.parametrize("engine", ["captured", "compiled"])
@pytest.mark.parametrize("make", [ReadsValue, MakesTensor, DropsByPython])
def test_a_network_that_cannot_be_recorded_trains_plain_with_one_notice(make, engine, monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    losses, notices = losses_of_engines((engine, "plain"), 0.2, make)
    assert len(notices) == 1
    assert notices[0].startswith("training steps run one by one, and so are slower: the network ")
    if make is not DropsByPython:  # there Python's numbers went to the steps that were watched, too
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_a_recording_that_fails_leaves_random_numbers_and_memory_as_they_were(monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    monkeypatch.setattr(cuda_graph, "recording_obstacle", lambda *_: None)  # so that it fails in the middle
    losses, notices = losses_of_engines(("captured", "plain"), 0.5, ReadsValue)
    assert len(notices) == 1
    assert notices[0].startswith("training steps are not recorded, and so are slower: ")
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["captured", "compiled"])
def test_usual_networks_are_recorded_without_a_notice(engine, precision, monkeypatch):
    """Plain steps and a replay agree within the tolerance, with dropout whose numbers are equal in both."""
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    for name in ("resnet9", "wrn_10_1", "vit"):
        network = make_network(NetworkSettings(name=name), small_data().image_shape, 10)
        run = small_trainer(
            small_recipe(engine=engine, precision=precision, lr=0.01), network=network, device="cuda",
            notify=pytest.fail,
        )  # fmt: skip
        run.train_steps()
        assert run.captured_epoch is not None
        assert run.captured_epoch.replay is not None, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["captured", "compiled"])
def test_replayed_validation_has_the_numbers_of_the_plain_loop(engine, precision, monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    monkeypatch.setattr(trainer_module, "MIN_EVAL_BATCH", 48)  # four batches of the 200 images, and one of eight
    monkeypatch.setattr(captured_evaluation, "LONG_EVALUATION_BATCHES", 0)
    for network in (None, make_network(NetworkSettings(name="wrn_10_1"), small_data().image_shape, 10)):
        options = {"method": tensor_train()} if network is None else {"network": network}
        run = small_trainer(
            small_recipe(engine=engine, precision=precision, ema_decay=0.9), device="cuda", notify=pytest.fail,
            **options,
        )  # fmt: skip
        first, second = run.train_epoch(), run.train_epoch()
        assert first["eval_compile_seconds"] > 0
        assert "eval_compile_seconds" not in second
        assert run.captured_evaluation is not None
        assert run.captured_evaluation.replay is not None
        assert run.captured_evaluation.compiled == (engine == "compiled")
        replayed, wrong = run.evaluate("val"), run.wrong_images["val"]
        run.captured_evaluation = None
        plain, plain_wrong = run.evaluate("val"), run.wrong_images["val"]
        tolerance = 2e-3 if precision == "float32" else 2e-2
        assert replayed["loss"] == pytest.approx(plain["loss"], rel=tolerance)
        assert replayed["prediction_spread"] == pytest.approx(plain["prediction_spread"], rel=5 * tolerance)
        assert len(wrong) == 200
        assert (wrong != plain_wrong).sum() <= 4  # images whose two likeliest classes are as good as equal


def test_validation_waits_for_the_gpu_once(monkeypatch):
    monkeypatch.setattr(trainer_module, "MIN_EVAL_BATCH", 48)
    run = small_trainer(small_recipe(engine="captured"), method=tensor_train(), device="cuda")
    run.train_epoch()
    waits: list[str] = []
    copies = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (waits.append("read"), allowed(copies, tensor))[1])

    def allowed(read, tensor):
        torch.cuda.set_sync_debug_mode("default")
        return read(tensor)

    torch.cuda.set_sync_debug_mode("error")
    try:
        run.evaluate("val")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == ["read"]


@pytest.mark.timeout(300)  # it compiles
def test_a_process_takes_compiled_code_with_its_gradients_from_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for outcome in ("autograd_cache_saved", "autograd_cache_hit"):
        torch._dynamo.reset()
        monkeypatch.setattr(compiled_forward, "_COMPILED", OrderedDict())  # as in a new process
        counters.clear()
        run = small_trainer(small_recipe(engine="compiled"), method=tensor_train(), device="cuda")
        run.train_steps(limit=1)
        assert run.captured_epoch is not None
        assert run.captured_epoch.compiled
        assert (counters["aot_autograd"][outcome], counters["aot_autograd"]["autograd_cache_bypass"]) == (1, 0)


def test_kernels_are_compiled_side_by_side_without_being_launched():
    from lowrank.kernels.depthwise import depthwise  # needs Triton

    x = torch.randn(2, 56, 7, 9, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, results = torch.randn(56, 1, 3, 3, device="cuda"), []

    def run() -> None:
        results.append(depthwise(x, weight))
        results[-1].sum().backward()  # in a thread of its own

    assert compile_side_by_side(run) >= 2
    assert compile_side_by_side(run) == 0  # nothing is left to compile
    x.grad = None
    run()
    expected = functional.conv2d(x, weight, padding=1, groups=56)
    torch.testing.assert_close(results[-1], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected.sum(), x)[0], rtol=1e-4, atol=1e-4)


def test_memory_comes_back_after_each_of_several_recorded_trainings():
    held = []
    for _ in range(4):
        run = small_trainer(small_recipe(), method=tensor_train(), device="cuda")
        assert run.captured_epoch is not None
        run.train_epoch()
        del run
        free_memory("cuda")
        held.append(torch.cuda.memory_allocated() / 1e6)
    assert max(held) - held[0] < 40


def test_a_recorded_step_gathers_what_a_cached_teacher_holds_on_the_gpu(tmp_path):
    """The GPU is named without an index, as trials name it."""
    teacher = CachedTeacher(filled_cache(tmp_path, small_data(), 1), small_data(), pytest.fail, device="cuda")
    recipe = small_recipe(attention_weight=100.0, kd_weight=0.5)
    run = small_trainer(recipe, device="cuda", teacher=teacher, cache_epochs=1)
    assert math.isfinite(run.train_epoch()["loss_attention"])
    assert run.captured_epoch is not None
    assert run.captured_epoch.replay is not None
