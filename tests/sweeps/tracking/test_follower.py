from __future__ import annotations

import errno
import http.server
import json
import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lowrank.errors import InputError
from lowrank.utils.text import redact
from sweeps.records.events import Event, Status
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE, MLFLOW_FILE, RESULTS_FILE, TRACKING_PROGRESS_FILE
from sweeps.tracking import follower as follower_module
from sweeps.tracking.__main__ import main
from sweeps.tracking.follower import Follower, catch_up, follow
from sweeps.tracking.mlflow_runs import MlflowStudy
from sweeps.tracking.mlflow_store import is_refusal, quiet_mlflow
from sweeps.tracking.process import behind_message, catch_up_command, records_behind
from sweeps.tracking.uri import check_tracking_uri, default_tracking_uri
from tests.support.mlflow_store import content, epoch_metrics, journal_metrics, parent_status, rows, trial_runs
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import START, Plan, header, metrics, write_study

pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture(scope="session", autouse=True)
def short_timeouts():
    quiet_mlflow()


@pytest.fixture
def study_dir(tmp_path, blank_store):
    shutil.copy(blank_store, tmp_path / MLFLOW_FILE)
    return tmp_path


def small(study_dir: Path, **changes) -> Path:
    return write_study(study_dir, Plan(**{"trials": 6, "epochs": 3, "infeasible": 1, **changes}))


def carry(study_dir: Path) -> str | None:
    return catch_up(Follower(study_dir, default_tracking_uri(study_dir)))


def append(study_dir: Path, *events) -> None:
    journal = Journal(study_dir / JOURNAL_FILE)
    for event, fields in events:
        journal.append(event, **fields)
    journal.close()


@pytest.fixture(scope="module")
def carried(tmp_path_factory, blank_store):
    """A whole study in MLflow, to look at."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(blank_store, folder / MLFLOW_FILE)
    write_study(folder, Plan(trials=16, epochs=4))
    assert carry(folder) is None
    return folder


class TestContent:
    def test_every_metric_of_every_epoch_exactly_once(self, carried):
        assert epoch_metrics(carried / MLFLOW_FILE) == journal_metrics(carried)

    def test_one_run_a_trial_and_none_for_the_infeasible(self, carried):
        table = pq.read_table(carried / RESULTS_FILE).to_pylist()
        launched = {row["trial_id"]: Status(row["status"]) for row in table if row["status"] != Status.INFEASIBLE}
        expected = {
            Status.COMPLETED: "FINISHED", Status.STOPPED: "FINISHED", Status.FAILED: "FAILED",
            Status.DIVERGED: "FAILED", Status.OUT_OF_MEMORY: "FAILED",
        }  # fmt: skip
        assert set(launched.values()) == set(expected)  # the journal shows every ending
        assert trial_runs(carried / MLFLOW_FILE) == {trial: [expected[status]] for trial, status in launched.items()}

    def test_params_name_the_setting(self, carried):
        row = next(row for row in pq.read_table(carried / RESULTS_FILE).to_pylist() if row["method"] == "tensor_train")
        found = dict(
            rows(
                carried / MLFLOW_FILE,
                "select p.key, p.value from params p join tags t on t.run_uuid = p.run_uuid "
                f"where t.key = 'trial_id' and t.value = '{row['trial_id']}'",
            )
        )
        shown = {
            "method.name": "tensor_train", "method.dims": str(row["dims"]), "method.rank_scale": str(row["rank_scale"]),
            "network.name": "resnet9", "data.name": "digits", "train.weight_decay": "0.0005",
            "train.scaled_decay": "true", "seed": "0", "stratum": row["stratum"],
        }  # fmt: skip
        assert shown.items() <= found.items()  # the names and the spelling of the space file

    def test_children_hang_on_the_parent_and_share_one_experiment(self, carried):
        database = carried / MLFLOW_FILE
        parents = rows(database, "select run_uuid, experiment_id from runs where name = 'tt_dims'")
        children = rows(
            database,
            "select distinct t.value, r.experiment_id from tags t join runs r on r.run_uuid = t.run_uuid "
            "where t.key = 'mlflow.parentRunId'",
        )
        assert parents == children
        assert rows(database, f"select name from experiments where experiment_id = {parents[0][1]}") == [("tt_dims",)]

    def test_sizes_are_metrics_too_for_the_pictures_of_mlflow(self, carried):
        found = rows(carried / MLFLOW_FILE, "select count(*) from metrics where key = 'params' and step = 0")
        assert found == [(len(trial_runs(carried / MLFLOW_FILE)),)]

    def test_artifacts(self, carried):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(default_tracking_uri(carried))
        parent = rows(carried / MLFLOW_FILE, "select run_uuid from runs where name = 'tt_dims'")[0][0]
        names = {item.path for item in client.list_artifacts(parent)}
        assert names == {"infeasible.json", "study.json", "results.parquet", "epochs.parquet"}
        stored = list((carried / "mlflow_artifacts").rglob("trial.json"))
        assert len(stored) == len(trial_runs(carried / MLFLOW_FILE))
        assert "method" in json.loads(stored[0].read_text())["specification"]
        infeasible = next((carried / "mlflow_artifacts").rglob("infeasible.json"))
        assert [row["status"] for row in json.loads(infeasible.read_text())] == ["infeasible"] * 2

    def test_times_are_those_of_the_journal(self, carried):
        start, end = rows(carried / MLFLOW_FILE, "select min(start_time), max(end_time) from runs")[0]
        assert start == START * 1000
        assert end == (START + 1000) * 1000
        assert parent_status(carried / MLFLOW_FILE) == ["FINISHED"]

    def test_the_summary_is_at_the_parent(self, carried):
        done = [row for row in pq.read_table(carried / RESULTS_FILE).to_pylist() if row["status"] == Status.COMPLETED]
        found = dict(rows(carried / MLFLOW_FILE, "select key, value from metrics where key like 'study/%'"))
        assert found["study/trials_completed"] == len(done)
        assert found["study/best_val_error"] == min(row["val_error"] for row in done if row["role"] == "search")


class TestAgain:
    def test_replaying_the_whole_journal_changes_nothing(self, study_dir):
        small(study_dir)
        assert carry(study_dir) is None
        before = content(study_dir / MLFLOW_FILE)
        (study_dir / TRACKING_PROGRESS_FILE).unlink()
        assert carry(study_dir) is None
        assert content(study_dir / MLFLOW_FILE) == before

    def test_catching_up_sends_only_what_is_new(self, study_dir, monkeypatch):
        small(study_dir)
        assert carry(study_dir) is None
        sent = []
        original = MlflowStudy.carry
        monkeypatch.setattr(MlflowStudy, "carry", lambda self, entries: (sent.extend(entries), original(self, entries)))
        append(study_dir, (Event.STUDY, header(Plan())), (Event.CLOSED, {"reason": "interrupted"}))
        assert carry(study_dir) is None
        assert [entry.event for entry in sent] == [Event.STUDY, Event.CLOSED]

    def test_a_spoilt_progress_file_costs_time_only(self, study_dir):
        small(study_dir)
        assert carry(study_dir) is None
        before = content(study_dir / MLFLOW_FILE)
        for garbage in (b"", b"{", b"[]", b'{"offset": 17, "key": "tt_dims 1790000000000"}'):
            (study_dir / TRACKING_PROGRESS_FILE).write_bytes(garbage)
            assert carry(study_dir) is None
            assert content(study_dir / MLFLOW_FILE) == before, garbage

    def test_a_deleted_database_is_filled_again(self, study_dir, blank_store):
        small(study_dir)
        assert carry(study_dir) is None
        before = content(study_dir / MLFLOW_FILE)
        other = study_dir / "again"
        other.mkdir()
        for name in (JOURNAL_FILE, TRACKING_PROGRESS_FILE):
            shutil.copy(study_dir / name, other)
        shutil.copy(blank_store, other / MLFLOW_FILE)
        progress = json.loads((other / TRACKING_PROGRESS_FILE).read_text())
        (other / TRACKING_PROGRESS_FILE).write_text(json.dumps({**progress, "uri": default_tracking_uri(other)}))
        assert carry(other) is None
        assert content(other / MLFLOW_FILE) == before

    def test_a_run_deleted_by_hand_is_made_again(self, study_dir):
        small(study_dir)
        assert carry(study_dir) is None
        before = content(study_dir / MLFLOW_FILE)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(default_tracking_uri(study_dir))
        victim = rows(study_dir / MLFLOW_FILE, "select run_uuid from tags where key = 'trial_id'")[0][0]
        client.delete_run(victim)
        assert content(study_dir / MLFLOW_FILE) != before
        assert carry(study_dir) is None
        assert content(study_dir / MLFLOW_FILE) == before

    def test_a_resumed_sweep_goes_on_in_the_same_runs(self, study_dir):
        small(study_dir, closed="interrupted")
        trial = "0123456789abcdef"
        running = {"trial": trial, "role": "search", "stratum": "", "parameters": {}, "counts": {}, "proposal": {}}
        append(
            study_dir,
            (Event.STUDY, header(Plan())),
            (Event.PROPOSED, {**running, "specification": plain_specification(method={"name": "cp"})}),
            (Event.ATTEMPT, {"trial": trial}),
            (Event.EPOCH, {"trial": trial, "epoch": 1, "metrics": metrics(50.0, 1)}),
            (Event.CLOSED, {"reason": "interrupted"}),
        )
        assert carry(study_dir) is None
        assert trial_runs(study_dir / MLFLOW_FILE)[trial] == ["KILLED"]
        assert parent_status(study_dir / MLFLOW_FILE) == ["KILLED"]
        append(study_dir, (Event.STUDY, header(Plan())), (Event.ATTEMPT, {"trial": trial}))
        assert carry(study_dir) is None
        assert trial_runs(study_dir / MLFLOW_FILE)[trial] == ["RUNNING"]
        assert parent_status(study_dir / MLFLOW_FILE) == ["RUNNING"]
        append(
            study_dir,
            (Event.EPOCH, {"trial": trial, "epoch": 2, "metrics": metrics(40.0, 2)}),
            (Event.FINISHED, {"trial": trial, "status": "completed"}),
            (Event.TESTED, {"trial": trial, "test_error": 41.0}),
            (Event.CLOSED, {"reason": "finished"}),
        )
        assert carry(study_dir) is None
        assert trial_runs(study_dir / MLFLOW_FILE)[trial] == ["FINISHED"]
        assert parent_status(study_dir / MLFLOW_FILE) == ["FINISHED"]
        found = rows(study_dir / MLFLOW_FILE, "select step, value from metrics where key = 'test_error'")
        assert found == [(2, 41.0)]

    def test_errors_before_training_that_are_read_after_the_run_was_made_are_stored_once(self, study_dir):
        trial, initial = "0123456789abcdef", {"val_error": 61.5, "val_loss": 1.5}
        running = {"trial": trial, "role": "search", "stratum": "", "parameters": {}, "counts": {}, "proposal": {}}
        append(
            study_dir,
            (Event.STUDY, header(Plan())),
            (Event.PROPOSED, {**running, "specification": plain_specification(method={"name": "cp"})}),
            (Event.ATTEMPT, {"trial": trial}),
        )
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        follower.read()
        assert follower.carry()
        stored = "select key, value, step from metrics where key like 'initial%' order by key"
        assert rows(study_dir / MLFLOW_FILE, stored) == []
        append(
            study_dir,
            (Event.INITIAL, {"trial": trial, "initial": initial}),
            (Event.EPOCH, {"trial": trial, "epoch": 1, "metrics": metrics(50.0, 1)}),
            (Event.CLOSED, {"reason": "interrupted"}),
        )
        follower.read()
        assert follower.carry()
        expected = [("initial/val_error", 61.5, 0), ("initial/val_loss", 1.5, 0)]
        assert rows(study_dir / MLFLOW_FILE, stored) == expected
        assert follower.finish() is None
        (study_dir / TRACKING_PROGRESS_FILE).unlink()
        assert carry(study_dir) is None
        assert rows(study_dir / MLFLOW_FILE, stored) == expected

    def test_an_epoch_trained_again_to_the_same_end_is_one_record(self, study_dir):
        small(study_dir, trials=0, references=True, epochs=2, closed=None)
        trial = next(iter(trial for trial, *_ in journal_metrics(study_dir)))
        append(study_dir, (Event.ATTEMPT, {"trial": trial}))
        before = journal_metrics(study_dir)
        old = next(value for t, name, step, _, value in before if (t, name, step) == (trial, "val_error", 2))
        again = {**metrics(old, 2), "images_per_second": 1.0}
        append(study_dir, (Event.EPOCH, {"trial": trial, "epoch": 2, "metrics": again}))
        assert carry(study_dir) is None
        assert epoch_metrics(study_dir / MLFLOW_FILE) == before
        append(study_dir, (Event.EPOCH, {"trial": trial, "epoch": 2, "metrics": metrics(77.0, 2)}))
        assert carry(study_dir) is None
        latest = rows(
            study_dir / MLFLOW_FILE,
            "select m.value from latest_metrics m join tags t on t.run_uuid = m.run_uuid and t.key = 'trial_id' "
            f"where m.key = 'val_error' and t.value = '{trial}'",
        )
        assert latest == [(77.0,)]  # as the tables have it


class Flaky:
    """An MLflow client whose `fatal`-th call fails: before it does anything, or when the answer is on its way back."""

    def __init__(self, client, fatal: int, done: bool):
        self.client, self.fatal, self.done, self.calls = client, fatal, done, 0

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.fatal and not self.done:
                raise ConnectionResetError("reset by peer")
            answer = method(*args, **kwargs)
            if self.calls == self.fatal:
                raise ConnectionResetError("reset by peer")
            return answer

        return call


class TestOutages:
    @pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("fatal", [1, 2, 3, 5, 7, 11, 20, 30])
    def test_a_call_that_fails_anywhere_leaves_no_gap_and_no_double(self, study_dir, monkeypatch, fatal, done):
        small(study_dir, trials=2)
        from mlflow.tracking import MlflowClient

        client = Flaky(MlflowClient(default_tracking_uri(study_dir)), fatal, done)
        monkeypatch.setattr("sweeps.tracking.mlflow_runs.make_client", lambda uri, folder: client)
        first = carry(study_dir)
        assert client.calls >= fatal
        assert carry(study_dir) is None
        database = study_dir / MLFLOW_FILE
        assert epoch_metrics(database) == journal_metrics(study_dir)
        assert all(len(found) == 1 for found in trial_runs(database).values())
        assert parent_status(database) == ["FINISHED"]
        assert len(list((study_dir / "mlflow_artifacts").rglob("trial.json"))) == len(trial_runs(database))
        assert first is None or "nothing is lost" in first

    @pytest.mark.parametrize("fatal", [2, 4, 8, 12])
    def test_the_same_tracker_goes_on_after_an_answer_was_lost(self, study_dir, monkeypatch, fatal):
        small(study_dir, trials=2)
        from mlflow.tracking import MlflowClient

        client = Flaky(MlflowClient(default_tracking_uri(study_dir)), fatal, done=True)
        monkeypatch.setattr("sweeps.tracking.mlflow_runs.make_client", lambda uri, folder: client)
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        follower.read()
        assert not follower.carry()
        assert follower.finish() is None
        assert epoch_metrics(study_dir / MLFLOW_FILE) == journal_metrics(study_dir)
        assert all(len(found) == 1 for found in trial_runs(study_dir / MLFLOW_FILE).values())
        assert parent_status(study_dir / MLFLOW_FILE) == ["FINISHED"]

    def test_a_run_that_a_slow_server_made_after_all_is_dropped(self, study_dir):
        small(study_dir, trials=2)
        assert carry(study_dir) is None
        before = content(study_dir / MLFLOW_FILE)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(default_tracking_uri(study_dir))
        for run_id, key in rows(study_dir / MLFLOW_FILE, "select run_uuid, key from tags where key = 'trial_id'"):
            run = client.get_run(run_id)
            kept = {name: run.data.tags[name] for name in (key, "mlflow.parentRunId", "study")}
            client.create_run(run.info.experiment_id, run.info.start_time, kept)
        assert content(study_dir / MLFLOW_FILE) != before
        assert carry(study_dir) is None
        assert content(study_dir / MLFLOW_FILE) == before

    def test_tables_are_written_although_mlflow_is_away(self, tmp_path):
        small(tmp_path)
        message = catch_up(Follower(tmp_path, NOWHERE))
        assert pq.read_table(tmp_path / RESULTS_FILE).num_rows == 9
        total = (tmp_path / JOURNAL_FILE).read_bytes().count(b"\n")
        assert message.startswith(f"MLflow is {total} records behind (no answer from {NOWHERE}); nothing is lost")
        assert message.endswith(f"python -m sweeps.tracking {tmp_path} --tracking-uri {NOWHERE}")
        assert "\n" not in message

    def test_a_store_that_is_away_is_asked_less_and_less_often(self, tmp_path, monkeypatch):
        small(tmp_path)
        follower = Follower(tmp_path, NOWHERE)
        follower.read()
        tried = []
        now = [0]
        monkeypatch.setattr(follower_module.time, "monotonic", lambda: now[0])
        original = follower._carry
        monkeypatch.setattr(follower, "_carry", lambda: (tried.append(now[0]), original()))
        for now[0] in range(60):
            assert not follower.carry()
        gaps = [later - earlier for earlier, later in pairwise(tried)]
        assert gaps == sorted(gaps)
        assert gaps[0] <= 1
        assert gaps[-1] == 15

    def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(self, study_dir):
        small(study_dir, trials=2)
        trial = "bad" * 5
        fields = {"trial": trial, "role": "search", "stratum": "", "counts": {}, "proposal": {}, "specification": {}}
        append(
            study_dir,
            (Event.STUDY, header(Plan())),
            (Event.PROPOSED, {**fields, "parameters": {"x" * 300: 1}}),
            (Event.ATTEMPT, {"trial": trial}),
            (Event.EPOCH, {"trial": trial, "epoch": 1, "metrics": metrics(50.0, 1)}),
            (Event.CLOSED, {"reason": "finished"}),
        )
        message = carry(study_dir)
        assert message.startswith("MLflow has refused a record: xxx")
        assert f"x of {trial} (" in message
        assert message.endswith(f"python -m sweeps.tracking {study_dir} --again")
        assert epoch_metrics(study_dir / MLFLOW_FILE) == journal_metrics(study_dir)
        assert carry(study_dir) == message  # another process has no better news
        assert catch_up(Follower(study_dir, default_tracking_uri(study_dir), again=True)) == message
        assert main([str(study_dir)]) == 1

    def test_of_a_refused_batch_only_what_is_at_fault_is_missing(self, study_dir):
        small(study_dir, trials=2, closed=None)
        trial = next(iter(trial_id for trial_id, *_ in journal_metrics(study_dir)))
        wrong = {"val_error": 1.0, "y" * 300: 2.0, "train_error": 3.0}
        append(
            study_dir,
            (Event.EPOCH, {"trial": trial, "epoch": 9, "metrics": wrong}),
            (Event.CLOSED, {"reason": "finished"}),
        )
        assert "MLflow has refused a record: yyy" in carry(study_dir)
        missing = journal_metrics(study_dir) - epoch_metrics(study_dir / MLFLOW_FILE)
        assert [name for _, name, *_ in missing] == ["y" * 300]

    @pytest.mark.parametrize(
        ("code", "text", "final"),
        [
            ("INVALID_PARAMETER_VALUE", "Changing param values is not allowed", True),
            ("BAD_REQUEST", "no such thing", True),
            ("BAD_REQUEST", "(sqlite3.DataError) too big (see https://sqlalche.me/e/20/9h9h)", True),
            ("BAD_REQUEST", "transaction has been rolled back (see https://sqlalche.me/e/20/7s2a)", False),
            ("TEMPORARILY_UNAVAILABLE", "database or disk is full", False),
        ],
    )
    def test_a_fault_of_the_database_is_no_refusal(self, code, text, final):
        from mlflow.exceptions import MlflowException
        from mlflow.protos import databricks_pb2

        assert is_refusal(MlflowException(text, getattr(databricks_pb2, code))) is final

    def test_what_a_mended_store_takes_after_all_is_no_longer_refused(self, study_dir, monkeypatch):
        small(study_dir, trials=2)
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
        from mlflow.tracking import MlflowClient

        class Picky(MlflowClient):
            def log_batch(self, run_id, metrics=(), params=(), tags=(), **options):
                if any(metric.key == "lr" for metric in metrics):
                    raise MlflowException("no learning rates here", INVALID_PARAMETER_VALUE)
                return super().log_batch(run_id, metrics, params, tags, **options)

        with monkeypatch.context() as patched:
            patched.setattr("sweeps.tracking.mlflow_runs.make_client", lambda uri, folder: Picky(uri))
            assert "no learning rates here" in carry(study_dir)
        assert "no learning rates here" in carry(study_dir)
        assert catch_up(Follower(study_dir, default_tracking_uri(study_dir), again=True)) is None
        assert carry(study_dir) is None
        assert epoch_metrics(study_dir / MLFLOW_FILE) == journal_metrics(study_dir)

    def test_a_store_of_artifacts_that_is_away_does_not_hold_up_metrics(self, study_dir):
        small(study_dir, trials=2)
        (study_dir / "mlflow_artifacts").write_text("not a folder")
        assert "not stored: " in carry(study_dir)
        assert epoch_metrics(study_dir / MLFLOW_FILE) == journal_metrics(study_dir)
        (study_dir / "mlflow_artifacts").unlink()
        assert carry(study_dir) is None
        stored = list((study_dir / "mlflow_artifacts").rglob("trial.json"))
        assert len(stored) == len(trial_runs(study_dir / MLFLOW_FILE))


class TestJournalOddities:
    def test_a_torn_line_waits_for_its_other_half(self, study_dir):
        small(study_dir, closed=None)
        whole = (study_dir / JOURNAL_FILE).read_bytes()
        (study_dir / JOURNAL_FILE).write_bytes(whole[:-20])
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        follower.read()
        seen = len(follower.entries)
        assert follower.carry()
        (study_dir / JOURNAL_FILE).write_bytes(whole)
        follower.read()
        assert len(follower.entries) == seen + 1
        assert follower.carry()
        assert epoch_metrics(study_dir / MLFLOW_FILE) == journal_metrics(study_dir)

    @pytest.mark.parametrize(
        ("event", "fields", "damage"),
        [(Event.FINISHED, {"trial": "t"}, "it has no field 'status'"),
         (Event.EPOCH, {"trial": "t", "epoch": 1, "metrics": [1]}, "'list' object has no attribute")],
    )  # fmt: skip
    def test_an_event_that_cannot_be_used_is_named_and_not_carried(self, study_dir, event, fields, damage):
        small(study_dir)
        append(study_dir, (event, fields))
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        with pytest.raises(InputError, match=f"line .* at byte .* is damaged: {damage}"):
            follower.read()
        assert len(follower.entries) == (study_dir / JOURNAL_FILE).read_bytes().count(b"\n") - 1

    def test_a_damaged_line_is_one_line_and_exit_code_2(self, study_dir, capsys):
        small(study_dir)
        with (study_dir / JOURNAL_FILE).open("ab") as journal:
            journal.write(b"\x00\x00\n")
        assert main([str(study_dir)]) == 2
        assert "is damaged" in capsys.readouterr().err

    def test_no_journal_is_one_line_and_exit_code_2(self, tmp_path, capsys):
        assert main([str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"error: a study folder must hold journal.jsonl, but {tmp_path} does not\n"


class TestAddress:
    def test_the_default_is_in_the_study_folder(self, tmp_path):
        check_tracking_uri(default_tracking_uri(tmp_path))

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("mlruns", "must be one of sqlite:///FILE, http.*but got 'mlruns'"),
            ("file:///tmp/mlruns", "must be one of sqlite:///FILE"),
            ("sqlite://mlflow.db", "must read sqlite:///FILE"),
            ("sqlite:////nowhere/at/all/mlflow.db", "must name a file in a folder that can be written"),
            (NOWHERE, "must name a running MLflow server, but 'http://127.0.0.1:9' does not work: no answer"),
            ("postgresql://me:secret@127.0.0.1:9/db", r"'postgresql://me:\*\*\*@127.0.0.1:9/db' does not answer"),
        ],
    )
    def test_what_cannot_work_is_refused(self, uri, message):
        with pytest.raises(InputError, match=message):
            check_tracking_uri(uri)

    @pytest.mark.parametrize(("code", "works"), [(200, True), (401, True), (404, False), (503, False)])
    def test_a_server_must_answer_to_health(self, code, works):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                self.end_headers()

            def log_message(self, *args):
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            uri = f"http://127.0.0.1:{server.server_port}"
            if works:
                check_tracking_uri(uri)
            else:
                with pytest.raises(InputError, match=f"it answered {code} to /health"):
                    check_tracking_uri(uri)
            thread.join()

    def test_passwords_stay_out_of_messages_and_files(self, tmp_path):
        small(tmp_path)
        uri = "http://me:secret@127.0.0.1:9"
        assert redact(uri) == "http://me:***@127.0.0.1:9"
        message = catch_up(Follower(tmp_path, uri))
        assert (
            "secret" not in message + catch_up_command(tmp_path, uri) + (tmp_path / TRACKING_PROGRESS_FILE).read_text()
        )

    def test_how_far_behind(self, tmp_path):
        small(tmp_path)
        lines = (tmp_path / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
        assert records_behind(tmp_path) == len(lines)
        (tmp_path / TRACKING_PROGRESS_FILE).write_text(
            json.dumps({"offset": sum(map(len, lines[:-1])), "error": "away"})
        )
        assert behind_message(tmp_path, default_tracking_uri(tmp_path)) == (
            f"MLflow is 1 record behind (away); nothing is lost, catch up with: python -m sweeps.tracking {tmp_path}"
        )


class TestFollowing:
    """What the tracker does beside a driver, of which this process plays the parent."""

    @pytest.fixture(autouse=True)
    def short_pauses(self, monkeypatch):
        monkeypatch.setattr(follower_module, "POLL_SECONDS", 0.01)

    def test_it_ends_when_the_study_is_closed_and_carried(self, study_dir):
        small(study_dir, trials=2)
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        assert follow(follower, threading.Event(), 0, os.getppid()) is None
        assert parent_status(study_dir / MLFLOW_FILE) == ["FINISHED"]
        assert (study_dir / RESULTS_FILE).exists()

    def test_an_end_of_an_earlier_run_of_the_driver_is_not_waited_at(self, study_dir):
        small(study_dir, trials=2)
        follower, stop = Follower(study_dir, default_tracking_uri(study_dir)), threading.Event()
        rounds = []

        def carried_again(now=False):
            rounds.append(now)
            if len(rounds) == 3:
                stop.set()
            return Follower.carry(follower, now)

        follower.carry = carried_again
        follow(follower, stop, (study_dir / JOURNAL_FILE).stat().st_size, os.getppid())
        assert rounds[:4] == [False, False, False, True]

    @pytest.mark.parametrize(("trials", "calls"), [(2, ["imported"]), (0, [])])
    def test_what_models_need_is_imported_once_after_a_trial_was_completed(
        self, study_dir, monkeypatch, trials, calls
    ):  # fmt: skip
        small(study_dir, trials=trials, references=False, closed=None)
        follower, stop, rounds, imports = Follower(study_dir, NOWHERE), threading.Event(), [], []
        monkeypatch.setattr(follower_module, "import_serving", lambda: imports.append("imported"))

        def read():
            rounds.append(list(imports))
            if len(rounds) == 3:
                stop.set()
            Follower.read(follower)

        follower.read = read
        follow(follower, stop, 0, os.getppid())
        assert imports == calls
        assert rounds[0] == []

    def test_when_the_driver_has_ended_its_running_trials_are_killed_ones(self, study_dir):
        small(study_dir, trials=2, closed=None)
        journal = Journal(study_dir / JOURNAL_FILE)
        journal.append(
            Event.PROPOSED, trial="running", role="search", stratum="", parameters={}, proposal={},
            counts={"params": 1}, specification=plain_specification(),
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial="running", attempt=1, start_seconds=0.1)
        journal.close()
        follower = Follower(study_dir, default_tracking_uri(study_dir))
        assert follow(follower, threading.Event(), 0, parent=-1) is None
        assert trial_runs(study_dir / MLFLOW_FILE)["running"] == ["KILLED"]
        assert parent_status(study_dir / MLFLOW_FILE) == ["KILLED"]

    def test_a_stop_before_there_is_a_journal_leaves_nothing(self, tmp_path):
        stop = threading.Event()
        stop.set()
        assert follow(Follower(tmp_path, NOWHERE), stop, 0, os.getppid()) is None
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_logged_and_tried_again(self, study_dir, monkeypatch, caplog):
        small(study_dir, trials=2)
        follower, real, full = Follower(study_dir, default_tracking_uri(study_dir)), Follower.write_tables, [1, 1]

        def write_tables(self, now=False):
            if full:
                full.pop()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.parquet")
            real(self, now)

        monkeypatch.setattr(Follower, "write_tables", write_tables)
        assert follow(follower, threading.Event(), 0, os.getppid()) is None
        assert caplog.messages == ["[Errno 28] No space left on device: 'results.parquet'"] * 2
        assert (study_dir / RESULTS_FILE).exists()
