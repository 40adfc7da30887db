"""The training loop: repeatable to the bit, means over images, weight decay, divergence, checkpoints."""

from __future__ import annotations

import math
import multiprocessing

import pytest
import torch
from torch import nn

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student, factor_parameters
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, eval_batches, load_data
from lowrank.errors import InputError
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers import Dense, Method, Separable, TensorTrain
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.networks.registry import NetworkSettings
from lowrank.training.divergence import DivergedError
from lowrank.training.optimizer import parameter_groups
from lowrank.training.recipe import Recipe, lr_factor
from lowrank.training.trainer import Trainer
from tests.support.training import small_recipe, small_trainer

SMALL = NetworkSettings(width=0.125)
RECIPE = Recipe(epochs=3, batch_size=32, lr=0.1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=200))


def trainer(data: ImageData, method: Method | None = None, recipe: Recipe = RECIPE, seed: int = 0) -> Trainer:
    plan = network_plan(SMALL, data.image_shape, 10)
    method = method or solve(plan, TensorTrain(dims=3), Budget(params=4500))
    network = build_student(SMALL, plan, method, data.image_shape, 10, seed)
    ratio = plan.params(method) / plan.params(Dense())
    return Trainer(
        network,
        data,
        recipe,
        augmentation=default_augmentation("digits", data.image_shape),
        order_seed=seed,
        decay_ratio=ratio,
    )


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.state().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_the_same_seed_gives_the_same_run_to_the_bit(data):
    first, second = trainer(data), trainer(data)
    for _ in range(2):
        first_metrics, second_metrics = first.train_epoch(), second.train_epoch()
        timeless = ("train_loss", "val_loss", "val_error", "train_error", "lr")
        assert [first_metrics[key] for key in timeless] == [second_metrics[key] for key in timeless]
    assert_same(weights(first), weights(second))


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(data, tmp_path):
    uninterrupted = trainer(data)
    for _ in range(3):
        uninterrupted.train_epoch()
    interrupted = trainer(data)
    interrupted.train_epoch()
    save_tensors(tmp_path / "half.safetensors", interrupted.state(), {})
    resumed = trainer(data, seed=0)
    resumed.load_state(load_tensors(tmp_path / "half.safetensors")[0])
    assert resumed.epoch == 1
    for _ in range(2):
        resumed.train_epoch()
    assert_same(weights(uninterrupted), weights(resumed))


def test_a_streamed_set_trains_as_a_resident_one_by_the_same_processes_in_all_epochs(data):
    """They end with the last epoch."""
    streamed = load_data(data.settings.model_copy(update={"resident_mb": 0}))
    before = set(multiprocessing.active_children())
    runs, processes = (trainer(data), trainer(streamed)), []
    for _ in range(RECIPE.epochs):
        for run in runs:
            run.train_epoch()
        processes.append(set(multiprocessing.active_children()) - before)
    assert_same(*map(weights, runs))
    assert len(processes[0]) == 2
    assert processes == [processes[0], processes[0], set()]


def test_evaluation_counts_every_image_once_and_averages_over_samples(data):
    run = trainer(data)
    run.train_epoch()
    metrics = run.evaluate("val")
    run.network.eval()
    images, labels = zip(*[(images, labels) for images, labels, *_ in eval_batches(data, "val", "cpu", 7)], strict=True)
    assert sum(map(len, labels)) == len(data.val)
    with torch.no_grad():
        logits = run.network(torch.cat(images))
    truth = torch.cat(labels)
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(logits, truth).item(), rel=1e-4)
    assert metrics["error"] == pytest.approx(100 * (logits.argmax(1) != truth).float().mean().item(), rel=1e-5)


def test_an_evaluation_rebuilds_the_averaged_weights_once(monkeypatch):
    """On a GPU the objective rebuilds all weights together; here it is made to do so on a CPU."""
    run = trainer(load_data(DataSettings()), recipe=RECIPE.model_copy(update={"ema_decay": 0.5}))
    assert len(run.data.val) > 256  # more than a batch
    run.train_steps(2)
    expected, before, calls = run.evaluate("val"), weights(run), []
    run.step.objective.rebuild = BatchedRebuild(run.network, include_all=True)
    rebuilt = BatchedRebuild._rebuild_all
    monkeypatch.setattr(BatchedRebuild, "_rebuild_all", lambda self: calls.append(self) or rebuilt(self))
    assert run.evaluate("val") == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 1
    assert_same(weights(run), before)
    assert all(each.external_weight is None for each in run.step.objective.rebuild.maps)


@pytest.mark.parametrize("scaled", [True, False])
def test_decay_of_factors_is_scaled_by_the_compression(data, scaled):
    run = trainer(data)
    recipe = Recipe(weight_decay=1e-3, scaled_decay=scaled)
    body, factors = parameter_groups(run.network, recipe, decay_ratio=0.1)
    assert body["weight_decay"] == 1e-3
    assert factors["weight_decay"] == pytest.approx(1e-4 if scaled else 1e-3)
    assert {id(p) for p in factors["params"]} == {id(p) for p in factor_parameters(run.network)}
    assert len(body["params"]) + len(factors["params"]) == len(list(run.network.parameters()))


def test_a_network_without_factors_has_one_group(data):
    assert len(parameter_groups(trainer(data, Separable()).network, RECIPE, 0.1)) == 1


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(schedule="cosine"), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        (Recipe(schedule="cosine", warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5}),
        (Recipe(schedule="step"), {0.0: 1.0, 0.29: 1.0, 0.3: 0.2, 0.6: 0.04, 0.8: 0.008}),
        (Recipe(schedule="step", gamma=0.1, milestones=(0.5,)), {0.49: 1.0, 0.5: 0.1}),
        (Recipe(schedule="one_cycle", warmup=0.25), {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0}),
        (Recipe(schedule="constant"), {0.0: 1.0, 0.99: 1.0}),
    ],
)
def test_schedules(recipe, expected):
    for progress, share in expected.items():
        assert lr_factor(recipe, progress) == pytest.approx(share, abs=1e-9)


def test_the_learning_rate_of_the_study_falls_at_60_120_and_160_of_200_epochs():
    recipe = Recipe(schedule="step")
    shares = [lr_factor(recipe, epoch / 200) for epoch in (59, 60, 119, 120, 159, 160)]
    assert shares == pytest.approx([1, 0.2, 0.2, 0.04, 0.04, 0.008])


def test_a_loss_that_is_not_finite_is_reported_with_its_step(data):
    run = trainer(data)
    with torch.no_grad():
        run.network.classifier.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match="training loss nan in epoch 1, step 1"):
        run.train_epoch()


def test_a_far_too_high_learning_rate_diverges(data):
    run = trainer(data, Separable(), RECIPE.model_copy(update={"lr": 1e12, "epochs": 5}))
    with pytest.raises(DivergedError, match=r"loss (nan|inf) "):
        [run.train_epoch() for _ in range(5)]


def test_clipping_bounds_the_step(data):
    free, clipped = trainer(data), trainer(data, recipe=RECIPE.model_copy(update={"clip_norm": 1e-6}))
    start = weights(clipped)["network.classifier.weight"]
    free.train_epoch()
    clipped.train_epoch()
    movements = [(weights(run)["network.classifier.weight"] - start).norm().item() for run in (free, clipped)]
    assert movements[1] < 0.05 * movements[0]


def test_a_damaged_or_foreign_checkpoint_is_refused(data, tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, trainer(data).state(), {"trial_id": "x"})
    assert load_tensors(path)[1] == {"trial_id": "x"}
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        trainer(data, Separable()).load_state(load_tensors(path)[0])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        load_tensors(path)


def test_a_failed_write_leaves_the_old_checkpoint(data, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_trainer_on_a_cpu_leaves_the_search_for_kernels_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    run = small_trainer(small_recipe(epochs=1))
    assert torch.backends.cudnn.benchmark
    run.train_epoch()
    assert torch.backends.cudnn.benchmark


def test_an_evaluation_that_does_not_fit_is_cut(monkeypatch):
    sizes: list[int] = []

    def forward(self, x):
        sizes.append(len(x))
        if len(x) > 40:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, x)

    run = small_trainer(small_recipe(epochs=1))
    expected = run.evaluate("val")
    real = type(run.network).forward
    monkeypatch.setattr(type(run.network), "forward", forward)
    assert run.evaluate("val") == pytest.approx(expected, rel=1e-5)
    cut = list(sizes)
    sizes.clear()
    run.evaluate("val")
    assert cut[0] > 40
    assert max(sizes) <= 40  # the size that fits is kept
    monkeypatch.setattr(run, "_eval_batch", 1)
    monkeypatch.setattr(type(run.network), "forward", lambda self, x: forward(self, torch.zeros(50)))
    with pytest.raises(torch.OutOfMemoryError):
        run.evaluate("val")
