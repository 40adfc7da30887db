"""Where points come from: Optuna's samplers, or a grid. Each proposer works stratum by stratum and keeps its memory."""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps.domains import Choice, Domain, Range, Value
from sweeps.memory import TRIAL_ATTRIBUTE, ForgettingStorage
from sweeps.space import Space
from sweeps.specification import Stratum

OPTUNA_FILE = "optuna.journal"
STARTUP_TRIALS = 5  # random proposals in each stratum before the sampler models it


@dataclass(frozen=True)
class Proposal:
    """A point and where to report what became of it."""

    point: dict[str, Value]
    handle: dict[str, Any]  # goes into the journal: {"study": ..., "number": ...} or {"index": ...}


@dataclass(frozen=True)
class Outcome:
    """What a proposer is told: values of the objectives (all minimised) or why there are none.

    `kind` is one of complete, pruned (stopped early, at `epoch` with `values[0]`), bad (diverged, out of memory: the
    settings' own fault), infeasible, lost (nothing to learn from: a crash, a duplicate that still runs).
    """

    kind: str
    values: tuple[float, ...] = ()
    epoch: int = 0
    trial: str = ""  # id of the trial whose outcome this is


class Proposer(Protocol):
    """What the search asks of a source of points."""

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """A point for this stratum, None when there are no more; `explore` asks for one far from the model's mind."""

    def ask_again(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        """The same point once more, after its first trial was lost with the driver."""

    def tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        """Report what became of a proposal; a second report of the same changes nothing."""

    def open_handles(self) -> list[dict[str, Any]]:
        """Proposals that were asked for and never told."""

    def forget(self, handle: dict[str, Any], trial: str) -> None:
        """Learn nothing from this proposal and from any other that was told the outcome of `trial`."""


def searched_domains(space: Space, alternative: int = 0) -> dict[str, Domain]:
    """Every searched field under its dotted name, with one of the space's `method` sections."""
    _, of_method = space.alternatives[alternative]
    return {**{f"method.{key}": domain for key, domain in of_method.items()}, **space.domains}


def suggest_point(domains: dict[str, Domain], stratum: Stratum, trial: optuna.Trial) -> dict[str, Value]:
    """A point of the stratum, drawn by whichever sampler the trial's study has."""
    point: dict[str, Value] = dict(stratum.fixed)
    for name, domain in domains.items():
        if name == stratum.budget and isinstance(domain, Range):
            point[name] = Range(*stratum.share, log=domain.log, integer=domain.integer).suggest(trial, name)
        elif name not in point:
            point[name] = domain.suggest(trial, name)
    return point


class OptunaProposer:
    """One Optuna study a stratum, in a journal file of Optuna's own; stored, never pickled.

    A stratum is a study of its own because errors are only comparable at equal size: in one study the largest networks
    would fill the sampler's "good" set whatever their shape.
    """

    def __init__(self, space: Space, folder: Path):
        self.space = space
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = ForgettingStorage(JournalFileBackend(str(folder / OPTUNA_FILE)))
        self._studies: dict[str, optuna.Study] = {}
        self._live: dict[tuple[str, int], optuna.Trial] = {}
        self._domains = searched_domains(space)

    def _study(self, label: str) -> optuna.Study:
        if label not in self._studies:
            several = len(self.space.search.objectives)
            study = optuna.create_study(
                storage=self._storage, study_name=label, load_if_exists=True, directions=["minimize"] * several
            )
            study.sampler = self._sampler(self._seed(study))
            self._studies[label] = study
        return self._studies[label]

    def _seed(self, study: optuna.Study) -> int:
        """Its own for each stratum, and another after a resume, which must not draw its first numbers again."""
        past = len(study.get_trials(deepcopy=False))
        return zlib.crc32(f"{self.space.search.seed} {study.study_name} {past}".encode())

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.space.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        study = self._study(stratum.label)
        usual = study.sampler
        if explore:
            study.sampler = optuna.samplers.RandomSampler(seed=self._seed(study))
        try:
            return self._suggest(stratum, study.ask())
        finally:
            study.sampler = usual

    def ask_again(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        study = self._study(stratum.label)
        study.enqueue_trial(point)
        return self._suggest(stratum, study.ask())

    def _suggest(self, stratum: Stratum, trial: optuna.Trial) -> Proposal:
        self._live[stratum.label, trial.number] = trial
        return Proposal(suggest_point(self._domains, stratum, trial), {"study": stratum.label, "number": trial.number})

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
                trial.set_constraint("feasible", 1.0)
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
            )
        )  # fmt: skip

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


class GridProposer:
    """Every combination of the values, once, in an order shuffled by the seed (so that a cut grid is a fair sample)."""

    def __init__(self, space: Space):
        self._points = grid_points(space)
        random.Random(space.search.seed).shuffle(self._points)
        self._next = 0
        self._open: list[dict[str, Any]] = []

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """The next point of the grid, whatever the stratum: a grid's sizes are its own."""
        if self._next >= len(self._points):
            return None
        self._next += 1
        return Proposal(self._points[self._next - 1], {"index": self._next - 1})

    def ask_again(self, stratum: Stratum, point: dict[str, Value], handle: dict[str, Any]) -> Proposal:
        return Proposal(point, handle)

    def tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        """A grid learns nothing."""

    def open_handles(self) -> list[dict[str, Any]]:
        return []

    def forget(self, handle: dict[str, Any], trial: str) -> None:
        """A grid has learned nothing."""


def grid_points(space: Space) -> list[dict[str, Value]]:
    """All combinations of a space of finite domains, alternatives of `method` one after the other."""
    points = []
    for index in range(len(space.alternatives)):
        domains = searched_domains(space, index)
        lists = [domain.grid() or () for domain in domains.values()]
        for values in itertools.product(*lists):
            point: dict[str, Value] = dict(zip(domains, values, strict=True))
            if len(space.alternatives) > 1:
                point["alternative"] = index
            points.append(point)
    return points


def make_proposer(space: Space, folder: Path) -> Proposer:
    """The proposer that the space asks for; Optuna's memory lies in `folder`."""
    return GridProposer(space) if space.search.sampler == "grid" else OptunaProposer(space, folder)


def finite_size(space: Space) -> int | None:
    """How many points the space has; None when it is endless."""
    if len(space.alternatives) > 1:
        return len(grid_points(space))
    total = 1
    for domain in searched_domains(space).values():
        values = domain.values if isinstance(domain, Choice) else domain.grid()
        if values is None:
            return None
        total *= len(values)
    return total
