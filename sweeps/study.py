"""A study from its first line to its last: folder, journal, search, launch, tracking, test errors, summary."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowrank.data import ImageData, load_data
from lowrank.errors import InputError
from sweeps.final import evaluate_front
from sweeps.folders import check_root, find_folder, new_folder, read_question, write_question
from sweeps.interrupt import INTERRUPTED
from sweeps.journal import FullDiskError, Journal, locked_journal, read_journal, tells_of_full_disk
from sweeps.proposals import make_proposer
from sweeps.records import (
    JOURNAL_FILE,
    TERMINAL,
    Event,
    Status,
    StudyRecord,
    apply_event,
    check_note,
    fold,
    parse_tags,
)
from sweeps.search import Search, reachable_strata
from sweeps.settings import parse_time
from sweeps.space import Space, parse_space
from sweeps.specification import Resolver
from sweeps.tracking_process import TrackingProcess, check_tracking_uri, redact

if TYPE_CHECKING:
    from sweeps.resources import Share

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")
NOTHING_COMPLETED = 1
DEFAULT_OUT = Path("studies")


@dataclass(frozen=True)
class Setting:
    """What a driver needs beside the space."""

    name: str
    folder: Path
    data_dir: Path | None
    tracking_uri: str | None
    address: str | None
    gpus_asked: bool
    seconds: float | None
    note: str
    tags: dict[str, str]


def start_study(space: Space, options: argparse.Namespace) -> int:
    """Begin a new study; returns the exit code. Raises InputError before anything is written."""
    folder = new_folder(_root(options), options.name, space.name)
    setting = _setting(folder, space, options, options.data_dir, options.tracking_uri)
    return _drive(space, Resolver(space, load_data(space.data, setting.data_dir)), setting)


def resume_study(options: argparse.Namespace) -> int:
    """Go on with a study, with more trials, time or other resources; the question is as it was. Raises InputError."""
    folder = find_folder(_root(options), options.resume)
    new = [name for name in ("space", "set", "data", "seed", "name", "plan", "json") if getattr(options, name)]
    if new:
        raise InputError(
            f"--resume goes on with the question as it was; leave --{new[0]} out (--trials, --time and the resources "
            "may be new)"
        )
    content, kept = read_question(folder)
    content.setdefault("search", {}).pop("time", None)  # a limit of time is for one sitting
    _update(content, "search", trials=options.trials, time=options.time)
    _update(
        content, "resources", gpus_per_trial=options.gpus_per_trial, cpus_per_trial=options.cpus_per_trial,
        max_concurrent=options.max_concurrent,
    )  # fmt: skip
    space = parse_space(kept["space"], content)
    data_dir = options.data_dir or (Path(kept["data_dir"]) if kept["data_dir"] else None)
    setting = _setting(folder, space, options, data_dir, options.tracking_uri or kept["tracking_uri"])
    return _drive(space, Resolver(space, _same_data(space, setting)), setting)


def _update(content: dict[str, Any], section: str, **asked: Any) -> None:
    content.setdefault(section, {}).update({key: value for key, value in asked.items() if value is not None})


def _same_data(space: Space, setting: Setting) -> ImageData:
    data = load_data(space.data, setting.data_dir)
    header = fold(read_journal(setting.folder / JOURNAL_FILE)).header
    expected = header.get("data", {}).get("fingerprint", data.fingerprint)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} has the fingerprint {data.fingerprint}, but the study began with {expected}")
    return data


def _root(options: argparse.Namespace) -> Path:
    return check_root(Path(options.storage or options.out))


def _setting(
    folder: Path, space: Space, options: argparse.Namespace, data_dir: Path | None, tracking_uri: str | None
) -> Setting:
    if tracking_uri:
        check_tracking_uri(tracking_uri)
    return Setting(
        folder.name, folder, data_dir.resolve() if data_dir else None, tracking_uri, options.address,
        bool(options.gpus_per_trial), parse_time(space.search.time), check_note(options.note),
        parse_tags(options.tag),
    )  # fmt: skip


def _drive(space: Space, resolver: Resolver, setting: Setting) -> int:
    # Ray and its imports are only paid for once the input has been checked
    from sweeps.launch import connect
    from sweeps.resources import choose_share, read_cluster

    strata, unreachable = reachable_strata(space, resolver)
    connect(setting.address)
    asked = space.resources
    share = choose_share(
        read_cluster(), cpus=asked.cpus_per_trial, gpus=asked.gpus_per_trial, most=asked.max_concurrent,
        trials=space.search.trials + len(space.references), gpus_asked=setting.gpus_asked,
    )  # fmt: skip
    for line in unreachable:
        print(f"cannot be met, left out: {line}", flush=True)
    setting.folder.mkdir(parents=True, exist_ok=True)
    with locked_journal(setting.folder) as journal:
        record = fold(read_journal(journal.path))
        _write_question(space, setting)
        _write_header(journal, record, space, resolver, setting)
        if setting.note or setting.tags:
            noted = journal.append(Event.NOTED, sync=True, note=setting.note, tags=setting.tags)
            apply_event(record, noted)
        tracking = TrackingProcess.start(setting.folder, setting.tracking_uri)
        outcome = "interrupted"
        try:
            proposer = make_proposer(space, setting.folder)
            outcome = _work(Search(space, resolver, proposer, journal, record, strata), setting, share)
        except KeyboardInterrupt:
            pass  # between two trials, or after the last: what is done is on record
        except Exception as error:
            if not tells_of_full_disk(error):
                raise
            raise FullDiskError(journal.path) from error  # Ray and Optuna have their own errors for it
        finally:
            journal.append(Event.CLOSED, sync=True, reason=outcome)
    _conclude(setting, outcome, tracking.finish())
    if outcome == "interrupted":
        return INTERRUPTED
    return 0 if _completed(record) or outcome == "time" else NOTHING_COMPLETED


def _work(search: Search, setting: Setting, share: Share) -> str:
    """Train, look at the test split once, draw and print what came out; returns why it ended."""
    outcome = _train(search, setting, share)
    if outcome == "finished":
        evaluate_front(search, setting.folder, search.resolver.data)
    _summarise(setting, search.record)  # before the study closes, so that MLflow gets the picture
    return outcome


def _completed(record: StudyRecord) -> bool:
    return any(trial.status is Status.COMPLETED and not trial.broken for trial in record.trials.values())


def _write_question(space: Space, setting: Setting) -> None:
    """A password in the tracking address is not kept: a resume with one names the address again."""
    uri = setting.tracking_uri
    kept = {
        "space": space.name, "data_dir": str(setting.data_dir) if setting.data_dir else None,
        "tracking_uri": redact(uri) if uri else None,
    }  # fmt: skip
    write_question(setting.folder, space.source, kept)


def _write_header(journal: Journal, record: StudyRecord, space: Space, resolver: Resolver, setting: Setting) -> None:
    data = resolver.data
    references = {name: resolver.reference(name).counts["params"] for name in ("dense", "separable")}
    header = journal.append(
        Event.STUDY, sync=True, name=setting.name, question=space.question, space=space.source,
        data={
            "name": data.name, "fingerprint": data.fingerprint, "classes": len(data.classes),
            "train_images": len(data.train), "val_images": len(data.val), "test_images": len(data.test),
        },
        network=space.network.model_dump(), references=references, seed=space.search.seed,
        strata=[
            {"label": each.label, "params": each.limit if each.limit != float("inf") else None}
            for each in resolver.labels
        ],
        versions=_versions(), hardware=_hardware(), commit=_commit(),
        command=shlex.join(redact(argument) for argument in sys.argv),
    )  # fmt: skip
    record.header, record.closed = header, None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = version(f"{package}-skinny") if package == "mlflow" else "unknown"
    return found


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"host": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _train(search: Search, setting: Setting, share: Share) -> str:
    """Run Tune; returns why it ended: finished, time or interrupted."""
    from sweeps.launch import Launch, run
    from sweeps.view import View

    total = search.space.search.trials + len(search.space.references)
    started = time.monotonic()
    print(
        f"{setting.name}: {search.space.question}\n"
        f"up to {total} trials, {share.concurrent} at a time, each on {share.cpus:g} CPU and {share.gpus:g} GPU; "
        f"everything is kept in {_shown(setting.folder)}", flush=True,
    )  # fmt: skip
    most = search.space.resources.max_concurrent
    with View(search.record, total) as view:
        run(search, Launch(setting.folder, setting.data_dir, share, most, setting.seconds, view.update))
    if _is_finished(search):
        return "finished"
    out_of_time = setting.seconds is not None and time.monotonic() - started >= setting.seconds
    return "time" if out_of_time else "interrupted"


def _is_finished(search: Search) -> bool:
    if any(not trial.ended for trial in search.record.trials.values()) or search.waiting:
        return False
    exhausted = all(stratum.label in search.used_up for stratum in search.strata)
    return exhausted or search.proposed_count() >= search.space.search.trials


def _shown(folder: Path) -> str:
    """The folder as the user would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _summarise(setting: Setting, record: StudyRecord) -> None:
    """The final table, the answer and the picture; or, where nothing was completed, how the trials ended."""
    if _completed(record):
        # analysis stands above this room and is not imported by it
        subprocess.run([sys.executable, "-m", "analysis", "summary", str(setting.folder)], check=False)
        return
    ended = Counter((trial.status, trial.reason) for trial in record.trials.values() if trial.status in TERMINAL)
    for (status, reason), times in ended.most_common(5):
        print(f"{times} {status.replace('_', ' ')}: {reason}")
    print("no trial was completed, so there is no front")


def _conclude(setting: Setting, outcome: str, behind: str | None) -> None:
    """What to do next."""
    if behind:
        print(behind)
    if outcome != "finished":
        reason = "the time is used up" if outcome == "time" else "interrupted"
        at = "" if setting.folder.parent == DEFAULT_OUT.resolve() else f" --out {_shown(setting.folder.parent)}"
        print(f"{reason}; nothing is lost. Go on with: python sweeps/run.py --resume {setting.name}{at}")
    elif not setting.tracking_uri:
        print(f"every trial in MLflow: mlflow ui --backend-store-uri sqlite:///{_shown(setting.folder)}/mlflow.db")
