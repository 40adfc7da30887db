"""Which parameters are trained and at which learning rate; frozen modules do not change."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lowrank.compression.substitution import factor_parameters, substitute
from lowrank.errors import InputError
from lowrank.layers import Separable
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.optimizer import (
    LR_MULTIPLIER,
    check_network,
    freeze,
    head_names,
    head_of,
    make_optimizer,
    set_lr,
)
from lowrank.training.recipe import Recipe
from tests.support.training import small_recipe, small_trainer, tensor_train


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet9", ("classifier",)), ("wrn_10_1", ("classifier",)), ("mlp", ("classifier",)), ("vit", ("classifier",)),
        ("mobilenet_v2", ("classifier",)), ("torchvision:resnet18", ("fc",)),
        ("torchvision:squeezenet1_1", ("classifier.1",)),
    ],
)  # fmt: skip
def test_the_head_is_the_last_layer_that_gives_the_classes(name, expected):
    width = 1.0 if name.startswith("torchvision") else 0.25
    assert head_names(make_network(NetworkSettings(name=name, width=width), (3, 64, 64), 7), 7, (3, 64, 64)) == expected


def test_the_head_is_the_layer_that_runs_last_wherever_it_is_registered():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(10, 10), nn.Conv2d(3, 10, 3)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    network = HeadFirst()
    assert head_names(network, 10, (3, 8, 8)) == ("head",)
    substitute(network, Separable(), (3, 8, 8), linear=True)
    assert head_names(network, 10, (3, 8, 8)) == ("head",)
    assert network.training


def test_an_auxiliary_head_is_a_head():
    network = make_network(NetworkSettings(name="darts", width=1 / 36, auxiliary=True), (3, 32, 32), 10)
    assert head_names(network, 10, (3, 32, 32)) == ("classifier", "auxiliary")


def test_each_kind_of_parameter_has_its_own_learning_rate():
    recipe = small_recipe(factor_lr=3.0, body_lr=0.5, head_lr=10.0)
    run = small_trainer(recipe, method=tensor_train())
    run.train_epoch()
    multipliers = {
        id(parameter): group[LR_MULTIPLIER]
        for group in run.step.optimizer.param_groups
        for parameter in group["params"]
    }
    factors = {id(parameter) for parameter in factor_parameters(run.network)}
    for name, parameter in run.network.named_parameters():
        expected = 10.0 if name.startswith("classifier") else 3.0 if id(parameter) in factors else 0.5
        assert multipliers[id(parameter)] == expected, name
    rates = {group["lr"] / group[LR_MULTIPLIER] for group in run.step.optimizer.param_groups}
    assert max(rates) == pytest.approx(min(rates))


def test_a_multiplier_of_zero_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        Recipe(body_lr=0)


def test_a_multiplier_changes_the_first_step_of_its_own_parameters_alone():
    def first_step(**fields: float) -> dict[str, torch.Tensor]:
        run = small_trainer(small_recipe(batch_size=200, weight_decay=0, **fields))
        before = {name: value.detach().clone() for name, value in run.network.named_parameters()}
        run.train_epoch()
        return {name: value.detach() - before[name] for name, value in run.network.named_parameters()}

    plain, moved = first_step(), first_step(head_lr=2.0)
    for name, change in plain.items():
        factor = 2 if name.startswith("classifier") else 1
        torch.testing.assert_close(moved[name], factor * change, rtol=1e-3, atol=1e-6)


def test_a_network_without_a_head_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    with pytest.raises(InputError, match="need a head, a layer with 10 outputs, but Sequential has no such layer"):
        head_of(network, Recipe(head_lr=2), 10, (1, 6, 6))


def test_frozen_modules_keep_their_weights_and_statistics():
    run = small_trainer(small_recipe(freeze=("stem", "stage1.*"), weight_decay=0.1))
    start = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    for _ in range(2):
        run.train_epoch()
    for name, tensor in run.network.state_dict().items():
        same = torch.equal(tensor, start[name])
        assert same == name.startswith(("stem.", "stage1.")), name
    frozen = [value for name, value in run.network.named_parameters() if name.startswith(("stem.", "stage1."))]
    assert all(parameter.grad is None for parameter in frozen)
    trained = {id(parameter) for group in run.step.optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in frozen}


def test_frozen_factors_have_no_frobenius_decay():
    run = small_trainer(small_recipe(freeze=("stage1",), decay="frobenius"), method=tensor_train())
    assert run.step.penalised
    inside = set(run.network.stage1.modules())
    assert not inside & set(run.step.penalised)
    run.train_epoch()


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(InputError, match="unknown module in `freeze` 'stage7'; choose from: classifier, pool, stage1"):
        small_trainer(small_recipe(freeze=("stage7",)))


def test_a_network_of_frozen_parameters_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)).requires_grad_(False)
    with pytest.raises(InputError, match="all parameters of Sequential are frozen: nothing is left to train"):
        check_network(network, Recipe(), 10, (1, 2, 2))


def test_freezing_everything_is_refused():
    with pytest.raises(InputError, match=r"`freeze` leaves nothing to train: \*"):
        freeze(nn.Sequential(nn.Linear(1, 1)), ("*",))


def test_adamw_takes_the_decay_off_the_weights_and_its_two_momenta_from_the_recipe():
    """The first step of AdamW is `lr` times the gradient's sign, after a decay of `lr * weight_decay` of the weight."""
    recipe = small_recipe(optimizer="adamw", lr=0.01, weight_decay=0.1, momentum=0.8, square_momentum=0.9)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    before = network[1].weight.detach().clone()
    optimizer = make_optimizer(network, recipe, 1.0, (), may_skip_steps=False)
    set_lr(optimizer, recipe.lr)
    network(torch.randn(5, 1, 2, 2)).square().sum().backward()
    gradient = network[1].weight.grad.clone()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient.sign()
    torch.testing.assert_close(network[1].weight.detach(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(optimizer.state[network[1].weight]["exp_avg"], 0.2 * gradient)
    torch.testing.assert_close(optimizer.state[network[1].weight]["exp_avg_sq"], 0.1 * gradient.square())


def test_weights_alone_restart_adamw():
    run = small_trainer(small_recipe(optimizer="adamw", lr=1e-3), method=tensor_train())
    run.train_epoch()
    state = run.state()
    run.load_state({key: value for key, value in state.items() if key.startswith("network.") or key == "epoch"})
    slots = [slot for slots in run.step.optimizer.state.values() for slot in slots.values()]
    assert slots
    assert not any(slot.any() for slot in slots)


def test_frobenius_decay_with_adamw_is_refused():
    with pytest.raises(ValueError, match="`decay: frobenius` needs `optimizer: sgd`"):
        Recipe(optimizer="adamw", decay="frobenius")


def test_sgd_keeps_the_identity_that_it_had_before_there_was_another_optimizer():
    identity = Recipe().identity()
    assert not identity.keys() & {"optimizer", "square_momentum"}
    adamw = Recipe(optimizer="adamw").identity()
    assert (adamw["optimizer"], adamw["square_momentum"]) == ("adamw", 0.999)
    assert "nesterov" not in adamw


def test_the_compiler_is_imported_with_the_first_step_and_not_for_an_evaluation():
    code = """
import sys
from tests.support.training import small_recipe, small_trainer
for name in ("adamw", "sgd"):
    run = small_trainer(small_recipe(optimizer=name))
    assert run.evaluate("val")["error"] > 0
assert "torch._dynamo" not in sys.modules
run.train_steps(limit=1)
assert "torch._dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
