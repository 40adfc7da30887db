"""Training of several trials that share a device: images a second in all, and how soon a new setting trains.

Every trial is a process with a trainer of its own, as in a sweep, on images that lie on the device; epochs without
evaluation. The processes stay from row to row: one, two and more of them train at a time. `images/s` is of all
together, `first s` the time from nothing to a trial's second step, `next s` from a setting to the next one's second.

Steps: torch (a straightforward loop in torch, without augmentation), plain (lowrank.training.engine.step), captured and
compiled (lowrank.training.engine.cuda_graph). Sharing: processes (they take turns on the GPU) and mps (NVIDIA's
multi-process service, started and ended here: their kernels run side by side). The limit is set by memory traffic:
benchmarks/training/step_traffic.py.

On a GPU: random images of CIFAR's shape, ResNet-9 at batch 512 and WRN-28-10 at batch 128. On a CPU: the digits, batch
32, a process on each core. `--network`, `--way`, `--gpu-sharing` choose among these, and in which order; `--seconds`
says when all must be over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.measurement import Measurement, Options, Table
from benchmarks.training.engine_processes import EQUAL_STEPS, Case, Processes, TooLargeError
from sweeps.resources.mps import MPS, PROCESSES, MpsService, MpsUnavailableError

WAYS = {"cuda": ("compiled", "captured", "plain", "torch"), "cpu": ("torch", "plain", "compiled")}
SHARING = {"cuda": (PROCESSES, MPS), "cpu": (PROCESSES,)}
COUNTS = {"cuda": (1, 2, 4, 8), "cpu": (1, 2)}
IN_ALL = 270.0  # seconds, unless --seconds says otherwise: compilation is the longest
LEAST = 15.0  # seconds that must be left for another way of stepping
COLUMNS = ("network", "batch", "sharing", "steps", "trials", "images/s", "of limit", "first s", "next s", "MB each")


def cases(options: Options) -> list[Case]:
    """ResNet-9, and on a GPU WRN-28-10; small and short when `quick`."""
    if options.device == "cpu":
        seconds = 1.0 if options.quick else 8.0
        chosen = [Case(network="resnet9", device="cpu", batch=32, images=None, seconds=seconds,
                      width=0.5 if options.quick else 1.0)]  # fmt: skip
    else:
        seconds = 1.0 if options.quick else 4.0
        one = Case(network="resnet9", device="cuda", batch=512, images=20_480, seconds=seconds)
        chosen = [one, replace(one, network="wrn_28_10", batch=128, images=5_120)]
        chosen = chosen[:1] if options.quick and not options.networks else chosen
    return [case for case in chosen if not options.networks or case.network in options.networks]


def difference(losses: list[float], plain: list[float], way: str) -> str:
    """How far two runs' losses are apart, in words."""
    tensor, plain_tensor = Tensor(losses), Tensor(plain)
    gap = (tensor - plain_tensor).abs()
    return (
        f"{way} against plain, {EQUAL_STEPS} steps: largest difference of a loss {gap.max():.2g}, relative "
        f"{(gap / plain_tensor).max():.2g}; last losses {tensor[-1]:.4f} and {plain_tensor[-1]:.4f}"
    )


class Run:
    """One run of the benchmark: rows and notes as they come, each printed at once."""

    def __init__(self, options: Options):
        self.device, self.until = options.device, time.monotonic() + (options.seconds or IN_ALL)
        self.ways, self.sharing = options.ways or WAYS[self.device], options.sharing or SHARING[self.device]
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def say(self, note: str) -> None:
        """Print a remark and keep it."""
        self.notes.append(note)
        print(note, flush=True)

    def network(self, case: Case) -> None:
        """All ways of sharing and of stepping of one network."""
        limit: float | None = None
        for sharing in self.sharing:
            with self._processes(sharing) as processes:
                if processes is None:
                    continue
                if self.device == "cuda" and limit is None:
                    limit = self._limit(processes, case)
                for way in self.ways:
                    self._way(processes, replace(case, way=way), sharing, limit)

    @contextmanager
    def _processes(self, sharing: str) -> Iterator[Processes | None]:
        """Processes that share the device in this way; None where the machine has no such way."""
        service = None
        try:
            service = MpsService() if sharing == MPS else None
        except MpsUnavailableError as error:
            self.say(f"left out: {sharing}: {error}")
            yield None
            return
        processes = Processes(self.device, COUNTS[self.device][-1], self.until, service and service.environment)
        try:
            yield processes
        finally:
            processes.close()
            if service is not None:
                service.close()

    def _limit(self, processes: Processes, case: Case) -> float:
        """Images a second at which the device's memory is the limit."""
        moved, bandwidth = processes(range(1), "limit", case)[0]
        self.say(
            f"{case.network}: limit by memory traffic {bandwidth / moved:,.0f} images/s: "
            f"{moved / 1e6:.2f} MB an image, copies at {bandwidth / 1e12:.3g} TB/s"
        )
        return bandwidth / moved

    def _way(self, processes: Processes, case: Case, sharing: str, limit: float | None) -> None:
        what = f"{case.network}, {sharing}, {case.way}"
        if self.until - time.monotonic() < LEAST:
            self.say(f"left out for want of time: {what}")
            return
        try:
            self._measure(processes, case, sharing, limit)
            if case.way not in ("plain", "torch") and sharing == PROCESSES:
                plain = processes(range(1), "losses", replace(case, way="plain"))[0]
                self.say(difference(processes(range(1), "losses", case)[0], plain, f"{case.network}, {case.way}"))
        except (TimeoutError, TooLargeError) as error:
            self.say(f"{what}: no more rows: {error}")

    def _measure(self, processes: Processes, case: Case, sharing: str, limit: float | None) -> None:
        """The rows of one network, way of sharing and way of stepping."""
        firsts = processes(range(1), "prepare", case)  # compiles for all of them
        following = processes(range(1), "following", case)[0]
        for count in COUNTS[case.device]:
            firsts += processes(range(len(firsts), count), "prepare", case)
            speeds, held = zip(*processes(range(count), "train", case), strict=True)
            total = sum(speeds)
            self.rows.append({
                "network": case.network, "batch": case.batch, "sharing": sharing, "steps": case.way, "trials": count,
                "images/s": total, "of limit": total / limit if limit else None, "first s": max(firsts[:count]),
                "next s": following, "MB each": max(held) if self.device == "cuda" else None,
            })  # fmt: skip
            print(self.rows[-1], flush=True)


def run(options: Options) -> Measurement:
    """Every network and way; what there is no time for, no room or no service is said to be left out."""
    run = Run(options)
    for case in cases(options):
        run.network(case)
    return Measurement(
        name="engine", settings={"device": options.device, "seed": 0, "seconds a row": cases(options)[0].seconds},
        tables=[Table(title="Training alone, several trials on one device", columns=COLUMNS, rows=run.rows)],
        notes=run.notes,
    )  # fmt: skip
