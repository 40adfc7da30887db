"""Training variational layers: the loss, replayable noise, resumption, divergence, records, and what follows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lowrank.compression import Budget, VariationalSettings, make_variational
from lowrank.data import AugmentationSettings, DataSettings, ImageData, load_data
from lowrank.distillation import LiveTeacher
from lowrank.errors import InputError
from lowrank.layers import Bayesian, posterior_parameters, variational_layers
from lowrank.networks import NetworkSettings, make_network
from lowrank.training import DivergedError, Recipe, Trainer, compress_posterior, mixed_precision_error
from lowrank.training.variational import CounterNoise
from tests.support.recorder import recording_on_cpu

NETWORK = NetworkSettings(name="mlp", hidden=(24, 16))
RESNET = NetworkSettings(name="resnet9", width=0.0625)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataSettings(name="digits", train_images=256))


def trainer_of(
    data: ImageData, settings: NetworkSettings = NETWORK, recipe: dict[str, Any] | None = None, **fields: Any
) -> Trainer:
    torch.manual_seed(0)
    network = make_network(settings, data.image_shape, len(data.classes))
    method = Bayesian(**{"warmup_epochs": 2, **fields})
    make_variational(network, method)
    train = {"epochs": 4, "batch_size": 64, "lr": 0.01, "optimizer": "adamw", "decay": "plain", **(recipe or {})}
    return Trainer(
        network, data, Recipe(**train), augmentation=AugmentationSettings(), order_seed=0,
        variational=VariationalSettings(method=method, network=settings),
    )  # fmt: skip


def test_noise_is_a_function_of_seed_epoch_image_and_draw() -> None:
    device = torch.device("cpu")
    noise = CounterNoise(3, 6, device)
    noise.begin_epoch(2)
    noise.select(torch.arange(100))
    whole = noise.normal(4, 100, 7, device)
    noise.select(torch.tensor([50, 3]))
    assert torch.equal(noise.normal(4, 2, 7, device), whole[[50, 3]]), "the batch does not matter"
    assert not torch.equal(noise.normal(5, 2, 7, device), whole[[50, 3]]), "another draw"
    noise.begin_epoch(3)
    assert not torch.equal(noise.normal(4, 2, 7, device), whole[[50, 3]]), "another epoch"
    other = CounterNoise(4, 6, device)
    other.begin_epoch(2)
    other.select(torch.arange(100))
    assert not torch.equal(other.normal(4, 100, 7, device), whole), "another seed"


def test_noise_is_standard_normal_and_independent() -> None:
    noise = CounterNoise(0, 1, torch.device("cpu"))
    noise.select(torch.arange(2000))
    draws = noise.normal(0, 2000, 50, torch.device("cpu")).double()
    assert abs(draws.mean().item()) < 4 / math.sqrt(draws.numel())
    assert draws.var().item() == pytest.approx(1, abs=0.02)
    assert (draws.abs() > 3).double().mean().item() == pytest.approx(0.0027, abs=0.001)
    correlations = torch.corrcoef(draws.T) - torch.eye(50)
    assert correlations.abs().max() < 0.12


def test_the_divergence_is_divided_by_training_examples_and_warmed_up(digits: ImageData) -> None:
    trainer = trainer_of(digits, kl_weight=0.5)
    variational = trainer.variational
    assert variational is not None
    layers = [layer for _, layer in variational_layers(trainer.network)]
    total = sum(layer.kl().item() for layer in layers)
    assert variational.kl().item() == pytest.approx(total / len(digits.train), rel=1e-5)
    assert [variational.weight_at(epochs) for epochs in (0, 1, 2, 9)] == [0, 0.25, 0.5, 0.5]
    metrics = trainer.train_epoch()
    mean_weight = sum(0.25 * step / trainer.steps_per_epoch for step in range(trainer.steps_per_epoch)) / (
        trainer.steps_per_epoch
    )
    kl_part = metrics["train_loss"] - metrics["loss_cross_entropy"]
    assert kl_part == pytest.approx(mean_weight * metrics["loss_kl"], rel=0.05)


def test_posteriors_have_no_weight_decay_and_a_rate_of_their_own(digits: ImageData) -> None:
    trainer = trainer_of(digits, recipe={"weight_decay": 0.1, "factor_lr": 3.0})
    groups = {
        id(parameter): (group["weight_decay"], group["lr_multiplier"])
        for group in trainer.step.optimizer.param_groups for parameter in group["params"]
    }  # fmt: skip
    rates = {id(parameter) for parameter in posterior_parameters(trainer.network, means=False)}
    for parameter in posterior_parameters(trainer.network, means=True):
        assert groups[id(parameter)] == (0.0, 3.0 if id(parameter) in rates else 1.0)
    norm = next(module for module in trainer.network.modules() if isinstance(module, torch.nn.BatchNorm1d))
    assert groups[id(norm.weight)] == (0.1, 1.0)


def test_sgd_is_said_to_leave_the_variances(digits: ImageData) -> None:
    with pytest.warns(UserWarning, match="hardly move the variances"):
        trainer = trainer_of(digits, recipe={"optimizer": "sgd", "lr": 0.1})
    before = {name: layer.weight_log_variance.clone() for name, layer in variational_layers(trainer.network)}
    trainer.train_epoch()
    for name, layer in variational_layers(trainer.network):
        assert (layer.weight_log_variance - before[name]).abs().max() < 0.1


def test_micro_batches_see_the_noise_of_their_images(digits: ImageData) -> None:
    """Without batch norms, which see the micro-batch, the gradients of parts are those of the whole batch."""
    gradients = []
    for parts in (1, 4):
        trainer = trainer_of(digits, recipe={"accumulate": parts})
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        trainer.step.begin_epoch()
        trainer.step.compute_gradients(0, next(iter(trainer.batches())), trainer._new_meter(1))
        gradients.append([parameter.grad.clone() for parameter in trainer.network.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-6)


def test_a_resumed_training_gives_the_same_bits(digits: ImageData) -> None:
    straight, first = trainer_of(digits, prior="horseshoe"), trainer_of(digits, prior="horseshoe")
    expected = [straight.train_epoch() for _ in range(3)]
    first.train_epoch()
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = trainer_of(digits, prior="horseshoe")
    second.load_state(state)
    for epoch in (1, 2):
        metrics = second.train_epoch()
        for name in ("train_loss", "loss_kl", "val_error", "compression"):
            assert metrics[name] == expected[epoch][name]


@pytest.mark.parametrize(
    ("settings", "prior", "recipe"),
    [(NETWORK, "horseshoe", {"accumulate": 2}), (RESNET, "normal_jeffreys", {"ema_decay": 0.9})],
)
def test_a_recorded_training_has_the_bits_of_the_plain_one(
    digits: ImageData, settings: NetworkSettings, prior: str, recipe: dict[str, Any], monkeypatch: Any
) -> None:
    """Replays draw the numbers of their own images and epoch, and weigh the divergence as their own step does."""
    rate = {"lr": 0.0078125, "schedule": "constant", **recipe}  # a rate that float32 has exactly, as a buffer holds it
    plain = trainer_of(digits, settings, recipe={**rate, "engine": "plain"}, prior=prior)
    with recording_on_cpu(monkeypatch):
        recorded = trainer_of(digits, settings, recipe={**rate, "engine": "captured"}, prior=prior)
    for _ in range(2):
        expected, metrics = plain.train_epoch(), recorded.train_epoch()
        assert metrics["kl_weight"] == expected["kl_weight"] > 0
        torch.testing.assert_close(recorded.step_losses, plain.step_losses, rtol=0, atol=0)
    assert recorded.captured_epoch is not None
    assert recorded.captured_epoch.replay is not None
    for name, tensor in recorded.state().items():
        torch.testing.assert_close(tensor, plain.state()[name], rtol=0, atol=0, msg=name)


def test_a_recorded_training_resumes_and_traces_a_divergence(digits: ImageData, monkeypatch: Any) -> None:
    with recording_on_cpu(monkeypatch):
        straight, first, second = (trainer_of(digits, recipe={"engine": "captured"}) for _ in range(3))
    expected = [straight.train_epoch() for _ in range(2)]
    first.train_epoch()
    second.train_epoch()  # recorded on tensors that the checkpoint's replace
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert second.train_epoch()["train_loss"] == expected[1]["train_loss"]
    error = _break("hidden.3", lambda layer: layer.weight_mean.fill_(math.nan), second)
    assert (error.epoch, error.step, error.layer) == (4, 1, "hidden.3")


def test_records_of_an_epoch(digits: ImageData) -> None:
    trainer = trainer_of(digits)
    metrics = trainer.train_epoch()
    layers = dict(variational_layers(trainer.network))
    assert set(layers) == {"hidden.0", "hidden.3", "classifier"}
    for name, layer in layers.items():
        assert metrics[f"kl.{name}"] == pytest.approx(layer.kl().item())
        assert metrics[f"alive.{name}"] <= layer.scales.groups
        histogram = {key: value for key, value in metrics.items() if key.startswith(f"snr.{name}.")}
        assert sum(histogram.values()) == pytest.approx(1)
        below = (layer.signal_to_noise() < 1).double().mean().item()
        edges = ("-2", "-1.5", "-1", "-0.5", "0")
        assert sum(histogram[f"snr.{name}.{edge}"] for edge in edges) == pytest.approx(below)
    assert 0 <= metrics["sparsity"] < 1
    assert metrics["compression"] >= 1


def _break(layer: str, change: Callable[[torch.nn.Module], None], trainer: Trainer) -> DivergedError:
    trainer.train_epoch()
    with torch.no_grad():
        change(trainer.network.get_submodule(layer))
    with pytest.raises(DivergedError) as caught:
        trainer.train_epoch()
    return caught.value


def test_a_mean_that_is_not_finite_names_its_layer(digits: ImageData) -> None:
    error = _break("hidden.3", lambda layer: layer.weight_mean.fill_(math.nan), trainer_of(digits))
    assert (error.epoch, error.step, error.layer) == (2, 1, "hidden.3")


def test_a_divergence_that_is_not_finite_names_its_layer(digits: ImageData) -> None:
    """The outputs stay finite: only the divergence of the horseshoe overflows."""

    def overflow(layer: torch.nn.Module) -> None:
        layer.scales.gamma_location.add_(300)
        layer.scales.inverse_gamma_location.sub_(300)

    error = _break("classifier", overflow, trainer_of(digits, prior="horseshoe"))
    assert error.layer == "classifier"
    assert "divergence of `classifier`" in str(error)


def test_an_exploding_divergence_names_its_layer(digits: ImageData) -> None:
    error = _break("hidden.0", lambda layer: layer.weight_mean.add_(1000), trainer_of(digits))
    assert "exploded" in str(error)
    assert error.layer == "hidden.0"


@pytest.mark.parametrize("prior", ["normal_jeffreys", "horseshoe"])
def test_one_training_meets_several_budgets(digits: ImageData, prior: str) -> None:
    trainer = trainer_of(digits, prior=prior, finetune_epochs=1, finetune_lr=0.003)
    for _ in range(4):
        trainer.train_epoch()
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    sizes, full = [], sum(value.numel() for value in make_network(NETWORK, (1, 8, 8), 10).parameters())
    for share in (0.6, 0.3, 0.15):
        removed, plain = compress_posterior(trainer, Budget(params=int(share * full)))
        assert removed.counts["params"] == sum(value.numel() for value in plain.network.parameters())
        assert removed.counts["params"] <= share * full
        assert removed.counts["mixed_bytes"] < removed.counts["bytes"]
        assert plain.epoch == 1
        assert mixed_precision_error(plain, removed.widths) <= 100
        sizes.append(removed.counts["params"])
    assert sizes == sorted(sizes, reverse=True)
    for name, tensor in trainer.state().items():
        assert torch.equal(tensor, before[name]), "the trained posterior is left as it is"


def test_fine_tuning_imitates_the_network_before_the_removal_or_the_teacher(digits: ImageData) -> None:
    """With all of the loss on distillation the labels do not matter: those of the training split are wrong here."""
    trainer = trainer_of(digits, finetune_epochs=12, finetune_lr=0.01, finetune_kd_weight=1.0)
    for _ in range(4):
        trainer.train_epoch()
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    right = trainer.evaluate("train")["error"]
    wrong = replace(digits.train, labels=(digits.train.labels + 1) % 10, _copies={})
    trainer.data = replace(digits, train=wrong)
    _, plain = compress_posterior(trainer, Budget(params=1500))
    assert right < 40
    assert plain.evaluate("train")["error"] > 80, "the labels would have given less"
    for name, tensor in trainer.state().items():
        assert torch.equal(tensor, before[name]), "the network that is imitated stays as it is"
    other = LiveTeacher(make_network(NETWORK, digits.image_shape, 10), ())
    taught = Trainer(
        trainer.network, digits, trainer.recipe.model_copy(update={"kd_weight": 0.5}), order_seed=0, teacher=other,
        augmentation=AugmentationSettings(), variational=trainer.variational.settings, cache_epochs=3,
    )  # fmt: skip
    _, plain = compress_posterior(taught, Budget(params=1500))
    assert plain.step.objective.teacher is other
    assert plain.step.cache_epochs == 3


def test_fine_tuning_leaves_masked_groups_masked() -> None:
    data = load_data(DataSettings(name="digits", train_images=64))
    settings = NetworkSettings(name="resnet18", width=0.05, stem="small")
    trainer = trainer_of(data, settings, recipe={"epochs": 1}, finetune_epochs=1, finetune_lr=0.01)
    trainer.train_epoch()
    total = sum(value.numel() for value in make_network(settings, (1, 8, 8), 10).parameters())
    removed, plain = compress_posterior(trainer, Budget(params=int(0.6 * total)))
    assert removed.is_masked
    zeros = sum(
        int((module.weight == 0).sum()) for module in plain.network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    )  # fmt: skip
    assert total - zeros == removed.counts["params"] <= 0.6 * total


def test_variational_layers_are_not_trained_without_their_divergence(digits: ImageData) -> None:
    network = make_network(NETWORK, digits.image_shape, len(digits.classes))
    make_variational(network, Bayesian())
    with pytest.raises(InputError, match="needs `variational`"):
        Trainer(network, digits, Recipe(epochs=1), augmentation=AugmentationSettings(), order_seed=0)
