"""Asks an MLflow store, before a study begins, whether it will take the study's records.

It runs in the tracking process: MLflow takes seconds to import, and the driver does without it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import InputError
from lowrank.utils import first_line, redact
from sweeps.records import JOURNAL_FILE, Event, JournalReader, StudyHeader, mlflow_names as names
from sweeps.tracking.mlflow_store import MESSAGE_LENGTH, is_denial, outages, quiet_mlflow, sqlite_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SHOWN_STUDIES = 3  # of others of the same name, in a message
PAGE = 1000  # runs that are looked at; a study of a larger experiment than this is found by its tag


def check_store(uri: str, study_dir: Path) -> list[str]:
    """Ask a store for the experiment of a study, which has the name of the study's folder.

    Args:
        uri: the store's address; a SQLite file that is not there has nothing to ask.
        study_dir: the study's folder, which may have no journal yet.

    Returns:
        Lines for the user: the experiment has other studies or runs, or the store does not answer now.

    Raises:
        InputError: the experiment was deleted, or the store refuses this user.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return []
    quiet_mlflow()
    from mlflow.tracking import MlflowClient

    try:
        return _experiment_lines(MlflowClient(tracking_uri=uri), uri, study_dir)
    except outages() as error:
        reason = first_line(error, MESSAGE_LENGTH).replace(uri, redact(uri))
        if is_denial(error):
            raise InputError(f"the MLflow store {redact(uri)} refuses this user: {reason}") from error
        return [f"the MLflow store {redact(uri)} does not answer now ({reason}); records wait in the journal"]


def _experiment_lines(client: MlflowClient, uri: str, study_dir: Path) -> list[str]:
    name = study_dir.name
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return []
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"the MLflow experiment {name!r} in {redact(uri)} was deleted; restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}), or choose another --name or --tracking-uri"
        )
    identifiers = [experiment.experiment_id]
    parents = client.search_runs(identifiers, f"tags.{names.KEY_TAG} != ''", max_results=PAGE)
    study_key = _own_key(study_dir)
    others = sorted(run.info.start_time or 0 for run in parents if run.data.tags[names.KEY_TAG] != study_key)
    if others:
        shown = [f"{datetime.fromtimestamp(time / 1000, UTC):%Y-%m-%d %H:%M} UTC" for time in others[-SHOWN_STUDIES:]]
        count = f"{len(others)} other stud{'y' if len(others) == 1 else 'ies'} (begun {', '.join(shown)})"
        return [f"the MLflow experiment {name!r} has {count}; another --name keeps them apart"]
    if not parents and client.search_runs(identifiers, max_results=1):
        return [f"the MLflow experiment {name!r} has runs of something else; another --name keeps them apart"]
    return []


def _own_key(study_dir: Path) -> str:
    """The tag of the study that the folder has; "" for one that has not begun."""
    path = study_dir / JOURNAL_FILE
    if not path.exists():
        return ""
    header = next((line.event for line in JournalReader(path).scan() if line.event.get("event") == Event.STUDY), None)
    return "" if header is None else names.study_key(StudyHeader.parse(header))
