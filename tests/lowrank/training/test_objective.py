"""The training loss: its parts, their weights, and what a teacher is called with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowrank.distillation.losses import attention_loss, distillation_loss
from lowrank.distillation.teacher import Signals
from lowrank.errors import InputError
from lowrank.networks.registry import NetworkSettings, make_network
from tests.support.training import TAPS, small_recipe, small_teacher, small_trainer

RECIPE = small_recipe(kd_weight=0.5, attention_weight=1000)


class RecordingTeacher:
    """A teacher that records its calls; its logits are zeros."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Tensor, Tensor]] = []

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        self.calls.append((cache_epoch, images.clone(), indices))
        return Signals(torch.zeros(len(images), 10), ())


def test_the_loss_is_the_weighted_sum_of_its_parts():
    metrics = small_trainer(RECIPE, teacher=small_teacher()).train_epoch()
    parts = metrics["loss_cross_entropy"], metrics["loss_kd"], metrics["loss_attention"]
    assert all(part > 0 for part in parts)
    assert metrics["train_loss"] == pytest.approx(0.5 * parts[0] + 0.5 * parts[1] + 1000 * parts[2], rel=1e-5)


def test_the_parts_of_the_loss_follow_their_formulas():
    run, teacher = small_trainer(RECIPE, teacher=small_teacher()), small_teacher()
    images, labels, indices = next(run.batches())
    run.network.train()
    logits, _, parts = run.step.objective(images, labels, run.step.objective.teacher_signals(images, indices, 0))
    signals = teacher.signals(images, indices, 0)
    with torch.no_grad():
        activation, maps = images, []
        for name in ("stem", *TAPS):
            activation = run.network.get_submodule(name)(activation)
            maps.append(activation.square().mean(1))
    assert parts[0].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert parts[1].item() == pytest.approx(distillation_loss(logits, signals.logits, 4.0).item(), rel=1e-5)
    assert parts[2].item() == pytest.approx(attention_loss(maps[1:], signals.maps).item(), rel=1e-4)


def test_labels_are_smoothed():
    run = small_trainer(small_recipe(label_smoothing=0.1))
    images, labels, _ = next(run.batches())
    logits, loss, _ = run.step.objective(images, labels, None)
    log = nn.functional.log_softmax(logits, 1)
    expected = -(0.9 * log.gather(1, labels[:, None]).mean() + 0.1 * log.mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_teacher_without_weight_is_never_called():
    teacher = RecordingTeacher()
    metrics = small_trainer(small_recipe(), teacher=teacher).train_epoch()
    assert not teacher.calls
    assert metrics["loss_cross_entropy"] == metrics["train_loss"]
    assert not {"loss_kd", "loss_attention", "loss_auxiliary"} & metrics.keys()


def test_a_weight_without_a_teacher_is_refused():
    with pytest.raises(InputError, match="`kd_weight` and `attention_weight` above 0 need a teacher"):
        small_trainer(RECIPE)


def test_an_unknown_tap_is_refused():
    with pytest.raises(InputError, match="unknown tap 'stage9'"):
        small_trainer(RECIPE, teacher=small_teacher(), taps=("stage9",))


def test_augmentations_repeat_after_cache_epochs_in_another_order():
    teacher = RecordingTeacher()
    run = small_trainer(small_recipe(batch_size=200, kd_weight=1.0), teacher=teacher, cache_epochs=2)
    for _ in range(3):
        run.train_epoch()
    (one, first, order), (two, second, second_order), (three, third, third_order) = teacher.calls
    assert (one, two, three) == (0, 1, 0)
    assert not torch.equal(order, third_order)
    assert torch.equal(first[order.argsort()], third[third_order.argsort()])
    assert not torch.equal(first[order.argsort()], second[second_order.argsort()])


def darts(auxiliary: bool) -> nn.Module:
    torch.manual_seed(0)
    return make_network(NetworkSettings(name="darts", width=1 / 36, auxiliary=auxiliary), (1, 32, 32), 10)


def test_the_auxiliary_loss_is_added_with_its_weight():
    """The digits are too small for its pooling, so that only the loss is computed."""
    from lowrank.training.objective import Objective

    network = darts(True).train()
    objective = Objective(network, small_recipe(auxiliary_weight=0.4))
    assert objective.names == ("loss_cross_entropy", "loss_auxiliary")
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 3])
    logits, loss, (main, second) = objective(images, labels, None)
    assert logits.shape == (4, 10)
    assert second > 0
    assert loss.item() == pytest.approx(main.item() + 0.4 * second.item(), rel=1e-6)
    plain = Objective(network, small_recipe())
    assert plain.names == ("loss_cross_entropy",)
    assert plain(images, labels, None)[1].ndim == 0


def test_an_auxiliary_weight_needs_an_auxiliary_head():
    with pytest.raises(InputError, match="`auxiliary_weight` needs an auxiliary head; this ResNet9 has none"):
        small_trainer(small_recipe(auxiliary_weight=0.4))


class TestClassWeights:
    """Each class counts alike in the loss, however many images it has."""

    def test_weights_are_inverse_to_the_counts_with_mean_1(self):
        from lowrank.training.objective import balanced_weights

        weights = balanced_weights([6, 2, 0])
        assert weights.tolist() == pytest.approx([8 / 12, 8 / 4, 0])
        assert (weights * torch.tensor([6, 2, 0])).sum().item() == pytest.approx(8)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_the_loss_is_the_weighted_mean_over_images(self, smoothing: float):
        from lowrank.training.objective import Objective

        network = nn.Linear(5, 3)
        images, labels = torch.randn(8, 5), torch.tensor([0] * 6 + [1] * 2)
        recipe = small_recipe(class_weights="balanced", label_smoothing=smoothing)
        objective = Objective(network, recipe, class_counts=[6, 2, 0])
        _, loss, parts = objective(images, labels, None)
        plain = nn.functional.cross_entropy(network(images), labels, reduction="none", label_smoothing=smoothing)
        expected = (plain[:6].mean() + plain[6:].mean()) / 2
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert parts[0].item() == pytest.approx(expected.item(), rel=1e-6)
        halves = [objective(images[part], labels[part], None)[1] for part in (slice(0, 4), slice(4, 8))]
        assert sum(half.item() for half in halves) / 2 == pytest.approx(expected.item(), rel=1e-6)

    def test_the_trainer_takes_the_counts_of_its_data(self):
        run = small_trainer(small_recipe(class_weights="balanced"))
        counts = torch.tensor(run.data.class_counts("train"))
        assert torch.allclose(
            run.step.objective.class_weights * counts, torch.full((10,), float(len(run.data.train)) / 10)
        )
        assert small_trainer(small_recipe()).step.objective.class_weights is None

    def test_such_a_loss_is_not_compiled(self):
        engine = small_trainer(small_recipe(class_weights="balanced", engine="compiled")).captured_epoch
        assert engine is not None
        assert not engine.compiled


def test_a_balanced_sampler_draws_each_class_equally_often():
    run = small_trainer(small_recipe(sampler="balanced", batch_size=10))
    drawn = torch.cat([labels for _, labels, _ in run.batches()])
    assert torch.bincount(drawn).max() - torch.bincount(drawn).min() <= 1


def test_fields_against_imbalance_at_their_defaults_change_no_id():
    assert not {"class_weights", "sampler"} & small_recipe().identity().keys()
    assert small_recipe(sampler="balanced").identity()["sampler"] == "balanced"
