"""A resumed run is the undisturbed one, whatever the recipe keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.errors import InputError
from lowrank.io.tensor_file import load_tensors, save_tensors, saved_versions
from lowrank.networks.base import DropPath
from lowrank.training.trainer import Trainer
from tests.support.training import assert_same, copied_state, small_recipe, small_teacher, small_trainer, tensor_train

RECIPES: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
    "accumulation": {"accumulate": 3, "clip_norm": 1.0},
    "teacher": {"kd_weight": 0.3, "attention_weight": 1000},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "adamw, float16": {"optimizer": "adamw", "lr": 1e-3, "precision": "float16"},
    "frozen": {"freeze": ("stem",), "head_lr": 3.0},
    "all": {"ema_decay": 0.9, "accumulate": 2, "attention_weight": 1000, "kd_weight": 0.5, "precision": "float16"},
}


class Dropping(nn.Module):
    """A network with a path to drop, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.drop_path = nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1), DropPath()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 10))

    def set_drop_path(self, rate: float) -> None:
        self.drop_path.set_rate(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.classifier(self.pool(x + self.drop_path(self.conv(x))).flatten(1))


def assert_resumes(make: Callable[[], Trainer], folder: Any) -> None:
    """Three epochs at once, and one and two with a checkpoint between, agree to the bit."""
    uninterrupted = make()
    curve = [uninterrupted.train_epoch() for _ in range(3)]
    interrupted = make()
    interrupted.train_epoch()
    save_tensors(folder / "interrupted.safetensors", interrupted.state(), {})
    resumed = make()
    resumed.load_state(load_tensors(folder / "interrupted.safetensors")[0])
    torch.rand(7)  # as another trial might have drawn from the generator of the process
    resumed_metrics = [resumed.train_epoch() for _ in range(2)]
    timeless = [key for key in curve[0] if key.startswith(("loss", "train", "val", "grad", "lr", "skipped"))]
    for expected, actual in zip(curve[1:], resumed_metrics, strict=True):
        assert {key: expected[key] for key in timeless} == {key: actual[key] for key in timeless}
    assert_same(copied_state(uninterrupted), copied_state(resumed))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    recipe = small_recipe(**RECIPES[name])
    teacher = small_teacher() if recipe.needs_teacher else None
    assert_resumes(lambda: small_trainer(recipe, method=tensor_train(), teacher=teacher, cache_epochs=2), tmp_path)


def test_a_resumed_run_draws_the_same_dropped_paths_and_dropout(tmp_path):
    recipe = small_recipe(drop_path=0.5)
    assert_resumes(lambda: small_trainer(recipe, network=Dropping()), tmp_path)


def test_each_epoch_draws_anew_and_leaves_the_generator_of_the_process():
    random_numbers = []

    class Recording(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                random_numbers.append(torch.rand(3))
            return x

    network = Dropping()
    network.pool = nn.Sequential(network.pool, Recording())
    run = small_trainer(small_recipe(batch_size=200), network=network)
    torch.manual_seed(5)
    run.train_epoch()
    run.train_epoch()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert not torch.equal(random_numbers[0], random_numbers[1])


def test_the_drop_path_rate_rises_to_that_of_the_recipe():
    run = small_trainer(small_recipe(batch_size=200, drop_path=0.4), network=Dropping())
    rates = []
    for _ in range(3):
        run.train_epoch()
        rates.append(run.network.drop_path.rate.item())
    assert rates == pytest.approx([0.0, 0.2, 0.4])


def test_drop_path_without_paths_is_refused():
    with pytest.raises(InputError, match="`drop_path` needs a network with paths to drop; ResNet9 has none"):
        small_trainer(small_recipe(drop_path=0.1))


def test_the_moving_average_is_evaluated_and_saved(tmp_path):
    run = small_trainer(small_recipe(ema_decay=0.5, lr=0.2))
    metrics = run.train_epoch()
    state = copied_state(run)
    finished = {name: tensor.clone() for name, tensor in run.weights().items()}
    assert not torch.equal(finished["network.classifier.weight"], state["network.classifier.weight"])
    assert torch.equal(finished["network.classifier.weight"], state["average.classifier.weight"])
    assert_same(state, copied_state(run))  # evaluating has put the weights back
    plain = small_trainer(small_recipe())
    plain.load_state(finished)
    assert plain.evaluate("val")["loss"] == pytest.approx(metrics["val_loss"], rel=1e-6)
    again = small_trainer(small_recipe(ema_decay=0.5))
    again.load_state(finished)  # weights alone: the average starts from them
    assert again.evaluate("val")["loss"] == pytest.approx(metrics["val_loss"], rel=1e-6)


def test_the_moving_average_follows_its_formula():
    """d rises as (1 + t) / (10 + t) to the decay."""
    from lowrank.training.ema import ExponentialMovingAverage

    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        average = ExponentialMovingAverage(layer, 0.15)
        layer.weight.fill_(1.0)
    average.update(0)  # d = 0.1
    assert average.tensors["weight"].item() == pytest.approx(0.9)
    average.update(1)  # d = 0.15, not 2 / 11
    assert average.tensors["weight"].item() == pytest.approx(0.15 * 0.9 + 0.85)
    with average.swapped_in():
        assert layer.weight.item() == pytest.approx(average.tensors["weight"].item())
    assert layer.weight.item() == 1.0


@pytest.mark.parametrize("fields", [{}, {"kd_weight": 0.4, "attention_weight": 100}])
def test_micro_batches_have_the_losses_of_the_whole_batch(fields):
    """Of a network without batch norm, whose statistics would be those of a micro-batch."""

    def trained(accumulate: int) -> list[float]:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        network = nn.Sequential(layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
        run = small_trainer(
            small_recipe(accumulate=accumulate, batch_size=50, **fields), network=network,
            teacher=small_teacher() if fields else None, taps=("0",) * 3 if fields else (),
        )  # fmt: skip
        return [loss for _ in range(3) for loss in (run.train_epoch()["train_loss"],)]

    whole_batches = trained(1)
    assert trained(3) == pytest.approx(whole_batches, rel=2e-5)
    assert whole_batches[2] < whole_batches[0]


def test_more_micro_batches_than_images_are_refused():
    with pytest.raises(ValueError, match="`accumulate` cuts a batch of 32 into parts, but got 33"):
        small_recipe(accumulate=33)


def test_the_last_files_are_kept_the_newest_first(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    assert saved_versions(path) == []
    for number in range(4):
        save_tensors(path, {"a": torch.tensor(number)}, {}, versions=3)
    assert [int(load_tensors(each)[0]["a"]) for each in saved_versions(path)] == [3, 2, 1]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "checkpoint.1.safetensors", "checkpoint.2.safetensors", "checkpoint.safetensors",
    ]  # fmt: skip


def test_weights_that_have_changed_on_disk_are_damage(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16), "b": torch.tensor(3), "empty": torch.zeros(0)}
    save_tensors(path, tensors, {"trial_id": "x"})
    tensors_read, metadata = load_tensors(path)
    assert all(torch.equal(tensors_read[name], tensor) for name, tensor in tensors.items())
    assert metadata == {"trial_id": "x"}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the tensors, of which safetensors takes any value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.safetensors is damaged: its tensors do not have their checksum"):
        load_tensors(path)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_writes_leaves_a_whole_checkpoint(tmp_path, renames):
    """A child process is killed before the first rename, and between the two."""
    import os
    import signal
    from pathlib import Path

    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"a": torch.tensor(1)}, {}, versions=2)
    child = os.fork()
    if child == 0:
        done, rename = [], Path.replace

        def killing(self: Path, target: Any) -> Path:
            if len(done) == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            return rename(self, target)

        Path.replace = killing
        save_tensors(path, {"a": torch.tensor(2)}, {}, versions=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [int(load_tensors(each)[0]["a"]) for each in saved_versions(path)] == [1]
    save_tensors(path, {"a": torch.tensor(3)}, {}, versions=2)
    assert [int(load_tensors(each)[0]["a"]) for each in saved_versions(path)] == [3, 1]
