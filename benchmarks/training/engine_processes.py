"""Worker processes of benchmarks.training.engine: each trains one student with one kind of step.

A process stays alive from row to row of the table.
"""

from __future__ import annotations

import os
import queue
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from benchmarks.training.step_traffic import COPIED, copy_bandwidth, step_bytes
from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import AugmentationSettings, DataSettings, ImageData, default_augmentation, load_data
from lowrank.data.dataset import Split
from lowrank.data.reading.image_store import ArrayStore
from lowrank.distillation import (
    CachedTeacher,
    CacheKey,
    CacheSource,
    Layout,
    Signals,
    Sizes,
    TeacherCache,
    default_taps,
    fill_cache,
    tap_sizes,
)
from lowrank.layers import Dense, Separable
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.utils.text import first_line, one_line
from sweeps.cluster.devices import out_of_memory

SHARES = (0.1, 0.2)  # of the separable network's parameters: a trial's, and the next setting's
EQUAL_STEPS = 50
COMPILED_LOOPS = {"torch_compile": None, "best": "reduce-overhead"}  # the mode of torch.compile, by way
OWN_LOOPS = ("torch", *COMPILED_LOOPS)
ATTENTION_WEIGHT = 1000.0
ALIVE_SECONDS = 5.0  # between two looks at whether a process that does not answer is still there
CIFAR = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What every process trains, and how."""

    network: str
    device: str
    batch: int
    images: int | None  # random ones of CIFAR's shape; None: the digits
    seconds: float  # of a row
    way: str = "plain"
    width: float = 1.0
    share: float = SHARES[0]
    method: str = "tensor_train"
    side: int = CIFAR[1]  # of the random images
    taught: bool = False  # by attention transfer from a cache, which has random answers
    views: bool = True  # whether the trainer changes each image by shift, flip and cutout; the loops never do


def random_images(count: int, seed: int = 0, side: int = CIFAR[1]) -> ImageData:
    """A resident set of random images in 10 classes."""
    generator = np.random.default_rng(seed)
    store = ArrayStore(generator.integers(0, 256, (count, side, side, CIFAR[0]), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, count))
    split = Split(name="train", labels=labels, indices=torch.arange(count), resident=True, store=store)
    return ImageData(
        name="random", settings=DataSettings(), classes=tuple(map(str, range(10))), image_shape=(CIFAR[0], side, side),
        mean=(0.5,) * 3, std=(0.29,) * 3, fingerprint="0" * 16, train=split, val=split, test=split,
    )  # fmt: skip


def make_data(case: Case) -> ImageData:
    """The images of a case."""
    return load_data(DataSettings()) if case.images is None else random_images(case.images, side=case.side)


def make_student(case: Case, data: ImageData) -> torch.nn.Module:
    """A tensor-train student in three dimensions within the case's share of the separable network's parameters.

    Or the dense network, where the case's method is that.
    """
    settings = NetworkSettings(name=case.network, width=case.width)
    plan = network_plan(settings, data.image_shape, 10)
    if case.method == "dense":
        return build_student(settings, plan, Dense(), data.image_shape, 10, seed=0)
    method = make_method({"name": "tensor_train", "dims": 3})
    method = solve(plan, method, Budget(params=int(case.share * plan.params(Separable()))))
    return build_student(settings, plan, method, data.image_shape, 10, seed=0)


class OwnLoop:
    """The same network and step in a straightforward loop, as one would write it: no views of images, no records.

    The way "torch" is that loop as it is. "torch_compile" has its network compiled and channels last, and a fused
    optimizer; "best" also records CUDA graphs (`reduce-overhead`).
    """

    def __init__(self, case: Case, data: ImageData):
        network = make_student(case, data).to(case.device).train()
        self.case, self.epoch, self.network = case, 0, network
        images, self.labels, _ = data.train.on(case.device)
        self.images = (images.permute(0, 3, 1, 2).float() / 255 - 0.5).contiguous() / 0.29
        self.steps_per_epoch = len(self.labels) // case.batch
        compiled = case.way in COMPILED_LOOPS
        if compiled:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.network = torch.compile(network, mode=COMPILED_LOOPS[case.way])  # type: ignore[assignment]
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=compiled or None
        )  # fmt: skip

    def train_steps(self, limit: int | None = None) -> None:
        """An epoch's steps, or the first of them."""
        order = torch.randperm(len(self.labels), device=self.case.device)
        for step in range(min(self.steps_per_epoch, limit or self.steps_per_epoch)):
            torch.compiler.cudagraph_mark_step_begin()
            picked = order[step * self.case.batch : (step + 1) * self.case.batch]
            with torch.autocast("cuda", torch.bfloat16, enabled=self.case.device == "cuda"):
                loss = functional.cross_entropy(self.network(self.images[picked]), self.labels[picked])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def make_trainer(case: Case, data: ImageData, notify: Callable[[str], None] = warnings.warn) -> Trainer:
    """The student of a case and the trainer of its way, which calls `notify` with each of its warnings."""
    recipe = Recipe(
        epochs=1000, batch_size=case.batch, lr=0.02, warmup=0.1, engine=case.way,  # type: ignore[arg-type]
        attention_weight=ATTENTION_WEIGHT if case.taught else 0.0,
    )  # fmt: skip
    views = AugmentationSettings(shift=4, flip=True, cutout=8)
    if case.images is None:
        views = default_augmentation("digits", data.image_shape)
    if not case.views:
        views = AugmentationSettings()
    student = make_student(case, data)
    if not case.taught:
        return Trainer(student, data, recipe, augmentation=views, order_seed=0, device=case.device, notify=notify)
    taps = default_taps(student, data.image_shape)
    return Trainer(
        student, data, recipe, augmentation=views, order_seed=0, device=case.device, notify=notify, taps=taps,
        cache_epochs=1,
        teacher=cached_answers(case, data, views, taps, tap_sizes(student, taps, data.image_shape)),
    )  # fmt: skip


class RandomTeacher:
    """Fills a cache at once: random answers of the right shapes."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """Return random logits (B, 10) and attention maps."""
        count = len(images)
        return Signals(torch.randn(count, 10), tuple(torch.rand(count, *size) for size in self.sizes))


def cached_answers(
    case: Case, data: ImageData, views: AugmentationSettings, taps: tuple[str, ...], sizes: Sizes
) -> CachedTeacher:  # fmt: skip
    """A teacher whose random answers lie in a cache of one epoch, as those of a trained one do."""
    key = CacheKey(
        weights=case.network, data=f"{len(data.train)} images of {case.side}", views=views, taps=taps,
        layout=Layout(len(data.train), 10, sizes), precision=case.device,
    )  # fmt: skip
    cache, teacher = TeacherCache(Path(tempfile.gettempdir()) / "benchmark_teacher_caches", key), RandomTeacher(sizes)
    source = CacheSource(teacher=lambda: teacher, data=data, device="cpu", batch_size=case.batch)
    fill_cache(cache, source, 1, notify=lambda line: None)
    return CachedTeacher(cache, data, lambda: teacher, device=case.device)


class Bench:
    """One process of the benchmark: its trainer stays from row to row.

    Args:
        device: "cpu" or "cuda".
        lock: held by who measures the device; steps that can wait do so for it. None: nobody else uses the device.
    """

    def __init__(self, device: str, lock: Any = None) -> None:
        torch.set_num_threads(1)
        self.device, self._lock = device, nullcontext() if lock is None else lock
        self.trainer: Trainer | OwnLoop | None = None
        self.data: dict[tuple[int | None, int], ImageData] = {}
        self._notices: list[str] = []

    def _made(self, case: Case) -> Trainer | OwnLoop:
        if case.way in OWN_LOOPS:
            return OwnLoop(case, self._images(case))
        return make_trainer(case, self._images(case), self._notify)

    def _notify(self, notice: str) -> None:
        self._notices.append(notice)
        warnings.warn(notice, stacklevel=2)

    def _images(self, case: Case) -> ImageData:
        key = case.images, case.side
        if key not in self.data:
            self.data[key] = make_data(case)
        return self.data[key]

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compile(self, case: Case) -> tuple[float, list[str]]:
        """Seconds from nothing to the second step of a case, in this process, and its trainer's warnings."""
        self.trainer, self._notices = None, []
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        self.trainer = self._made(case)
        self.trainer.train_steps(limit=2)
        self._wait()
        seconds = time.perf_counter() - start
        if self.device == "cuda":
            torch.cuda.empty_cache()  # what was only needed to begin: others share the card
        return seconds, self._notices

    def prepare(self, case: Case) -> float:
        """Seconds from nothing to the second step of a case, in this process; it goes on with a whole epoch."""
        seconds, _ = self.compile(case)
        assert self.trainer is not None
        with self._lock:
            self.trainer.train_steps()
            self._wait()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return seconds

    def following(self, case: Case) -> float:
        """Seconds from one setting to the second step of the next."""
        start = time.perf_counter()
        self._made(replace(case, share=SHARES[1])).train_steps(limit=2)
        self._wait()
        return time.perf_counter() - start

    def train(self, case: Case) -> tuple[float, float]:
        """Images a second, and MB (1e6 bytes) held on the card."""
        if self.trainer is None:
            raise RuntimeError("nothing is prepared, or what was prepared has failed")
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < case.seconds:
            self.trainer.train_steps()
            self._wait()
            self.trainer.epoch += 1
            done += self.trainer.steps_per_epoch * case.batch
        speed = done / (time.perf_counter() - start)
        return speed, torch.cuda.max_memory_reserved() / 1e6 if self.device == "cuda" else 0.0

    def limit(self, case: Case) -> tuple[float, float]:
        """Bytes that a step must move for each image, and bytes that the device copies in a second."""
        data = self._images(case)
        width = 2 if self.device == "cuda" else 4  # bfloat16 on a card
        student = make_student(case, data)
        taps = default_taps(student, data.image_shape) if case.taught else ()
        moved = step_bytes(student, data.image_shape, width, taps)
        with self._lock:
            return moved, copy_bandwidth(self.device, COPIED if self.device == "cuda" else COPIED // 16)

    def losses(self, case: Case) -> list[float]:
        """The first losses of a seeded run."""
        trainer = self._made(case)
        assert isinstance(trainer, Trainer)
        found: list[float] = []
        while len(found) < EQUAL_STEPS:
            limit = EQUAL_STEPS - len(found)
            trainer.train_steps(limit=limit)
            found += trainer.step_losses[:limit].tolist()
            trainer.epoch += 1
        return found


class TooLargeError(Exception):
    """So many do not fit on the device together."""


class WorkerError(Exception):
    """A process's command has failed."""


def _serve(device: str, environment: Mapping[str, str], lock: Any, asked: Any, answers: Any) -> None:
    os.environ.update(environment)  # before this process first uses the card, or imports the compiler
    bench = Bench(device, lock)
    while (command := asked.get()) is not None:
        name, case = command
        try:
            answers.put(getattr(bench, name)(case))
        except Exception as error:
            bench.trainer = None
            traceback.print_exc()
            # as text: not every exception can be read again from what a queue writes, the compiler's cannot
            answers.put(
                TooLargeError(first_line(error)) if out_of_memory(error)
                else WorkerError(f"{type(error).__name__}: {one_line(error)}")
            )  # fmt: skip


class Processes:
    """The processes, each with a queue of commands and one of answers; all is over at `until` (time.monotonic).

    Args:
        device: "cpu" or "cuda".
        count: of processes.
        until: when all is over.
        environment: variables that they have besides this process's.
        lock: see Bench.
    """

    def __init__(
        self, device: str, count: int, until: float, environment: Mapping[str, str] | None = None, lock: Any = None
    ):  # fmt: skip
        context = mp.get_context("spawn")
        self.until = until
        self._queues = [(context.Queue(), context.Queue()) for _ in range(count)]
        self._workers = [
            context.Process(target=_serve, args=(device, environment or {}, lock, *pair), daemon=True)
            for pair in self._queues
        ]  # fmt: skip
        for worker in self._workers:
            worker.start()

    def __call__(self, which: range, name: str, case: Case) -> list[Any]:
        """What these processes answer, all asked at once; raises as `answers`."""
        for number in which:
            self.ask(number, name, case)
        return self.answers(which)

    def ask(self, number: int, name: str, case: Case) -> None:
        """Give one process a command."""
        self._queues[number][0].put((name, case))

    def answers(self, which: range) -> list[Any]:
        """What these processes answer to their last command.

        Raises what one of them raised, TooLargeError after all have answered; TimeoutError when the time is up.
        """
        answers = [self._answer(number) for number in which]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def answer_of(self, number: int) -> Any:
        """The answer of one process, or the error that it raised; None while there is none."""
        try:
            return self._queues[number][1].get_nowait()
        except queue.Empty:
            if not self._workers[number].is_alive():
                return RuntimeError(f"the process has ended with exit code {self._workers[number].exitcode}")
            return None

    def _answer(self, number: int) -> Any:
        while (seconds := self.until - time.monotonic()) > 0:
            try:
                return self._queues[number][1].get(timeout=max(0.1, min(seconds, ALIVE_SECONDS)))
            except queue.Empty:
                if not self._workers[number].is_alive():
                    exit_code = self._workers[number].exitcode
                    raise RuntimeError(f"the process has ended with exit code {exit_code}") from None
        raise TimeoutError("the time is up")

    def ask_to_end(self) -> None:
        """Let them end after what they do now."""
        for asked, _ in self._queues:
            asked.put(None)

    def kill(self, *, wait: bool = True) -> None:
        """End them at once, and `wait` until they have ended."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers if wait else ():
            worker.join()

    def close(self) -> None:
        """End them."""
        self.ask_to_end()
        for worker in self._workers:
            worker.join(max(0.1, min(5.0, self.until - time.monotonic())))
        self.kill()
