"""`python -m tests.faults [NAME ...]`: strike real studies with every fault, several times, and print what it cost.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measurement import Measurement, Table, environment, header, load, show
from tests.faults.injections import FAULTS, Fault
from tests.faults.outcome import Outcome, strike, undisturbed
from tests.faults.scene import Question
from tests.support.clusters import Machines, machines

COLUMNS = (
    "fault", "killed or broken", "times", "studies", "trials", "lost", "doubled", "epochs repeated", "at most",
    "at most s", "grid identical", "alone identical",
)  # fmt: skip
WIDTH = 200
ATTEMPTS = 3  # at a study that may be over before it was struck as often as asked


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Strike studies, print what it cost.")
    parser.add_argument("names", nargs="*", choices=[[], *(fault.name for fault in FAULTS)], metavar="NAME",
                        help=f"of {', '.join(fault.name for fault in FAULTS)} (all)")  # fmt: skip
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often each fault strikes, at least (5)")
    parser.add_argument("--seed", type=int, help="of moments and victims (drawn)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    return parser


class Run:
    """Strikes faults one after the other, on one cluster where they leave it whole."""

    def __init__(self, folder: Path, cluster: Machines, seed: int, times: int):
        self.folder, self.cluster, self.times = folder, cluster, times
        self.rng = random.Random(seed)
        self.expected: dict[str, dict[str, Any]] = {}
        self.studies = 0

    def fault(self, fault: Fault) -> list[tuple[Question, Outcome]]:
        """Studies of each of its questions, until it has struck often enough."""
        found = []
        share, rest = divmod(self.times, len(fault.questions))
        for place, question in enumerate(fault.questions):
            left = share + (place < rest)
            for _ in range(ATTEMPTS):
                if left <= 0:
                    break
                outcome = self._study(fault, question, left)
                left -= outcome.strikes
                found.append((question, outcome))
        return found

    def _study(self, fault: Fault, question: Question, times: int) -> Outcome:
        begun = time.monotonic()
        expected = self._expected(fault, question)
        outcome = strike(fault, question, self._place(), self.rng, times, expected, self.cluster)
        about = "; ".join(outcome.faults) or "nothing lost, doubled or wrong"
        seconds = time.monotonic() - begun
        print(f"{fault.name}, {question.name}: struck {outcome.strikes} times; {about}; {seconds:.0f} s", flush=True)
        return outcome

    def _expected(self, fault: Fault, question: Question) -> dict[str, Any] | None:
        if "grid" not in question.name:
            return None
        if question.name not in self.expected:
            self.expected[question.name] = undisturbed(question, self._place(), fault, self.cluster)
        return self.expected[question.name]

    def _place(self) -> Path:
        self.studies += 1
        place = self.folder / str(self.studies)
        place.mkdir()
        return place


def row(fault: Fault, found: list[tuple[Question, Outcome]]) -> dict[str, Any]:
    """A line of the table."""
    outcomes = [outcome for _, outcome in found]
    repeated = [each for outcome in outcomes for each in outcome.repeated]
    grids = [outcome for question, outcome in found if "grid" in question.name]
    searches = [outcome for question, outcome in found if "grid" not in question.name]
    return {
        "fault": fault.name, "killed or broken": fault.what, "times": sum(outcome.strikes for outcome in outcomes),
        "studies": len(found), "trials": sum(outcome.trials for outcome in outcomes),
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
    """Strike, print; returns 1 when something was lost, doubled, repeated beyond the limit or wrong."""
    asked = make_parser().parse_args(arguments)
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(10**6)
    chosen = [fault for fault in FAULTS if not asked.names or fault.name in asked.names]
    around, rows, notes, details, good = environment(), [], [], {}, True
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, machines() as cluster:
        run = Run(Path(folder), cluster, seed, asked.times)
        for fault in chosen:
            if not fault.possible():
                notes.append(f"{fault.name}: not struck, a small disk can only be mounted by root")
                continue
            found = run.fault(fault)
            rows.append(row(fault, found))
            details[fault.name] = [asdict(outcome) for _, outcome in found]
            good &= not any(outcome.faults for _, outcome in found) and rows[-1]["times"] >= asked.times
    table = Table(title="what each fault cost", columns=COLUMNS, rows=rows)
    measured = Measurement(name="faults", settings={"seed": seed, "times": asked.times}, tables=[table], notes=notes)
    show(measured, header(around, measured.settings, load()), Console(width=WIDTH))
    if asked.json:
        asked.json.write_text(
            json.dumps({**measured.to_json(), "environment": around, "details": details}, indent=1) + "\n"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
