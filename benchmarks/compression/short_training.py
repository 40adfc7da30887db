"""Tries settings of the short training after compression and prints what each loses against the dense network.

    python -m benchmarks.compression.short_training --images DIR --device cuda --seeds 10 11 12 13

Each seed is a dense network of its own, compressed by `auto` to each budget and trained for three epochs with each
setting. The last weights and their moving average are measured on the test images; the one with the lower cross
entropy on the images that choose, each at its best temperature, is "chosen". What is learned here about settings must
be confirmed on other seeds. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from statistics import mean
from typing import Any

import torch

from benchmarks.compression.trained_networks import Bench, dense_network, make_parser
from lowrank.deployment.compressor import Compressor
from lowrank.deployment.finetune import tempered_cross_entropy
from lowrank.distillation.teacher import LiveTeacher
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

FIELDS = ("batch_size", "lr", "kd_weight", "kd_temperature", "ema_decay", "weight_decay")
SETTINGS: tuple[tuple[float, ...], ...] = (
    (512, 0.03, 0.9, 2, 0.98, 5e-4), (512, 0.01, 0.9, 2, 0.98, 5e-4), (512, 0.06, 0.9, 2, 0.98, 5e-4),
    (512, 0.03, 1.0, 4, 0.98, 5e-4), (256, 0.02, 0.9, 2, 0.99, 5e-4), (128, 0.03, 0.9, 2, 0.99, 5e-4),
    (128, 0.01, 0.9, 2, 0.99, 5e-4), (128, 0.003, 0.9, 2, 0.99, 5e-4), (128, 0.01, 0.9, 2, 0.99, 5e-5),
    (128, 0.01, 1.0, 4, 0.99, 5e-4), (128, 0.01, 0.5, 2, 0.99, 5e-4),
)  # fmt: skip


def settings_parser() -> argparse.ArgumentParser:
    """The command line of `trained_networks`, with settings beside."""
    parser = make_parser()
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.add_argument(
        "--setting", action="append", metavar=",".join(FIELDS), type=read_setting, help="another one than the kept list"
    )
    parser.set_defaults(budgets=[0.25, 0.5], calibration=4096)
    return parser


def read_setting(text: str) -> tuple[float, ...]:
    """Read a setting, numbers with commas between them."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) != len(FIELDS):
        raise argparse.ArgumentTypeError(f"must be {len(FIELDS)} numbers ({', '.join(FIELDS)}), but got {text}")
    return values


def train_short(bench: Bench, compressed: Any, dense: Any, setting: tuple[float, ...], seed: int) -> dict[str, float]:
    """Train a copy of a compressed network; returns test errors of its last and mean weights, and of the chosen."""
    fields: dict[str, Any] = dict(zip(FIELDS, setting, strict=True))
    fields["batch_size"] = int(fields["batch_size"])
    recipe = Recipe(
        epochs=bench.options.finetune, schedule="cosine", warmup=0.1, decay="plain", scaled_decay=False, engine="plain",
        **fields,
    )  # fmt: skip
    student = copy.deepcopy(compressed)
    autocast = torch.bfloat16 if bench.options.device == "cuda" else None
    trainer = Trainer(
        student, bench.data, recipe, augmentation=bench.augmentation,
        order_seed=seed, device=bench.options.device, teacher=LiveTeacher(copy.deepcopy(dense), (), autocast=autocast),
    )  # fmt: skip
    for _ in range(recipe.epochs):
        trainer.train_epoch()
    assert trainer.step.ema is not None
    with trainer.step.ema.swapped_in():
        average = copy.deepcopy(student)
    choosing = bench.choosing()
    last_error, average_error = bench.test_error(student), bench.test_error(average)
    losses = tempered_cross_entropy(student, *choosing), tempered_cross_entropy(average, *choosing)
    chosen = last_error if losses[0] < losses[1] else average_error
    return {"last": last_error, "average": average_error, "chosen": chosen}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    warnings.simplefilter("ignore")
    bench = Bench(settings_parser().parse_args(arguments))
    options = bench.options
    lost: dict[tuple[float, tuple[float, ...]], list[dict[str, float]]] = {}
    for seed in options.seeds:
        dense = dense_network(bench, seed)
        base, calibration = bench.test_error(dense), bench.calibration(seed)
        compressor = Compressor(
            copy.deepcopy(dense).float(), [calibration], calibration=options.calibration, validation=bench.choosing()
        )
        networks = {budget: compressor.compress(budget).network for budget in options.budgets}
        for budget, network in networks.items():
            bench.record(seed=seed, budget=budget, fit=bench.test_error(network) - base)
        for setting in options.setting or SETTINGS:
            for budget, network in networks.items():
                if bench.left() < 15:
                    print("no time left", flush=True)
                    break
                errors = train_short(bench, network, dense, setting, seed)
                row = {name: error - base for name, error in errors.items()}
                lost.setdefault((budget, setting), []).append(row)
                bench.record(seed=seed, budget=budget, setting=",".join(f"{value:g}" for value in setting), **row)
    print(f"| budget | {' | '.join(FIELDS)} | seeds | last | average | chosen |")
    print("|" + "---|" * (len(FIELDS) + 5))
    for (budget, setting), rows in sorted(lost.items()):
        cells = [f"{budget:g}", *(f"{value:g}" for value in setting), str(len(rows))]
        cells += [f"{mean(row[name] for row in rows):+.2f}" for name in ("last", "average", "chosen")]
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
