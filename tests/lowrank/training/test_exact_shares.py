"""Two processes compute, bit for bit, what one process computes that takes each batch in two shares.

The reference knows nothing of processes. Its network runs on both halves of the batch, layer by layer, and a batch norm
joins the statistics of the halves. Whatever an exchange lost, took twice or took from another step would show. The
teacher's targets come from a cache, of which each process reads the rows of its own images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import AugmentationSettings, ImageData
from lowrank.distillation import Signals
from lowrank.distillation.cache import CacheKey, CacheSource, TeacherCache, fill_cache
from lowrank.distillation.cache_file import Array, Layout
from lowrank.distillation.cached_teacher import CachedTeacher
from lowrank.distillation.teacher import LiveTeacher
from lowrank.layers import StructuredMap, TensorTrain
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.objective import Loss
from lowrank.training.trainer import Trainer
from tests.support.process_group import run_in_group
from tests.support.training import copied_state, small_data, small_recipe

STEPS, SHARES, BATCH = 50, 2, 48
CACHE_EPOCHS = 2
VIEWS = AugmentationSettings(shift=1, seed=3)
IMAGES = (1, 8, 8)
WIDE = NetworkSettings(name="wrn_10_1")
TAPS = ("stage1", "stage2", "stage3")
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.9, "weight_decay": 1e-3},
    "taught": {"kd_weight": 0.5, "attention_weight": 50.0, "label_smoothing": 0.1, "clip_norm": 1.0, "ema_decay": 0.9},
}
Outcome = tuple[list[float], dict[str, Tensor], list[list[int]]]


class WatchedTeacher(CachedTeacher):
    """Notes which rows of the cache it reads in each step, where it reads them one by one."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.rows: list[list[int]] = []

    def _open(self, cache_epoch: int) -> None:
        super()._open(cache_epoch)
        if self._arrays is not None:
            logits, *maps = self._arrays
            self._arrays = [WatchedArray(logits, self.rows), *maps]  # type: ignore[list-item]


class WatchedArray:
    """Notes which of its rows are read."""

    def __init__(self, array: Array, rows: list[list[int]]):
        self._array, self._rows = array, rows

    def __getitem__(self, rows: Array) -> Array:
        self._rows.append(rows.tolist())
        return self._array[rows]


def live_teacher() -> LiveTeacher:
    """An untrained teacher, whose outputs are cached."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LiveTeacher(make_network(NetworkSettings(name="wrn_10_2"), IMAGES, 10), TAPS)


def teacher_cache(root: Path, data: ImageData) -> TeacherCache:
    """The cache of `live_teacher`, filled or not."""
    layout = Layout(len(data.train), 10, ((8, 8), (4, 4), (2, 2)))
    key = CacheKey(weights="w", data=data.fingerprint, views=VIEWS, taps=TAPS, precision="float32", layout=layout)
    return TeacherCache(root, key)


class NormOfShares(torch.autograd.Function):
    """Batch norm of float32 images (B, C, H, W) by the joined statistics of the halves of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        (var_a, mean_a), (var_b, mean_b) = (torch.var_mean(half, (0, 2, 3), correction=0) for half in x.chunk(SHARES))
        mean = (mean_a + mean_b) / 2
        variance = ((var_a + (mean_a - mean).square()) + (var_b + (mean_b - mean).square())) / 2
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        out = (x - mean[:, None, None]) * (weight * inverse)[:, None, None] + bias[:, None, None]
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, mean, inverse = ctx.saved_tensors
        normal = (x - mean[:, None, None]) * inverse[:, None, None]
        of_weight, of_bias = (
            torch.stack([half.sum((0, 2, 3)) for half in values.chunk(SHARES)]).sum(0)
            for values in (gradient * normal, gradient)
        )
        rows = x.numel() // x.shape[1]
        centred = gradient - (of_bias / rows)[:, None, None] - normal * (of_weight / rows)[:, None, None]
        return (weight * inverse)[:, None, None] * centred, of_weight, of_bias, None


def normalise_shares(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Replace the forward pass of a batch norm."""
    out, mean, variance = NormOfShares.apply(x, norm.weight, norm.bias, norm.eps)
    rows = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
    return out


def run_shares(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Replace the forward pass of any other layer."""
    return torch.cat([forward(half) for half in x.chunk(SHARES)])


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that compute something by themselves."""
    if isinstance(module, StructuredMap) or not list(module.children()):
        yield module
    else:
        for child in module.children():
            yield from layers(child)


class LossOfShares:
    """The mean of the losses of both halves."""

    def __init__(self, loss: Loss):
        self.loss = loss

    def __call__(
        self, output: Tensor, labels: Tensor, signals: Signals | None, maps: Sequence[Tensor], class_weights: None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        halves = [None] * SHARES if signals is None else signals.cut(SHARES)
        maps_of_halves = list(zip(*(one.chunk(SHARES) for one in maps), strict=True)) if maps else [()] * SHARES
        (_, loss_a, parts_a), (_, loss_b, parts_b) = map(
            self.loss, output.chunk(SHARES), labels.chunk(SHARES), halves, maps_of_halves
        )
        return output, (loss_a + loss_b) / 2, tuple((a + b) / 2 for a, b in zip(parts_a, parts_b, strict=True))


def take_shares(run: Trainer) -> None:
    """Make a trainer of one process compute on halves of each batch."""
    for layer in layers(run.network):
        is_norm = isinstance(layer, nn.BatchNorm2d)
        layer.forward = partial(normalise_shares, layer) if is_norm else partial(run_shares, layer.forward)  # type: ignore
    run.step.objective.loss = LossOfShares(run.step.objective.loss)  # type: ignore[assignment]


def make_run(
    group: DataParallelGroup | None, root: Path, name: str, device: str = "cpu", **fields: Any
) -> tuple[Trainer, WatchedTeacher]:
    """Make the trainer of a recipe and its teacher."""
    plan, data = network_plan(WIDE, IMAGES, 10), small_data()
    network = build_student(WIDE, plan, solve(plan, TensorTrain(dims=3), Budget(params=9000)), IMAGES, 10, 0)
    teacher = WatchedTeacher(teacher_cache(root, data), data, live_teacher, device=device)
    recipe = small_recipe(batch_size=BATCH, epochs=13, **RECIPES[name], **fields)
    run = Trainer(
        network, data, recipe, order_seed=0, decay_ratio=0.5, augmentation=VIEWS, teacher=teacher, group=group,
        cache_epochs=CACHE_EPOCHS, taps=TAPS if name == "taught" else (), device=device,
    )  # fmt: skip
    return run, teacher


def losses_of_steps(run: Trainer) -> list[float]:
    """Train STEPS steps."""
    losses: list[float] = []
    while len(losses) < STEPS:
        steps = min(run.steps_per_epoch, STEPS - len(losses))
        run.train_steps(limit=steps)
        losses += run.step_losses[:steps].tolist()
        run.epoch += 1
    return losses


def train(group: DataParallelGroup | None, root: Path, in_shares: bool) -> dict[str, Outcome]:
    """Train each recipe: losses of the steps, all tensors of the state after them, rows of the cache in each step."""
    outcomes: dict[str, Outcome] = {}
    for name in RECIPES:
        run, teacher = make_run(group, root, name)
        if in_shares:
            take_shares(run)
        outcomes[name] = losses_of_steps(run), copied_state(run), teacher.rows
    return outcomes


def train_alone(root: Path, in_shares: bool) -> dict[str, Outcome]:
    """Train in this process, with one thread as the processes of a group."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(None, root, in_shares)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a filled cache."""
    root, data = tmp_path_factory.mktemp("caches"), small_data()
    source = CacheSource(teacher=live_teacher, data=data, device="cpu", batch_size=100)
    assert fill_cache(teacher_cache(root, data), source, CACHE_EPOCHS, notify=lambda line: None)
    return root


@pytest.fixture(scope="module")
def outcomes(root: Path) -> tuple[dict[str, Outcome], list[dict[str, Outcome]]]:
    """The reference, and what each of two processes computes."""
    return train_alone(root, in_shares=True), run_in_group(SHARES, train, root, False)


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_have_the_bits_of_one_that_takes_each_batch_in_two_shares(outcomes, name):
    alone, processes = outcomes
    losses, state, _ = alone[name]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    for ours in processes:
        assert ours[name][0] == losses
        assert ours[name][1].keys() == state.keys()
        for key, tensor in state.items():
            assert torch.equal(ours[name][1][key], tensor), key


def test_each_process_reads_the_teachers_targets_for_its_own_images_alone(outcomes):
    alone, (first, second) = outcomes
    *_, rows = alone["taught"]
    assert len(rows) == STEPS
    for whole, ours, theirs in zip(rows, first["taught"][2], second["taught"][2], strict=True):
        assert len(ours) == len(theirs) == BATCH // SHARES
        assert ours + theirs == whole
    assert not alone["plain"][2]


def taught_on_gpus(group: DataParallelGroup | None, root: Path, engine: str) -> list[float]:
    """Without TF32, which rounds to ten bits what the kernels for half a batch sum in another order."""
    torch.backends.cudnn.allow_tf32 = False
    device = f"cuda:{group.index}" if group else "cuda:0"
    run, teacher = make_run(group, root, "taught", device, engine=engine, precision="float32")
    run.train_steps()
    assert not teacher.rows  # all targets lie on the card, which gathers those of its own images
    return run.step_losses.tolist()


@pytest.mark.gpu(2)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # of torch 2.11, once a process
@pytest.mark.parametrize("engine", ["plain", "captured"])
def test_two_gpus_with_a_cached_teacher_have_the_losses_of_one(root, engine, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # is set back afterwards
    alone = taught_on_gpus(None, root, engine)
    for losses in run_in_group(SHARES, taught_on_gpus, root, engine, on_gpus=True):
        assert losses == pytest.approx(alone, rel=1e-4)
