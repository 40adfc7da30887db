"""Compare trials that were trained again with their records, in lines for the user."""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import InputError
from sweeps.records import MACHINE_METRICS, Status, StudyRecord, TrialRecord, find_trial, front, load_study, mean_error
from sweeps.space import RetrainOrigin


def retrain_lines(record: StudyRecord) -> list[str]:
    """Compare the trials of a retraining study with the recorded ones.

    Args:
        record: the study that trained them again.

    Returns:
        The lines to print; none for any other study.
    """
    origin = record.header.origin
    if origin is None:
        return []
    try:
        recorded = load_study(Path(origin.study))
        if origin.finishes is not None:
            return _stopped_lines(record, recorded, origin)
        return _reproduction_lines(record, recorded, origin)
    except InputError as error:
        return [f"not compared with the record: {error}"]


def _reproduction_lines(record: StudyRecord, recorded: StudyRecord, origin: RetrainOrigin) -> list[str]:
    ((old_id, new_id),) = origin.ids.items()
    if new_id not in record.trials:
        return []
    old, new = find_trial(recorded, old_id), record.trials[new_id]
    results = f"on record {_result(old)}; now {_result(new)}"
    return [f"trial {old.trial_id} of {origin.study}: {results}", _first_difference(old, new)]


def _result(trial: TrialRecord) -> str:
    error = "no error" if trial.val_error is None else f"{trial.val_error:.4g} % validation error"
    test = "" if trial.test_error is None else f", {trial.test_error:.4g} % test error"
    return f"{error}{test}, {trial.status.replace('_', ' ')} after epoch {trial.last_epoch}"


def _first_difference(old: TrialRecord, new: TrialRecord) -> str:
    common = sorted(old.epochs.keys() & new.epochs.keys())
    differing = (epoch for epoch in common if _training_metrics(old, epoch) != _training_metrics(new, epoch))
    first = next(differing, None)
    if first is None:
        both = "the one epoch" if len(common) == 1 else f"all {len(common)} epochs"
        return f"{both} that both have came out the same, to the last digit of every error and loss"
    devices = [str(trial.last_attempt("device") or "an unknown device") for trial in (old, new)]
    formats = [trial.number_format or "an unknown number format" for trial in (old, new)]
    reason = f"on record on {devices[0]} in {formats[0]}, now on {devices[1]} in {formats[1]}"
    if devices == ["cuda", "cuda"] and formats[0] == formats[1]:
        reason = "on a GPU sums are not always taken in the same order"
    return f"they differ from epoch {first} on ({reason})"


def _training_metrics(trial: TrialRecord, epoch: int) -> dict[str, float]:
    """An epoch's metrics but those of the machine, which differ every time."""
    metrics = trial.epochs[epoch].items()
    return {name: value for name, value in metrics if name not in MACHINE_METRICS and name != "time"}


def _stopped_lines(record: StudyRecord, recorded: StudyRecord, origin: RetrainOrigin) -> list[str]:
    pairs = [
        (recorded.trials[old], record.trials[new])
        for old, new in origin.ids.items()
        if old in recorded.trials and new in record.trials
    ]
    ended = [new for _, new in pairs if new.status is Status.COMPLETED and not new.broken]
    lines = [f"{_describe(old)}: {_verdict(recorded, old, new)}" for old, new in pairs]
    lost = sum(_belongs_on_front(recorded, new) for new in ended)
    return [*lines, _answer(lost, len(ended), origin.stopped or 0)]


def _describe(trial: TrialRecord) -> str:
    size = f"{trial.counts['params']:,} parameters" if "params" in trial.counts else "unknown size"
    settings = ", ".join(
        f"{key.rpartition('.')[2]} {value}" for key, value in trial.parameters.items()
        if key.startswith("method.") and key != "method.name"
    )  # fmt: skip
    return f"{trial.trial_id} ({trial.method}, {settings}; {size})" if settings else f"{trial.trial_id} ({size})"


def _verdict(recorded: StudyRecord, old: TrialRecord, new: TrialRecord) -> str:
    stop = f"stopped after epoch {old.last_epoch} at {old.val_error:.2f} %"
    if new.status is not Status.COMPLETED or new.val_error is None:
        return f"{stop}; {new.status.replace('_', ' ')} after epoch {new.last_epoch}"
    best = _best_up_to_size(recorded, new)
    front_error = "no point of the front is that small" if best is None else f"the front has {best:.2f} % at that size"
    verdict = "would stand on the front" if _belongs_on_front(recorded, new) else "not on the front"
    return f"{stop}; to its end {new.val_error:.2f} %, {front_error}: {verdict}"


def _best_up_to_size(recorded: StudyRecord, new: TrialRecord) -> float | None:
    """The lowest mean validation error on the front, in percent, of networks no larger than this one."""
    points = [seeds for seeds in front(recorded.trials.values()) if seeds[0].counts["params"] <= new.counts["params"]]
    return min(map(mean_error, points), default=None)


def _belongs_on_front(recorded: StudyRecord, new: TrialRecord) -> bool:
    best = _best_up_to_size(recorded, new)
    return new.val_error is not None and (best is None or new.val_error < best)


def _answer(lost: int, ended: int, stopped: int) -> str:
    if ended == 0:
        return f"none of the {stopped} that were stopped has been trained to its end yet"
    count = f"{lost or 'none'} would stand on it"
    return f"did stopping lose a point of the front? Of {ended} of the {stopped} that were stopped, {count}"
