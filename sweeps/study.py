"""A study from its first line to its last: folder, journal, search, launch, tracking, test errors, summary."""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from lowrank.data import ImageData, load_data
from lowrank.errors import InputError
from sweeps.final import evaluate_front
from sweeps.journal import Journal, read_journal
from sweeps.proposals import make_proposer
from sweeps.records import JOURNAL_FILE, SPACE_FILE, TERMINAL, Event, Status, StudyRecord, fold
from sweeps.search import Search, check_reachable
from sweeps.space import Space, parse_space, parse_time
from sweeps.specification import Resolver
from sweeps.tracking_process import TrackingProcess, check_tracking_uri

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")
INTERRUPTED = 130
DEFAULT_OUT = Path("studies")
OPTIONS = "options"  # where space.yaml keeps what is not part of the question: data folder, tracking address


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


def start_study(space: Space, options: argparse.Namespace) -> int:
    """Begin a new study; returns the exit code. Raises InputError before anything is written."""
    folder = _new_folder(_root(options), options.name, space.name)
    setting = _setting(folder, space, options, options.data_dir, options.tracking_uri)
    if setting.tracking_uri:
        check_tracking_uri(setting.tracking_uri)
    data = load_data(space.data, setting.data_dir)
    resolver = Resolver(space, data)
    for line in check_reachable(space, resolver):
        print(f"cannot be met, left out: {line}", flush=True)
    return _drive(space, resolver, setting)


def resume_study(options: argparse.Namespace) -> int:
    """Go on with a study, with more trials, time or other resources; the question is as it was. Raises InputError."""
    folder = _root(options) / options.resume
    if not (folder / SPACE_FILE).is_file():
        raise InputError(f"no study {options.resume!r} in {_root(options)}; choose from: {_studies(_root(options))}")
    if options.set or options.data or options.space or options.seed is not None:
        raise InputError("--resume goes on with the question as it was; --trials, --time and the resources may be new")
    content = yaml.safe_load((folder / SPACE_FILE).read_text())
    kept = content.pop(OPTIONS)
    content.setdefault("search", {}).pop("time", None)  # a limit of time is for one sitting
    _update(content, "search", trials=options.trials, time=options.time)
    _update(
        content, "resources", gpus_per_trial=options.gpus_per_trial, cpus_per_trial=options.cpus_per_trial,
        max_concurrent=options.max_concurrent,
    )  # fmt: skip
    space = parse_space(kept["space"], content)
    data_dir = options.data_dir or (Path(kept["data_dir"]) if kept["data_dir"] else None)
    setting = _setting(folder, space, options, data_dir, options.tracking_uri or kept["tracking_uri"])
    resolver = Resolver(space, _same_data(space, setting, folder))
    return _drive(space, resolver, setting)


def _update(content: dict[str, Any], section: str, **asked: Any) -> None:
    content.setdefault(section, {}).update({key: value for key, value in asked.items() if value is not None})


def _same_data(space: Space, setting: Setting, folder: Path) -> ImageData:
    data = load_data(space.data, setting.data_dir)
    expected = fold(read_journal(folder / JOURNAL_FILE)).header.get("data", {}).get("fingerprint", data.fingerprint)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} has the fingerprint {data.fingerprint}, but the study began with {expected}")
    return data


def _root(options: argparse.Namespace) -> Path:
    return Path(options.storage or options.out).resolve()


def _studies(root: Path) -> str:
    return ", ".join(sorted(path.parent.name for path in root.glob(f"*/{SPACE_FILE}"))) or "none yet"


def _new_folder(root: Path, name: str | None, space_name: str) -> Path:
    """The folder of a new study: the given name, or the first free one of space, space_2, space_3 ..."""
    if name is not None:
        if not name or any(letter in name for letter in "/\\") or name.startswith("."):
            raise InputError(f"--name must be a plain name without slashes, but got {name!r}")
        if (root / name).exists():
            raise InputError(f"the study {name!r} exists in {root}; --resume {name} goes on with it")
        return root / name
    number = 1
    while (folder := root / (space_name if number == 1 else f"{space_name}_{number}")).exists():
        number += 1
    return folder


def _setting(
    folder: Path, space: Space, options: argparse.Namespace, data_dir: Path | None, tracking_uri: str | None
) -> Setting:
    return Setting(
        folder.name, folder, data_dir.resolve() if data_dir else None, tracking_uri, options.address,
        bool(options.gpus_per_trial), parse_time(space.search.time),
    )  # fmt: skip


def _drive(space: Space, resolver: Resolver, setting: Setting) -> int:
    # Ray and its imports are only paid for once the input has been checked
    from sweeps.launch import connect
    from sweeps.resources import choose_share, read_cluster

    connect(setting.address)
    asked = space.resources
    share = choose_share(
        read_cluster(), cpus=asked.cpus_per_trial, gpus=asked.gpus_per_trial, most=asked.max_concurrent,
        trials=space.search.trials + len(space.references), gpus_asked=setting.gpus_asked,
    )  # fmt: skip
    setting.folder.mkdir(parents=True, exist_ok=True)
    with _locked(setting.folder) as journal:
        _write_space(space, setting)
        record = fold(read_journal(journal.path))
        _write_header(journal, record, space, resolver, setting)
        tracking = TrackingProcess.start(setting.folder, setting.tracking_uri)
        search = Search(space, resolver, make_proposer(space, setting.folder), journal, record)
        outcome = _train(search, setting, share)
        if outcome == "finished":
            evaluate_front(search, setting.folder, resolver.data)
        _summarise(setting, record)  # before the study closes, so that MLflow gets the picture
        journal.append(Event.CLOSED, sync=True, reason=outcome)
    _conclude(setting, outcome, tracking.finish())
    return INTERRUPTED if outcome == "interrupted" else 0


def _write_space(space: Space, setting: Setting) -> None:
    kept = {
        "space": space.name, "data_dir": str(setting.data_dir) if setting.data_dir else None,
        "tracking_uri": setting.tracking_uri,
    }  # fmt: skip
    text = yaml.safe_dump({**space.source, OPTIONS: kept}, sort_keys=False, allow_unicode=True)
    temporary = setting.folder / f"{SPACE_FILE}.tmp"
    temporary.write_text(text)
    temporary.replace(setting.folder / SPACE_FILE)


@contextmanager
def _locked(folder: Path) -> Iterator[Journal]:
    """The study's journal, for one driver at a time; raises InputError while another has it."""
    with (folder / "driver.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"the study {folder.name!r} is being run by another process") from error
        journal = Journal(folder / JOURNAL_FILE)
        try:
            yield journal
        finally:
            journal.close()


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
            for each in resolver.strata
        ],
        versions=_versions(), hardware=_hardware(), commit=_commit(), command=" ".join(sys.argv),
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


def _train(search: Search, setting: Setting, share: Any) -> str:
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
    try:
        with View(search.record, total) as view:
            run(search, Launch(setting.folder, setting.data_dir, share, most, setting.seconds, view.update))
    except KeyboardInterrupt:
        return "interrupted"
    if _is_finished(search):
        return "finished"
    out_of_time = setting.seconds is not None and time.monotonic() - started >= setting.seconds
    return "time" if out_of_time else "interrupted"


def _is_finished(search: Search) -> bool:
    if any(trial.status not in TERMINAL for trial in search.record.trials.values()) or search.waiting:
        return False
    exhausted = all(stratum.label in search.used_up for stratum in search.resolver.strata)
    return exhausted or search.proposed_count() >= search.space.search.trials


def _shown(folder: Path) -> str:
    """The folder as the user would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _summarise(setting: Setting, record: StudyRecord) -> None:
    """The final table, the answer and the picture, once there is a finished trial."""
    if any(trial.status is Status.COMPLETED for trial in record.trials.values()):
        # analysis stands above this room and is not imported by it
        subprocess.run([sys.executable, "-m", "analysis", "summary", str(setting.folder)], check=False)


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
