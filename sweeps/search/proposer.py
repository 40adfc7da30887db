"""Where points come from: Optuna's samplers, or a grid. Each proposer works stratum by stratum and keeps its memory."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from sweeps.search.optuna_storage import TRIAL_ATTRIBUTE, CrashSafeJournalBackend, FilteredStorage
from sweeps.search.samplers import make_sampler, spread
from sweeps.space.domains import Value
from sweeps.space.model import Space
from sweeps.space.points import Points
from sweeps.space.strata import Stratum

OPTUNA_FILE = "optuna.journal"
KNOWN = "known"  # user attribute of a trial: which point of `search.enqueue` it is
SOURCE = "source"  # user attribute of a trial taken over from an earlier study: where from
TRIES = 2  # of a known point, whose trial may be lost with its driver


@dataclass(frozen=True)
class Proposal:
    """A point and where to report what became of it; `repeat` counts the seeds of the same point, from 0."""

    point: dict[str, Value]
    handle: dict[str, Any]  # goes into the journal: {"study": ..., "number": ...} or {"index": ...}
    repeat: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a proposer is told: values of the objectives (all minimised) or why there are none.

    `kind` is one of complete, pruned (stopped early, at `epoch` with `values[0]`), bad (diverged: the settings' own
    fault), infeasible (by `values[0]` too much, where that is known; also what ran out of memory), lost (nothing to
    learn from: a crash, a duplicate that still runs).
    """

    kind: str
    values: tuple[float, ...] = ()
    epoch: int = 0
    trial: str = ""  # id of the trial whose outcome this is


class Proposer(Protocol):
    """What the search asks of a source of points."""

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """A point for this stratum, None when there are no more; `explore` asks for one far from the model's mind."""

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        """The same point once more, after its first trial was lost with the driver."""

    def tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        """Report what became of a proposal; a second report of the same changes nothing."""

    def open_handles(self) -> list[dict[str, Any]]:
        """Proposals that were asked for and never told."""

    def forget(self, handle: dict[str, Any], trial: str) -> None:
        """Learn nothing from this proposal and from any other that was told the outcome of `trial`."""


class OptunaProposer:
    """One Optuna study a stratum, in a journal file of Optuna's own; stored, never pickled.

    A stratum is a study of its own because errors are only comparable at equal size: in one study the largest networks
    would fill the sampler's "good" set whatever their shape.
    """

    def __init__(self, space: Space, folder: Path, points: Points | None = None):
        self.space, self.points = space, points or Points(space)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = FilteredStorage(CrashSafeJournalBackend(folder / OPTUNA_FILE))
        self._studies: dict[str, optuna.Study] = {}
        self._live: dict[tuple[str, int], optuna.Trial] = {}
        self._known_left: dict[str, list[int]] = {}

    def _study(self, label: str) -> optuna.Study:
        if label not in self._studies:
            several = len(self.space.search.objectives)
            study = optuna.create_study(
                storage=self._storage, study_name=label, load_if_exists=True, directions=["minimize"] * several
            )
            study.sampler = make_sampler(self.space.search.sampler, self._seed(study))
            self._studies[label] = study
        return self._studies[label]

    def _seed(self, study: optuna.Study) -> int:
        """Its own for each stratum, and another after a resume, which must not draw its first numbers again."""
        past = len(study.get_trials(deepcopy=False))
        return zlib.crc32(f"{self.space.search.seed} {study.study_name} {past}".encode())

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        study = self._study(stratum.label)
        if (index := self._next_known(stratum, study)) is not None:
            study.enqueue_trial(self.space.search.enqueue[index], user_attrs={KNOWN: index})
        elif self.space.search.sampler == "qmc":
            self._enqueue_spread(stratum, study)
        usual = study.sampler
        if explore:
            study.sampler = make_sampler("random", self._seed(study))
        try:
            return self._suggest(stratum, study.ask())
        finally:
            study.sampler = usual

    def _next_known(self, stratum: Stratum, study: optuna.Study) -> int | None:
        """The next known good point of this stratum not tried yet; one lost with its driver is tried again."""
        if stratum.label not in self._known_left:
            tried = [
                trial.user_attrs[KNOWN] for trial in study.get_trials(deepcopy=False) if KNOWN in trial.user_attrs
                for _ in range(1 if trial.state is TrialState.FAIL else TRIES)
            ]  # fmt: skip
            self._known_left[stratum.label] = [
                index for index, point in enumerate(self.space.search.enqueue)
                if stratum.admits(point) and tried.count(index) < TRIES
            ]  # fmt: skip
        left = self._known_left[stratum.label]
        return left.pop(0) if left else None

    def _enqueue_spread(self, stratum: Stratum, study: optuna.Study) -> None:
        seed = zlib.crc32(f"{self.space.search.seed} {study.study_name}".encode())
        index = len(study.get_trials(deepcopy=False))
        point = self.points.spread(stratum, spread(self.points.width(stratum), index, seed))
        study.enqueue_trial({name: value for name, value in point.items() if name not in dict(stratum.fixed)})

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        study = self._study(stratum.label)
        study.enqueue_trial(point)
        return self._suggest(stratum, study.ask())

    def _suggest(self, stratum: Stratum, trial: optuna.Trial) -> Proposal:
        self._live[stratum.label, trial.number] = trial
        return Proposal(self.points.suggest(stratum, trial), {"study": stratum.label, "number": trial.number})

    def tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        study = self._study(handle["study"])
        number = int(handle["number"])
        trial = self._live.pop((handle["study"], number), None)
        stored = study.get_trials(deepcopy=False)[number]
        if stored.state.is_finished():
            return
        if outcome.trial:
            self._storage.set_trial_user_attr(stored._trial_id, TRIAL_ATTRIBUTE, outcome.trial)
        if outcome.kind == "complete":
            study.tell(number, list(outcome.values))
        elif outcome.kind == "lost":
            study.tell(number, state=TrialState.FAIL)
        elif trial is None:  # asked by a driver that was killed: only whole trials can be added after the fact
            study.tell(number, state=TrialState.FAIL)
            self._add_pruned(study, number, outcome)
        else:
            if outcome.kind == "infeasible":
                trial.set_constraint(*_excess(outcome))
            elif outcome.kind == "pruned" and len(self.space.search.objectives) == 1:
                trial.report(outcome.values[0], outcome.epoch)
            study.tell(trial, state=TrialState.PRUNED)

    def _add_pruned(self, study: optuna.Study, number: int, outcome: Outcome) -> None:
        lost = study.get_trials(deepcopy=False)[number]
        reported = {outcome.epoch: outcome.values[0]} if outcome.kind == "pruned" else {}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED, params=lost.params, distributions=lost.distributions,
                intermediate_values=reported, user_attrs={TRIAL_ATTRIBUTE: outcome.trial},
                constraints=dict([_excess(outcome)]) if outcome.kind == "infeasible" else None,
            )
        )  # fmt: skip

    def learn(self, stratum: Stratum, point: dict[str, Value], outcome: Outcome, source: str) -> bool:
        """Add what an earlier study found at a point; False where it does not fit the stratum or is known already.

        `source` names the earlier trial, so that a resumed study does not learn it twice.
        """
        domains = self.points.places(point, stratum)
        study = self._study(stratum.label)
        if domains is None or any(
            trial.user_attrs.get(SOURCE) == source for trial in study.get_trials(deepcopy=False)
        ):  # fmt: skip
            return False
        complete = outcome.kind == "complete"
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                values=list(outcome.values) if complete else None, params={name: point[name] for name in domains},
                distributions={name: domain.distribution() for name, domain in domains.items()},
                intermediate_values={} if complete else {outcome.epoch: outcome.values[0]},
                user_attrs={SOURCE: source, TRIAL_ATTRIBUTE: source},
            )
        )  # fmt: skip
        return True

    def unlearn(self, source: str) -> None:
        """Pass over what `learn` added from this trial of an earlier study, now or in an earlier sitting."""
        for study in map(self._study, optuna.get_all_study_names(self._storage)):
            self._storage.forget(study._study_id, None, source)

    def open_handles(self) -> list[dict[str, Any]]:
        found = []
        for name in optuna.get_all_study_names(self._storage):
            study = self._study(name)
            while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.ask()  # queued by a driver that was killed before it asked: no longer to be handed out
            trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            found += [{"study": name, "number": trial.number} for trial in trials]
        return found

    def forget(self, handle: dict[str, Any], trial: str) -> None:
        study = self._study(handle["study"])
        self._storage.forget(study._study_id, int(handle["number"]), trial)


def _excess(outcome: Outcome) -> tuple[str, float]:
    """The constraint that an infeasible outcome breaks, by how much: without one the sampler would not see it."""
    return "feasible", outcome.values[0] if outcome.values else 1.0


class GridProposer:
    """Every combination of the values, once, in an order shuffled by the seed (so that a cut grid is a fair sample).

    With repeats every point is trained with the first seed, then every point with the second, and so on: wherever the
    grid is cut, no point has been trained more than once more often than another.
    """

    def __init__(self, space: Space, points: Points | None = None):
        listed = (points or Points(space)).grid()
        random.Random(space.search.seed).shuffle(listed)
        self._rows = [(point, repeat) for repeat in range(space.search.repeats) for point in listed]
        self._next = 0

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """The next point of the grid, whatever the stratum: a grid's sizes are its own."""
        if self._next >= len(self._rows):
            return None
        self._next += 1
        point, repeat = self._rows[self._next - 1]
        return Proposal(point, {"index": self._next - 1}, repeat)

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        return Proposal(point, handle)

    def tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        """A grid learns nothing."""

    def open_handles(self) -> list[dict[str, Any]]:
        return []

    def forget(self, handle: dict[str, Any], trial: str) -> None:
        """A grid has learned nothing."""


def grid_points(space: Space) -> list[dict[str, Value]]:
    """All combinations of a space of finite domains, where its budget is shared evenly."""
    return Points(space).grid()


def finite_size(space: Space) -> int | None:
    """How many points the space has, where its budget is shared evenly; None when it is endless."""
    return Points(space).size()


def make_proposer(space: Space, folder: Path, points: Points | None = None) -> Proposer:
    """The proposer that the space asks for; Optuna's memory lies in `folder`."""
    if space.search.sampler == "grid":
        return GridProposer(space, points)
    return OptunaProposer(space, folder, points)
