"""Records, models and teachers from anybody run no code and write nowhere else, through every command and loader."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lowrank.distillation
import lowrank.io
import lowrank.predict
import lowrank.serving
import sweeps.run
from analysis.__main__ import COMMANDS, main as analysis
from lowrank.compression import merge
from lowrank.errors import InputError
from lowrank.io import ImagePreprocessing, ModelSpecification, load_tensors, save_merged, save_tensors, write_model
from lowrank.layers import Dense
from lowrank.networks import NetworkSettings
from lowrank.utils import module_command, module_environment
from sweeps.records import JOURNAL_FILE, RESULTS_FILE, TRACKING_PROGRESS_FILE, load_study

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "study_2ff6b06.tar.gz"
FORGED = "code_of_somebody:go"
MODULE = "raise SystemExit('it ran')\n"
SMALL, UNFINISHED = "61319e638aa3", "baf08205dda5"
ALLOWS = "names code to run, the network 'code_of_somebody:go'; "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user who has somebody's study in it, and a module that no command may import."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code_of_somebody.py").write_text(MODULE)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "studies", filter="data")
    shutil.copytree(tmp_path / "studies" / "old_study", tmp_path / "studies" / "theirs")
    # Without tables and models, so that the journal is what commands read; without a store to bring anything to
    for name in (RESULTS_FILE, "epochs.parquet", "models", TRACKING_PROGRESS_FILE):
        path = tmp_path / "studies" / "theirs" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return tmp_path


def forge(study: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change every event of a study's journal."""
    events = [json.loads(line) for line in (study / JOURNAL_FILE).read_text().splitlines()]
    for event in events:
        change(event)
    (study / JOURNAL_FILE).write_text("".join(json.dumps(event) + "\n" for event in events))
    return study


def name_code(event: dict[str, Any]) -> None:
    if event["event"] == "proposed":
        event["specification"]["network"]["name"] = FORGED
    if event.get("status") == "completed" and event["trial"] == SMALL:
        event["status"] = "stopped_early"


def name_code_of_the_teacher(event: dict[str, Any]) -> None:
    if event["event"] == "proposed" and event["trial"] == UNFINISHED:
        event["specification"]["teacher"] = {"source": "t/model.safetensors", "own_network": FORGED}


def assert_nothing_ran() -> None:
    assert "code_of_somebody" not in sys.modules


STUDY_COMMANDS = {
    "summary": ["theirs"],
    "mark": ["theirs", SMALL, "--broken", "bad images"],
    "profile": ["theirs"],
    "audit": ["theirs"],
    "against": ["theirs", "--field", "method.name", "--baseline", "tucker"],
    "report": ["theirs", "--out", "page"],
    "compare": ["theirs", "old_study", "--out", "page"],
    "export": ["--study", "theirs", "--trial", "9a50"],
    "collate": ["theirs", "old_study", "--mixed", "--name", "all"],
    "check": ["theirs"],
    "repair": ["theirs"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_over_a_study_runs_what_its_record_names(folder, command, capsys):
    forge(folder / "studies" / "theirs", name_code)
    try:
        code = analysis([command, *STUDY_COMMANDS[command]])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert "it ran" not in printed.out + printed.err
    assert "Traceback" not in printed.err
    if command == "export":
        assert (code, printed.err.count("\n")) == (2, 1)
        assert f"the study {ALLOWS}--allow-code allows it" in printed.err
    if command == "collate":
        assert code == 0
        assert "the network 'code_of_somebody:go' is code; --allow-code runs it" in printed.out
    assert_nothing_ran()


def test_collating_a_store_asks_too_and_allowed_code_that_ends_the_process_is_an_error(folder, capsys, monkeypatch):
    theirs = forge(folder / "studies" / "theirs", name_code)
    monkeypatch.setattr("analysis.sources.load_from_mlflow", lambda uri, name: load_study(theirs))
    command = ["collate", "old_study", "--mixed", "--from-store", "sqlite:///x.db", "theirs"]
    assert analysis([*command, "--name", "all"]) == 0
    assert "the network 'code_of_somebody:go' is code" in capsys.readouterr().out
    assert_nothing_ran()
    assert analysis([*command, "--name", "more", "--allow-code"]) == 1
    assert "cannot be imported: SystemExit: it ran" in capsys.readouterr().out


@pytest.mark.parametrize("change", [name_code, name_code_of_the_teacher])
@pytest.mark.parametrize(
    "words", [["--resume", "theirs"], ["--retrain-stopped", "theirs"], ["--reproduce", "theirs", SMALL]]
)
def test_no_study_starts_over_records_that_name_code(folder, words, change, capsys):
    forge(folder / "studies" / "theirs", change)
    before = (folder / "studies" / "theirs" / JOURNAL_FILE).read_bytes()
    if change is name_code_of_the_teacher and words[0] != "--resume":
        words = ["--reproduce", "theirs", UNFINISHED]
    assert sweeps.run.main(words) == 2
    printed = capsys.readouterr().err
    assert f"{ALLOWS}--allow-code allows it" in printed
    assert printed.count("\n") == 1
    assert (folder / "studies" / "theirs" / JOURNAL_FILE).read_bytes() == before
    assert_nothing_ran()


def forged_model(folder: Path) -> tuple[Path, Path]:
    """A model file and a merged one, whole but for metadata that name code."""
    settings = NetworkSettings(name="resnet9", width=0.125)
    specification = ModelSpecification(network=settings, method=Dense(), image_shape=(1, 8, 8), classes=10)
    network = specification.build()
    preprocessing = ImagePreprocessing(mean=(0.5,), std=(0.5,), source="a test")
    model, merged = folder / "teachers" / "theirs" / "model.safetensors", folder / "merged.safetensors"
    model.parent.mkdir(parents=True)
    write_model(model, network, specification, preprocessing)
    save_merged(merged, merge(network, combined=True), specification, preprocessing, combined=True)
    for file in (model, merged):
        tensors, metadata = load_tensors(file)
        metadata["lowrank_model"] = metadata["lowrank_model"].replace('"resnet9"', f'"{FORGED}"')
        save_tensors(file, tensors, metadata)
    return model, merged


LOADERS: dict[str, Callable[[Path, Path], Any]] = {
    "load_model": lambda model, merged: lowrank.io.load_model(model),
    "load_merged": lambda model, merged: lowrank.io.load_merged(merged),
    "load_any_model": lambda model, merged: lowrank.io.load_any_model(merged),
    "load_classifier": lambda model, merged: lowrank.serving.load_classifier(model),
    "load_teacher": lambda model, merged: lowrank.distillation.load_teacher(str(model), "0" * 64),
    "find_teacher": lambda model, merged: lowrank.distillation.find_teacher(str(model), Path("teachers")),
    "_load_pyfunc": lambda model, merged: lowrank.serving._load_pyfunc(str(model.parent)),
}


def test_the_loaders_are_all_that_take_a_network_to_trust():
    modules = (lowrank.io, lowrank.serving, lowrank.distillation)
    functions = {name: getattr(module, name) for module in modules for name in dir(module)}
    trusting = {
        name for name, function in functions.items()
        if inspect.isfunction(function) and "trusted_network" in inspect.signature(function).parameters
    }  # fmt: skip
    assert trusting <= LOADERS.keys()


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_runs_what_a_file_names(folder, loader):
    model, merged = forged_model(folder)
    with pytest.raises(InputError, match=f"{ALLOWS}.* allows it, if you trust"):
        LOADERS[loader](model, merged)
    assert_nothing_ran()


def test_no_command_over_a_model_runs_what_it_names(folder, capsys):
    model, merged = forged_model(folder)
    (folder / "image.png").write_bytes(b"")
    for file in (model, merged):
        assert lowrank.predict.main([str(file), "image.png"]) == 2
        assert f"{file} {ALLOWS}--allow-code allows it" in capsys.readouterr().err
    assert_nothing_ran()


@pytest.mark.parametrize("trial_id", ["../../old_study/trials/x", "/etc/x", "a;touch b", "$(id)", "..", "", "-rf", 5])
@pytest.mark.parametrize("command", ["collate", "summary"])
def test_an_id_that_is_no_plain_name_is_refused_before_anything_is_written(folder, command, trial_id, capsys):
    def rename(event: dict[str, Any]) -> None:
        if event.get("trial") == SMALL:
            event["trial"] = trial_id

    forge(folder / "studies" / "theirs", rename)
    before = sorted(folder.rglob("*"))
    assert analysis([command, *STUDY_COMMANDS[command]]) == 2
    printed = capsys.readouterr().err
    assert "a trial's id must be up to 80 letters, digits" in printed
    assert printed.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_weights_to_start_from_lie_within_the_study(folder, capsys):
    def start_outside(event: dict[str, Any]) -> None:
        if event.get("trial") == SMALL and event["event"] == "proposed":
            event["specification"]["start"] = {"from": "trial:../../../elsewhere", "fingerprint": "x"}

    forge(folder / "studies" / "theirs", start_outside)
    assert sweeps.run.main(["--reproduce", "theirs", SMALL]) == 2
    assert "a trial's id must be" in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_package_is_not_run_instead_of_it(folder):
    (folder / "analysis").mkdir()
    (folder / "analysis" / "__init__.py").write_text("")
    (folder / "analysis" / "__main__.py").write_text("raise SystemExit('it ran')\n")
    (folder / "random.py").write_text("raise SystemExit('it ran')\n")
    command = module_command("analysis", "--help")
    done = subprocess.run(
        command, cwd=folder, env=module_environment(), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "it ran" not in done.stderr
    assert done.stdout.startswith("usage: python -m analysis")


def test_a_teacher_that_a_space_trains_has_a_plain_name(folder, capsys):
    (folder / "theirs.yaml").write_text(
        "question: q\ndata: digits\nnetwork: {name: resnet9, width: 0.125}\nmethod: {name: tucker}\n"
        f"train: {{epochs: 1, kd_weight: 0.5}}\nteacher: {{name: {folder}/made, train: {{epochs: 1}}}}\n"
        "search: {sampler: grid, trials: 1}\n"
    )
    assert sweeps.run.main(["--space", "theirs.yaml"]) == 2
    assert "`teacher.name` of a teacher that is trained must be up to 80 letters" in capsys.readouterr().err
    assert not (folder / "made").exists()
