"""Run the studies of a series in turn: one command, one limit of time, one summary; resumable as one.

The studies lie in one folder under the series' name. What one has trained the others adopt (sweeps.search.reuse).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lowrank.data import absolute_data_name
from lowrank.errors import InputError
from lowrank.utils import ExitCode, format_counted, redact, relative_path, validate_model, write_bytes, write_text
from sweeps.records import (
    JOURNAL_FILE,
    SERIES_FILE,
    SPACE_FILE,
    Status,
    StudyRecord,
    TrialRecord,
    fold_journal,
    mean_error,
    new_study_folder,
    resume_command,
    searched_points,
    studies_root,
)
from sweeps.space import (
    FOLDER_OPTIONS,
    RunOptions,
    StoredOptions,
    find_space,
    parse_time,
    permission_options,
    read_yaml,
)
from sweeps.storage import Storage, child_uri, fetch_study, list_stored_studies, storage_uri
from sweeps.study.driver import NOTHING_COMPLETED, CloseReason, exit_code
from sweeps.study.series import SeriesMember, parse_series
from sweeps.study.start import resume_study, start_study
from sweeps.utils import dump_yaml, is_plain_name, monotonic_time

# Options that override fields of every study; kept with the series, for its resumption
_FIELD_OPTIONS = ("set", "data", "network", "keep", "only", "weights", "seed", "trials", "gpus_per_trial",
                  "cpus_per_trial", "max_concurrent", "processes_per_trial", "sharing")  # fmt: skip
# Of these the ones that a resume may change, which then holds for the studies that are not finished
_CHANGEABLE_OPTIONS = ("trials", "gpus_per_trial", "cpus_per_trial", "max_concurrent", "processes_per_trial", "sharing")
_LISTS = ("set", "keep", "only")
# Options that each study keeps by itself once it has begun; kept with the series for those that have not
_BEGIN_OPTIONS = ("tracking_uri", "note", "tag", "group")


class _SeriesFile(BaseModel):
    """The content of series.yaml.

    Attributes:
        file: name of the series file.
        content: of that file.
        options: of the command, by name.
        storage: URI of the remote copy.
        base: where relative paths begin; older series have none.
    """

    model_config = ConfigDict(extra="allow")
    file: str
    content: dict[str, object]
    options: dict[str, Any]
    storage: str | None = None
    base: str = ""


def start_series(options: RunOptions) -> int:
    """Run the studies of a new series.

    Args:
        options: the command line, with `space`.

    Returns:
        The largest exit code of a study; one that was not begun has no completed trial.

    Raises:
        InputError: one of the studies cannot be run; nothing has been started then.
    """
    assert options.space is not None
    path = find_space(options.space)
    content = read_yaml(path)
    members = parse_series(content, path.stem, options)
    uri = storage_uri(options.storage)
    root = studies_root(options.storage, options.out)
    folder = _make_folder(root, options.name, path.stem, list_stored_studies(uri) if uri else [])
    stored: dict[str, object] = {
        name: value for name in _FIELD_OPTIONS if (value := getattr(options, name)) not in (None, (), [])
    }
    stored |= {name: value for name in _BEGIN_OPTIONS if (value := getattr(options, name)) not in (None, (), [])}
    if options.tracking_uri is not None:
        stored["tracking_uri"] = redact(options.tracking_uri)  # without a password, which a resume must name again
    stored |= {name: str(Path(value).resolve()) for name in FOLDER_OPTIONS if (value := getattr(options, name))}
    series = _SeriesFile(file=path.stem, content=content, options=stored, storage=uri, base=str(Path.cwd()))
    _store(folder, series, uri)
    return _run(members, folder, options, uri)


def _make_folder(root: Path, name: str | None, series: str, taken: list[str]) -> Path:
    """Make the folder of a new series; of several commands that do it at once each gets one of its own."""
    while True:
        folder = new_study_folder(root, name, series, taken)
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if name is not None:
                raise InputError(f"another command begins {name!r} in {root}; choose another --name") from error
            taken = [*taken, folder.name]
        else:
            return folder


def _store(folder: Path, series: _SeriesFile, uri: str | None) -> None:
    text = dump_yaml(series.model_dump(exclude_unset=True))
    write_text(folder / SERIES_FILE, text)
    if uri:
        Storage(uri, folder.name).put(SERIES_FILE, text.encode())


def is_resumable_series(options: RunOptions) -> bool:
    """Tell whether `--resume` names a series.

    Args:
        options: the command line, with `resume`.

    Returns:
        True for a series, False for a study or anything else.

    Raises:
        InputError: the storage cannot be used.
    """
    folder = studies_root(options.storage, options.out) / str(options.resume)
    uri = storage_uri(options.storage)
    if not is_plain_name(options.resume):
        return False
    return (folder / SERIES_FILE).is_file() or (uri is not None and SERIES_FILE in Storage(uri, folder.name).names())


def resume_series(options: RunOptions) -> int:
    """Go on with a series; studies that have ended stay as they are.

    Args:
        options: the command line, with `resume`.

    Returns:
        The largest exit code of a study; one that was not begun has no completed trial.

    Raises:
        InputError: one of the studies cannot be run.
    """
    typed = options
    folder = studies_root(options.storage, options.out) / str(options.resume)
    uri = storage_uri(options.storage)
    if uri and not (folder / SERIES_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / SERIES_FILE, Storage(uri, folder.name).get(SERIES_FILE))
    stored = validate_model(_SeriesFile, read_yaml(folder / SERIES_FILE), SERIES_FILE)
    uri = uri or stored.storage
    options = options.with_folders(validate_model(StoredOptions, stored.options, "options"))
    changed = {name: value for name in _CHANGEABLE_OPTIONS if (value := getattr(typed, name)) is not None}
    fields: dict[str, Any] = {name: stored.options.get(name) for name in _FIELD_OPTIONS} | changed
    fields |= {name: fields[name] or () for name in _LISTS}
    base = Path(stored.base)  # on another machine it may not be there
    members = parse_series(
        stored.content, stored.file, replace(options, **fields), typed, base if base.is_dir() else Path()
    )  # fmt: skip
    data = {member.space.data.name for member in members}
    if typed.data is not None and absolute_data_name(typed.data) not in data:
        raise InputError(
            f"--resume goes on with the images that the series began with: --data must be {' or '.join(sorted(data))}, "
            f"but got {typed.data}"
        )
    begin = {name: getattr(typed, name) or stored.options.get(name) or getattr(typed, name) for name in _BEGIN_OPTIONS}
    if changed:  # for the studies that are not begun in this run either
        stored.options.update(changed)
        _store(folder, stored, uri)
    if uri:
        for name in list_stored_studies(child_uri(uri, folder.name)):
            fetch_study(child_uri(uri, folder.name), name, folder)
    return _run(members, folder, options, uri, begin)


def _run(
    members: list[SeriesMember], folder: Path, options: RunOptions, uri: str | None,
    begin: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Run each study with an equal part of the remaining time; the next ones have what one does not use.

    `begin` are the options that a study begins with, where they are not those of `options`.
    """
    limit = parse_time(options.time)
    started, codes = monotonic_time(), []
    for index, member in enumerate(members):
        remaining = None if limit is None else limit - (monotonic_time() - started)
        if remaining is not None and remaining <= 1:
            print(f"the time is used up before {member.name}")
            break
        again = options.test or options.repeat_more is not None or options.trials is not None
        if _is_finished(_record(folder / member.name)) and not again:
            continue
        seconds = None if remaining is None else remaining / (len(members) - index)
        print(f"\nstudy {index + 1} of {len(members)}: {member.name}", flush=True)
        storage = uri and child_uri(uri, folder.name)
        member_options = replace(options, out=folder, storage=storage)
        if not (folder / member.name / SPACE_FILE).is_file():
            member_options = replace(member_options, **(begin or {}))
        codes.append(_run_member(member, folder, member_options, seconds))
        if codes[-1] not in (ExitCode.DONE, NOTHING_COMPLETED, ExitCode.NOT_STORED):
            break
    records = {member.name: _record(folder / member.name) for member in members}
    print("\n".join(summary_lines(members, folder, records)), flush=True)
    if not all(map(_is_finished, records.values())):
        permissions = "".join(dict.fromkeys(permission_options(member.space) for member in members))
        print(f"not all studies have ended; go on with: {resume_command(folder, uri)}{permissions}")
    return max([*codes, *map(_study_code, records.values())])


def _study_code(record: StudyRecord | None) -> int:
    """The exit code of a study as it stands; of one that was not begun that of one without a completed trial."""
    if record is None:
        return NOTHING_COMPLETED
    return exit_code(record, CloseReason.FINISHED if _is_finished(record) else CloseReason.TIME)


def _run_member(member: SeriesMember, folder: Path, options: RunOptions, seconds: float | None) -> int:
    limit = None if seconds is None else f"{max(1, round(seconds))}s"
    options = replace(options, time=limit, began=monotonic_time())
    if (folder / member.name / SPACE_FILE).is_file():
        # Its images were permitted with the series
        options = replace(options, space=None, set=(), data=member.space.data.name, seed=None, name=None)
        return resume_study(replace(options, resume=member.name))
    search = member.space.search.model_copy(update={"time": limit})
    return start_study(replace(member.space, search=search), replace(options, name=member.name))


def _is_finished(record: StudyRecord | None) -> bool:
    return record is not None and record.closed is not None and record.closed.get("reason") == "finished"


def _record(folder: Path) -> StudyRecord | None:
    path = folder / JOURNAL_FILE
    return fold_journal(path) if path.is_file() else None


def summary_lines(
    members: list[SeriesMember], folder: Path, records: Mapping[str, StudyRecord | None]
) -> list[str]:  # fmt: skip
    """Say how far each study came, and give the best of each of its strata.

    Args:
        members: the studies.
        folder: the series'.
        records: of the studies by name; None for one that was not begun.

    Returns:
        The lines to print.
    """
    lines = [f"\n{folder.name}: {format_counted(len(members), 'study', 'studies')} in {relative_path(folder)}"]
    for member in members:
        record = records[member.name]
        trials = list(record.trials.values()) if record else []
        done = [trial for trial in trials if trial.status is Status.COMPLETED and not trial.broken]
        ended = "ended" if _is_finished(record) else "not ended" if record else "not begun"
        adopted = sum(bool(trial.adopted) for trial in done)
        shared = f", {adopted} of them trained in another of these studies" if adopted else ""
        count = f"{len(done)} of {format_counted(len(trials), 'trial')} completed{shared}"
        lines.append(f"{member.name} ({ended}): {count}. {member.space.question}")
        lines += [f"  {stratum}: {_describe(best)}" for stratum, best in _best(trials).items()]
    return lines


def _best(trials: list[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The point of the lowest mean error in each stratum, as its seeds; the smallest of equal ones."""
    best: dict[str, list[TrialRecord]] = {}
    for seeds in sorted(searched_points(trials), key=lambda seeds: seeds[0].counts["params"]):
        leader = best.get(seeds[0].stratum)
        if leader is None or mean_error(seeds) < mean_error(leader):
            best[seeds[0].stratum] = seeds
    return best


def _describe(seeds: list[TrialRecord]) -> str:
    over = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    first = seeds[0]
    return f"{first.method}, {first.counts['params']:,} parameters, {mean_error(seeds):.2f} % validation error{over}"
