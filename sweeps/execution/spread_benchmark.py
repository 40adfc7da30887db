"""Measures how fast one trial trains on one card and on several, before a study gives it several.

The processes are those that train trials later (sweeps.execution.process_group), so what they compile is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from lowrank.errors import HungError
from sweeps.cluster import out_of_memory
from sweeps.execution.process_group import ProcessGroup
from sweeps.records import Trial, TrialSpec
from sweeps.resources import ANSWER_SECONDS, POLL_SECONDS
from sweeps.utils import raise_if_interrupted


def measure_group(
    specification: TrialSpec, data_dir: str | None, count: int, device: str, threads: int
) -> float:  # fmt: skip
    """Measure the speed of a trial in so many processes.

    Args:
        specification: of the trial.
        data_dir: folder of data sets.
        count: of processes.
        device: cpu or cuda; on cuda each process has a card.
        threads: of torch in each process.

    Returns:
        Images per second of all processes together; 0 where memory is not enough.

    Raises:
        WorkerLostError: a process ended or hangs.
    """
    group = ProcessGroup(count, device, threads)
    try:
        return float(group.call_all("measure", specification, data_dir)[0])
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return 0.0
    finally:
        group.close()


class _Measurer:
    """An actor that holds the cards; in a process of its own."""

    def measure(self, specification: TrialSpec, data_dir: str | None, count: int, threads: int) -> float:
        """See `measure_group`."""
        return measure_group(specification, data_dir, count, "cuda" if torch.cuda.is_available() else "cpu", threads)


def measure_on_cards(trial: Trial, data_dir: Path | None, cpus: float, cards: int) -> Callable[[int], float]:
    """Return what measures a trial on one card or on several of one machine.

    Args:
        trial: a trial of the study.
        data_dir: folder of data sets.
        cpus: CPUs of one trial.
        cards: the most that are measured.

    Returns:
        A function of the number of cards, which returns images per second, 0 where memory is not enough. It raises
        HungError if no answer comes.
    """

    def measure(count: int) -> float:
        start: Any = ray.remote(_Measurer).options(num_cpus=cpus, num_gpus=cards)
        actor = start.remote()
        threads = max(1, int(cpus / count))
        folder = None if data_dir is None else str(data_dir)
        answer = actor.measure.remote(trial.specification, folder, count, threads)
        began = time.monotonic()
        try:
            while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
                raise_if_interrupted()
                if time.monotonic() - began > ANSWER_SECONDS:
                    raise HungError(
                        f"a trial on {count} cards has not answered for {ANSWER_SECONDS:.0f} s: no {cards} cards of "
                        "one machine are free, or it hangs; give --gpus-per-trial 1"
                    )
            return float(ray.get(answer))
        finally:
            ray.kill(actor)

    return measure
