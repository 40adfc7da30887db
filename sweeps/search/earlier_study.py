"""Warm starts: the results of earlier studies are told to the sampler before it proposes anything.

Only comparable results are taken over: sound trials on the same images, with the same network and length of training,
at points that this space could propose, in the stratum of their own budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lowrank.errors import InfeasibleError, InputError
from sweeps.records import JOURNAL_FILE, Role, Status, StudyRecord, TrialRecord, TrialSpec, fold_journal
from sweeps.search.optuna_proposer import OptunaProposer
from sweeps.search.proposer import Outcome, OutcomeKind
from sweeps.trials import Resolver


def earlier_studies(
    names: Iterable[str], root: Path, on_missing: Callable[[str], None] | None = None
) -> list[StudyRecord]:  # fmt: skip
    """Read the studies of `search.warm_start`.

    Args:
        names: the studies, by their names under `root` or by their folders.
        root: the folder of studies.
        on_missing: takes a line for each study that is not there or is damaged; None makes that an error.

    Returns:
        The records of the others.

    Raises:
        InputError: a study is not there (the text lists those there are) or is damaged, and `on_missing` is None.
    """
    studies = []
    for name in names:
        try:
            studies.append(_read(name, root))
        except InputError as error:
            if on_missing is None:
                raise
            on_missing(f"{error}; what was taken over from {name!r} before stays")
    return studies


def _read(name: str, root: Path) -> StudyRecord:
    folder = _find(name, root)
    if folder is None:
        choices = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{JOURNAL_FILE}"))) or "none yet"
        raise InputError(f"`search.warm_start`: no study {name!r} in {root}; choose from: {choices}, or give a folder")
    record = fold_journal(folder / JOURNAL_FILE)
    if not record.name:
        record.header = record.header.named(folder.name)
    return record


def absolute_names(names: Iterable[str], root: Path) -> list[str]:
    """Name earlier studies so that they are found from any current folder.

    Args:
        names: the studies, by their names under `root` or by their folders.
        root: the folder of studies.

    Returns:
        The same, folders as absolute paths; a study that is not there as it was named.
    """
    folders = ((name, _find(name, root)) for name in names)
    return [name if folder in (None, root / name) else str(Path(name).resolve()) for name, folder in folders]


def _find(name: str, root: Path) -> Path | None:
    return next((path for path in (root / name, Path(name)) if (path / JOURNAL_FILE).is_file()), None)


def warm_start(proposer: OptunaProposer, resolver: Resolver, studies: list[StudyRecord]) -> list[str]:
    """Tell the sampler the comparable results of earlier studies.

    Args:
        proposer: the new study's proposer.
        resolver: the new study's resolver.
        studies: the earlier studies.

    Returns:
        A line for each study that says how many results were taken over.
    """
    lines = []
    for study in studies:
        searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH and trial.specification]
        for trial in searched:
            if trial.broken:  # perhaps marked only after an earlier run of the driver took its result over
                proposer.hide_source(_source(study, trial))
        sound = [trial for trial in searched if not trial.broken]
        ended = [trial for trial in sound if trial.status in (Status.COMPLETED, Status.STOPPED)]
        count = sum(_learn(proposer, resolver, study, trial) for trial in ended)
        lines.append(
            f"warm start from {study.name}: {count} of {len(ended)} ended trials taken over"
            + ("" if count == len(ended) else " (the others are known already, or of another space, data or recipe)")
        )
    return lines


def _source(study: StudyRecord, trial: TrialRecord) -> str:
    return f"{study.name}/{trial.trial_id}"


def _is_same_training(resolver: Resolver, trial: TrialRecord, spec: TrialSpec) -> bool:
    """Whether the point would have the same network and the same recipe in this study."""
    points = resolver.points
    if all(points.point_domains(trial.parameters, stratum) is None for stratum in resolver.strata):
        return False
    try:
        expected = resolver.resolve(dict(trial.parameters)).specification
    except InfeasibleError:
        return False
    return (expected.network, expected.train) == (spec.network, spec.train)


def _learn(proposer: OptunaProposer, resolver: Resolver, study: StudyRecord, trial: TrialRecord) -> bool:
    """Tell the sampler one result; False where it is not comparable or is known already."""
    space, spec = resolver.space, trial.specification
    if spec is None or spec.data.fingerprint != resolver.data.fingerprint or trial.val_error is None:
        return False
    if not _is_same_training(resolver, trial, spec):
        return False
    if trial.status is Status.STOPPED and len(space.search.objectives) > 1:
        return False
    metrics = {"val_error": trial.val_error, **{name: float(count) for name, count in trial.counts.items()}}
    values = tuple(metrics[name] for name in space.search.objectives)
    kind = OutcomeKind.COMPLETE if trial.status is Status.COMPLETED else OutcomeKind.PRUNED
    outcome, source = Outcome(kind, values, trial.last_epoch), _source(study, trial)
    return any(proposer.learn(stratum, trial.parameters, outcome, source) for stratum in resolver.strata)
