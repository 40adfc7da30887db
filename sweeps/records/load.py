"""Find studies and trials and read their records."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.errors import InputError, unknown
from lowrank.utils import absolute_path, first_line
from sweeps.records.annotations import GROUP_TAG
from sweeps.records.events import Event, Status
from sweeps.records.fronts import completed_trials
from sweeps.records.journal import JournalLine, JournalReader, damage_error, parse_line
from sweeps.records.model import StudyRecord, TrialRecord, apply_event, garbage_collection_paused
from sweeps.records.names import JOURNAL_FILE, RESULTS_FILE
from sweeps.records.tables import read_study_fields, read_tables

STUDIES_FOLDER = Path("studies")
MIN_ID_PREFIX = 4  # characters
_NOTED = f'"{Event.ANNOTATED}"'.encode()
# What drivers and people did, apart from the trials
HISTORY_EVENTS = frozenset({Event.STUDY, Event.RESOURCES, Event.CLOSED, Event.ANNOTATED, Event.EXCLUDED})


@dataclass(frozen=True)
class StudyEvents:
    """A study, and when its driver and people did what.

    Attributes:
        study: the records.
        events: those of `HISTORY_EVENTS`, oldest first. Where there is no journal, the newest of each kind that the
            tables have.
    """

    study: StudyRecord
    events: tuple[Mapping[str, Any], ...]


def list_studies(root: Path = STUDIES_FOLDER) -> list[str]:
    """List the studies in a folder.

    Args:
        root: the folder, which may be missing.

    Returns:
        Their names in alphabetical order.
    """
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if is_study(folder))


def is_study(folder: Path) -> bool:
    """Tell whether a folder holds a journal or a results table.

    Args:
        folder: which may be missing.

    Returns:
        Whether it is the folder of a study.
    """
    return any((folder / name).is_file() for name in (JOURNAL_FILE, RESULTS_FILE))


def find_study(name: str, root: Path = STUDIES_FOLDER) -> Path:
    """Find the folder of a study.

    Args:
        name: a path, or the name of a study under `root`.
        root: the folder of studies.

    Returns:
        The study's folder.

    Raises:
        InputError: there is no such study; the text lists those there are.
    """
    absolute_path(name, "the study")
    for folder in (Path(name), root / name):
        if is_study(folder):
            return folder
    raise unknown("study", name, list_studies(root) or [f"none: {root}/ holds no study yet"])


def load_study(folder: Path) -> StudyRecord:
    """Read a study from its journal or, where there is none, from its tables.

    Args:
        folder: of the study.

    Returns:
        The study.

    Raises:
        InputError: there is neither, the journal holds no study yet, one of its lines is damaged, or the tables are
            damaged or of another version.
    """
    if not is_study(folder):
        raise InputError(f"a study's folder must hold {JOURNAL_FILE} or {RESULTS_FILE}, but {folder} does not")
    if not (folder / JOURNAL_FILE).is_file():
        return read_tables(folder)
    study = fold_journal(folder / JOURNAL_FILE)
    if study.header.is_empty:
        raise InputError(f"a study's journal must begin with a study event, but {folder} has none yet")
    return study


class StudyHistory:
    """A study as its journal tells it; what has been read once is not read again.

    Args:
        path: of the journal.
        on_event: called with each event once it has been applied.
    """

    def __init__(self, path: Path, on_event: Callable[[Mapping[str, Any]], None] = lambda event: None):
        self.path, self.record, self._on_event = path, StudyRecord(), on_event
        self._reader = JournalReader(path)

    def update(self) -> StudyRecord:
        """Read what the journal has got since the last call.

        Returns:
            The study, as far as its journal has come; the same object each time, unless the journal was repaired.

        Raises:
            InputError: the journal is missing, a line is damaged, lost or there twice, or an event is of an unknown
                kind or lacks a field. The text names line and byte, and says what to do.
        """
        try:
            if self.path.stat().st_size < self._reader.offset:  # another file than the one that was read
                self.record, self._reader = StudyRecord(), JournalReader(self.path)
            with garbage_collection_paused():
                for line in self._reader.scan():
                    self._apply(line)
        except FileNotFoundError as error:
            raise InputError(f"there is no journal {self.path}") from error
        return self.record

    def _apply(self, line: JournalLine) -> None:
        damage = line.damage
        if not damage:
            try:
                apply_event(self.record, line.event)
                self._on_event(line.event)
            except InputError as error:
                damage = str(error)
        if damage:
            raise damage_error(self.path, line.number, line.byte, damage)


def load_history(folder: Path) -> StudyEvents:
    """Read a study with the events that are no trial's.

    Args:
        folder: of the study.

    Returns:
        The study and its history.

    Raises:
        InputError: as `load_study`.
    """
    if not (folder / JOURNAL_FILE).is_file():
        study = load_study(folder)
        recorded = (study.header.to_json(), *study.runs, study.closed or {})
        return StudyEvents(study, tuple(event for event in recorded if "event" in event))
    events: list[Mapping[str, Any]] = []

    def note_event(event: Mapping[str, Any]) -> None:
        if event["event"] in HISTORY_EVENTS:
            events.append(event)

    study = fold_journal(folder / JOURNAL_FILE, note_event)
    if study.header.is_empty:
        raise InputError(f"a study's journal must begin with a study event, but {folder} has none yet")
    return StudyEvents(study, tuple(events))


def read_group(folder: Path) -> str:
    """Read to which group a study belongs, without reading its trials.

    Args:
        folder: of the study.

    Returns:
        The name of the group; "" for none.

    Raises:
        InputError: the line that says it is damaged, or the tables are, where there is no journal.
    """
    path = folder / JOURNAL_FILE
    if not path.is_file():
        return str(read_study_fields(folder).get("tags", {}).get(GROUP_TAG, ""))
    group = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if _NOTED not in line or not line.endswith(b"\n"):
                continue
            try:
                event, _ = parse_line(line)
            except ValueError as error:
                raise damage_error(path, number, file.tell() - len(line), str(error)) from error
            if event["event"] == Event.ANNOTATED and "trial" not in event:
                group = str(event["tags"].get(GROUP_TAG, group))
    return group


def fold_journal(
    path: Path, on_event: Callable[[Mapping[str, Any]], None] = lambda event: None
) -> StudyRecord:  # fmt: skip
    """Read a journal and fold its events into records.

    Args:
        path: of the journal.
        on_event: called with each event once it has been applied.

    Returns:
        The study, as far as its journal has come.

    Raises:
        InputError: as `StudyHistory.update`.
    """
    return StudyHistory(path, on_event).update()


def find_trial(study: StudyRecord, id_prefix: str, *, completed: bool = False) -> TrialRecord:
    """Find a trial by the beginning of its id.

    Args:
        study: where to look; trials that were never launched are left out.
        id_prefix: the whole id, or at least `MIN_ID_PREFIX` characters of its beginning.
        completed: whether only trials that were trained to their end and count are searched.

    Returns:
        The trial.

    Raises:
        InputError: the prefix is too short, or fits no trial or more than one.
    """
    trials = [trial for trial in study.trials.values() if trial.status is not Status.INFEASIBLE]
    if completed:
        trials = completed_trials(trials)
    matches = [trial for trial in trials if trial.trial_id.startswith(id_prefix)]
    exact = [trial for trial in matches if trial.trial_id == id_prefix]
    if not exact and len(id_prefix) < MIN_ID_PREFIX:
        raise InputError(
            f"a trial must be named by at least {MIN_ID_PREFIX} characters of its id, but got {id_prefix!r}"
        )
    if len(exact or matches) != 1:
        kind = "completed trial" if completed else "trial"
        listed = ", ".join(trial.trial_id for trial in matches[:5]) or "none"
        raise InputError(
            f"{id_prefix!r} must be the id of one {kind} of {study.name!r}, or its beginning; found: {listed}"
        )
    return (exact or matches)[0]


def read_step_times(path: Path) -> dict[str, float]:
    """Read the measured times of a study.

    Args:
        path: of the file.

    Returns:
        Milliseconds by the hash of the network.

    Raises:
        InputError: the file is damaged. Whether a network meets a budget of time depends on it, so it is not measured
            again unless the user says so.
    """
    times: dict[str, float] = _read_measured(
        path, _are_step_times, "it must map networks to milliseconds", "the steps are measured again"
    )
    return times


def read_rank_costs(path: Path) -> dict[str, dict[str, list[dict[str, object]]]]:
    """Read what ranks were measured to cost the layers of a study's trained network.

    Args:
        path: of the file.

    Returns:
        By measurement and by layer, the forms of the layer: `method` with its ranks, or None for the dense layer;
        `costs`, which are parameters and mult-adds; `error` and `missed`.

    Raises:
        InputError: the file is damaged. Which ranks are proposed depends on it, so it is not measured again unless the
            user says so.
    """
    costs: dict[str, dict[str, list[dict[str, object]]]] = _read_measured(
        path, _are_rank_costs, "it must list the costs of each layer", "what ranks cost is measured again"
    )
    return costs


def _read_measured(path: Path, is_valid: Callable[[Any], bool], rule: str, then: str) -> Any:
    """The content of a file of measured values; `then` says what follows when a damaged one is set aside."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if is_valid(content):
            return content
        reason = rule
    except ValueError as error:
        reason = first_line(error)
    raise InputError(
        f"{path} is damaged ({reason}); `python -m analysis repair {shlex.quote(str(path.parent))}` sets it aside, and "
        f"{then}"
    )


def _are_step_times(content: Any) -> bool:
    return isinstance(content, dict) and all(_is_number(value) and value > 0 for value in content.values())


def _are_rank_costs(content: Any) -> bool:
    if not isinstance(content, dict) or not all(isinstance(table, dict) for table in content.values()):
        return False
    layers = [forms for table in content.values() for forms in table.values()]
    return all(isinstance(forms, list) and all(map(_is_rank_cost, forms)) for forms in layers)


def _is_rank_cost(form: Any) -> bool:
    if not isinstance(form, dict) or not form.keys() >= {"method", "costs", "error", "missed"}:
        return False
    method, costs = form["method"], form["costs"]
    if method is not None and not (isinstance(method, dict) and {"name", "ranks"} <= method.keys()):
        return False
    return isinstance(costs, list) and len(costs) == 2 and all(map(_is_number, (*costs, form["error"], form["missed"])))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
