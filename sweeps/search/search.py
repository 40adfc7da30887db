"""The search: what is trained next, and what the sampler learns of it.

Every proposal is resolved before anything starts: its size is solved, its counts are exact; what is infeasible or has
been proposed before is never launched. Order of writing: Optuna's memory, then the journal, then the launch; and at
the end of a trial the journal, then Optuna. So a kill at any point leaves a trial that `restore` can place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrank.errors import InfeasibleError
from sweeps.records.events import TERMINAL, Event, Role, Status
from sweeps.records.fronts import front_points
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord, TrialRecord, apply_event
from sweeps.records.specification import Trial
from sweeps.search.counters import TrialCounters
from sweeps.search.proposer import Outcome, Proposal, Proposer
from sweeps.search.reuse import SiblingResults, link_weights
from sweeps.space.model import Space
from sweeps.space.strata import Stratum
from sweeps.trials.feasibility import reachable_strata
from sweeps.trials.resolver import Resolver, StepTimeError

__all__ = ["PreparedTrial", "Search", "reachable_strata"]

EXPLORE_AFTER = 10  # proposals in a row that led nowhere, after which the sampler is set aside
GIVE_UP_AFTER = 60  # ... after which a stratum counts as used up
_KINDS = {
    Status.COMPLETED: "complete", Status.STOPPED: "pruned", Status.INFEASIBLE: "infeasible",
    Status.OUT_OF_MEMORY: "infeasible",
}  # fmt: skip
Notes = list[tuple[Event, dict[str, Any]]]  # what is to be journaled


@dataclass
class PreparedTrial:
    """What asking the proposer led to: a new trial (None where nothing new was found) and what to note of the way."""

    trial: Trial | None = None
    handle: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=list)


class Search:
    """Hands out trials one at a time and keeps the record of the study current.

    `prepare` may run in a thread of its own (sweeps.search.prefetch): it alone asks the proposer, and it writes
    nothing.
    """

    def __init__(
        self, space: Space, resolver: Resolver, proposer: Proposer, journal: Journal, record: StudyRecord,
        strata: Sequence[Stratum] | None = None, siblings: SiblingResults | None = None,
    ):  # fmt: skip
        """`siblings` are the trials of the other studies of a series, which are adopted rather than trained again."""
        self.space, self.resolver, self.proposer = space, resolver, proposer
        self.strata = tuple(strata or resolver.strata)  # those that can be met
        self.journal, self.record = journal, record
        self.counters = TrialCounters(record.trials.values(), grid=space.search.sampler == "grid")
        self.waiting: deque[Trial] = deque()
        self.postponed: deque[Trial] = deque()  # for a phase with a larger share, when the rest is done
        self.exhausted: set[str] = set()
        self.reserved: dict[str, Trial] = {}  # prepared, not yet handed out
        self.siblings = siblings or SiblingResults()
        self.adopted: list[TrialRecord] = []  # in this sitting
        self.report_outcome: Callable[[dict[str, Any], Outcome], None] | None = None  # instead of `proposer.tell`
        self._restore()

    # What is trained next

    def next(self) -> Trial | None:
        """The next trial to launch; None when there is nothing to launch now: see `is_over`."""
        trial = self.pop_waiting()
        while trial is None and self.may_propose() and not self.waiting:
            trial = self.commit_proposal(self.prepare())
        return trial or self.next_repeat()

    def pop_waiting(self) -> Trial | None:
        """A trial that needs no proposal: a reference, one that a kill left without an end, a repeat."""
        while (trial := next(filter(self.is_startable, self.waiting), None)) is not None:
            self.waiting.remove(trial)
            if not self._adopt(trial):
                return trial
        return None

    def pop_postponed(self) -> Trial | None:
        """The next trial of the phase with a larger share."""
        return self.postponed.popleft() if self.postponed else None

    def is_startable(self, trial: Trial) -> bool:
        """Whether the weights that it starts from are there, or will never be (it then fails and says so)."""
        source = self.record.trials.get(trial.needs or "")
        return source is None or source.ended

    def may_propose(self) -> bool:
        """Whether there is room for a further proposal, as far as is known."""
        if self.counters.proposed + len(self.reserved) >= self.space.search.trials:
            return False
        return any(stratum.label not in self.exhausted for stratum in self.strata)

    def is_over(self) -> bool:
        """Whether all is proposed, and every trial has an end."""
        return not self.postponed and self.is_exhausted() and not self.is_running()

    def is_blocked(self) -> bool:
        """Whether nothing can be launched before what was put off has been trained."""
        if not self.postponed or self.is_running() or any(self.is_startable(trial) for trial in self.waiting):
            return False
        return bool(self.waiting) or not (self.reserved or self.may_propose())

    def is_exhausted(self) -> bool:
        """Whether nothing more will be launched, though trials may still run (on whose ends repeats depend)."""
        if self.waiting or self.reserved or self.may_propose():
            return False
        if self.space.search.repeats == 1 or self.space.search.sampler == "grid":
            return True
        return not self.is_running() and not self._missing_repeats()

    def is_running(self) -> bool:
        """Whether some launched trial has no end yet."""
        waiting = {trial.trial_id for trial in (*self.waiting, *self.postponed)}
        return any(trial_id not in waiting for trial_id in self.counters.open)

    def _next_stratum(self) -> Stratum | None:
        """The stratum with the fewest trials so far (a grid has its own order and takes any)."""
        reserved = Counter(trial.stratum for trial in list(self.reserved.values()))
        open_strata = [stratum for stratum in self.strata if stratum.label not in self.exhausted]
        return min(open_strata, key=lambda each: self.counters.strata[each.label] + reserved[each.label], default=None)

    def prepare(self) -> PreparedTrial:
        """Ask until something new is found, and reserve it; a stratum in which nothing is found counts as used up."""
        stratum, prepared = self._next_stratum(), PreparedTrial()
        for attempt in range(GIVE_UP_AFTER if stratum else 0):
            assert stratum is not None
            proposal = self.proposer.ask(stratum, explore=attempt >= EXPLORE_AFTER)
            if proposal is None:
                self.exhausted.update(each.label for each in self.strata)
                return prepared
            if self._is_new(proposal, stratum, prepared):
                return prepared
            if self.space.search.sampler == "grid":
                return prepared
        if stratum is not None:
            self.exhausted.add(stratum.label)
        return prepared

    def _is_new(self, proposal: Proposal, stratum: Stratum, prepared: PreparedTrial) -> bool:
        """Whether the proposal is a trial that has not been proposed before; it is then reserved."""
        role = Role.REPEAT if proposal.repeat else Role.SEARCH
        try:
            trial = self.resolver.resolve(proposal.point, proposal.repeat, role)
        except InfeasibleError as error:
            self._note_infeasible(proposal, stratum, error, prepared.notes)
            return False
        known = self.record.trials.get(trial.trial_id)
        if known is None and trial.trial_id not in self.reserved:
            self.reserved[trial.trial_id] = trial
            prepared.trial, prepared.handle = trial, proposal.handle
            return True
        self._note_repeat(trial.trial_id, known, proposal, prepared.notes)
        return False

    def _note_repeat(self, trial_id: str, known: TrialRecord | None, proposal: Proposal, notes: Notes) -> None:
        if self.space.search.sampler != "grid":
            self.proposer.tell(proposal.handle, self._outcome(known) if known and known.ended else Outcome("lost"))
            return
        first = known.parameters if known else self.reserved[trial_id].point
        if proposal.point != first and proposal.point not in (known.aliases if known else []):
            notes.append((Event.ALIAS, {"trial": trial_id, "parameters": proposal.point}))

    def _note_infeasible(self, proposal: Proposal, stratum: Stratum, error: InfeasibleError, notes: Notes) -> None:
        name = "infeasible-" + "-".join(f"{value}" for _, value in sorted(proposal.point.items()))
        if name not in self.record.trials:
            about = {"stratum": stratum.label, "parameters": proposal.point, "reason": str(error)}
            notes.append((Event.INFEASIBLE, {"trial": name, **about}))
        excess = (error.excess,) if isinstance(error, StepTimeError) else ()
        self.proposer.tell(proposal.handle, Outcome("infeasible", excess))

    def commit_proposal(self, prepared: PreparedTrial) -> Trial | None:
        """Journal what was prepared; the trial to launch, None where there is none, its start is not there yet, or
        another study of the series has trained it."""
        for event, about in prepared.notes:
            self._write(event, **about)
        trial = prepared.trial
        if trial is None:
            return None
        self._write_proposed(trial, prepared.handle)
        self.reserved.pop(trial.trial_id, None)
        if not self.is_startable(trial):
            self.waiting.append(trial)
            return None
        return None if self._adopt(trial) else trial

    def _adopt(self, trial: Trial) -> bool:
        """Take over what another study of the series has trained of it; False where there is nothing to take over."""
        known = self.siblings.find(trial.trial_id)
        if known is None:
            return False
        link_weights(known, self.journal.path.parent)
        own, record = trial.trial_id, known.trial
        self._write(Event.ADOPTED, trial=own, **known.origin())
        for epoch, metrics in sorted(record.epochs.items()):
            if epoch not in self.record.trials[own].epochs:  # a kill may have cut this off
                self.write_epoch(own, epoch, {name: value for name, value in metrics.items() if name != "time"})
        self.adopted.append(self.record.trials[own])
        self.finish(own, record.status, record.reason)
        return True

    def _write_proposed(self, trial: Trial, handle: Mapping[str, Any]) -> None:
        self._write(
            Event.PROPOSED, trial=trial.trial_id, role=str(trial.role), stratum=trial.stratum, parameters=trial.point,
            specification=trial.specification, counts=trial.counts, proposal=dict(handle), point_id=trial.point_id,
        )  # fmt: skip

    # Repeats of the final front

    def next_repeat(self) -> Trial | None:
        """A further seed of a point of the final front, once every other trial has its end."""
        running = (self.record.trials[trial_id] for trial_id in self.counters.open)
        searching = self.reserved or any(trial.role is Role.SEARCH for trial in running)
        for trial in [] if searching or self.waiting or self.may_propose() else self._missing_repeats():
            self._write_proposed(trial, {})
            if not self._adopt(trial):
                return trial
        return None

    def _missing_repeats(self) -> list[Trial]:
        """Repeats not yet proposed, the second seed of every point before the third of any; none on a grid."""
        if self.space.search.sampler == "grid":
            return []
        found = []
        for repeat in range(1, self.space.search.repeats):
            for point in front_points(self.record):
                try:
                    found.append(self.resolver.resolve(point, repeat, Role.REPEAT))
                except InfeasibleError:
                    continue  # its budget of step time is of another machine
            found += self.resolver.references(repeat)[0]
        return [trial for trial in found if trial.trial_id not in self.record.trials]

    # What became of a trial

    def write_attempt(self, trial_id: str, about: Mapping[str, Any]) -> None:
        """A worker took the trial up."""
        self._write(Event.ATTEMPT, trial=trial_id, **about)

    def write_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """One epoch's metrics."""
        self._write(Event.EPOCH, trial=trial_id, epoch=epoch, metrics=dict(metrics))

    def write_notice(self, trial_id: str, text: str) -> None:
        """What a trial has to say to the user, one line."""
        self._write(Event.NOTICE, trial=trial_id, text=text)

    def write_test_error(self, trial_id: str, error: float) -> None:
        """The one look at the test split, in percent."""
        self._write(Event.TESTED, sync=True, trial=trial_id, test_error=error)

    def postpone(self, trial_id: str, reason: str) -> None:
        """Try a trial whose memory ran out once more, in the phase with a larger share."""
        self._write(Event.POSTPONED, sync=True, trial=trial_id, reason=reason)
        known = self.record.trials[trial_id]
        self.postponed.append(_trial_of(known))

    def finish(self, trial_id: str, status: Status, reason: str = "") -> None:
        """A trial's end; the sampler learns of it. A second end of the same trial changes nothing."""
        trial = self.record.trials[trial_id]
        if trial.status in TERMINAL:
            return
        self._write(Event.FINISHED, sync=True, trial=trial_id, status=str(status), reason=reason)
        if trial.role is Role.SEARCH and trial.proposal:
            (self.report_outcome or self.proposer.tell)(trial.proposal, self._outcome(trial))

    def requeue(self, trial_id: str) -> None:
        """An attempt failed: the trial is handed out again, before anything new. One that has its end stays ended."""
        record = self.record.trials[trial_id]
        if not record.ended:
            self.waiting.appendleft(_trial_of(record))

    def _outcome(self, trial: TrialRecord) -> Outcome:
        if trial.broken:
            return Outcome("lost")
        kind = _KINDS.get(trial.status, "lost" if trial.status is Status.FAILED else "bad")
        if kind not in ("complete", "pruned"):
            return Outcome(kind, trial=trial.trial_id)
        return Outcome(kind, self._values(trial), trial.last_epoch, trial.trial_id)

    def _values(self, trial: TrialRecord) -> tuple[float, ...]:
        assert trial.val_error is not None
        found = {"val_error": trial.val_error, **{key: float(value) for key, value in trial.counts.items()}}
        return tuple(found[name] for name in self.space.search.objectives)

    def _write(self, event: Event, *, sync: bool = False, **fields: Any) -> None:
        apply_event(self.record, self.journal.append(event, sync=sync, **fields))
        self.counters.update(self.record.trials[fields["trial"]])

    # Start and resume

    def _restore(self) -> None:
        """Queue the references and all trials without an end; settle what the sampler's memory still holds open."""
        for trial in self._references():
            known = self.record.trials.get(trial.trial_id)
            if known is None:
                self._write_proposed(trial, {})
            if known is None or not known.ended:
                (self.postponed if known and known.postponed else self.waiting).append(trial)
        self._settle_open_proposals()
        self._forget_broken()
        for record in list(self.record.trials.values()):
            if not record.ended and record.trial_id not in {each.trial_id for each in (*self.waiting, *self.postponed)}:
                (self.postponed if record.postponed else self.waiting).append(self._again(record))

    def _references(self) -> list[Trial]:
        """On a grid, whose rows are all repeated, with every seed; else the further seeds come with the front's."""
        repeats = self.space.search.repeats if self.space.search.sampler == "grid" else 1
        return [trial for repeat in range(repeats) for trial in self.resolver.references(repeat)[0]]

    def _settle_open_proposals(self) -> None:
        owners = {_key(trial.proposal): trial for trial in self.record.trials.values() if trial.proposal}
        for handle in self.proposer.open_handles():
            owner = owners.get(_key(handle))
            self.proposer.tell(handle, self._outcome(owner) if owner and owner.ended else Outcome("lost"))

    def _forget_broken(self) -> None:
        for trial in self.record.trials.values():
            if trial.broken and trial.proposal:
                self.proposer.forget(trial.proposal, trial.trial_id)

    def _again(self, record: TrialRecord) -> Trial:
        trial, handle = _trial_of(record), record.proposal
        if record.role is Role.SEARCH and handle:
            label = handle.get("study")
            stratum = next((stratum for stratum in self.strata if stratum.label == label), self.strata[0])
            handle = self.proposer.reask(stratum, record.parameters, handle).handle
        self._write_proposed(trial, handle)
        return trial


def _trial_of(record: TrialRecord) -> Trial:
    """The trial of a record, to be launched again."""
    return Trial(
        record.trial_id, record.role, record.stratum, dict(record.parameters), record.specification, record.counts,
        record.point_id,
    )  # fmt: skip


def _key(handle: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(handle.items()))
