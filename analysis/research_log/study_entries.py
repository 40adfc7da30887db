"""The entries of a study: one for each run of its driver."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.findings import (
    SettingTestError,
    answer_text,
    evenly_spaced,
    group_failures,
    learning_curves,
    list_failures,
    measured_test_errors,
    reproduce_commands,
    study_cost,
    study_provenance,
)
from analysis.reporting import DrawJob, draw_curves, draw_front, front_plot
from analysis.research_log.entries import STUDY, Entry, EntryNote, EntryTable, date_and_time, entry_key
from analysis.research_log.study_runs import StudyRun, study_runs
from analysis.stats import FrontPoint, collect_points, pareto_front, references, split_common_extras
from analysis.utils import data_label, format_duration, format_percent, status_label
from lowrank.utils import format_counted
from sweeps.records import GROUP_TAG, Event, Note, NoteKind, Status, StudyEvents, StudyHeader, StudyRecord, open_todos

SHOWN_POINTS, SHOWN_COMMANDS, SHOWN_FAILURES = 15, 3, 12
PICTURE_HEIGHT = 4.0  # inches
ENDS = {
    "finished": "finished", "time": "ended by its limit of time", "interrupted": "interrupted",
    "failed": "ended by an error of the driver",
    "": "not closed: the driver is running, or was killed",
}  # fmt: skip
NO_NUMBER = "not on record"


def study_entries(history: StudyEvents, notes: Sequence[Note], typed: Mapping[str, str], folder: str) -> list[Entry]:
    """Write the entries of a study.

    Args:
        history: of the study.
        notes: from its file of notes.
        typed: what people typed in MLflow, by trial id, "" for the study itself.
        folder: of the study, as the reader would type it.

    Returns:
        One entry for each run of its driver, oldest first.
    """
    runs = study_runs(history)
    return [_entry(history.study, run, len(runs), notes, typed, folder) for run in runs]


def _entry(
    study: StudyRecord, run: StudyRun, runs: int, notes: Sequence[Note], typed: Mapping[str, str], folder: str
) -> Entry:  # fmt: skip
    all_points = collect_points(run.snapshot)
    points, _ = split_common_extras(all_points)  # the answer says what all have in common
    front = pareto_front(points)
    trained = any(point.finished for point in points)
    answer = answer_text(run.snapshot, all_points).splitlines() if trained else ["No trial was trained to its end."]
    key = entry_key(STUDY, study.name, run.began)
    number = f", run {run.number}" if runs > 1 else ""
    collated = ", joined from other studies" if run.header.collated else ""
    return Entry(
        key=key, kind=STUDY, name=study.name, title=f"{study.name}{number}{collated}", began=run.began,
        group=study.tags.get(GROUP_TAG, ""), question=run.header.question,
        outcome=_outcome(run, front), facts=tuple(_facts(run)),
        answer=tuple(answer),
        tables=tuple(_front_table(front, points)), failures=_failures(run.work),
        notes=tuple(_notes(run, notes, typed)), commands=tuple(_commands(run, front, folder)),
        pictures=tuple(_pictures(run.snapshot, points, key)) if trained else (), header=run.header, folder=folder,
    )  # fmt: skip


def _outcome(run: StudyRun, front: Sequence[FrontPoint]) -> str:
    parts = [ENDS.get(run.reason, run.reason).partition(":")[0], _counted(run.work)]
    if front:
        best = min(front, key=lambda point: (point.error, point.params))
        parts.append(f"best {format_percent(best.error)} at {best.params:,} parameters")
    return "; ".join(filter(None, parts))


def _counted(study: StudyRecord) -> str:
    """How the trials of a run ended, e.g. `3 completed, 1 diverged, 1 marked as broken`."""
    counts = Counter(
        "marked as broken" if trial.broken
        else "not ended" if trial.status in (Status.RUNNING, Status.PROPOSED)
        else status_label(trial.status)
        for trial in study.trials.values()
    )  # fmt: skip
    return ", ".join(f"{count:,} {label}" for label, count in counts.most_common())


# Facts


def _facts(run: StudyRun) -> list[tuple[str, str]]:
    provenance = dict(study_provenance(run.work).facts)
    facts = [
        ("planned", _planned(run.header)),
        ("ran", _ran(run)),
        ("data", _join(provenance.get("data"), provenance.get("images"))),
        ("network", provenance.get("network")),
        ("machine", _machine(run, provenance)),
        ("seeds", provenance.get("seeds")),
        ("time an epoch", _spread(run.work, "epoch_seconds", format_duration)),
        ("memory", _memory(run.work)),
        ("utilisation of the card", _spread(run.work, "device_utilisation", lambda value: f"{value:.0f} %")),
        ("cost", _cost(run.work)),
        ("code", _join(provenance.get("code"), provenance.get("versions"))),
        ("tags", ", ".join(f"{name}={value}" for name, value in run.snapshot.tags.items() if name != GROUP_TAG)),
    ]  # fmt: skip
    return [(name, fact) for name, fact in facts if fact]


def _join(*parts: str | None) -> str:
    return "; ".join(filter(None, parts))


def _planned(header: StudyHeader) -> str:
    search = header.section("search")
    trials, repeats, epochs = search.get("trials"), search.get("repeats"), header.section("train").get("epochs")
    named = {"sampler": "by {}", "stop": "stopped early by {}", "repeats": "{} seeds each", "time": "at most {}"}
    grid = search.get("sampler") == "grid"
    limit = "the settings of the grid, at most {}" if grid else "{} of the search"
    parts = [limit.format(format_counted(trials, "trial"))] if isinstance(trials, int) else []
    if isinstance(repeats, int):
        named["repeats"] = f"{format_counted(repeats, 'seed')} each"
    named = {name: text for name, text in named.items() if not (grid and name == "sampler")}
    if header.origin is not None:  # of the search only the limit of time holds
        parts, named = [f"recorded trials of {Path(header.origin.study).name} once more"], {"time": named["time"]}
    parts += [text.format(search[name]) for name, text in named.items() if search.get(name) not in (None, "none")]
    parts += [f"{format_counted(epochs, 'epoch')} each"] if isinstance(epochs, int) else []
    listed = header.space.get("references")
    parts += [f"references {', '.join(map(str, listed))}"] if isinstance(listed, list) and listed else []
    return ", ".join(parts)


def _ran(run: StudyRun) -> str:
    began = date_and_time(run.began)
    seconds = f" after {format_duration(run.ended - run.began)}" if run.ended and run.ended > run.began else ""
    end = f"{ENDS.get(run.reason, run.reason)}{seconds}"
    epochs = sum(len(trial.epochs) for trial in run.work.trials.values())
    return _join(
        f"from {began} UTC, {end}", _counted(run.work), format_counted(epochs, "epoch") if epochs else "nothing trained"
    )


def _machine(run: StudyRun, provenance: Mapping[str, str]) -> str:
    slots = run.resources.get("slots")
    share = ""
    if slots:
        cpus, gpus = run.resources.get("cpus", 0), run.resources.get("gpus", 0)
        card = f" and {gpus:g} of a card" if gpus else ""
        share = f"{format_counted(slots, 'trial')} at a time, each on {format_counted(cpus, 'CPU')}{card}"
    return _join(provenance.get("hosts"), provenance.get("devices"), share)


def _spread(study: StudyRecord, metric: str, words: Any) -> str:
    """Median, least and largest value over all epochs of a run."""
    values = [epoch[metric] for trial in study.trials.values() for epoch in trial.epochs.values() if metric in epoch]
    if not values:
        return ""
    middle, low, high = words(statistics.median(values)), words(min(values)), words(max(values))
    return middle if low == high else f"median {middle}, {low} to {high}"


def _memory(study: StudyRecord) -> str:
    named = {"peak_device_mb": "{:,.0f} MB of the card at most", "host_memory_mb": "{:,.0f} MB of the host at most"}
    parts = []
    for metric, text in named.items():
        values = [epoch[metric] for t in study.trials.values() for epoch in t.epochs.values() if metric in epoch]
        parts += [text.format(max(values))] if values else []
    return f"{', '.join(parts)}, for a trial" if parts else ""


def _cost(study: StudyRecord) -> str:
    cost = study_cost(study)
    if not cost.attempts and not cost.train_seconds:
        return ""
    speed = cost.images_per_second
    return _join(
        f"{format_duration(cost.train_seconds)} of training and {format_duration(cost.start_seconds)} of starts, "
        f"summed over trials",
        f"GPU hours {NO_NUMBER}" if cost.gpu_hours is None else f"{cost.gpu_hours:.3g} GPU hours",
        f"{speed:,.0f} images/s a trial (median)" if speed else "",
        format_counted(cost.again, "further attempt") if cost.again else "",
        f"{format_counted(cost.adopted, 'trial')} taken from other studies" if cost.adopted else "",
    )


# Tables, notes, commands, pictures


def _front_table(front: Sequence[FrontPoint], points: Sequence[FrontPoint]) -> Iterable[EntryTable]:
    shown = sorted([*front, *references(points)], key=lambda point: point.params)
    if not shown:
        return
    tested = {setting.point.trial_id: setting for setting in measured_test_errors(points)}
    rows = tuple(
        (
            point.name, f"{point.params:,}", "" if point.dense_ratio is None else f"{100 * point.dense_ratio:.3g} %",
            "" if point.mult_adds is None else f"{point.mult_adds:,}", format_percent(point.error),
            _mean_test_error(tested.get(point.trial_id), point.seeds), str(point.seeds),
        )
        for point in evenly_spaced(shown, SHOWN_POINTS)
    )  # fmt: skip
    more = f", {SHOWN_POINTS} of {len(shown)}" if len(shown) > SHOWN_POINTS else ""
    headings = ("network", "parameters", "of the dense", "mult-adds", "validation error", "test error", "seeds")
    yield EntryTable(title=f"Front and references{more}", headings=headings, rows=rows)


def _mean_test_error(setting: SettingTestError | None, seeds: int) -> str:
    """The mean over seeds, as the validation error beside it is; says where not all of them were evaluated."""
    if setting is None:
        return ""
    part = f" ({setting.seeds} of {seeds} seeds)" if setting.seeds != seeds else ""
    return f"{format_percent(setting.error)}{part}"


def _failures(study: StudyRecord) -> EntryTable | None:
    failures = list_failures(study)
    broken = [failure for failure in failures if study.trials[failure.trial_id].broken]
    groups = group_failures([failure for failure in failures if not study.trials[failure.trial_id].broken])
    rows = [(f.kind, f"trial {f.trial_id}: {f.setting}", f.reason) for f in broken]
    rows += [
        (group.kind, f"{group.count:,} x {group.method}{f', {group.stratum}' if group.stratum else ''}", group.reason)
        for group in groups
    ]
    if not rows:
        return None
    more = f", the first {SHOWN_FAILURES} of {len(rows)} kinds" if len(rows) > SHOWN_FAILURES else ""
    headings = ("what", "which", "why")
    return EntryTable(title=f"What failed{more}", headings=headings, rows=tuple(rows[:SHOWN_FAILURES]))


def _notes(run: StudyRun, notes: Sequence[Note], typed: Mapping[str, str]) -> Iterable[EntryNote]:
    """All notes that were written from the run's beginning to that of the next one."""
    recorded = []
    for event in run.annotations:
        trial = str(event.get("trial", ""))
        if event["event"] == Event.EXCLUDED:
            text = f"marked as broken: {event['broken']}" if event["broken"] else "counts again"
            recorded.append(EntryNote(text=text, source="mark", time=event["time"], trial=trial))
        elif event["note"]:
            source = "mark --note" if trial else "--note"
            recorded.append(EntryNote(text=event["note"], source=source, time=event["time"], trial=trial))
    still_open = {note.note_id for note in open_todos(notes)}
    begin = float("-inf") if run.number == 1 else run.began
    for note in notes:
        if begin <= note.time < run.next_began and note.kind is not NoteKind.DONE:
            recorded.append(EntryNote(
                text=note.text, source="note", kind=note.kind, time=note.time, trial=note.trial,
                note_id=note.note_id if note.kind is NoteKind.TODO else "", open=note.note_id in still_open,
            ))  # fmt: skip
    yield from sorted(recorded, key=lambda note: note.time or 0.0)
    if run.is_last:
        yield from (EntryNote(text=text, source="MLflow", trial=trial) for trial, text in typed.items())


def _commands(run: StudyRun, front: Sequence[FrontPoint], folder: str) -> Iterable[tuple[str, str]]:
    if run.header.command:
        yield "the run", run.header.command
    for command in reproduce_commands(run.snapshot, front[-SHOWN_COMMANDS:], Path(folder)):
        if command.command:
            yield f"{command.name} once more", command.command
    yield "all figures of the study", f"python -m analysis report --study {shlex.quote(folder)}"


def _pictures(study: StudyRecord, points: Sequence[FrontPoint], key: str) -> Iterable[DrawJob]:
    where = data_label(study.header.data.name)
    yield DrawJob(
        name=f"{key}-front", caption=f"Validation error and parameters of {study.name} on {where}", draw=draw_front,
        data=front_plot(study, points), height=PICTURE_HEIGHT,
    )  # fmt: skip
    curves = learning_curves(study, points)
    if curves:
        yield DrawJob(
            name=f"{key}-curves", caption=f"Validation error of {study.name} by epoch", draw=draw_curves, data=curves,
            height=PICTURE_HEIGHT,
        )  # fmt: skip
