from __future__ import annotations

import json

import pytest

from analysis.findings.provenance import TrackingLink, study_provenance, tracking_link
from tests.support.synthetic_data import study, trial


class TestProvenance:
    def test_everything_on_record_is_a_fact(self):
        trials = [trial("a"), trial("b", seed=1)]
        for number, record in enumerate(trials):
            record.attempts = [{"host": "one", "device": "cpu"}, {"host": ("one", "two")[number], "device": "cuda"}]
            record.proposed_at, record.finished_at = 1_790_000_000.0 + number, 1_790_000_600.0 + number
        recorded = study(
            *trials, command="python sweeps/run.py --space x", commit="c0ffee", versions={"torch": "2.13"},
            network={"name": "resnet9", "width": 0.25}, hardware={"cpus": 4, "gpus": ["H200", "H200"]},
            data={"name": "digits", "fingerprint": "f00d", "train_images": 1077, "val_images": 360, "classes": 10},
        )  # fmt: skip
        recorded.notes, recorded.tags = ["first"], {"team": "vision"}
        assert dict(study_provenance(recorded).facts) == {
            "command": "python sweeps/run.py --space x", "network": "resnet9 of width 0.25",
            "data": "digits, fingerprint f00d", "images": "1,077 training, 360 validation, 10 classes",
            "hosts": "one (1 trial), two (1 trial)",
            "devices": "cuda (2 trials); the driver's machine: 4 CPUs, 2 x H200", "seeds": "0, 1 (n = 2)",
            "dates": "2026-09-21 14:13 to 14:23 UTC", "versions": "torch 2.13", "code": "c0ffee", "notes": "first",
            "tags": "team=vision",
        }  # fmt: skip
        assert study_provenance(study()).facts == ()

    def test_the_link_leads_to_the_run_in_mlflow_or_to_its_database(self, tmp_path):
        server = "http://user:secret@host:5000"
        assert tracking_link(study(), tmp_path, None) is None
        words = f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
        (tmp_path / "mlflow.db").touch()
        assert tracking_link(study(), tmp_path, None) == TrackingLink(link="", words=words)
        link = tracking_link(study(), tmp_path, server)
        shown = "http://user:***@host:5000"
        assert link == TrackingLink(link=shown, words=f"experiment made at {shown}")
        progress = {"uri": "http://host:5000", "experiment": "3", "parent": "beef"}
        (tmp_path / "tracking.json").write_text(json.dumps(progress))
        assert tracking_link(study(), tmp_path, None).link == "http://host:5000/#/experiments/3/runs/beef"

    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=u&password=***"),
            ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ],
    )
    def test_the_page_shows_no_password(self, uri, shown, tmp_path):
        assert tracking_link(study(), tmp_path, uri).words == f"mlflow ui --backend-store-uri {shown}"

    def test_a_database_in_a_folder_with_an_at_sign_is_named_in_full(self, tmp_path):
        (tmp_path / "a@b").mkdir()
        uri = f"sqlite:///{tmp_path}/a@b/mlflow.db"
        (tmp_path / "a@b" / "mlflow.db").touch()
        assert tracking_link(study(), tmp_path, uri).words == f"mlflow ui --backend-store-uri {uri}"
