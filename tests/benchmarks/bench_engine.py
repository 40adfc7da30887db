"""Training of several trials that share a device: images a second in all, and how soon a new setting trains.

Every trial is a process with a trainer of its own, as in a sweep, on random images of CIFAR's shape that lie on the
device; epochs without evaluation. Steps: eager (the plain loop), captured (one recorded graph). A new setting is a
second network of another rank in the same process: what it costs to build it, to record its step and to train two.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from lowrank.budget import Budget, solve
from lowrank.data import DataSettings, ImageData, ViewSettings
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

WAYS = ("eager", "captured")
BATCH = 512
TRIALS = {  # network -> way -> how many at once
    "resnet9": {"captured": (1, 2, 4, 8), "eager": (1, 4)},
    "wrn_28_10": {"captured": (1, 2), "eager": (1,)},
}
WARM_UP_EPOCHS = 1
EQUAL_STEPS = 50
LONGEST = 90.0  # seconds that one row may take
IMAGE = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one group of processes does."""

    network: str
    method: str
    batch: int
    way: str
    processes: int
    images: int
    seconds: float
    device: str
    width: float = 1.0


def random_images(count: int, seed: int = 0) -> ImageData:
    """A resident set of random images in 10 classes."""
    generator = np.random.default_rng(seed)
    store = ArrayStore(generator.integers(0, 256, (count, *IMAGE[1:], IMAGE[0]), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, count))
    split = Split(name="train", labels=labels, indices=torch.arange(count), resident=True, store=store)
    return ImageData(
        name="random", settings=DataSettings(), classes=tuple(map(str, range(10))), image_shape=IMAGE,
        mean=(0.5,) * 3, std=(0.29,) * 3, fingerprint="0" * 16, train=split, val=split, test=split,
    )  # fmt: skip


def make_trainer(row: Row, data: ImageData, share: float = 0.1) -> Trainer:
    """A student within `share` of the separable network's parameters, and its trainer."""
    settings = NetworkSettings(name=row.network, width=row.width)
    plan = network_plan(settings, IMAGE, 10)
    method = make_method({"name": row.method, "dims": 3})
    method = solve(plan, method, Budget(params=int(share * plan.params(Separable()))))
    network = build_student(settings, plan, method, IMAGE, 10, seed=0)
    recipe = Recipe(epochs=1000, batch_size=row.batch, lr=0.02, warmup=0.1)
    views = ViewSettings(shift=4, flip=True, cutout=8)
    return Trainer(
        network, data, recipe, views=views, order_seed=0, device=row.device, capture=row.way != "eager"
    )  # fmt: skip


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _worker(row: Row, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    data = random_images(row.images)
    start = time.perf_counter()
    trainer = make_trainer(row, data)
    trainer.train_steps()
    _synchronise(row.device)
    first = time.perf_counter() - start
    for _ in range(WARM_UP_EPOCHS):
        trainer.train_steps()
    again = None
    if row.processes == 1:
        start = time.perf_counter()
        other = make_trainer(row, data, share=0.2)
        other.train_steps(most=2)
        _synchronise(row.device)
        again = time.perf_counter() - start
        del other
    barrier.wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < row.seconds:
        trainer.train_steps()
        _synchronise(row.device)
        trainer.epoch += 1
        done += trainer.steps * row.batch
    seconds = time.perf_counter() - start
    held = torch.cuda.max_memory_reserved() / 1e6 if row.device == "cuda" else math.nan
    results.put((done / seconds, first, again, held))


def measure(row: Row) -> dict[str, Any]:
    """Run the processes of one row to their end; raises RuntimeError when one of them fails or takes too long."""
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(row.processes), context.Queue()
    workers = [context.Process(target=_worker, args=(row, barrier, results)) for _ in range(row.processes)]
    deadline = time.monotonic() + LONGEST
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    late = [worker for worker in workers if worker.exitcode != 0]
    for worker in workers:
        worker.kill()
    if late:
        raise RuntimeError(f"{len(late)} of {row.processes} processes failed or took over {LONGEST:.0f} s")
    found = [results.get(timeout=5) for _ in workers]
    speeds, firsts, again, held = zip(*found, strict=True)
    return {
        "network": row.network, "method": row.method, "steps": row.way, "trials": row.processes,
        "images/s": sum(speeds), "first epoch s": max(firsts),
        "next setting s": again[0] if again[0] is not None else "-", "MB each": max(held),
    }  # fmt: skip


def losses(row: Row, data: ImageData) -> Tensor:
    """The first losses of a seeded run."""
    trainer = make_trainer(row, data)
    trainer.train_steps(most=EQUAL_STEPS)
    return trainer.step_losses[:EQUAL_STEPS].float().cpu()


def equality(device: str, quick: bool) -> list[str]:
    """How far the losses of the ways are apart over the first steps of a seeded run."""
    batch, width = (8, 0.5) if quick else (512, 1.0)
    rows = {way: Row(network="resnet9", method="tensor_train", batch=batch, way=way, processes=1, images=batch * 60,
                     seconds=0, device=device, width=width) for way in WAYS}  # fmt: skip
    found = {way: losses(row, random_images(row.images)) for way, row in rows.items()}
    plain = found.pop("eager")
    return [
        f"{way} against eager, {EQUAL_STEPS} steps: largest difference of a loss {(each - plain).abs().max():.2g}, "
        f"relative {((each - plain).abs() / plain).max():.2g}; last losses {each[-1]:.4f} and {plain[-1]:.4f}"
        for way, each in found.items()
    ]


def _row(options: Options, network: str, way: str, processes: int) -> Row:
    if options.quick:
        return Row(network=network, method="tensor_train", batch=8, way=way, processes=processes, images=160,
                   seconds=1, device=options.device, width=0.5)  # fmt: skip
    return Row(network=network, method="tensor_train", batch=BATCH, way=way, processes=processes, images=40_960,
               seconds=5, device=options.device)  # fmt: skip


def run(options: Options) -> Measurement:
    """Every case, way and number of processes."""
    rows, notes = [], equality(options.device, options.quick)
    for line in notes:
        print(line, flush=True)
    for network, ways in list(TRIALS.items())[: 1 if options.quick else None]:
        for way, counts in ways.items():
            for processes in counts[: 2 if options.quick else None]:
                row = _row(options, network, way, processes)
                try:
                    rows.append(measure(row))
                    print(rows[-1], flush=True)
                except RuntimeError as error:
                    notes.append(f"{network}, {way}, {processes}: {error}")
                    print(notes[-1], flush=True)
    columns = ("network", "method", "steps", "trials", "images/s", "first epoch s", "next setting s", "MB each")
    return Measurement(
        name="engine", settings={"device": options.device, "seed": options.seed},
        tables=[Table(title="Training alone, several trials on one device", columns=columns, rows=rows)], notes=notes,
    )  # fmt: skip
