"""`python -m tests.faults [NAME ...]`: inject every fault into real studies, several times, and print what it cost.

A study of a grid must give the answer that it gives undisturbed, to the last bit; in a search every trial, run again
alone, must give the numbers on record. Moments and victims are drawn from a seed that is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measurement import Measurement, Table, environment, header, load, show
from lowrank.utils import OneLineParser
from tests.faults.catalogue import ALL_FAULTS
from tests.faults.injections import Fault
from tests.faults.outcome import Outcome, inject, undisturbed
from tests.faults.scene import Question
from tests.support.clusters import Machines, machines

COLUMNS = (
    "fault", "killed or broken", "times", "studies", "trials", "lost", "doubled", "epochs repeated", "at most",
    "at most s", "grid identical", "alone identical",
)  # fmt: skip
WIDTH = 200
ATTEMPTS = 3  # studies for a fault; one may be over before the fault was injected as often as asked


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(prog="python -m tests.faults", description="Inject faults into studies, print what it cost.")
    parser.add_argument("names", nargs="*", choices=[[], *(fault.name for fault in ALL_FAULTS)], metavar="NAME",
                        help=f"of {', '.join(fault.name for fault in ALL_FAULTS)} (all)")  # fmt: skip
    parser.add_argument(
        "--times", type=int, default=5, metavar="N", help="how often each fault is injected, at least (5)"
    )
    parser.add_argument("--seed", type=int, help="of moments and victims (drawn)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    return parser


class Run:
    """Injects faults one after the other, on one cluster as long as they do not destroy it."""

    def __init__(self, folder: Path, cluster: Machines | None, seed: int, times: int):
        self.folder, self.cluster, self.times = folder, cluster, times
        self.rng = random.Random(seed)
        self.expected: dict[str, dict[str, Any]] = {}
        self.studies = 0

    def fault(self, fault: Fault) -> list[tuple[Question, Outcome]]:
        """Run studies of each of its questions until the fault was injected often enough."""
        outcomes = []
        share, remainder = divmod(self.times, len(fault.questions))
        for index, question in enumerate(fault.questions):
            remaining = share + (index < remainder)
            for _ in range(ATTEMPTS):
                if remaining <= 0:
                    break
                outcome = self._study(fault, question, remaining)
                remaining -= outcome.injections
                outcomes.append((question, outcome))
        return outcomes

    def _study(self, fault: Fault, question: Question, times: int) -> Outcome:
        begun = time.monotonic()
        expected = self._expected(fault, question)
        outcome = inject(fault, question, self._new_folder(), self.rng, times, expected, self.cluster)
        verdict = "; ".join(outcome.faults) or "nothing lost, doubled or wrong"
        seconds = time.monotonic() - begun
        print(
            f"{fault.name}, {question.name}: injected {outcome.injections} times; {verdict}; {seconds:.0f} s",
            flush=True,
        )
        return outcome

    def _expected(self, fault: Fault, question: Question) -> dict[str, Any] | None:
        if "grid" not in question.name:
            return None
        expected = fault.expected or question
        if expected.name not in self.expected:
            self.expected[expected.name] = undisturbed(expected, self._new_folder(), fault, self.cluster)
        return self.expected[expected.name]

    def _new_folder(self) -> Path:
        self.studies += 1
        folder = self.folder / str(self.studies)
        folder.mkdir()
        return folder


def row(fault: Fault, results: list[tuple[Question, Outcome]]) -> dict[str, Any]:
    """Make a line of the table."""
    outcomes = [outcome for _, outcome in results]
    repeated = [repetition for outcome in outcomes for repetition in outcome.repeated]
    grids = [outcome for question, outcome in results if "grid" in question.name]
    searches = [outcome for question, outcome in results if "grid" not in question.name]
    return {
        "fault": fault.name, "killed or broken": fault.what, "times": sum(outcome.injections for outcome in outcomes),
        "studies": len(results), "trials": sum(outcome.trials for outcome in outcomes),
        "lost": sum(len(outcome.lost) for outcome in outcomes),
        "doubled": sum(len(outcome.doubled) for outcome in outcomes),
        "epochs repeated": sum(epochs for epochs, _ in repeated),
        "at most": max((epochs for epochs, _ in repeated), default=0),
        "at most s": round(max((seconds for _, seconds in repeated), default=0.0), 1),
        "grid identical": _share(grids), "alone identical": _share(searches),
    }  # fmt: skip


def _share(outcomes: list[Outcome]) -> str:
    trials = sum(outcome.trials for outcome in outcomes)
    return f"{trials - sum(len(outcome.wrong) for outcome in outcomes)} of {trials}" if outcomes else "-"


def main(arguments: list[str] | None = None) -> int:
    """Inject, print; returns 1 when something was lost, doubled, repeated beyond the limit or wrong."""
    options = make_parser().parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    chosen = [fault for fault in ALL_FAULTS if not options.names or fault.name in options.names]
    machine, rows, notes, details, good = environment(), [], [], {}, True
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ExitStack() as stack:
        shared = any(fault.clustered and fault.shared for fault in chosen)
        cluster = stack.enter_context(machines()) if shared else None
        run = Run(Path(folder), cluster, seed, options.times)
        for fault in chosen:
            if not fault.possible():
                notes.append(f"{fault.name}: not injected, {fault.needs}")
                continue
            results = run.fault(fault)
            rows.append(row(fault, results))
            details[fault.name] = [asdict(outcome) for _, outcome in results]
            good &= not any(outcome.faults for _, outcome in results) and rows[-1]["times"] >= options.times
    table = Table(title="what each fault cost", columns=COLUMNS, rows=rows)
    measured = Measurement(name="faults", settings={"seed": seed, "times": options.times}, tables=[table], notes=notes)
    show(measured, header(machine, measured.settings, load()), Console(width=WIDTH))
    if options.json:
        options.json.write_text(
            json.dumps({**measured.to_json(), "environment": machine, "details": details}, indent=1) + "\n"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
