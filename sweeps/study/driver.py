"""A study from its first line to its last: folder, journal, search, launch, tracking, test errors, summary."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.data import ImageData, load_data
from lowrank.errors import InputError
from lowrank.utils.cli import ExitCode
from sweeps.records.annotations import check_note, parse_tags
from sweeps.records.events import TERMINAL, Event, Status
from sweeps.records.journal import FullDiskError, Journal, is_disk_full, locked_journal, read_journal
from sweeps.records.model import StudyRecord, apply_event, fold
from sweeps.records.names import JOURNAL_FILE, SPACE_FILE
from sweeps.records.study_folders import (
    find_study_folder,
    new_study_folder,
    read_space_file,
    studies_root,
    write_space_file,
)
from sweeps.search.optuna_proposer import OptunaProposer, make_proposer
from sweeps.search.reuse import SiblingResults
from sweeps.search.search import Search
from sweeps.search.warm_start import earlier_studies, warm_start
from sweeps.space.checks import check_shared
from sweeps.space.model import Space
from sweeps.space.parse import parse_space
from sweeps.space.settings import parse_time
from sweeps.space.study_config import StudyConfig
from sweeps.space.trust import check_trust
from sweeps.storage.mirror import mirror_study
from sweeps.storage.remote import fetch_study, list_stored_studies, storage_uri
from sweeps.study.final_evaluation import evaluate_front
from sweeps.study.retrain import ORIGIN, Retrain, select_stopped, select_trial
from sweeps.study.retrain_report import retrain_lines
from sweeps.teachers.ensure import ensure_teacher
from sweeps.teachers.worker import CACHE_FOLDER, CacheOptions
from sweeps.tracking.process import TrackingProcess, check_tracking_uri, redact
from sweeps.trials.feasibility import infeasible_lines, reachable_strata
from sweeps.trials.planned_teacher import with_teacher_name
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import ResolvedTeacher, resolve_teacher
from sweeps.utils.clock import monotonic_time
from sweeps.utils.provenance import command, commit, hardware, versions

if TYPE_CHECKING:
    from sweeps.resources.slots import TrialResources

NOTHING_COMPLETED = 1
DEFAULT_OUT = Path("studies")
DEFAULT_TEACHERS = Path("teachers")


def start_study(space: Space, options: argparse.Namespace) -> int:
    """Begin a new study; returns the exit code. Raises InputError before anything is written."""
    uri = storage_uri(options.storage)
    folder = new_study_folder(
        studies_root(options.storage, options.out), options.name, space.name, list_stored_studies(uri) if uri else ()
    )
    setting = _setting(folder, space, options, options.data_dir, options.tracking_uri, uri)
    data = load_data(space.data, setting.data_dir)
    begun = time.monotonic()
    resolver = Resolver(space, data, ensure_teacher(space, data, setting.teachers, setting.tracking_uri))
    if setting.seconds is not None:  # what the teacher took is part of it
        setting = replace(setting, seconds=max(1.0, setting.seconds - (time.monotonic() - begun)))
    with mirror_study(uri, folder):
        return _drive(space, resolver, setting)


def start_again(options: argparse.Namespace) -> int:
    """Train recorded trials once more, as a study of its own: one, does it come out the same; stopped ones, whole.

    Returns the exit code. Raises InputError before anything is written.
    """
    command = "reproduce" if options.reproduce else "retrain-stopped"
    new = [name for name in ("space", "set", "trials", "plan", "probe_memory", "resume") if getattr(options, name)]
    new += ["seed"] if options.reproduce and options.seed else []
    if new:
        raise InputError(f"--{command} trains what is on record; leave --{new[0].replace('_', '-')} out")
    uri, root = storage_uri(options.storage), studies_root(options.storage, options.out)
    retrain = (
        select_trial(options.reproduce[0], options.reproduce[1], root, options.data) if options.reproduce
        else select_stopped(options.retrain_stopped, root, options.sample, options.seed or 0, options.data)
    )  # fmt: skip
    asked = {name: getattr(options, name) for name in ("gpus_per_trial", "cpus_per_trial", "max_concurrent", "sharing")}
    content = retrain.content({name: value for name, value in asked.items() if value is not None})
    _update(content, "search", time=options.time)
    space = parse_space(retrain.name, content)
    check_trust(space, allow_code=options.allow_code, data_asked=True)  # its data was asked for when it was trained
    kept = read_space_file(retrain.folder)[1] if (retrain.folder / SPACE_FILE).is_file() else {}
    _take_places(options, kept)
    folder = new_study_folder(root, options.name, retrain.name, list_stored_studies(uri) if uri else ())
    setting = _setting(folder, space, options, options.data_dir, options.tracking_uri, uri)
    data = load_data(space.data, setting.data_dir)
    teaching = resolve_teacher(space, data, setting.teachers)
    setting = replace(setting, origin=retrain.check(data, teaching))
    with mirror_study(uri, folder):
        return _drive(space, Resolver(space, data, teaching), setting, retrain)


def _take_places(options: argparse.Namespace, kept: Mapping[str, Any]) -> None:
    """Folders that the command line leaves open are where they were."""
    for name in ("data_dir", "teachers", "cache_dir"):
        setattr(options, name, getattr(options, name) or (Path(kept[name]) if kept.get(name) else None))


def resume_study(options: argparse.Namespace) -> int:
    """Go on with a study, with more trials, time or other resources; the question is as it was. Raises InputError."""
    folder, uri = _stored_folder(options)
    new = [name for name in ("space", "set", "data", "seed", "name", "plan", "json") if getattr(options, name)]
    if new:
        raise InputError(
            f"--resume goes on with the question as it was; leave --{new[0]} out (--trials, --time and the resources "
            "may be new)"
        )
    content, kept = read_space_file(folder)
    content.setdefault("search", {}).pop("time", None)  # a limit of time is for one sitting
    _update(content, "search", trials=options.trials, time=options.time)
    _update(
        content, "resources", gpus_per_trial=options.gpus_per_trial, cpus_per_trial=options.cpus_per_trial,
        max_concurrent=options.max_concurrent, processes_per_trial=options.processes_per_trial,
        sharing=options.sharing,
    )  # fmt: skip
    space = parse_space(kept["space"], content)
    check_trust(space, allow_code=options.allow_code, data_asked=True)  # its data was asked for when it began
    _take_places(options, kept)
    setting = _setting(folder, space, options, options.data_dir, options.tracking_uri or kept["tracking_uri"], uri)
    setting = replace(setting, origin=kept.get(ORIGIN))
    data = _same_data(space, setting)
    resolver = Resolver(space, data, _same_teacher(space, data, setting))
    with mirror_study(uri, folder):
        return _drive(space, resolver, setting)


def _stored_folder(options: argparse.Namespace) -> tuple[Path, str | None]:
    """The folder of the study to go on with and the URI that keeps it, fetched from there where it is behind."""
    root, uri = studies_root(options.storage, options.out), storage_uri(options.storage)
    if uri is None and (root / options.resume / SPACE_FILE).is_file():
        uri = read_space_file(find_study_folder(root, options.resume))[1].get("storage")
    if uri is not None:
        fetch_study(uri, options.resume, root)
    return find_study_folder(root, options.resume), uri


def _update(content: dict[str, Any], section: str, **asked: Any) -> None:
    content.setdefault(section, {}).update({key: value for key, value in asked.items() if value is not None})


def _same_data(space: Space, setting: StudyConfig) -> ImageData:
    data = load_data(space.data, setting.data_dir)
    header = fold(read_journal(setting.folder / JOURNAL_FILE)).header
    expected = header.get("data", {}).get("fingerprint", data.fingerprint)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} has the fingerprint {data.fingerprint}, but the study began with {expected}")
    return data


def _same_teacher(space: Space, data: ImageData, setting: StudyConfig) -> ResolvedTeacher | None:
    teaching = resolve_teacher(with_teacher_name(space, data), data, setting.teachers)
    header = fold(read_journal(setting.folder / JOURNAL_FILE)).header
    expected = (header.get("teacher") or {}).get("weights")
    if teaching is not None and expected not in (None, teaching.found.sha256):
        raise InputError(f"the teacher {teaching.name} has changed since the study began: its sha256 is "
                         f"{teaching.found.sha256[:12]}..., not {expected[:12]}...")  # fmt: skip
    return teaching


def _setting(
    folder: Path, space: Space, options: argparse.Namespace, data_dir: Path | None, tracking_uri: str | None,
    storage: str | None,
) -> StudyConfig:  # fmt: skip
    if tracking_uri:
        check_tracking_uri(tracking_uri)
    return StudyConfig(
        folder.name, folder, data_dir.resolve() if data_dir else None, tracking_uri, options.address,
        bool(options.gpus_per_trial), parse_time(space.search.time), (options.teachers or DEFAULT_TEACHERS).resolve(),
        options.cache_dir.resolve() if options.cache_dir else None, check_note(options.note), parse_tags(options.tag),
        options.began, options.profile, storage,
    )  # fmt: skip


def _drive(space: Space, resolver: Resolver, setting: StudyConfig, retrain: Retrain | None = None) -> int:
    # Ray and its imports are only paid for once the input has been checked
    from sweeps.cluster.ray_session import connect
    from sweeps.resources.slots import ResourcePlanner

    resolver.step_timer.use_folder(setting.folder)
    earlier = earlier_studies(space.search.warm_start, setting.folder.parent)
    # A trial that is reproduced must be trained again, not taken from a sibling
    siblings = SiblingResults() if setting.origin else SiblingResults.read(setting.folder)
    strata, unreachable = reachable_strata(space, resolver)
    connect(setting.address)
    planner = ResourcePlanner(space, expected_trials(space, resolver), require_gpus=setting.gpus_asked)
    check_shared(space, planner.share.processes, len(resolver.data.train))
    _say_impossible(space, resolver, unreachable)
    setting.folder.mkdir(parents=True, exist_ok=True)
    with locked_journal(setting.folder) as journal, planner.sharing_modes(setting.address) as modes:
        record = fold(read_journal(journal.path))
        _write_question(space, setting)
        _write_header(journal, record, space, resolver, setting)
        if retrain is not None and setting.origin is not None:
            retrain.propose(journal, record, setting.folder, setting.origin)
        if setting.note or setting.tags:
            noted = journal.append(Event.ANNOTATED, sync=True, note=setting.note, tags=setting.tags)
            apply_event(record, noted)
        tracking = TrackingProcess.start(setting.folder, setting.tracking_uri)
        outcome = "interrupted"
        try:
            proposer = make_proposer(space, setting.folder, resolver.points)
            if isinstance(proposer, OptunaProposer):
                print(*warm_start(proposer, resolver, earlier), sep="\n", end="\n" if earlier else "", flush=True)
            resources = planner.resolve(resolver, journal, record, setting.data_dir, modes)
            event = journal.append(
                Event.RESOURCES, sync=True, since=monotonic_time() - setting.began, **resources.as_event()
            )
            apply_event(record, event)
            outcome = _work(Search(space, resolver, proposer, journal, record, strata, siblings), setting, resources)
        except KeyboardInterrupt:
            pass  # between two trials, or after the last: what is done is on record
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise FullDiskError(journal.path) from error  # Ray and Optuna have their own errors for it
        finally:
            journal.append(Event.CLOSED, sync=True, reason=outcome)
    print(*retrain_lines(record), sep="\n", end="\n" if setting.origin else "", flush=True)
    _conclude(setting, outcome, tracking.finish())
    if setting.profile:
        _analysis("profile", setting.folder)
    if outcome == "interrupted":
        return ExitCode.INTERRUPTED
    return 0 if _completed(record) or outcome == "time" else NOTHING_COMPLETED


def _say_impossible(space: Space, resolver: Resolver, unreachable: list[str]) -> None:
    for line in unreachable:
        print(f"cannot be met, left out: {line}", flush=True)
    for line in infeasible_lines(space, resolver):
        print(f"left out: {line}", flush=True)


def _work(search: Search, setting: StudyConfig, resources: TrialResources) -> str:
    """Train, look at the test split once, draw and print what came out; returns why it ended."""
    outcome = _train(search, setting, resources)
    if outcome == "finished":
        evaluate_front(search, setting.folder, search.resolver.data)
    _summarise(setting, search.record)  # before the study closes, so that MLflow gets the picture
    return outcome


def _completed(record: StudyRecord) -> bool:
    return any(trial.status is Status.COMPLETED and not trial.broken for trial in record.trials.values())


def _write_question(space: Space, setting: StudyConfig) -> None:
    """A password in the tracking address is not kept: a resume with one names the address again."""
    uri = setting.tracking_uri
    kept = {
        "space": space.name, "data_dir": str(setting.data_dir) if setting.data_dir else None,
        "tracking_uri": redact(uri) if uri else None, "teachers": str(setting.teachers),
        "cache_dir": str(setting.cache_dir) if setting.cache_dir else None,
        "storage": setting.storage, ORIGIN: setting.origin,
    }  # fmt: skip
    write_space_file(setting.folder, space.source, kept)


def _write_header(
    journal: Journal, record: StudyRecord, space: Space, resolver: Resolver, setting: StudyConfig
) -> None:
    data = resolver.data
    references = {name: resolver.reference(name).counts["params"] for name in ("dense", "separable")}
    header = journal.append(
        Event.STUDY, sync=True, name=setting.name, question=space.question, space=space.source,
        data={
            "name": data.name, "fingerprint": data.fingerprint, "classes": len(data.classes),
            "image_shape": list(data.image_shape),
            "train_images": len(data.train), "val_images": len(data.val), "test_images": len(data.test),
        },
        teacher=resolver.teacher.about() if resolver.teacher else None,
        network=space.network.model_dump(), references=references, seed=space.search.seed,
        strata=[
            {"label": each.label, "params": each.limit if each.limit != float("inf") else None}
            for each in resolver.label_strata
        ] if setting.origin is None else [],  # a repeat is of one size
        versions=versions(), hardware=hardware(), commit=commit(),
        command=command(),
        tracking_uri=redact(setting.tracking_uri) if setting.tracking_uri else None,
        **({ORIGIN: setting.origin} if setting.origin else {}),
    )  # fmt: skip
    record.header, record.closed = header, None


def _train(search: Search, setting: StudyConfig, resources: TrialResources) -> str:
    """Run Tune; returns why it ended: finished, time or interrupted."""
    from sweeps.execution.callbacks import ExecutionConfig
    from sweeps.execution.tuner import run_search
    from sweeps.study.progress_view import View
    from sweeps.teachers.prebuild_cache import build_caches

    total = expected_trials(search.space, search.resolver)
    started = time.monotonic()
    print(
        f"{setting.name}: {search.space.question}\n"
        f"up to {total} trials, {resources.share.concurrent} at a time, each on {resources.share}; "
        f"everything is kept in {_shown(setting.folder)}", flush=True,
    )  # fmt: skip
    cache = _cache(search, setting)
    build_caches(search, cache, setting, resources.share)

    def known() -> int:
        return max(total, sum(trial.status is not Status.INFEASIBLE for trial in search.record.trials.values()))

    with View(search.record, known) as view:
        relay = bool(setting.storage and setting.address)  # several machines, and no disk that they share
        run_search(search, ExecutionConfig(
            study_dir=setting.folder, data_dir=setting.data_dir, resources=resources,
            max_concurrent=search.space.resources.max_concurrent, seconds=setting.seconds, on_change=view.update,
            cache=cache, relay=relay,
        ))  # fmt: skip
    if search.is_over():
        return "finished"
    out_of_time = setting.seconds is not None and time.monotonic() - started >= setting.seconds
    return "time" if out_of_time else "interrupted"


def _cache(search: Search, setting: StudyConfig) -> CacheOptions:
    """Where the study's teacher cache lies: beside the studies, so that they share it, or where the user says."""
    teaching, usual = search.resolver.teacher, setting.folder.parent / CACHE_FOLDER
    if teaching is None or not teaching.settings.cache:
        return CacheOptions()
    return CacheOptions(str(setting.cache_dir or usual), (str(usual),))


def expected_trials(space: Space, resolver: Resolver) -> int:
    """How many trials there will be at most, references included, further seeds of a final front not."""
    grid = space.search.sampler == "grid"
    rows = len(resolver.points.grid()) * space.search.repeats if grid else space.search.trials
    references = len(resolver.references()[0]) * (space.search.repeats if grid else 1)
    return min(space.search.trials, rows) + references


def _shown(folder: Path) -> str:
    """The folder as the user would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _summarise(setting: StudyConfig, record: StudyRecord) -> None:
    """The final table, the answer and the picture; or, where nothing was completed, how the trials ended."""
    if _completed(record):
        _analysis("summary", setting.folder)
        return
    ended = Counter((trial.status, trial.reason) for trial in record.trials.values() if trial.status in TERMINAL)
    for (status, reason), times in ended.most_common(5):
        print(f"{times} {status.replace('_', ' ')}: {reason}")
    print("no trial was completed, so there is no front")


def _analysis(command: str, folder: Path) -> None:
    """Have analysis, which stands above this room and is not imported by it, say something of the study."""
    subprocess.run([sys.executable, "-m", "analysis", command, str(folder)], check=False)


def _conclude(setting: StudyConfig, outcome: str, behind: str | None) -> None:
    """What to do next."""
    if behind:
        print(behind)
    if outcome != "finished":
        reason = "the time is used up" if outcome == "time" else "interrupted"
        at = "" if setting.folder.parent == DEFAULT_OUT.resolve() else f" --out {_shown(setting.folder.parent)}"
        at += f" --storage {setting.storage}" if setting.storage else ""
        print(f"{reason}; nothing is lost. Go on with: python sweeps/run.py --resume {setting.name}{at}")
    elif not setting.tracking_uri:
        print(f"every trial in MLflow: mlflow ui --backend-store-uri sqlite:///{_shown(setting.folder)}/mlflow.db")
