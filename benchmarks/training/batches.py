"""Images a second of `lowrank.data.train_batches`, beside a DataLoader with torchvision's transforms.

The peer crops and flips as most training scripts do: PIL images, RandomCrop with padding, RandomHorizontalFlip, one
image at a time in this process. It draws the same views as the contestant "crop, flip" (without cutout).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measurement import JPEG_IMAGES, Measurement, Options, Table, interleaved, median
from lowrank.data import AugmentationSettings, DataSettings, ImageData, default_augmentation, load_data, train_batches
from lowrank.utils.torchvision_compat import torchvision

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set and how it is read."""

    label: str
    settings: DataSettings
    batch_size: int


class PilImages(Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, given out as torchvision's own data sets do: PIL, then a transform."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[Any], Tensor]):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def write_images(folder: Path, count: int, seed: int) -> None:
    """Random 32 x 32 images as PNG in Parquet files, in the layout that `parquet:DIR` reads."""
    rng = np.random.default_rng(seed)
    for name, size in (("train", count), ("test", max(10, count // 10))):
        rows = [{"img": {"bytes": _png(rng), "path": f"{i}.png"}, "label": i % 10} for i in range(size)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def _png(rng: np.random.Generator) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


@contextmanager
def cases(options: Options) -> Iterator[list[Case]]:
    """Digits, and images of CIFAR's shape: real ones where they are, else random ones written for the occasion."""
    resident_cases = [Case(label="digits 8x8x1", settings=DataSettings(), batch_size=32)]
    count = (200 if options.quick else 2000) if options.device == "cpu" else 20_000
    batch_size = 128 if options.device == "cpu" else 512
    images = options.images or (JPEG_IMAGES if JPEG_IMAGES.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="batches_") as folder:
        if images is None:
            write_images(Path(folder), 2 * count, options.seed)
        label = "CIFAR-10 (JPEG) 32x32x3" if images else "random 32x32x3"
        settings = DataSettings(name=f"parquet:{images or folder}", train_images=count)
        yield [*resident_cases, Case(label=label, settings=settings, batch_size=batch_size)]


def crop_and_flip(data: ImageData) -> AugmentationSettings:
    """The data set's own views without cutout: what the peer does too."""
    return default_augmentation(data.name, data.image_shape).model_copy(update={"cutout": 0})


def peer_loader(data: ImageData, batch_size: int, views: AugmentationSettings | None) -> DataLoader[tuple[Tensor, int]]:
    """A DataLoader with torchvision's transforms over the same images; `views` None: no random views."""
    transforms = torchvision.transforms
    steps: list[Any] = []
    if views is not None and views.shift:
        steps.append(transforms.RandomCrop(data.image_shape[1:], padding=views.shift))
    if views is not None and views.flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    images = data.train.images.numpy()
    images = images[..., 0] if images.shape[-1] == 1 else images
    dataset = PilImages(images, data.train.labels.tolist(), transforms.Compose(steps))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=0)


def contestants(data: ImageData, case: Case, options: Options) -> dict[str, Callable[[], int]]:
    """One epoch of batches on the device, each way; the call returns how many images it gave."""
    views, plain = crop_and_flip(data), AugmentationSettings()

    def ours(chosen: AugmentationSettings) -> Callable[[], int]:
        epochs = iter(range(10**6))
        return lambda: sum(
            len(labels)
            for _, labels, _ in train_batches(
                data, options.device, case.batch_size, augmentation=chosen, order_seed=0, epoch=next(epochs)
            )
        )

    def peer(chosen: AugmentationSettings | None) -> Callable[[], int]:
        loader = peer_loader(data, case.batch_size, chosen)
        return lambda: sum(len(images.to(options.device)) for images, _ in loader)

    return {
        "train_batches, no views": ours(plain), "torchvision DataLoader, no views": peer(None),
        "train_batches, crop and flip": ours(views), "torchvision DataLoader, crop and flip": peer(views),
        "train_batches, with cutout": ours(default_augmentation(data.name, data.image_shape)),
    }  # fmt: skip


def measure(case: Case, options: Options) -> list[dict[str, Any]]:
    """Rows of one data set; the ratio is to the torchvision DataLoader that draws the same views."""
    data = load_data(case.settings)
    ways = contestants(data, case, options)
    images = {name: call() for name, call in ways.items()}
    times = interleaved(ways, options.device, options.repeated(REPEATS))
    speeds = {name: images[name] / median(times[name]) for name in ways}
    peers = {name: f"torchvision DataLoader, {name.partition(', ')[2]}" for name in ways}
    return [
        {
            "data": case.label, "batch": case.batch_size, "way": name, "images/s": speed,
            "slowest images/s": images[name] / max(times[name]),
            "times the peer": speed / speeds[peers[name]] if peers[name] in speeds else None,
            "seconds": times[name],
        }
        for name, speed in speeds.items()
    ]  # fmt: skip


def as_table(case: Case, rows: list[dict[str, Any]]) -> Table:
    """The rows of one data set."""
    title = f"One epoch of batches of {case.batch_size}, {case.label} (median of the repeats, taken in turn)"
    return Table(title=title, columns=("way", "images/s", "slowest images/s", "times the peer"), rows=rows)


def run(options: Options) -> Measurement:
    """Measure every data set, with and without views."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or 1)  # a trial's default share is one core
    try:
        with cases(options) as resident_cases:
            tables = [as_table(case, measure(case, options)) for case in resident_cases]
    finally:
        torch.set_num_threads(before)
    return Measurement(
        name="batches",
        settings={
            "seed": options.seed, "device": options.device, "threads": options.threads or 1,
            "repeats": options.repeated(REPEATS),
        },
        tables=tables,
    )  # fmt: skip
