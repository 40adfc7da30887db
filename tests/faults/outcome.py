"""Strikes a study with a fault, at moments that are drawn, and says what became of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.injections import Fault
from tests.faults.scene import Question, Scene, Study
from tests.support import study_checks as verdict
from tests.support.clusters import Machines, machines


@dataclass
class Outcome:
    """What became of one study: how often it was struck, and what its records then say."""

    strikes: int
    trials: int
    lost: list[str]
    doubled: list[str]
    repeated: list[tuple[int, float]]
    wrong: list[str]

    @property
    def faults(self) -> list[str]:
        """Everything that should not be."""
        return [*self.lost, *self.doubled, *verdict.too_much(self.repeated), *self.wrong]


@contextmanager
def scene(fault: Fault, folder: Path, cluster: Machines | None = None) -> Iterator[Scene]:
    """Make what a fault needs; a cluster that several faults share is taken where it is given."""
    with ExitStack() as stack:
        found = Scene(folder, stack)
        if fault.clustered:
            found.cluster = (cluster if fault.shared else None) or stack.enter_context(machines())
            found.place = ("--address", found.cluster.address)
        fault.prepare(found)
        yield found


def undisturbed(question: Question, folder: Path, fault: Fault, cluster: Machines | None = None) -> dict[str, Any]:
    """The answer of the same study when nothing happens."""
    with scene(fault, folder, cluster) as around:
        study = Study(question, around.out, *around.place)
        study.begin()
        try:
            study.end()
        finally:
            study.close()
        return verdict.answer(study.folder)


def strike(
    fault: Fault, question: Question, folder: Path, rng: random.Random, times: int, expected: dict[str, Any] | None,
    cluster: Machines | None = None,
) -> Outcome:  # fmt: skip
    """Run a study that is struck so often, at moments drawn by `rng`; `expected` is what a grid has to answer."""
    with scene(fault, folder, cluster) as around:
        study = Study(question, around.out, *around.place)
        moments = sorted(rng.sample(range(2, int(0.7 * question.trials * question.epochs)), times))
        study.begin()
        try:
            around.strikes = sum(_at(moment, fault, around, study, rng) for moment in moments)
            study.end()
        finally:
            study.close()
        fault.finish(around, study)
        return Outcome(
            around.strikes, question.trials, verdict.lost(study.folder, study.database, question.trials),
            verdict.doubled(study.folder, study.database), verdict.repeated(study.folder), _wrong(study, expected),
        )  # fmt: skip


def _at(moment: int, fault: Fault, around: Scene, study: Study, rng: random.Random) -> bool:
    return study.wait(lambda: study.epochs() >= moment) and fault.strike(around, study, rng)


def _wrong(study: Study, expected: dict[str, Any] | None) -> list[str]:
    """On a grid the answer must be the undisturbed one; in a search each trial must give its numbers when run alone."""
    if expected is None:
        return verdict.unlike_alone(study.folder)
    found = verdict.answer(study.folder)
    return [f"{name} differs" for name, told in expected.items() if found.get(name) != told]
