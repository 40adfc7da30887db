"""Find damage in the files of a study, and keep what is whole.

`check_study` reads every file and changes nothing. `repair_study` writes the journal anew without the lines that are
damaged, and sets damaged files aside that are made again from the journal. What was set aside stays in the folder.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank.errors import InputError
from lowrank.utils import atomic_path, first_line, format_counted, free_name, redact, write_bytes
from sweeps.records import (
    EPOCHS_FILE,
    JOURNAL_FILE,
    MODELS_FOLDER,
    NOTES_FILE,
    OPTUNA_FILE,
    RANK_COSTS_FILE,
    RESULTS_FILE,
    SPACE_FILE,
    STEP_TIMES_FILE,
    TRACKING_PROGRESS_FILE,
    TRIALS_FOLDER,
    Event,
    JournalReader,
    StudyRecord,
    apply_event,
    find_optuna_damage,
    fold_journal,
    notes_to_bytes,
    parse_notes,
    read_rank_costs,
    read_space_file,
    read_step_times,
    read_tables,
    seal_line,
    study_lock,
    write_tables,
)

DAMAGED_SUFFIX = ".damaged"  # of a file that was set aside


@dataclass
class JournalReport:
    """What is in a journal.

    Attributes:
        lines: number of complete lines.
        events: those that can be used, oldest first.
        damage: a line for each damage, with line and byte.
        left_out: a line for each trial whose other lines cannot be used because its proposal is lost.
        record: what the usable events say.
    """

    lines: int = 0
    events: list[Mapping[str, Any]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    record: StudyRecord = field(default_factory=StudyRecord)


def read_damaged_journal(path: Path) -> JournalReport:
    """Read all lines of a journal, whatever is wrong with them.

    Args:
        path: of the journal.

    Returns:
        What is in it.

    Raises:
        InputError: a newer version of this project wrote it.
        OSError: it cannot be read.
    """
    report = JournalReport()
    proposed: set[str] = set()  # trials whose proposal is there
    lost: Counter[str] = Counter()
    for line in JournalReader(path).scan():
        report.lines += 1
        damage, usable = line.damage, line.usable
        trial = line.event.get("trial")
        if usable and _needs_proposal(line.event) and trial not in proposed:
            lost[str(trial)] += 1
            usable = False
        elif usable:
            try:
                apply_event(report.record, line.event)
            except InputError as error:
                damage, usable = damage or str(error), False
            else:
                proposed |= {trial} if isinstance(trial, str) else set()
        if damage:
            report.damage.append(f"{path.name}: line {line.number} at byte {line.byte}: {damage}")
        if usable:
            report.events.append(line.event)
    report.left_out = [
        f"{path.name}: the proposal of trial {trial} is lost, so {count} more lines of it cannot be used"
        for trial, count in lost.items()
    ]
    return report


def _needs_proposal(event: Mapping[str, Any]) -> bool:
    """Whether an event says something of a trial that another line must have proposed."""
    return "trial" in event and event.get("event") not in (Event.PROPOSED, Event.INFEASIBLE)


def check_study(folder: Path) -> list[str]:
    """Read every file of a study and change nothing.

    Args:
        folder: of the study.

    Returns:
        A line for each damage.

    Raises:
        InputError: a newer version of this project wrote the study.
    """
    problems: list[str] = []
    if (folder / JOURNAL_FILE).is_file():
        report = read_damaged_journal(folder / JOURNAL_FILE)
        problems += [*report.damage, *report.left_out]
        if report.record.header.is_empty:
            problems.append(f"{JOURNAL_FILE}: no line says which study it is")
    return problems + [f"{name}: {reason}" for name, reason in _damaged_files(folder)]


def _damaged_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and damage of each damaged file beside the journal."""
    if (folder / SPACE_FILE).is_file():
        try:
            read_space_file(folder)
        except (InputError, UnicodeDecodeError) as error:
            yield SPACE_FILE, f"{first_line(error)}; the space as it was is in the first line of {JOURNAL_FILE}"
    if (folder / RESULTS_FILE).is_file():
        try:
            read_tables(folder)
        except InputError as error:
            yield RESULTS_FILE, first_line(error)
    if (folder / NOTES_FILE).is_file():
        for reason in parse_notes((folder / NOTES_FILE).read_bytes())[1]:
            yield NOTES_FILE, reason
    if reason := find_optuna_damage(folder / OPTUNA_FILE):
        yield OPTUNA_FILE, f"{reason}; --resume makes it again from {JOURNAL_FILE}"
    for name, read in ((STEP_TIMES_FILE, read_step_times), (RANK_COSTS_FILE, read_rank_costs)):
        if (folder / name).is_file():
            try:
                read(folder / name)
            except InputError as error:
                yield name, first_line(error)
    for path in sorted(
        file for name in (TRIALS_FOLDER, MODELS_FOLDER) for file in folder.glob(f"{name}/*/*.safetensors")
    ):
        if reason := _damaged_tensors(path):
            yield str(path.relative_to(folder)), reason


def _damaged_tensors(path: Path) -> str:
    """What is wrong with a file of weights; "" for nothing."""
    from lowrank.io import load_tensors  # it loads torch, which a study without weights does not need

    try:
        load_tensors(path)
    except (InputError, OSError) as error:
        return first_line(error).removeprefix(f"{path} ")
    return ""


def repair_study(folder: Path) -> list[str]:
    """Write a study's journal anew from what is whole.

    Files that are made again from the journal are set aside where they are damaged. Weights are not touched: a trial
    whose checkpoint is damaged goes on from the one before it, or begins again.

    Args:
        folder: of the study.

    Returns:
        A line for each thing that was done; empty where all is whole.

    Raises:
        InputError: a driver runs the study, or nothing in its journal says which study it is.
        OSError: the folder cannot be written.
    """
    path = folder / JOURNAL_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {JOURNAL_FILE}, from which the rest could be made again")
    with study_lock(folder):
        return _repair(folder, path)


def _repair(folder: Path, path: Path) -> list[str]:
    report = read_damaged_journal(path)
    if report.record.header.is_empty:
        raise InputError(f"{path} cannot be repaired: no whole line says which study it is")
    done: list[str] = []
    damaged = {name for name, _ in _damaged_files(folder)}
    if report.damage or report.left_out:
        done += [f"left out: {line}" for line in (*report.damage, *report.left_out)]
        aside = free_name(path.with_name(f"{path.name}{DAMAGED_SUFFIX}"))
        os.link(path, aside)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for number, event in enumerate(report.events, 1):
                file.write(seal_line(event, number))
            file.flush()
            os.fsync(file.fileno())
        count = report.lines - len(report.events)
        valid = format_counted(len(report.events), "line")
        done.append(f"{path.name}: {valid} kept, {count:,} left out; the old file is {aside.name}")
        done += _set_aside(folder, TRACKING_PROGRESS_FILE, "the next run brings the study into MLflow anew")
        done += _storage_lines(folder)
    if NOTES_FILE in damaged:
        notes, lost = parse_notes((folder / NOTES_FILE).read_bytes())
        done += _set_aside(folder, NOTES_FILE, f"the {len(notes):,} notes that are whole are kept, {len(lost):,} not")
        write_bytes(folder / NOTES_FILE, notes_to_bytes(notes))
    if OPTUNA_FILE in damaged:
        done += _set_aside(folder, OPTUNA_FILE, "--resume makes it again from the journal")
    if STEP_TIMES_FILE in damaged:
        done += _set_aside(folder, STEP_TIMES_FILE, "--resume measures the steps again")
    if RANK_COSTS_FILE in damaged:
        done += _set_aside(folder, RANK_COSTS_FILE, "--resume measures what ranks cost again")
    if RESULTS_FILE in damaged or (done and (folder / RESULTS_FILE).is_file()):
        write_tables(fold_journal(path), folder)
        done.append(f"{RESULTS_FILE} and {EPOCHS_FILE}: written again from the journal")
    return done


def _storage_lines(folder: Path) -> list[str]:
    """How to go on with a study that is stored elsewhere too: there the journal is as it was before the repair."""
    if not (folder / SPACE_FILE).is_file():
        return []
    try:
        uri = read_space_file(folder)[1].storage
    except InputError:  # `check` names it
        return []
    if not uri:
        return []
    return [
        f"{redact(str(uri))} holds the journal as it was stored: to go on with that one, move {folder} away and "
        "--resume; to go on with the repaired one, --resume it with another --storage"
    ]


def _set_aside(folder: Path, name: str, then: str) -> list[str]:
    path = folder / name
    if not path.is_file():
        return []
    aside = free_name(path.with_name(f"{name}{DAMAGED_SUFFIX}"))
    path.replace(aside)
    return [f"{name}: set aside as {aside.name}; {then}"]


def repair_command(folder: Path) -> str:
    """Return the command that repairs a study.

    Args:
        folder: of the study, as the user would type it.

    Returns:
        The command line.
    """
    return f"python -m analysis repair {shlex.quote(str(folder))}"
