"""The search decides which trial is trained next, and tells the sampler the results.

Every proposal is resolved before it is launched: ranks that meet its budget are solved for, and its parameters and
mult-adds are counted exactly. A point that is infeasible or has been proposed before is never launched. A proposal is
written to Optuna's storage, then to the journal, and then launched; at the end of a trial the journal is written first,
then Optuna's storage. So a process that is killed at any point leaves records from which a resumed study can continue.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrank.errors import InfeasibleError
from sweeps.records import (
    INFEASIBLE_PREFIX,
    TERMINAL,
    Event,
    EventFields,
    Journal,
    Role,
    Status,
    StudyRecord,
    Trial,
    TrialRecord,
    apply_event,
    front_settings,
)
from sweeps.search.counters import TrialCounters
from sweeps.search.proposer import Handle, Outcome, OutcomeKind, Proposal, Proposer
from sweeps.search.reuse import SiblingResults, link_weights
from sweeps.space import Space, Stratum
from sweeps.trials import Resolver, StepTimeError

# Proposals in a row that give no new trial (infeasible or duplicate), after which ...
EXPLORE_AFTER = 10  # ... points are sampled uniformly at random
GIVE_UP_AFTER = 60  # ... a stratum counts as exhausted
_OUTCOME_KINDS = {
    Status.COMPLETED: OutcomeKind.COMPLETE, Status.STOPPED: OutcomeKind.PRUNED,
    Status.INFEASIBLE: OutcomeKind.INFEASIBLE, Status.OUT_OF_MEMORY: OutcomeKind.INFEASIBLE,
    Status.FAILED: OutcomeKind.LOST,
}  # fmt: skip
_LOST = Outcome(OutcomeKind.LOST)
Events = list[tuple[Event, EventFields]]  # kind and fields of events that are not in the journal yet


@dataclass
class PreparedTrial:
    """What `Search.prepare` returns: a new trial or None, and the events to journal before it is launched."""

    trial: Trial | None = None
    handle: Handle = field(default_factory=dict)  # under which the proposer is told the trial's outcome
    events: Events = field(default_factory=list)


class Search:
    """Gives trials to launch one at a time, and keeps the study's records up to date.

    The records are its journal and what follows from it. `prepare` may run in a thread of its own
    (sweeps.search.prefetch). No other method asks the proposer for new points, and `prepare` writes nothing to the
    journal.
    """

    def __init__(
        self, space: Space, resolver: Resolver, proposer: Proposer, journal: Journal, record: StudyRecord,
        strata: Sequence[Stratum] | None = None, siblings: SiblingResults | None = None,
    ):  # fmt: skip
        """Begin a search, or resume it from the record.

        Args:
            space: what is searched.
            resolver: makes trials of points.
            proposer: the source of points.
            journal: the study's journal, open for writing.
            record: the study's record, with every event of the journal applied.
            strata: the strata whose size some method of the space can have; None for all.
            siblings: trials of the other studies of a series; their results are adopted instead of trained again.
        """
        self.space, self.resolver, self.proposer = space, resolver, proposer
        self.strata = tuple(strata or resolver.strata)
        self.journal, self.record = journal, record
        self.counters = TrialCounters(record.trials.values(), grid=space.search.sampler == "grid")
        self.waiting: deque[Trial] = deque()  # proposed trials to launch, references and repeats among them
        self.postponed: deque[Trial] = deque()  # ran out of memory; launched with a larger share when all others ended
        self.exhausted: set[str] = set()  # labels of strata that give no new trials
        self.reserved: dict[str, Trial] = {}  # prepared trials that are not committed yet, by id
        self.ready: deque[PreparedTrial] = deque()  # prepared ahead and not committed yet, in order
        self._lock = threading.RLock()  # while a trial goes from `reserved` to the record, it is in one of them
        self.siblings = siblings or SiblingResults()
        self.adopted: list[TrialRecord] = []  # from sibling studies, in this run of the driver
        # Called instead of `proposer.tell` where another thread uses the proposer
        self.report_outcome: Callable[[Handle, Outcome], None] | None = None
        self._restore()

    # What is trained next

    def next(self) -> Trial | None:
        """Return the next trial to launch; None when there is none now, which may change when trials end."""
        trial = self.pop_waiting()
        while trial is None and self.may_propose() and not self.waiting:
            trial = self.commit_proposal(self.prepare())
        return trial or self.next_repeat()

    def pop_waiting(self) -> Trial | None:
        """Return a proposed trial that can start; None when there is none.

        It is a reference, a repeat, a trial to retry, one whose initial weights have been trained since, or one that
        was running when an earlier driver ended.
        """
        while (trial := next(filter(self.is_startable, self.waiting), None)) is not None:
            self.waiting.remove(trial)
            if not self._adopt(trial):
                return trial
        return None

    def pop_postponed(self) -> Trial | None:
        """Return the next trial of the phase with a larger share; None when there is none."""
        return self.postponed.popleft() if self.postponed else None

    def is_startable(self, trial: Trial) -> bool:
        """Tell whether a trial can start.

        It cannot while the trial whose weights it starts from is still to be trained. If that one has ended without
        weights, this one starts, fails and reports why.
        """
        source = self.record.trials.get(trial.depends_on or "")
        return source is None or source.ended

    def may_propose(self) -> bool:
        """Tell whether `search.trials` and the strata allow another proposal."""
        with self._lock:
            used = self.counters.proposed + len(self.reserved)
        if used >= self.space.search.trials:
            return False
        return any(stratum.label not in self.exhausted for stratum in self.strata)

    def is_over(self) -> bool:
        """Tell whether nothing more will be proposed and every trial has ended."""
        return not self.postponed and self.is_exhausted() and not self.is_running()

    def is_blocked(self) -> bool:
        """Tell whether only postponed trials can be launched now."""
        if not self.postponed or self.is_running() or any(self.is_startable(trial) for trial in self.waiting):
            return False
        return bool(self.waiting) or not (self.reserved or self.may_propose())

    def is_exhausted(self) -> bool:
        """Tell whether nothing more will be launched, apart from postponed trials and retries.

        While trials run it is not known which points will be repeated.
        """
        if self.waiting or self.reserved or self.may_propose():
            return False
        if self.space.search.repeats == 1 or self.space.search.sampler == "grid":
            return True
        return not self.is_running() and not self._missing_repeats()

    def is_running(self) -> bool:
        """Tell whether some launched trial has no end yet."""
        return self.count_running() > 0

    def count_running(self) -> int:
        """Count the launched trials that have no end yet."""
        waiting = {trial.trial_id for trial in (*self.waiting, *self.postponed)}
        return sum(trial_id not in waiting for trial_id in self.counters.open)

    def _next_stratum(self) -> Stratum | None:
        """Return the stratum with the fewest trials so far; a grid ignores it."""
        reserved = Counter(trial.stratum for trial in list(self.reserved.values()))
        open_strata = [stratum for stratum in self.strata if stratum.label not in self.exhausted]
        counts = {stratum: self.counters.strata[stratum.label] + reserved[stratum.label] for stratum in open_strata}
        return min(counts, key=counts.__getitem__, default=None)

    def prepare(self) -> PreparedTrial:
        """Ask the proposer until it gives a new trial, and reserve that.

        A stratum that gives none in `GIVE_UP_AFTER` proposals counts as exhausted.

        Returns:
            The trial with its handle, or None where there is no new one; and the events to journal.
        """
        stratum, prepared = self._next_stratum(), PreparedTrial()
        for attempt in range(GIVE_UP_AFTER if stratum else 0):
            assert stratum is not None
            proposal = self.proposer.ask(stratum, explore=attempt >= EXPLORE_AFTER)
            if proposal is None:
                self.exhausted.update(stratum.label for stratum in self.strata)
                return prepared
            if self._reserve_if_new(proposal, stratum, prepared):
                return prepared
            if self.space.search.sampler == "grid":  # not exhausted by duplicates: the caller asks for the next row
                return prepared
        if stratum is not None:
            self.exhausted.add(stratum.label)
        return prepared

    def _reserve_if_new(self, proposal: Proposal, stratum: Stratum, prepared: PreparedTrial) -> bool:
        """Reserve the proposed trial and put it into `prepared`; return False if it is infeasible or a duplicate."""
        role = Role.REPEAT if proposal.repeat else Role.SEARCH
        try:
            trial = self.resolver.resolve(proposal.point, proposal.repeat, role)
        except InfeasibleError as error:
            self._add_infeasible(proposal, stratum, error, prepared.events)
            return False
        with self._lock:
            record = self.record.trials.get(trial.trial_id)
            if record is None and trial.trial_id not in self.reserved:
                self.reserved[trial.trial_id] = trial
                prepared.trial, prepared.handle = trial, proposal.handle
                return True
        self._add_duplicate(trial.trial_id, record, proposal, prepared.events)
        return False

    def _add_duplicate(self, trial_id: str, record: TrialRecord | None, proposal: Proposal, events: Events) -> None:
        """Tell the proposer the result of the equal trial; on a grid, have the point journaled as its alias."""
        if self.space.search.sampler != "grid":
            self.proposer.tell(proposal.handle, self._outcome(record) if record and record.ended else _LOST)
            return
        original = record.parameters if record else self.reserved[trial_id].point
        if proposal.point != original and proposal.point not in (record.aliases if record else []):
            events.append((Event.ALIAS, {"trial": trial_id, "parameters": proposal.point}))

    def _add_infeasible(self, proposal: Proposal, stratum: Stratum, error: InfeasibleError, events: Events) -> None:
        """Have the point journaled as infeasible; tell the proposer how far it is over a budget of step time."""
        fields_of_point = sorted(proposal.point.items())
        name = INFEASIBLE_PREFIX + "-".join(f"{field}={value}" for field, value in fields_of_point)
        # Records from before have the values alone, by which two points could have one name
        older = self.record.trials.get(INFEASIBLE_PREFIX + "-".join(f"{value}" for _, value in fields_of_point))
        if name not in self.record.trials and (older is None or older.parameters != proposal.point):
            fields = {"stratum": stratum.label, "parameters": proposal.point, "reason": str(error)}
            events.append((Event.INFEASIBLE, {"trial": name, **fields}))
        excess = (error.excess,) if isinstance(error, StepTimeError) else ()
        self.proposer.tell(proposal.handle, Outcome(OutcomeKind.INFEASIBLE, excess))

    def commit_proposal(self, prepared: PreparedTrial) -> Trial | None:
        """Journal what was prepared.

        Args:
            prepared: what `prepare` returned.

        Returns:
            The trial to launch; None if there is none, if its initial weights are not trained yet (it then waits), or
            if another study of the series has trained it.
        """
        for event, fields in prepared.events:
            self._write(event, **fields)
        trial = prepared.trial
        if trial is None:
            return None
        with self._lock:
            self._write_proposed(trial, prepared.handle)
            self.reserved.pop(trial.trial_id, None)
        if not self.is_startable(trial):
            self.waiting.append(trial)
            return None
        return None if self._adopt(trial) else trial

    def release_ready(self) -> None:
        """Give up the proposals that lie ready, because the driver ends; a resumed study proposes anew.

        Their proposer is told that they are lost. What it has been told as infeasible is journaled.
        """
        while self.ready:
            prepared = self.ready.popleft()
            if prepared.trial is not None:
                self.reserved.pop(prepared.trial.trial_id, None)
                self.proposer.tell(prepared.handle, _LOST)
            for event, fields in prepared.events:
                if event is Event.INFEASIBLE or fields["trial"] in self.record.trials:  # else an alias of no trial
                    self._write(event, **fields)

    def _adopt(self, trial: Trial) -> bool:
        """Journal the results that another study of the series has of this trial; return False if none has any."""
        sibling = self.siblings.find(trial.trial_id)
        if sibling is None:
            return False
        link_weights(sibling, self.journal.path.parent)
        trial_id = trial.trial_id
        self._write(Event.ADOPTED, trial=trial_id, **sibling.origin())
        if sibling.trial.initial and not self.record.trials[trial_id].initial:
            self.write_initial(trial_id, sibling.trial.initial)
        for epoch, metrics in sorted(sibling.trial.epochs.items()):
            if epoch not in self.record.trials[trial_id].epochs:  # an earlier adoption may have been interrupted
                self.write_epoch(trial_id, epoch, {name: value for name, value in metrics.items() if name != "time"})
        self.adopted.append(self.record.trials[trial_id])
        wrong_images = sibling.trial.wrong_images.get("val", "")
        self.finish(trial_id, sibling.trial.status, sibling.trial.reason, wrong_images, sibling.trial.removed)
        return True

    def _write_proposed(self, trial: Trial, handle: Mapping[str, Any]) -> None:
        self._write(
            Event.PROPOSED, trial=trial.trial_id, role=str(trial.role), stratum=trial.stratum, parameters=trial.point,
            specification=trial.specification.to_json(), counts=trial.counts, proposal=dict(handle),
            point_id=trial.point_id,
        )  # fmt: skip

    # Repeats of the final front

    def next_repeat(self) -> Trial | None:
        """Propose a point of the final front with its next seed; return None if there is none.

        The front is final when no trial of the search runs, waits or can be proposed.
        """
        open_trials = (self.record.trials[trial_id] for trial_id in self.counters.open)
        searching = self.reserved or any(trial.role is Role.SEARCH for trial in open_trials)
        if searching or self.waiting or self.may_propose():
            return None
        for trial in self._missing_repeats():
            self._write_proposed(trial, {})
            if not self._adopt(trial):
                return trial
        return None

    def _missing_repeats(self) -> list[Trial]:
        """Return repeats that are not proposed yet: the second seed of all points, then the third of all, and so on.

        Repeating stops when the front stands still: when every point on it has all its seeds. Beyond the front of the
        first seed it takes at most `search.repeat_trials` trials. A grid proposes its repeats itself.
        """
        search = self.space.search
        if search.sampler == "grid" or search.repeats == 1:
            return []
        repeats = []
        settings = front_settings(self.record, search.repeats, search.repeat_limit)
        for repeat in range(1, search.repeats):
            for point in settings:
                try:
                    repeats.append(self.resolver.resolve(point, repeat, Role.REPEAT))
                except InfeasibleError:
                    continue  # it met its budget of step time on another machine, but does not on this one
            repeats += self.resolver.references(repeat)[0]
        return [trial for trial in repeats if trial.trial_id not in self.record.trials]

    # Results of a trial

    def write_attempt(self, trial_id: str, worker: Mapping[str, Any]) -> None:
        """Journal that a worker has begun or resumed the trial.

        `worker` names its host, process and device.
        """
        self._write(Event.ATTEMPT, trial=trial_id, **worker)

    def write_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Journal one epoch's metrics."""
        self._write(Event.EPOCH, trial=trial_id, epoch=epoch, metrics=dict(metrics))

    def write_initial(self, trial_id: str, initial: Mapping[str, Any]) -> None:
        """Journal a trial's error, in percent, and its layers' errors after a start from trained weights."""
        self._write(Event.INITIAL, trial=trial_id, initial=dict(initial))

    def write_notice(self, trial_id: str, text: str) -> None:
        """Journal a trial's message to the user, one line."""
        self._write(Event.NOTICE, trial=trial_id, text=text)

    def write_test_error(self, trial_id: str, error: float, wrong_images: str = "") -> None:
        """Journal the test error in percent.

        It is measured once for each trial, after the search.
        """
        fields = {"wrong_images": wrong_images} if wrong_images else {}
        self._write(Event.TESTED, sync=True, trial=trial_id, test_error=error, **fields)

    def postpone(self, trial_id: str, reason: str) -> None:
        """Journal that a trial ran out of memory, and queue it for the phase with a larger share."""
        self._write(Event.POSTPONED, sync=True, trial=trial_id, reason=reason)
        self.postponed.append(_to_trial(self.record.trials[trial_id]))

    def finish(
        self, trial_id: str, status: Status, reason: str = "", wrong_images: str = "",
        removed: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Journal a trial's end and tell the proposer; a second end of the same trial changes nothing.

        `wrong_images` are those of the last epoch on record (sweeps.records.image_errors); empty where not known.
        `removed` is what is left of variational layers.
        """
        trial = self.record.trials[trial_id]
        if trial.status in TERMINAL:
            return
        fields: EventFields = {"wrong_images": wrong_images} if wrong_images else {}
        if removed:
            fields["removed"] = dict(removed)
        self._write(Event.FINISHED, sync=True, trial=trial_id, status=str(status), reason=reason, **fields)
        if trial.role is Role.SEARCH and trial.proposal:
            (self.report_outcome or self.proposer.tell)(trial.proposal, self._outcome(trial))

    def requeue(self, trial_id: str) -> None:
        """Launch a trial again after a failed attempt, before any other of its phase.

        A postponed one goes back to the phase with the larger share: on the small one it would run out of memory again.
        A trial that has ended stays ended.
        """
        record = self.record.trials[trial_id]
        if not record.ended:
            (self.postponed if record.postponed else self.waiting).appendleft(_to_trial(record))

    def _outcome(self, trial: TrialRecord) -> Outcome:
        if trial.broken:
            return _LOST
        kind = _OUTCOME_KINDS.get(trial.status, OutcomeKind.DIVERGED)
        if kind not in (OutcomeKind.COMPLETE, OutcomeKind.PRUNED):
            return Outcome(kind, trial_id=trial.trial_id)
        return Outcome(kind, self._objective_values(trial), trial.last_epoch, trial.trial_id)

    def _objective_values(self, trial: TrialRecord) -> tuple[float, ...]:
        assert trial.val_error is not None
        values = {"val_error": trial.val_error, **{key: float(count) for key, count in trial.counts.items()}}
        return tuple(values[name] for name in self.space.search.objectives)

    def _write(self, event: Event, *, sync: bool = False, **fields: Any) -> None:
        apply_event(self.record, self.journal.append(event, sync=sync, **fields))
        self.counters.update(self.record.trials[fields["trial"]])

    # Start and resume

    def _restore(self) -> None:
        """Queue references and trials that have not ended; report outcomes that the proposer has missed."""
        for trial in self._references():
            record = self.record.trials.get(trial.trial_id)
            if record is None:
                self._write_proposed(trial, {})
            if record is None or not record.ended:
                (self.postponed if record and record.postponed else self.waiting).append(trial)
        self._report_open_proposals()
        self._hide_broken()
        queued = {trial.trial_id for trial in (*self.waiting, *self.postponed)}
        for record in list(self.record.trials.values()):
            if not record.ended and record.trial_id not in queued:
                (self.postponed if record.postponed else self.waiting).append(self._propose_again(record))

    def _references(self) -> list[Trial]:
        """Return the references to train at the start.

        On a grid they have every seed, as its points do. Otherwise they have the first; `_missing_repeats` adds the
        other seeds when those of the front are trained.
        """
        repeats = self.space.search.repeats if self.space.search.sampler == "grid" else 1
        return [trial for repeat in range(repeats) for trial in self.resolver.references(repeat)[0]]

    def _report_open_proposals(self) -> None:
        """Tell the proposer how proposals ended that have no outcome in its storage; unlaunched ones were lost."""
        owners = {_hashable(trial.proposal): trial for trial in self.record.trials.values() if trial.proposal}
        for handle in self.proposer.open_handles():
            owner = owners.get(_hashable(handle))
            self.proposer.tell(handle, self._outcome(owner) if owner and owner.ended else _LOST)

    def _hide_broken(self) -> None:
        """Keep the results of trials that were marked as broken from the sampler."""
        for trial in self.record.trials.values():
            if trial.broken and trial.proposal:
                self.proposer.hide(trial.proposal, trial.trial_id)

    def _propose_again(self, record: TrialRecord) -> Trial:
        """Propose an interrupted trial under a new handle: its old proposal has been reported as lost."""
        trial, handle = _to_trial(record), record.proposal
        if record.role is Role.SEARCH and handle:
            label = handle.get("study")
            stratum = next((stratum for stratum in self.strata if stratum.label == label), self.strata[0])
            handle = self.proposer.reask(stratum, record.parameters, handle).handle
        self._write_proposed(trial, handle)
        return trial


def _to_trial(record: TrialRecord) -> Trial:
    """Make the trial of a record, to launch it again."""
    assert record.specification is not None  # the record is of a proposed trial
    return Trial(
        record.trial_id, record.role, record.stratum, dict(record.parameters), record.specification, record.counts,
        record.point_id,
    )  # fmt: skip


def _hashable(handle: Handle) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(handle.items()))
