"""Looks into an MLflow SQLite store with SQL, so that nothing of MLflow's own reading stands between test and fact."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from sweeps.records.events import Event
from sweeps.records.mlflow_names import metric_name
from sweeps.records.names import JOURNAL_FILE
from tests.support.journals import read_events


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def epoch_metrics(database: Path) -> Counter[tuple[Any, ...]]:
    """How often the store holds each (trial, metric, step, time in ms, value) of an epoch."""
    query = """
        select t.value, m.key, m.step, m.timestamp, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        join tags t on t.run_uuid = m.run_uuid and t.key = 'trial_id' where r.lifecycle_stage = 'active' and m.step > 0
    """
    return Counter(rows(database, query))


def journal_metrics(study_dir: Path) -> Counter[tuple[Any, ...]]:
    """The same from the journal, each once."""
    found = {
        (event["trial"], metric_name(name), event["epoch"], round(event["time"] * 1000), value)
        for event in read_events(study_dir / JOURNAL_FILE)
        if event["event"] == Event.EPOCH
        for name, value in event["metrics"].items()
    }
    return Counter(found)


def trial_runs(database: Path) -> dict[str, list[str]]:
    """Statuses of the active runs of each trial; a trial with two runs shows two."""
    query = """
        select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'trial_id'
        where r.lifecycle_stage = 'active'
    """
    found: dict[str, list[str]] = {}
    for trial_id, status in rows(database, query):
        found.setdefault(trial_id, []).append(status)
    return found


def parent_status(database: Path) -> list[str]:
    query = """
        select r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'study_key'
        where r.lifecycle_stage = 'active'
    """
    return [status for (status,) in rows(database, query)]


def content(database: Path) -> dict[str, Any]:
    """All that the store says of the study, without the ids that MLflow draws."""
    query = """
        select t.value, p.key, p.value from params p join tags t on t.run_uuid = p.run_uuid and t.key = 'trial_id'
        join runs r on r.run_uuid = p.run_uuid where r.lifecycle_stage = 'active'
    """
    metrics = """
        select m.key, m.step, m.timestamp, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        where r.lifecycle_stage = 'active'
    """
    return {
        "params": Counter(rows(database, query)),
        "metrics": Counter(rows(database, metrics)),
        "runs": trial_runs(database),
        "parent": parent_status(database),
    }
