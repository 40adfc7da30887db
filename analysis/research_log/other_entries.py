"""The entries of what is no study: teachers, and networks that `python -m lowrank.compress` made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.findings import LearningCurve
from analysis.reporting import DrawJob, draw_curves
from analysis.research_log.entries import COMPRESS, TEACHER, Entry, EntryTable, entry_key
from analysis.utils import format_duration, format_percent
from lowrank.errors import InputError
from lowrank.utils import first_line, format_counted

TEACHER_FILE = "teacher.json"  # of lowrank.distillation, whose import takes seconds
CURVE_FILE = "epochs.json"  # beside it
COMPRESS_FILE = "compress.json"  # of lowrank.deployment
PICTURE_HEIGHT = 4.0  # inches


def find_teachers(root: Path) -> list[Path]:
    """Find the folders of teachers.

    Args:
        root: the folder that holds them, which may be missing.

    Returns:
        The folders, in the order of their names.
    """
    return sorted(path.parent for path in root.glob(f"*/{TEACHER_FILE}") if not path.parent.name.startswith("."))


def find_compressed(root: Path) -> list[Path]:
    """Find the folders that `lowrank.compress` wrote.

    Args:
        root: where to look, and one level below.

    Returns:
        The folders, in the order of their names.
    """
    paths = [*root.glob(f"*/{COMPRESS_FILE}"), *root.glob(f"*/*/{COMPRESS_FILE}")]
    return sorted(path.parent for path in paths)


def teacher_entry(folder: Path) -> Entry:
    """Write the entry of a teacher.

    Args:
        folder: of the teacher.

    Returns:
        The entry.

    Raises:
        InputError: its record is damaged.
    """
    from lowrank.distillation import read_record

    record = read_record(folder / TEACHER_FILE)
    assert record is not None, folder
    registered = datetime.fromisoformat(record.registered_at)
    began = registered.replace(tzinfo=registered.tzinfo or UTC).timestamp() - record.seconds
    curve = _read_json(folder / CURVE_FILE) if (folder / CURVE_FILE).is_file() else []
    errors = [(number, epoch["val_error"]) for number, epoch in enumerate(curve, 1) if "val_error" in epoch]
    key = entry_key(TEACHER, record.name, began)
    width = record.network.get("width", 1.0)
    epochs = record.train.get("epochs")
    trained = format_counted(epochs, "epoch") if isinstance(epochs, int) else f"{epochs} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    facts = (
        ("network", f"{record.network['name']}{f' of width {width:g}' if width != 1 else ''}, "
                    f"{record.params:,} parameters"),
        ("data", f"{record.data.get('name')}, fingerprint {record.fingerprint}"),
        ("machine", _machine(record.hardware)),
        ("trained", f"{trained} in {format_duration(record.seconds)}, seed {record.seed}"),
        ("time an epoch", format_duration(record.seconds / len(curve)) if curve else ""),
        ("code", "; ".join(filter(None, (record.commit, versions)))),
    )  # fmt: skip
    outcome = f"{format_percent(record.val_error)} validation error, {format_percent(record.test_error)} test error"
    pictures: tuple[DrawJob, ...] = ()
    if len(errors) > 1:
        line = LearningCurve(trial_id=key, label=record.name, reference=False, points=tuple(errors))
        caption = f"Validation error of the teacher {record.name} by epoch"
        pictures = (
            DrawJob(name=f"{key}-curves", caption=caption, draw=draw_curves, data=[line], height=PICTURE_HEIGHT),
        )
    return Entry(
        key=key, kind=TEACHER, name=record.name, title=f"teacher {record.name}", began=began, outcome=outcome,
        facts=tuple((name, fact) for name, fact in facts if fact), answer=(f"The teacher reaches {outcome}.",),
        commands=(("the run", record.command),) if record.command else (), pictures=pictures,
    )  # fmt: skip


def _machine(hardware: Mapping[str, Any]) -> str:
    cpus = format_counted(hardware["cpus"], "CPU") if hardware.get("cpus") else ""
    return ", ".join(filter(None, (str(hardware.get("host", "")), cpus, *map(str, hardware.get("gpus") or []))))


def compress_entry(folder: Path) -> Entry:
    """Write the entry of a run of `lowrank.compress`.

    Args:
        folder: that the run wrote.

    Returns:
        The entry.

    Raises:
        InputError: its record is damaged.
    """
    path = folder / COMPRESS_FILE
    record = _read_json(path)
    try:
        return _compress_entry(folder, record)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {first_line(error)}") from error


def _compress_entry(folder: Path, record: Mapping[str, Any]) -> Entry:
    networks = list(record["networks"])
    best = networks[0]
    began = float(record["began"])
    last = "error_after" if best["error_finetuned"] is None else "error_finetuned"
    rows = tuple(
        (
            network["folder"] or ".", f"{network['params']:,}", f"{network['params'] / network['dense_params']:.1%}",
            f"{network['mult_adds']:,}", f"{network['mult_adds'] / network['dense_mult_adds']:.1%}",
            network["method"], format_percent(network["error_before"]), format_percent(network["error_after"]),
            "" if network["error_finetuned"] is None else format_percent(network["error_finetuned"]),
        )
        for network in networks
    )  # fmt: skip
    headings = (
        "folder", "parameters", "of the given", "mult-adds", "of the given", "method", "error before", "error after",
        f"after {format_counted(record['finetune'], 'epoch')}" if record["finetune"] else "after training",
    )  # fmt: skip
    failed = [("form not written", "", str(line)) for line in record["failed"]]
    width = record["network"].get("width", 1.0)
    facts = (
        ("network", f"{record['network']['name']}{f' of width {width:g}' if width != 1 else ''}, "
                    f"{best['dense_params']:,} parameters, weights {record['weights']}"),
        ("data", f"{record['data']['name']}, fingerprint {record['data']['fingerprint']}; errors on "
                 f"{record['images']:,} {record['report_on']} images"),
        ("machine", f"{record['machine']}, on {record['device']}"),
        ("seed", str(record["seed"])),
        ("took", format_duration(record["ended"] - began)),
        ("code", str(record["commit"])),
    )  # fmt: skip
    sentence = (
        f"{best['params']:,} of {best['dense_params']:,} parameters, error {format_percent(best['error_before'])} "
        f"before and {format_percent(best[last])} after"
    )
    name = folder.resolve().name
    return Entry(
        key=entry_key(COMPRESS, name, began), kind=COMPRESS, name=name, title=f"compressed network {name}", began=began,
        outcome=sentence, facts=facts, answer=(f"{sentence[0].upper()}{sentence[1:]}.",),
        tables=(EntryTable(title="Before and after", headings=headings, rows=rows),),
        failures=EntryTable(title="What failed", headings=("what", "which", "why"), rows=tuple(failed))
        if failed else None,
        commands=(("the run", record["command"]),) if record["command"] else (),
    )  # fmt: skip


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
