"""Several trials on one card: images a second in all, at each share, and what `gpus_per_trial: auto` chooses.

The packing benchmark of `auto` itself, except that it goes on where `auto` would have stopped. Small: a tensor train of
ResNet-9 within a tenth of its separable form, batch 512; large: WRN-28-10 in its separable form, batch 128. With
several cards also a study of as many trials as cards, each of a quarter of a card: on which card each ran, and what
they trained beside the same study that sees one card alone. Images are those of --images, else random ones of CIFAR's
shape.
`--quick` trains a narrow network on the digits on two CPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.measurement import JPEG_IMAGES, PROJECT, Measurement, Options, Table
from benchmarks.training.batches import write_images
from lowrank.data import load_data
from sweeps.cluster.ray_session import connect
from sweeps.records.load import fold_journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.records.specification import Trial
from sweeps.resources.gpu_packing import COUNTS, Limit, NoMemoryError, Packing, Throughput, choose_count, packing_limit
from sweeps.resources.packing_benchmark import PackingBenchmark
from sweeps.resources.shares import read_cluster
from sweeps.space.model import Space
from sweeps.space.parse import parse_space
from sweeps.trials.resolver import Resolver

IMAGES = 20_480  # to train on, where none are given
MANY = 1000  # trials: their number limits nothing
SPREAD_EPOCHS = 6
SPREAD_SECONDS = 240  # a study of the spread may take


def _space(name: str, network: dict[str, Any], data: str, train: dict[str, Any]) -> Space:
    return parse_space(name, {
        "question": "How many trials a card?", "data": {"name": data}, "network": network, "train": train,
        "method": {"name": "tensor_train", "dims": 3}, "budget": {"params": {"choice": [0.1]},
        "relative_to": "separable"}, "references": ["separable"], "search": {"sampler": "grid", "trials": 1},
    })  # fmt: skip


def _students(options: Options, data: str) -> dict[str, Trial]:
    """The small and the large one."""
    narrow = {"width": 0.5} if options.quick else {}
    engine = (
        {} if options.quick else {"engine": "captured"}
    )  # compiled steps are measured by `python -m benchmarks engine`
    batch = {} if options.quick else {"batch_size": 512}
    small = _space("small", {"name": "resnet9", **narrow}, data, {**engine, **batch})
    large = {"name": "wrn_10_1" if options.quick else "wrn_28_10"}
    wide = _space("large", large, data, {**engine, "batch_size": 128})
    images = load_data(small.data, None)
    resolver = Resolver(small, images)
    return {
        "ResNet-9, tensor train": resolver.resolve(resolver.points.grid()[0]),
        f"{wide.network.name}, separable": Resolver(wide, images).reference("separable"),
    }


@contextmanager
def _data(options: Options) -> Iterator[str]:
    """The data set's name."""
    with tempfile.TemporaryDirectory() as folder:
        images = options.images or (JPEG_IMAGES if JPEG_IMAGES.is_dir() else None)
        if images is None and not options.quick:
            write_images(Path(folder), 2 * IMAGES, options.seed)
        yield "digits" if options.quick else f"parquet:{(images or Path(folder)).resolve()}"


def _all_counts(benchmark: PackingBenchmark, max_trainers: int) -> dict[int, Throughput | NoMemoryError]:
    outcomes: dict[int, Throughput | NoMemoryError] = {}
    for count in COUNTS:
        if count <= max_trainers:
            try:
                outcomes[count] = benchmark.measure(count)
            except NoMemoryError as error:
                outcomes[count] = error
    return outcomes


def _chosen(
    outcomes: dict[int, Throughput | NoMemoryError], limit: Limit, card_mb: float | None, peak: float | None
) -> Packing:
    def measure(count: int) -> Throughput:
        outcome = outcomes[count]
        if isinstance(outcome, NoMemoryError):
            raise outcome
        return outcome

    return choose_count(measure, limit, card_mb, peak)


def _rows(name: str, outcomes: dict[int, Throughput | NoMemoryError], chosen: int) -> list[dict[str, Any]]:
    measured = [(count, outcome if isinstance(outcome, Throughput) else None) for count, outcome in outcomes.items()]
    alone = outcomes.get(1)
    base = alone.images_per_second if isinstance(alone, Throughput) else None
    return [
        {
            "student": name, "trials": count, "share": f"1/{count}" if count > 1 else "1",
            "images/s": throughput.images_per_second if throughput else None,
            "times": throughput.images_per_second / base if throughput and base else None,
            "MB each": throughput.peak_mb if throughput else None, "auto": "chosen" if count == chosen else "",
        }
        for count, throughput in measured
    ]  # fmt: skip


def _spread(data: str, cards: int, visible: int) -> dict[str, Any]:
    """A study of `cards` trials, a quarter of a card each, that sees `visible` cards: where they ran, and how fast."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = (f"train.epochs={SPREAD_EPOCHS}", "train.batch_size=512", "references=[]", "search.stop=none",
                     "method.name=tensor_train", "budget.params=0.1", "search.sampler=random")  # fmt: skip
        command = [
            sys.executable, "sweeps/run.py", "--space", "tt_dims", "--data", data, "--gpus-per-trial", "0.25",
            "--trials", str(cards), "--out", folder, "--name", "spread",
            *(part for override in overrides for part in ("--set", override)),
        ]  # fmt: skip
        seen = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(str(card) for card in range(visible))}
        subprocess.run(command, cwd=PROJECT, env=seen, check=True, timeout=SPREAD_SECONDS, stdout=sys.stderr)
        trials = fold_journal(Path(folder) / "spread" / JOURNAL_FILE).trials.values()
    speeds = [epoch["images_per_second"] for trial in trials for number, epoch in trial.epochs.items() if number > 1]
    last = [trial.attempts[-1] for trial in trials]
    return {
        "cards seen": visible, "trials": len(last), "asked": 0.25, "given": last[0]["gpus"],
        "on card": ", ".join(sorted(card for attempt in last for card in attempt["cards"])),
        "images/s": len(last) * sum(speeds) / len(speeds),
    }  # fmt: skip


def _spread_table(data: str) -> list[Table]:
    cards = torch.cuda.device_count()
    if cards < 2:
        return []
    rows = [_spread(data, cards, visible) for visible in (cards, 1)]
    columns = ("cards seen", "trials", "asked", "given", "on card", "images/s")
    return [Table(title="As many trials as cards: they spread before they share", columns=columns, rows=rows)]


def run(options: Options) -> Measurement:
    """Both students, one after the other, on the same processes."""
    on_card, rows, notes = options.device == "cuda", [], []
    connect(None, cpus=2 if options.quick else None)
    with _data(options) as data:
        students = _students(options, data)
        limit = packing_limit(read_cluster(autoscaled=False), 1, MANY, None)
        max_trainers = max(count for count in COUNTS if count <= limit.trials)
        first = next(iter(students.values()))
        duration = {"seconds": 0.5} if options.quick else {}
        with PackingBenchmark(first, None, 1, max_trainers, on_card=on_card, **duration) as benchmark:
            card, card_mb = benchmark.card()
            for name, trial in students.items():
                benchmark.set_trial(trial)
                peak = benchmark.peak(trial)
                outcomes = _all_counts(benchmark, max_trainers)
                chosen = _chosen(outcomes, limit, card_mb, peak)
                rows += _rows(name, outcomes, chosen.per_card)
                notes.append(f"{name}: auto takes {chosen.per_card} a card; {chosen.reason}")
                notes += [
                    f"{name}, {count}: {outcome}" for count, outcome in outcomes.items()
                    if not isinstance(outcome, Throughput)
                ]  # fmt: skip
                print(notes[-1], flush=True)
        ray.shutdown()
        spread = _spread_table(data) if on_card else []
    columns = ("student", "trials", "share", "images/s", "times", "MB each", "auto")
    settings = {
        "device": options.device, "card": card, "card MB": card_mb and round(card_mb), "seconds each": benchmark.seconds
    }  # fmt: skip
    title = "Trials that share a card: images per second of all together"
    return Measurement(
        name="placement", settings=settings, tables=[Table(title=title, columns=columns, rows=rows), *spread],
        notes=notes,
    )  # fmt: skip
