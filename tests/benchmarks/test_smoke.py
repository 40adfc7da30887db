"""Each benchmark in its smallest form gives a record of the right structure; no time is asserted."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import pkgutil
from pathlib import Path

import pytest
from rich.console import Console

import benchmarks
from benchmarks import __main__ as command, measurement
from benchmarks.measurement import Measurement, Options, Table
from benchmarks.studies.scale import windows
from benchmarks.training.batches import write_images

QUICK = ("batches", "counting", "layers", "proposals", "teacher")
SLOW = tuple(name for name in command.BENCHMARKS if name not in QUICK)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 400 random JPEG images of CIFAR's shape."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 400, seed=0)
    return folder


def check_record(name: str, images: Path | None) -> None:
    """Run one benchmark in its smallest form and look at what it returns and prints."""
    module = importlib.import_module(command.BENCHMARKS[name])
    record: Measurement = module.run(Options(quick=True, images=images))
    assert record.tables
    for table in record.tables:
        assert table.rows, table.title
        assert all(set(table.columns) <= set(row) for row in table.rows), table.title
    plain = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert set(plain) == {"name", "settings", "tables", "goals", "notes"}
    console = Console(width=120, file=io.StringIO())
    line = measurement.header(measurement.environment(), record.settings, measurement.load())
    measurement.show(record, line, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert record.tables[0].title in " ".join(printed.split())  # a title may be wrapped


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_benchmark_gives_a_record(name: str, images: Path) -> None:
    check_record(name, images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, from within MLflow
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_benchmark_gives_a_record(name: str) -> None:
    check_record(name, None)


def test_every_module_of_the_benchmarks_can_be_imported() -> None:
    without_triton = importlib.util.find_spec("triton") is None  # CUDA builds of torch alone bring it
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."):
        if not (without_triton and module.name.startswith("benchmarks.gpu.kernel")):
            importlib.import_module(module.name)


def test_a_benchmark_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(title="t", columns=("way", "images/s"), rows=[{"way": "x", "images/s": 1.0}])
    works = Measurement(name="works", settings={"seed": 0}, tables=[table])

    def fail(options: Options) -> Measurement:
        raise RuntimeError("no such thing")

    for name, module in command.BENCHMARKS.items():
        run = fail if name == "counting" else lambda options: works
        monkeypatch.setattr(importlib.import_module(module), "run", run)
    assert command.main(["all", "--json", str(tmp_path / "all.json")]) == 1
    records = dict(zip(command.BENCHMARKS, json.loads((tmp_path / "all.json").read_text()), strict=True))
    failed, others = records.pop("counting"), list(records.values())
    assert {record["name"] for record in others} == {"works"}
    assert failed["error"] == "RuntimeError: no such thing"
    expected = {"date", "cpu", "cores", "gpus", "versions", "load", "load_after", "command"}
    assert expected <= set(others[0]["environment"])
    assert "no such thing" in capsys.readouterr().err


def test_what_trials_cost_is_counted_between_each_note_and_the_one_before_it() -> None:
    counters = (
        "wall", "cpu", "rss", "events", "journal_bytes", "carried_bytes", "tracker_cpu", "tracker_rss", "proposals",
        "proposal_seconds",
    )  # fmt: skip
    notes = [dict.fromkeys(counters, value) | {"trials": trials} for trials, value in ((20, 1), (40, 11), (50, 31))]
    first, second = windows(notes)
    assert (first["trials"], second["trials"]) == ("20 to 40", "40 to 50")
    assert (first["driver ms a trial"], second["driver ms a trial"]) == (500, 2000)
    assert (first["proposal ms"], second["wall s a trial"]) == (1000, 2)
