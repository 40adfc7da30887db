"""`python -m tests.fuzz --count 20000 --seed 0`: feed `sweeps/run.py` with broken input and list what it does wrong.

A fault is a traceback, an exit code other than 0 and 2, more time or memory than `tests.fuzz.cases.LIMITS` allows, or a
message that is longer than 300 characters or two lines. The exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.cases import KINDS, LIMITS, make_arguments, run_case

BATCH = 200  # cases of one child process
HANGS = 40.0  # seconds of one core without a result after which a child is killed
ADDRESS_SPACE = 12 * 2**30  # of a child, so that a case that wants all memory fails alone


def main() -> int:
    """Run the fuzzer; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="number of mutated files")
    parser.add_argument("--sets", type=int, help="number of command lines with --set (0.4 of the files)")
    parser.add_argument("--plans", type=int, help="number of plans (0.15 of the files)")
    parser.add_argument("--seed", type=int, default=0)
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
    return 1 if sum(report(kind, options.seed, count) for kind, count in counts.items()) else 0


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


def report(kind: str, seed: int, count: int) -> int:
    """Run all cases of a kind, and print each fault and a summary; returns the number of faults."""
    faults: Counter[str] = Counter()
    codes: Counter[Any] = Counter()
    slowest, largest, start = 0.0, 0.0, time.monotonic()
    for index, outcome in outcomes(kind, seed, count):
        codes[outcome["code"]] += 1
        slowest, largest = max(slowest, outcome["seconds"]), max(largest, outcome["megabytes"])
        if outcome["fault"]:
            faults[outcome["fault"]] += 1
            print(f"{kind}:{index} {outcome['fault']}: {last_line(outcome['detail'])[:200]!r}", flush=True)
    limits = LIMITS[kind]
    print(
        f"{kind}: {sum(faults.values())} faults in {count} cases ({codes[0]} accepted, {codes[2]} refused); "
        f"most {slowest:.2f} s of {limits.seconds:g}, {largest:.0f} MB of {limits.megabytes:g}; "
        f"{time.monotonic() - start:.0f} s in all"
    )
    for fault, number in faults.most_common():
        print(f"  {number} {fault}")
    return sum(faults.values())


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def outcomes(kind: str, seed: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run cases in child processes, a batch in each; a child that hangs or dies costs only its case."""
    index = 0
    while index < count:
        stop = min(count, index + BATCH)
        child, pipe = start_child(kind, seed, index, stop)
        buffer, used = b"", 0.0
        while index < stop:
            ready, _, _ = select.select([pipe], [], [], 5.0)
            if not ready and cpu_seconds(child) - used < HANGS:
                continue
            received = os.read(pipe, 1 << 16) if ready else b""
            used = cpu_seconds(child)
            if not received:
                os.kill(child, signal.SIGKILL)
                fault = "died" if ready else "hangs"
                yield index, {"fault": fault, "detail": "", "code": None, "seconds": 0.0, "megabytes": 0.0}
                index += 1
                break
            buffer += received
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                yield index, json.loads(line)
                index += 1
        os.close(pipe)
        os.waitpid(child, 0)


def cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_child(kind: str, seed: int, first: int, stop: int) -> tuple[int, int]:
    """Fork a child that runs the cases from `first` to below `stop`; returns its id and the pipe of its results."""
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
            for index in range(first, stop):
                outcome = run_case(kind, make_arguments(kind, seed, index, Path(folder)))
                os.write(writer, json.dumps(asdict(outcome)).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    assert set(LIMITS) == set(KINDS)
    sys.exit(main())
