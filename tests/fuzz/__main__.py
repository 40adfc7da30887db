"""`python -m tests.fuzz --count 20000 --seed 0`: feed `sweeps/run.py` with broken input and list what it does wrong.

A fault is a traceback, an exit code other than 0 and 2, more time or memory than `tests.fuzz.cases.LIMITS` allows, or a
message that is longer than 300 characters or two lines. The exit code is 1 if there was a fault.

`--processes N` runs N cases at a time; the cases and their limits, which count the time of one core, stay the same.
`--log FILE` keeps the outcome of each case, and the same command on the same commit goes on from there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lowrank.utils import OneLineParser, commit
from tests.fuzz.cases import KINDS, LIMITS, make_arguments, run_case

BATCH = {"file": 200, "set": 200, "plan": 10}  # cases of one child process
HANGS = 40.0  # seconds of one core without a result after which a child is killed
ADDRESS_SPACE = 12 * 2**30  # of a child, so that a case that wants all memory fails alone


def main() -> int:
    """Run the fuzzer; returns 1 if there was a fault."""
    parser = OneLineParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="number of mutated files")
    parser.add_argument("--sets", type=int, help="number of command lines with --set (0.4 of the files)")
    parser.add_argument("--plans", type=int, help="number of plans (0.15 of the files)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="number of cases that run at a time")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep outcomes, and take those that are there already")
    parser.add_argument("--show", metavar="KIND:NUMBER", help="run one case alone, and print its input and its outcome")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.show:
        return show(options.show, options.seed)
    counts = {
        "file": options.count,
        "set": int(options.count * 0.4) if options.sets is None else options.sets,
        "plan": int(options.count * 0.15) if options.plans is None else options.plans,
    }
    log = Log(options.log, options.seed)
    return 1 if sum(report(kind, count, log, options.processes) for kind, count in counts.items()) else 0


def show(name: str, seed: int) -> int:
    """Run one case in this process and print it."""
    kind, _, number = name.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        arguments = make_arguments(kind, seed, int(number), Path(folder))
        print(*(repr(argument)[:2000] for argument in arguments))
        if kind == "file":
            print(Path(arguments[1]).read_bytes()[:4000].decode(errors="replace"))
        outcome = run_case(kind, arguments)
    print(
        f"{outcome.fault or 'no fault'}: exit code {outcome.code}, {outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB"
    )
    print(outcome.detail)
    return 1 if outcome.fault else 0


class Log:
    """The outcomes of a seed's cases, by kind and number; with a file they outlive the process."""

    def __init__(self, path: Path | None, seed: int):
        """Read the outcomes that the file has.

        Args:
            path: of the file, JSON lines; None keeps outcomes in memory alone.
            seed: of the cases; outcomes of another seed or of other code are passed over.
        """
        self.path, self.origin = path, {"seed": seed, "commit": commit()}
        self.outcomes: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in KINDS}
        for line in path.read_bytes().split(b"\n")[:-1] if path is not None and path.exists() else ():
            entry = json.loads(line)
            if self.origin.items() <= entry.items():
                self.outcomes[entry["kind"]][entry["index"]] = entry["outcome"]

    def add(self, kind: str, index: int, outcome: dict[str, Any]) -> None:
        """Keep an outcome."""
        self.outcomes[kind][index] = outcome
        if self.path is not None:
            entry = {**self.origin, "kind": kind, "index": index, "outcome": outcome}
            with self.path.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")


def report(kind: str, count: int, log: Log, processes: int) -> int:
    """Run the cases of a kind that the log lacks, and print each fault and a summary; returns the number of faults."""
    start = time.monotonic()
    missing = [index for index in range(count) if index not in log.outcomes[kind]]
    for index, outcome in run_cases(kind, log.origin["seed"], missing, processes):
        log.add(kind, index, outcome)
        if outcome["fault"]:
            print(fault_line(kind, index, outcome), flush=True)
    outcomes = [log.outcomes[kind][index] for index in range(count)]
    faults = Counter(outcome["fault"] for outcome in outcomes if outcome["fault"])
    codes = Counter(outcome["code"] for outcome in outcomes)
    slowest = max((outcome["seconds"] for outcome in outcomes), default=0.0)
    largest = max((outcome["megabytes"] for outcome in outcomes), default=0.0)
    limits = LIMITS[kind]
    print(
        f"{kind}: {faults.total()} faults in {count} cases ({codes[0]} accepted, {codes[2]} refused); "
        f"most {slowest:.2f} s of {limits.seconds:g}, {largest:.0f} MB of {limits.megabytes:g}; "
        f"{sum(outcome['seconds'] for outcome in outcomes):.0f} s of one core, {time.monotonic() - start:.0f} s in all",
        flush=True,
    )
    for fault, number in faults.most_common():
        print(f"  {number} {fault}")
    return faults.total()


def fault_line(kind: str, index: int, outcome: dict[str, Any]) -> str:
    """Name a case, its fault and the last line of its message."""
    return f"{kind}:{index} {outcome['fault']}: {last_line(outcome['detail'])[:200]!r}"


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def run_cases(
    kind: str, seed: int, indices: Sequence[int], processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:  # fmt: skip
    """Run cases, some at a time; gives their numbers and outcomes as they end."""
    size = BATCH[kind]
    batches = [(kind, seed, indices[first : first + size]) for first in range(0, len(indices), size)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for outcomes in pool.imap_unordered(run_batch, batches):
            yield from outcomes


def run_batch(batch: tuple[str, int, Sequence[int]]) -> list[tuple[int, dict[str, Any]]]:
    """Run cases in a child process; one that hangs or dies costs only its case, and another child goes on."""
    kind, seed, indices = batch
    outcomes: list[tuple[int, dict[str, Any]]] = []
    while len(outcomes) < len(indices):
        child, pipe = start_child(kind, seed, indices[len(outcomes) :])
        buffer, used = b"", 0.0
        while len(outcomes) < len(indices):
            ready, _, _ = select.select([pipe], [], [], 5.0)
            if not ready and cpu_seconds(child) - used < HANGS:
                continue
            received = os.read(pipe, 1 << 16) if ready else b""
            used = cpu_seconds(child)
            if not received:
                os.kill(child, signal.SIGKILL)
                fault = "died" if ready else "hangs"
                outcome = {"fault": fault, "detail": "", "code": None, "seconds": 0.0, "megabytes": 0.0}
                outcomes.append((indices[len(outcomes)], outcome))
                break
            buffer += received
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                outcomes.append((indices[len(outcomes)], json.loads(line)))
        os.close(pipe)
        os.waitpid(child, 0)
    return outcomes


def cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_child(kind: str, seed: int, indices: Sequence[int]) -> tuple[int, int]:
    """Fork a child that runs cases; returns its id and the pipe of its results."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for index in indices:
                outcome = run_case(kind, make_arguments(kind, seed, index, Path(folder)))
                os.write(writer, json.dumps(asdict(outcome)).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    assert set(LIMITS) == set(KINDS)
    sys.exit(main())
