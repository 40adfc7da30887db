"""The time of a plan: the work of each form of network by the speed that was probed for that form."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank.data import ImageData
from lowrank.layers import Dense, Separable, variational_layers
from sweeps.space.parse import parse_space
from sweeps.study import plan_report, speed_probe
from sweeps.study.plan_report import make_plan
from sweeps.study.speed_probe import MAX_PROBED_MULT_ADDS, Form, probe_speed
from sweeps.trials.resolver import Resolver

SPEEDS = {Form.STRUCTURED: 2.0e6, Form.DENSE: 5.0e6, Form.VARIATIONAL: 3.0e6}
EPOCHS, FINETUNE_EPOCHS = 4, 3


def resolver(digits: ImageData, method: dict[str, Any], **sections: Any) -> Resolver:
    content = {
        "question": "How long?", "data": {"name": "digits"}, "network": {"name": "resnet9", "width": 0.125},
        "train": {"epochs": EPOCHS}, "method": method, "references": ["dense"],
        "budget": {"params": {"choice": [0.5, 0.2]}, "relative_to": "dense"},
        "search": {"sampler": "grid", "stop": "none"}, **sections,
    }  # fmt: skip
    return Resolver(parse_space("small", content), digits)


@pytest.fixture
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_report, "probe_speed", lambda space, resolver, form: SPEEDS[form])


@pytest.mark.usefixtures("known_speeds")
def test_one_posterior_is_trained_for_all_budgets_and_each_network_is_fine_tuned(digits: ImageData) -> None:
    made = resolver(digits, {"name": "bayesian", "finetune_epochs": FINETUNE_EPOCHS})
    plan = make_plan(made.space, made, slots=2)
    epoch = 3 * made.reference("dense").counts["mult_adds"] * len(digits.train)
    variational = 2 * EPOCHS * epoch  # maps of means and of variances
    dense = (EPOCHS + 2 * FINETUNE_EPOCHS) * epoch  # the reference, and two networks after the removal of groups
    assert plan.most_work == variational + dense
    assert plan.most_seconds == pytest.approx((variational / 3.0e6 + dense / 5.0e6) / 2)


@pytest.mark.usefixtures("known_speeds")
def test_structured_networks_and_the_dense_reference_have_their_own_speeds(digits: ImageData) -> None:
    made = resolver(digits, {"name": "bottleneck"}, search={"sampler": "grid", "stop": "none", "repeats": 3})
    plan = make_plan(made.space, made, slots=1)
    trials = [made.resolve(point) for point in made.points.grid()]
    assert len(trials) == 2
    structured = 3 * EPOCHS * len(digits.train) * 3 * sum(trial.counts["mult_adds"] for trial in trials)
    dense = 3 * EPOCHS * len(digits.train) * 3 * made.reference("dense").counts["mult_adds"]
    assert plan.most_work == pytest.approx(structured + dense)
    assert plan.most_seconds == pytest.approx(structured / 2.0e6 + dense / 5.0e6)


@pytest.mark.parametrize("form", list(Form))
def test_the_probe_times_a_network_of_the_form(digits: ImageData, monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    made = resolver(digits, {"name": "bayesian"}, train={"epochs": EPOCHS, "batch_size": 48})
    time_step, networks = speed_probe._time_step, []

    def two_seconds(network: Any, images: Any, *rest: Any) -> float:
        assert time_step(network, images, *rest) > 0
        networks.append((network, len(images)))
        return 2.0

    monkeypatch.setattr(speed_probe, "_time_step", two_seconds)
    speed = probe_speed(made.space, made, form)
    assert [batch for _, batch in networks] == [48, 48, 48]
    plan = made.plan(made.space.network)
    work = plan.mult_adds(Separable() if form is Form.STRUCTURED else Dense())
    assert speed == 3 * (2 if form is Form.VARIATIONAL else 1) * work * 48 / 2.0
    count = len(list(variational_layers(networks[0][0])))
    assert count == (9 if form is Form.VARIATIONAL else 0)


def test_the_batch_of_a_probe_is_small_where_an_image_is_much_work(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolver(digits, {"name": "bayesian"}, train={"epochs": EPOCHS, "batch_size": 128})
    work = made.plan(made.space.network).mult_adds(Dense())
    monkeypatch.setattr(speed_probe.torch.cuda, "is_available", lambda: False)
    batches = []

    def time_step(network: Any, images: Any, *rest: Any) -> float:
        batches.append(len(images))
        return 1.0

    monkeypatch.setattr(speed_probe, "_time_step", time_step)
    for limit in (work, 10 * work, MAX_PROBED_MULT_ADDS):
        monkeypatch.setattr(speed_probe, "MAX_PROBED_MULT_ADDS", limit)
        probe_speed(made.space, made, Form.DENSE)
    assert batches == [2] * 3 + [10] * 3 + [64] * 3
