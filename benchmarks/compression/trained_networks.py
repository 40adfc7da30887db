"""Compresses trained networks to several sizes and prints their test errors, before and after a short training.

    python -m benchmarks.compression.trained_networks --images DIR --device cuda --json FILE

`--peer DIR` is a checkout of github.com/davidgonmar/BALF: its activation-aware factorisation then runs in the same
process, on the same networks and calibration images, and is trained by the same loop. `--timing` adds rows that say how
long each method takes from a network and images on the device to the smaller network, nothing shared. `resnet18` has
the small stem; `vit` is trained by AdamW. `--dense FILE` lets several processes divide the work on one dense network:
the first one trains and writes it, the others (`--methods` without a name: the peer alone) read it. Nothing is
asserted.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank.data import DataSettings, ImageData, draw_training_images, eval_batches, load_data
from lowrank.data.augment import AugmentationSettings
from lowrank.deployment.compressor import Compressor
from lowrank.deployment.finetune import finetune
from lowrank.deployment.given_images import halve_by_class
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.utils import OneLineParser, write_bytes

AUGMENTATION = AugmentationSettings(shift=4, flip=True, cutout=8)
TIMED_BUDGET = 0.25


@dataclass(frozen=True)
class Training:
    """How a network is trained from scratch."""

    epochs: int
    lr: float
    adamw: bool = False
    weight_decay: float = 5e-4


TRAININGS = {
    "resnet9": Training(30, 0.4),
    "resnet18": Training(20, 0.4),
    "vit": Training(80, 1e-3, adamw=True, weight_decay=0.05),
}
SETTINGS: dict[str, dict[str, Any]] = {"resnet18": {"stem": "small"}}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="a folder of Parquet files; the digits without")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="resnet9", choices=tuple(TRAININGS))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, help="of the dense network; its own number by default")
    parser.add_argument("--lr", type=float, help="of the dense network")
    parser.add_argument("--finetune", type=int, default=3, help="epochs after compression; 0 for none")
    parser.add_argument("--finetune-lr", type=float, nargs="+", help="of the trainings whose weights are averaged")
    parser.add_argument("--labels", action="store_true", help="train on labels alone too")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.12, 0.06])
    parser.add_argument("--methods", nargs="*", default=["auto"])
    parser.add_argument("--timing", nargs="*", metavar="METHOD", help="time these methods, all but CP by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--peer", type=Path, help="a checkout of BALF")
    parser.add_argument("--dense", type=Path, metavar="FILE", help="of one seed's dense network: read if it exists")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing new after so many")
    parser.add_argument("--json", type=Path)
    return parser


class Bench:
    """One data set on one device, and how networks are trained and judged on it."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.begin = options, time.perf_counter()
        self.training = TRAININGS[options.network]
        name = f"parquet:{options.images}" if options.images else "digits"
        self.data: ImageData = load_data(DataSettings(name=name))
        self.augmentation = AUGMENTATION if options.images else AugmentationSettings(shift=1, flip=False, cutout=0)
        self.rows: list[dict[str, Any]] = []

    def calibration(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the training split, drawn anew for each seed."""
        return draw_training_images(self.data, self.options.calibration, seed, self.options.device)

    def split(self, name: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """All images (B, C, H, W) and labels of a split, normalised, on the device."""
        batches = list(eval_batches(self.data, name, device=self.options.device, batch_size=1000))
        return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])

    def choosing(self) -> tuple[Tensor, Tensor]:
        """The half of the validation images that chooses, as in the command."""
        images, labels = self.split("val")
        choosing, _ = halve_by_class(labels)
        return images[choosing], labels[choosing]

    def train(self, network: nn.Module, seed: int, recipe: Recipe) -> None:
        """Train a network in place."""
        trainer = Trainer(
            network, self.data, recipe, augmentation=self.augmentation, order_seed=seed, device=self.options.device
        )
        for _ in range(recipe.epochs):
            trainer.train_epoch()
        network.eval()

    def recipe(self, **fields: Any) -> Recipe:
        """The recipe of a training from scratch."""
        if self.training.adamw:
            fields |= {"optimizer": "adamw", "clip_norm": 1.0}
        batch = 512 if self.options.images else 32
        decay = self.training.weight_decay
        return Recipe(decay="plain", engine="plain", batch_size=batch, weight_decay=decay, **fields)

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
    """Train the dense network, or read the one that was; returns it in evaluation mode."""
    options, training = bench.options, bench.training
    settings = NetworkSettings(name=options.network, width=options.width, **SETTINGS.get(options.network, {}))
    torch.manual_seed(seed)
    network = make_network(settings, bench.data.image_shape, len(bench.data.classes))
    schedule = {"schedule": "cosine", "warmup": 0.1} if training.adamw else {"schedule": "one_cycle", "warmup": 0.2}
    recipe = bench.recipe(epochs=options.epochs or training.epochs, lr=options.lr or training.lr, **schedule)
    begin = time.perf_counter()
    if options.dense and options.dense.exists():
        network.load_state_dict(load_file(options.dense))
        network.to(options.device).eval()
    else:
        bench.train(network, seed, recipe)
        if options.dense:
            state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
            write_bytes(options.dense, save(state))
    bench.record(
        network=options.network, seed=seed, method="dense", budget=1.0,
        params=sum(value.numel() for value in network.parameters()), test_error=bench.test_error(network),
        seconds=time.perf_counter() - begin,
    )  # fmt: skip
    return network.eval()


def timing_rows(bench: Bench, network: nn.Module, calibration: tuple[Tensor, Tensor], seed: int) -> None:
    """Record how long each method takes, from a network and images on the device, with nothing shared."""
    methods = bench.options.timing or ["svd", "spatial_svd", "tucker2", "tensor_train_kernel", "auto"]
    choosing = bench.choosing()
    for method in [methods[0], *methods]:  # the first time loads the device's libraries and is not recorded
        if bench.left() < 40:
            print("no time left for timing rows", flush=True)
            return
        synchronise(bench)
        begin = time.perf_counter()
        compressor = Compressor(network, [calibration], calibration=len(calibration[1]), validation=choosing)
        small = compressor.compress(TIMED_BUDGET, method=method)
        synchronise(bench)
        seconds, warm_up = time.perf_counter() - begin, not any("timed" in row for row in bench.rows)
        bench.record(
            network=bench.options.network, seed=seed, timed="warm-up" if warm_up else method, budget=TIMED_BUDGET,
            chosen=small.method, calibration=len(calibration[1]), seconds=seconds,
        )  # fmt: skip


def synchronise(bench: Bench) -> None:
    """Wait until the device has done all that it was given."""
    if bench.options.device == "cuda":
        torch.cuda.synchronize()


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
            if bench.left() < 15:
                print("no time left", flush=True)
                return
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


def finetuned(bench: Bench, network: nn.Module, dense: nn.Module, seed: int) -> dict[str, float | str]:
    """Test error after the short training of `python -m lowrank.compress --finetune`, and the rates of its weights."""
    options = bench.options
    errors: dict[str, float | str] = {}
    for name in ("distilled", "labels"):
        if not options.finetune or bench.left() < 20 or (name == "labels" and not options.labels):
            continue
        trained = finetune(
            network, dense, bench.data, network_name=options.network, epochs=options.finetune,
            choosing=bench.choosing(), rates=options.finetune_lr, seed=seed, device=options.device,
            labels_only=name == "labels",
        )  # fmt: skip
        rates = " ".join(f"{rate:g}" for rate in trained.rates)
        errors |= {name: bench.test_error(trained.network), f"{name}_rates": rates or "none"}
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    warnings.simplefilter("ignore")
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.dense and len(options.seeds) > 1:
        parser.error("--dense holds one network; give one --seeds")
    bench = Bench(options)
    for seed in options.seeds:
        if bench.left() < 60 and seed != options.seeds[0]:
            print(f"no time left for seed {seed}", flush=True)
            return 0
        dense = dense_network(bench, seed)
        calibration = bench.calibration(seed)
        begin = time.perf_counter()
        if options.methods:
            given, choosing = copy.deepcopy(dense).float(), bench.choosing()
            compressor = Compressor(given, [calibration], calibration=options.calibration, validation=choosing)
        prepared = time.perf_counter() - begin
        for method in options.methods:
            for budget in options.budgets:
                if bench.left() < 15:
                    print("no time left", flush=True)
                    return 0
                small = compressor.compress(budget, method=method)
                bench.record(
                    network=options.network, seed=seed, method=method, budget=budget, chosen=small.method,
                    params=small.params, mult_adds=small.mult_adds / small.dense_mult_adds,
                    divergence=small.divergence, test_error=bench.test_error(small.network),
                    seconds=small.seconds + prepared, **finetuned(bench, small.network, dense, seed),
                )  # fmt: skip
        if options.peer:
            for budget, smaller, seconds in peer_networks(bench, copy.deepcopy(dense).float(), calibration[0]):
                bench.record(
                    network=options.network, seed=seed, method="balf", budget=budget,
                    params=sum(value.numel() for value in smaller.parameters()), test_error=bench.test_error(smaller),
                    seconds=seconds, **finetuned(bench, smaller, dense, seed),
                )  # fmt: skip
        if options.timing is not None and seed == options.seeds[0]:
            timing_rows(bench, copy.deepcopy(dense).float(), calibration, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
