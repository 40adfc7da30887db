"""Joins the records of several studies into a new one: of each trial the best copy, its counts checked."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from analysis.sources.recount import NotOnRecordError, recount
from lowrank.errors import InputError
from lowrank.serving import IMAGES_FILE, MODEL_FILE
from lowrank.utils import atomic_folder, format_counted, write_bytes
from sweeps.records import (
    CHECKPOINT_FILE,
    EPOCHS_FILE,
    JOURNAL_FILE,
    MODELS_FOLDER,
    NOTES_FILE,
    RESULTS_FILE,
    TRIALS_FOLDER,
    Event,
    EventFields,
    HeaderStratum,
    Journal,
    Note,
    Status,
    StudyHeader,
    StudyRecord,
    TrialRecord,
    count_test_looks,
    epochs_to_table,
    is_study,
    notes_to_bytes,
    read_notes,
    results_to_table,
)

SAME_ERROR = 1e-9  # points; errors are shares of whole images
SHOWN_DISAGREEMENTS = 10


@dataclass(frozen=True, kw_only=True)
class StudySource:
    """One study to take in.

    Attributes:
        label: names it in messages; unique among the sources.
        study: its records.
        folder: where its weights lie; None for a study that was read from a tracking store.
    """

    label: str
    study: StudyRecord
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class CollatedStudy:
    """The new study, and what was noticed while it was put together.

    Attributes:
        study: its records.
        sources: trial id -> the study that its record and its weights come from.
        duplicates: how many further copies of its trials there were.
        rejected: a line for each trial that was left out because its counts are wrong.
        unchecked: a line for each group of trials whose counts could not be checked, with the reason.
        disagreements: a line for each trial whose completed copies have different validation errors, the widest first.
        unlike: a line for each group of trials whose copies were computed in different number formats: under one id
            `precision: auto` is another one on a GPU than on a CPU.
        notes: of all the studies, from their files of notes.
    """

    study: StudyRecord
    sources: dict[str, StudySource]
    duplicates: int
    rejected: tuple[str, ...]
    unchecked: tuple[str, ...]
    disagreements: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


def collate(
    sources: Sequence[StudySource], name: str, mixed: Mapping[str, Sequence[str]] | None = None, *,
    allow_code: bool = False,
) -> CollatedStudy:  # fmt: skip
    """Join studies of the same data in memory.

    Args:
        sources: the studies, of which earlier ones come first where nothing else decides.
        name: of the new study.
        mixed: the fields in which the studies differ, with their values as JSON; the new study is marked by them.
        allow_code: whether networks in the user's code are imported, to count them.

    Returns:
        The new study.

    Raises:
        InputError: the studies are of different data or splits, so that their errors cannot stand in one table.
    """
    _check_data(sources)
    copies: dict[str, tuple[TrialRecord, StudySource]] = {}
    errors: dict[str, list[tuple[str, float]]] = defaultdict(list)
    formats: dict[str, list[tuple[str, str]]] = defaultdict(list)
    duplicates = 0
    rejected: list[str] = []
    unchecked: Counter[tuple[str, str]] = Counter()
    for source in sources:
        for trial in source.study.trials.values():
            try:
                mistake = _wrong_count(trial, source, allow_code)
            except NotOnRecordError as error:
                mistake = None
                unchecked[source.label, str(error)] += 1
            if mistake is not None:
                rejected.append(mistake)
                continue
            duplicates += trial.trial_id in copies
            if trial.status is not Status.INFEASIBLE and trial.number_format:
                formats[trial.trial_id].append((source.label, trial.number_format))
            if trial.status is Status.COMPLETED and trial.val_error is not None and not trial.broken:
                errors[trial.trial_id].append((source.label, trial.val_error))
            copies[trial.trial_id] = better_copy(copies.get(trial.trial_id), (trial, source))
    used = {trial_id: source.label for trial_id, (_, source) in copies.items()}
    study = StudyRecord(
        header=_header(sources, name, mixed or {}), trials={trial_id: trial for trial_id, (trial, _) in copies.items()},
        notes=list(dict.fromkeys(note for source in sources for note in source.study.notes)),
        tags={key: value for source in reversed(sources) for key, value in source.study.tags.items()},
    )  # fmt: skip
    return CollatedStudy(
        study=study,
        sources={trial_id: source for trial_id, (_, source) in copies.items()},
        duplicates=duplicates,
        rejected=tuple(rejected),
        unchecked=tuple(
            f"{format_counted(n, 'trial')} of {label}: {reason}" for (label, reason), n in unchecked.items()
        ),
        disagreements=_disagreements(errors, used),
        unlike=_unlike(formats, used),
        notes=tuple(note for source in sources if source.folder for note in read_notes(source.folder)),
    )


def _disagreements(errors: Mapping[str, Sequence[tuple[str, float]]], used: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each trial whose copies have different errors; equal ones are equal numbers but for rounding."""
    lines = []
    for trial_id, copies in errors.items():
        values = [error for _, error in copies]
        if max(values) - min(values) > SAME_ERROR:
            texts = [f"{error:.2f} % in {label}{' (used)' * (label == used[trial_id])}" for label, error in copies]
            lines.append((max(values) - min(values), f"{trial_id} has a validation error of {', '.join(texts)}"))
    return tuple(line for _, line in sorted(lines, key=lambda pair: -pair[0]))


def _unlike(formats: Mapping[str, Sequence[tuple[str, str]]], used: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each combination of formats in which copies of one trial were computed."""
    groups: Counter[str] = Counter()
    for trial_id, copies in formats.items():
        if len({number_format for _, number_format in copies}) > 1:
            texts = [f"{format_} in {label}{' (used)' * (label == used[trial_id])}" for label, format_ in copies]
            groups[", ".join(texts)] += 1
    return tuple(f"{format_counted(count, 'trial')}: {text}" for text, count in groups.items())


def _check_data(sources: Sequence[StudySource]) -> None:
    by_data: dict[str, str] = {}
    for source in sources:
        for trial in source.study.trials.values():
            if trial.specification:
                data = trial.specification.data
                by_data.setdefault(data.fingerprint, f"{source.label} ({data.name}, {data.fingerprint})")
    if len(by_data) > 1:
        raise InputError(f"studies of one table must share data and split, but got {'; '.join(by_data.values())}")


def _wrong_count(trial: TrialRecord, source: StudySource, allow_code: bool) -> str | None:
    """Why a trial cannot be taken in: its counts are not those of its specification. Raises NotOnRecordError."""
    if trial.status is Status.INFEASIBLE:
        return None
    label = f"{trial.trial_id} of {source.label}"
    try:
        counts = recount(trial, source.study.header.data, allow_code=allow_code)
    except InputError as error:
        return f"{label}: its specification cannot be counted: {error}"
    for name, count in counts.items():
        if name in trial.counts and trial.counts[name] != count:
            return f"{label}: {trial.counts[name]:,} {name} on record, but its specification has {count:,}"
    return None


def better_copy(
    old: tuple[TrialRecord, StudySource] | None, new: tuple[TrialRecord, StudySource]
) -> tuple[TrialRecord, StudySource]:  # fmt: skip
    """Choose between two copies of one trial, and join their settings, notes and tags.

    Sound goes before broken, completed before cut short, longer before shorter, with weights before without, trained
    before adopted from another study, earlier before later. A test error comes from the other copy only where both have
    the same weights.

    Args:
        old: a copy and the study that has it; None where there is none yet.
        new: another copy.

    Returns:
        The chosen copy and the study that has it; the records of the sources stay as they are.
    """
    if old is None:
        return new
    (chosen, source), (other, other_source) = sorted((old, new), key=lambda copy: _copy_order(*copy))
    trial = replace(
        chosen, aliases=list(chosen.aliases), tags={**other.tags, **chosen.tags},
        notes=list(dict.fromkeys((*chosen.notes, *other.notes))),
    )  # fmt: skip
    for alias in (*other.aliases, other.parameters):
        if alias != trial.parameters and alias not in trial.aliases:
            trial.aliases.append(alias)
    if (
        trial.test_error is None
        and other.test_error is not None
        and _is_same_training(chosen, source, other, other_source)
    ):
        trial.test_error = other.test_error
        trial.wrong_images = {**chosen.wrong_images, **_bits(other, "test", "test")}
    return trial, source


def _is_same_training(
    trial: TrialRecord, source: StudySource, other: TrialRecord, other_source: StudySource
) -> bool:  # fmt: skip
    """Whether two copies have the same weights at their end, both sound: one was taken over from the other."""
    if trial.broken or other.broken or trial.last_epoch != other.last_epoch:
        return False
    if trial.adopted or other.adopted:
        return trial.adopted.get("study", source.study.name) == other.adopted.get("study", other_source.study.name)
    return bool(trial.attempts) and trial.attempts == other.attempts


def _bits(trial: TrialRecord, split: str, key: str) -> dict[str, str]:
    """The wrong images of a split under a key; empty where none are recorded."""
    return {key: trial.wrong_images[split]} if split in trial.wrong_images else {}


def _copy_order(trial: TrialRecord, source: StudySource) -> tuple[bool, bool, int, bool, bool, float]:
    """The order of `better_copy`: the smallest is chosen."""
    end = trial.finished_at if trial.finished_at is not None else float("inf")
    bare = not any(path.is_file() for path in _weight_files(trial.trial_id, source).values())
    return bool(trial.broken), trial.status is not Status.COMPLETED, -trial.last_epoch, bare, bool(trial.adopted), end


def _header(sources: Sequence[StudySource], name: str, mixed: Mapping[str, Sequence[str]]) -> StudyHeader:
    """The first header that has a question, with the strata of all, and the marks of studies put together before."""
    headers = [source.study.header for source in sources]
    base = next((header for header in headers if header.question), headers[0])
    strata: dict[str, HeaderStratum] = {}
    for header in headers:
        for stratum in header.strata:
            strata.setdefault(stratum.label, stratum)
    mixed_before = {field: values for header in headers for field, values in header.mixed.items()}
    fields = {key: value for key, value in base.to_json().items() if key != "event"}
    return StudyHeader.parse({
        **fields, "name": name, "time": base.began, "strata": list(strata.values()),
        "collated": [source.label for source in sources], "mixed": {**mixed, **mixed_before},
        "test_looks": sum(count_test_looks(source.study) for source in sources),
    })  # fmt: skip


def trial_events(trial: TrialRecord) -> list[tuple[Event, EventFields]]:
    """Return the lines of a journal that `sweeps.records` folds into this trial again.

    Args:
        trial: the record.

    Returns:
        Event and fields of each line, with the time of each; the event's name is not among the fields.
    """
    key = {"trial": trial.trial_id}
    start = trial.proposed_at or 0.0
    if trial.status is Status.INFEASIBLE:
        fields = {"stratum": trial.stratum, "parameters": trial.parameters, "reason": trial.reason}
        return [(Event.INFEASIBLE, {**key, **fields, "time": start})]
    events: list[tuple[Event, EventFields]] = [(Event.PROPOSED, {
        **key, "role": str(trial.role), "stratum": trial.stratum, "parameters": trial.parameters,
        "specification": trial.specification.to_json() if trial.specification else {}, "counts": trial.counts,
        "proposal": {},
        "point_id": trial.point_id, "time": start,
    })]  # fmt: skip
    events += [(Event.ALIAS, {**key, "parameters": alias, "time": start}) for alias in trial.aliases]
    for number, attempt in enumerate(trial.attempts):
        events.append((Event.ATTEMPT, {**key, "number": number, **attempt, "time": attempt.get("time", start)}))
    if trial.adopted:
        events.append((Event.ADOPTED, {**key, **trial.adopted, "time": start}))
    for epoch, metrics in sorted(trial.epochs.items()):
        values = {name: value for name, value in metrics.items() if name != "time"}
        events.append((Event.EPOCH, {**key, "epoch": epoch, "metrics": values, "time": metrics.get("time", start)}))
    if trial.finished_at is not None:
        outcome = {"status": str(trial.status), "reason": trial.reason, "time": trial.finished_at}
        outcome |= _bits(trial, "val", "wrong_images")
        events.append((Event.FINISHED, {**key, **outcome}))
    if trial.test_error is not None:
        tested = {
            "test_error": trial.test_error,
            "time": trial.finished_at or start,
            **_bits(trial, "test", "wrong_images"),
        }
        events.append((Event.TESTED, {**key, **tested}))
    return events + [(event, {**key, **fields}) for event, fields in _annotations(trial, trial.finished_at or start)]


def _annotations(record: TrialRecord | StudyRecord, time: float) -> list[tuple[Event, EventFields]]:
    """The lines of a trial's or a study's notices, marks, notes and tags."""
    events: list[tuple[Event, EventFields]] = []
    if isinstance(record, TrialRecord):
        events += [(Event.NOTICE, {"text": text}) for text in record.notices]
        events += [(Event.EXCLUDED, {"broken": record.broken})] if record.broken else []
    tags = dict(record.tags)
    for note in record.notes or ([""] if tags else []):
        events.append((Event.ANNOTATED, {"note": note, "tags": tags}))
    return [(event, {**fields, "time": time}) for event, fields in events]


def check_new_study(name: str, studies: Path) -> Path:
    """Check the name of a study that is to be made.

    Args:
        name: of the new study.
        studies: the folder that will hold it.

    Returns:
        The study's folder, which does not exist.

    Raises:
        InputError: the name is not plain, or there is such a folder already.
    """
    folder = studies / name
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"--name must be a plain name, but got {name!r}")
    if folder.exists():
        kind = "a study" if is_study(folder) else "a folder"
        raise InputError(f"{folder} is {kind} already; give another --name")
    return folder


def write_study(collated: CollatedStudy, folder: Path) -> None:
    """Write journal, tables, weights and models into a new folder.

    All of it is written, or nothing.

    Args:
        collated: the new study.
        folder: of the new study; its parent exists, it does not.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        _write_journal(collated.study, temporary / JOURNAL_FILE)
        pq.write_table(results_to_table(collated.study), temporary / RESULTS_FILE)
        pq.write_table(epochs_to_table(collated.study), temporary / EPOCHS_FILE)
        if collated.notes:
            write_bytes(temporary / NOTES_FILE, notes_to_bytes(collated.notes))
        for trial_id, source in collated.sources.items():
            _copy_weights(trial_id, source, temporary)


def _write_journal(study: StudyRecord, path: Path) -> None:
    journal = Journal(path)
    header: EventFields = study.header.to_json()
    journal.append(Event.STUDY, **header)
    last = study.header.began
    for event, fields in _annotations(study, last):
        journal.append(event, **fields)
    for trial in study.trials.values():
        for event, fields in trial_events(trial):
            last = max(last, fields["time"])
            journal.append(event, **fields)
    journal.append(Event.CLOSED, sync=True, time=last, reason="finished")
    journal.close()


def _weight_files(trial_id: str, source: StudySource) -> dict[Path, Path]:
    """Paths, relative to a study, of a trial's weights and its model -> the same files in the source's folder."""
    if source.folder is None:
        return {}
    model = Path(MODELS_FOLDER, trial_id)
    paths: Iterable[Path] = (Path(TRIALS_FOLDER, trial_id, CHECKPOINT_FILE), model / MODEL_FILE, model / IMAGES_FILE)
    return {path: source.folder / path for path in paths}


def _copy_weights(trial_id: str, source: StudySource, folder: Path) -> None:
    for relative, path in _weight_files(trial_id, source).items():
        if path.is_file():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / relative)


def summary_lines(collated: CollatedStudy, sources: Sequence[StudySource], folder: Path) -> list[str]:
    """Return what the user is told of a new study.

    Args:
        collated: the new study.
        sources: the studies that it was made of.
        folder: where it was written.

    Returns:
        Lines: how many trials of each source were used, which were left out or not checked, of which trials the copies
        disagree, what the folder holds, and the command that brings it into MLflow.
    """
    used = Counter(source.label for source in collated.sources.values())
    lines = [f"{source.label}: {format_counted(used[source.label], 'trial')} kept" for source in sources]
    lines += [f"left out: {line}" for line in collated.rejected]
    lines += [f"not counted again: {line}" for line in collated.unchecked]
    shown = collated.disagreements[:SHOWN_DISAGREEMENTS]
    lines += [f"copies disagree: {line}" for line in shown]
    if len(shown) < len(collated.disagreements):
        further = format_counted(len(collated.disagreements) - len(shown), "trial")
        lines.append(f"copies disagree: so do those of {further} more")
    lines += [f"copies of other number formats: {line}" for line in collated.unlike]
    weights = len(list(folder.glob(f"{TRIALS_FOLDER}/*/{CHECKPOINT_FILE}")))
    models = len(list(folder.glob(f"{MODELS_FOLDER}/*/{MODEL_FILE}")))
    trials = format_counted(len(collated.study.trials), "trial")
    lines.append(
        f"{folder}: {trials}, {weights:,} with weights, {models:,} with a model ready for use; "
        f"{collated.duplicates:,} further copies dropped"
    )
    lines.append(f"into MLflow: python -m sweeps.tracking {shlex.quote(str(folder))}")
    return lines
