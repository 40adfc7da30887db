"""Training of several trials that share a device: images a second in all, and how soon a new setting trains.

Every trial is a process with a trainer of its own, as in a sweep, on images that lie on the device; epochs without
evaluation. Steps: torch (a straightforward loop of torch's own, without views of images), plain (lowrank.training),
captured and compiled (lowrank.captured). The processes stay from row to row: one, two and more of them train at a time.
A new setting is a second network of another rank in the first process: what it costs to build it, to record its step
and to train two.

On a GPU: random images of CIFAR's shape, batch 512. On a CPU: the digits, batch 32, a process on each core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from lowrank.budget import Budget, solve
from lowrank.data import DataSettings, ImageData, ViewSettings, default_views, load_data
from lowrank.data.load import Split
from lowrank.data.stores import ArrayStore
from lowrank.layers import Separable
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan
from lowrank.recipes import Recipe
from lowrank.substitute import build_student
from lowrank.training import Trainer
from tests.benchmarks.bench_record import Measurement, Options, Table

WAYS = {"cuda": ("compiled", "captured", "plain", "torch"), "cpu": ("torch", "plain", "compiled")}
COUNTS = {"cuda": (1, 2, 4), "cpu": (1, 2)}
SHARES = (0.1, 0.2)  # of the separable network's parameters: a trial's, and the next setting's
EQUAL_STEPS = 50
CIFAR = (3, 32, 32)
LONGEST = 90.0  # seconds that one answer of a process may take: compilation is the longest
IN_ALL = 150.0  # seconds after which no further row is begun
COLUMNS = ("network", "steps", "trials", "images/s in all", "images/s each", "first two steps s", "next setting s",
           "MB each")  # fmt: skip


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


def random_images(count: int, seed: int = 0) -> ImageData:
    """A resident set of random images in 10 classes."""
    generator = np.random.default_rng(seed)
    store = ArrayStore(generator.integers(0, 256, (count, *CIFAR[1:], CIFAR[0]), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, count))
    split = Split(name="train", labels=labels, indices=torch.arange(count), resident=True, store=store)
    return ImageData(
        name="random", settings=DataSettings(), classes=tuple(map(str, range(10))), image_shape=CIFAR,
        mean=(0.5,) * 3, std=(0.29,) * 3, fingerprint="0" * 16, train=split, val=split, test=split,
    )  # fmt: skip


def make_data(case: Case) -> ImageData:
    """The images of a case."""
    return load_data(DataSettings()) if case.images is None else random_images(case.images)


def make_student(case: Case, data: ImageData) -> torch.nn.Module:
    """A tensor-train student in three dimensions within the case's share of the separable network's parameters."""
    settings = NetworkSettings(name=case.network, width=case.width)
    plan = network_plan(settings, data.image_shape, 10)
    method = make_method({"name": "tensor_train", "dims": 3})
    method = solve(plan, method, Budget(params=int(case.share * plan.params(Separable()))))
    return build_student(settings, plan, method, data.image_shape, 10, seed=0)


class OwnLoop:
    """The same network and step in a straightforward loop, as one would write it: no views of images, no records."""

    def __init__(self, case: Case, data: ImageData):
        self.network = make_student(case, data).to(case.device).train()
        self.case, self.epoch = case, 0
        images, self.labels, _ = data.train.on(case.device)
        self.images = (images.permute(0, 3, 1, 2).float() / 255 - 0.5).contiguous() / 0.29
        self.steps = len(self.labels) // case.batch
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
        )  # fmt: skip

    def train_steps(self, most: int | None = None) -> None:
        """An epoch's steps, or the first of them."""
        order = torch.randperm(len(self.labels), device=self.case.device)
        for step in range(min(self.steps, most or self.steps)):
            picked = order[step * self.case.batch : (step + 1) * self.case.batch]
            with torch.autocast("cuda", torch.bfloat16, enabled=self.case.device == "cuda"):
                loss = functional.cross_entropy(self.network(self.images[picked]), self.labels[picked])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def make_trainer(case: Case, data: ImageData) -> Trainer:
    """The student of a case and the trainer of its way."""
    recipe = Recipe(epochs=1000, batch_size=case.batch, lr=0.02, warmup=0.1, engine=case.way)
    views = default_views("digits") if case.images is None else ViewSettings(shift=4, flip=True, cutout=8)
    return Trainer(make_student(case, data), data, recipe, views=views, order_seed=0, device=case.device)


class Bench:
    """One process of the benchmark: its trainer stays from row to row."""

    def __init__(self, device: str) -> None:
        torch.set_num_threads(1)
        self.device = device
        self.trainer: Trainer | OwnLoop | None = None
        self.data: dict[int | None, ImageData] = {}

    def _made(self, case: Case) -> Trainer | OwnLoop:
        if case.images not in self.data:
            self.data[case.images] = make_data(case)
        make: Callable[[Case, ImageData], Trainer | OwnLoop] = OwnLoop if case.way == "torch" else make_trainer
        return make(case, self.data[case.images])

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def prepare(self, case: Case) -> float:
        """Seconds from nothing to the second step of a case, in this process; it goes on with a whole epoch."""
        self.trainer = None
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        self.trainer = self._made(case)
        self.trainer.train_steps(most=2)
        self._wait()
        seconds = time.perf_counter() - start
        self.trainer.train_steps()
        self._wait()
        return seconds

    def following(self, case: Case) -> float:
        """Seconds from one setting to the second step of the next."""
        start = time.perf_counter()
        self._made(replace(case, share=SHARES[1])).train_steps(most=2)
        self._wait()
        return time.perf_counter() - start

    def train(self, case: Case) -> tuple[float, float]:
        """Images a second, and MB (1e6 bytes) held on the card."""
        assert self.trainer is not None
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < case.seconds:
            self.trainer.train_steps()
            self._wait()
            self.trainer.epoch += 1
            done += self.trainer.steps * case.batch
        speed = done / (time.perf_counter() - start)
        return speed, torch.cuda.max_memory_reserved() / 1e6 if self.device == "cuda" else 0.0

    def losses(self, case: Case) -> list[float]:
        """The first losses of a seeded run."""
        trainer = self._made(case)
        assert isinstance(trainer, Trainer)
        found: list[float] = []
        while len(found) < EQUAL_STEPS:
            most = EQUAL_STEPS - len(found)
            trainer.train_steps(most=most)
            found += trainer.step_losses[:most].tolist()
            trainer.epoch += 1
        return found


def _serve(device: str, asked: Any, answers: Any) -> None:
    bench = Bench(device)
    while (command := asked.get()) is not None:
        name, case = command
        try:
            answers.put(getattr(bench, name)(case))
        except Exception as error:
            answers.put(error)


class Processes:
    """The processes, each with a queue of commands and one of answers."""

    def __init__(self, device: str, count: int):
        context = mp.get_context("spawn")
        self._queues = [(context.Queue(), context.Queue()) for _ in range(count)]
        self._workers = [context.Process(target=_serve, args=(device, *pair), daemon=True) for pair in self._queues]
        for worker in self._workers:
            worker.start()

    def __call__(self, which: range, name: str, case: Case) -> list[Any]:
        """What these processes answer, all asked at once; raises what one of them raised, or queue.Empty."""
        for number in which:
            self._queues[number][0].put((name, case))
        found = [self._queues[number][1].get(timeout=LONGEST) for number in which]
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found

    def close(self) -> None:
        """End them."""
        for (asked, _), worker in zip(self._queues, self._workers, strict=True):
            asked.put(None)
            worker.join(5)
            worker.kill()


def cases(options: Options) -> list[Case]:
    """ResNet-9, and on a GPU WRN-28-10; small and short when `quick`."""
    if options.device == "cpu":
        seconds = 1.0 if options.quick else 8.0
        return [Case(network="resnet9", device="cpu", batch=32, images=None, seconds=seconds,
                     width=0.5 if options.quick else 1.0)]  # fmt: skip
    one = Case(network="resnet9", device="cuda", batch=512, images=20_480, seconds=1.0 if options.quick else 4.0)
    return [one] if options.quick else [one, replace(one, network="wrn_28_10", images=5_120)]


def difference(losses: list[float], plain: list[float], way: str) -> str:
    """How far two runs' losses are apart, in words."""
    found, wanted = Tensor(losses), Tensor(plain)
    gap = (found - wanted).abs()
    return (
        f"{way} against plain, {EQUAL_STEPS} steps: largest difference of a loss {gap.max():.2g}, relative "
        f"{(gap / wanted).max():.2g}; last losses {found[-1]:.4f} and {wanted[-1]:.4f}"
    )


def measure(processes: Processes, case: Case) -> list[dict[str, Any]]:
    """The rows of one network and way, printed as they come."""
    everyone = COUNTS[case.device][-1]
    firsts = processes(range(1), "prepare", case)  # compiles for all of them
    following = processes(range(1), "following", case)[0]
    firsts += processes(range(1, everyone), "prepare", case)
    rows = []
    for count in COUNTS[case.device]:
        speeds, held = zip(*processes(range(count), "train", case), strict=True)
        rows.append({
            "network": case.network, "steps": case.way, "trials": count, "images/s in all": sum(speeds),
            "images/s each": sum(speeds) / count, "first two steps s": max(firsts[:count]),
            "next setting s": following, "MB each": max(held),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def run(options: Options) -> Measurement:
    """Every network and way; what there is no time for is said to be left out."""
    begin, rows, notes = time.monotonic(), [], []
    processes = Processes(options.device, COUNTS[options.device][-1])
    try:
        for case in cases(options):
            plain: list[float] | None = None
            for way in WAYS[options.device]:
                if time.monotonic() - begin > IN_ALL:
                    notes.append(f"left out for want of time: {case.network}, {way}")
                    continue
                mine = replace(case, way=way)
                rows += measure(processes, mine)
                if way not in ("plain", "torch"):
                    plain = plain or processes(range(1), "losses", replace(case, way="plain"))[0]
                    notes.append(difference(processes(range(1), "losses", mine)[0], plain, f"{case.network}, {way}"))
                    print(notes[-1], flush=True)
    finally:
        processes.close()
    return Measurement(
        name="engine", settings={"device": options.device, "seed": 0, "batch": cases(options)[0].batch},
        tables=[Table(title="Training alone, several trials on one device", columns=COLUMNS, rows=rows)], notes=notes,
    )  # fmt: skip
