"""The search: what is trained next, and what the sampler learns of it.

Every proposal is resolved before anything starts: its size is solved, its counts are exact; what is infeasible or has
been proposed before is never launched. Order of writing: Optuna's memory, then the journal, then the launch; and at
the end of a trial the journal, then Optuna. So a kill at any point leaves a trial that `restore` can place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank.errors import InfeasibleError, InputError
from sweeps.journal import Journal
from sweeps.proposals import Outcome, Proposal, Proposer
from sweeps.records import TERMINAL, Event, Role, Status, StudyRecord, TrialRecord, apply_event
from sweeps.space import Space
from sweeps.specification import Resolver, Stratum, Trial

EXPLORE_AFTER = 10  # proposals in a row that led nowhere, after which the sampler is set aside
GIVE_UP_AFTER = 60  # ... after which a stratum counts as used up
_KINDS = {Status.COMPLETED: "complete", Status.STOPPED: "pruned", Status.INFEASIBLE: "infeasible"}


class Search:
    """Hands out trials one at a time and keeps the record of the study current."""

    def __init__(
        self, space: Space, resolver: Resolver, proposer: Proposer, journal: Journal, record: StudyRecord,
        strata: Sequence[Stratum] | None = None,
    ):  # fmt: skip
        self.space, self.resolver, self.proposer = space, resolver, proposer
        self.strata = tuple(strata or resolver.strata)  # those that can be met
        self.journal, self.record = journal, record
        self.waiting: deque[Trial] = deque()
        self.used_up: set[str] = set()
        self._restore()

    # What is trained next

    def next(self) -> Trial | None:
        """The next trial to launch; None when there is nothing more to propose."""
        while True:
            if self.waiting:
                return self.waiting.popleft()
            if self.proposed_count() >= self.space.search.trials:
                return None
            stratum = self._next_stratum()
            if stratum is None:
                return None
            trial = self._propose(stratum)
            if trial is not None:
                return trial

    def proposed_count(self) -> int:
        """How much of `search.trials` is used: trials of the search, and on a grid also rows that repeat one."""
        searched = [trial for trial in self.record.trials.values() if trial.role is Role.SEARCH]
        launched = [trial for trial in searched if trial.status is not Status.INFEASIBLE and not trial.broken]
        rows = sum(len(trial.aliases) for trial in launched) if self.space.search.sampler == "grid" else 0
        return len(launched) + rows

    def _next_stratum(self) -> Stratum | None:
        """The stratum with the fewest trials so far (a grid has its own order and takes any)."""
        known = self.record.trials.values()
        launched = [trial for trial in known if trial.status is not Status.INFEASIBLE and not trial.broken]
        counts = Counter(trial.stratum for trial in launched)
        open_strata = [stratum for stratum in self.strata if stratum.label not in self.used_up]
        return min(open_strata, key=lambda stratum: counts[stratum.label], default=None)

    def _propose(self, stratum: Stratum) -> Trial | None:
        """A new trial in this stratum; None (and the stratum marked as used up) when none is found."""
        for attempt in range(GIVE_UP_AFTER):
            proposal = self.proposer.ask(stratum, explore=attempt >= EXPLORE_AFTER)
            if proposal is None:
                self.used_up.update(each.label for each in self.strata)
                return None
            try:
                trial = self.resolver.resolve(proposal.point)
            except InfeasibleError as error:
                self._record_infeasible(proposal, stratum, str(error))
                continue
            known = self.record.trials.get(trial.trial_id)
            if known is None:
                self._record_proposed(trial, proposal.handle)
                return trial
            self._record_repeat(known, proposal)
            if self.space.search.sampler == "grid":
                return None
        self.used_up.add(stratum.label)
        return None

    def _record_proposed(self, trial: Trial, handle: Mapping[str, Any]) -> None:
        self._write(
            Event.PROPOSED, trial=trial.trial_id, role=str(trial.role), stratum=trial.stratum, parameters=trial.point,
            specification=trial.specification, counts=trial.counts, proposal=dict(handle),
        )  # fmt: skip

    def _record_repeat(self, known: TrialRecord, proposal: Proposal) -> None:
        if self.space.search.sampler == "grid":
            if proposal.point != known.parameters and proposal.point not in known.aliases:
                self._write(Event.ALIAS, trial=known.trial_id, parameters=proposal.point)
            return
        self.proposer.tell(proposal.handle, self._outcome(known) if known.ended else Outcome("lost"))

    def _record_infeasible(self, proposal: Proposal, stratum: Stratum, reason: str) -> None:
        name = "infeasible-" + "-".join(f"{value}" for _, value in sorted(proposal.point.items()))
        if name not in self.record.trials:
            self._write(
                Event.INFEASIBLE, trial=name, stratum=stratum.label, parameters=proposal.point, reason=reason
            )  # fmt: skip
        self.proposer.tell(proposal.handle, Outcome("infeasible"))

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

    def finish(self, trial_id: str, status: Status, reason: str = "") -> None:
        """A trial's end; the sampler learns of it. A second end of the same trial changes nothing."""
        trial = self.record.trials[trial_id]
        if trial.status in TERMINAL:
            return
        self._write(Event.FINISHED, sync=True, trial=trial_id, status=str(status), reason=reason)
        if trial.role is Role.SEARCH:
            self.proposer.tell(trial.proposal, self._outcome(trial))

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

    # Start and resume

    def _restore(self) -> None:
        """Queue the references and all trials without an end; settle what the sampler's memory still holds open."""
        for name in self.space.references:
            trial = self.resolver.reference(name)
            known = self.record.trials.get(trial.trial_id)
            if known is None:
                self._record_proposed(trial, {})
            if known is None or not known.ended:
                self.waiting.append(trial)
        self._settle_open_proposals()
        self._forget_broken()
        for record in list(self.record.trials.values()):
            if record.role is Role.SEARCH and not record.ended:
                self.waiting.append(self._again(record))

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
        label = record.proposal.get("study")
        stratum = next((stratum for stratum in self.strata if stratum.label == label), self.strata[0])
        proposal = self.proposer.ask_again(stratum, record.parameters, record.proposal)
        trial = Trial(
            record.trial_id, record.role, record.stratum, dict(record.parameters), record.specification, record.counts
        )  # fmt: skip
        self._record_proposed(trial, proposal.handle)
        return trial


def _key(handle: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(handle.items()))


def reachable_strata(space: Space, resolver: Resolver) -> tuple[tuple[Stratum, ...], list[str]]:
    """The strata that some method of the space can meet, and a line for each that none can.

    Raises InputError, with the reason, when none can be met.
    """
    if not space.solves or space.search.sampler == "grid":
        return resolver.strata, []
    reasons = {stratum: _reasons(space, resolver, stratum) for stratum in resolver.strata}
    lines = [f"{stratum.label}: {reason}" for stratum, reason in reasons.items() if reason is not None]
    if len(lines) == len(reasons):
        raise InputError(f"no method can meet the budget: {lines[-1]}")
    return tuple(stratum for stratum, reason in reasons.items() if reason is None), lines


def _reasons(space: Space, resolver: Resolver, stratum: Stratum) -> str | None:
    """The first reason when every method and shape fails at the largest budget of the stratum; None if one fits."""
    first = None
    for point in corner_points(space, stratum):
        try:
            resolver.resolve(point)
        except InfeasibleError as error:
            first = first or str(error)
        else:
            return None
    return first


def corner_points(space: Space, stratum: Stratum) -> list[dict[str, Any]]:
    """Every method and finite shape of the space at the largest budget of the stratum, other fields at one end."""
    points: list[dict[str, Any]] = [{}]
    (_, method_domains), *_ = space.alternatives
    for key, domain in method_domains.items():
        values = domain.grid() or domain.corners()
        points = [{**point, f"method.{key}": value} for point in points for value in values]
    fixed = dict(stratum.fixed)
    if stratum.budget:
        fixed[stratum.budget] = stratum.share[1]
    others = {name: domain.corners()[-1] for name, domain in space.domains.items() if name not in fixed}
    return [{**others, **fixed, **point} for point in points]
