"""What a teacher costs its student: training steps without one, with one that is asked live, and with its cache.

Whole epochs are timed, views and the opening of a cache epoch included;
a cache epoch is moved to the device anew in each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import JPEG_IMAGES, Goal, Measurement, Options, Table, interleaved, median
from benchmarks.training.batches import write_images
from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.distillation import cached_teacher
from lowrank.distillation.cache import CacheKey, CacheSource, TeacherCache, fill_cache
from lowrank.distillation.cache_file import Layout
from lowrank.distillation.cached_teacher import CachedTeacher
from lowrank.distillation.teacher import LiveTeacher, Teacher, common_sizes, default_taps, tap_sizes
from lowrank.layers import Separable, TensorTrain
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

SHARE = 0.1  # of the separable network's parameters
SLOTS = 2
REPEATS = 5
LIMIT = 1.10  # of plain training's time, with the cache
WAYS = ("plain", "live teacher", "cached teacher")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A student and its teacher, a batch and how many images an epoch has."""

    label: str
    student: NetworkSettings
    teacher: NetworkSettings
    batch_size: int
    images: int


def cases(options: Options) -> list[Case]:
    """ResNet-9 with a WRN-16-4; on a GPU also a WRN-28-10 with its like."""
    width = 0.5 if options.quick else 1.0
    on_gpu = options.device == "cuda"
    batch, images = (16, 64) if options.quick else (512, 20_480) if on_gpu else (128, 256)
    resnet9, wrn164 = (NetworkSettings(name=name, width=width) for name in ("resnet9", "wrn_16_4"))
    chosen = [Case(label="ResNet-9 student, WRN-16-4 teacher", student=resnet9, teacher=wrn164, batch_size=batch,
                  images=images)]  # fmt: skip
    if on_gpu:
        wide = NetworkSettings(name="wrn_28_10", width=width)
        chosen.append(Case(label="WRN-28-10 student, WRN-28-10 teacher", student=wide, teacher=wide,
                          batch_size=batch, images=images // 4))  # fmt: skip
    return chosen


class _Bench:
    """The three ways of one case; each has a student of its own, all from one seed."""

    def __init__(self, case: Case, options: Options, images: Path, caches: Path):
        self.case, self.options, self.caches = case, options, caches
        self.device = torch.device(options.device)
        self.data: ImageData = load_data(DataSettings(name=f"parquet:{images}", train_images=case.images))
        self.views = default_augmentation(self.data.name, self.data.image_shape).model_copy(
            update={"seed": options.seed}
        )
        torch.manual_seed(options.seed)
        network = make_network(case.teacher, self.data.image_shape, len(self.data.classes)).to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.taps = default_taps(network)
        self.live = LiveTeacher(network, self.taps, autocast=torch.bfloat16 if self.device.type == "cuda" else None)
        self.network = network

    def student(self) -> torch.nn.Module:
        """A tensor train of SHARE of the separable network's parameters."""
        shape, classes = self.data.image_shape, len(self.data.classes)
        plan = network_plan(self.case.student, shape, classes)
        budget = Budget(params=int(SHARE * plan.params(Separable())))
        return build_student(
            self.case.student, plan, solve(plan, TensorTrain(dims=3), budget), shape, classes, self.options.seed
        )

    def cached(self, student: torch.nn.Module) -> tuple[Teacher, list[str]]:
        """The cache, filled, and what was said while filling it."""
        shape = self.data.image_shape
        sizes = common_sizes(
            tap_sizes(self.network, self.taps, shape), tap_sizes(student, default_taps(student), shape)
        )
        key = CacheKey(
            weights=self.case.label, data=self.data.fingerprint, views=self.views, taps=self.taps,
            layout=Layout(len(self.data.train), len(self.data.classes), sizes), precision=self.options.device,
        )  # fmt: skip
        cache, messages = TeacherCache(self.caches, key), []
        build = CacheSource(
            teacher=lambda: self.live, data=self.data, device=self.device, batch_size=self.case.batch_size
        )
        fill_cache(cache, build, SLOTS, notify=messages.append)
        return CachedTeacher(cache, self.data, lambda: self.live, device=self.device), messages

    def epoch(self, student: torch.nn.Module, teacher: Teacher | None) -> Callable[[], object]:
        """A call that trains one epoch."""
        weight = {"attention_weight": 1000.0} if teacher is not None else {}
        recipe = Recipe(batch_size=self.case.batch_size, lr=1e-3, **weight)  # type: ignore[arg-type]
        trainer = Trainer(
            student, self.data, recipe, augmentation=self.views, order_seed=0, device=self.device, teacher=teacher,
            cache_epochs=SLOTS,
        )  # fmt: skip

        def call() -> None:
            trainer.epoch += 1
            steps = trainer.endless_steps(wait=False)
            for _ in range(trainer.steps_per_epoch):
                next(steps)

        call.steps = trainer.steps_per_epoch  # type: ignore[attr-defined]
        return call


def measure(case: Case, options: Options, images: Path, caches: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each way, and what the cache's builder said."""
    bench = _Bench(case, options, images, caches)
    student = bench.student()
    cached, messages = bench.cached(student)
    teachers: dict[str, Teacher | None] = dict(zip(WAYS, (None, bench.live, cached), strict=True))
    ways = {name: bench.epoch(bench.student(), teacher) for name, teacher in teachers.items()}
    times = interleaved(
        ways, options.device, options.repeated(REPEATS), warm_ups=2 if bench.device.type == "cuda" else 1
    )
    steps = {name: call.steps for name, call in ways.items()}  # type: ignore[attr-defined]
    middle = {name: median(seconds) / steps[name] for name, seconds in times.items()}
    rows = [
        {
            "way": name, "ms": 1000 * seconds, "slowest ms": 1000 * max(times[name]) / steps[name],
            "images/s": case.batch_size / seconds, "x plain": seconds / middle["plain"], "seconds": times[name],
        }
        for name, seconds in middle.items()
    ]  # fmt: skip
    return rows, [f"{case.label}: {line}" for line in messages if "built" in line]


def run(options: Options) -> Measurement:
    """Measure every case."""
    threads, before, resident = options.threads or 1, torch.get_num_threads(), cached_teacher.MAX_PRELOADED_BYTES
    torch.set_num_threads(threads)
    cached_teacher.MAX_PRELOADED_BYTES = 0  # as in a trial whose every epoch has a cache epoch of its own
    chosen = cases(options)
    try:
        with tempfile.TemporaryDirectory() as folder:
            images = options.images or (JPEG_IMAGES if JPEG_IMAGES.is_dir() else None)
            if images is None:
                images = Path(folder) / "images"
                images.mkdir()
                write_images(images, 4 * max(case.images for case in chosen), seed=options.seed)
            measured = [measure(case, options, images.resolve(), Path(folder)) for case in chosen]
    finally:
        torch.set_num_threads(before)
        cached_teacher.MAX_PRELOADED_BYTES = resident
    columns = ("way", "ms", "slowest ms", "images/s", "x plain")
    titles = [f"{case.label}, batch {case.batch_size}" for case in chosen]
    return Measurement(
        name="teacher",
        settings={"seed": options.seed, "device": options.device, "threads": threads, "share": SHARE,
                  "repeats": options.repeated(REPEATS)},
        tables=[
            Table(title=title, columns=columns, rows=rows) for title, (rows, _) in zip(titles, measured, strict=True)
        ],
        goals=[
            Goal(what=f"{case.label}: with the cache", limit=LIMIT, found=rows[2]["x plain"], unit="x plain")
            for case, (rows, _) in zip(chosen, measured, strict=True)
        ],
        notes=[note for _, notes in measured for note in notes],
    )  # fmt: skip
