"""Compresses trained networks to several sizes and prints their test errors, before and after a short training.

    python -m benchmarks.compression.trained_networks --images DIR --device cuda --json FILE

`--peer DIR` is a checkout of github.com/davidgonmar/BALF: its activation-aware factorisation then runs in the same
process, on the same networks and calibration images, and is trained by the same loop. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank.data import DataSettings, ImageData, eval_batches, load_data
from lowrank.data.augment import AugmentationSettings
from lowrank.deployment.compressor import Compressor
from lowrank.distillation.teacher import LiveTeacher
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

AUGMENTATION = AugmentationSettings(shift=4, flip=True, cutout=8)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="a folder of Parquet files; the digits without")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="resnet9")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=30, help="of the dense network")
    parser.add_argument("--lr", type=float, default=0.4, help="of the dense network")
    parser.add_argument("--finetune", type=int, default=3, help="epochs after compression; 0 for none")
    parser.add_argument("--finetune-lr", type=float, nargs="+", default=[0.1])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.12, 0.06])
    parser.add_argument("--methods", nargs="+", default=["auto", "tucker2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--peer", type=Path, help="a checkout of BALF")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing new after so many")
    parser.add_argument("--json", type=Path)
    return parser


class Bench:
    """One data set on one device, and how networks are trained and judged on it."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.begin = options, time.perf_counter()
        name = f"parquet:{options.images}" if options.images else "digits"
        self.data: ImageData = load_data(DataSettings(name=name))
        self.augmentation = AUGMENTATION if options.images else AugmentationSettings(shift=1, flip=False, cutout=0)
        self.rows: list[dict[str, Any]] = []

    def calibration(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the training split, drawn anew for each seed."""
        images, labels = self.split("train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: self.options.calibration]
        return images[order.to(images.device)], labels[order.to(images.device)]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """All images (B, C, H, W) and labels of a split, normalised, on the device."""
        batches = list(eval_batches(self.data, name, device=self.options.device, batch_size=1000))
        return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])

    def trainer(self, network: nn.Module, seed: int, teacher: nn.Module | None = None, **recipe: Any) -> Trainer:
        """A trainer; with a teacher, all of the loss is distillation at temperature 2."""
        if teacher is not None:
            recipe |= {"kd_weight": 0.9, "kd_temperature": 2.0}
        live = None if teacher is None else LiveTeacher(copy.deepcopy(teacher), (), autocast=self.autocast)
        return Trainer(
            network, self.data, Recipe(decay="plain", engine="plain", **recipe), augmentation=self.augmentation,
            order_seed=seed, device=self.options.device, teacher=live,
        )  # fmt: skip

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of a teacher's forward pass."""
        return torch.bfloat16 if self.options.device == "cuda" else None

    @torch.no_grad()
    def test_error(self, network: nn.Module) -> float:
        """Error in percent on the test images, in float32."""
        images, labels = self.split("test")
        logits = torch.cat([network.eval()(part) for part in images.split(500)])
        return 100 * float((logits.argmax(1) != labels).double().mean())

    def left(self) -> float:
        """Seconds that remain."""
        return self.options.seconds - (time.perf_counter() - self.begin)

    def record(self, **row: Any) -> None:
        """Keep and print one row, and write all rows so far."""
        self.rows.append(row)
        cells = (f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
        print("  ".join(cells), flush=True)
        if self.options.json:
            self.options.json.write_text(json.dumps(self.rows, indent=1))


def dense_network(bench: Bench, seed: int) -> nn.Module:
    """Train the dense network; returns it in evaluation mode."""
    options = bench.options
    settings = NetworkSettings(name=options.network, width=options.width)
    torch.manual_seed(seed)
    network = make_network(settings, bench.data.image_shape, len(bench.data.classes))
    batch = 512 if options.images else 32
    trainer = bench.trainer(
        network, seed, epochs=options.epochs, lr=options.lr, schedule="one_cycle", warmup=0.2, batch_size=batch
    )
    begin = time.perf_counter()
    for _ in range(options.epochs):
        trainer.train_epoch()
    bench.record(
        seed=seed, method="dense", budget=1.0, params=sum(p.numel() for p in network.parameters()),
        test_error=bench.test_error(network), seconds=time.perf_counter() - begin,
    )  # fmt: skip
    return network.eval()


def peer_networks(bench: Bench, network: nn.Module, images: Tensor) -> Iterator[tuple[float, nn.Module, float]]:
    """Networks of the peer at each budget, with the seconds that each took."""
    sys.path.insert(0, str(bench.options.peer))
    from lib.factorization.factorize import (
        collect_activation_cache,
        to_low_rank_activation_aware_auto,
    )

    begin = time.perf_counter()
    keys = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    loader = DataLoader(TensorDataset(images.cpu(), torch.zeros(len(images))), batch_size=256)
    with tempfile.TemporaryDirectory() as folder, svd_by_any_driver():
        cache = collect_activation_cache(network, loader, keys=keys)
        shared = time.perf_counter() - begin
        for budget in bench.options.budgets:
            begin = time.perf_counter()
            smaller = to_low_rank_activation_aware_auto(
                network, cache, ratio_to_keep=budget, inplace=False, keys=keys, metric="params", save_dir=folder
            )
            yield budget, smaller, shared + time.perf_counter() - begin


@contextmanager
def svd_by_any_driver() -> Iterator[None]:
    """Let the peer's SVDs fall back to the CPU where the card's library refuses a matrix."""
    plain = torch.linalg.svd

    def svd(matrix: Tensor, full_matrices: bool = True, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return plain(matrix, full_matrices=full_matrices, **options)
        except RuntimeError:
            left, values, right = plain(matrix.cpu(), full_matrices=full_matrices)
            return left.to(matrix.device), values.to(matrix.device), right.to(matrix.device)

    torch.linalg.svd = svd
    try:
        yield
    finally:
        torch.linalg.svd = plain


def finetuned(bench: Bench, network: nn.Module, dense: nn.Module, seed: int) -> dict[str, float]:
    """Test error after the short training, by rate, distilled from the dense network and from labels alone."""
    options = bench.options
    errors = {}
    if not options.finetune or bench.left() < 20:
        return errors
    for rate in options.finetune_lr:
        for teacher in (dense, None):
            student = copy.deepcopy(network)
            trainer = bench.trainer(
                student, seed, teacher, epochs=options.finetune, lr=rate, schedule="cosine", warmup=0.1,
                batch_size=512 if options.images else 32,
            )  # fmt: skip
            for _ in range(options.finetune):
                trainer.train_epoch()
            errors[f"{'distilled' if teacher is not None else 'labels'}_{rate:g}"] = bench.test_error(student)
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    warnings.simplefilter("ignore")
    bench = Bench(make_parser().parse_args(arguments))
    options = bench.options
    for seed in options.seeds:
        dense = dense_network(bench, seed)
        calibration = bench.calibration(seed)
        compressor_begin = time.perf_counter()
        judges = bench.split("val")
        half = len(judges[1]) // 2  # as the command does: this half chooses
        compressor = Compressor(
            copy.deepcopy(dense).float(), [calibration], calibration=options.calibration,
            validation=(judges[0][:half], judges[1][:half]),
        )  # fmt: skip
        prepared = time.perf_counter() - compressor_begin
        for method in options.methods:
            for budget in options.budgets:
                if bench.left() < 15:
                    print("out of time", flush=True)
                    return 0
                small = compressor.compress(budget, method=method)
                bench.record(
                    seed=seed, method=method, budget=budget, chosen=small.method, params=small.params,
                    mult_adds=small.mult_adds / small.dense_mult_adds, divergence=small.divergence,
                    test_error=bench.test_error(small.network), seconds=small.seconds + prepared,
                    **finetuned(bench, small.network, dense, seed),
                )  # fmt: skip
        if options.peer:
            for budget, smaller, seconds in peer_networks(bench, copy.deepcopy(dense).float(), calibration[0]):
                bench.record(
                    seed=seed, method="balf", budget=budget, params=sum(p.numel() for p in smaller.parameters()),
                    test_error=bench.test_error(smaller), seconds=seconds, **finetuned(bench, smaller, dense, seed),
                )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
