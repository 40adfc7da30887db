"""How a study came about: its question and data, where and when it ran, with what versions, and its MLflow page."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from analysis.utils import data_label
from lowrank.utils import format_counted, redact
from sweeps.records import MLFLOW_FILE, TRACKING_PROGRESS_FILE, HeaderData, HeaderNetwork, StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class TrackingLink:
    """Where MLflow has a study.

    Attributes:
        link: the page of its parent run; "" for a store without a server.
        words: how to see it.
    """

    link: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a study came about.

    Attributes:
        line: the main facts in one line.
        facts: (name, fact); what the records do not have is left out.
    """

    line: str
    facts: tuple[tuple[str, str], ...]


def study_provenance(study: StudyRecord) -> Provenance:
    """Return how a study came about.

    Args:
        study: the records.

    Returns:
        Its facts; times are UTC.
    """
    header, trials = study.header, list(study.trials.values())
    data = header.data
    facts_by_name = {
        "command": header.command, "network": _network(header.network), "data": _data(data), "images": _images(data),
        "class sizes": _class_sizes(data), "notes on the data": "; ".join(data.notes),
        "hosts": _counted(trials, "host"), "devices": _devices(study), "seeds": _seeds(trials),
        "dates": date_range(trials),
        "versions": ", ".join(f"{name} {number}" for name, number in header.versions.items()),
        "code": header.commit, "notes": "; ".join(study.notes),
        "tags": ", ".join(f"{name}={value}" for name, value in study.tags.items()),
    }  # fmt: skip
    facts = tuple((name, str(value)) for name, value in facts_by_name.items() if value)
    line = [data_label(data.name), _network(header.network), format_counted(len(trials), "trial"), date_range(trials)]
    return Provenance(line="  |  ".join(part for part in (f"study {study.name}", *line) if part), facts=facts)


def _network(network: HeaderNetwork) -> str:
    return network.name + (f" of width {network.width:g}" if network.width != 1 else "")


def _data(data: HeaderData) -> str:
    return ", ".join(filter(None, (data.name, f"fingerprint {data.fingerprint}" if data.fingerprint else "")))


def _images(data: HeaderData) -> str:
    sizes = {"training": data.train_images, "validation": data.val_images, "test": data.test_images}
    parts = [f"{size:,} {name}" for name, size in sizes.items() if size]
    classes = f"{data.classes} classes" if data.classes else ""
    return ", ".join(filter(None, (*parts, classes)))


def _class_sizes(data: HeaderData) -> str:
    """The smallest and the largest class of training; empty where they are of one size, or not on record."""
    names, counts = data.class_names, data.class_counts.get("train", ())
    sizes = sorted(zip(counts, names, strict=True)) if len(names) == len(counts) else []
    if not sizes or sizes[0][0] == sizes[-1][0]:
        return ""
    return f"from {sizes[0][0]:,} ({sizes[0][1]}) to {sizes[-1][0]:,} ({sizes[-1][1]}) training images"


def _counted(trials: list[TrialRecord], field: str) -> str:
    """A field of the trials' last attempts: each value with its number of trials."""
    counts = Counter(str(value) for trial in trials if (value := trial.last_attempt(field)) is not None)
    return ", ".join(f"{value} ({format_counted(times, 'trial')})" for value, times in counts.most_common())


def _devices(study: StudyRecord) -> str:
    hardware = study.header.hardware
    cards = Counter(hardware.gpus or ())
    named = [f"{times} x {name}" for name, times in cards.items()]
    cpus = format_counted(hardware.cpus, "CPU") if hardware.cpus else ""
    driver = ", ".join(filter(None, (cpus, *named)))
    ran = _counted(list(study.trials.values()), "device")
    return "; ".join(filter(None, (ran, f"the driver's machine: {driver}" if driver else "")))


def _seeds(trials: list[TrialRecord]) -> str:
    seeds = sorted({seed for trial in trials if (seed := trial.seed) is not None})
    return f"{', '.join(str(seed) for seed in seeds)} (n = {len(seeds)})" if seeds else ""


def date_range(trials: list[TrialRecord]) -> str:
    """Return when trials were trained.

    Args:
        trials: the records.

    Returns:
        From the first proposal to the last end, e.g. `2026-11-22 19:53 to 20:05 UTC`; "" where none is on record.
    """
    begun = [trial.proposed_at for trial in trials if trial.proposed_at]
    ended = [trial.finished_at for trial in trials if trial.finished_at]
    if not begun:
        return ""
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in (min(begun), max(ended or begun)))
    if first[:10] == last[:10]:
        last = last[11:]
    return f"{first} to {last} UTC"


def tracking_link(study: StudyRecord, folder: Path, uri: str | None) -> TrackingLink | None:
    """Return where MLflow has a study.

    Args:
        study: the records.
        folder: of the study.
        uri: the store that it was read from, if it was.

    Returns:
        The page of its run or the command that shows it, without passwords; None if no store is known.
    """
    progress = _progress(folder / TRACKING_PROGRESS_FILE)
    uri = tracking_uri(study, folder, uri)
    if uri is None:
        return None
    shown = redact(uri)
    if not uri.startswith(("http://", "https://")):
        return TrackingLink(link="", words=f"mlflow ui --backend-store-uri {shown}")
    run = [progress.get("experiment"), progress.get("parent")]
    path = f"/#/experiments/{run[0]}/runs/{run[1]}" if all(run) and progress.get("uri") == uri else ""
    return TrackingLink(link=f"{shown.rstrip('/')}{path}", words=f"experiment {study.name} at {shown}")


def tracking_uri(study: StudyRecord, folder: Path, uri: str | None = None) -> str | None:
    """Return the address of the MLflow store that has a study.

    Args:
        study: the records.
        folder: of the study.
        uri: the store that it was read from, if it was.

    Returns:
        The address, its password hidden where the records have it; None if no store is known.
    """
    recorded = str(_progress(folder / TRACKING_PROGRESS_FILE).get("uri") or "")
    beside = f"sqlite:///{folder}/{MLFLOW_FILE}" if (folder / MLFLOW_FILE).is_file() else None
    candidates = (uri, recorded, study.header.tracking_uri, beside)
    return next((candidate for candidate in candidates if candidate and _may_be_there(candidate)), None)


def _may_be_there(uri: str) -> bool:
    """A database is a file of the machine that trained: where the records were copied from it, it is not."""
    path = uri.removeprefix("sqlite:///")
    return path == uri or Path(path.partition("?")[0]).is_file()


def _progress(path: Path) -> dict[str, JsonValue]:
    """What the tracker recorded; nothing for a damaged file, which costs the link alone."""
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}
