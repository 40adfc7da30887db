"""A team's store: an MLflow server before PostgreSQL, and PostgreSQL without a server between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psycopg
import pytest

from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.mlflow_store import quiet_mlflow
from tests.support.mlflow_store import journal_metrics
from tests.support.servers import free_port, mlflow_server, postgres, postgres_program
from tests.support.synthetic_study import Plan, write_study

missing = [name for name in ("initdb", "pg_ctl", "createdb") if postgres_program(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing), reason=f"PostgreSQL is not installed: no {', '.join(missing)}"),
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),
]


def stored(address: str) -> Counter[tuple]:
    """What PostgreSQL itself holds of epochs, by trial, metric, step, time and value."""
    query = """
        select t.value, m.key, m.step, m.timestamp, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        join tags t on t.run_uuid = m.run_uuid and t.key = 'trial_id' where r.lifecycle_stage = 'active' and m.step > 0
    """
    with psycopg.connect(address) as connection:
        return Counter(connection.execute(query).fetchall())


def twice(study_dir: Path, uri: str) -> None:
    """Carry the study, forget what was carried, and carry it again."""
    assert catch_up(Follower(study_dir, uri)) is None
    (study_dir / "tracking.json").unlink()
    assert catch_up(Follower(study_dir, uri)) is None


def test_a_study_is_in_postgresql_once_through_a_server_and_without_one(tmp_path):
    quiet_mlflow()
    through, direct = (write_study(tmp_path / name, Plan(name=name, trials=8, epochs=3)) for name in ("team", "alone"))
    with postgres() as address:
        with mlflow_server(tmp_path / "server", free_port(), address) as uri:
            twice(through, uri)
        assert stored(address) == journal_metrics(through)
        twice(direct, address)
        assert stored(address) == journal_metrics(through) + journal_metrics(direct)
