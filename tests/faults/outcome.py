"""Injects a fault into a study at random moments, and checks the study's records."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.injections import Fault
from tests.faults.scene import Question, Scene, Study
from tests.support import study_checks
from tests.support.clusters import Machines, machines
from tests.support.environment import changed_environment


@dataclass
class Outcome:
    """How often a fault was injected into one study, and what its records then say."""

    injections: int
    trials: int
    lost: list[str]
    doubled: list[str]
    repeated: list[tuple[int, float]]
    wrong: list[str]

    @property
    def faults(self) -> list[str]:
        """Return everything that is wrong."""
        return [*self.lost, *self.doubled, *study_checks.too_much(self.repeated), *self.wrong]


@contextmanager
def make_scene(fault: Fault, folder: Path, cluster: Machines | None = None) -> Iterator[Scene]:
    """Make what a fault needs; `cluster` is one that several faults share."""
    with ExitStack() as stack:
        scene = Scene(folder, stack)
        if fault.clustered:
            scene.cluster = (cluster if fault.shared else None) or stack.enter_context(machines())
            scene.location = ("--address", scene.cluster.address)
        else:  # a cluster of this process has switched Ray's token off, which a study on one machine refuses
            stack.enter_context(changed_environment({"RAY_AUTH_MODE": None}))
        fault.prepare(scene)
        yield scene


def undisturbed(question: Question, folder: Path, fault: Fault, cluster: Machines | None = None) -> dict[str, Any]:
    """Return the answer of the same study without a fault."""
    with make_scene(fault, folder, cluster) as scene:
        study = Study(question, scene.out, *scene.location)
        study.begin()
        try:
            study.end()
        finally:
            study.close()
        return study_checks.answer(study.folder)


def inject(
    fault: Fault, question: Question, folder: Path, rng: random.Random, times: int, expected: dict[str, Any] | None,
    cluster: Machines | None = None,
) -> Outcome:  # fmt: skip
    """Run a study and inject a fault so often, at moments drawn by `rng`; `expected` is the answer of a grid."""
    with make_scene(fault, folder, cluster) as scene:
        study = Study(question, scene.out, *scene.location)
        moments = sorted(rng.sample(range(2, int(0.7 * question.trials * question.epochs)), times))
        study.begin()
        try:
            scene.injections = sum(_at(moment, fault, scene, study, rng) for moment in moments)
            study.end()
        finally:
            study.close()
        fault.finish(scene, study)
        return Outcome(
            scene.injections, question.trials, study_checks.lost(study.folder, study.database, question.trials),
            study_checks.doubled(study.folder, study.database), study_checks.repeated(study.folder),
            _wrong(study, expected),
        )  # fmt: skip


def _at(moment: int, fault: Fault, scene: Scene, study: Study, rng: random.Random) -> bool:
    return study.wait(lambda: study.epochs() >= moment, f"epoch {moment}") and fault.inject(scene, study, rng)


def _wrong(study: Study, expected: dict[str, Any] | None) -> list[str]:
    """On a grid the answer must be the undisturbed one; in a search each trial must give its numbers when run alone."""
    if expected is None:
        return study_checks.unlike_alone(study.folder)
    answer = study_checks.answer(study.folder)
    return [f"{name} differs" for name, value in expected.items() if answer.get(name) != value]
