"""Records, models and teachers from anybody run no code and write nowhere else, through every command and loader."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lowrank.compress
import lowrank.distillation
import lowrank.io
import lowrank.predict
import lowrank.serving
import sweeps.run
import sweeps.spot
import sweeps.teacher
from analysis.__main__ import COMMANDS, main as analysis
from analysis.model_export import find_trial_data
from lowrank.compression import merge
from lowrank.distillation import RECORD_FILE, TeacherRecord
from lowrank.errors import InputError
from lowrank.io import ImagePreprocessing, ModelSpecification, load_tensors, save_merged, save_tensors, write_model
from lowrank.layers import Dense
from lowrank.networks import NetworkSettings
from lowrank.utils import file_hash, module_command, module_environment
from sweeps.records import JOURNAL_FILE, RESULTS_FILE, SERIES_FILE, TRACKING_PROGRESS_FILE, load_study
from sweeps.tracking.__main__ import main as tracking

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
        event["specification"]["teacher"] = {
            "name": "t",
            "weights": "f00d",
            "source": "t/model.safetensors",
            "own_network": FORGED,
        }


def name_images(event: dict[str, Any]) -> None:
    """Images of the user that are none of the study's business."""
    if event["event"] == "proposed":
        event["specification"]["data"]["name"] = "folder:private"
    if event.get("status") == "completed" and event.get("trial") == SMALL:
        event["status"] = "stopped_early"


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
    "log": ["theirs", "--out", "LOG.md"],
    "note": ["theirs", SMALL, "bad images"],
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


READS = "reads private, which is outside the data folder"


@pytest.fixture
def private(folder, monkeypatch):
    """The user's own images, outside of the folder of data sets; a test fails where they are opened."""
    (folder / "private" / "a").mkdir(parents=True)

    def opened(*_: Any) -> None:
        raise AssertionError("the images were opened")

    monkeypatch.setattr("lowrank.data.reading.image_folder.read_folder", opened)
    return folder / "private"


@pytest.mark.parametrize(
    "words", [["--resume", "theirs"], ["--retrain-stopped", "theirs"], ["--reproduce", "theirs", SMALL]]
)
def test_no_study_reads_images_that_a_record_alone_names(folder, private, words, capsys):
    forge(folder / "studies" / "theirs", name_images)
    before = (folder / "studies" / "theirs" / JOURNAL_FILE).read_bytes()
    assert sweeps.run.main(words) == 2
    printed = capsys.readouterr().err
    assert READS in printed
    assert f"--data folder:{private}" in printed
    assert printed.count("\n") == 1
    assert (folder / "studies" / "theirs" / JOURNAL_FILE).read_bytes() == before
    if words[0] != "--resume":  # whose space has other images
        with pytest.raises(AssertionError, match="were opened"):
            sweeps.run.main([*words, "--data", "folder:private"])


def test_a_resume_reads_no_images_that_a_space_of_a_study_alone_names(folder, private, capsys):
    path = folder / "studies" / "theirs" / "space.yaml"
    content = yaml.safe_load(path.read_text())
    content["data"] = {"name": f"folder:{private}"}
    content["options"]["data_dir"] = str(folder)  # no permission either: the user has not typed it
    path.write_text(yaml.safe_dump(content))
    assert sweeps.run.main(["--resume", "theirs"]) == 2
    assert f"the space reads {private}, which is outside the data folder" in capsys.readouterr().err
    assert sweeps.run.main(["--resume", "theirs", "--data", "digits"]) == 2
    assert f"--data must be folder:{private}, but got digits" in capsys.readouterr().err


def test_a_series_permits_itself_no_images_and_no_code(folder, private, capsys):
    series = folder / "studies" / "both"
    series.mkdir()
    content = {
        "question": "q", "data": f"folder:{private}", "network": {"name": "resnet9", "width": 0.125},
        "method": {"name": "dense"}, "studies": [{"name": "a"}],
    }  # fmt: skip
    options = {"data": f"folder:{private}", "data_dir": str(folder), "network": FORGED, "set": [f"network={FORGED}"]}
    stored = {"file": "both", "content": content, "options": options, "storage": None, "base": str(folder)}
    (series / SERIES_FILE).write_text(yaml.safe_dump(stored))
    assert sweeps.run.main(["--resume", "both", "--allow-code"]) == 2
    assert f"the space reads {private}, which is outside the data folder" in capsys.readouterr().err
    assert sweeps.run.main(["--resume", "both", "--data", f"folder:{private}"]) == 2
    assert "names code to run" in capsys.readouterr().err
    assert_nothing_ran()


def test_an_export_reads_no_images_that_a_record_alone_names(folder, private):
    study = load_study(forge(folder / "studies" / "theirs", name_images))
    data, reason = find_trial_data(study.trials[SMALL], None)
    assert data is None
    assert READS in reason
    assert f"--data-dir {private}" in reason
    with pytest.raises(AssertionError, match="were opened"):
        find_trial_data(study.trials[SMALL], folder)


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


def test_compressing_a_model_runs_nothing_that_it_names(folder, capsys):
    model, _ = forged_model(folder)
    words = ["--network", "resnet9", "--set", "network.width=0.125", "--weights", str(model), "--data", "digits"]
    assert lowrank.compress.main([*words, "--out", "small"]) == 2  # the weights were never trained
    assert "that of chance is" in capsys.readouterr().err
    assert_nothing_ran()


def test_no_command_over_teachers_runs_what_one_names(folder, capsys, monkeypatch):
    model, _ = forged_model(folder)
    record = TeacherRecord(
        name="theirs", network={"name": FORGED}, method={}, params=1, image_shape=(1, 8, 8), classes=10,
        data={"name": "folder:private"}, train={}, views={}, seed=0, specification_id="0", val_error=1.0, val_loss=1.0,
        test_error=1.0, sha256=file_hash(model), seconds=1.0, registered_at="", command="", commit="", versions={},
        hardware={},
    )  # fmt: skip
    (model.parent / RECORD_FILE).write_text(record.model_dump_json())
    monkeypatch.setattr("sweeps.teachers.registry._register", lambda *_: "registered")  # MLflow takes long to import
    monkeypatch.setattr("sweeps.teachers.registry.make_client", lambda *_: None)
    for words in (["--list"], ["--list", "--json"], ["--register", "theirs"]):
        assert sweeps.teacher.main(words) == 0
    assert FORGED in capsys.readouterr().out
    assert_nothing_ran()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_carrying_a_study_into_mlflow_runs_and_reads_nothing_that_it_names(folder, private, monkeypatch):
    forge(forge(folder / "studies" / "theirs", name_code), name_images)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert tracking(["studies/theirs", "--tracking-uri", f"sqlite:///{folder}/store.db"]) == 0
    assert_nothing_ran()


def test_the_plan_of_a_cluster_runs_and_reads_nothing_that_a_space_names(folder, private, capsys):
    space = "question: q\ndata: %s\nnetwork: {name: '%s'}\nmethod: {name: dense}\n"
    for data, network, message in (
        ("digits", FORGED, f"the space {ALLOWS}"), ("folder:private", "resnet9", READS.replace("private", str(private)))
    ):  # fmt: skip
        (folder / "theirs.yaml").write_text(space % (data, network))
        assert sweeps.spot.main(["--accelerator", "L4", "--plan", "theirs.yaml"]) == 2
        assert message in capsys.readouterr().err
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
