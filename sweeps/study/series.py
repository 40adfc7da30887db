"""Several studies in a row from one file: one command, one limit of time, one summary; resumable as one.

A file with a section `studies` is a series. Each entry is a study: the rest of the file with the entry's own `set`
(dotted names) on top, or another space named by `space`. They lie in one folder under the series' name, and what one
has trained the others adopt (sweeps.search.reuse).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import InputError, unknown
from sweeps.records.events import Status
from sweeps.records.fronts import mean_error, searched_points
from sweeps.records.journal import read_journal
from sweeps.records.model import StudyRecord, TrialRecord, fold
from sweeps.records.names import JOURNAL_FILE, SERIES_FILE, SPACE_FILE
from sweeps.records.study_folders import new_study_folder, studies_root
from sweeps.space.files import find_space, read_yaml
from sweeps.space.model import Space
from sweeps.space.parse import resolve_content, space_from_content
from sweeps.space.settings import parse_time
from sweeps.space.trust import check_options
from sweeps.storage.remote import Storage, child_uri, fetch_study, list_stored_studies, storage_uri
from sweeps.utils.clock import monotonic_time

ENTRY = ("name", "space", "set", "trials")
_PLACES = ("data_dir", "teachers", "cache_dir")
_OPTIONS = ("set", "data", "seed", "trials", "gpus_per_trial", "cpus_per_trial", "max_concurrent",
            "processes_per_trial", "sharing")  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One study of a series."""

    name: str
    space: Space


def is_series(name: str) -> bool:
    """Whether a space's name or file stands for several studies; raises InputError when there is none."""
    return "studies" in read_yaml(find_space(name))


def read_series(content: Mapping[str, Any], where: str, options: argparse.Namespace) -> list[Member]:
    """Every study of a series, checked before the first one starts; raises InputError that names the study."""
    entries = content.get("studies")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError("`studies` must be a list of sections with a `name` each")
    common = {key: value for key, value in content.items() if key != "studies"}
    members = [_member(entry, common, where, options) for entry in entries]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise InputError(f"`studies` must have names of their own, but got {', '.join(names)}")
    return members


def _member(entry: Mapping[str, Any], common: dict[str, Any], where: str, options: argparse.Namespace) -> Member:
    for key in entry:
        if key not in ENTRY:
            raise unknown("field of `studies`", key, ENTRY)
    name, changes = entry.get("name"), entry.get("set", {})
    if not isinstance(name, str) or not isinstance(changes, Mapping):
        raise InputError(f"each of `studies` needs a `name`, and `set` must be dotted names with values; got {entry!r}")
    content = read_yaml(find_space(str(entry["space"]))) if "space" in entry else copy.deepcopy(common)
    asked = [(str(key), value) for key, value in changes.items()]
    asked += [("search.trials", entry["trials"])] if "trials" in entry else []
    try:
        space = space_from_content(where, resolve_content(content, asked, options_of(options)))
        check_options(space, options)
        return Member(name, space)
    except InputError as error:
        raise InputError(f"study {name!r}: {error}") from error


def options_of(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """What the command line changes in every space: texts of --set, and dotted names with values."""
    found = {
        "data.name": options.data, "search.seed": options.seed, "search.trials": options.trials,
        "resources.gpus_per_trial": options.gpus_per_trial, "resources.cpus_per_trial": options.cpus_per_trial,
        "resources.max_concurrent": options.max_concurrent,
        "resources.processes_per_trial": options.processes_per_trial, "resources.sharing": options.sharing,
    }  # fmt: skip
    return list(options.set), {key: value for key, value in found.items() if value is not None}


def start_series(options: argparse.Namespace) -> int:
    """Run the studies of a file one after the other; returns the exit code. Raises InputError before any of them."""
    path = find_space(options.space)
    content = read_yaml(path)
    members = read_series(content, path.stem, options)
    uri = storage_uri(options.storage)
    root = studies_root(options.storage, options.out)
    folder = new_study_folder(root, options.name, path.stem, list_stored_studies(uri) if uri else ())
    folder.mkdir(parents=True)
    kept: dict[str, Any] = {name: value for name in _OPTIONS if (value := vars(options)[name])}
    kept |= {name: str(Path(value).resolve()) for name in _PLACES if (value := vars(options)[name])}
    text = yaml.safe_dump({"file": path.stem, "content": content, "options": kept, "storage": uri}, sort_keys=False)
    (folder / SERIES_FILE).write_text(text)
    if uri:
        Storage(uri, folder.name).put(SERIES_FILE, text.encode())
    return _run(members, folder, options, uri)


def is_resumable_series(options: argparse.Namespace) -> bool:
    """Whether `--resume` names a series."""
    folder = studies_root(options.storage, options.out) / str(options.resume)
    uri = storage_uri(options.storage)
    return (folder / SERIES_FILE).is_file() or (uri is not None and SERIES_FILE in Storage(uri, folder.name).names())


def resume_series(options: argparse.Namespace) -> int:
    """Go on with a series: studies that have ended stay as they are. Raises InputError."""
    folder = studies_root(options.storage, options.out) / options.resume
    uri = storage_uri(options.storage)
    if uri and not (folder / SERIES_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SERIES_FILE).write_bytes(Storage(uri, folder.name).get(SERIES_FILE))
    kept = read_yaml(folder / SERIES_FILE)
    uri = uri or kept.get("storage")
    for name in _PLACES:
        known = kept["options"].pop(name, None)
        setattr(options, name, getattr(options, name) or (Path(known) if known else None))
    asked = argparse.Namespace(**{**vars(options), **dict.fromkeys(_OPTIONS), "set": [], **kept["options"]})
    members = read_series(kept["content"], kept["file"], asked)
    if uri:
        for name in list_stored_studies(child_uri(uri, folder.name)):
            fetch_study(child_uri(uri, folder.name), name, folder)
    return _run(members, folder, options, uri)


def _run(members: list[Member], folder: Path, options: argparse.Namespace, uri: str | None) -> int:
    """Each study has an equal part of the time that is left; what one does not use, the next ones have."""
    seconds = parse_time(options.time)
    started, codes = time.monotonic(), []
    for index, member in enumerate(members):
        left = None if seconds is None else seconds - (time.monotonic() - started)
        if left is not None and left <= 1:
            print(f"the time is used up before {member.name}")
            break
        if _is_finished(folder / member.name):
            continue
        part = None if left is None else left / (len(members) - index)
        print(f"\nstudy {index + 1} of {len(members)}: {member.name}", flush=True)
        own = argparse.Namespace(**{**vars(options), "out": folder, "storage": uri and child_uri(uri, folder.name)})
        codes.append(_run_one(member, folder, own, part))
        if codes[-1] not in (0, 1):
            break
    print("\n".join(summary_lines(members, folder)), flush=True)
    if not all(_is_finished(folder / member.name) for member in members):
        at = "" if folder.parent == Path("studies").resolve() else f" --out {folder.parent}"
        at += f" --storage {uri}" if uri else ""
        print(f"not all studies have ended; go on with: python sweeps/run.py --resume {folder.name}{at}")
    return max(codes, default=0)


def _run_one(member: Member, folder: Path, options: argparse.Namespace, seconds: float | None) -> int:
    from sweeps.study.driver import resume_study, start_study

    limit = None if seconds is None else f"{max(1, round(seconds))}s"
    own = argparse.Namespace(**{**vars(options), "time": limit, "began": monotonic_time()})
    if (folder / member.name / SPACE_FILE).is_file():
        nothing: dict[str, Any] = {"space": None, "set": [], "data": None, "seed": None, "name": None, "trials": None}
        return resume_study(argparse.Namespace(**{**vars(own), **nothing, "resume": member.name}))
    own.name = member.name
    timed = member.space.search.model_copy(update={"time": limit})
    return start_study(replace(member.space, search=timed), own)


def _is_finished(folder: Path) -> bool:
    record = _record(folder)
    return record is not None and record.closed is not None and record.closed.get("reason") == "finished"


def _record(folder: Path) -> StudyRecord | None:
    path = folder / JOURNAL_FILE
    return fold(read_journal(path)) if path.is_file() else None


def summary_lines(members: list[Member], folder: Path) -> list[str]:
    """How far each study came, and the best of each of its strata by validation error."""
    lines = [f"\n{folder.name}: {len(members)} studies in {folder}"]
    for member in members:
        record = _record(folder / member.name)
        trials = list(record.trials.values()) if record else []
        done = [trial for trial in trials if trial.status is Status.COMPLETED and not trial.broken]
        ended = "ended" if _is_finished(folder / member.name) else "not ended" if record else "not begun"
        adopted = sum(bool(trial.adopted) for trial in done)
        shared = f", {adopted} of them trained in another of these studies" if adopted else ""
        count = f"{len(done)} of {len(trials)} trials completed{shared}"
        lines.append(f"{member.name} ({ended}): {count}. {member.space.question}")
        lines += [f"  {stratum}: {_described(best)}" for stratum, best in _best(trials).items()]
    return lines


def _best(trials: list[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Of each stratum the point of the lowest mean error, as its seeds; of equal ones the smallest."""
    best: dict[str, list[TrialRecord]] = {}
    for seeds in sorted(searched_points(trials), key=lambda seeds: seeds[0].counts["params"]):
        kept = best.get(seeds[0].stratum)
        if kept is None or mean_error(seeds) < mean_error(kept):
            best[seeds[0].stratum] = seeds
    return best


def _described(seeds: list[TrialRecord]) -> str:
    over = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    first = seeds[0]
    return f"{first.method}, {first.counts['params']:,} parameters, {mean_error(seeds):.2f} % validation error{over}"
