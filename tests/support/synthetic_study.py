"""Journals of studies that never ran: plausible sizes, errors on the grid of a small validation set, every ending."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.records.events import Event, Role, Status
from sweeps.records.image_errors import encode_wrong_images
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE
from tests.support.specifications import plain_specification

START = 1_790_000_000.0
DENSE, SEPARABLE = 6_573_120, 755_000
BUDGETS = (60_480, 151_000, 302_000, None)
METHODS = {"tensor_train": 0.0, "tucker": 0.15, "bottleneck": 0.5, "hashed": 0.2, "shuffle": 0.35, "acdc": 0.8}

REASONS = {
    Status.DIVERGED: "loss is NaN in epoch 2",
    Status.FAILED: "worker lost twice",
    Status.STOPPED: "worse than the median at epoch 3",
    Status.OUT_OF_MEMORY: "CUDA out of memory",
}


@dataclass(kw_only=True)
class Plan:
    """What to invent. `images` is the number of validation images, which sets the grid of errors."""

    name: str = "tt_dims"
    trials: int = 24
    epochs: int = 6
    seed: int = 0
    images: int = 360
    methods: tuple[str, ...] = tuple(METHODS)
    references: bool = True
    infeasible: int = 2
    endings: bool = True  # some trials stop early, diverge, run out of memory or fail
    level: float = 1.5  # percent error that no size beats
    closed: str | None = "finished"
    wrong_images: bool = False  # whether each end says which images were wrong; hard images are so for all networks


def stratum_label(budget: int | None) -> str:
    return "any size" if budget is None else f"params <= {budget:,}"


def trial_id(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def header(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "question": "How many dimensions should a tensor-train substitution have at each size, and does it beat the "
        "other structured maps within the same budget of parameters?",
        "data": {
            "name": "digits", "fingerprint": "f00d", "train_images": 1077, "val_images": plan.images,
            "test_images": 360, "classes": 10,
        },
        "network": {"name": "resnet9", "width": 1.0},
        "references": {"dense": DENSE, "separable": SEPARABLE},
        "strata": [{"label": stratum_label(budget), "params": budget} for budget in BUDGETS],
        "space": {"name": plan.name}, "versions": {"python": "3.11"}, "hardware": {"cpus": 2},
        "commit": "0123456789abcdef", "seed": plan.seed, "command": f"python sweeps/run.py --space {plan.name}",
    }  # fmt: skip


def write_study(study_dir: Path, plan: Plan | None = None) -> Path:
    """Write the journal of a study into `study_dir` and return the folder."""
    plan = plan or Plan()
    dice = random.Random(plan.seed)
    journal = Journal(study_dir / JOURNAL_FILE)
    journal.append(Event.STUDY, time=START, **header(plan))
    if plan.references:
        write_trial(journal, plan, dice, method="dense", params=DENSE, role=Role.REFERENCE, at=START + 1)
        write_trial(journal, plan, dice, method="separable", params=SEPARABLE, role=Role.REFERENCE, at=START + 2)
    for number in range(plan.trials):
        budget = BUDGETS[number % len(BUDGETS)]
        params = int((budget or 700_000) * dice.uniform(0.75, 1.0))
        method = plan.methods[number // len(BUDGETS) % len(plan.methods)]
        status = _ending(dice, number) if plan.endings else Status.COMPLETED
        write_trial(
            journal, plan, dice, method=method, params=params, budget=budget, status=status,
            at=START + 10 * number, dims=2 + number % 3, rank_scale=round(dice.uniform(0.05, 0.95), 2),
        )  # fmt: skip
    for number in range(plan.infeasible):
        journal.append(
            Event.INFEASIBLE, time=START + 900 + number, trial=trial_id("infeasible", number),
            stratum=stratum_label(BUDGETS[0]), reason="bottleneck of rank 0: needs at least 72,130 parameters",
            parameters={"method.name": "bottleneck", "size": 0.01 * number},
        )  # fmt: skip
    if plan.closed:
        journal.append(Event.CLOSED, time=START + 1000, sync=True, reason=plan.closed)
    journal.close()
    return study_dir


def write_trial(
    journal: Journal,
    plan: Plan,
    dice: random.Random,
    *,
    method: str,
    params: int,
    at: float,
    role: Role = Role.SEARCH,
    budget: int | None = None,
    status: Status = Status.COMPLETED,
    dims: int | None = None,
    rank_scale: float | None = None,
) -> str:
    """Append all events of one trial and return its id."""
    identity = trial_id(plan.name, method, params, dims, rank_scale, at)
    journal.append(
        Event.PROPOSED, time=at, trial=identity, role=str(role),
        stratum="" if role is Role.REFERENCE else stratum_label(budget),
        parameters={"method.name": method, "method.dims": dims, "size": params / SEPARABLE},
        specification=plain_specification(
            method={"name": method, "dims": dims, "rank_scale": rank_scale},
            train={"epochs": plan.epochs, "weight_decay": 5e-4, "scaled_decay": True}, seed=plan.seed,
        ),
        counts={
            "params": params, "mult_adds": 40 * params, "dense_params": DENSE, "dense_mult_adds": 40 * DENSE,
            "separable_params": SEPARABLE, "separable_mult_adds": 40 * SEPARABLE,
        },
        proposal={"number": 0}, point_id=identity,
    )  # fmt: skip
    journal.append(Event.ATTEMPT, time=at + 1, trial=identity, attempt=1, start_seconds=0.4)
    epochs = {Status.COMPLETED: plan.epochs, Status.STOPPED: plan.epochs // 2, Status.RUNNING: plan.epochs // 2}
    final = plan.level + METHODS.get(method, -0.3) + 9 * (params / 20_000) ** -0.8 + abs(dice.gauss(0, 0.3))
    for epoch in range(1, epochs.get(status, 1) + 1):
        error = final + 60 * math.exp(-4 * epoch / plan.epochs)
        journal.append(
            Event.EPOCH, time=at + 1 + epoch, trial=identity, epoch=epoch,
            metrics=metrics(round(error / 100 * plan.images) / plan.images * 100, epoch),
        )  # fmt: skip
    if status is not Status.RUNNING:
        reason = REASONS.get(status, "")
        wrong = {"wrong_images": wrong_images(plan, dice, error)} if plan.wrong_images else {}
        journal.append(
            Event.FINISHED, time=at + 9, sync=True, trial=identity, status=str(status), reason=reason, **wrong
        )
    return identity


def wrong_images(plan: Plan, dice: random.Random, error: float) -> str:
    """Draw as many wrong images as an error (percent) has, the later ones of the split more often."""
    scores = np.array([number / plan.images + dice.gauss(0, 0.2) for number in range(plan.images)])
    wrong = np.zeros(plan.images, dtype=bool)
    wrong[np.argsort(-scores)[: round(error / 100 * plan.images)]] = True
    return encode_wrong_images(wrong)


def metrics(val_error: float, epoch: int) -> dict[str, float]:
    return {
        "val_error": val_error, "val_loss": val_error / 30, "train_error": val_error / 2, "train_loss": val_error / 60,
        "lr": 0.2 / epoch, "images_per_second": 900.0 + epoch, "epoch_seconds": 1.25,
    }  # fmt: skip


def _ending(dice: random.Random, number: int) -> Status:
    rare = {5: Status.DIVERGED, 11: Status.OUT_OF_MEMORY, 14: Status.FAILED}
    return rare.get(number, Status.STOPPED if dice.random() < 0.35 else Status.COMPLETED)
