"""Make the pictures of the pages anew from the records that are kept, and those of MLflow's pages from a study.

    python docs/make_pictures.py                          # all pictures that kept records show
    python docs/make_pictures.py --study studies/tt_dims  # and MLflow's pages, which show this study with its models
    python docs/make_pictures.py front search             # only these

`make pictures` trains the study unless it is there, then makes all of them. What was trained on a GPU is drawn from the
journals and tables that docs/results keeps. Pictures of pages need Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # it is run as a script

from analysis.__main__ import main as analyse  # noqa: E402
from analysis.reporting import write_report  # noqa: E402
from analysis.reporting.front_figure import write_front_picture  # noqa: E402
from analysis.stats import FrontPoint, collect_points  # noqa: E402
from lowrank.errors import InputError  # noqa: E402
from lowrank.utils.cli import OneLineParser, run_command  # noqa: E402
from sweeps.records import JOURNAL_FILE, Role, Status, StudyHeader, StudyRecord, load_study  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
PICTURES, LOG_PICTURES = Path("pictures"), Path("results", "research_log_pictures")  # of the folder of the pages
# Kept journal in docs/results -> the name of its study on the pages
DIGITS, COMPRESS, SCHEDULE, RETRAINED = "digits_tt_dims", "h200_compress_space", "tt_schedule", "tt_schedule_finish"
NAMES = {DIGITS: "tt_dims", COMPRESS: "compress", SCHEDULE: "tts", RETRAINED: "tts_finish"}
# A row of the table that a study ends with: method, dimensions, rank scale, parameters, share, work, decay, errors
ROW = re.compile(
    r"^[* ] (?P<method>[A-Za-z ]+?) +(?:(?P<dims>\d+) (?P<rank>\d\.\d+))? +(?P<params>[\d,]+) +[\d.]+ +\S+ +\S+ +"
    r"(?P<error>[\d.]+) .*?(?P<status>completed|stopped early|reference) *$",
    re.MULTILINE,
)
BUDGET = re.compile(r"^At up to ([\d,]+) parameters", re.MULTILINE)
STATUSES = {"stopped early": Status.STOPPED}  # the others completed
PRINTED = datetime(2026, 11, 22, tzinfo=UTC)  # the day of the study of which only the table is kept
METHODS = {"tensor train": "tensor_train", "Tucker": "tucker"}


def unpack(journal: str, folder: Path) -> Path:
    """Write a kept journal as the folder of a study.

    Args:
        journal: docs/results/NAME.journal.jsonl.gz without the endings.
        folder: of studies; the study's own folder is made in it.

    Returns:
        The study's folder.
    """
    study = folder / NAMES[journal]
    study.mkdir(parents=True, exist_ok=True)
    packed = RESULTS / f"{journal}.journal.jsonl.gz"
    (study / JOURNAL_FILE).write_bytes(gzip.decompress(packed.read_bytes()))
    return study


def draw_front(journal: str, picture: Path) -> None:
    """Draw the front of a kept study."""
    with tempfile.TemporaryDirectory() as folder:
        study = load_study(unpack(journal, Path(folder)))
    write_front_picture(study, collect_points(study), picture)


def draw_printed_front(out: Path, study: Path | None) -> None:
    """Draw the front of the study on an H200 of which only the printed table is kept."""
    text = (RESULTS / "h200_tt_dims_cifar10.md").read_text(encoding="utf-8")
    budgets = [int(limit.replace(",", "")) for limit in BUDGET.findall(text)]
    space = yaml.safe_load((ROOT / "search_spaces" / "tt_dims.yaml").read_text(encoding="utf-8"))
    content = {
        "name": "tt_dims", "question": space["question"], "time": PRINTED.timestamp(), "seed": 0,
        "network": {"name": "resnet9"}, "data": {"name": "parquet:cifar10-jpeg", "val_images": 10_000},
        "strata": [{"label": f"params <= {limit:,}", "params": limit} for limit in budgets],
    }  # fmt: skip
    points = [_printed_point(number, row) for number, row in enumerate(ROW.finditer(text))]
    write_front_picture(StudyRecord(header=StudyHeader.parse(content)), points, out / "front_cifar10_h200.png")


def _printed_point(number: int, row: re.Match[str]) -> FrontPoint:
    return FrontPoint(
        trial_id=str(number),
        setting=str(number),
        role=Role.REFERENCE if row["status"] == "reference" else Role.SEARCH,
        stratum="",
        method=METHODS.get(row["method"], row["method"]),
        params=int(row["params"].replace(",", "")),
        status=STATUSES.get(row["status"], Status.COMPLETED),
        dims=int(row["dims"]) if row["dims"] else None,
        rank_scale=float(row["rank"]) if row["rank"] else None,
        val_error=float(row["error"]),
    )


def take_report(out: Path, study: Path | None) -> None:
    """Write the report of the study on the digits and take its pictures in a browser."""
    from tests.support.report_pictures import take_pictures

    with tempfile.TemporaryDirectory() as folder:
        digits = unpack(DIGITS, Path(folder))
        take_pictures(write_report(load_study(digits), digits / "report", digits), out)


def draw_schedule(out: Path, study: Path | None) -> None:
    """Write the report of the original sweep and copy the pictures that its page shows."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = unpack(SCHEDULE, Path(folder))
        write_report(load_study(sweep), sweep / "report", sweep)
        for name, source in {
            "front": "front_params",
            "heat_tensor_train": "heat_2_tensor_train",  # after 8 epochs, which all trials have
            "heat_tucker": "heat_4_Tucker",
        }.items():
            shutil.copyfile(sweep / "report" / f"{source}.png", out / f"tt_schedule_{name}.png")


def draw_log(out: Path, study: Path | None) -> None:
    """Write the research log of both kept sweeps and copy its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for journal in (SCHEDULE, RETRAINED):
            unpack(journal, Path(folder))
        names = [NAMES[SCHEDULE], NAMES[RETRAINED], "--studies", folder]
        with contextlib.redirect_stdout(io.StringIO()):
            analyse(["log", *names, "--out", str(Path(folder, "research_log.md"))])
        for picture in Path(folder, "research_log_pictures").iterdir():
            shutil.copyfile(picture, out / picture.name)


def draw_search(out: Path, study: Path | None) -> None:
    """Replay the searchers on the recorded table, for some minutes, and draw their curves."""
    from benchmarks.measurement import Options
    from benchmarks.search import samplers

    samplers.run(Options(), picture=out / "search.png")


def take_mlflow(out: Path, study: Path | None) -> None:
    """Take the pictures of MLflow's pages in a browser."""
    from tests.browser.mlflow_pages import take_pictures

    if study is None or not (study / "mlflow.db").is_file():
        raise InputError(f"--study must be a folder of a study with its mlflow.db, but got {study}")
    take_pictures(study, out)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures that are made together: how, their names without `.png`, and where in docs/ they lie."""

    make: Callable[[Path, Path | None], None]
    names: tuple[str, ...]
    folder: Path = PICTURES
    of_study: bool = False  # made only with `--study`


LOG_ENTRIES = ("tts-20261126T212725Z", "tts-20261126T213640Z", "tts-20261126T214610Z", "tts_finish-20261127T040102Z")
GROUPS = {
    "front": Pictures(make=lambda out, study: draw_front(DIGITS, out / "front.png"), names=("front",)),
    "report": Pictures(make=take_report, names=("report", "report_dark", "report_phone")),
    "compress": Pictures(
        make=lambda out, study: draw_front(COMPRESS, out / "front_compress_h200.png"), names=("front_compress_h200",)
    ),
    "printed": Pictures(make=draw_printed_front, names=("front_cifar10_h200",)),
    "schedule": Pictures(
        make=draw_schedule, names=tuple(f"tt_schedule_{n}" for n in ("front", "heat_tensor_train", "heat_tucker"))
    ),
    "log": Pictures(
        make=draw_log, folder=LOG_PICTURES,
        names=tuple(f"study-{entry}-{kind}" for entry in LOG_ENTRIES for kind in ("front", "curves")),
    ),
    "search": Pictures(make=draw_search, names=("search",)),
    "mlflow": Pictures(
        make=take_mlflow, of_study=True,
        names=tuple(f"mlflow_{page}" for page in ("runs", "parallel", "compare", "epochs", "models")),
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code.

    Raises:
        InputError: no such group, or MLflow's pages without a study that has them.
    """
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--study", type=Path, help="of `--space tt_dims`, with its models, for MLflow's pages")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder in which pictures/ and results/ are written")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.groups if name not in GROUPS]:
        raise InputError(f"a group must be one of {', '.join(GROUPS)}, but got {unknown[0]}")
    usual = [name for name, group in GROUPS.items() if arguments.study is not None or not group.of_study]
    for name in arguments.groups or usual:
        group = GROUPS[name]
        folder = arguments.out / group.folder
        folder.mkdir(parents=True, exist_ok=True)
        group.make(folder, arguments.study)
        for picture in group.names:
            print(folder / f"{picture}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
