"""One trial over two cards: speed beside one card, equal losses, and a profile of the step.

    python -m benchmarks.gpu.several_cards --out DIR [--seconds 520] [--before DIR] [--only PART ...] [--tiny]

Every measurement runs in processes of its own with a time limit, and its row is printed when it ends; those of one card
run first, on both cards side by side. The table comes last, also where the time is up or a measurement fails.
`--before` names a folder with an older `lowrank` package, which is measured on two cards too, right after the present
one. `--tiny` shows on a CPU, with two processes that talk through gloo, that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed as dist

from benchmarks.measurement import PROJECT, WIDTH, Goal, Measurement, Table, environment, header, load, show
from benchmarks.training.engine_processes import Case, make_student, random_images
from lowrank.data import AugmentationSettings, Batch
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.utils import OneLineParser

RESULT = "RESULT "  # before the line with a worker's answer
WARM_UP, ROUND, PROFILED, EQUAL_STEPS = 12, 25, 10, 50  # steps
SAME_BATCH_A_CARD, SAME_TOTAL_BATCH = 1.8, 1.5  # goals: times one card
LEAST_SECONDS = 20.0  # without which a measurement is not begun
BEFORE = "profile before"
ONE_CARD_SECONDS = 200.0  # for the engines of one card, side by side; one of them compiles
COMPILED_SECONDS = 200.0  # for two cards; the second batch takes what the first one has compiled only in part
EXCHANGES = 20  # that are timed together
SERVED_STEPS = 100  # of a round
LONGEST, NAME_LETTERS = 14, 70  # kernels of a profile, and letters of their names
# Names, and whether each process sees all cards, not its own alone as in a study
LINKS = {"link": False, "link, all cards visible": True}
ENGINES = {"captured": "", "compiled": "_compiled"}  # and how their parts of the measurement end
PARTS = ("link", "wrn", "profile", "losses", "tests", "resnet9", "wrn_compiled", "resnet9_compiled")


@dataclass(frozen=True)
class Job:
    """What one measurement runs, in `processes` processes."""

    kind: str
    processes: int = 1
    network: str = "wrn_28_10"
    batch: int = 256
    engine: str = "captured"
    device: str = "cuda"
    width: float = 1.0
    share: float = 0.1  # of the separable network's parameters
    images: int = 20_480
    seconds: float = 4.0
    permutations: tuple[int, ...] = ()  # seeds; 0 leaves the order of images in a batch
    path: str = ""  # of another `lowrank` package
    sees_all: bool = False  # whether each process sees all cards, not its own alone

    @property
    def title(self) -> str:
        """How the job is named in messages."""
        return f"{self.network} {self.engine}, batch {self.batch}, {self.processes} process(es): {self.kind}"


class PermutedTrainer(Trainer):
    """Sees the images of each batch in another order; seed 0 leaves them."""

    seed = 0

    def batches(self) -> Iterator[Batch]:
        """See Trainer.batches."""
        generator = torch.Generator().manual_seed(self.seed)
        for images, labels, indices in super().batches():
            if not self.seed:
                yield images, labels, indices
                continue
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            yield images[order].contiguous(memory_format=torch.channels_last), labels[order], indices[order]


class Worker:
    """One process of a measurement."""

    def __init__(self, job: Job, group: DataParallelGroup | None):
        self.job, self.group = job, group
        self.device = f"cuda:{group.index if group and job.sees_all else 0}" if job.device == "cuda" else "cpu"
        self.notices: list[str] = []

    def trainer(self, seed: int = 0) -> PermutedTrainer:
        """The trainer of the job."""
        job = self.job
        recipe = Recipe(epochs=1000, batch_size=job.batch, lr=0.02, warmup=0.1, engine=job.engine)
        case = Case(network=job.network, device=job.device, batch=job.batch, images=job.images, seconds=job.seconds,
                    width=job.width, share=job.share)  # fmt: skip
        data = random_images(job.images)
        trainer = PermutedTrainer(
            make_student(case, data), data, recipe, augmentation=AugmentationSettings(shift=4, flip=True, cutout=8),
            order_seed=0, device=self.device, group=self.group, notify=self.notices.append,
        )  # fmt: skip
        trainer.seed = seed
        return trainer

    def wait(self) -> None:
        """Wait for the device."""
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def goes_on(self, yes: bool) -> bool:
        """The first process's answer, for all."""
        if self.group is None:
            return yes
        answer = torch.tensor([int(yes)], device=self.device)
        dist.broadcast(answer, 0)
        return bool(answer.item())

    def speed(self) -> dict[str, Any]:
        """Images a second of all processes together."""
        start = time.perf_counter()
        trainer = self.trainer()
        trainer.train_steps(limit=2)
        self.wait()
        first = time.perf_counter() - start
        trainer.train_steps(limit=WARM_UP)
        self.wait()
        rounds: list[float] = []
        steps = min(ROUND, trainer.steps_per_epoch)
        while self.goes_on(sum(rounds) < self.job.seconds):
            start = time.perf_counter()
            trainer.train_steps(limit=steps)
            self.wait()
            rounds.append(time.perf_counter() - start)
        middle = sorted(rounds)[len(rounds) // 2]
        return {
            "images/s": steps * self.job.batch / middle, "ms a step": 1000 * middle / steps, "first s": first,
            **self._ways(trainer),
        }  # fmt: skip

    def _ways(self, trainer: Trainer) -> dict[str, Any]:
        """How the steps of a trainer run, and what it had to say."""
        epoch = trainer.captured_epoch
        return {
            "recorded": epoch is not None and epoch.replay is not None,
            "compiled": epoch is not None and epoch.compiled, "notices": self.notices,
            "MB": torch.cuda.max_memory_reserved() / 1e6 if self.job.device == "cuda" else 0.0,
        }  # fmt: skip

    def compile(self) -> dict[str, Any]:
        """Take the first step, for the code that is then on disk."""
        self.trainer().train_steps(limit=1)
        return {}

    def serve(self) -> dict[str, Any]:
        """Answer each line of the standard input until one says "end", or there are no more.

        "start" comes first: train the first steps; gives their losses. "round": milliseconds a step; "profile": what a
        step does.
        """
        trainers: list[Trainer] = []
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "start": lambda: self._begin(trainers), "round": lambda: self._round(trainers[0]),
            "profile": lambda: self._profile(trainers[0]),
        }  # fmt: skip
        for line in sys.stdin:
            command = line.strip()
            if command == "end":
                break
            say(answers[command]())
        return {"MB": torch.cuda.max_memory_reserved() / 1e6 if self.job.device == "cuda" else 0.0}

    def _begin(self, trainers: list[Trainer]) -> dict[str, Any]:
        """Append a trainer and let it take its first steps."""
        start = time.perf_counter()
        trainer = self.trainer()
        trainers.append(trainer)
        trainer.train_steps(limit=EQUAL_STEPS)
        losses = trainer.step_losses[:EQUAL_STEPS].tolist()
        self.wait()
        return {"first s": time.perf_counter() - start, "losses": losses, **self._ways(trainer)}

    def _round(self, trainer: Trainer) -> dict[str, float]:
        """Milliseconds a step, in an epoch of at most `SERVED_STEPS`."""
        steps = min(SERVED_STEPS, trainer.steps_per_epoch)
        trainer.train_steps(limit=min(WARM_UP, steps))  # the card was another process's
        self.wait()
        start = time.perf_counter()
        trainer.train_steps(limit=steps)
        self.wait()
        return {"ms a step": 1000 * (time.perf_counter() - start) / steps}

    def losses(self) -> dict[str, Any]:
        """The first losses of a run for each order of images."""
        runs: list[list[float]] = []
        for seed in self.job.permutations:
            trainer, losses = self.trainer(seed), torch.zeros(0)
            while len(losses) < EQUAL_STEPS:
                limit = min(EQUAL_STEPS - len(losses), trainer.steps_per_epoch)
                trainer.train_steps(limit=limit)
                losses = torch.cat([losses, trainer.step_losses[:limit].cpu()])
                trainer.epoch += 1
            runs.append(losses.tolist())
        return {"losses": runs, "notices": self.notices}

    def profile(self) -> dict[str, Any]:
        """Launches, time of exchanges and idle share of some steps."""
        trainer = self.trainer()
        trainer.train_steps(limit=WARM_UP)
        self.wait()
        return {**self._profile(trainer), "notices": self.notices}

    def _profile(self, trainer: Trainer) -> dict[str, Any]:
        steps = trainer.endless_steps(wait=False)
        for _ in range(3):
            next(steps)
        self.wait()
        on_card = self.job.device == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if on_card else []
        with torch.profiler.profile(activities=activities) as profiler:
            start = time.perf_counter()
            for _ in range(PROFILED):
                next(steps)
            self.wait()
            seconds = time.perf_counter() - start
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            events = json.loads(Path(file.name).read_text())["traceEvents"]
        return {
            **summary(events, PROFILED), "ms a step": 1000 * seconds / PROFILED, "longest": longest(events, PROFILED)
        }  # fmt: skip

    def link(self) -> dict[str, Any]:
        """Microseconds of exchanges of several sizes between the processes."""
        from lowrank.kernels.global_norm import gather_parts  # an older package has none

        on_card, times = self.job.device == "cuda", dict[str, Any]()
        for kibibytes in (4, 16, 1024, 16384) if on_card else (4, 1024):
            tensor = torch.ones(2, kibibytes * 128, device=self.device)
            times |= self._exchange_times(f"sum of {kibibytes} KiB", lambda tensor=tensor: dist.all_reduce(tensor))
            times |= self._exchange_times(f"gather of {kibibytes} KiB", lambda tensor=tensor: gather_parts(tensor))
        return times

    def _exchange_times(self, name: str, exchange: Callable[[], Any]) -> dict[str, float]:
        """Microseconds of an exchange that is called, and of one that is recorded in a graph."""
        ways: dict[str, Callable[[], Any]] = {name: lambda: [exchange() for _ in range(EXCHANGES)]}
        ways[name]()
        self.wait()
        if self.job.device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                ways[name]()
            ways[f"{name}, recorded"] = graph.replay
        times = {}
        for way, run in ways.items():
            rounds = []
            for _ in range(10 if self.job.device == "cuda" else 2):
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                rounds.append(time.perf_counter() - start)
            times[way] = 1e6 * sorted(rounds)[len(rounds) // 2] / EXCHANGES
        return times


def busy(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(intervals):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def is_exchange(kernel: str) -> bool:
    """Whether a kernel exchanges something between the cards."""
    return "nccl" in kernel.lower()


def longest(events: Sequence[Mapping[str, Any]], steps: int) -> dict[str, list[float]]:
    """The kernels that take most of a step: how often each runs, and ms in all."""
    sums: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            one = sums.setdefault(event["name"][:NAME_LETTERS], [0.0, 0.0])
            one[0] += 1 / steps
            one[1] += event["dur"] / 1000 / steps
    return dict(sorted(sums.items(), key=lambda item: -item[1][1])[:LONGEST])


def summary(events: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Sum up a trace of torch's profiler, for each step; times in ms.

    `exchanging alone` is the time in which the card runs exchanges and nothing else; `idle` is the share of the time
    from the first kernel to the last in which it runs nothing.
    """
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in kernels]
    exchanges = [span for event, span in zip(kernels, spans, strict=True) if is_exchange(event["name"])]
    others = [span for event, span in zip(kernels, spans, strict=True) if not is_exchange(event["name"])]
    calls = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    waits = [name for name in calls if "Synchronize" in name]
    gloo = [event for event in events if "gloo:" in event.get("name", "") and "dur" in event]
    length = max((stop for _, stop in spans), default=0.0) - min((begin for begin, _ in spans), default=0.0)
    return {
        "launches": sum("Launch" in name for name in calls) / steps, "kernels": len(kernels) / steps,
        "exchanges": (len(exchanges) or len(gloo)) / steps, "waits": len(waits) / steps,
        "exchange ms": (busy(exchanges) or sum(event["dur"] for event in gloo)) / 1000 / steps,
        "exchanging alone ms": (busy(spans) - busy(others)) / 1000 / steps,
        "idle %": 100 * (1 - busy(spans) / length) if length else None,
    }  # fmt: skip


def work(arguments: Sequence[str]) -> None:
    """Be a worker: a job, its number and the file by which the processes find each other."""
    fields, index, store = json.loads(arguments[0]), int(arguments[1]), arguments[2]
    job = Job(**{**fields, "permutations": tuple(fields["permutations"])})
    torch.set_num_threads(1 if job.device == "cpu" else 4)
    group = None
    if job.processes > 1:
        group = DataParallelGroup(index, job.processes)
        card = torch.device("cuda", index if job.sees_all else 0) if job.device == "cuda" else None
        if card is not None:
            torch.cuda.set_device(card)
        dist.init_process_group(
            "nccl" if job.device == "cuda" else "gloo", store=dist.FileStore(store, job.processes), rank=index,
            world_size=job.processes, device_id=card,
        )  # fmt: skip
    say(getattr(Worker(job, group), job.kind)())
    os._exit(0)  # graphs with exchanges inside need not be taken down in any order


def say(answer: Mapping[str, Any]) -> None:
    """Send an answer."""
    print(f"{RESULT}{json.dumps(answer)}", flush=True)


class Runner:
    """Runs jobs until the time is up, and prints what comes out."""

    def __init__(self, out: Path, seconds: float):
        self.out, self.until = out, time.monotonic() + seconds
        self.record: dict[str, Any] = {}

    def run(self, limit: float, *jobs: tuple[str, Job]) -> list[dict[str, Any] | None]:
        """Run jobs side by side, each on cards of its own; None for one that fails, takes too long or is not begun."""
        limit = min(limit, self.until - time.monotonic())
        if limit < LEAST_SECONDS:
            print(f"left out, the time is up: {', '.join(name for name, _ in jobs)}", flush=True)
            return [None] * len(jobs)
        started, cards = [], 0
        for name, job in jobs:
            started.append(start_workers(self.out, name, job, cards))
            cards += job.processes
        deadline, begun = time.monotonic() + limit, time.monotonic()
        answers = [self._wait(name, processes, deadline) for (name, _), processes in zip(jobs, started, strict=True)]
        for (name, job), answer in zip(jobs, answers, strict=True):
            self.record[name] = {"job": asdict(job), "answer": answer, "seconds": time.monotonic() - begun}
            shown = {key: value for key, value in (answer or {"failed": True}).items() if key != "losses"}
            print(f"{name} ({time.monotonic() - begun:.0f} s): {json.dumps(shown)}", flush=True)
        (self.out / "several_cards.json").write_text(json.dumps(self.record, indent=1) + "\n")
        return answers

    def _wait(self, name: str, processes: list[subprocess.Popen[str]], deadline: float) -> dict[str, Any] | None:
        try:
            for process in processes:
                process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"{name}: not done in time", flush=True)
        for process in processes:
            kill(process)
        answers = read_answers(log_path(self.out, name, 0))
        if not answers:
            print_ends(self.out, name, len(processes))
            return None
        return answers[-1]

    def tests(self, limit: float, marker: str, expression: str) -> str:
        """Run the tests of two cards; returns pytest's last line."""
        limit = min(limit, self.until - time.monotonic())
        if limit < LEAST_SECONDS:
            return "left out, the time is up"
        log = self.out / "tests.log"
        # pytest-benchmark, where it is installed, warns beside xdist, and warnings are errors
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark", "-rA", "-m", marker,
                   "-k", expression, "tests/lowrank/training/test_data_parallel.py"]  # fmt: skip
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "PYTHONPATH": search_path(),
                "NCCL_NVLS_ENABLE": "0"}, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        print(*(line for line in lines if "::" in line or line.startswith("E  ")), sep="\n", flush=True)
        return lines[-1] if lines else "no output"


def log_path(out: Path, name: str, index: int) -> Path:
    """Where a worker's output is."""
    return out / f"{name.replace(' ', '_')}-{index}.log"


def start_workers(out: Path, name: str, job: Job, first_card: int) -> list[subprocess.Popen[str]]:
    """Start the processes of a job, each with a log; a job that serves reads commands."""
    store = tempfile.mktemp(prefix="several-cards-")
    processes = []
    for index in range(job.processes):
        environment_ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [job.path, search_path()]))}
        environment_ |= {"NCCL_NVLS_ENABLE": "0", "PYTHONWARNINGS": "ignore"}
        own_card = job.device == "cuda" and not job.sees_all
        environment_ |= {"CUDA_VISIBLE_DEVICES": str(first_card + index)} if own_card else {}
        with log_path(out, name, index).open("w") as log:
            processes.append(subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.gpu.several_cards", "--worker", json.dumps(asdict(job)),
                 str(index), store], cwd=out, env=environment_, stdout=log, stderr=subprocess.STDOUT, text=True,
                stdin=subprocess.PIPE if job.kind == "serve" else subprocess.DEVNULL, start_new_session=True,
            ))  # fmt: skip
    return processes


def read_answers(log: Path) -> list[dict[str, Any]]:
    """The answers of a worker so far."""
    lines = log.read_text().splitlines(keepends=True)
    return [json.loads(line.removeprefix(RESULT)) for line in lines if line.startswith(RESULT) and line.endswith("\n")]


def print_ends(out: Path, name: str, processes: int) -> None:
    """Print the last lines of the logs of a job that has failed."""
    for index in range(processes):
        lines = log_path(out, name, index).read_text().splitlines()
        last = [line for line in lines if line.strip() and not line.startswith(RESULT)][-8:]
        print(f"{name}, process {index}, last lines: " + " | ".join(last)[-1200:], flush=True)


def kill(process: subprocess.Popen[str]) -> None:
    """End a worker and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def search_path() -> str:
    """Where workers find this project and whatever was beside it."""
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


class Speeds:
    """Speeds of one card beside those of two at several total batches, each with its goal.

    Args:
        runner: runs the jobs.
        base: at the batch of one card.
        batches: total batches of two cards, and how many times one card's speed each should have.
        engines: that will be measured.
        before: folder with an older package, whose speed on two cards is measured too.
    """

    def __init__(
        self, runner: Runner, base: Job, batches: Mapping[int, float], engines: Sequence[str], before: Path | None
    ):  # fmt: skip
        self._runner, self._base, self._batches, self._engines = runner, base, batches, engines
        self._before = before
        self._alone: dict[str, dict[str, Any] | None] = {}
        self.rows: list[dict[str, Any]] = []

    def one_card_jobs(self) -> list[tuple[str, Job]]:
        """One for each engine, with its name."""
        return [(f"{self._base.network} one {engine}", replace(self._base, engine=engine)) for engine in self._engines]

    def take_one_card(self, job: Job, answer: dict[str, Any] | None) -> None:
        """Take the answer of one of `one_card_jobs`, beside which two cards are shown."""
        self._alone[job.engine] = answer
        self.rows.append(row(self._base, job.engine, 1, job.batch, answer, None, None))

    def measure(self, engine: str, limit: float) -> None:
        """Measure two cards with an engine."""
        base = self._base
        for batch, goal in self._batches.items():
            job = replace(base, processes=2, batch=batch, engine=engine)
            name = f"{base.network} two {engine} {batch}"
            (two,) = self._runner.run(limit, (name, job))
            self.rows.append(row(base, engine, 2, batch, two, self._alone[engine], goal))
            if self._before is not None:
                (two,) = self._runner.run(limit, (f"{name} before", replace(job, path=str(self._before.resolve()))))
                self.rows.append({**row(base, engine, 2, batch, two, self._alone[engine], None), "package": "before"})


def measure_one_card(runner: Runner, several: Sequence[Speeds]) -> None:
    """Measure one card with each network and engine that is asked for, two of them side by side."""
    jobs = [(speeds, name, job) for speeds in several for name, job in speeds.one_card_jobs()]
    for first in range(0, len(jobs), 2):
        pair = jobs[first : first + 2]
        answers = runner.run(ONE_CARD_SECONDS, *((name, job) for _, name, job in pair))
        for (speeds, _, job), answer in zip(pair, answers, strict=True):
            speeds.take_one_card(job, answer)


def row(
    base: Job, engine: str, cards: int, batch: int, answer: Mapping[str, Any] | None, one: Mapping[str, Any] | None,
    goal: float | None,
) -> dict[str, Any]:  # fmt: skip
    """A row of the table of speeds."""
    speed, alone = ((found or {}).get("images/s") for found in (answer, one))
    return {
        "network": base.network, "steps": engine, "cards": cards, "batch": batch, "images/s": speed,
        "ms a step": (answer or {}).get("ms a step"), "times one card": speed / alone if speed and alone else None,
        "goal": goal, "ran": _ways(answer) if answer else None, "package": "now",
    }  # fmt: skip


def _ways(answer: Mapping[str, Any]) -> str:
    """How the steps ran, which is not always what was asked for."""
    return ", ".join(way for way in ("compiled", "recorded") if answer.get(way)) or "plain"


def equal_losses(runner: Runner, base: Job) -> list[dict[str, Any]]:
    """How far the losses of two cards are from those of one, beside one card's with images in another order."""
    job = replace(base, kind="losses")
    first, second = runner.run(
        100, ("losses one a", replace(job, permutations=(0, 1))), ("losses one b", replace(job, permutations=(2, 3)))
    )
    (two,) = runner.run(80, ("losses two", replace(job, processes=2, permutations=(0,))))
    if first is None or second is None or two is None:
        return []
    plain, *permuted = (*first["losses"], *second["losses"])
    runs = [(f"one card, permuted {number}", losses) for number, losses in enumerate(permuted, start=1)]
    return [
        {
            "run": name,
            "largest ppm": 1e6 * max(differences),
            "mean ppm": 1e6 * sum(differences) / len(differences),
            "first 5 ppm": 1e6 * max(differences[:5]),
            "last": losses[-1],
        }
        for name, losses in (*runs, ("two cards", two["losses"][0]))
        for differences in [[abs(loss - own) / own for loss, own in zip(losses, plain, strict=True)]]
    ]


def profiles(runner: Runner, base: Job, before: Path | None) -> list[dict[str, Any]]:
    """Profiles of one card's step, of two cards' and of two cards' with an older package."""
    job = replace(base, kind="profile")
    runs: list[tuple[str, Job]] = [("profile two", replace(job, processes=2))]
    if before is not None:
        runs.append((BEFORE, replace(job, processes=2, path=str(before.resolve()))))
    runs.append(("profile one", job))
    answers = [(name, *runner.run(60, (name, each))) for name, each in runs]
    return [{"run": name, **answer} for name, answer in answers if answer is not None]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.several_cards", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text, JSON and logs")
    parser.add_argument("--seconds", type=float, default=520.0, help="after which no measurement is begun or goes on")
    parser.add_argument("--before", type=Path, metavar="DIR", help="folder with an older `lowrank`, to be measured")
    parser.add_argument(
        "--same-total", action="store_true", help="WRN-28-10 on two cards at the batch of one card alone"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        help="parts to run, in this order (all; on a CPU none that compiles, for that takes minutes)",
    )
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU, two processes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, then print the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:
        work(arguments[1:])
    args = make_parser().parse_args(arguments)
    args.only = args.only or [part for part in PARTS if not (args.tiny and part.endswith(ENGINES["compiled"]))]
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    around, runner = environment(), Runner(args.out, args.seconds)
    tiny = {"device": "cpu", "width": 0.0625, "share": 0.7, "images": 640, "seconds": 1.0} if args.tiny else {}
    wrn = replace(Job("speed"), **{**tiny, "network": "wrn_10_1", "width": 1.0, "batch": 16} if args.tiny else {})
    resnet9 = replace(Job("speed", network="resnet9", batch=64 if args.tiny else 512), **tiny)
    engines = {
        name: [engine for engine, ending in ENGINES.items() if f"{name}{ending}" in args.only]
        for name in ("wrn", "resnet9")
    }
    batches = {wrn.batch: SAME_TOTAL_BATCH} | ({} if args.same_total else {2 * wrn.batch: SAME_BATCH_A_CARD})
    wide = Speeds(runner, wrn, batches, engines["wrn"], args.before)
    narrow = Speeds(runner, resnet9, {resnet9.batch: 1.0}, engines["resnet9"], None)
    notes: list[str] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    parts: dict[str, Callable[[], Any]] = {
        "link": lambda: [
            runner.run(45, (name, replace(wrn, kind="link", processes=2, sees_all=sees_all)))
            for name, sees_all in LINKS.items() if not (sees_all and args.tiny)
        ],
        "wrn": lambda: wide.measure("captured", 70),
        "resnet9": lambda: narrow.measure("captured", 60),
        "wrn_compiled": lambda: wide.measure("compiled", COMPILED_SECONDS),
        "resnet9_compiled": lambda: narrow.measure("compiled", COMPILED_SECONDS),
        "losses": lambda: tables.update(losses=equal_losses(runner, wrn)),
        "profile": lambda: tables.update(profile=profiles(runner, wrn, args.before)),
        "tests": lambda: notes.append("tests of two cards: " + runner.tests(
            150, *(("not gpu", "have_the_losses_of_one") if args.tiny else ("gpu", "two_gpus and not compiled"))
        )),
    }  # fmt: skip
    measure_one_card(runner, (wide, narrow))
    for part in args.only:
        parts[part]()
    return conclude(args, around, [*wide.rows, *narrow.rows], tables, notes)


def conclude(
    args: argparse.Namespace, around: dict[str, Any], speeds: list[dict[str, Any]],
    tables: Mapping[str, list[dict[str, Any]]], notes: list[str],
) -> int:  # fmt: skip
    """Print the tables last, and keep them; returns 1 where nothing was measured."""
    goals = [
        Goal(what=f"{row['network']} {row['steps']}, batch {row['batch']}, {row['goal']:g} times as fast as one card:",
             limit=1 / row["goal"], found=1 / row["times one card"], unit="of its time an image")
        for row in speeds if row["goal"] is not None and row["times one card"] is not None
    ]  # fmt: skip
    titles = {"losses": f"Losses of {EQUAL_STEPS} steps: relative differences from one card's",
              "profile": f"A step, mean of {PROFILED} on the first card"}  # fmt: skip
    shown = [Table(title="One trial on one card and on two", columns=tuple(speeds[0]), rows=speeds)] if speeds else []
    for name, rows in tables.items():
        columns = tuple(column for column in rows[0] if column not in ("notices", "longest")) if rows else ()
        shown += [Table(title=titles[name], columns=columns, rows=rows)] if rows else []
    record = Measurement(
        name="several_cards", settings={"device": "cpu" if args.tiny else "cuda", "tiny": args.tiny}, tables=shown,
        goals=goals, notes=notes,
    )  # fmt: skip
    after = load()
    content = {**record.to_json(), "environment": {**around, "load_after": after}}
    (args.out / "several_cards_table.json").write_text(json.dumps(content, indent=1) + "\n")
    line = header(around, record.settings, after)
    with (args.out / "several_cards.txt").open("w") as file:
        show(record, line, Console(file=file, width=WIDTH))
    show(record, line)
    return 0 if shown else 1


if __name__ == "__main__":
    sys.exit(main())
