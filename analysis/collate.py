"""`python analysis/collate.py STUDY STUDY ... --name all`: the records of several machines or stores as one study.

Of a trial that several have, the longest-trained copy is kept; its counts are checked against its specification, and
what cannot be is said; the result is a study's folder (journal, tables, weights, models) that every other command
reads. Exit code 1: a trial was left out.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from analysis.cli.arguments import run_script
from analysis.sources.recount import NotOnRecordError, recount
from analysis.utils.progress import steps
from lowrank.errors import InputError
from lowrank.serving import IMAGES_FILE, MODEL_FILE
from sweeps.records.journal import Journal
from sweeps.records.load import STUDIES, find_study, is_study, load_study
from sweeps.records.names import (
    CHECKPOINT_FILE,
    EPOCHS_FILE,
    JOURNAL_FILE,
    MODELS_FOLDER,
    RESULTS_FILE,
    TRIALS_FOLDER,
    Event,
    Status,
    StudyRecord,
    TrialRecord,
)
from sweeps.records.tables import epochs_to_table, to_table


@dataclass(frozen=True, kw_only=True)
class Source:
    """One study to take in; `folder` is where its weights lie, None for one read from a tracking store."""

    label: str
    study: StudyRecord
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class Collated:
    """The result: the study, where each trial's weights come from, and what was found on the way."""

    study: StudyRecord
    owners: dict[str, Source]
    copies: int  # further copies of trials that were kept once
    wrong: tuple[str, ...]  # trials left out because their counts are wrong, each in a line
    unchecked: tuple[str, ...]  # how many trials of which study were taken in without a recount, and why


def collate(sources: Sequence[Source], name: str) -> Collated:
    """Join studies of the same data.

    Raises:
        InputError: they are on different data or splits, so that their errors cannot stand in one table.
    """
    _check_data(sources)
    kept: dict[str, tuple[TrialRecord, Source]] = {}
    copies = 0
    wrong: list[str] = []
    unchecked: Counter[tuple[str, str]] = Counter()
    for source in sources:
        for trial in source.study.trials.values():
            try:
                fault = _fault(trial, source)
            except NotOnRecordError as missing:
                fault = None
                unchecked[source.label, str(missing)] += 1
            if fault is not None:
                wrong.append(fault)
                continue
            copies += trial.trial_id in kept
            kept[trial.trial_id] = _longer(kept.get(trial.trial_id), (trial, source))
    study = StudyRecord(
        header=_header(sources, name), trials={trial_id: trial for trial_id, (trial, _) in kept.items()},
        notes=list(dict.fromkeys(note for source in sources for note in source.study.notes)),
        tags={key: value for source in reversed(sources) for key, value in source.study.tags.items()},
    )  # fmt: skip
    owners = {trial_id: source for trial_id, (_, source) in kept.items()}
    lines = (f"{_trials(number)} of {label}: {why}" for (label, why), number in unchecked.items())
    return Collated(study=study, owners=owners, copies=copies, wrong=tuple(wrong), unchecked=tuple(lines))


def _trials(number: int) -> str:
    return f"{number:,} trial{'s' * (number != 1)}"


def _check_data(sources: Sequence[Source]) -> None:
    by_data: dict[str, str] = {}
    for source in sources:
        for trial in source.study.trials.values():
            data = trial.specification.get("data", {})
            if data.get("fingerprint"):
                by_data.setdefault(data["fingerprint"], f"{source.label} ({data.get('name')}, {data['fingerprint']})")
    if len(by_data) > 1:
        raise InputError(f"studies of one table must share data and split, but got {'; '.join(by_data.values())}")


def _fault(trial: TrialRecord, source: Source) -> str | None:
    """Why a trial cannot be taken in: its counts are not those of its specification. Raises NotOnRecordError."""
    if trial.status is Status.INFEASIBLE:
        return None
    who = f"{trial.trial_id} of {source.label}"
    try:
        found = recount(trial, source.study.header.get("data", {}))
    except InputError as error:
        return f"{who}: its specification cannot be counted: {error}"
    for name, count in found.items():
        if name in trial.counts and trial.counts[name] != count:
            return f"{who}: {trial.counts[name]:,} {name} on record, but its specification has {count:,}"
    return None


def _longer(old: tuple[TrialRecord, Source] | None, new: tuple[TrialRecord, Source]) -> tuple[TrialRecord, Source]:
    """The sound copy that trained longer, of equal ones one with weights; settings, notes and tags are joined."""
    if old is None:
        return new
    chosen, other = sorted((old, new), key=lambda pair: _rank(*pair))
    trial = replace(
        chosen[0], aliases=list(chosen[0].aliases), tags={**other[0].tags, **chosen[0].tags},
        notes=list(dict.fromkeys((*chosen[0].notes, *other[0].notes))),
    )  # fmt: skip
    for alias in (*other[0].aliases, other[0].parameters):
        if alias != trial.parameters and alias not in trial.aliases:
            trial.aliases.append(alias)
    if trial.test_error is None:
        trial.test_error = other[0].test_error
    return trial, chosen[1]


def _rank(trial: TrialRecord, source: Source) -> tuple[bool, bool, int, bool, bool, float]:
    """Sound before broken, completed before cut short, longer before shorter, with its weights before without, where
    it was trained before where it was adopted, earlier before later."""
    ended = trial.finished_at if trial.finished_at is not None else float("inf")
    bare = not any(path.is_file() for path in _kept_files(trial.trial_id, source).values())
    return bool(trial.broken), trial.status is not Status.COMPLETED, -trial.last_epoch, bare, bool(trial.adopted), ended


def _header(sources: Sequence[Source], name: str) -> dict[str, Any]:
    """The first header that tells the question, with the strata of all."""
    headers = [source.study.header for source in sources]
    base = next((header for header in headers if header.get("question")), headers[0])
    strata: dict[str, Any] = {}
    for header in headers:
        for stratum in header.get("strata") or []:
            strata.setdefault(stratum["label"], stratum)
    skipped = ("event", "time")
    kept = {key: value for key, value in base.items() if key not in skipped}
    return {
        **kept, "name": name, "time": base.get("time", 0.0), "strata": list(strata.values()),
        "collated": [source.label for source in sources],
    }  # fmt: skip


def events(trial: TrialRecord) -> list[tuple[Event, dict[str, Any]]]:
    """The journal lines that fold into this trial again, each with its time."""
    own = {"trial": trial.trial_id}
    begun = trial.proposed_at or 0.0
    if trial.status is Status.INFEASIBLE:
        about = {"stratum": trial.stratum, "parameters": trial.parameters, "reason": trial.reason}
        return [(Event.INFEASIBLE, {**own, **about, "time": begun})]
    found: list[tuple[Event, dict[str, Any]]] = [(Event.PROPOSED, {
        **own, "role": str(trial.role), "stratum": trial.stratum, "parameters": trial.parameters,
        "specification": trial.specification, "counts": trial.counts, "proposal": {},
        "point_id": trial.point_id, "time": begun,
    })]  # fmt: skip
    found += [(Event.ALIAS, {**own, "parameters": alias, "time": begun}) for alias in trial.aliases]
    for number, attempt in enumerate(trial.attempts):
        found.append((Event.ATTEMPT, {**own, "number": number, **attempt, "time": attempt.get("time", begun)}))
    if trial.adopted:
        found.append((Event.ADOPTED, {**own, **trial.adopted, "time": begun}))
    for epoch, metrics in sorted(trial.epochs.items()):
        values = {name: value for name, value in metrics.items() if name != "time"}
        found.append((Event.EPOCH, {**own, "epoch": epoch, "metrics": values, "time": metrics.get("time", begun)}))
    if trial.finished_at is not None:
        ended = {"status": str(trial.status), "reason": trial.reason, "time": trial.finished_at}
        found.append((Event.FINISHED, {**own, **ended}))
    if trial.test_error is not None:
        found.append((Event.TESTED, {**own, "test_error": trial.test_error, "time": trial.finished_at or begun}))
    return found + [(event, {**own, **fields}) for event, fields in _remarks(trial, trial.finished_at or begun)]


def _remarks(noted: TrialRecord | StudyRecord, time: float) -> list[tuple[Event, dict[str, Any]]]:
    """What was said of a trial or of a study: notices, marks, notes and tags."""
    found: list[tuple[Event, dict[str, Any]]] = []
    if isinstance(noted, TrialRecord):
        found += [(Event.NOTICE, {"text": text}) for text in noted.notices]
        found += [(Event.MARKED, {"broken": noted.broken})] if noted.broken else []
    tags = dict(noted.tags)
    for note in noted.notes or ([""] if tags else []):
        found.append((Event.NOTED, {"note": note, "tags": tags}))
    return [(event, {**fields, "time": time}) for event, fields in found]


def write_study(found: Collated, folder: Path) -> None:
    """Write journal, tables and weights into a new folder, whole or not at all. Raises OSError on a full disk."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write_journal(found.study, temporary / JOURNAL_FILE)
        pq.write_table(to_table(found.study), temporary / RESULTS_FILE)
        pq.write_table(epochs_to_table(found.study), temporary / EPOCHS_FILE)
        for trial_id, source in found.owners.items():
            _copy_kept(trial_id, source, temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_journal(study: StudyRecord, path: Path) -> None:
    journal = Journal(path)
    journal.append(Event.STUDY, **study.header)
    last = float(study.header.get("time", 0.0))
    for event, fields in _remarks(study, last):
        journal.append(event, **fields)
    for trial in study.trials.values():
        for event, fields in events(trial):
            last = max(last, fields["time"])
            journal.append(event, **fields)
    journal.append(Event.CLOSED, sync=True, time=last, reason="finished")
    journal.close()


def _kept_files(trial_id: str, source: Source) -> dict[Path, Path]:
    """Where a trial's weights and its model, ready for use, lie within a study -> the same in the source's folder."""
    if source.folder is None:
        return {}
    model = Path(MODELS_FOLDER, trial_id)
    inside = [Path(TRIALS_FOLDER, trial_id, CHECKPOINT_FILE), model / MODEL_FILE, model / IMAGES_FILE]
    return {path: source.folder / path for path in inside}


def _copy_kept(trial_id: str, source: Source, folder: Path) -> None:
    for inside, path in _kept_files(trial_id, source).items():
        if path.is_file():
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / inside)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="STUDY", help="studies by name, or their folders")
    parser.add_argument(
        "--from-store", action="append", default=[], nargs=2, metavar=("URI", "NAME"),
        help="a study of an MLflow store; may be given again",
    )  # fmt: skip
    parser.add_argument("--name", required=True, help="name of the new study")
    parser.add_argument("--studies", type=Path, default=STUDIES, metavar="DIR", help="where studies are (studies/)")


def run(arguments: argparse.Namespace) -> int:
    """Collate, and say what was kept; raises InputError before anything is written."""
    folder = arguments.studies / arguments.name
    if not arguments.name or Path(arguments.name).name != arguments.name or arguments.name.startswith("."):
        raise InputError(f"--name must be a plain name, but got {arguments.name!r}")
    if folder.exists():
        kind = "a study" if is_study(folder) else "a folder"
        raise InputError(f"{folder} is {kind} already; give another --name")
    total = len(arguments.names) + len(arguments.from_store)
    if total < 2:
        raise InputError(f"collating needs two studies or more, but got {total}")
    with steps("collate", total + 2) as step:
        sources = list(_sources(arguments, step))
        if len({source.label for source in sources}) < total:
            raise InputError("each study must be named once; two of one name are told apart by their folders")
        step("counts")
        found = collate(sources, arguments.name)
        step("writing")
        arguments.studies.mkdir(parents=True, exist_ok=True)
        write_study(found, folder)
    print("\n".join(_lines(found, sources, folder)))
    return 1 if found.wrong else 0


def _sources(arguments: argparse.Namespace, step: Any) -> Iterable[Source]:
    for name in arguments.names:
        step(name)
        folder = find_study(name, arguments.studies)
        yield Source(label=str(folder), study=load_study(folder), folder=folder)
    for uri, name in arguments.from_store:
        from analysis.sources.mlflow import load_from_mlflow, without_password

        step(name)
        yield Source(label=f"{name} in {without_password(uri)}", study=load_from_mlflow(uri, name), folder=None)


def _lines(found: Collated, sources: Sequence[Source], folder: Path) -> list[str]:
    taken: Mapping[str, int] = {s.label: sum(o is s for o in found.owners.values()) for s in sources}
    lines = [f"{label}: {_trials(count)} kept" for label, count in taken.items()]
    lines += [f"left out: {line}" for line in found.wrong]
    lines += [f"not counted again: {line}" for line in found.unchecked]
    weights = len(list(folder.glob(f"{TRIALS_FOLDER}/*/{CHECKPOINT_FILE}")))
    models = len(list(folder.glob(f"{MODELS_FOLDER}/*/{MODEL_FILE}")))
    kept = f"{_trials(len(found.study.trials))}, {weights:,} with weights, {models:,} with a model ready for use"
    lines.append(f"{folder}: {kept}; {found.copies:,} further copies dropped")
    lines.append(f"into MLflow: python -m sweeps.tracking {shlex.quote(str(folder))}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, 1 when a trial was left out, or 2 for bad input.
    """
    return run_script("collate", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
