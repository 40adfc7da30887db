"""Does a teacher help, and what does it cost: one teacher, then students of several methods with it and without.

    python -m benchmarks.gpu.distillation --images DIR --out DIR [--epochs 20] [--teacher-epochs 22] [--tiny]

DIR holds train.parquet and test.parquet of CIFAR's shape. The teacher is a WRN-16-4 with the fast recipe, the students
are ResNet-9 within shares of its separable form, each with and without attention transfer, from the same seeds and over
the same views. Prints a table with the gap to the teacher, and keeps it as text and JSON with the journal of the study.
`--tiny` shows on a CPU that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.measurement import PROJECT, WIDTH, Measurement, Table, environment, header, load, show
from lowrank.distillation.teacher_files import RECORD_FILE, TeacherRecord, read_record
from lowrank.utils import OneLineParser
from sweeps.records.events import Status
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import JOURNAL_FILE

TEACHER, STUDY = "wrn_16_4_teacher", "gpu_distill"
METHODS = ("tensor_train", "bottleneck", "hashed")
COLUMNS = (
    "method", "params", "weight", "plain val %", "taught val %", "gain", "plain test %", "taught test %", "gap",
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.distillation", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text and JSON")
    parser.add_argument("--work", type=Path, metavar="DIR", help="teachers, studies, cache (default: in --out)")
    parser.add_argument("--network", default="wrn_16_4", help="of the teacher")
    parser.add_argument("--teacher-epochs", type=int, default=22)
    parser.add_argument("--teacher-set", action="append", default=[], metavar="A.B=VALUE", help="for the teacher")
    parser.add_argument("--epochs", type=int, default=20, help="of the students")
    parser.add_argument("--attention", type=float, nargs="+", default=[250.0], help="weights of attention transfer")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.06, 0.15], help="shares of the separable form")
    parser.add_argument("--share", type=float, default=0.25, help="of the card, for one trial")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="for the students")
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    return parser


def teacher_command(args: argparse.Namespace) -> list[str]:
    """Trains the teacher: a short schedule of the study's recipe for wide networks."""
    fast = ["train.batch_size=512", "train.lr=0.4", "train.schedule=one_cycle", "train.warmup=0.25"]
    tiny = ["network.width=0.25", "data.train_images=256", "train.batch_size=64", "train.lr=0.1"]
    overrides = [*fast, *(tiny if args.tiny else ()), *args.teacher_set]
    return [
        sys.executable, "sweeps/teacher.py", "--network", args.network, "--name", TEACHER, "--data",
        f"parquet:{args.images.resolve()}", "--epochs", str(2 if args.tiny else args.teacher_epochs), "--teachers",
        str(args.work / "teachers"), "--device", "cpu" if args.tiny else "cuda",
        *(part for override in overrides for part in ("--set", override)),
    ]  # fmt: skip


def write_space(args: argparse.Namespace) -> Path:
    """The students as a grid."""
    tiny = {"data.train_images": 256, "network.width": 0.5, "train.batch_size": 64}
    sizes = [0.3] if args.tiny else args.sizes
    students = len(METHODS) * len(sizes) * (1 + len(args.attention))
    content: dict[str, Any] = {
        "question": "Does attention transfer help, and by how much?",
        "data": {"name": f"parquet:{args.images.resolve()}"}, "network": {"name": "resnet9"},
        "teacher": {"name": TEACHER},
        "train": {"epochs": 2 if args.tiny else args.epochs,
                  "attention_weight": {"choice": [0.0, *args.attention]}},
        "method": {"name": {"choice": list(METHODS)}},
        "budget": {"params": {"choice": sizes}, "relative_to": "separable"},
        "search": {"sampler": "grid", "trials": students, "stop": "none"},
        "resources": {"cpus_per_trial": 1, "gpus_per_trial": args.share},
    }  # fmt: skip
    for name, value in tiny.items() if args.tiny else ():
        section, _, key = name.partition(".")
        content[section][key] = value
    path: Path = args.work / f"{STUDY}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def study_command(args: argparse.Namespace) -> list[str]:
    """Trains the students."""
    where = ["--cpus-per-trial", "1"] if args.tiny else ["--gpus-per-trial", str(args.share)]
    return [
        sys.executable, "sweeps/run.py", "--space", str(write_space(args)), "--out", str(args.work / "studies"),
        "--data", f"parquet:{args.images.resolve()}", "--name", STUDY,
        "--teachers", str(args.work / "teachers"), *where,
        *(part for override in args.set for part in ("--set", override)),
    ]  # fmt: skip


def timed(command: Sequence[str], log: Path) -> float:
    """Run a command, its output on the screen and in `log`; returns seconds. Raises CalledProcessError."""
    started = time.monotonic()
    environment_ = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()}
    with log.open("w") as file, subprocess.Popen(
        command, cwd=PROJECT, env=environment_, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return time.monotonic() - started


def _path() -> str:
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


def table(record: StudyRecord, teacher: TeacherRecord) -> list[dict[str, Any]]:
    """A row for each student and weight of attention, beside the same student without a teacher.

    `gain` is the validation error without less that with the teacher, in points; `gap` is the taught
    student's test error less the teacher's (its validation error where no test error is known).
    """
    done = [trial for trial in record.trials.values() if trial.status is Status.COMPLETED]
    plain = {_student(trial): trial for trial in done if not _weight(trial)}
    rows = []
    for trial in sorted(done, key=lambda each: (each.method, each.counts["params"], _weight(each))):
        alone = plain.get(_student(trial))
        if _weight(trial) and alone is not None:
            rows.append(_row(alone, trial, teacher))
    return rows


def _row(alone: TrialRecord, taught: TrialRecord, teacher: TeacherRecord) -> dict[str, Any]:
    assert alone.val_error is not None
    assert taught.val_error is not None
    known = taught.test_error is not None
    gap = (taught.test_error or 0.0) - teacher.test_error if known else taught.val_error - teacher.val_error
    return {
        "method": taught.method, "params": taught.counts["params"], "plain val %": alone.val_error,
        "taught val %": taught.val_error, "gain": alone.val_error - taught.val_error, "plain test %": alone.test_error,
        "taught test %": taught.test_error, "gap": gap, "weight": _weight(taught),
    }  # fmt: skip


def _weight(trial: TrialRecord) -> float:
    return trial.specification.train.attention_weight


def _student(trial: TrialRecord) -> str:
    return json.dumps([trial.specification.method.settings(), trial.specification.seed], sort_keys=True)


def evaluate_all(args: argparse.Namespace, record: StudyRecord) -> None:
    """The test errors of all students, each looked at once, at the end: the table compares them all."""
    from lowrank.data import load_data
    from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER
    from sweeps.study.final_evaluation import restore_trainer

    device = "cpu" if args.tiny else "cuda"
    for trial in record.trials.values():
        if trial.status is Status.COMPLETED and trial.test_error is None:
            images = load_data(trial.specification.data.data_settings)
            path = args.work / "studies" / STUDY / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE
            trainer = restore_trainer(trial, path, images, device)
            trial.test_error = None if trainer is None else trainer.evaluate("test")["error"]


def main(arguments: list[str] | None = None) -> int:
    """Teacher, cache, students, table."""
    args = make_parser().parse_args(arguments)
    args.out = args.out.resolve()
    args.work = (args.work or args.out).resolve()
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    around, teacher_folder = environment(), args.work / "teachers" / TEACHER
    seconds = {}
    if not teacher_folder.exists():
        seconds["teacher"] = timed(teacher_command(args), args.out / "teacher.log")
    seconds["students"] = timed(study_command(args), args.out / "students.log")
    shutil.copy(args.work / "studies" / STUDY / JOURNAL_FILE, args.out / JOURNAL_FILE)
    shutil.copy(teacher_folder / RECORD_FILE, args.out / RECORD_FILE)
    record, teacher = fold_journal(args.out / JOURNAL_FILE), read_record(teacher_folder / RECORD_FILE)
    assert teacher is not None
    evaluate_all(args, record)
    return conclude(args, around, seconds, table(record, teacher), teacher)


def conclude(
    args: argparse.Namespace, around: dict[str, Any], seconds: dict[str, float], rows: list[dict[str, Any]],
    teacher: TeacherRecord,
) -> int:  # fmt: skip
    """Print the table last, and keep it; returns 1 when there is nothing to compare."""
    title = f"{args.network} teacher: {teacher.val_error:.2f} % validation, {teacher.test_error:.2f} % test error, " \
            f"{teacher.params:,} parameters, trained in {teacher.seconds:.0f} s"  # fmt: skip
    record = Measurement(
        name="gpu_distill",
        settings={"device": "cuda" if torch.cuda.is_available() and not args.tiny else "cpu",
                  "epochs": args.epochs, "teacher epochs": args.teacher_epochs, "attention": args.attention,
                  "share": args.share, "tiny": args.tiny},
        tables=[Table(title=title, columns=COLUMNS, rows=rows)],
        notes=[f"{name}: {taken:.0f} s, start-up and cache included" for name, taken in seconds.items()],
    )  # fmt: skip
    after = load()
    content = {**record.to_json(), "environment": {**around, "load_after": after}}
    (args.out / "distill.json").write_text(json.dumps(content, indent=1) + "\n")
    line = header(around, record.settings, after)
    with (args.out / "distill.txt").open("w") as file:
        show(record, line, Console(file=file, width=WIDTH))
    show(record, line)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
