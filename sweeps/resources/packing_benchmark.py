"""The benchmark behind `gpus_per_trial: auto`: 1, 2, 4, 8 real trainers on one card, a few seconds each.

The trainers are Ray actors that hold one card together, as trials do. They train a trial of the study's middle size;
the study's largest one says how much memory a trial may take. A teacher counts as one that is read from a cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lowrank.errors import HungError
from lowrank.training import MakeTrainer, Trainer, free_memory, measure_step
from lowrank.utils import first_line
from sweeps.cluster import assigned_device, card_types, cards_are_free, limit_memory, out_of_memory
from sweeps.records import FIT_FOLDER, FITS, Event, EventFields, Journal, StudyRecord, Trial, TrialSpec, apply_event
from sweeps.resources.configurations import (
    LEARNING_RATE,
    WARM_UP_STEPS,
    configuration,
    device_name,
    distinct_trials,
    trainer_maker,
    typical_and_largest,
)
from sweeps.resources.gpu_packing import (
    COUNTS,
    Limit,
    MeasuringTime,
    NoMemoryError,
    Packing,
    Throughput,
    best_packing,
    choose_count,
    packing_limit,
    packing_lines,
)
from sweeps.resources.gradual_packing import GradualPacking
from sweeps.resources.mps import MPS, PROCESSES
from sweeps.resources.packing_records import PackingRecords
from sweeps.resources.shares import Cluster
from sweeps.space import Space
from sweeps.trials import Resolver, load_trial_data
from sweeps.utils import raise_if_interrupted

MEASURE_SECONDS = 3.0  # of training, for each number of trials
STEPS_PER_CHECK = 50  # between two looks at the clock
POLL_SECONDS = 0.3
ANSWER_SECONDS = 1800.0  # for a card to come, or for trainers to compile and to train
THIS_STUDY, EARLIER_STUDY = "when the study began", "for an earlier study"
NOTICE_SECONDS = 10.0  # without a card, after which a line is printed


@dataclass(frozen=True)
class BenchmarkTask:
    """A specification to run, and the folder of data sets; None for the default."""

    specification: TrialSpec
    data_dir: Path | None


class _BenchmarkTrainer:
    """One of the trainers on a card, in a process of its own; where memory runs out it answers why."""

    def __init__(self, cpus: float, on_card: bool, environment: Mapping[str, str]):
        os.environ.update(environment)  # before this process first uses the card
        torch.set_num_threads(max(1, int(cpus)))
        self._device = torch.device(assigned_device(float(on_card)))
        self._trainer: Trainer | None = None

    def card(self) -> tuple[str, float | None]:
        """Return the card's name, and its memory in MB."""
        on_card = self._device.type == "cuda"
        total_mb = torch.cuda.get_device_properties(0).total_memory / 1e6 if on_card else None
        return device_name(self._device), total_mb

    def peak(self, task: BenchmarkTask) -> tuple[float | None, str | None]:
        """Return the memory peak in MB of one step of a specification, and why there is none."""
        make, batch_size = self._maker(task)
        try:
            return measure_step(make, batch_size, self._device).peak_mb, None
        except (RuntimeError, MemoryError) as error:
            return None, self._no_memory(error)

    def build(self, task: BenchmarkTask, share: float) -> str | None:
        """Make the trainer that `run` runs and warm it up; returns why it does not fit, None if it does."""
        self._limit(share)
        make, batch_size = self._maker(task)
        try:
            self._trainer = make(batch_size)
            self._trainer.train_steps(limit=WARM_UP_STEPS)
        except (RuntimeError, MemoryError) as error:
            return self._no_memory(error)
        return None

    def run(self, seconds: float, share: float) -> tuple[float, float | None, str | None]:
        """Return images per second, the most memory held in MB, and why there are none."""
        assert self._trainer is not None
        self._limit(share)
        start, steps, trainer = time.perf_counter(), 0, self._trainer
        images = min(trainer.recipe.batch_size, len(trainer.data.train))
        try:
            while (elapsed := time.perf_counter() - start) < seconds:
                trainer.train_steps(limit=STEPS_PER_CHECK)
                steps += min(STEPS_PER_CHECK, trainer.steps_per_epoch)
        except (RuntimeError, MemoryError) as error:
            return 0.0, None, self._no_memory(error)
        on_card = self._device.type == "cuda"
        return steps * images / elapsed, torch.cuda.max_memory_reserved() / 1e6 if on_card else None, None

    def _limit(self, share: float) -> None:
        if self._device.type == "cuda":
            limit_memory(share)

    def _maker(self, task: BenchmarkTask) -> tuple[MakeTrainer, int]:
        """Return what makes the trainer of a specification, and its batch size; the last trainer is freed."""
        self._trainer = None
        free_memory(self._device)
        specification = task.specification.with_train(lr=LEARNING_RATE)
        data = load_trial_data(specification, task.data_dir)
        return trainer_maker(specification, data, self._device), specification.train.batch_size

    def _no_memory(self, error: Exception) -> str:
        """Free the trainer and return why memory ran out; raises any other error again."""
        if not out_of_memory(error):
            raise error
        self._trainer = None
        return first_line(error)


class PackingBenchmark:
    """Several trainers on one card, or on CPUs alone; a context manager, within which their speed is measured."""

    def __init__(
        self, trial: Trial, data_dir: Path | None, cpus: float, max_trainers: int, *, on_card: bool,
        seconds: float = MEASURE_SECONDS, sharing: str = PROCESSES, environment: Mapping[str, str] | None = None,
    ):  # fmt: skip
        """Start the trainers, which wait for a card of their own.

        Args:
            trial: the trial that they train.
            data_dir: folder of data sets.
            cpus: CPUs of each trainer.
            max_trainers: the most that train at once; one of `COUNTS`, whose shares Ray counts exactly.
            on_card: whether they share a card; else they train on CPUs.
            seconds: of each measurement.
            sharing: the mode of sharing the card.
            environment: variables that the mode needs.
        """
        self.seconds, self._data_dir, self.sharing = seconds, data_dir, sharing
        bundle = {"CPU": cpus * max_trainers} | ({"GPU": 1} if on_card else {})
        self._group = placement_group([bundle])
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        start: Any = ray.remote(_BenchmarkTrainer).options(
            num_cpus=cpus, num_gpus=1 / max_trainers if on_card else 0, scheduling_strategy=strategy
        )
        self._trainers: list[Any] = [start.remote(cpus, on_card, environment or {}) for _ in range(max_trainers)]
        self.set_trial(trial)

    def set_trial(self, trial: Trial) -> None:
        """Measure with another trial from now on."""
        self._task, self._built = BenchmarkTask(trial.specification, self._data_dir), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trainer in self._trainers:
            ray.kill(trainer)
        remove_placement_group(self._group)

    def card(self) -> tuple[str, float | None]:
        """Wait for the card; prints a line if that takes long.

        Returns:
            The card's name (`cpu` without a card) and its memory in MB (None without).
        """
        ((name, total_mb),) = self._wait([self._trainers[0].card.remote()], "waiting for a card to measure on")
        return str(name), total_mb

    def peak(self, trial: Trial) -> float | None:
        """Measure the memory of one step of a trial that is alone on the card.

        Args:
            trial: any trial.

        Returns:
            The peak in MB; None if it cannot be read.

        Raises:
            NoMemoryError: the trial does not fit.
        """
        task = BenchmarkTask(trial.specification, self._data_dir)
        ((peak_mb, reason),) = self._wait([self._trainers[0].peak.remote(task)])
        if reason is not None:
            raise NoMemoryError(reason)
        return None if peak_mb is None else float(peak_mb)

    def measure(self, count: int) -> Throughput:
        """Train so many trials at once.

        Args:
            count: of trainers, at most `max_trainers`.

        Returns:
            Their speed together, and the most memory that one of them held.

        Raises:
            NoMemoryError: so many do not fit.
        """
        new = self._trainers[self._built : count]
        self._check(self._wait([trainer.build.remote(self._task, 1 / count) for trainer in new]))
        self._built = max(self._built, count)
        answers = self._wait([trainer.run.remote(self.seconds, 1 / count) for trainer in self._trainers[:count]])
        speeds, peaks, reasons = zip(*answers, strict=True)
        self._check(reasons)
        return Throughput(count, sum(speeds), max((peak for peak in peaks if peak is not None), default=None),
                          self.sharing)  # fmt: skip

    @staticmethod
    def _check(reasons: Sequence[str | None]) -> None:
        """Raise NoMemoryError if any trainer said why it did not fit."""
        for reason in reasons:
            if reason is not None:
                raise NoMemoryError(reason)

    def _wait(self, answers: list[Any], notice: str | None = None) -> list[Any]:
        """Wait for answers; a Ctrl-C ends the wait, and `notice` is printed if it takes long.

        A trainer that is killed had no memory, as a rule that of the host: raises NoMemoryError. Raises HungError if
        no answer comes for `ANSWER_SECONDS`.
        """
        started = time.monotonic()
        while len(ray.wait(answers, num_returns=len(answers), timeout=POLL_SECONDS)[0]) < len(answers):
            raise_if_interrupted()
            if time.monotonic() - started > ANSWER_SECONDS:
                raise HungError(
                    f"gpus_per_trial auto: {len(answers)} trainers on one card have not answered for "
                    f"{ANSWER_SECONDS:.0f} s: no card is free, or they hang; give --gpus-per-trial a number"
                )
            if notice and time.monotonic() - started > NOTICE_SECONDS:
                print(notice, flush=True)
                notice = None
        try:
            return list(ray.get(answers))
        except RayActorError as error:
            raise NoMemoryError(f"a trainer was killed: {first_line(error)}") from error


def probed_peak(root: Path, names: Sequence[str], trials: Sequence[Trial], card: str) -> float | None:
    """Read the largest memory peak of trials from the records of an earlier memory probe.

    Args:
        root: folder of studies, in which the records lie.
        names: under which the probe may have been recorded: the study's and the space's.
        trials: one of each configuration.
        card: the card's name; records of other cards do not count.

    Returns:
        MB; None if no record holds all of the configurations.
    """
    configurations = {configuration(trial.specification) for trial in trials}
    for name in names:
        path = root / FIT_FOLDER / f"{name}.parquet"
        rows = pq.read_table(path).to_pylist() if path.exists() else []
        peaks = {
            row["configuration"]: row["peak_mb"] for row in rows
            if row["status"] == FITS and row["device"] == card and row["peak_mb"] is not None
        }  # fmt: skip
        if configurations <= peaks.keys():
            return max(peaks[key] for key in configurations)
    return None


def choose_packing(
    space: Space, resolver: Resolver, cluster: Cluster, trials: int, journal: Journal, record: StudyRecord,
    data_dir: Path | None, modes: Mapping[str, Mapping[str, str]],
) -> Packing | GradualPacking:  # fmt: skip
    """Choose how the trials of a study share cards: as recorded for such cards, else measured and recorded.

    The record may be this study's, or an earlier one's with trials of the same cost. Without one the study's own trials
    find it, which share cards by MPS where that is allowed. It is measured now where cards are of several types, in
    use, or yet to start.

    Args:
        space: the study's space.
        resolver: makes the trials to measure with.
        cluster: CPUs and GPUs there are.
        trials: trials of the study.
        journal: takes the event of a measurement.
        record: of the study.
        data_dir: folder of data sets.
        modes: the sharing modes to choose from, each with its environment.

    Returns:
        The packing; or what finds it while the study's trials train.
    """
    cpus = space.resources.cpus_per_trial
    types = card_types()
    conditions = {"cpus_per_trial": cpus, "types": types}
    recorded = record.packing
    if recorded is not None and all(recorded.get(name) == value for name, value in conditions.items()):
        packing = Packing.from_event(recorded)
        if packing.sharing in modes:
            print(*packing_lines(packing, recorded["card"], measured_by=THIS_STUDY), sep="\n", flush=True)
            return packing
    limit = packing_limit(cluster, cpus, trials, space.resources.max_concurrent)
    typical, largest = typical_and_largest(space, resolver)
    records = PackingRecords(journal.path.parent.parent, {
        **conditions, "modes": sorted(modes), "most": min(limit.trials, COUNTS[-1]),
        "images": [*resolver.data.image_shape, len(resolver.data.train)],
        "configurations": [configuration(trial.specification) for trial in (typical, largest)],
    })  # fmt: skip

    def write(packing: Packing, details: EventFields) -> None:
        event = journal.append(Event.PACKING, sync=True, **conditions, **details, **packing.to_event())
        apply_event(record, event)

    earlier = records.read()
    if earlier is not None:
        packing, details = earlier
        print(*packing_lines(packing, details["card"], measured_by=EARLIER_STUDY), sep="\n", flush=True)
        write(packing, details)
        return packing
    if limit.trials < COUNTS[1]:
        packing = Packing(1, (), f"{COUNTS[1]} are too many: {limit.reason}", next(iter(modes)))
        print(*packing_lines(packing, ", ".join(types) or "card"), sep="\n", flush=True)
        return packing
    if cluster.gpus == 1 or (len(types) == 1 and cards_are_free(cluster.gpus)):

        def keep(packing: Packing, details: EventFields) -> None:
            details = {**details, "card": ", ".join(types) or "card"}
            records.write(packing, details)
            write(packing, {**details, "slots": packing.per_card})

        sharing = MPS if MPS in modes else next(iter(modes))  # a process cannot change its mode
        return GradualPacking(
            limit, len(resolver.data.train), sharing, keep, cards=int(cluster.gpus),
            epochs=typical.specification.train.epochs,
        )  # fmt: skip
    images = trials * typical.specification.train.epochs * len(resolver.data.train) / max(1.0, cluster.gpus)
    packing, details = measure_packing(
        space, resolver, limit, journal.path.parent, data_dir, modes, MeasuringTime(images)
    )
    print(*packing_lines(packing, details["card"]), sep="\n", flush=True)
    if not packing.cut_short:
        records.write(packing, details)
    write(packing, details)
    return packing


def measure_packing(
    space: Space, resolver: Resolver, limit: Limit, folder: Path, data_dir: Path | None,
    modes: Mapping[str, Mapping[str, str]], measuring_time: MeasuringTime | None = None,
) -> tuple[Packing, EventFields]:  # fmt: skip
    """Measure how many trials a card train the most, by each sharing mode.

    Args:
        space: the study's space.
        resolver: makes the trials to measure with.
        limit: of trials a card.
        folder: of the study, beside which records of a memory probe may lie.
        data_dir: folder of data sets.
        modes: the sharing modes to try, each with its environment.
        measuring_time: ends the measurements of a short study, further modes included.

    Returns:
        The best packing; and the fields of the event that say with which trial, card and memory peak.
    """
    typical, largest = typical_and_largest(space, resolver)
    max_trainers = max(count for count in COUNTS if count <= limit.trials)
    packings: list[Packing] = []
    details: EventFields = {"measured": typical.trial_id}
    cpus, peak_mb = space.resources.cpus_per_trial, None
    for mode, environment in modes.items():
        if packings and packings[-1].cut_short:
            break
        with PackingBenchmark(
            typical, data_dir, cpus, max_trainers, on_card=True, sharing=mode, environment=environment
        ) as benchmark:
            card, card_mb = benchmark.card()
            if not packings:
                question = f"how many trials a card? Tried with {_describe(typical)} on {card}"
                print(f"gpus_per_trial auto: {question}", flush=True)
                peak_mb = probed_peak(folder.parent, (folder.name, space.name), distinct_trials(space, resolver), card)
                # The journal's words stay as the first studies wrote them
                source = "dry run" if peak_mb is None else "--fit"
                details |= {"card": card, "card_mb": card_mb, "peak_from": source}
            try:
                peak_mb = benchmark.peak(largest) if peak_mb is None else peak_mb
                packings.append(choose_count(benchmark.measure, limit, card_mb, peak_mb, measuring_time))
            except NoMemoryError as error:
                packings.append(Packing(1, (), f"{_describe(largest)} does not even fit alone: {error}", mode))
    return best_packing(packings), {**details, "peak_mb": peak_mb}


def _describe(trial: Trial) -> str:
    specification = trial.specification
    method, batch_size = specification.method.name, specification.train.batch_size
    return f"{method} of {trial.counts['params']:,} parameters, batch {batch_size},"
