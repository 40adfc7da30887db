"""Warm starts: what earlier studies found is told to the sampler before it proposes anything.

Only what is comparable is taken over: sound trials of the same images, network and length of training, at points that
this space could propose, in the stratum of their own budget.
"""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from sweeps.records.journal import read_journal
from sweeps.records.model import StudyRecord, TrialRecord, fold
from sweeps.records.names import JOURNAL_FILE
from sweeps.search.proposer import OptunaProposer, Outcome
from sweeps.trials.resolver import Resolver


def earlier_studies(names: tuple[str, ...], root: Path) -> list[StudyRecord]:
    """The records of studies given by name under `root` or by folder; raises InputError for one that is not there."""
    found = []
    for name in names:
        folder = next((path for path in (root / name, Path(name)) if (path / JOURNAL_FILE).is_file()), None)
        if folder is None:
            there = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{JOURNAL_FILE}"))) or "none yet"
            raise InputError(
                f"`search.warm_start`: no study {name!r} in {root}; choose from: {there}, or give a folder"
            )
        record = fold(read_journal(folder / JOURNAL_FILE))
        record.header.setdefault("name", folder.name)
        found.append(record)
    return found


def warm_start(proposer: OptunaProposer, resolver: Resolver, studies: list[StudyRecord]) -> list[str]:
    """Tell the sampler what it can use; a line for each study that says how much that was."""
    lines = []
    for study in studies:
        searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH and trial.specification]
        for trial in searched:
            if trial.broken:  # found to be so since an earlier sitting took it over, perhaps
                proposer.unlearn(_source(study, trial))
        sound = [trial for trial in searched if not trial.broken]
        ended = [trial for trial in sound if trial.status in (Status.COMPLETED, Status.STOPPED)]
        taken = sum(_learn(proposer, resolver, study, trial) for trial in ended)
        lines.append(
            f"warm start from {study.name}: {taken} of {len(ended)} ended trials taken over"
            + ("" if taken == len(ended) else " (the others are known already, or of another space, data or recipe)")
        )
    return lines


def _source(study: StudyRecord, trial: TrialRecord) -> str:
    return f"{study.name}/{trial.trial_id}"


def _learn(proposer: OptunaProposer, resolver: Resolver, study: StudyRecord, trial: TrialRecord) -> bool:
    space, spec = resolver.space, trial.specification
    if spec["data"].get("fingerprint") != resolver.data.fingerprint or trial.val_error is None:
        return False
    if spec["network"]["name"] != space.network.name or spec["train"]["epochs"] != space.epochs:
        return False
    if trial.status is Status.STOPPED and len(space.search.objectives) > 1:
        return False
    values = {"val_error": trial.val_error, **{name: float(count) for name, count in trial.counts.items()}}
    told = tuple(values[name] for name in space.search.objectives)
    kind = "complete" if trial.status is Status.COMPLETED else "pruned"
    outcome, source = Outcome(kind, told, trial.last_epoch), _source(study, trial)
    return any(proposer.learn(stratum, trial.parameters, outcome, source) for stratum in resolver.strata)
