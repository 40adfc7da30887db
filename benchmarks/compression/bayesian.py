"""Trains a network with variational layers, solves a front of sizes from that training, and prints errors and times.

    python -m benchmarks.compression.bayesian --data digits --network mlp --methods dense normal_jeffreys

`dense` is the same network, trained by the same recipe without variational layers. With `--start dense`, `--kd-weight`
or `--finetune-teacher dense` it is trained first for each seed, and begun at or imitated; with `--teachers N` the mean
of N such networks is imitated, of which the others have seeds of their own. `--dense-shift`, `--dense-flip`,
`--dense-label-smoothing` and `--dense-ema-decay` are of the dense networks alone. Of several values of `--finetune`,
`--finetune-lr` and `--finetune-kd-weight` each combination is tried from the same posterior. With `--cache` trained
networks are kept, and commands that differ in budgets or in the fine-tuning alone share them. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measurement import environment
from lowrank.compression import Budget, VariationalSettings, make_variational, network_plan
from lowrank.data import AugmentationSettings, DataSettings, ImageData, load_data
from lowrank.distillation import LiveTeacher, Signals, Teacher
from lowrank.io import load_tensors, save_tensors
from lowrank.layers import Bayesian, Dense
from lowrank.networks import NetworkSettings, copy_network, make_network
from lowrank.training import DivergedError, Recipe, Trainer, compress_posterior, mixed_precision_error
from lowrank.utils import OneLineParser

DENSE, PRIORS = "dense", ("normal_jeffreys", "horseshoe")
OTHER_TEACHERS = 1000  # distance of their seeds
SHOWN = ("train_loss", "loss_cross_entropy", "loss_kl", "kl_weight", "sparsity", "compression", "val_error")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="digits", help="as a space names it, e.g. parquet:DIR or idx:DIR")
    parser.add_argument("--train-images", type=int, help="train on so many images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="mlp", choices=("mlp", "resnet9", "vgg16"))
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 100], help="of mlp")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--methods", nargs="+", default=["normal_jeffreys"], choices=(DENSE, *PRIORS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--posterior-lr", type=float, default=3.0, help="times lr, of variances and scales")
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="of weights without a posterior")
    parser.add_argument("--ema-decay", type=float, default=0.0, help="of a moving average of the weights")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--warmup-epochs", type=float, default=10)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--max-std", type=float, default=0.2)
    parser.add_argument("--min-groups", type=float, default=0.5, help="of an even removal, that each layer keeps")
    parser.add_argument("--shift", type=int, default=0, help="augmentation: shift in pixels")
    parser.add_argument("--flip", action="store_true", help="augmentation: mirror left to right")
    parser.add_argument("--cutout", type=int, default=0, help="augmentation: side of the square in pixels")
    parser.add_argument("--dense-epochs", type=int, help="of the dense network, if not --epochs")
    parser.add_argument("--dense-shift", type=int, help="of the dense network, if not --shift")
    parser.add_argument("--dense-flip", action="store_true", help="also without --flip")
    parser.add_argument("--dense-label-smoothing", type=float, help="if not --label-smoothing")
    parser.add_argument("--dense-ema-decay", type=float, help="if not --ema-decay")
    parser.add_argument("--kd-weight", type=float, default=0.0, help="distillation of the posterior's training")
    parser.add_argument("--kd-temperature", type=float, default=4.0)
    parser.add_argument(
        "--start", choices=("scratch", DENSE), default="scratch", help="weights that posteriors begin at"
    )
    parser.add_argument("--teachers", type=int, default=1, help="dense networks that are imitated together")
    parser.add_argument("--finetune", type=int, nargs="+", default=[0], help="epochs after the removal")
    parser.add_argument("--finetune-lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--finetune-kd-weight", type=float, nargs="+", default=[0.0], help="distillation in them")
    parser.add_argument(
        "--finetune-teacher", choices=("posterior", DENSE), default="posterior", help="what they imitate"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.15, 0.1, 0.05])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="end each training after so many seconds")
    parser.add_argument("--validation-only", action="store_true", help="leave the test images alone")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep trained networks there, and use those")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all records, also those of each epoch")
    return parser


def main() -> None:
    """Run all seeds, print tables, and write the records after each of them."""
    options = make_parser().parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    data = load_data(DataSettings(name=options.data, train_images=options.train_images))
    records: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()}, "environment": environment(),
        "runs": [],
    }  # fmt: skip
    needs_dense = options.kd_weight > 0 or DENSE in (options.finetune_teacher, options.start)
    methods = [DENSE, *(method for method in options.methods if method != DENSE)] if needs_dense else options.methods
    for seed in options.seeds:
        networks: list[nn.Module] = []
        for method in methods:
            record, trainer = run(options, data, seed, method, networks)
            records["runs"].append(record)
            if method == DENSE and needs_dense:
                others = [OTHER_TEACHERS * number + seed for number in range(1, options.teachers)]
                trained = [trainer, *(run(options, data, other, DENSE)[1] for other in others)]
                networks = [plain_network(one) for one in trained]
            if options.json:
                options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print_means(records["runs"])


class MeanTeacher:
    """Gives the logarithm of the mean of several networks' probabilities at a temperature, as logits.

    Args:
        networks: trained; they are frozen.
        temperature: of the distillation.
        rows: one more than the largest index of a training image, where none is augmented: the logits of each are then
            computed once. None where images are augmented.
    """

    def __init__(self, networks: Sequence[nn.Module], temperature: float, rows: int | None = None):
        self._teachers, self._temperature = [LiveTeacher(network, ()) for network in networks], temperature
        self._rows = rows
        self._table = torch.zeros(0)  # logits by index, NaN where they are not computed yet

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """See lowrank.distillation.Teacher."""
        if len(self._table):
            logits = self._table[indices]
            if not bool(logits.isnan().any()):
                return Signals(logits, ())
        logits = self._logits(images, indices, cache_epoch)
        if self._rows is not None:
            if not len(self._table):
                self._table = logits.new_full((self._rows, logits.shape[1]), math.nan)
            self._table[indices] = logits
        return Signals(logits, ())

    def _logits(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Tensor:
        logits = [teacher.signals(images, indices, cache_epoch).logits for teacher in self._teachers]
        if len(logits) == 1:
            return logits[0]
        mean = torch.stack([(one / self._temperature).softmax(1) for one in logits]).mean(0)
        return mean.log() * self._temperature


def plain_network(trainer: Trainer) -> nn.Module:
    """Copy a trained network, with the moving average of its weights if there is one."""
    with trainer.step.ema.swapped_in() if trainer.step.ema is not None else nullcontext():
        return copy_network(trainer.network)


def run(
    options: argparse.Namespace, data: ImageData, seed: int, name: str, dense: Sequence[nn.Module] = ()
) -> tuple[dict[str, Any], Trainer]:
    """Train one network; give its epochs, its times and its front, and its trainer.

    `dense` are the trained dense networks where they are imitated or begun at, that of this seed first.
    """
    is_augmented = options.shift or options.flip or options.cutout
    rows = None if is_augmented else int(data.train.indices.max()) + 1
    teacher = MeanTeacher(dense, options.kd_temperature, rows) if dense else None
    start = dense[0] if dense and options.start == DENSE else None
    trainer = make_trainer(options, data, seed, name, teacher, start)
    path = None if options.cache is None else options.cache / f"{training_key(options, trainer, name)}.safetensors"
    if path is not None and path.is_file():
        state, metadata = load_tensors(path, trainer.device)
        trainer.load_state(state)
        record: dict[str, Any] = json.loads(metadata["record"])
    else:
        record = train(options, trainer, name)
        if path is not None and record["finite"]:
            save_tensors(path, trainer.weights(), {"record": json.dumps(record)})
    if not record["finite"]:
        return record, trainer
    record |= test_error(options, trainer)
    print(
        f"{name} seed {seed}: {record['trained_epochs']} epochs in {record['seconds']:.1f} s "
        f"({record['cpu_seconds']:.1f} CPU s), {describe_errors(record)}", flush=True,
    )  # fmt: skip
    if name != DENSE:
        finetunings = itertools.product(options.finetune, options.finetune_lr, options.finetune_kd_weight)
        record["front"] = [
            front_point(options, trainer, teacher, share, *finetuning)
            for finetuning in finetunings for share in options.budgets
        ]  # fmt: skip
    return record, trainer


def train(options: argparse.Namespace, trainer: Trainer, name: str) -> dict[str, Any]:
    """Train to the end, or for the seconds that the options allow; give epochs, times and errors."""
    seed = trainer.order_seed
    record: dict[str, Any] = {"seed": seed, "method": name, "epochs": [], "front": [], "finite": True}
    start, cpu = time.perf_counter(), time.process_time()
    while trainer.epoch < trainer.recipe.epochs and time.perf_counter() - start < options.seconds:
        try:
            metrics = trainer.train_epoch()
        except DivergedError as error:
            print(f"{name}, seed {seed}: {error}", flush=True)
            return record | {"finite": False, "reason": str(error)}
        record["epochs"].append(metrics)
        shown = " ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
        print(f"{name} seed {seed} epoch {trainer.epoch}: {shown} {metrics['epoch_seconds']:.2f} s", flush=True)
    return record | {
        "trained_epochs": trainer.epoch, "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu, "val_error": record["epochs"][-1]["val_error"],
    }  # fmt: skip


def test_error(options: argparse.Namespace, trainer: Trainer) -> dict[str, float]:
    """Evaluate on the test images; nothing where the options leave them alone, because a choice is still to be made."""
    return {} if options.validation_only else {"test_error": trainer.evaluate("test")["error"]}


def describe_errors(record: Mapping[str, Any]) -> str:
    """Write the errors of a network for a line."""
    kinds = {"val_error": "validation", "mixed_val_error": "mixed precision", "test_error": "test"}
    return ", ".join(f"{kind} error {record[name]:.2f} %" for name, kind in kinds.items() if name in record)


def training_key(options: argparse.Namespace, trainer: Trainer, name: str) -> str:
    """Name a training by all that its numbers depend on.

    Fields of the removal and the fine-tuning are not in it, those of dense networks only where they are imitated.
    """
    content: dict[str, Any] = {
        "name": name, "seed": trainer.order_seed, "seconds": options.seconds, "device": options.device,
        "data": trainer.data.fingerprint, "network": network_settings(options).model_dump(mode="json"),
        "recipe": trainer.recipe.identity(), "augmentation": trainer.augmentation.model_dump(),
    }  # fmt: skip
    if trainer.variational is not None:
        content["method"] = trainer.variational.settings.method.model_dump(exclude=set(Bayesian.AFTER_TRAINING))
        if trainer.recipe.kd_weight > 0 or options.start == DENSE:
            dense = make_trainer(options, trainer.data, trainer.order_seed, DENSE)
            content["dense"] = [options.start, options.teachers, training_key(options, dense, DENSE)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{name}_{trainer.order_seed}_{digest}"


def make_trainer(
    options: argparse.Namespace, data: ImageData, seed: int, name: str, teacher: Teacher | None = None,
    start: nn.Module | None = None,
) -> Trainer:  # fmt: skip
    """Make the trainer of one network at its first epoch, with random weights or those of `start`."""
    settings, variational = network_settings(options), name != DENSE
    method = Bayesian(
        prior=name if variational else PRIORS[0], warmup_epochs=options.warmup_epochs, kl_weight=options.kl_weight,
        max_std=options.max_std, min_groups=options.min_groups,
    )  # fmt: skip
    recipe = Recipe(
        epochs=options.epochs, batch_size=options.batch_size, lr=options.lr, optimizer="adamw", warmup=0.1,
        weight_decay=options.weight_decay, decay="plain", factor_lr=options.posterior_lr if variational else 1.0,
        ema_decay=options.ema_decay, label_smoothing=options.label_smoothing,
        kd_weight=options.kd_weight if variational else 0.0, kd_temperature=options.kd_temperature,
    )  # fmt: skip
    augmentation = AugmentationSettings(shift=options.shift, flip=options.flip, cutout=options.cutout)
    if not variational:
        recipe = recipe.model_copy(update=dense_options(options, "epochs", "label_smoothing", "ema_decay"))
        changes = dense_options(options, "shift") | {"flip": options.flip or options.dense_flip}
        augmentation = augmentation.model_copy(update=changes)
    torch.manual_seed(seed)
    network = make_network(settings, data.image_shape, len(data.classes))
    if start is not None:
        network.load_state_dict(start.state_dict())
    if variational:
        make_variational(network, method)
    return Trainer(
        network, data, recipe, order_seed=seed, device=options.device, augmentation=augmentation,
        variational=VariationalSettings(method=method, network=settings) if variational else None,
        teacher=teacher if variational else None,
    )  # fmt: skip


def dense_options(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Select the values that dense networks have for themselves."""
    values = {name: getattr(options, f"dense_{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}


def network_settings(options: argparse.Namespace) -> NetworkSettings:
    """Return the settings of the network that the options name."""
    fields = {"hidden": tuple(options.hidden)} if options.network == "mlp" else {}
    return NetworkSettings(name=options.network, width=options.width, **fields)


def front_point(
    options: argparse.Namespace, trainer: Trainer, teacher: Teacher | None, share: float, epochs: int, lr: float,
    kd_weight: float,
) -> dict[str, Any]:  # fmt: skip
    """Solve one budget from the trained posterior, fine-tune and evaluate what is left."""
    assert trainer.variational is not None
    settings = trainer.variational.settings
    finetuning = {"finetune_epochs": epochs, "finetune_lr": lr, "finetune_kd_weight": kd_weight}
    trainer.variational.settings = replace(settings, method=settings.method.model_copy(update=finetuning))
    plan = network_plan(network_settings(options), trainer.data.image_shape, len(trainer.data.classes))
    dense = plan.params(Dense())
    start = time.perf_counter()
    imitated = teacher if options.finetune_teacher == DENSE else None
    removed, plain = compress_posterior(trainer, Budget(params=int(share * dense)), imitated)
    point = {
        "budget": share, **finetuning, **removed.record(), "share": removed.counts["params"] / dense,
        "mult_adds_share": removed.counts["mult_adds"] / plan.mult_adds(Dense()),
        "val_error": plain.evaluate("val")["error"], **test_error(options, plain),
        "mixed_val_error": mixed_precision_error(plain, removed.widths), "seconds": time.perf_counter() - start,
    }  # fmt: skip
    left = removed.settings
    print(
        f"  {share:.0%} of {dense:,}, {describe(finetuning)}: {removed.counts['params']:,} parameters "
        f"({point['share']:.1%}), {point['mult_adds_share']:.1%} of the mult-adds, {removed.counts['bytes']:,} bytes, "
        f"{removed.counts['mixed_bytes']:,} in mixed precision ({dense * 4 / removed.counts['mixed_bytes']:.0f} times "
        f"fewer); {describe_errors(point)}; threshold {removed.threshold:.2f}; "
        f"{left.channels or (left.inputs, *left.hidden)}; {point['seconds']:.1f} s", flush=True,
    )  # fmt: skip
    return point


def describe(finetuning: Mapping[str, Any]) -> str:
    """Write the settings of a fine-tuning for a line."""
    epochs, lr, kd_weight = (finetuning[f"finetune_{name}"] for name in ("epochs", "lr", "kd_weight"))
    return f"fine-tuned {epochs} epochs at {lr:g}, distilled {kd_weight:g}" if epochs else "not fine-tuned"


def print_means(runs: list[dict[str, Any]]) -> None:
    """Print the mean validation and test errors over the seeds, with their standard deviations."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for record in runs:
        if record["finite"]:
            rows.setdefault(record["method"], []).append(record)
            for point in record["front"]:
                name = f"{record['method']}, {point['budget']:.0%} of the parameters, {describe(point)}"
                rows.setdefault(name, []).append(point)
    for name, networks in rows.items():
        words = []
        for kind, field in (("validation", "val_error"), ("test", "test_error")):
            values = [network[field] for network in networks if field in network]
            spread = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
            words += [f"{kind} error {mean(values):.2f}{spread} %"] if values else []
        print(f"{name}: {', '.join(words)} ({len(networks)} seeds)")
    diverged = [record for record in runs if not record["finite"]]
    print(f"{len(runs) - len(diverged)} of {len(runs)} trainings had finite losses in all epochs")


if __name__ == "__main__":
    main()
