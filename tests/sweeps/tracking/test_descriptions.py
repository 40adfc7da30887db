"""What people type into a description in MLflow stays, whatever the records say later."""

from __future__ import annotations

import shutil

import pytest

from analysis.sources import find_group, load_typed_notes
from analysis.sources.mlflow import _described_runs, _read, _typed_notes
from sweeps.records import (
    MLFLOW_FILE,
    Event,
    Journal,
    Status,
    StudyHeader,
    StudyRecord,
    TrialRecord,
    load_history,
    load_study,
)
from sweeps.records.mlflow_names import (
    DESCRIPTION_TAG,
    TRIAL_TAG,
    join_description,
    recorded_paragraphs,
    study_key,
    typed_text,
)
from sweeps.records.names import JOURNAL_FILE
from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.mlflow_store import make_client, quiet_mlflow
from sweeps.tracking.uri import default_tracking_uri
from tests.support.synthetic_study import Plan, write_study

QUESTION = "Which (shape) is best?\n"


@pytest.mark.parametrize(
    ("description", "typed"),
    [
        ("", ""),
        ("Which (shape) is best?", ""),
        ("Which (shape) is best?\n\nfirst\n\nsecond", ""),
        ("Which (shape) is best?\r\n\r\nmine", "mine"),
        ("mine\n\nWhich (shape) is best?\n\nfirst\n\nalso mine\n\nsecond", "mine\n\nalso mine"),
        ("first and more", "first and more"),
        ("Marked broken: undone since\n\nmine", "mine"),
    ],
)
def test_what_is_not_of_the_records_was_typed(description, typed):
    study = StudyRecord(header=StudyHeader(question=QUESTION), notes=["first", "second"])
    assert typed_text(description, recorded_paragraphs(study)) == typed


def test_a_description_is_renewed_around_what_was_typed():
    trial = TrialRecord("t", broken="wrong\n\nlabels", notes=["a\n\nb"])
    once = join_description("mine", recorded_paragraphs(trial))
    assert once == "Marked broken: wrong labels\n\na\n\nb\n\nmine"
    assert join_description(once, recorded_paragraphs(trial)) == once
    trial.broken = ""
    assert join_description(once, recorded_paragraphs(trial)) == "a\n\nb\n\nmine"


@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_the_tracker_keeps_what_was_typed_and_it_is_read_back(tmp_path, blank_store):
    quiet_mlflow()
    shutil.copy(blank_store, tmp_path / MLFLOW_FILE)
    folder = write_study(tmp_path, Plan(trials=3, epochs=2, infeasible=0))
    uri = default_tracking_uri(folder)
    catch_up(Follower(folder, uri))
    trial = next(t for t in load_study(folder).trials.values() if t.status is Status.COMPLETED).trial_id
    client = make_client(uri, folder)
    experiment = client.get_experiment_by_name("tt_dims").experiment_id
    runs = {run.data.tags.get(TRIAL_TAG, ""): run for run in client.search_runs([experiment])}
    question = runs[""].data.tags[DESCRIPTION_TAG]
    client.set_tag(runs[""].info.run_id, DESCRIPTION_TAG, f"{question}\n\nof the study")
    client.set_tag(runs[trial].info.run_id, DESCRIPTION_TAG, "of the trial")

    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.EXCLUDED, trial=trial, broken="wrong labels")
    journal.append(Event.ANNOTATED, note="a note", tags={"group": "initial runs"})
    journal.close()
    catch_up(Follower(folder, uri))
    stored = {name: client.get_run(run.info.run_id).data.tags for name, run in runs.items()}
    assert stored[trial][DESCRIPTION_TAG] == "Marked broken: wrong labels\n\nof the trial"
    assert stored[""][DESCRIPTION_TAG] == f"{question}\n\na note\n\nof the study"
    assert stored[trial]["group"] == "initial runs"

    history = load_history(folder)
    key = study_key(StudyHeader.parse(history.events[0]))
    typed = load_typed_notes(uri, history.study, key)
    assert typed == {"": "of the study", trial: "of the trial"}
    through_mlflow = _read(uri, lambda client: _described_runs(client, "tt_dims"))
    assert _typed_notes(through_mlflow, history.study, key) == typed
    assert load_typed_notes(uri, history.study, "another study of that name") == {}
    assert find_group(uri, "initial runs") == ["tt_dims"]
    assert find_group(uri, "others") == []
