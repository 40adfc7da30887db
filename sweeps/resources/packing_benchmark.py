"""The dry run behind `gpus_per_trial: auto`: several real trainers on one card, a few seconds for each number of them.

The trainers are Ray actors that hold one card together, as trials do. They train a trial of the study's middle size;
the study's largest one says how much memory a trial may take. A teacher counts as one that is read from a cache.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lowrank.training.engine.memory_probe import measure_step
from lowrank.utils.text import first_line
from sweeps.cluster.devices import given_device, limit_memory, out_of_memory
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord, apply_event
from sweeps.records.probe_schema import FIT_FOLDER, FITS
from sweeps.records.specification import Trial
from sweeps.resources.configurations import configuration, device_name, distinct, trainer_maker
from sweeps.resources.gpu_packing import COUNTS, Limit, NoMemoryError, Placement, Tried, better, choose, limit_of, words
from sweeps.resources.mps import PROCESSES, use
from sweeps.resources.shares import Cluster
from sweeps.space.model import Space
from sweeps.trials.build import load_trial_data
from sweeps.trials.resolver import Resolver
from sweeps.utils.signals import check

SECONDS = 3.0  # of training, for each number of trials
WARM_UP = 10  # steps
STEPS = 50  # between two looks at the clock
RATE = 1e-6  # a dry run repeats the first steps for longer than they are meant to be: nothing may diverge
POLL_SECONDS = 0.3
PATIENCE = 10.0  # seconds without a card after which the user is told


class _BenchmarkTrainer:
    """One of the trainers on a card; what runs out of memory is an answer, not an end."""

    def __init__(self, cpus: float, on_card: bool, environment: Mapping[str, str]):
        use(environment)
        torch.set_num_threads(max(1, int(cpus)))
        self._device = torch.device(given_device(float(on_card)))
        self._trainer: Any = None

    def card(self) -> tuple[str, float | None]:
        """Its name, and its memory in MB."""
        on_card = self._device.type == "cuda"
        total = torch.cuda.get_device_properties(0).total_memory / 1e6 if on_card else None
        return device_name(self._device), total

    def peak(self, config: dict[str, Any]) -> tuple[float | None, str | None]:
        """Peak of memory in MB of one step of a specification, and why there is none."""
        make, batch = self._maker(config)
        try:
            return measure_step(make, batch, self._device).peak_mb, None
        except (RuntimeError, MemoryError) as error:
            return None, self._refused(error)

    def build(self, config: dict[str, Any], share: float) -> str | None:
        """Make the trainer that `run` runs and warm it up; why it does not fit, None where it does."""
        self._limit(share)
        make, batch = self._maker(config)
        try:
            self._trainer = make(batch)
            self._trainer.train_steps(limit=WARM_UP)
        except (RuntimeError, MemoryError) as error:
            return self._refused(error)
        return None

    def run(self, seconds: float, share: float) -> tuple[float, float | None, str | None]:
        """Images per second, the most memory held in MB, and why there are none."""
        self._limit(share)
        start, steps, trainer = time.perf_counter(), 0, self._trainer
        images = min(trainer.recipe.batch_size, len(trainer.data.train))
        try:
            while (taken := time.perf_counter() - start) < seconds:
                trainer.train_steps(limit=STEPS)
                steps += min(STEPS, trainer.steps_per_epoch)
        except (RuntimeError, MemoryError) as error:
            return 0.0, None, self._refused(error)
        on_card = self._device.type == "cuda"
        return steps * images / taken, torch.cuda.max_memory_reserved() / 1e6 if on_card else None, None

    def _limit(self, share: float) -> None:
        if self._device.type == "cuda":
            limit_memory(share)

    def _maker(self, config: dict[str, Any]) -> tuple[Any, int]:
        self._trainer = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        specification = config["specification"]
        specification = {**specification, "train": {**specification["train"], "lr": RATE}}
        data = load_trial_data(specification, config["data_dir"])
        return trainer_maker(specification, data, self._device), int(specification["train"]["batch_size"])

    def _refused(self, error: Exception) -> str:
        if not out_of_memory(error):
            raise error
        self._trainer = None
        return first_line(error)


class PackingBenchmark:
    """Trainers on one card, or, without `on_card`, on CPUs alone. Use as a context manager; measures when called."""

    def __init__(
        self, typical: Trial, data_dir: Path | None, cpus: float, most: int, *, on_card: bool, seconds: float = SECONDS,
        sharing: str = PROCESSES, environment: Mapping[str, str] | None = None,
    ):  # fmt: skip
        """`most` trainers may be asked for, each on so many `cpus`; one of COUNTS, whose shares Ray counts exactly.

        `sharing` is the way by which they share the card, and `environment` what that takes.
        """
        self.seconds, self._data_dir, self.sharing = seconds, data_dir, sharing
        bundle = {"CPU": cpus * most} | ({"GPU": 1} if on_card else {})
        self._group = placement_group([bundle])
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        start: Any = ray.remote(_BenchmarkTrainer).options(
            num_cpus=cpus, num_gpus=1 / most if on_card else 0, scheduling_strategy=strategy
        )
        self._trainers: list[Any] = [start.remote(cpus, on_card, environment or {}) for _ in range(most)]
        self.turn_to(typical)

    def turn_to(self, trial: Trial) -> None:
        """Measure with this trial from now on."""
        self._config, self._built = self._of(trial), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trainer in self._trainers:
            ray.kill(trainer)
        remove_placement_group(self._group)

    def card(self) -> tuple[str, float | None]:
        """The card's name, and its memory in MB; waits for it, and says so where that takes long."""
        (found,) = self._wait([self._trainers[0].card.remote()], "waiting for a card to measure on")
        return str(found[0]), found[1]

    def peak(self, trial: Trial) -> float | None:
        """Peak of memory in MB of a trial alone on the card; raises NoMemoryError."""
        ((peak, refused),) = self._wait([self._trainers[0].peak.remote(self._of(trial))])
        if refused is not None:
            raise NoMemoryError(refused)
        return None if peak is None else float(peak)

    def __call__(self, count: int) -> Tried:
        """Train `count` at once; raises NoMemoryError."""
        new = self._trainers[self._built : count]
        self._check(self._wait([trainer.build.remote(self._config, 1 / count) for trainer in new]))
        self._built = max(self._built, count)
        found = self._wait([each.run.remote(self.seconds, 1 / count) for each in self._trainers[:count]])
        self._check([refused for _, _, refused in found])
        peaks = [peak for _, peak, _ in found if peak is not None]
        return Tried(count, sum(speed for speed, _, _ in found), max(peaks, default=None), self.sharing)

    def _of(self, trial: Trial) -> dict[str, Any]:
        return {"specification": trial.specification, "data_dir": str(self._data_dir) if self._data_dir else None}

    @staticmethod
    def _check(refused: Sequence[str | None]) -> None:
        for reason in refused:
            if reason is not None:
                raise NoMemoryError(reason)

    def _wait(self, answers: list[Any], told: str | None = None) -> list[Any]:
        """The answers; a Ctrl-C is heard meanwhile. A trainer that is killed had no memory, of the host as a rule."""
        started = time.monotonic()
        while len(ray.wait(answers, num_returns=len(answers), timeout=POLL_SECONDS)[0]) < len(answers):
            check()
            if told and time.monotonic() - started > PATIENCE:
                print(told, flush=True)
                told = None
        try:
            return list(ray.get(answers))
        except RayActorError as error:
            raise NoMemoryError(f"a trainer was killed: {first_line(error)}") from error


def known_peak(folder: Path, names: Sequence[str], trials: Sequence[Trial], card: str) -> float | None:
    """The largest peak in MB that `--probe-memory` found of these trials; None where it did not probe them all."""
    wanted = {configuration(trial.specification) for trial in trials}
    for name in names:
        path = folder / FIT_FOLDER / f"{name}.parquet"
        rows = pq.read_table(path).to_pylist() if path.exists() else []
        peaks = {
            row["configuration"]: row["peak_mb"] for row in rows
            if row["status"] == FITS and row["device"] == card and row["peak_mb"] is not None
        }  # fmt: skip
        if wanted <= peaks.keys():
            return max(peaks[each] for each in wanted)
    return None


def card_types() -> list[str]:
    """The kinds of cards in the cluster, as Ray names them."""
    names = {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]}
    return sorted(name.partition(":")[2] for name in names if name.startswith("accelerator_type:"))


def place(
    space: Space, resolver: Resolver, cluster: Cluster, trials: int, journal: Journal, record: StudyRecord,
    data_dir: Path | None, ways: Mapping[str, Mapping[str, str]],
) -> Placement:  # fmt: skip
    """How the study's `trials` share cards, by which of `ways`: as it was measured on such cards, or measured now."""
    cpus = space.resources.cpus_per_trial
    asked = {"cpus_per_trial": cpus, "types": card_types()}
    if record.placement is not None and all(record.placement.get(name) == value for name, value in asked.items()):
        known = Placement.of_event(record.placement)
        if known.sharing in ways:
            print(*words(known, record.placement["card"], again=True), sep="\n", flush=True)
            return known
    limit = limit_of(cluster, cpus, trials, space.resources.max_concurrent)
    found, about = _measured(space, resolver, limit, journal.path.parent, data_dir, ways)
    print(*words(found, about["card"]), sep="\n", flush=True)
    apply_event(record, journal.append(Event.PLACED, sync=True, **asked, **about, **found.to_event()))
    return found


def _described(trial: Trial) -> str:
    specification = trial.specification
    method, batch = specification["method"]["name"], specification["train"]["batch_size"]
    return f"{method} of {trial.counts['params']:,} parameters, batch {batch},"


def _measured(
    space: Space, resolver: Resolver, limit: Limit, folder: Path, data_dir: Path | None,
    ways: Mapping[str, Mapping[str, str]],
) -> tuple[Placement, dict[str, Any]]:  # fmt: skip
    every = distinct(space, resolver)
    references = {trial.trial_id for trial in resolver.references()[0]}
    searched = [trial for trial in every if trial.trial_id not in references] or every
    typical = searched[len(searched) // 2]
    most = max(count for count in COUNTS if count <= limit.trials)
    found: list[Placement] = []
    about: dict[str, Any] = {"measured": typical.trial_id}
    cpus, peak = space.resources.cpus_per_trial, None
    for way, environment in ways.items():
        with PackingBenchmark(typical, data_dir, cpus, most, on_card=True, sharing=way, environment=environment) as run:
            card, card_mb = run.card()
            if not found:
                asked = f"how many trials a card? Tried with {_described(typical)} on {card}"
                print(f"gpus_per_trial auto: {asked}", flush=True)
                peak = known_peak(folder.parent, (folder.name, space.name), every, card)
                about |= {"card": card, "card_mb": card_mb, "peak_from": "dry run" if peak is None else "--fit"}
            try:
                peak = run.peak(every[-1]) if peak is None else peak
                found.append(choose(run, limit, card_mb, peak))
            except NoMemoryError as error:
                found.append(Placement(1, (), f"{_described(every[-1])} does not even fit alone: {error}", way))
    return better(found), {**about, "peak_mb": peak}
