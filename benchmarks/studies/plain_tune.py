"""A few settings of `tt_schedule` by plain Ray Tune and a straightforward loop: the comparison that a user would make.

Four settings of ResNet-9 on four quarters of a card, `tune.Tuner` as its documentation has it: no early stopping, a new
worker for each trial, one report an epoch, validation after each. The loop is torch's own in eager mode: bfloat16
autocast, channels-last, SGD with Nesterov's momentum, cosine rate, batch 512. Two ways to feed it:

  loader     a DataLoader of two workers a trial, torchvision's RandomCrop, flip and RandomErasing on the CPU
  resident   the images on the card, crops, flips and erased squares drawn there for whole batches

A way trains whole epochs until its time is up, but three at least. From its images a second in all and from what a
trial takes to start, the 129 settings at 128 epochs are extrapolated. Images: those of --images (Parquet), else random
ones of CIFAR's shape.
`--quick`, and any run on CPUs, trains narrow networks on a few random images: it shows that it works, no more.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.measurement import JPEG_IMAGES, Measurement, Options, Table
from benchmarks.training.engine_processes import random_images
from lowrank.compression.substitution import build_sized_student
from lowrank.data import DataSettings, ImageData, load_data
from lowrank.networks.registry import NetworkSettings
from lowrank.utils.torchvision_compat import torchvision  # which makes it importable everywhere

v2 = importlib.import_module(f"{torchvision.__name__}.transforms.v2")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"name": "tensor_train", "dims": 3, "rank_scale": 0.25}, {"name": "tensor_train", "dims": 2, "rank_scale": 0.3},
    {"name": "tensor_train", "dims": 4, "rank_scale": 0.55}, {"name": "tucker", "dims": 3, "rank_scale": 0.3},
)  # fmt: skip
WAYS = ("resident", "loader")
ROWS, EPOCHS = 129, 128  # of the schedule
IN_ALL = 90.0  # seconds, unless --seconds says otherwise
LEAST_EPOCHS, MOST_EPOCHS = 3, 1000  # of a trial; the first holds the search for the fastest kernels
COLUMNS = ("way", "images/s", "with starts", "epochs", "start s", "129 x 128 h")


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Single images for a DataLoader, augmented one by one."""

    def __init__(self, images: Tensor, labels: Tensor, data: ImageData):
        self.images, self.labels = images.permute(0, 3, 1, 2), labels
        self.change = v2.Compose([
            v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std), v2.RandomErasing(p=1.0, scale=(1 / 16, 1 / 16), ratio=(1, 1)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.change(self.images[index]), self.labels[index]


def loader_batches(data: ImageData, batch: int, device: str) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Epochs of batches by a DataLoader that stays."""
    images, labels, _ = data.train.on("cpu")
    loader = DataLoader(
        Images(images, labels, data), batch_size=batch, shuffle=True, drop_last=True, num_workers=2,
        persistent_workers=True, pin_memory=device == "cuda",
    )  # fmt: skip

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for views, targets in loader:
            yield views.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    return epoch


def resident_batches(data: ImageData, batch: int, device: str) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Epochs of batches from images on the device: one crop, one flip and one erased square of 8 x 8 for each image."""
    pixels, labels, _ = data.train.on(device)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (data.mean, data.std))
    images = functional.pad((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std, (4, 4, 4, 4))
    span = torch.arange(32, device=device)

    def views(picked: Tensor) -> Tensor:
        count = len(picked)
        top, left_edge = (torch.randint(0, 9, (count, 1), device=device) + span for _ in range(2))
        left_edge = torch.where(torch.rand(count, 1, device=device) < 0.5, left_edge, left_edge.flip(1))
        crops = images[picked[:, None, None], :, top[:, :, None], left_edge[:, None, :]].permute(0, 3, 1, 2)
        y, x = (torch.randint(0, 25, (count, 1), device=device) for _ in range(2))
        rows, columns = (span >= y) & (span < y + 8), (span >= x) & (span < x + 8)
        return crops.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for picked in torch.randperm(len(labels), device=device).split(batch):
            if len(picked) == batch:
                yield views(picked), labels[picked]

    return epoch


@torch.no_grad()
def error_of(network: nn.Module, data: ImageData, batch: int, device: str) -> float:
    """Validation top-1 error in percent."""
    network.eval()
    pixels, labels, _ = data.val.on(device)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (data.mean, data.std))
    wrong = torch.zeros((), device=device)
    for images, targets in zip(pixels.split(batch), labels.split(batch), strict=True):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)
        wrong += (logits.argmax(1) != targets).sum()
    network.train()
    return 100 * wrong.item() / len(labels)


def train(config: dict[str, Any]) -> None:
    """What a user would give to Tune."""
    began = time.time()
    torch.set_num_threads(1)
    device, batch = config["device"], config["batch"]
    data = load_images(config["images"], config["quick"])
    settings = NetworkSettings(name="resnet9", width=0.125 if config["quick"] else 1.0)
    network = build_sized_student(settings, config["method"], data.image_shape, len(data.classes)).network
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    batches = (loader_batches if config["way"] == "loader" else resident_batches)(data, batch, device)
    for epoch in range(MOST_EPOCHS):
        start, seen = time.time(), 0
        for images, labels in batches():
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = functional.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
        schedule.step()
        error = error_of(network, data, batch, device)
        tune.report({"val_error": error, "images": seen, "began": began, "start": start, "end": time.time()})
        if time.time() > config["until"] and epoch + 1 >= LEAST_EPOCHS:
            return


def load_images(images: str | None, quick: bool) -> ImageData:
    """The images of a trial."""
    return load_data(DataSettings(name=f"parquet:{images}")) if images else random_images(256 if quick else 40_000)


def measure(way: str, options: Options, images: str | None, seconds: float) -> dict[str, Any]:
    """One way: four trials at once for so many seconds."""
    began = time.time()
    quick, on_card = options.quick, options.device == "cuda"
    space = {
        "method": tune.grid_search(list(SETTINGS[:2] if quick else SETTINGS)), "way": way, "device": options.device,
        "batch": 64 if quick else 512, "images": images, "quick": quick, "until": began + seconds,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []

    class Keep(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            rows.append({**result, "trial": trial.trial_id})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1, "gpu": 0.25 if on_card else 0}), param_space=space,
            run_config=tune.RunConfig(verbose=0, callbacks=[Keep()], storage_path=folder),
        )  # fmt: skip
        results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"a trial failed: {results.errors[0]}")
    return summary(way, rows, began)


def summary(way: str, rows: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """Images a second of all trials together, from the last first epoch's end to the first last epoch's.

    In that time all trained at once; where there is none, over all of it. A trial's start is what came before its first
    step; 129 settings start four at a time.
    """
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_trial.setdefault(row["trial"], []).append(row)
    ended = time.time()
    first = max(epochs[0]["end"] for epochs in by_trial.values())
    last = min(epochs[-1]["end"] for epochs in by_trial.values())
    inside = [row for row in rows if row["start"] >= first and row["end"] <= last]
    if not inside:
        first, last, inside = min(row["start"] for row in rows), max(row["end"] for row in rows), rows
    speed = sum(row["images"] for row in inside) / (last - first)
    start = sum(epochs[0]["start"] - began for epochs in by_trial.values()) / len(by_trial)
    images = rows[0]["images"]
    hours = (ROWS * EPOCHS * images / speed + ROWS / len(by_trial) * start) / 3600
    return {
        "way": way, "images/s": speed, "with starts": sum(row["images"] for row in rows) / (ended - began),
        "epochs": len(rows), "start s": start, "129 x 128 h": hours,
    }  # fmt: skip


def run(options: Options) -> Measurement:
    """Both ways, one after the other."""
    options = replace(options, quick=options.quick or options.device == "cpu")
    folder = options.images or (JPEG_IMAGES if JPEG_IMAGES.is_dir() and not options.quick else None)
    images = str(Path(folder).resolve()) if folder else None
    ways = [way for way in WAYS if not options.ways or way in options.ways]
    ray.init(num_cpus=2 if options.quick else None, include_dashboard=False, log_to_driver=False)
    rows = []
    try:
        for way in ways:
            rows.append(measure(way, options, images, (options.seconds or IN_ALL) / len(ways)))
            print(rows[-1], flush=True)
    finally:
        ray.shutdown()
    return Measurement(
        name="plain_tune", settings={"device": options.device, "images": "JPEG in Parquet" if images else "random"},
        tables=[Table(title="Plain Ray Tune and a straightforward loop", columns=COLUMNS, rows=rows)],
        notes=["`with starts`: all images over all of the time, starts included"],
    )  # fmt: skip
