"""Points from Optuna's samplers, each stratum in an Optuna study of its own, kept in a journal file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import optuna
from optuna.trial import TrialState

from sweeps.records import OPTUNA_FILE, TrialRecord
from sweeps.search.optuna_adapter import storage_study_id, storage_trial_id
from sweeps.search.optuna_storage import TRIAL_ATTRIBUTE, open_storage
from sweeps.search.proposer import GridProposer, Handle, Outcome, OutcomeKind, Proposal, Proposer
from sweeps.search.samplers import make_sampler, sobol_point
from sweeps.space import Point, Points, Space, Stratum, Value

ENQUEUED_ATTRIBUTE = "known"  # user attribute of a trial: its index in `search.enqueue`
SOURCE_ATTRIBUTE = "source"  # user attribute of a trial taken over from an earlier study: where from
MAX_TRIES = 2  # of an enqueued point, whose trial may be lost with its driver


class OptunaProposer:
    """Points from Optuna, each stratum in a study of its own.

    The studies lie in a journal file of Optuna's, and are never pickled. A stratum is a study of its own because errors
    are only comparable at equal size: in one study the largest networks would fill the sampler's "good" set whatever
    their shape.
    """

    def __init__(self, space: Space, folder: Path, points: Points | None = None):
        """Open the studies that `folder` holds, or begin them.

        Args:
            space: what is searched, by which sampler and seed.
            folder: the study's folder, made if it is missing.
            points: the space's points; None where its budget is shared evenly.

        Raises:
            OSError: the folder cannot be written.
        """
        self.space, self.points = space, points or Points(space)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_storage(folder / OPTUNA_FILE)
        self._studies: dict[str, optuna.Study] = {}
        self._live: dict[tuple[str, int], optuna.Trial] = {}  # asked for by this process, not told yet
        self._to_enqueue: dict[str, list[int]] = {}  # stratum -> indices of its points in `search.enqueue`

    def optuna_study(self, label: str) -> optuna.Study:
        """Open the Optuna study of a stratum, once; made if it is missing.

        Args:
            label: of the stratum.

        Returns:
            The study, with the sampler that the space names.
        """
        if label not in self._studies:
            objectives = len(self.space.search.objectives)
            study = optuna.create_study(
                storage=self._storage, study_name=label, load_if_exists=True, directions=["minimize"] * objectives
            )
            study.sampler = make_sampler(self.space.search.sampler, self._seed(study))
            self._studies[label] = study
        return self._studies[label]

    def _seed(self, study: optuna.Study) -> int:
        """A seed of the stratum's own, and another after a resume, which must not draw its first numbers again."""
        trials = len(study.get_trials(deepcopy=False))
        return zlib.crc32(f"{self.space.search.seed} {study.study_name} {trials}".encode())

    def restore(self, trials: Iterable[TrialRecord], strata: Iterable[Stratum]) -> int:
        """Add the proposals on record that Optuna's journal lacks, because it was damaged or removed.

        They are added without outcomes, which the search reports when it begins. Points that were never launched have
        no proposal on record, so the sampler does not learn again that they are infeasible.

        Args:
            trials: of the study.
            strata: of the space.

        Returns:
            How many were added.
        """
        by_label = {stratum.label: stratum for stratum in strata}
        points: dict[str, dict[int, TrialRecord]] = {}
        for trial in trials:
            label, number = trial.proposal.get("study"), trial.proposal.get("number")
            if label in by_label and isinstance(number, int):
                points.setdefault(label, {})[number] = trial
        added = 0
        for label, by_number in points.items():
            study = self.optuna_study(label)
            for number in range(len(study.get_trials(deepcopy=False)), max(by_number) + 1):
                proposed = by_number.get(number)
                domains = self.points.point_domains(proposed.parameters, by_label[label]) if proposed else None
                # A gap is filled, because a proposal is found by its number
                state = TrialState.FAIL if proposed is None or domains is None else TrialState.RUNNING
                study.add_trial(
                    optuna.trial.create_trial(
                        state=state, params={name: proposed.parameters[name] for name in domains or {} if proposed},
                        distributions={name: domain.distribution() for name, domain in (domains or {}).items()},
                    )
                )  # fmt: skip
                added += state is TrialState.RUNNING
        return added

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """Propose a point: an enqueued one first, then the sampler's (see `Proposer.ask`)."""
        study = self.optuna_study(stratum.label)
        if (index := self._next_enqueued(stratum, study)) is not None:
            study.enqueue_trial(self.space.search.enqueue[index], user_attrs={ENQUEUED_ATTRIBUTE: index})
        elif self.space.search.sampler == "qmc":
            self._enqueue_sobol_point(stratum, study)
        sampler = study.sampler
        if explore:
            study.sampler = make_sampler("random", self._seed(study))
        try:
            return self._suggest(stratum, study.ask())
        finally:
            study.sampler = sampler

    def _next_enqueued(self, stratum: Stratum, study: optuna.Study) -> int | None:
        """The next point of `search.enqueue` for this stratum; one that was lost with its driver is tried again."""
        if stratum.label not in self._to_enqueue:
            tries = [
                trial.user_attrs[ENQUEUED_ATTRIBUTE] for trial in study.get_trials(deepcopy=False)
                if ENQUEUED_ATTRIBUTE in trial.user_attrs
                for _ in range(1 if trial.state is TrialState.FAIL else MAX_TRIES)
            ]  # fmt: skip
            self._to_enqueue[stratum.label] = [
                index for index, point in enumerate(self.space.search.enqueue)
                if stratum.admits(point) and tries.count(index) < MAX_TRIES
            ]  # fmt: skip
        indices = self._to_enqueue[stratum.label]
        return indices.pop(0) if indices else None

    def _enqueue_sobol_point(self, stratum: Stratum, study: optuna.Study) -> None:
        seed = zlib.crc32(f"{self.space.search.seed} {study.study_name}".encode())
        index = len(study.get_trials(deepcopy=False))
        point = self.points.point_at(stratum, sobol_point(self.points.coordinate_count(stratum), index, seed))
        study.enqueue_trial({name: value for name, value in point.items() if name not in dict(stratum.fixed)})

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: Handle) -> Proposal:
        """Propose the same point under a new handle (see `Proposer.reask`)."""
        study = self.optuna_study(stratum.label)
        study.enqueue_trial(point)
        return self._suggest(stratum, study.ask())

    def _suggest(self, stratum: Stratum, trial: optuna.Trial) -> Proposal:
        self._live[stratum.label, trial.number] = trial
        return Proposal(self.points.suggest(stratum, trial), {"study": stratum.label, "number": trial.number})

    def tell(self, handle: Handle, outcome: Outcome) -> None:
        """Report the outcome of a proposal to the stratum's study (see `Proposer.tell`)."""
        study = self.optuna_study(str(handle["study"]))
        number = int(handle["number"])
        trial = self._live.pop((str(handle["study"]), number), None)
        stored = study.get_trials(deepcopy=False)[number]
        if stored.state.is_finished():
            return
        if outcome.trial_id:
            self._storage.set_trial_user_attr(storage_trial_id(stored), TRIAL_ATTRIBUTE, outcome.trial_id)
        if outcome.kind is OutcomeKind.COMPLETE:
            study.tell(number, list(outcome.values))
        elif outcome.kind is OutcomeKind.LOST:
            study.tell(number, state=TrialState.FAIL)
        elif trial is None:  # asked for by a driver that was killed: only whole trials can be added afterwards
            study.tell(number, state=TrialState.FAIL)
            self._add_pruned(study, number, outcome)
        else:
            if outcome.kind is OutcomeKind.INFEASIBLE:
                trial.set_constraint(*_constraint(outcome))
            elif outcome.kind is OutcomeKind.PRUNED and len(self.space.search.objectives) == 1:
                trial.report(outcome.values[0], outcome.epoch)
            study.tell(trial, state=TrialState.PRUNED)

    def _add_pruned(self, study: optuna.Study, number: int, outcome: Outcome) -> None:
        lost = study.get_trials(deepcopy=False)[number]
        reported = {outcome.epoch: outcome.values[0]} if outcome.kind is OutcomeKind.PRUNED else {}
        constraints = dict([_constraint(outcome)]) if outcome.kind is OutcomeKind.INFEASIBLE else None
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED, params=lost.params, distributions=lost.distributions,
                intermediate_values=reported, user_attrs={TRIAL_ATTRIBUTE: outcome.trial_id}, constraints=constraints,
            )
        )  # fmt: skip

    def learn(self, stratum: Stratum, point: dict[str, Value], outcome: Outcome, source: str) -> bool:
        """Add the result of an earlier study at a point.

        Args:
            stratum: the range of sizes to add it to.
            point: the point.
            outcome: a complete or a pruned one.
            source: names the earlier trial, so that a resumed study does not learn from it twice.

        Returns:
            False where the point does not belong to the stratum or is there already.
        """
        domains = self.points.point_domains(point, stratum)
        study = self.optuna_study(stratum.label)
        if domains is None or any(
            trial.user_attrs.get(SOURCE_ATTRIBUTE) == source for trial in study.get_trials(deepcopy=False)
        ):
            return False
        complete = outcome.kind is OutcomeKind.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                values=list(outcome.values) if complete else None, params={name: point[name] for name in domains},
                distributions={name: domain.distribution() for name, domain in domains.items()},
                intermediate_values={} if complete else {outcome.epoch: outcome.values[0]},
                user_attrs={SOURCE_ATTRIBUTE: source, TRIAL_ATTRIBUTE: source},
            )
        )  # fmt: skip
        return True

    def hide_source(self, source: str) -> None:
        """Learn nothing from what `learn` has added of one trial.

        It may have been added in an earlier run of the driver.

        Args:
            source: the name of the earlier trial.
        """
        for study in map(self.optuna_study, optuna.get_all_study_names(self._storage)):
            self._storage.hide(storage_study_id(study), source)

    def open_handles(self) -> list[Handle]:
        """Return the handles of proposals without an outcome.

        Points that a killed driver had queued are dequeued.
        """
        handles: list[Handle] = []
        for name in optuna.get_all_study_names(self._storage):
            study = self.optuna_study(name)
            while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.ask()  # queued by a driver that was killed before it asked: must not be proposed any more
            trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            handles += [{"study": name, "number": trial.number} for trial in trials]
        return handles

    def hide(self, handle: Handle, trial_id: str) -> None:
        """Learn nothing from a proposal and repeats of it (see `Proposer.hide`)."""
        study = self.optuna_study(str(handle["study"]))
        self._storage.hide(storage_study_id(study), trial_id, int(handle["number"]))


def _constraint(outcome: Outcome) -> tuple[str, float]:
    """The constraint that an infeasible outcome breaks, and by how much: without one the sampler would not see it."""
    return "feasible", outcome.values[0] if outcome.values else 1.0


def make_proposer(
    space: Space, folder: Path, points: Points | None = None,
    training_cost: Callable[[Point], float] | None = None,
) -> Proposer:  # fmt: skip
    """Make the proposer that a space asks for.

    Args:
        space: the space with its section `search`.
        folder: the study's folder, where Optuna's journal lies.
        points: the space's points; None where its budget is shared evenly.
        training_cost: how long a point trains beside others; needed for a grid whose longest come first.

    Returns:
        A grid, or a proposer with one of Optuna's samplers.
    """
    if space.search.sampler == "grid":
        return GridProposer(space, points, training_cost)
    return OptunaProposer(space, folder, points)
