"""A study read from its journal, from its tables and from MLflow: the same typed records, whatever became of it."""

from __future__ import annotations

import copy
import random
import re
import shutil
from pathlib import Path

import pytest

from analysis.sources.mlflow import load_from_mlflow
from lowrank.errors import InputError
from sweeps.records.events import Event, Role, Status
from sweeps.records.journal import Journal
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, MLFLOW_FILE, RESULTS_FILE
from sweeps.records.tables import read_tables
from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.uri import default_tracking_uri
from tests.support.journals import plain_events, write_plain
from tests.support.synthetic_study import START, Plan, header, metrics, write_study, write_trial

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy


def more(folder: Path, *events: tuple[Event, dict]) -> None:
    journal = Journal(folder / JOURNAL_FILE)
    for event, fields in events:
        journal.append(event, **fields)
    journal.close()


def remarks(study: StudyRecord) -> list[tuple[Event, dict]]:
    """Everything that a record may hold beside what a made-up study has anyway."""
    first, second, third = list(study.trials)[:3]
    rare = {**metrics(7.5, 7), "grad_norm.layer1.0": 0.1 + 0.2, "host_memory_mb": 812.5, "device_utilisation": 41.0}
    worker = {"host": "one", "pid": 7, "device": "cpu", "from_epoch": 0, "start_seconds": 0.123456789, "cpus": 1.0}
    return [
        (Event.ATTEMPT, {"trial": first, **worker}),
        (Event.ATTEMPT, {"trial": first, **worker, "host": "two"}),
        (Event.EPOCH, {"trial": first, "epoch": 7, "metrics": rare}),
        (Event.NOTICE, {"trial": first, "text": "the cache was built"}),
        (Event.TESTED, {"trial": first, "test_error": 100 / 3}),
        (Event.EXCLUDED, {"trial": second, "broken": "wrong labels"}),
        (Event.ANNOTATED, {"trial": second, "note": "odd\n\ncurve", "tags": {"seen": "yes"}}),
        (Event.ALIAS, {"trial": third, "parameters": {"method.dims": 4, "train.lr": 1 / 3}}),
        (Event.ANNOTATED, {"note": "a first look", "tags": {"team": "vision"}}),
        (Event.CLOSED, {"reason": "finished"}),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, blank_store) -> Path:
    folder = write_study(
        tmp_path_factory.mktemp("studies") / "tt_dims", Plan(trials=10, epochs=3, level=-1.0, closed=None)
    )
    shutil.copy(blank_store, folder / MLFLOW_FILE)
    more(folder, *remarks(load_study(folder)))
    assert catch_up(Follower(folder, default_tracking_uri(folder))) is None
    return folder


def to_milliseconds(study: StudyRecord) -> StudyRecord:
    """With times of epochs as MLflow keeps them."""
    found = copy.deepcopy(study)
    for trial in found.trials.values():
        for epoch in trial.epochs.values():
            epoch["time"] = round(epoch["time"], 3)
    return found


FOUND = {  # what the filters that are written down for MLflow's search box must find
    "tags.role = 'search' and tags.broken = 'no'": lambda t: t.role is Role.SEARCH and not t.broken,
    "tags.role != 'reference' and tags.broken = 'no'": lambda t: t.role is not Role.REFERENCE and not t.broken,
    "tags.status = 'diverged'": lambda t: t.status is Status.DIVERGED,
    "metrics.params < 60000 and metrics.val_error < 5": (
        lambda t: t.counts["params"] < 60_000 and t.val_error is not None and t.val_error < 5
    ),
}
WRITTEN = re.compile(r"((?:tags|metrics)\.\w+ [=!<>]+ '?\w+'?(?: and (?:tags|metrics)\.\w+ [=!<>]+ '?\w+'?)*)")


def test_every_filter_in_the_guides_finds_what_it_says(finished):
    from mlflow.tracking import MlflowClient

    written = {
        text for name in ("README.md", "docs/guides/mlflow.md") for text in WRITTEN.findall((ROOT / name).read_text())
    }
    assert written == FOUND.keys()
    client, study = MlflowClient(default_tracking_uri(finished)), load_study(finished)
    experiment = client.get_experiment_by_name("tt_dims").experiment_id
    launched = [trial for trial in study.trials.values() if trial.status is not Status.INFEASIBLE]
    for text, holds in FOUND.items():
        runs = client.search_runs([experiment], text)
        expected = {trial.trial_id for trial in launched if holds(trial)}
        assert {run.data.tags.get("trial_id") for run in runs} == expected, text
        assert expected, text


def test_three_sources_tell_the_same(finished):
    journal = load_study(finished)
    assert read_tables(finished) == journal
    assert load_from_mlflow(default_tracking_uri(finished), "tt_dims") == journal
    assert journal.notes == ["a first look"]


def test_runs_alone_tell_the_same_while_a_study_runs_and_after_its_driver_was_killed(finished):
    """The tables in the store are those of the first run, and so are not used."""
    follower = Follower(finished, default_tracking_uri(finished))
    follower.read()
    assert follower.carry(now=True)
    plan = Plan(name="tt_dims", trials=0, epochs=4, infeasible=0)
    journal = Journal(finished / JOURNAL_FILE)
    journal.append(Event.STUDY, time=START + 5000, **header(plan))
    arguments = {"method": "cp", "params": 5_000, "dims": 3, "rank_scale": 1 / 3, "at": START + 5001}
    write_trial(journal, plan, random.Random(1), status=Status.RUNNING, **arguments)
    impossible = {"trial": "infeasible-9", "stratum": "s", "reason": "too small", "parameters": {"size": 0.1}}
    journal.append(Event.INFEASIBLE, time=START + 5002, **impossible)
    journal.close()
    follower.read()
    assert follower.carry(now=True)
    said: list[str] = []
    running = load_from_mlflow(default_tracking_uri(finished), "tt_dims", said.append)
    assert running == to_milliseconds(load_study(finished))
    proposed = [trial.proposed_at for trial in running.trials.values()]
    assert proposed == sorted(proposed)
    assert said[-1] == f"run {len(said) - 1} of {len(said) - 1}"
    follower.abandon()
    assert load_from_mlflow(default_tracking_uri(finished), "tt_dims") == running
    more(finished, (Event.CLOSED, {"reason": "interrupted"}))
    assert catch_up(Follower(finished, default_tracking_uri(finished))) is None
    assert load_from_mlflow(default_tracking_uri(finished), "tt_dims") == load_study(finished)


def test_runs_without_their_records_are_one_line(finished, capsys):
    more(finished, (Event.ANNOTATED, {"note": "open again", "tags": {}}))
    follower = Follower(finished, default_tracking_uri(finished))
    follower.read()
    assert follower.carry(now=True)
    stored = sorted((finished / "mlflow_artifacts").rglob("trial.json"))
    stored[0].unlink()
    left = load_from_mlflow(default_tracking_uri(finished), "tt_dims")
    said = capsys.readouterr().err
    assert len(left.trials) == len(load_study(finished).trials) - 1
    assert "left out, since the store does not have their trial.json: " in said
    assert len(said.splitlines()) == 1
    for path in stored[1:]:
        path.unlink()
    next((finished / "mlflow_artifacts").rglob("study.json")).unlink()
    with pytest.raises(InputError, match="written by another version, or without its artifacts"):
        load_from_mlflow(default_tracking_uri(finished), "tt_dims")


def test_tables_alone_are_enough(finished, tmp_path):
    for name in (RESULTS_FILE, EPOCHS_FILE):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert load_study(tmp_path).header == load_study(finished).header


def test_of_several_studies_of_a_name_one_must_be_chosen(finished, tmp_path, blank_store):
    """Two people's studies of one name on a server of their team."""
    shutil.copy(blank_store, tmp_path / "shared.db")
    uri = f"sqlite:///{tmp_path}/shared.db"
    other = write_study(tmp_path / "tt_dims", Plan(trials=3, epochs=1))
    first, *events = plain_events(other / JOURNAL_FILE)
    write_plain(other / JOURNAL_FILE, [{**first, "time": first["time"] + 60}, *events])
    for folder in (finished, other):
        assert catch_up(Follower(folder, uri)) is None
    starts = [plain_events(folder / JOURNAL_FILE)[0]["time"] for folder in (finished, other)]
    keys = [f"tt_dims@{round(start * 1000)}" for start in starts]
    with pytest.raises(InputError, match="has 2 studies of that name; choose from: ") as error:
        load_from_mlflow(uri, "tt_dims")
    assert str(error.value).endswith(f"choose from: {keys[0]} (2026-09-21 14:13 UTC), {keys[1]} (2026-09-21 14:14 UTC)")
    assert [len(load_from_mlflow(uri, key).trials) for key in keys] == [
        len(load_study(folder).trials) for folder in (finished, other)
    ]
    with pytest.raises(InputError, match="the MLflow store has no study 'tt_dims@1'; choose from: tt_dims@"):
        load_from_mlflow(uri, "tt_dims@1")
