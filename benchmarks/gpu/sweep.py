"""What a GPU host shows: a sweep with four trials on a card, steps and batches on the card, equality of CPU and GPU.

    python -m benchmarks.gpu.sweep --images DIR --out DIR [--minutes 9] [--epochs 12] [--tiny]

DIR holds train.parquet and test.parquet of CIFAR's shape. Every part has its own time limit, and one that fails does
not stop the others; the table at the end says which failed and why. Writes at most eight files, straight into --out.
`--tiny` shows on a CPU that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.measurement import PROJECT, WIDTH, Measurement, Table, environment, header, load, show
from benchmarks.studies.throughput import throughput
from lowrank.utils import OneLineParser
from sweeps.records.events import Status
from sweeps.records.load import fold_journal
from sweeps.records.names import JOURNAL_FILE

STUDY = "gpu_sweep"
CLOSING_SECONDS = 60  # what a study may take beyond its own --time: the running epoch, test errors, summary
FILES = (
    "sweep.log", JOURNAL_FILE, "benchmarks.log", "steps.json", "batches.json", "tests.log", "summary.json",
    "summary.txt",
)  # fmt: skip
EQUALITY = ("data/test_batches.py", "data/test_augment.py", "data/test_counter_rng.py", "gpu/test_method_layers.py")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command with its time limit; `read` turns what it left behind into lines of the last table."""

    name: str
    log: str  # in --out; parts may share one
    command: list[str]
    seconds: float
    read: Callable[[Path], list[dict[str, Any]]]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.sweep", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results: text and JSON")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.25, help="of the card, for one trial")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="passed on to the sweep")
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    return parser


def sweep_part(args: argparse.Namespace, study_root: Path) -> Part:
    """(a) and (b): the sweep itself, then its throughput from the journal."""
    seconds = 60 * args.minutes * 0.6
    tiny = ["network.width=0.25", "data.train_images=256", "train.batch_size=64", "search.trials=4"]
    where = ["--cpus-per-trial", "1"] if args.tiny else ["--gpus-per-trial", str(args.share)]
    overrides = [
        f"train.epochs={2 if args.tiny else args.epochs}", "search.stop=none", "references=[]",
        *(tiny if args.tiny else ()), *args.set,
    ]  # fmt: skip
    trials = [] if args.tiny else ["--trials", str(args.trials)]
    command = [
        sys.executable, "sweeps/run.py", "--space", "tt_dims", "--data", f"parquet:{args.images.resolve()}",
        "--out", str(study_root), "--name", STUDY, "--time", f"{seconds - CLOSING_SECONDS:.0f}s", *where, *trials,
        *(part for override in overrides for part in ("--set", override)),
    ]  # fmt: skip
    study = study_root / STUDY
    return Part(
        name="sweep", log="sweep.log", command=command, seconds=seconds, read=lambda out: read_sweep(study, out)
    )  # fmt: skip


def bench_part(what: str, share: float) -> Callable[[argparse.Namespace, Path], Part]:
    """(c): one of the benchmarks on the card, given a share of the whole time."""

    def make(args: argparse.Namespace, study_root: Path) -> Part:
        record = args.out / f"{what}.json"
        command = [
            sys.executable, "-m", "benchmarks", what, "--json", str(record), "--images",
            str(args.images.resolve()), *(["--quick"] if args.tiny else ["--device", "cuda"]),
        ]  # fmt: skip
        return Part(
            name=what, log="benchmarks.log", command=command, seconds=60 * args.minutes * share,
            read=lambda _: read_bench(record),
        )  # fmt: skip

    return make


def tests_part(args: argparse.Namespace, study_root: Path) -> Part:
    """(d): the data's equality tests, and the layers' contract on the card."""
    files = [str(PROJECT / "tests" / "lowrank" / name) for name in EQUALITY]
    command = [
        sys.executable, "-m", "pytest", "-rs", "-v", "-p", "no:cacheprovider", "-W", "default", "-k", "gpu", *files,
    ]  # fmt: skip
    return Part(
        name="tests", log="tests.log", command=command, seconds=60 * args.minutes * 0.15,
        read=lambda out: read_tests(out / "tests.log"),
    )  # fmt: skip


PARTS: dict[str, Callable[[argparse.Namespace, Path], Part]] = {
    "sweep": sweep_part,
    "steps": bench_part("steps", 0.15),
    "batches": bench_part("batches", 0.1),
    "tests": tests_part,
}


def read_sweep(study: Path, out: Path) -> list[dict[str, Any]]:
    """Keep the journal, and tell what trained at which speed."""
    shutil.copy(study / JOURNAL_FILE, out / JOURNAL_FILE)
    record = fold_journal(study / JOURNAL_FILE)
    statuses = [trial.status for trial in record.trials.values() if trial.status is not Status.INFEASIBLE]
    bad = [f"{trial.status}: {trial.reason}" for trial in record.trials.values() if trial.status is Status.FAILED]
    rows = [
        _line("sweep", "trials completed", statuses.count(Status.COMPLETED), f"of {len(statuses)}"),
        *(_line("sweep", what, value, unit) for what, value, unit in throughput(record).lines()),
        *(_line("sweep", "a trial failed", None, reason[:80]) for reason in bad),
    ]
    devices = sorted({attempt["device"] for trial in record.trials.values() for attempt in trial.attempts})
    return [*rows, _line("sweep", "devices of the workers", None, ", ".join(devices))]


def read_bench(record: Path) -> list[dict[str, Any]]:
    """The images a second of every row of a benchmark."""
    (measurement,) = json.loads(record.read_text())
    if "error" in measurement:
        raise RuntimeError(measurement["error"])
    lines = []
    for table in measurement["tables"]:
        what = table["title"].split(";")[0].split(" (")[0]
        for row in table["rows"]:
            name = row.get("method") or row.get("way")
            lines.append(_line(measurement["name"], f"{what}: {name}", row["images/s"], "images/s"))
    return lines


def read_tests(log: Path) -> list[dict[str, Any]]:
    """The last line of pytest, and every test that did not pass."""
    text = log.read_text().splitlines()
    lost = [line for line in text if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return [_line("tests", line.strip("= "), None, "") for line in [*lost, text[-1] if text else "no output"]]


def _line(part: str, what: str, value: float | None, unit: str) -> dict[str, Any]:
    return {"part": part, "what": what[:96], "value": value, "unit": unit}


def execute(part: Part, out: Path) -> list[dict[str, Any]]:
    """Run a part into its log and read what it left; a failure becomes a line with its reason."""
    log = out / part.log
    started = time.monotonic()
    code = _run(part, log)
    rows = []
    try:
        rows = part.read(out)
    except Exception as error:  # a part that broke off leaves what it may; the rest is still wanted
        rows = [_line(part.name, f"nothing to read: {type(error).__name__}: {error}", None, "FAILED")]
    if code:
        why = f"time limit of {part.seconds:.0f} s" if code == 124 else f"exit code {code}: {_last_words(log)}"
        rows.append(_line(part.name, why, None, "FAILED"))
    rows.append(_line(part.name, "took", time.monotonic() - started, "s"))
    return rows


def _run(part: Part, log: Path) -> int:
    """The exit code, 124 when the time limit ended it; the whole process group ends with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()}
    with log.open("ab") as file:
        process = subprocess.Popen(
            part.command, cwd=PROJECT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout=part.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return 124


def _path() -> str:
    """The project first, then what the host's own PYTHONPATH brings (carried wheels)."""
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "rror" in line]
    return (wrong or lines or ["no output"])[-1][:150]


def main(arguments: list[str] | None = None) -> int:
    """Run the parts one after the other; returns 1 when one of them failed."""
    args = make_parser().parse_args(arguments)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in FILES:
        (args.out / old).unlink(missing_ok=True)
    around, rows = environment(), []
    with tempfile.TemporaryDirectory(prefix="gpu_sweep_") as folder:
        for name in args.parts:
            part = PARTS[name](args, Path(folder))
            print(f"{name}: at most {part.seconds:.0f} s: {' '.join(part.command)}", flush=True)
            rows += execute(part, args.out)
    return conclude(args, around, rows)


def conclude(args: argparse.Namespace, around: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    """Print the table last, and keep it as text and JSON."""
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    measurement = Measurement(
        name="gpu_sweep", settings={"device": device, "epochs": args.epochs, "share": args.share, "tiny": args.tiny},
        tables=[Table(title="GPU host", columns=("part", "what", "value", "unit"), rows=rows)],
    )  # fmt: skip
    after = load()
    (args.out / "summary.json").write_text(
        json.dumps({**measurement.to_json(), "environment": {**around, "load_after": after}}, indent=1) + "\n"
    )
    line = header(around, measurement.settings, after)
    with (args.out / "summary.txt").open("w") as file:
        show(measurement, line, Console(file=file, width=WIDTH))
    show(measurement, line)
    return 1 if any(row["unit"] == "FAILED" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
